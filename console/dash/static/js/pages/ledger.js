// The ledger: every record, a search over all of it, the state as of a record, and its proof, checked by this page.

import { brief, card, clock, count, dateTime, empty, h, head, keyed, number, patch, pill, put, short } from "../dom.js";
import { check } from "../proof.js";
import { sentence } from "./overview.js";
import { toneOf } from "../store.js";

const PAGE = 60;
const TABS = [["record", "Record"], ["proof", "Proof"], ["at", "State then"]];

export default {
  title: "Ledger",
  icon: "M5 3h10v14H5zM8 7h4M8 10h4M8 13h2.5",
  mount(root, app, rest) {
    const { store } = app;
    let selected = rest[0] ? Number(rest[0]) : null;
    let tab = "record";
    let older = null; // rows of a search, newest first; null: the newest of what is loaded
    let before = 0;
    let timer = 0;
    let asked = 0;
    const text = h("input", { class: "field", type: "search", placeholder: "Search every record", "aria-label": "Search every record", oninput: later });
    const kind = h("select", { class: "field", "aria-label": "Kind", onchange: search });
    const actor = h("select", { class: "field", "aria-label": "Actor", onchange: search });
    const rows = h("tbody", {});
    const foot = h("div", { class: "empty" });
    const detail = h("div", { class: "detail" });
    const tabs = h("div", { class: "segments", role: "group", "aria-label": "Show" }, TABS.map(([name, label]) => h("button", { type: "button", "data-tab": name, "aria-pressed": String(name === tab), onclick: () => {
      tab = name;
      drawDetail();
    } }, label)));
    root.append(
      head("Ledger", "Append-only, hashed into a tree, signed. A record's proof is recomputed here, from its bytes to the signed root."),
      h("div", { class: "grid loose" },
        card("", { wide: "w7", flush: true, label: "Records" }, h("div", { class: "filters" }, text, kind, actor), h("div", { class: "scroll" }, h("table", { class: "ledger-table", "aria-label": "Records" }, h("thead", {}, h("tr", {}, h("th", { class: "num", scope: "col" }, "#"), h("th", { scope: "col" }, "Time"), h("th", { scope: "col", class: "wide" }, "Actor"), h("th", { scope: "col" }, "Kind"), h("th", { scope: "col" }, "What"))), rows)), foot),
        h("div", { class: "w5" }, h("section", { class: "card sticky-card", "aria-label": "One record" }, h("header", {}, h("h2", { id: "record-title" }, "Record"), h("div", { class: "tools" }, tabs)), detail))));

    function later() {
      clearTimeout(timer);
      timer = setTimeout(search, 250);
    }
    const filtered = () => text.value.trim() || kind.value || actor.value;

    async function search() {
      const mine = (asked += 1);
      if (!filtered()) {
        older = null;
        drawRows();
        return;
      }
      await fetchRows(-1, mine, []);
    }

    async function fetchRows(from, mine, kept) {
      put(foot, "Searching…");
      try {
        const found = await app.get("/api/search", { text: text.value.trim(), kind: kind.value, actor: actor.value, before: from, limit: PAGE * 2 });
        if (mine !== asked) return;
        older = [...kept, ...found.records];
        before = found.before;
        drawRows();
      } catch (error) {
        if (mine === asked) put(foot, `The search failed: ${error.message}`);
      }
    }

    async function more() {
      const shown = older || newest();
      await fetchRows(shown.at(-1)?.seq ?? -1, asked, shown);
    }

    const narrow = () => innerWidth <= 1100;
    const newest = () => store.records.slice(narrow() ? -PAGE / 3 : -PAGE).reverse();

    function drawRows() {
      const shown = older || newest();
      keyed(rows, shown, (r) => r.seq, (r) => h("tr", { class: "link", tabindex: 0, "data-seq": r.seq, "aria-selected": String(r.seq === selected), onclick: () => choose(r.seq), onkeydown: (e) => step(e, r.seq) },
        h("td", { class: "num" }, r.seq), h("td", { class: "nowrap" }, clock(r.t)), h("td", { class: "nowrap wide" }, r.actor), h("td", { class: "nowrap" }, pill(r.kind, toneOf(r))), h("td", { class: "what" }, sentence(r))));
      const canMore = older ? before > 0 : shown.length && shown.at(-1).seq > 0;
      patch(foot, !shown.length ? empty("No record matches", "Kind and actor are exact; text is looked for in every field.") : canMore ? h("button", { class: "button", onclick: more }, "Older records") : h("span", {}, older ? `${count(older.length)} records match` : "The first record"));
    }

    function step(e, seq) {
      if (e.key === "Enter" || e.key === " ") {
        e.preventDefault();
        choose(seq);
      } else if (e.key === "ArrowDown" || e.key === "ArrowUp") {
        e.preventDefault();
        (e.key === "ArrowDown" ? e.currentTarget.nextElementSibling : e.currentTarget.previousElementSibling)?.focus();
      }
    }

    function choose(seq) {
      selected = seq;
      history.replaceState(null, "", `#/ledger/${seq}`);
      for (const row of rows.children) row.setAttribute("aria-selected", String(Number(row.dataset.seq) === seq));
      drawDetail();
      if (narrow()) detail.closest("section").scrollIntoView({ block: "start" }); // the record is below the list there
    }

    async function drawDetail() {
      for (const b of tabs.children) b.setAttribute("aria-pressed", String(b.dataset.tab === tab));
      document.getElementById("record-title").textContent = selected === null ? "Record" : `Record ${selected}`;
      if (selected === null) {
        put(detail, empty("Choose a record", "Its fields, its proof, and the whole state as of it."));
        return;
      }
      const seq = selected;
      const which = tab;
      put(detail, h("p", { class: "quiet" }, which === "proof" ? "Fetching the proof and hashing…" : "Reading…"));
      try {
        const found = await VIEWS[which](app, seq);
        if (seq === selected && which === tab) put(detail, found);
      } catch (error) {
        if (seq === selected && which === tab) put(detail, h("div", { class: "verdict", "data-tone": "bad" }, h("div", {}, h("b", {}, error.code || "error"), h("p", {}, error.message), error.hint && h("p", {}, error.hint))));
      }
    }

    function drawFilters() {
      const fill = (select, first, names) => {
        const key = names.join("|");
        if (select.dataset.names === key) return;
        select.dataset.names = key;
        const value = select.value;
        put(select, h("option", { value: "" }, first), names.map((n) => h("option", { value: n }, n)));
        select.value = value;
      };
      fill(kind, "every kind", [...new Set(store.records.map((r) => r.kind))].sort());
      fill(actor, "every actor", [...new Set(store.records.map((r) => r.actor.split(":")[0]))].sort());
    }

    let seen = -1;
    function instant() {
      if (older || seen === store.next || rows.contains(document.activeElement)) return;
      seen = store.next;
      drawRows();
    }
    drawDetail();
    return { instant, draw() {
      drawFilters();
      instant();
    }, goTo(next) {
      if (next[0] !== undefined && Number(next[0]) !== selected) choose(Number(next[0]));
    } };
  },
};

const facts = (rows) => h("dl", { class: "facts" }, rows.map(([k, v]) => [h("dt", {}, k), h("dd", {}, v)]));
const hash = (text) => h("span", { class: "hash" }, text);

const VIEWS = {
  async record(app, seq) {
    const r = await app.get(`/api/record/${seq}`);
    const optional = [["Before", r.parent_snap], ["After", r.result_snap], ["Code", r.code_id], ["Environment", r.env_id], ["Generator before", r.rng_before], ["Generator after", r.rng_after]].filter(([, v]) => v).map(([k, v]) => [k, hash(v)]);
    return [facts([["Kind", pill(r.kind, toneOf({ kind: r.kind, args: r.args }))], ["Time", dateTime(r.t_wall / 1e6)], ["Actor", `${r.actor}${r.cap_id >= 0 ? `, capability ${r.cap_id}` : ""}`], ["Generation", r.generation], ...optional, ...(r.input_ids.length ? [["Rests on", r.input_ids.map((id) => h("div", {}, hash(id)))]] : []), ["Leaf", hash(r.leaf)], ["Size", `${count(r.bytes)} bytes`]]), h("div", {}, h("h3", {}, "Arguments"), h("pre", { class: "json", tabindex: 0 }, JSON.stringify(r.args, null, 2)))];
  },
  async proof(app, seq) {
    const doc = await app.get(`/api/proof/${seq}`);
    const found = await check(doc);
    const shown = [{ side: "", hash: found.leaf }, ...found.steps];
    return [
      h("div", { class: "verdict", "data-tone": found.ok ? "good" : "bad", id: "proof-verdict" }, h("div", {}, h("b", {}, found.ok ? "Proved in this page" : "This proof does not hold"), h("p", {}, found.same ? `SHA-256 over the record's ${count(atob(doc.record).length)} bytes and ${found.steps.length} siblings gives the root that was signed over ${count(found.size)} records. ${found.signature.how}.` : "The hashes lead to another root than the signed one: record, path or checkpoint was changed."))),
      h("div", {}, h("h3", {}, "From the leaf to the root"), h("ol", { class: "proof" }, shown.map((s, i) => h("li", { title: s.sibling ? `${s.side} sibling ${s.sibling}` : "leaf" }, h("span", { class: "side" }, i === 0 ? "#" : s.side === "left" ? "◂" : "▸"), h("span", {}, s.hash))))),
      facts([["Computed root", hash(found.root)], ["Signed root", hash(found.signedRoot)], ["Log", hash(found.origin)], ["Signature", found.signature.how], ["Key", h("span", {}, hash(doc.key), h("p", { class: "quiet" }, "This key lies in the store itself. Against the owner of this machine only a key that you kept elsewhere proves something."))], ...(doc.notes?.length ? [["Notes", doc.notes.join("; ")]] : [])]),
      h("div", {}, h("h3", {}, "The bytes that were hashed, decoded here"), h("pre", { class: "json", tabindex: 0 }, JSON.stringify(found.record, null, 2)))];
  },
  async at(app, seq) {
    const s = await app.get(`/api/at/${seq}`);
    const scores = Object.entries(s.scores || {}).map(([split, v]) => `${split}: student ${number(v.student?.accuracy)}, teacher ${number(v.teacher?.accuracy)}`);
    return [
      facts([["Runtime", s.halted ? `halted (${s.halted.mode})` : s.paused ? "paused" : "up"], ["Boot", `${s.boot} (number ${s.boots})`], ["Committed", `window ${s.committed.window}, ${short(s.committed.snapshot)}`], ["Open windows", s.open.map((w) => w.window).join(", ") || "none"], ["Windows", brief(s.windows)], ["Generation", s.generation], ["Settings in force", brief(s.kd.in_force)], ["Policy", brief(s.policy.in_force, 90)], ["Waiting policies", count(s.policy.pending.length)], ["Schedule", s.schedule?.name ? `${s.schedule.name} ${s.schedule.budget_ns / 1e6} / ${s.schedule.period_ns / 1e6} ms` : "none"], ["Scores", scores.join("; ") || "none"], ["Probes", s.probes.map((p) => `${p.id} ${String(p.prog).split(",")[0]}`).join(", ") || "none"], ["Servers", s.servers.map((v) => `${v.name} ${v.state}`).join(", ") || "none"], ["Capabilities", count(s.capabilities.length)], ["Pins", Object.keys(s.pins).join(", ") || "none"], ["Faults", count(s.faults)]]),
      h("p", { class: "quiet" }, "Folded from the records up to this one, by the rules of a resume."),
      h("pre", { class: "json", tabindex: 0 }, JSON.stringify(s, null, 2))];
  },
};
