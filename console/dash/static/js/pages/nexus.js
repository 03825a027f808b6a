// Nexus: stages, retention gates and teachers, from the nexus records of the ledger.

import { brief, card, clock, count, empty, h, head, percent, pill, put, recordLink, table } from "../dom.js";

const STAGES = ["scope", "registry", "profile", "architect", "distill", "gate", "package", "refine"];
const VERDICTS = { pass: "good", done: "good", "insufficient evidence": "warn", fail: "bad", begun: "accent", dropped: "warn", refused: "bad" };
const toneOf = (verdict) => VERDICTS[String(verdict).toLowerCase()] || "idle";

export default {
  title: "Nexus",
  icon: "M10 8a2 2 0 1 0 0 4 2 2 0 0 0 0-4zM4 3.5a1.5 1.5 0 1 0 0 3 1.5 1.5 0 0 0 0-3zM16 3.5a1.5 1.5 0 1 0 0 3 1.5 1.5 0 0 0 0-3zM4 13.5a1.5 1.5 0 1 0 0 3 1.5 1.5 0 0 0 0-3zM16 13.5a1.5 1.5 0 1 0 0 3 1.5 1.5 0 0 0 0-3zM5.2 6l3.2 2.6M14.8 6l-3.2 2.6M5.2 14l3.2-2.6M14.8 14l-3.2-2.6",
  mount(root, app) {
    const { store } = app;
    const body = h("div", {});
    root.append(head("Nexus", "Many teachers into one student that needs none of them: each capability is held to its contract."), body);
    let seen = -1;
    const reports = new Map(); // gate's record -> its report, null when there is none to be had

    async function fetchReport(seq) {
      if (reports.has(seq)) return;
      reports.set(seq, null);
      try {
        reports.set(seq, (await app.get(`/api/report/${seq}`)).report);
        seen = -1;
        draw();
      } catch (error) {
        if (error.code !== "E4-NOENT") throw error; // collected, or never stored: the record's own verdicts stand
      }
    }

    function draw() {
      if (seen === store.nexus.length) return;
      seen = store.nexus.length;
      if (!seen) {
        put(body, card("", { label: "Nothing yet" }, empty("No Nexus record is in this ledger", "Stages, retention gates and dropped teachers show here once a Nexus pipeline runs in this run directory. A gate says, for each capability, whether the student kept what its contract asks.", "recuros nexus --help")));
        return;
      }
      const of = (kind) => store.nexus.filter((r) => r.kind === kind);
      const stages = of("nexus.stage");
      const gates = of("nexus.gate").slice(-4).reverse();
      for (const r of gates) fetchReport(r.seq);
      put(body, h("div", { class: "grid" },
        gates.map((r) => gate(r, reports.get(r.seq))),
        card("Stages", { wide: "w7", flush: true }, table([{ name: "Stage", class: "nowrap", of: (r) => `${r.args.stage} ${STAGES[r.args.stage] || ""}` }, { name: "Capability", of: (r) => r.args.capability || "all" }, { name: "Attempt", num: true, of: (r) => count(r.args.attempt) }, { name: "State", of: (r) => pill(r.args.state, toneOf(r.args.state)) }, { name: "Figures", of: (r) => brief(r.args.figures, 60) }, { name: "Record", of: (r) => recordLink(r.seq) }], stages.slice(-40).reverse(), { label: "Stages" })),
        card("Teachers", { wide: "w5", flush: true }, table([{ name: "Teacher", of: (r) => r.args.teacher }, { name: "Capability", of: (r) => r.args.capability || "–" }, { name: "Act", of: (r) => pill(r.args.act, r.args.act === "dropped" || r.args.act === "refused" ? "warn" : "idle") }, { name: "Why", of: (r) => r.args.reason }, { name: "Record", of: (r) => recordLink(r.seq) }], of("nexus.teacher").slice(-40).reverse(), { label: "Teachers" })),
        card("Failure loops", { flush: true }, table([{ name: "Time", of: (r) => clock(r.t) }, { name: "Edge", of: (r) => r.args.edge }, { name: "Capability", of: (r) => r.args.capability }, { name: "Attempt", num: true, of: (r) => count(r.args.attempt) }, { name: "Reason", of: (r) => r.args.reason }, { name: "Change", of: (r) => brief(r.args.change, 70) }, { name: "Record", of: (r) => recordLink(r.seq) }], of("nexus.loop").slice(-40).reverse(), { none: "no stage had to be done again", label: "Failure loops" }))));
    }
    return { draw };
  },
};

function gate(record, report) {
  const { artifact, verdict, capabilities } = record.args;
  const rows = Object.entries(capabilities || {}).map(([name, said]) => ({ name, said, ...(report?.capabilities?.[name] || {}) }));
  const problems = report?.problems || [];
  return card("Gate", { note: `${artifact} · ${clock(record.t)}`, tools: [pill(verdict, toneOf(verdict)), recordLink(record.seq)], flush: true },
    rows.length ? h("div", { class: "scroll" }, h("table", { "aria-label": `Retention of ${artifact} by capability` }, h("thead", {}, h("tr", {}, ["Capability", "Verdict", "Retention", "", "Contract", "Lower bound", "Items", "Why"].map((n, i) => h("th", { scope: "col", class: [2, 4, 5, 6].includes(i) ? "num" : null }, n || h("span", { class: "hidden-text" }, "bar"))))),
      h("tbody", {}, rows.map((c) => h("tr", {}, h("td", {}, h("b", {}, c.name)), h("td", {}, pill(c.said, toneOf(c.said))), h("td", { class: "num" }, percent(c.ratio)), h("td", {}, bullet(c)), h("td", { class: "num" }, percent(c.retain)), h("td", { class: "num" }, percent(c.lower)), h("td", { class: "num" }, count(c.items)), h("td", {}, c.reason || "–")))))) : h("p", { class: "empty" }, "the gate judged no capability"),
    problems.length > 0 && h("div", { style: { padding: "12px 16px" } }, problems.map((p) => h("p", { class: "tone-bad" }, typeof p === "string" ? p : brief(p, 200)))));
}

/** Retention as a bar, its bounds as a whisker, the contract as a tick; the scale ends at 110 percent. */
function bullet(c) {
  if (!Number.isFinite(c.ratio)) return null;
  const at = (share) => `${Math.max(0, Math.min(1, share / 1.1)) * 100}%`;
  return h("div", { class: "bullet", "aria-hidden": "true" }, h("i", { "data-tone": toneOf(c.said), style: { width: at(c.ratio) } }),
    Number.isFinite(c.lower) && h("s", { style: { left: at(c.lower), width: `calc(${at(c.upper)} - ${at(c.lower)})` } }), Number.isFinite(c.retain) && h("em", { style: { left: at(c.retain) } }));
}
