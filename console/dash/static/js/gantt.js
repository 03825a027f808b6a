// The schedule as a canvas: rows of lanes and servers, time to the right; drag or arrow keys move, wheel or plus and minus zoom.

import { clock, colour, duration, h, put } from "./dom.js";
import { place } from "./chart.js";

const LABEL = 92;
const ROW = 26;
const LANE_ROW = 46;
const AXIS = 24;
const MIN_SPAN = 20e6;

export class Gantt {
  constructor({ select }) {
    this.select = select;
    this.canvas = document.createElement("canvas");
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "img");
    this.tip = h("div", { class: "tip", hidden: true });
    this.element = h("div", { class: "chart" }, this.canvas, this.tip);
    this.span = 60e9;
    this.end = null; // null: the right edge follows the present
    this.windows = [];
    this.cursor = -1;
    this.rows = [];
    this.watcher = new ResizeObserver(() => this.render());
    this.watcher.observe(this.element);
    this.canvas.addEventListener("wheel", (e) => {
      if (!e.ctrlKey && Math.abs(e.deltaX) <= Math.abs(e.deltaY) && !e.shiftKey) return;
      e.preventDefault();
      if (e.ctrlKey) this.zoom(e.deltaY > 0 ? 1.25 : 0.8, this.time(e.offsetX));
      else this.pan(((e.deltaX || e.deltaY) / this.width) * this.span);
    }, { passive: false });
    this.canvas.addEventListener("pointerdown", (e) => {
      this.drag = { x: e.clientX, end: this.right, moved: false };
      this.canvas.setPointerCapture(e.pointerId);
    });
    this.canvas.addEventListener("pointermove", (e) => this.move(e));
    this.canvas.addEventListener("pointerup", (e) => {
      if (this.drag && !this.drag.moved) this.pick(this.hit(e.offsetX, e.offsetY));
      this.drag = null;
    });
    this.canvas.addEventListener("pointerleave", () => (this.tip.hidden = true));
    this.canvas.addEventListener("keydown", (e) => this.key(e));
  }

  close() {
    this.watcher.disconnect();
  }

  draw(boot, windows, faults, live) {
    Object.assign(this, { boot, windows, faults, live });
    const servers = new Set([...(boot?.dispatches.keys() || []), ...(boot?.marks.map((m) => m.name) || [])]);
    this.rows = [...servers].filter((n) => n !== "learner").sort();
    this.last = boot ? Math.max(boot.lastMono, ...[...boot.dispatches.values()].map((rows) => rows.at(-1)?.[0] || 0)) : 0;
    this.render();
  }

  get right() {
    return this.end ?? this.last + this.span * 0.02;
  }

  fit(span) {
    this.end = null;
    this.span = span || Math.max(MIN_SPAN, this.boot ? (this.last - this.boot.mono) * 1.03 : 60e9);
    this.render();
  }

  zoom(factor, around = this.right - this.span / 2) {
    const span = Math.max(MIN_SPAN, Math.min(this.span * factor, this.boot ? (this.last - this.boot.mono) * 1.2 + 1e9 : 1e12));
    if (this.end !== null || factor < 1) this.end = around + ((this.right - around) * span) / this.span;
    this.span = span;
    this.follow();
    this.render();
  }

  pan(ns) {
    this.end = this.right + ns;
    this.follow();
    this.render();
  }

  follow() {
    if (this.end !== null && this.end >= this.last + this.span * 0.02) this.end = null;
    if (this.end !== null && this.boot && this.end < this.boot.mono + this.span * 0.2) this.end = this.boot.mono + this.span * 0.2;
  }

  time(x) {
    return this.right - this.span * (1 - (x - LABEL) / (this.width - LABEL));
  }

  x(ns) {
    return LABEL + (1 - (this.right - ns) / this.span) * (this.width - LABEL);
  }

  move(e) {
    if (this.drag) {
      const dx = e.clientX - this.drag.x;
      if (Math.abs(dx) > 3) this.drag.moved = true;
      if (this.drag.moved) {
        this.end = this.drag.end - (dx / (this.width - LABEL)) * this.span;
        this.follow();
        this.render();
      }
      return;
    }
    const w = this.hit(e.offsetX, e.offsetY);
    this.canvas.style.cursor = w ? "pointer" : "grab";
    if (!w) {
      this.tip.hidden = true;
      return;
    }
    put(this.tip, h("b", {}, `window ${w.id}`), h("div", {}, h("span", {}, w.outcome), h("span", {}, w.phase)), h("div", {}, h("span", {}, "took"), h("span", {}, duration((w.end || this.last) - w.start))), w.reason ? h("div", {}, w.reason.slice(0, 60)) : null);
    place(this.tip, e.offsetX, e.offsetY, this.width, this.height);
  }

  hit(x, y) {
    if (y > LANE_ROW || x < LABEL) return null;
    const t = this.time(x);
    const slack = (3 / (this.width - LABEL)) * this.span;
    return this.windows.findLast((w) => w.start - slack <= t && t <= (w.end || this.last) + slack) || null;
  }

  pick(w) {
    if (!w) return;
    this.cursor = this.windows.indexOf(w);
    this.select(w);
    this.render();
  }

  key(e) {
    const moves = { ArrowLeft: -1, ArrowRight: 1 };
    if (moves[e.key] && this.windows.length) {
      e.preventDefault();
      const at = this.cursor < 0 ? this.windows.length - 1 : Math.max(0, Math.min(this.windows.length - 1, this.cursor + moves[e.key]));
      const w = this.windows[at];
      if (w.start < this.right - this.span || w.start > this.right) this.end = w.start + this.span / 2;
      this.follow();
      this.pick(w);
    } else if (e.key === "+" || e.key === "=") this.zoom(0.6);
    else if (e.key === "-") this.zoom(1.7);
    else if (e.key === "End") {
      this.end = null;
      this.render();
    }
  }

  render() {
    this.width = this.element.clientWidth;
    this.height = LANE_ROW + this.rows.length * ROW + AXIS;
    if (!this.width) return;
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = this.width * ratio;
    this.canvas.height = this.height * ratio;
    this.canvas.style.height = `${this.height}px`;
    const g = this.canvas.getContext("2d");
    g.scale(ratio, ratio);
    g.clearRect(0, 0, this.width, this.height);
    const ink = Object.fromEntries(["text", "muted", "faint", "line", "line-strong", "sunken", "accent", "good", "bad", "warn", "c2", "surface", "bad-soft"].map((n) => [n, colour(`--${n}`)]));
    g.font = `12px ${getComputedStyle(document.body).fontFamily}`;
    g.textBaseline = "middle";
    this.axis(g, ink);
    g.save();
    g.beginPath();
    g.rect(LABEL, 0, this.width - LABEL, this.height);
    g.clip();
    this.drawWindows(g, ink);
    this.rows.forEach((name, i) => this.drawServer(g, ink, name, LANE_ROW + i * ROW + ROW / 2));
    g.restore();
    g.fillStyle = ink.text;
    g.fillText("learner lane", 0, LANE_ROW / 2);
    g.fillStyle = ink.muted;
    this.rows.forEach((name, i) => g.fillText(name, 0, LANE_ROW + i * ROW + ROW / 2));
    const seen = this.windows.filter((w) => (w.end || this.last) >= this.right - this.span && w.start <= this.right);
    const bad = seen.filter((w) => w.missed || w.outcome === "rolled back").length;
    this.canvas.setAttribute("aria-label", `Schedule: ${seen.length} windows in view, ${bad} missed or rolled back. Arrow keys choose a window, plus and minus zoom.`);
  }

  axis(g, ink) {
    const bottom = this.height - AXIS;
    const left = this.right - this.span;
    const wanted = Math.max(2, Math.floor((this.width - LABEL) / 100));
    const steps = [5e6, 1e7, 2e7, 5e7, 1e8, 2e8, 5e8, 1e9, 2e9, 5e9, 1e10, 3e10, 6e10, 3e11, 6e11, 1.8e12, 3.6e12, 2.16e13];
    const step = steps.find((x) => this.span / x <= wanted) || 8.64e13;
    const zero = (this.boot?.mono || 0) - (((this.boot?.t || 0) * 1e6) % step); // ticks at round times of the day
    g.textAlign = "center";
    for (let k = Math.ceil((left - zero) / step); zero + k * step <= this.right; k += 1) {
      const x = this.x(zero + k * step);
      g.strokeStyle = ink.line;
      g.beginPath();
      g.moveTo(x + 0.5, 0);
      g.lineTo(x + 0.5, bottom);
      g.stroke();
      g.fillStyle = ink.muted;
      if (x > LABEL + 18) g.fillText(axisText((this.boot?.t || 0) + (zero + k * step - (this.boot?.mono || 0)) / 1e6, step), Math.min(x, this.width - 28), bottom + AXIS / 2 + 2);
    }
    g.textAlign = "left";
  }

  drawWindows(g, ink) {
    const top = 9;
    const height = LANE_ROW - 18;
    const tones = { committed: ink.accent, running: ink.c2, "rolled back": ink.bad, "cut off": ink.faint };
    for (const [i, w] of this.windows.entries()) {
      const end = w.end || this.last;
      if (end < this.right - this.span || w.start > this.right) continue;
      const x = this.x(w.start);
      const wide = Math.max(1.5, this.x(end) - x - (this.x(end) - x > 5 ? 1 : 0));
      g.fillStyle = w.missed ? ink.bad : tones[w.outcome] || ink.faint;
      g.globalAlpha = w.outcome === "committed" ? 0.86 : 1;
      g.beginPath();
      g.roundRect(x, top, wide, height, Math.min(4, wide / 2));
      g.fill();
      g.globalAlpha = 1;
      const used = w.metrics?.used_ns / (end - w.start);
      if (used > 0 && wide > 6) {
        g.fillStyle = ink.text;
        g.globalAlpha = 0.22;
        g.fillRect(x, top + height - 4, wide * Math.min(1, used), 4);
        g.globalAlpha = 1;
      }
      if (wide > 26) {
        g.fillStyle = ink.surface;
        g.textAlign = "center";
        g.fillText(w.id, x + wide / 2, top + height / 2);
        g.textAlign = "left";
      }
      if (w.missed || (i === this.windows.length - 1 && w.deadline)) {
        g.strokeStyle = w.missed ? ink.bad : ink["line-strong"];
        g.beginPath();
        g.moveTo(this.x(w.deadline), top - 5);
        g.lineTo(this.x(w.deadline), top + height + 5);
        g.stroke();
      }
      if (i === this.cursor) {
        g.strokeStyle = ink.text;
        g.lineWidth = 2;
        g.strokeRect(x - 1, top - 2, wide + 2, height + 4);
        g.lineWidth = 1;
      }
    }
  }

  drawServer(g, ink, name, y) {
    g.strokeStyle = ink.line;
    g.beginPath();
    g.moveTo(LABEL, y + 0.5);
    g.lineTo(this.width, y + 0.5);
    g.stroke();
    const left = this.right - this.span;
    let lastX = -9;
    g.fillStyle = ink.c2;
    for (const [mono] of this.boot?.dispatches.get(name) || []) {
      if (mono < left || mono > this.right) continue;
      const x = this.x(mono);
      if (x - lastX < 2) continue;
      lastX = x;
      g.beginPath();
      g.arc(x, y, 2.6, 0, 7);
      g.fill();
    }
    for (const mark of this.boot?.marks || []) {
      if (mark.name !== name || mark.mono < left || mark.mono > this.right) continue;
      g.fillStyle = mark.kind === "spawn" ? ink.good : mark.kind === "exit" && mark.detail.status !== 0 ? ink.bad : ink.warn;
      g.beginPath();
      g.moveTo(this.x(mark.mono) - 5, y + 7);
      g.lineTo(this.x(mark.mono) + 5, y + 7);
      g.lineTo(this.x(mark.mono), y - 5);
      g.fill();
    }
    for (const fault of this.faults) {
      if (fault.name !== name || fault.mono < left || fault.mono > this.right) continue;
      g.strokeStyle = ink.bad;
      g.strokeRect(this.x(fault.mono) - 3.5, y - 3.5, 7, 7);
    }
  }
}

const axisText = (ms, step) => (step < 1e9 ? `${clock(ms)}.${String(Math.floor(ms % 1000)).padStart(3, "0")}` : clock(ms));
