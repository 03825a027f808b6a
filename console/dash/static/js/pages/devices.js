// Processor, memory and devices, as long as this page has watched.

import { bytes, card, clock, count, duration, empty, h, head, number, patch, percent, pill, recordLink, table } from "../dom.js";
import { LineChart } from "../chart.js";

const COLOURS = { kernel: "--c6", learner: "--c1", observer: "--c2", dataset: "--c3", archivist: "--c4", gpu: "--c5" };

export default {
  title: "Devices",
  icon: "M5 5h10v10H5zM8 8h4v4H8zM7.5 2.5V5M12.5 2.5V5M7.5 15v2.5M12.5 15v2.5M2.5 7.5H5M2.5 12.5H5M15 7.5h2.5M15 12.5h2.5",
  mount(root, app) {
    const { store } = app;
    const ago = (x) => (x === 0 ? "now" : `${Math.round(x)} s`);
    const cpu = new LineChart({ label: "CPU of each process", height: 230, min: 0, format: (y) => percent(y, 0), xName: "at", xFormat: ago });
    const memory = new LineChart({ label: "Memory of each process", height: 230, min: 0, format: bytes, xName: "at", xFormat: ago });
    const host = new LineChart({ label: "CPU of the host", height: 170, min: 0, format: (y) => `${Math.round(y)} %`, xName: "at", xFormat: ago });
    const free = new LineChart({ label: "Memory of the host that is free", height: 170, min: 0, format: bytes, xName: "at", xFormat: ago });
    const processes = h("div", {});
    const devices = h("div", {});
    const guards = h("div", {});
    const about = h("dl", { class: "facts" });
    root.append(
      head("Devices", "Gauges are sampled while a page watches; nothing is asked of the runtime when none does."),
      h("div", { class: "grid" }, card("CPU of each process", { wide: "w6", note: "share of one core" }, cpu.element), card("Memory of each process", { wide: "w6", note: "resident" }, memory.element),
        card("CPU of the host", { wide: "w4" }, host.element), card("Free memory of the host", { wide: "w4" }, free.element), card("Host", { wide: "w4" }, about),
        card("GPU", { wide: "w12" }, devices), card("Processes", { flush: true }, processes), card("What the device guard decided", { flush: true }, guards)));

    function draw() {
      const { status } = store.gauges;
      const history = store.history;
      const now = history.at(-1)?.at || 0;
      const x = (sample) => (sample.at - now) / 1000;
      const names = [...new Set(history.flatMap((s) => Object.keys(s.processes)))];
      const lines = (key) => names.map((name) => ({ name, colour: COLOURS[name] || "--c6", points: history.filter((s) => s.processes[name] && s.processes[name][key] !== null).map((s) => [x(s), s.processes[name][key]]) }));
      cpu.draw(lines("share"));
      memory.draw(lines("rss"));
      host.draw([{ name: "host", colour: "--c1", points: history.map((s) => [x(s), s.host.cpu_percent]) }]);
      free.draw([{ name: "free", colour: "--c2", points: history.map((s) => [x(s), s.host.memory_available_bytes]) }]);
      const d = status?.device?.host || {};
      patch(about, Object.entries({ Processor: d.cpu, Cores: d.cores === undefined ? null : `${d.cores} of ${d.cores_online}`, Memory: d.memory_bytes && bytes(d.memory_bytes), "Load, 1 min": d.load_1m === undefined ? null : number(d.load_1m, 3), System: d.system, Temperature: d.cpu_temperature_c === null || d.cpu_temperature_c === undefined ? "no sensor" : `${d.cpu_temperature_c} °C`, "Kernel's scheduler": status?.kernel?.scheduler }).map(([k, v]) => [h("dt", {}, k), h("dd", {}, v ?? "–")]));
      const found = status?.device?.devices || [];
      patch(devices, found.length ? table([{ name: "Device", of: (g) => g.name || `GPU ${g.index}` }, { name: "Busy", num: true, of: (g) => (g.busy_percent === null || g.busy_percent === undefined ? "–" : `${g.busy_percent} %`) }, { name: "Memory", num: true, of: (g) => `${bytes(g.memory_used_bytes)} of ${bytes(g.memory_bytes)}` }, { name: "Temperature", num: true, of: (g) => (g.temperature_c === null || g.temperature_c === undefined ? "–" : `${g.temperature_c} °C`) }, { name: "Power", num: true, of: (g) => (g.power_w ? `${number(g.power_w, 3)} W` : "–") }, { name: "Clock", num: true, of: (g) => (g.clock_mhz ? `${g.clock_mhz} MHz` : "–") }, { name: "Driver", of: (g) => g.driver || "–" }], found, { label: "GPUs" }) : empty(status ? "No GPU is used" : "No runtime is up", status?.device?.note || "Gauges come from the gpu server of a running runtime."));
      patch(processes, status ? table([{ name: "Process", of: (p) => h("b", {}, p.name) }, { name: "Class", of: (p) => p.class || "kernel" }, { name: "State", of: (p) => pill(p.state, ["ready", "running"].includes(p.state) ? "good" : "warn") }, { name: "Pid", num: true, of: (p) => p.pid }, { name: "CPU now", num: true, of: (p) => percent(store.history.at(-1)?.processes[p.name]?.share, 0) }, { name: "CPU time", num: true, of: (p) => duration(p.cpu_ns) }, { name: "Memory", num: true, of: (p) => bytes(p.rss_bytes) }, { name: "Queued", num: true, of: (p) => count(p.queued) }, { name: "Restarts", num: true, of: (p) => h("span", { class: p.restarts ? "tone-warn" : "" }, count(p.restarts)) }, { name: "Rights", of: (p) => (p.rights || []).join(", ") || "–" }], [{ name: "kernel", state: "running", ...status.kernel }, ...status.servers], { label: "Processes" }) : h("p", { class: "empty" }, "no process runs"));
      patch(guards, table([{ name: "Time", of: (g) => clock(g.t) }, { name: "Event", of: (g) => g.event }, { name: "Verdict", of: (g) => pill(g.verdict, "warn") }, { name: "Window", num: true, of: (g) => g.window ?? "–" }, { name: "Micro-batches", num: true, of: (g) => count(g.micro_batches) }, { name: "Why", of: (g) => g.reason }, { name: "Record", of: (g) => recordLink(g.seq) }], store.guards.slice(-20).reverse(), { none: "nothing: no window was postponed or cut for heat or memory", label: "Device guard" }));
    }
    return { draw, close: () => [cpu, memory, host, free].forEach((c) => c.close()) };
  },
};
