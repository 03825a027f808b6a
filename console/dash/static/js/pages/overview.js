// Everything at a glance.

import { bar, brief, bytes, card, clock, count, duration, h, head, keyed, number, patch, percent, pill, put, recordLink, setText, short } from "../dom.js";
import { LineChart } from "../chart.js";
import { toneOf } from "../store.js";

const FEED_ROWS = 14;
const QUIET_KINDS = new Set(["sched.dispatch", "window.grant"]);
const SERVER_TONES = { ready: "good", running: "good", dead: "bad", down: "bad" };

export function sentence(r) {
  const a = r.args;
  switch (r.kind) {
    case "window.commit": return ["window ", a.window, " committed", h("span", {}, `  loss ${number(a.metrics?.loss)}`)];
    case "window.grant": return ["window ", a.window, " granted", h("span", {}, `  ${a.steps} steps`)];
    case "window.miss": return ["window ", a.window, " missed", h("span", {}, `  ${a.reason}`)];
    case "window.rollback": return ["window ", a.window, " rolled back", h("span", {}, a.exact ? "  bit-exact" : "  NOT exact")];
    case "policy": return a.settings?.refused ? ["policy refused", h("span", {}, `  ${a.settings.refused}`)] : Object.keys(a.settings || {}).length ? ["policy for window ", a.applies_at, h("span", {}, `  from window ${a.window}`)] : ["no change decided", h("span", {}, `  from window ${a.window}`)];
    case "evaluate": return ["evaluated ", a.split, h("span", {}, `  student ${percent(a.scores.student?.accuracy)}`)];
    case "generation": return ["generation ", a.generation, h("span", {}, `  ${a.reason}`)];
    case "boot": return ["boot ", a.boot, h("span", {}, `  ${a.app}`)];
    case "sched.dispatch": return [a.rows.length, " dispatches of the fair class"];
    case "fault": return [a.name, ": ", a.code, h("span", {}, `  ${a.message}`)];
    default: return [r.kind, h("span", {}, `  ${brief(a, 90)}`)];
  }
}

export default {
  title: "Overview",
  icon: "M3 3h6v8H3zM11 3h6v5h-6zM11 10.5h6V17h-6zM3 13.5h6V17H3z",
  mount(root, app) {
    const { store } = app;
    const stat = (label) => {
      const parts = { value: h("div", { class: "value" }, "–"), foot: h("div", { class: "foot" }), bar: h("div", {}) };
      parts.card = h("section", { class: "card stat w3", "aria-label": label }, h("div", { class: "label" }, label), parts.value, parts.bar, parts.foot);
      return parts;
    };
    const plan = stat("Plan");
    const kept = stat("Student against first teacher");
    const loss = stat("Loss");
    const misses = stat("Deadlines");
    const chart = new LineChart({ label: "Loss", height: 232, log: true });
    const scale = h("div", { class: "tools" });
    const window_ = h("div", {});
    const servers = h("div", {});
    const feed = h("ul", { class: "feed" });
    const facts = h("dl", { class: "facts" });
    const tools = h("div", { class: "tools" });
    root.append(
      head("Overview", "What the runtime does now, and how far the student has come.", tools),
      h("div", { class: "grid" }, plan.card, kept.card, loss.card, misses.card,
        card("Loss", { wide: "w8", note: "mean of each committed window", tools: scale }, chart.element),
        card("Window", { wide: "w4" }, window_),
        card("What happened", { wide: "w8", tools: h("a", { href: "#/ledger" }, "whole ledger") }, feed),
        h("div", { class: "w4 grid loose", style: { gridTemplateColumns: "minmax(0,1fr)" } },
          card("Processes", { wide: "", tools: h("a", { href: "#/devices" }, "more") }, servers),
          card("Run", { wide: "" }, facts))));
    if (app.steer) buildTools(app, tools);

    function instant() {
      const rows = store.records.slice(-160).filter((r) => !QUIET_KINDS.has(r.kind)).slice(-FEED_ROWS).reverse();
      keyed(feed, rows, (r) => r.seq, (r) => h("li", { "data-seq": r.seq }, h("time", {}, clock(r.t)), h("i", { class: "dot", "data-tone": toneOf(r) }), h("span", { class: "what" }, sentence(r)), h("a", { class: "seq", href: `#/ledger/${r.seq}` }, `#${r.seq}`)));
    }

    function draw() {
      const { status } = store.gauges;
      const commit = store.commit;
      const counts = store.counts();
      const last = commit?.metrics || {};
      const done = status?.done_windows ?? commit?.id ?? 0;
      const planned = status?.planned ?? 0;
      patch(plan.value, count(done), h("small", {}, planned && done <= planned ? ` of ${count(planned)} windows` : " windows"));
      patch(plan.bar, bar(planned ? done / planned : done ? 1 : 0));
      setText(plan.foot, `${status?.phase?.name || commit?.phase || "–"} · generation ${status?.generation ?? commit?.gen ?? 0}${planned && done > planned ? " · repeating" : ""}`);
      const evaluation = store.evaluations.findLast((e) => e.split !== "test") || store.evaluations.at(-1); // no look at the test split while decisions are made
      const reference = evaluation && store.reference(evaluation.split);
      const share = evaluation && reference?.accuracy ? evaluation.student.accuracy / reference.accuracy : null;
      patch(kept.value, percent(share), h("small", {}, " retained"));
      patch(kept.bar, bar(share, share >= 0.95 ? "good" : share >= 0.8 ? "warn" : "bad"));
      setText(kept.foot, evaluation ? `${percent(evaluation.student.accuracy)} accuracy on ${evaluation.split} at window ${evaluation.window}${last.student_params ? `, ${count(last.student_params)} parameters` : ""}` : "no evaluation yet");
      patch(loss.value, number(last.loss, 4));
      setText(loss.foot, commit ? `window ${commit.id}${Number.isFinite(last.grad_norm) ? ` · gradient norm ${number(last.grad_norm, 3)}` : ""}${Number.isFinite(last.step_ms) ? ` · ${number(last.step_ms, 3)} ms a step` : ""}` : "no window has committed yet");
      patch(misses.value, count(counts.missed), h("small", {}, " missed"));
      misses.value.className = `value${counts.missed ? " tone-bad" : ""}`;
      setText(misses.foot, `${count(counts.committed)} committed, ${count(counts.rolled)} rolled back`);
      chart.draw([{ name: "loss", colour: "--c1", points: store.commits.map((w) => [w.id, w.metrics?.loss]) }], store.generations.map((g) => ({ x: g.window, text: `gen ${g.gen}` })));
      drawWindow(window_, store);
      drawServers(servers, store);
      drawFacts(facts, app);
      instant();
    }
    return { draw, instant, close: () => chart.close() };
  },
};

function drawWindow(root, store) {
  const w = store.gauges.status?.window;
  const open = [...store.open.values()].at(-1);
  if (w?.id) {
    const late = w.left_ns < 0;
    patch(root, h("div", { class: "stat" }, h("div", { class: "value" }, `#${w.id} `, h("small", {}, `${w.phase} · ${w.state}`)),
      bar(w.steps ? w.step / w.steps : 0), h("div", { class: "foot" }, `step ${w.step} of ${w.steps}`)),
      h("table", { class: "plain" }, h("tbody", {}, [["Deadline", late ? `${duration(-w.left_ns)} ago` : `in ${duration(w.left_ns)}`], ["Budget", duration(w.budget_ns)], ["Policy in force", brief(omit(store.gauges.status.policy), 46)], ["Waiting changes", String(store.gauges.status.directives?.length ?? 0)]].map(([k, v]) => h("tr", {}, h("td", { class: "quiet" }, k), h("td", { class: late && k === "Deadline" ? "tone-bad" : "" }, v))))));
  } else if (store.gauges.up === false && open) patch(root, h("p", { class: "quiet" }, `Window ${open.id} was open when the runtime ended; a boot begins it again from its base.`));
  else if (store.commit) {
    const c = store.commit;
    patch(root, h("div", { class: "stat" }, h("div", { class: "value" }, `#${c.id} `, h("small", {}, "committed"))), h("table", { class: "plain" }, h("tbody", {}, [["Took", duration(c.end - c.start)], ["CPU", duration(c.metrics?.used_ns)], ["Left to the deadline", duration(c.metrics?.left_ns)], ["Snapshot", short(c.snapshot)], ["Record", recordLink(c.commitSeq)]].map(([k, v]) => h("tr", {}, h("td", { class: "quiet" }, k), h("td", {}, v))))));
  } else patch(root, h("p", { class: "quiet" }, "No window yet."));
}

const omit = (policy) => Object.fromEntries(Object.entries(policy || {}).filter(([k]) => k !== "evidence" && k !== "weights"));

function drawServers(root, store) {
  const { status } = store.gauges;
  if (!status) {
    patch(root, h("p", { class: "quiet" }, "No process runs."));
    return;
  }
  const rows = [{ name: "kernel", state: "running", ...status.kernel }, ...status.servers];
  patch(root, h("table", { class: "plain" }, h("tbody", {}, rows.map((p) => h("tr", {}, h("td", {}, p.name, p.restarts ? h("span", { class: "tone-warn" }, ` restarted ${p.restarts}×`) : ""), h("td", {}, bytes(p.rss_bytes)), h("td", {}, pill(p.state, SERVER_TONES[p.state] || "warn")))))));
}

function drawFacts(root, app) {
  const { store } = app;
  const { status } = store.gauges;
  const boot = store.boot;
  const rows = [["Directory", h("span", { class: "mono" }, app.run)], ["Boot", boot ? [boot.id, " ", recordLink(boot.seq)] : "–"], ["Boots", count(store.boots.length)], ["Up", status ? duration(status.uptime_ns) : "–"], ["Probes", status ? count(status.probes.length) : "–"], ["Policies", count(store.policies.filter((p) => Object.keys(p.settings).length && !p.settings.refused).length)], ["Snapshot", short(store.commit?.snapshot)], ["Faults", store.faults.length ? h("span", { class: "tone-bad" }, count(store.faults.length)) : "none"]];
  patch(root, rows.map(([k, v]) => [h("dt", {}, k), h("dd", {}, v)]));
}

function buildTools(app, tools) {
  const run = async (action, title, text, fields) => {
    const given = await app.ask(title, text, fields);
    if (!given) return;
    try {
      const { reason, ...args } = given;
      const answer = await app.act(action, action === "temperature" ? { temperature: Number(args.temperature) } : args, reason);
      note(`${title}: ledger record ${answer.seq ?? "–"}${answer.step >= 0 ? `, effective at step ${answer.step}` : ""}`, "good");
    } catch (error) {
      note(`${error.code || "error"}: ${error.message}`, "bad");
    }
  };
  const told = h("span", { class: "pill", role: "status", hidden: true });
  const note = (text, tone) => {
    told.hidden = false;
    told.dataset.tone = tone;
    setText(told, text);
    app.say(text);
  };
  put(tools, told,
    h("button", { class: "button", onclick: () => run("pause", "Pause", "The learner stops after this step and keeps its state.") }, "Pause"),
    h("button", { class: "button", onclick: () => run("resume", "Resume", "The learner goes on where it stopped.") }, "Resume"),
    h("button", { class: "button", onclick: () => run("snapshot", "Name snapshot", "The last committed state gets a name and is pinned.", [{ name: "name", label: "Name", input: { maxlength: 80 } }]) }, "Name snapshot"),
    h("button", { class: "button", onclick: () => run("temperature", "Set temperature", "From the next window on, over what policies decide.", [{ name: "temperature", label: "Temperature, 1 to 4", input: { type: "number", min: 1, max: 4, step: "any" } }]) }, "Temperature"));
}
