// Nexus: stages, retention gates and teachers, from the nexus records of the ledger.

import { brief, card, clock, count, empty, h, head, number, percent, pill, put, recordLink, table } from "../dom.js";

const STAGES = ["scope", "registry", "profile", "architect", "distill", "gate", "package", "refine"];
const VERDICTS = { pass: "good", passed: "good", accepted: "good", done: "good", fail: "bad", failed: "bad", refused: "bad", "insufficient evidence": "warn" };
const toneOf = (verdict) => VERDICTS[String(verdict).toLowerCase()] || "idle";
const first = (map, names) => names.map((n) => map?.[n]).find((v) => Number.isFinite(v));

export default {
  title: "Nexus",
  icon: "M10 8a2 2 0 1 0 0 4 2 2 0 0 0 0-4zM4 3.5a1.5 1.5 0 1 0 0 3 1.5 1.5 0 0 0 0-3zM16 3.5a1.5 1.5 0 1 0 0 3 1.5 1.5 0 0 0 0-3zM4 13.5a1.5 1.5 0 1 0 0 3 1.5 1.5 0 0 0 0-3zM16 13.5a1.5 1.5 0 1 0 0 3 1.5 1.5 0 0 0 0-3zM5.2 6l3.2 2.6M14.8 6l-3.2 2.6M5.2 14l3.2-2.6M14.8 14l-3.2-2.6",
  mount(root, app) {
    const { store } = app;
    const body = h("div", {});
    root.append(head("Nexus", "Many teachers into one student that needs none of them: each capability is held to its contract."), body);
    let seen = -1;

    function draw() {
      if (seen === store.nexus.length) return;
      seen = store.nexus.length;
      if (!seen) {
        put(body, card("", { label: "Nothing yet" }, empty("No Nexus record is in this ledger", "Stages, retention gates and dropped teachers show here once a Nexus pipeline runs in this run directory. A gate says, for each capability, whether the student kept what its contract asks.", "recuros nexus --help")));
        return;
      }
      const of = (kind) => store.nexus.filter((r) => r.kind === kind);
      const stages = of("nexus.stage");
      put(body, h("div", { class: "grid" },
        of("nexus.gate").slice(-3).reverse().map((r) => gate(r)),
        card("Stages", { wide: "w6", flush: true }, table([{ name: "Stage", of: (r) => `${r.args.stage} ${STAGES[r.args.stage] || ""}` }, { name: "Capability", of: (r) => r.args.capability || "all" }, { name: "Attempt", num: true, of: (r) => count(r.args.attempt) }, { name: "State", of: (r) => pill(r.args.state, toneOf(r.args.state)) }, { name: "Figures", of: (r) => brief(r.args.figures, 70) }, { name: "Record", of: (r) => recordLink(r.seq) }], stages.slice(-40).reverse(), { label: "Stages" })),
        card("Teachers", { wide: "w6", flush: true }, table([{ name: "Teacher", of: (r) => r.args.teacher }, { name: "Capability", of: (r) => r.args.capability || "–" }, { name: "Act", of: (r) => pill(r.args.act, r.args.act === "dropped" || r.args.act === "refused" ? "warn" : "idle") }, { name: "Why", of: (r) => r.args.reason }, { name: "Record", of: (r) => recordLink(r.seq) }], of("nexus.teacher").slice(-40).reverse(), { label: "Teachers" })),
        card("Failure loops", { flush: true }, table([{ name: "Time", of: (r) => clock(r.t) }, { name: "Edge", of: (r) => r.args.edge }, { name: "Capability", of: (r) => r.args.capability }, { name: "Attempt", num: true, of: (r) => count(r.args.attempt) }, { name: "Reason", of: (r) => r.args.reason }, { name: "Change", of: (r) => brief(r.args.change, 70) }, { name: "Record", of: (r) => recordLink(r.seq) }], of("nexus.loop").slice(-40).reverse(), { none: "no stage had to be done again", label: "Failure loops" }))));
    }
    return { draw };
  },
};

function gate(record) {
  const { artifact, verdict, capabilities } = record.args;
  return card("Gate", { note: `${artifact} · ${clock(record.t)}`, tools: [pill(verdict, toneOf(verdict)), recordLink(record.seq)] },
    h("div", { class: "scroll" }, h("table", { "aria-label": "Retention by capability" }, h("thead", {}, h("tr", {}, ["Capability", "Verdict", "Retention", "", "Contract", "Lower bound", "Items"].map((n) => h("th", { scope: "col" }, n)))),
      h("tbody", {}, Object.entries(capabilities || {}).map(([name, c]) => {
        const kept = first(c, ["retention", "ratio", "mean_ratio", "mean"]);
        const asked = first(c, ["contract", "retain_fraction", "threshold", "required"]);
        const bound = first(c, ["lower", "lower_bound", "bound", "ci_low"]);
        const said = c.verdict ?? (kept >= asked ? "pass" : "fail");
        return h("tr", {}, h("td", {}, h("b", {}, name)), h("td", {}, pill(said, toneOf(said))), h("td", { class: "num" }, percent(kept)), h("td", { class: "gate" }, h("div", { class: "bullet", "aria-hidden": "true" }, h("i", { "data-tone": kept < asked ? "bad" : null, style: { width: `${Math.min(1, kept || 0) * 100}%` } }), Number.isFinite(asked) && h("em", { style: { left: `${Math.min(1, asked) * 100}%` } }))), h("td", { class: "num" }, percent(asked)), h("td", { class: "num" }, percent(bound)), h("td", { class: "num" }, number(first(c, ["n", "items"]))));
      })))));
}
