// The knowledge file system: what is stored, what is reachable, what a collection would free.

import { brief, bytes, card, clock, count, empty, h, head, number, percent, pill, put, recordLink, short, table } from "../dom.js";

const COLOURS = ["--c1", "--c2", "--c3", "--c4", "--c5", "--c6"];

export default {
  title: "Store",
  icon: "M4 5.5c0-1.4 2.7-2.5 6-2.5s6 1.1 6 2.5-2.7 2.5-6 2.5-6-1.1-6-2.5zM4 5.5v9C4 15.9 6.7 17 10 17s6-1.1 6-2.5v-9M4 10c0 1.4 2.7 2.5 6 2.5s6-1.1 6-2.5",
  mount(root, app) {
    const { store } = app;
    let percentKept = 50;
    let busy = false;
    let seen = -1;
    let timer = 0;
    const sizes = h("div", {});
    const reach = h("div", {});
    const pins = h("div", { class: "capped" });
    const preview = h("div", {});
    const past = h("div", {});
    const shown = h("output", {}, "50 %");
    const slider = h("input", { class: "range", type: "range", min: 0, max: 100, value: 50, step: 5, "aria-label": "Share of the stored bytes that may stay", oninput: () => {
      percentKept = Number(slider.value);
      shown.textContent = `${percentKept} %`;
      clearTimeout(timer);
      timer = setTimeout(plan, 250);
    } });
    root.append(
      head("Store", "Content-addressed objects in packs, one pack a commit. What is equal is stored once; what no record names any more can be collected.", h("button", { class: "button", onclick: () => load(true) }, "Read again")),
      h("div", { class: "grid" },
        card("Objects by kind", { wide: "w7" }, sizes), card("Reachability", { wide: "w5" }, reach),
        card("What a collection would free", { wide: "w7", note: "a preview: nothing is changed" }, h("div", { class: "meter" }, h("label", {}, "May stay"), slider, shown), preview),
        card("Kept whatever a plan says", { wide: "w5", flush: true }, pins),
        card("Collections and named snapshots", { flush: true }, past)));

    async function load(again = false) {
      if (busy || (!again && seen >= 0)) return;
      busy = true;
      try {
        const found = await app.get("/api/store");
        seen = found.records;
        drawSizes(found);
        await plan();
      } catch (error) {
        put(sizes, empty("The store cannot be read", `${error.code || ""} ${error.message}`));
      } finally {
        busy = false;
      }
    }

    async function plan() {
      try {
        const found = await app.get("/api/collection", { percent: percentKept });
        const freed = found.bytes_now - found.bytes_after;
        put(preview, h("p", { style: { margin: "12px 0" } }, h("b", {}, `${bytes(freed)} of ${bytes(found.bytes_now)}`), h("span", { class: "quiet" }, ` would go: ${found.reason}`)),
          table([{ name: "Window", num: true, of: (c) => c.window }, { name: "What", of: (c) => c.what }, { name: "Id", class: "mono", of: (c) => short(c.id) }, { name: "Utility", num: true, of: (c) => number(c.score, 3) }, { name: "Frees", num: true, of: (c) => bytes(c.bytes) }, { name: "Record", of: (c) => recordLink(c.seq) }], found.collect.slice(0, 12), { none: "nothing would have to go", label: "What would go" }),
          found.collect.length > 12 && h("p", { class: "quiet", style: { padding: "8px 12px" } }, `and ${count(found.collect.length - 12)} more`),
          h("p", { class: "quiet", style: { marginTop: "10px" } }, "To do it: ", h("code", { class: "command" }, `recuros kfs gc --apply --budget ${percentKept}%`)));
      } catch (error) {
        put(preview, h("p", { class: "tone-bad" }, `${error.code || ""} ${error.message}`));
      }
    }

    function drawSizes(found) {
      const kinds = [...found.kinds].sort((a, b) => b.bytes - a.bytes);
      const all = kinds.reduce((n, k) => n + k.bytes, 0) || 1;
      put(sizes, h("div", { class: "stack", role: "img", "aria-label": kinds.map((k) => `${k.kind} ${percent(k.bytes / all, 0)}`).join(", ") }, kinds.map((k, i) => h("i", { style: { width: `${(k.bytes / all) * 100}%`, background: `var(${COLOURS[i % 6]})` }, title: k.kind }))), h("div", { style: { height: "10px" } }),
        table([{ name: "Kind", of: (k) => [h("i", { class: "swatch", style: { background: `var(${COLOURS[kinds.indexOf(k) % 6]})` } }), k.kind] }, { name: "Objects", num: true, of: (k) => count(k.objects) }, { name: "Bytes", num: true, of: (k) => bytes(k.bytes) }, { name: "Share", num: true, of: (k) => percent(k.bytes / all) }], kinds, { none: "no object yet", label: "Objects by kind" }));
      const damaged = Object.keys(found.damaged);
      const rows = [["Reachable", `${bytes(found.reachable_bytes)} of ${bytes(found.stored_bytes)}`], ["Snapshots", count(found.snapshots)], ["Packs", `${count(found.packs.count)}, ${bytes(found.packs.bytes)}`], ["Named by no record", found.unreferenced_packs ? `${count(found.unreferenced_packs)} packs` : "none"], ["In the trash", found.trash.count ? `${count(found.trash.count)}, ${bytes(found.trash.bytes)}` : "empty"], ["Ledger", `${count(found.records)} records, ${bytes(found.ledger_bytes)}`], ["Damaged packs", damaged.length ? h("span", { class: "tone-bad" }, count(damaged.length)) : "none"], ["As of", `record ${found.records - 1}`]];
      put(reach, h("div", { class: "stat" }, h("div", { class: "value" }, percent(found.stored_bytes ? found.reachable_bytes / found.stored_bytes : 1), h("small", {}, " reachable"))), h("dl", { class: "facts", style: { marginTop: "12px" } }, rows.map(([k, v]) => [h("dt", {}, k), h("dd", {}, v)])));
      const held = Object.entries(found.pins);
      put(pins, table([{ name: "Snapshot", class: "mono", of: ([id]) => short(id) }, { name: "Window", num: true, of: ([id]) => store.bySnapshot.get(id)?.id ?? "–" }, { name: "Why", of: ([, why]) => why }], held.slice(0, 24), { none: "nothing is pinned yet", label: "Pins" }));
    }

    function draw() {
      load();
      const rows = [...store.snapshots.map((x) => ({ seq: x.seq, t: x.t, what: "snapshot", text: `${x.name || "(no name)"}: window ${x.window}, ${short(x.id)}` })), ...store.collections.map((c) => ({ seq: c.seq, t: c.t, what: "collection", text: `${count(c.count)} given up: ${c.reason}; ${c.done ? `freed ${bytes(c.done.bytes)} in ${count(c.done.packs)} packs (record ${c.done.seq})` : "in its grace"}` }))].sort((a, b) => b.seq - a.seq).slice(0, 20);
      const key = rows.map((r) => r.seq).join();
      if (past.dataset.key === key) return;
      past.dataset.key = key;
      put(past, rows.length ? table([{ name: "Record", of: (r) => recordLink(r.seq) }, { name: "Time", of: (r) => clock(r.t) }, { name: "What", of: (r) => pill(r.what, r.what === "snapshot" ? "accent" : "warn") }, { name: "", of: (r) => brief(r.text, 200) }], rows, { label: "Collections and snapshots" }) : empty("None yet", "A name pins a state for good.", "recuros snapshot create before-pruning"));
    }
    for (const box of [sizes, reach, pins, preview]) put(box, h("p", { class: "quiet", style: { padding: box === pins ? "0 16px 16px" : "" } }, "Reading the headers of every pack…"));
    return { draw };
  },
};
