// Learning curves by window, scores on held-out data, and the generations.

import { card, count, h, head, number, patch, percent, recordLink, segments, table } from "../dom.js";
import { LineChart } from "../chart.js";

const TERMS = ["loss", "task", "kd", "hint", "at", "rkd", "rkd_angle", "ewc", "jacobian", "calibration", "cosine", "embedding", "attention_mse", "minilm_at", "minilm_vr", "semantic"]; // those of servers/learner/losses; the learner reports the ones that are on
const COLOURS = ["--c1", "--c2", "--c3", "--c4", "--c5", "--c6"];
const SMOOTH = 0.85;

export default {
  title: "Learning",
  icon: "M3 3v14h14M6 12.5l3.2-4 3 2.4L17 5",
  mount(root, app) {
    const { store } = app;
    let smooth = false;
    let log = true;
    const loss = new LineChart({ label: "Loss and its terms", height: 280, log: true });
    const accuracy = new LineChart({ label: "Accuracy", height: 240, format: (y) => percent(y, 0) });
    const retention = new LineChart({ label: "Retention", height: 240, format: (y) => percent(y, 0) });
    const grad = new LineChart({ label: "Gradient norm", height: 170, log: true });
    const rate = new LineChart({ label: "Learning rate", height: 170 });
    const cka = new LineChart({ label: "CKA of student and teacher", height: 170 });
    const speed = new LineChart({ label: "Step time", height: 170, format: (y) => `${number(y, 3)} ms`, min: 0 });
    const sparsity = new LineChart({ label: "Sparsity", height: 170, min: 0, format: (y) => percent(y, 0) });
    const generations = h("div", {});
    root.append(
      head("Learning", "Means over the steps of each committed window. Dashed lines are role swaps: the student became the teacher, and a new generation began."),
      h("div", { class: "grid" },
        card("Loss and its terms", { tools: [segments("Scale", [["log", "log"], ["linear", "linear"]], "log", (v) => {
          log = v === "log";
          draw();
        }), segments("Smoothing", [["raw", "raw"], ["smooth", "smooth"]], "raw", (v) => {
          smooth = v === "smooth";
          draw();
        })] }, loss.element),
        card("Accuracy", { wide: "w6", note: "held-out data; the test split shows when no runtime is up" }, accuracy.element),
        card("Retention", { wide: "w6", note: "student over the first teacher" }, retention.element),
        card("Gradient norm", { wide: "w6" }, grad.element), card("CKA of student and teacher", { wide: "w6" }, cka.element),
        card("Learning rate", { wide: "w4" }, rate.element), card("Sparsity", { wide: "w4", note: "share of the student's weights" }, sparsity.element), card("Time of a step", { wide: "w4" }, speed.element),
        card("Generations", { flush: true, note: "the last twelve" }, generations)));

    const series = (name) => {
      const points = store.commits.filter((w) => Number.isFinite(w.metrics?.[name])).map((w) => [w.id, w.metrics[name]]);
      return smooth ? smoothed(points) : points;
    };

    function draw() {
      const marks = store.generations.map((g) => ({ x: g.window, text: `gen ${g.gen}` }));
      loss.log = log;
      loss.draw(TERMS.map((name) => ({ name, points: series(name) })).filter((x) => x.points.length).map((x, i) => ({ ...x, colour: COLOURS[i % 6], dash: i < 6 ? null : "4 3" })), marks);
      const splits = [...new Set(store.evaluations.map((e) => e.split))].filter((split) => split !== "test" || !store.gauges.up);
      accuracy.draw(splits.flatMap((split, i) => {
        const rows = store.evaluations.filter((e) => e.split === split);
        const more = splits.length > 1 ? ` (${split})` : "";
        return [{ name: `student${more}`, colour: i ? "--c3" : "--c1", dots: true, points: rows.map((e) => [e.window, e.student.accuracy]) }, { name: `teacher${more}`, colour: i ? "--c4" : "--c2", dots: true, points: rows.map((e) => [e.window, e.teacher.accuracy]) }];
      }), marks);
      retention.draw(splits.map((split, i) => {
        const first = store.reference(split)?.accuracy;
        return { name: split, colour: i ? "--c3" : "--c1", dots: true, points: store.evaluations.filter((e) => e.split === split && first).map((e) => [e.window, e.student.accuracy / first]) };
      }), marks);
      grad.draw([{ name: "gradient norm", colour: "--c5", points: series("grad_norm") }], marks);
      rate.draw([{ name: "learning rate", colour: "--c4", points: series("lr") }], marks);
      cka.draw([{ name: "CKA", colour: "--c2", points: series("cka") }], marks);
      sparsity.draw([{ name: "sparsity", colour: "--c6", points: series("sparsity") }], marks);
      speed.draw([{ name: "step", colour: "--c3", points: series("step_ms") }], marks);
      const rows = generationRows(store);
      patch(generations, table([{ name: "Generation", num: true, of: (g) => g.gen }, { name: "Began at window", num: true, of: (g) => g.from }, { name: "Windows", num: true, of: (g) => count(g.windows) }, { name: "First loss", num: true, of: (g) => number(g.first) }, { name: "Last loss", num: true, of: (g) => number(g.last) }, { name: "Student accuracy", num: true, of: (g) => percent(g.accuracy) }, { name: "Student parameters", num: true, of: (g) => count(g.params) }, { name: "Why", of: (g) => g.reason }, { name: "Record", of: (g) => (g.seq >= 0 ? recordLink(g.seq) : "–") }], rows.slice(-12).reverse(), { label: "Generations" }));
    }
    return { draw, close: () => [loss, accuracy, retention, grad, rate, cka, sparsity, speed].forEach((c) => c.close()) };
  },
};

function smoothed(points) {
  let mean = null;
  return points.map(([x, y]) => {
    mean = mean === null ? y : SMOOTH * mean + (1 - SMOOTH) * y;
    return [x, mean];
  });
}

function generationRows(store) {
  const rows = new Map();
  for (const w of store.commits) {
    if (!rows.has(w.gen)) {
      const began = store.generations.find((g) => g.gen === w.gen);
      rows.set(w.gen, { gen: w.gen, from: w.id, windows: 0, first: w.metrics?.loss, reason: began?.reason || (w.gen === 0 ? "as built" : "–"), seq: began?.seq ?? -1 });
    }
    const row = rows.get(w.gen);
    row.windows += 1;
    row.last = w.metrics?.loss;
    row.params = w.metrics?.student_params;
  }
  for (const e of store.evaluations) if (rows.has(e.gen)) rows.get(e.gen).accuracy = e.student.accuracy;
  return [...rows.values()];
}
