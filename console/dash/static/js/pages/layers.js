// Layer by step: what probes left in the evidence of each window.

import { card, empty, h, head, number, patch, put, recordLink, table } from "../dom.js";
import { Heat, paintScale } from "../heat.js";

const NAMES = { cka: "CKA", "attn-kl": "attention KL", gradnorm: "gradient norm", fisher: "Fisher information", rms: "RMS", svcca: "SVCCA", pwcca: "PWCCA", "attn-entropy": "attention entropy", "dead-units": "dead units" };
const FIRST = ["cka", "attn-kl", "gradnorm", "fisher"];
const COMMANDS = { cka: "recuros probe attach builtin:cka on_kd_step", "attn-kl": "recuros probe attach builtin:attn-kl on_snapshot", gradnorm: "recuros probe attach builtin:gradnorm 'on_grad:student/**'", fisher: "recuros probe attach builtin:fisher on_snapshot" };

export default {
  title: "Layers",
  icon: "M10 3l7 3.7-7 3.7-7-3.7zM3 10.2l7 3.7 7-3.7M3 13.6l7 3.7 7-3.7",
  mount(root, app) {
    const { store } = app;
    let rows = [];
    let after = -1;
    let busy = false;
    let chosen = "";
    const choice = h("select", { class: "field", "aria-label": "Figure", onchange: () => {
      chosen = choice.value;
      drawMap();
    } });
    const heat = new Heat();
    const legend = h("div", { class: "scale" });
    const about = h("p", { class: "quiet" });
    const latest = h("div", {});
    const box = h("div", {});
    root.append(
      head("Layers", "One row a layer, one column a committed window, from the probe maps that are stored as its evidence: it is there for stopped runs too.", choice),
      h("div", { class: "grid" }, card("Layer by window", { note: about, tools: legend }, box), card("Latest", { flush: true }, latest)));

    async function load() {
      if (busy) return;
      busy = true;
      try {
        const found = await app.get("/api/layers", { after });
        rows.push(...found.rows);
        if (rows.length > found.windows_max) rows = rows.slice(-found.windows_max);
        after = found.size - 1;
        drawMap();
      } catch (error) {
        put(box, empty("The evidence could not be read", `${error.code || ""} ${error.message}`));
      } finally {
        busy = false;
      }
    }

    function drawMap() {
      const figures = new Map();
      for (const row of rows) for (const [program, layers] of Object.entries(row.values)) for (const values of Object.values(layers)) for (const figure of Object.keys(values)) figures.set(`${program}\n${figure}`, (figures.get(`${program}\n${figure}`) || 0) + 1);
      const keys = [...figures.keys()].sort((a, b) => order(a) - order(b) || figures.get(b) - figures.get(a) || a.localeCompare(b)); // what more layers have comes first
      if (!keys.length) {
        const gone = rows.filter((r) => r.gone).length;
        put(box, empty("No probe has left figures of layers", gone ? `The evidence of ${gone} windows was collected.` : "Attach one while the learner runs; each committed window adds a column.", COMMANDS.cka), h("div", { class: "empty" }, FIRST.slice(1).map((p) => h("code", {}, COMMANDS[p]))));
        patch(latest, h("p", { class: "empty" }, "nothing yet"));
        put(choice, h("option", {}, "no figure yet"));
        choice.disabled = true;
        return;
      }
      choice.disabled = false;
      if (!keys.includes(chosen)) chosen = keys[0];
      const wanted = keys.join("|");
      if (choice.dataset.keys !== wanted) {
        choice.dataset.keys = wanted;
        put(choice, keys.map((k) => h("option", { value: k, selected: k === chosen }, label(k))));
      }
      choice.value = chosen;
      const [program, figure] = chosen.split("\n");
      const kept = rows.filter((r) => r.values[program]);
      const layers = [...new Set(kept.flatMap((r) => Object.keys(r.values[program]).filter((l) => figure in r.values[program][l])))].sort(natural);
      const values = layers.map((l) => kept.map((r) => r.values[program][l]?.[figure] ?? null));
      if (!heat.element.isConnected) put(box, heat.element);
      const range = heat.draw({ rows: layers.map((l) => title(program, l)), columns: kept.map((r) => ({ x: r.window, text: `window ${r.window}, step ${r.step}, generation ${r.generation}` })), values, label: label(chosen) });
      about.textContent = `${label(chosen)}, ${kept.length} windows${layers.some((l) => /^\d+:\d+$/.test(l)) ? "; layers are student : teacher" : ""}`;
      const bar = h("canvas", { width: 140, height: 10, "aria-hidden": "true" });
      put(legend, number(range.low, 3), bar, number(range.high, 3), range.log ? " (log)" : "");
      paintScale(bar);
      patch(latest, table([{ name: "Layer", class: "mono", of: (l) => title(program, l) }, ...figureNames(kept, program).map((f) => ({ name: f, num: true, of: (l) => number(last(kept, program, l)?.[f]) })), { name: "Window", num: true, of: (l) => lastRow(kept, program, l)?.window ?? "–" }, { name: "Record", of: (l) => (lastRow(kept, program, l) ? recordLink(lastRow(kept, program, l).seq) : "–") }], layers, { label: `Latest ${label(chosen)}` }));
    }

    put(box, h("p", { class: "empty" }, "Reading the evidence of each window…"));
    let drawn = -1;
    return { draw() {
      heat.render();
      if (store.commits.length !== drawn || after < 0) {
        drawn = store.commits.length;
        load();
      }
    }, close: () => heat.close() };
  },
};

const order = (key) => {
  const at = FIRST.indexOf(key.split("\n")[0]);
  return at < 0 ? FIRST.length : at;
};
const label = (key) => {
  const [program, figure] = key.split("\n");
  const name = NAMES[program] || (program.length > 24 ? `program ${program.slice(0, 12)}` : program);
  return figure === program || name.toLowerCase().includes(figure.replace("_", " ")) ? name : `${name}: ${figure}`;
};
const title = (program, layer) => {
  if (layer === "(model)") return "whole model";
  if (layer === "(last layer)") return "last layer";
  const pair = program === "cka" || program.endsWith("cca") ? layer.match(/^(\d+):(\d+)$/) : null;
  return pair ? `layers ${pair[1]} : ${pair[2]}` : layer.replace(/^student\//, "");
};
const natural = (a, b) => a.localeCompare(b, "en", { numeric: true });
const lastRow = (rows, program, layer) => rows.findLast((r) => r.values[program]?.[layer]);
const last = (rows, program, layer) => lastRow(rows, program, layer)?.values[program][layer];
const figureNames = (rows, program) => [...new Set(Object.values(rows.at(-1)?.values[program] || {}).flatMap(Object.keys))].slice(0, 6);
