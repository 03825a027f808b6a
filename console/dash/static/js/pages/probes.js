// Probes: what they hang on, what they cost, what they lost, what the verifier proved, and their maps while they run.

import { bar, brief, card, count, duration, empty, h, head, number, patch, pill, put, recordLink, table } from "../dom.js";

const LOOK_MS = 1500;

export default {
  title: "Probes",
  icon: "M10 3v4M10 13v4M3 10h4M13 10h4M10 7.2a2.8 2.8 0 1 1 0 5.6 2.8 2.8 0 0 1 0-5.6z",
  mount(root, app, rest) {
    const { store } = app;
    let chosen = rest[0] ? Number(rest[0]) : null;
    let readAt = 0;
    let reading = false;
    const list = h("div", {});
    const maps = h("div", {});
    const log = h("div", {});
    const past = h("div", {});
    const certificates = new Map();
    const asked = new Set();
    root.append(
      head("Probes", "Small verified programs at hooks of the running step. Cost is measured and charged; a full ring or map counts what it dropped."),
      h("div", { class: "grid" },
        card("Attached", { flush: true }, list),
        card("Maps", { wide: "w7", note: "read while the learner runs" }, maps),
        card("What the verifier proved", { wide: "w5" }, log),
        card("Attached, detached, evicted", { flush: true, note: "from the ledger" }, past)));

    const rows = () => store.gauges.probes || [];

    function choose(id) {
      chosen = id;
      readAt = 0;
      put(maps, h("p", { class: "quiet" }, "Reading…"));
      draw();
    }

    async function readMaps() {
      if (reading || chosen === null || !store.gauges.up || performance.now() - readAt < LOOK_MS) return;
      reading = true;
      const wanted = chosen;
      try {
        const found = await app.get(`/api/probe/${wanted}`);
        if (wanted === chosen) put(maps, drawMaps(found));
      } catch (error) {
        if (wanted === chosen) put(maps, empty("These maps cannot be read now", `${error.code || ""} ${error.message}`));
      } finally {
        reading = false;
        readAt = performance.now();
      }
    }

    async function prove(row) {
      const loaded = (store.gauges.programs || []).find((p) => row.prog.startsWith(p.digest));
      if (loaded) {
        certificates.set(row.prog, { ok: true, prog: loaded.name, certificate: loaded.certificate, instructions: loaded.certificate.instructions, bytes: loaded.bytes, live: true });
        return;
      }
      if (asked.has(row.prog)) return;
      asked.add(row.prog);
      try {
        certificates.set(row.prog, await app.get("/api/program", { prog: row.prog }));
      } catch (error) {
        certificates.set(row.prog, { ok: false, code: error.code, message: error.message });
      }
      draw();
    }

    function draw() {
      const live = rows();
      if (chosen === null && live.length) chosen = live[0].id;
      if (!store.gauges.up) patch(list, empty("No runtime is up", "Which probes were attached is below; their figures by window are on the layers page."));
      else if (!live.length) patch(list, store.gauges.probes_denied ? empty("Probes are not shown", store.gauges.probes_denied) : empty("No probe is attached", "One line attaches a built-in to the running learner.", "recuros probe attach builtin:rms 'on_forward:student/**'"));
      else {
        patch(list, h("div", { class: "scroll" }, h("table", { class: "tight", "aria-label": "Attached probes" }, h("thead", {}, h("tr", {}, ["Id", "Program", "Hook", "Sites", "Fired", "Cost a firing", "In all", "Drops", "Runs as", "Owner"].map((n, i) => h("th", { scope: "col", class: i > 2 && i < 8 ? "num" : null }, n)), app.steer && h("th", {}))),
          h("tbody", {}, live.map((p) => h("tr", { class: "link", "aria-selected": String(p.id === chosen), tabindex: 0, "data-id": p.id, onclick: (e) => choose(Number(e.currentTarget.dataset.id)), onkeydown: (e) => e.key === "Enter" && choose(Number(e.currentTarget.dataset.id)) },
            h("td", {}, p.id), h("td", { class: "nowrap" }, h("b", {}, p.program), p.evicted ? [" ", pill("evicted", "bad", p.evicted)] : null), h("td", { class: "mono" }, p.hook), h("td", { class: "num" }, p.sites.length), h("td", { class: "num" }, count(p.fired)), h("td", { class: "num" }, duration(p.cost_ns)), h("td", { class: "num" }, duration(p.total_ns)), h("td", { class: "num" }, h("span", { class: p.drops ? "tone-bad" : "" }, count(p.drops))), h("td", {}, pill(p.backend, p.backend === "jit" ? "good" : "idle", p.reason || "")), h("td", { class: "nowrap" }, p.owner),
            app.steer && h("td", {}, h("button", { class: "button small", onclick: (e) => {
              e.stopPropagation();
              detach(app, rows().find((r) => r.id === Number(e.currentTarget.closest("tr").dataset.id)));
            } }, "Detach"))))))));
      }
      const row = live.find((p) => p.id === chosen);
      if (row) {
        prove(row);
        patch(log, drawProof(row, certificates.get(row.prog)));
        readMaps();
      } else {
        patch(log, h("p", { class: "quiet" }, "Choose an attached probe."));
        put(maps, h("p", { class: "quiet" }, store.gauges.up ? "Choose an attached probe." : "Known while a runtime is up."));
      }
      const newest = new Map([...store.probes.values()].map((p) => [p.id, p])); // a resumed boot takes probes over without a new record
      const events = [...store.probes.values()].slice(-60).reverse();
      patch(past, events.length ? h("div", { class: "scroll" }, h("table", { "aria-label": "Probes in the ledger" }, h("thead", {}, h("tr", {}, ["Record", "Boot", "Id", "Program", "Hook", "From step", "By", "Until"].map((n) => h("th", { scope: "col" }, n)))), h("tbody", {}, events.map((p) => h("tr", {}, h("td", {}, recordLink(p.seq)), h("td", { class: "mono" }, p.boot.id.slice(0, 8)), h("td", {}, p.id), h("td", {}, p.prog.split(",")[0]), h("td", { class: "mono" }, p.hook), h("td", {}, count(p.step)), h("td", { class: "nowrap" }, p.actor), h("td", {}, p.gone ? [`step ${p.gone.step}: ${p.gone.why} `, recordLink(p.gone.seq)] : live.some((l) => l.id === p.id && l.hook === p.hook) && newest.get(p.id) === p ? pill("attached", "good") : "end of the boot")))))) : h("p", { class: "empty" }, "no probe was ever attached"));
    }
    return { draw };
  },
};

async function detach(app, probe) {
  const given = await app.ask("Detach", `Probe ${probe.id}, ${probe.program}: its maps are freed after one step.`);
  if (!given) return;
  try {
    const answer = await app.act("detach", { id: probe.id }, given.reason);
    app.say(`detached: ledger record ${answer.seq}`);
  } catch (error) {
    app.say(`${error.code}: ${error.message}`);
  }
}

function drawProof(row, found) {
  if (!found) return h("p", { class: "quiet" }, "Verifying…");
  if (!found.ok) return h("div", { class: "verdict", "data-tone": "bad" }, h("div", {}, h("b", {}, `refused: ${found.code}`), h("p", {}, found.message), found.hint && h("p", { class: "quiet" }, found.hint)));
  const c = found.certificate;
  const rows = [["Program", h("span", { class: "hash" }, c.program.slice(0, 32))], ["Hook", c.hook], ["Instructions", `${count(c.instructions)}${found.bytes ? `, ${count(found.bytes)} bytes` : ""}`], ["Cost, at most", `${count(c.cost)} units a firing (about ${duration(c.cost)})`], ["Admitted here", row.units ? `${count(row.units)} units, measured ${duration(row.cost_ns)}` : "–"], ["Looked at", `${count(c.visits)} instructions`], ["Reaches", typeof c.tiers === "string" ? c.tiers : ["pure", "inline", "async"][c.tiers] || c.tiers], ["For rights", c.rights.join(", ") || "none"], ["Verifier", `version ${c.verifier_version}, instruction set ${c.isa_version}`]];
  return h("div", { class: "detail" }, h("div", { class: "verdict", "data-tone": "good" }, h("div", {}, h("b", {}, "accepted"), h("p", {}, "It ends, stays inside its maps and views, and costs at most what is said here."))), h("dl", { class: "facts" }, rows.map(([k, v]) => [h("dt", {}, k), h("dd", {}, v)])), h("p", { class: "quiet" }, found.live ? "From the kernel, for this run's sizes." : "Verified here for the reference sizes; the kernel verified it for this run's."));
}

function drawMaps(found) {
  const held = found.found || {};
  const parts = [];
  const summary = Object.entries(held.summary || {}).filter(([k, v]) => k !== "ran" && (typeof v !== "object" || v === null));
  if (summary.length) parts.push(h("dl", { class: "facts" }, summary.map(([k, v]) => [h("dt", {}, k.replaceAll("_", " ")), h("dd", {}, typeof v === "number" ? number(v, 5) : String(v ?? "–"))])));
  for (const [k, v] of Object.entries(held.summary || {})) if (v && typeof v === "object" && k !== "ran") parts.push(h("div", {}, h("h3", {}, k), h("dl", { class: "facts" }, Object.entries(v).slice(0, 40).map(([name, x]) => [h("dt", { class: "mono" }, name), h("dd", {}, brief(x, 90))]))));
  for (const [name, map] of Object.entries(held.maps || {})) {
    if (!map || typeof map !== "object") continue;
    const lost = [map.drops && `${map.drops} drops`, map.nans && `${map.nans} NaN`, map.torn && "torn: the learner wrote meanwhile"].filter(Boolean).join(", ");
    parts.push(h("div", {}, h("h3", {}, `@${name}`, h("span", { class: "quiet" }, ` ${map.kind || ""}${lost ? `, ${lost}` : ""}`)), drawMap(map, held.sites || [])));
  }
  return h("div", { class: "detail" }, h("p", { class: "quiet" }, `${found.prog.split(",")[0]} at ${found.hook}, read ${found.read === "page" ? "from its page: nobody is asked" : "through the learner"}`), parts.length ? parts : empty("Its maps are empty", "It has not fired yet."));
}

function drawMap(map, sites) {
  if (map.rows?.length && map.fields?.length) return table([{ name: "Site", class: "mono", of: ([, i]) => sites[i] || i }, ...map.fields.map((f, k) => ({ name: f, num: true, of: ([row]) => number(row.values?.[k]) }))], map.rows.slice(0, 40).map((row, i) => [row, i]), { label: "By site" });
  if (map.rows) return map.rows.length ? map.rows.slice(0, 24).map((row, i) => h("div", {}, h("p", { class: "mono quiet" }, sites[i] || `site ${i}`), drawRow(map, row))) : h("p", { class: "quiet" }, "nothing yet");
  return drawRow(map, map);
}

function drawRow(map, row) {
  if (map.kind === "log2" || map.kind === "linear") {
    const step = map.kind === "linear" ? (row.high - row.low) / Math.max(1, row.counts.length) : 0;
    const name = (i) => (map.kind === "log2" ? `2^${row.low + i}` : number(row.low + i * step, 3));
    return bars(row.counts.map((n, i) => [name(i), n]));
  }
  if (map.kind === "hash") return bars(row.items.slice(0, 40).map(([k, v]) => [String(k), Array.isArray(v) ? v[0] : v]), false);
  if (map.kind === "ring") return h("div", {}, h("p", { class: "quiet" }, `${count(row.written)} written, ${count(row.taken)} taken`), h("pre", { class: "json" }, (row.entries || []).slice(-12).map(([step, site, tag, value]) => `step ${step}  site ${site}  tag ${tag}  ${number(value)}`).join("\n") || "nothing yet"));
  const values = row.values || [];
  if (map.fields?.length) return h("dl", { class: "facts" }, map.fields.map((f, i) => [h("dt", {}, f), h("dd", {}, number(values[i]))]));
  return bars(values.slice(0, 64).map((v, i) => [`${map.label || ""}[${i}]`, v]));
}

function bars(items, trim = true) {
  const used = items.map(([, v], i) => (v ? i : -1)).filter((i) => i >= 0);
  if (!used.length) return h("p", { class: "quiet" }, "nothing yet");
  const shown = trim ? items.slice(used[0], used.at(-1) + 1) : items;
  const most = Math.max(...shown.map(([, v]) => Math.abs(v))) || 1;
  return h("div", { class: "hist" }, shown.map(([name, v]) => [h("span", { class: "mono" }, name), bar(Math.abs(v) / most), h("span", {}, number(v))]));
}
