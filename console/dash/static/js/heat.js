// A heat map on a canvas: rows of layers, columns of windows; colours are a ramp of even lightness steps.

import { colour, h, number, put } from "./dom.js";
import { place } from "./chart.js";

const RAMP = [[48, 30, 92], [51, 82, 150], [33, 137, 154], [74, 184, 120], [186, 214, 72], [250, 236, 128]];
const LABEL_MAX = 210;
const AXIS = 24;

export function ramp(share) {
  const at = Math.max(0, Math.min(1, share)) * (RAMP.length - 1);
  const low = Math.min(RAMP.length - 2, Math.floor(at));
  return RAMP[low].map((c, i) => Math.round(c + (RAMP[low + 1][i] - c) * (at - low)));
}

export function paintScale(canvas) {
  const g = canvas.getContext("2d");
  for (let x = 0; x < canvas.width; x += 1) {
    g.fillStyle = `rgb(${ramp(x / canvas.width)})`;
    g.fillRect(x, 0, 1, canvas.height);
  }
}

export class Heat {
  constructor() {
    this.canvas = document.createElement("canvas");
    this.canvas.setAttribute("role", "img");
    this.tip = h("div", { class: "tip", hidden: true });
    this.element = h("div", { class: "chart" }, this.canvas, this.tip);
    this.watcher = new ResizeObserver(() => this.render());
    this.watcher.observe(this.element);
    this.canvas.addEventListener("pointermove", (e) => this.point(e));
    this.canvas.addEventListener("pointerleave", () => (this.tip.hidden = true));
  }

  close() {
    this.watcher.disconnect();
  }

  /** values[row][column], null for nothing. Returns the range of the colours; a range over three decades is shown by its logarithm. */
  draw(data) {
    this.data = data;
    const all = data.values.flat().filter((v) => Number.isFinite(v)).sort((a, b) => a - b);
    const low = all[0];
    const high = all.at(-1);
    const log = low > 0 && high / low > 1000;
    this.range = { low, high, log };
    this.share = log ? (v) => (v > 0 ? Math.log(v / low) / Math.log(high / low) : 0) : (v) => (high > low ? (v - low) / (high - low) : 0.5);
    this.render();
    return this.range;
  }

  render() {
    const width = this.element.clientWidth;
    if (!width || !this.data) return;
    const { rows, columns, values } = this.data;
    const g = this.canvas.getContext("2d");
    const font = `12px ${getComputedStyle(document.body).fontFamily}`;
    g.font = font;
    const label = Math.ceil(Math.min(LABEL_MAX, width * 0.36, Math.max(...rows.map((r) => g.measureText(r).width)) + 12));
    const row = Math.round(Math.max(18, Math.min(40, 420 / rows.length)));
    const height = rows.length * row + AXIS;
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = width * ratio;
    this.canvas.height = height * ratio;
    this.canvas.style.height = `${height}px`;
    g.scale(ratio, ratio);
    g.font = font;
    g.textBaseline = "middle";
    const wide = (width - label) / columns.length;
    Object.assign(this, { label, row, wide, height, width });
    g.fillStyle = colour("--sunken");
    g.fillRect(label, 0, width - label, rows.length * row);
    for (const [i, line] of values.entries()) {
      for (const [k, v] of line.entries()) {
        if (!Number.isFinite(v)) continue;
        g.fillStyle = `rgb(${ramp(this.share(v))})`;
        const left = Math.round((label + k * wide) * ratio) / ratio;
        g.fillRect(left, Math.round(i * row), Math.round((label + (k + 1) * wide) * ratio) / ratio - left, Math.round(row) - 1);
      }
    }
    g.fillStyle = colour("--surface");
    g.fillRect(0, 0, label, height);
    g.fillStyle = colour("--muted");
    for (const [i, name] of rows.entries()) g.fillText(fit(g, name, label - 10), 0, i * row + row / 2);
    const every = Math.max(1, Math.ceil(columns.length / Math.max(1, Math.floor((width - label) / 70))));
    g.textAlign = "center";
    for (let k = 0; k < columns.length; k += every) g.fillText(columns[k].x, Math.max(label + 12, Math.min(width - 14, label + (k + 0.5) * wide)), rows.length * row + AXIS / 2 + 2);
    g.textAlign = "left";
    this.canvas.setAttribute("aria-label", `${this.data.label}: ${rows.length} layers by ${columns.length} windows, from ${number(this.range.low)} to ${number(this.range.high)}. The table below has the latest values.`);
  }

  point(e) {
    if (!this.data) return;
    const row = Math.floor(e.offsetY / this.row);
    const column = Math.floor((e.offsetX - this.label) / this.wide);
    const value = this.data.values[row]?.[column];
    if (e.offsetX < this.label || value === undefined) {
      this.tip.hidden = true;
      return;
    }
    put(this.tip, h("b", {}, this.data.rows[row]), h("div", {}, this.data.columns[column].text), h("div", {}, value === null ? "no figure" : number(value, 6)));
    place(this.tip, e.offsetX, e.offsetY, this.width, this.height);
  }
}

function fit(g, text, width) {
  if (g.measureText(text).width <= width) return text;
  let cut = text;
  while (cut.length > 4 && g.measureText(`…${cut}`).width > width) cut = cut.slice(1);
  return `…${cut}`;
}
