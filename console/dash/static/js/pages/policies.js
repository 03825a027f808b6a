// Policies: the evidence of window k, what was decided on it, and what the window had to show from which it applied.

import { brief, card, clock, count, empty, h, head, number, percent, pill, put, recordLink, segments } from "../dom.js";
import { LineChart } from "../chart.js";

const ROWS = 30;
const EVIDENCE = ["accuracy", "ece", "kl", "disagreement", "entropy_student", "entropy_teacher", "confidence", "cka", "nll", "held_out_ece"];
const FIGURES = ["temperature", "mix", "alpha", "hint"];

export default {
  title: "Policies",
  icon: "M4 5h4v4H4zM12 11h4v4h-4zM8 7h3.5a2.5 2.5 0 0 1 2.5 2.5V11",
  mount(root, app) {
    const { store } = app;
    let shown = "moves";
    const chart = new LineChart({ label: "Settings in force", height: 190 });
    const list = h("div", { class: "chain" });
    const note = h("span", { class: "quiet" });
    root.append(
      head("Policies", "The Observer reads the evidence of a window, decides, and its decision applies two windows later. Operators' changes are in the same list.", note, segments("Show", [["moves", "changes"], ["all", "every decision"]], "moves", (v) => {
        shown = v;
        draw();
      })),
      h("div", { class: "grid" }, card("Settings in force", { note: "by window, as the learner reported them" }, chart.element), h("div", { class: "w12" }, list)));

    function draw() {
      const commits = store.commits;
      chart.draw([["temperature", "--c1"], ["mix", "--c2"], ["alpha", "--c3"]].map(([name, colour]) => ({ name, colour, points: commits.filter((w) => Number.isFinite(w.metrics?.[name])).map((w) => [w.id, w.metrics[name]]) })), store.changes.filter((c) => c.kind === "kd.set").map((c) => ({ x: c.window, text: "operator" })));
      const decided = store.policies.filter((p) => Object.keys(p.settings).length && !p.settings.refused);
      const refused = store.policies.filter((p) => p.settings.refused);
      note.textContent = `${count(decided.length)} of ${count(store.policies.length)} decisions changed something${refused.length ? `, ${count(refused.length)} were out of bounds` : ""}`;
      const byWindow = new Map(commits.map((w) => [w.id, w]));
      const rows = [...(shown === "all" ? store.policies : [...moves(decided), ...refused.slice(-ROWS)].sort((a, b) => a.seq - b.seq)).slice(-ROWS * 2).map((p) => ({ seq: p.seq, p })), ...store.changes.filter((c) => ["kd.set", "gate.set", "prune", "calibrate", "restore", "interrupt"].includes(c.kind)).map((c) => ({ seq: c.seq, c }))].sort((a, b) => b.seq - a.seq).slice(0, ROWS);
      const newest = `${shown} ${rows[0]?.seq ?? -1} ${commits.length}`;
      if (list.dataset.newest === newest) return;
      list.dataset.newest = newest;
      put(list, rows.length ? rows.map((r) => (r.p ? policy(r.p, byWindow) : operator(r.c, byWindow))) : card("", { label: "No policy" }, empty("No decision has changed anything yet", "A decision needs a window with a teacher: evidence of window k applies at k + 2.")));
    }
    return { draw, close: () => chart.close() };
  },
};

/** Decisions whose numbers differ from the one before; weights alone change with each. */
function moves(decided) {
  let before = "";
  return decided.filter((p) => {
    const now = JSON.stringify(Object.entries(p.settings).filter(([k]) => !["evidence", "weights", "order"].includes(k)));
    const moved = now !== before;
    before = now;
    return moved;
  });
}

const pair = (name, value) => h("div", { class: "pair" }, h("span", {}, name), h("span", {}, value));
const arrow = () => h("span", { class: "arrow", "aria-hidden": "true" }, "→");

function policy(p, byWindow) {
  const evidence = p.settings.evidence || {};
  const names = EVIDENCE.filter((k) => Number.isFinite(evidence[k])).slice(0, 5);
  const settings = Object.entries(p.settings).filter(([k]) => k !== "evidence");
  return h("article", { "aria-label": `Policy of record ${p.seq}` },
    h("div", {}, h("h3", {}, `Evidence of window ${p.window}`), names.length ? names.map((k) => pair(k.replaceAll("_", " "), k === "accuracy" || k === "disagreement" ? percent(evidence[k]) : number(evidence[k]))) : before(byWindow.get(p.window))),
    arrow(),
    h("div", {}, h("h3", {}, "Decision", p.settings.refused ? pill("refused", "bad") : pill(p.pack, "accent"), recordLink(p.seq)), p.settings.refused ? h("p", { class: "tone-bad" }, p.settings.refused) : settings.length ? settings.map(([k, v]) => pair(k.replaceAll("_", " "), k === "weights" ? "one for each sample" : k === "order" ? "a curriculum" : brief(v, 40))) : h("p", { class: "quiet" }, p.pack === "timeout" || p.pack === "lost" ? "none came in time; that is recorded" : "change nothing"), evidence.why && h("p", { class: "quiet", style: { marginTop: "6px" } }, evidence.why)),
    arrow(),
    effect(p.at, p.window, byWindow));
}

function before(w) {
  return w ? [pair("loss", number(w.metrics?.loss)), pair("CKA", number(w.metrics?.cka))] : h("p", { class: "quiet" }, "not in the part that was loaded");
}

function effect(at, from, byWindow) {
  const now = byWindow.get(at);
  const was = byWindow.get(from);
  const there = (k) => Number.isFinite(now?.metrics?.[k]) && Number.isFinite(was?.metrics?.[k]);
  const rows = [...["loss", "kd", "cka"].filter(there), ...FIGURES.filter((k) => there(k) && now.metrics[k] !== was.metrics[k])].slice(0, 5);
  return h("div", {}, h("h3", {}, `Effect in window ${at}`, now ? recordLink(now.commitSeq) : null), now ? rows.map((k) => pair(k, [`${number(was.metrics[k], 3)} → ${number(now.metrics[k], 3)}`])) : h("p", { class: "quiet" }, "that window has not committed yet"));
}

function operator(c, byWindow) {
  const rows = Object.entries(c.args).filter(([k, v]) => k !== "window" && v !== -1 && v !== "");
  return h("article", { "aria-label": `Change of record ${c.seq}` },
    h("div", {}, h("h3", {}, "By an operator"), pair("who", c.actor), pair("when", clock(c.t))), arrow(),
    h("div", {}, h("h3", {}, "Change", pill(c.kind, "warn"), recordLink(c.seq)), rows.map(([k, v]) => pair(k, brief(v, 40)))), arrow(),
    c.window ? effect(c.window, c.window - 1, byWindow) : h("p", { class: "quiet" }, "no window of its own"));
}
