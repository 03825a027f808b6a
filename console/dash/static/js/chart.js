// Line plots as SVG: axes with round ticks, several series, marks, a hair line that reads every series at the pointer.

import { h, number, put, s, setText } from "./dom.js";

const LEFT = 50;
const RIGHT = 12;
const TOP = 18;
const BOTTOM = 24;
const POINTS_MAX = 700;
const MARK_ROOM = 24; // pixels; closer together only the named ones are drawn

export function ticks(low, high, wanted) {
  if (!(high > low)) return [low];
  const raw = (high - low) / Math.max(1, wanted);
  const size = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((f) => f * size).find((f) => f >= raw * 0.999);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-6; at += step) found.push(Number(at.toPrecision(12)));
  return found;
}

/** Fewer points with the same look: the first, lowest, highest and last of each column of the plot. */
export function thin(points, most = POINTS_MAX) {
  if (points.length <= most) return points;
  const size = Math.ceil(points.length / (most / 4));
  const found = [];
  for (let at = 0; at < points.length; at += size) {
    const part = points.slice(at, at + size);
    const kept = new Set([part[0], part.reduce((a, b) => (b[1] < a[1] ? b : a)), part.reduce((a, b) => (b[1] > a[1] ? b : a)), part.at(-1)]);
    found.push(...part.filter((p) => kept.has(p)));
  }
  return found;
}

export class LineChart {
  /** series: [{name, colour, points: [[x, y]], dots}] by `draw`. */
  constructor({ label, height = 220, log = false, format = number, xName = "window", xFormat = (x) => number(x), min = null, max = null, legend = true }) {
    Object.assign(this, { label, height, log, format, xName, xFormat, min, max });
    this.hidden = new Set();
    this.series = [];
    this.marks = [];
    this.svg = s("svg", { role: "img", "aria-label": label, height });
    this.tip = h("div", { class: "tip", hidden: true });
    this.legend = legend ? h("div", { class: "legend", role: "group", "aria-label": `Series of ${label}` }) : null;
    this.plot = h("div", { class: "chart" }, this.svg, this.tip);
    this.element = h("div", {}, this.plot, this.legend);
    this.plot.addEventListener("pointermove", (e) => this.point(e));
    this.plot.addEventListener("pointerleave", () => this.leave());
    this.watcher = new ResizeObserver(() => this.render());
    this.watcher.observe(this.plot);
  }

  close() {
    this.watcher.disconnect();
  }

  draw(series, marks = []) {
    const names = series.map((x) => x.name).join("|");
    this.series = series;
    this.marks = marks;
    if (this.legend && names !== this.names) this.renderLegend();
    this.names = names;
    const seen = JSON.stringify([series.map((x) => [x.name, x.colour, x.points.length, x.points[0], x.points[x.points.length >> 1], x.points.at(-1)]), marks.length, marks.at(-1)]);
    if (seen === this.seen) return; // nothing came since; a resize and the legend render by themselves
    this.seen = seen;
    this.render();
  }

  renderLegend() {
    put(this.legend, this.series.length > 1 ? this.series.map((x) => h("button", { type: "button", "aria-pressed": String(!this.hidden.has(x.name)), onclick: (e) => {
      if (this.hidden.has(x.name)) this.hidden.delete(x.name);
      else this.hidden.add(x.name);
      e.currentTarget.setAttribute("aria-pressed", String(!this.hidden.has(x.name)));
      this.render();
    } }, h("i", { style: { background: `var(${x.colour})` } }), x.name)) : []);
  }

  shown() {
    const usable = (y) => Number.isFinite(y) && (!this.log || y > 0);
    return this.series.filter((x) => !this.hidden.has(x.name)).map((x) => ({ ...x, points: x.points.filter((p) => usable(p[1])) }));
  }

  render() {
    const width = Math.round(this.plot.clientWidth);
    if (!width) return;
    const series = this.shown();
    const all = series.flatMap((x) => x.points);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${this.height}`);
    if (!all.length) {
      this.scale = null;
      put(this.svg, s("text", { class: "axis", x: width / 2, y: this.height / 2, "text-anchor": "middle" }, "nothing to plot yet"));
      return;
    }
    const [x0, x1] = range(all.map((p) => p[0]), 0);
    let [y0, y1] = range(all.map((p) => (this.log ? Math.log10(p[1]) : p[1])), this.log ? 0.05 : 0.06);
    if (this.min !== null) y0 = this.min;
    if (this.max !== null) y1 = this.max;
    const px = (x) => LEFT + ((x - x0) / (x1 - x0 || 1)) * (width - LEFT - RIGHT);
    const py = (y) => TOP + (1 - ((this.log ? Math.log10(y) : y) - y0) / (y1 - y0 || 1)) * (this.height - TOP - BOTTOM);
    this.scale = { px, py, width, series };
    const parts = [];
    const yTicks = this.log ? logTicks(y0, y1) : ticks(y0, y1, Math.max(2, Math.floor(this.height / 48)));
    for (const y of yTicks) {
      parts.push(s("line", { class: `grid-line${y === 0 ? " zero-line" : ""}`, x1: LEFT, x2: width - RIGHT, y1: py(y), y2: py(y) }));
      parts.push(s("text", { class: "axis", x: LEFT - 7, y: py(y) + 3.5, "text-anchor": "end" }, this.format(y)));
    }
    for (const x of ticks(x0, x1, Math.max(2, Math.floor(width / 110)))) {
      parts.push(s("text", { class: "axis", x: px(x), y: this.height - 6, "text-anchor": "middle" }, this.xFormat(x)));
    }
    let lastLabel = -1e9;
    const marks = this.marks.filter((m) => m.x >= x0 && m.x <= x1);
    const crowded = marks.length * MARK_ROOM > width;
    for (const mark of marks) {
      const at = px(mark.x);
      const named = mark.text && at - lastLabel > 52 && at + 44 < width;
      if (named || !crowded) parts.push(s("line", { class: "mark", x1: at, x2: at, y1: TOP, y2: this.height - BOTTOM }));
      if (named) {
        parts.push(s("text", { class: "mark-label", x: at + 4, y: TOP - 7 }, mark.text));
        lastLabel = at;
      }
    }
    for (const x of series) {
      const points = thin(x.points);
      const path = points.map((p, i) => `${i ? "L" : "M"}${px(p[0]).toFixed(1)} ${py(p[1]).toFixed(1)}`).join("");
      parts.push(s("path", { class: "line", d: path, stroke: `var(${x.colour})`, "stroke-dasharray": x.dash }));
      if (x.dots || points.length < 2) for (const p of points.length > 60 ? [] : points) parts.push(s("circle", { cx: px(p[0]), cy: py(p[1]), r: 2.6, fill: `var(${x.colour})` }));
    }
    this.hair = s("line", { class: "hair", y1: TOP, y2: this.height - BOTTOM, visibility: "hidden" });
    parts.push(this.hair);
    put(this.svg, parts);
    const last = series.filter((x) => x.points.length).map((x) => `${x.name} ${this.format(x.points.at(-1)[1])}`).join(", ");
    this.svg.setAttribute("aria-label", `${this.label}, by ${this.xName}; latest: ${last}`);
  }

  point(event) {
    if (!this.scale) return;
    const box = this.plot.getBoundingClientRect();
    const { px, width, series } = this.scale;
    const at = event.clientX - box.left;
    const rows = [];
    let x = null;
    for (const one of series) {
      if (!one.points.length) continue;
      const near = nearest(one.points, at, px);
      if (x === null || Math.abs(px(near[0]) - at) < Math.abs(px(x) - at)) x = near[0];
      rows.push([one, near]);
    }
    if (x === null) return;
    this.hair.setAttribute("x1", px(x));
    this.hair.setAttribute("x2", px(x));
    this.hair.setAttribute("visibility", "visible");
    put(this.tip, h("b", {}, `${this.xName} ${this.xFormat(x)}`), rows.filter(([, p]) => Math.abs(px(p[0]) - px(x)) < 12).map(([one, p]) => h("div", {}, h("i", { style: { background: `var(${one.colour})` } }), h("span", {}, one.name), h("span", {}, this.format(p[1])))));
    place(this.tip, px(x), event.clientY - box.top, width, this.height);
  }

  leave() {
    this.tip.hidden = true;
    this.hair?.setAttribute("visibility", "hidden");
  }
}

function nearest(points, at, px) {
  let low = 0;
  let high = points.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (px(points[middle][0]) < at) low = middle;
    else high = middle;
  }
  return Math.abs(px(points[low][0]) - at) <= Math.abs(px(points[high][0]) - at) ? points[low] : points[high];
}

/** Put a tooltip beside a point without leaving the plot. */
export function place(tip, x, y, width, height) {
  tip.hidden = false;
  const w = tip.offsetWidth;
  tip.style.left = `${Math.max(0, x + 14 + w > width ? x - 14 - w : x + 14)}px`;
  tip.style.top = `${Math.max(0, Math.min(y - 10, height - tip.offsetHeight))}px`;
}

function range(values, margin) {
  let low = Infinity;
  let high = -Infinity;
  for (const v of values) {
    if (v < low) low = v;
    if (v > high) high = v;
  }
  if (low === high) {
    const pad = Math.abs(low) * 0.1 || 1;
    return margin ? [low - pad, high + pad] : [low - 0.5, high + 0.5];
  }
  const pad = (high - low) * margin;
  return [low >= 0 && low - pad < 0 ? 0 : low - pad, high + pad];
}

function logTicks(low, high) {
  const found = [];
  for (let e = Math.floor(low); e <= Math.ceil(high); e += 1) {
    for (const f of high - low > 2.5 ? [1] : [1, 2, 5]) {
      const v = f * 10 ** e;
      if (Math.log10(v) >= low && Math.log10(v) <= high) found.push(Number(v.toPrecision(6)));
    }
  }
  return found.length ? found : [10 ** low, 10 ** high];
}

/** A tiny line without axes, for tables and tiles. */
export function spark(points, tone = "--c1", width = 120, height = 30) {
  const svg = s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  drawSpark(svg, points, tone, width, height);
  return svg;
}

export function drawSpark(svg, points, tone = "--c1", width = 120, height = 30) {
  const kept = thin(points.filter((p) => Number.isFinite(p[1])), 160);
  if (kept.length < 2) return put(svg);
  const [x0, x1] = range(kept.map((p) => p[0]), 0);
  const [y0, y1] = range(kept.map((p) => p[1]), 0.02);
  const at = (p) => `${(((p[0] - x0) / (x1 - x0)) * (width - 4) + 2).toFixed(1)} ${(height - 3 - ((p[1] - y0) / (y1 - y0)) * (height - 6)).toFixed(1)}`;
  return put(svg, s("path", { d: `M${kept.map(at).join("L")}`, fill: "none", stroke: `var(${tone})`, "stroke-width": 1.6, "stroke-linejoin": "round" }));
}

export { setText };
