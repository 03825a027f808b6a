// The schedule as it was and is: windows against their deadlines, the fair class, what each reservation uses.

import { bar, brief, card, clock, count, duration, h, head, number, patch, percent, pill, put, recordLink, segments, table } from "../dom.js";
import { Gantt } from "../gantt.js";
import { LineChart } from "../chart.js";

const SPANS = [[10e9, "10 s"], [60e9, "1 min"], [600e9, "10 min"], [0, "All"]];

export default {
  title: "Schedule",
  icon: "M3 4v12.5h14M6 7h5M8 10.2h6M11 13.4h5",
  mount(root, app) {
    const { store } = app;
    let chosenBoot = null;
    let selected = null;
    const gantt = new Gantt({ select: (w) => {
      selected = w;
      drawDetail();
    } });
    const boots = h("select", { class: "field", "aria-label": "Boot", onchange: () => {
      chosenBoot = boots.value === "last" ? null : Number(boots.value);
      gantt.fit(0);
      draw();
    } });
    const detail = h("div", {});
    const reservations = h("div", {});
    const fair = h("div", {});
    const boxes = h("div", {});
    const decisions = h("div", {});
    const used = new LineChart({ label: "Share of the budget used", height: 285, format: (y) => percent(y, 0), min: 0 });
    root.append(
      head("Schedule", "Each bar is a window from its grant to its commit or rollback; a line shows the deadline of the open one and of each miss. Dots are dispatches of the fair class. Drag to move; arrow keys choose a window."),
      h("div", { class: "grid" },
        card("Lanes and servers", { tools: [boots, segments("Span", SPANS, 60e9, (span) => gantt.fit(span)), h("button", { class: "button small", "aria-label": "Zoom in", onclick: () => gantt.zoom(0.6) }, "+"), h("button", { class: "button small", "aria-label": "Zoom out", onclick: () => gantt.zoom(1.7) }, "−")] }, gantt.element),
        card("Window", { wide: "w4", note: "choose one above" }, detail),
        card("Share of the budget used", { wide: "w8", note: "CPU time of each committed window over its budget" }, used.element),
        card("Reservations", { wide: "w6" }, reservations),
        card("Fair class", { wide: "w6", note: "CPU time inside slices, by server" }, fair),
        card("Mailboxes", { wide: "w6", flush: true }, boxes),
        card("Admissions", { wide: "w6", flush: true }, decisions)));

    function drawDetail() {
      const w = selected || store.windows.at(-1);
      if (!w) {
        patch(detail, h("p", { class: "quiet" }, "No window yet."));
        return;
      }
      const tone = w.outcome === "committed" ? "good" : w.outcome === "running" ? "accent" : "bad";
      const rows = [["State", pill(w.outcome, tone)], ["Phase", `${w.phase}, generation ${w.gen}`], ["Granted", clock(w.t)], ["Took", w.end ? duration(w.end - w.start) : "–"], ["CPU", duration(w.metrics?.used_ns)], ["Budget", duration(w.budget)], ["Left to the deadline", duration(w.metrics?.left_ns ?? (w.end ? w.deadline - w.end : null))], ["Steps", count(w.steps)], ["Loss", number(w.metrics?.loss)]];
      if (w.reason) rows.push(["Reason", w.reason]);
      if (w.outcome === "rolled back") rows.push(["Restored", w.exact ? "bit-exact" : "NOT exact"]);
      rows.push(["Records", [w.seq, w.missSeq, w.commitSeq, w.rollSeq].filter((x) => x !== undefined).map((x) => [recordLink(x), " "])]);
      patch(detail, h("div", { class: "stat" }, h("div", { class: "value" }, `#${w.id}`)), h("dl", { class: "facts" }, rows.map(([k, v]) => [h("dt", {}, k), h("dd", {}, v)])));
    }

    function draw() {
      const boot = chosenBoot === null ? store.boot : store.boots[chosenBoot];
      if (boots.options.length !== store.boots.length + 1) {
        const value = boots.value;
        put(boots, h("option", { value: "last" }, "this boot"), store.boots.slice(0, -1).map((b, i) => h("option", { value: i }, `boot ${b.id.slice(0, 8)}`)), h("option", { value: store.boots.length - 1, hidden: true }, "last"));
        boots.value = value || "last";
      }
      gantt.draw(boot, store.windows.filter((w) => w.boot === boot), store.faults.filter((f) => f.boot === boot), chosenBoot === null && store.gauges.up);
      drawDetail();
      used.draw([{ name: "used of the budget", colour: "--c2", points: store.commits.filter((w) => w.budget).map((w) => [w.id, w.metrics?.used_ns / w.budget]) }], store.windows.filter((w) => w.missed).map((w) => ({ x: w.id, text: "miss" })));
      const sched = store.gauges.sched;
      patch(reservations, sched?.reservations?.length ? sched.reservations.map((r) => h("div", {}, h("table", { class: "plain" }, h("tbody", {}, [["Name", `${r.name} of ${r.server}, lane ${r.lane}`], ["Budget / period", `${number(r.budget_ms)} / ${number(r.period_ms)} ms`], ["Deadline", `${number(r.deadline_ms)} ms`], ["Utilisation admitted", percent(r.utilisation, 0)], ["Used in all", duration(r.used_ns)], ["Overruns", count(r.overruns)], ["On overrun", r.overrun]].map(([k, v]) => h("tr", {}, h("td", { class: "quiet" }, k), h("td", {}, v))))), bar(r.utilisation, r.utilisation > 0.95 ? "bad" : ""))) : admitted(store));
      patch(fair, sched?.fair?.length ? meters(sched.fair) : h("p", { class: "quiet" }, store.gauges.denied?.sched ? `not shown: ${store.gauges.denied.sched}` : "Known while a runtime is up."));
      patch(boxes, store.gauges.channels ? table([{ name: "Server", of: (c) => c.server }, { name: "Waiting", num: true, of: (c) => `${c.messages} / ${c.messages_max}` }, { name: "Accepted", num: true, of: (c) => count(c.accepted) }, { name: "Refused", num: true, of: (c) => h("span", { class: c.refused ? "tone-bad" : "" }, count(c.refused)) }, { name: "Dropped", num: true, of: (c) => h("span", { class: c.dropped ? "tone-bad" : "" }, count(c.dropped)) }], store.gauges.channels, { label: "Mailboxes" }) : h("p", { class: "empty" }, "Known while a runtime is up."));
      patch(decisions, table([{ name: "Record", of: (a) => recordLink(a.seq) }, { name: "Decision", of: (a) => pill(a.kind.replace("sched.", ""), a.kind === "sched.refuse" ? "bad" : "good") }, { name: "Reservation", of: (a) => a.name }, { name: "Budget / period", num: true, of: (a) => `${a.budget_ns / 1e6} / ${a.period_ns / 1e6} ms` }, { name: "Utilisation", num: true, of: (a) => h("span", { title: brief(a.witness, 200) }, percent(a.witness?.utilisation, 0)) }], store.boots.flatMap((b) => b.admissions).slice(-8).reverse(), { label: "Admissions", tight: true }));
    }
    return { draw, close: () => {
      gantt.close();
      used.close();
    } };
  },
};

function admitted(store) {
  const last = store.boots.flatMap((b) => b.admissions).findLast((a) => a.kind !== "sched.refuse");
  return last ? h("p", { class: "quiet" }, `${last.name}: ${last.budget_ns / 1e6} ms of every ${last.period_ns / 1e6} ms, as recorded in `, recordLink(last.seq), ". Use is known while a runtime is up.") : h("p", { class: "quiet" }, "None was admitted yet.");
}

function meters(fair) {
  const all = fair.reduce((n, f) => n + f.served_ns, 0) || 1;
  return h("div", { class: "meter" }, fair.map((f) => [h("span", {}, f.name), bar(f.served_ns / all), h("span", {}, `${duration(f.served_ns)} · weight ${f.weight}${f.waiting ? ` · ${f.waiting} waiting` : ""}`)]));
}
