// Elements, numbers and times. Text becomes text nodes everywhere: nothing that a record holds is ever read as markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(element.style, value);
    else if (name in element && typeof value === "boolean" && !(element instanceof SVGElement)) element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  append(element, children);
  return element;
}

function append(element, children) {
  for (const child of children) {
    if (Array.isArray(child)) append(element, child);
    else if (child !== null && child !== undefined && child !== false) {
      element.append(child instanceof Node ? child : document.createTextNode(String(child)));
    }
  }
}

export const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
export const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

export function put(element, ...children) {
  const made = document.createDocumentFragment();
  append(made, children);
  element.replaceChildren(made);
  return element;
}

/**
 * As `put`, but what is there already stays and takes on what differs: no layout and no paint for the rest, and a selection, a focus and a
 * click under way survive. Handlers stay with the elements they were given to, so they read what they are about from the element.
 */
export function patch(element, ...children) {
  const made = document.createDocumentFragment();
  append(made, children);
  morphChildren(element, made);
  return element;
}

function morphChildren(element, made) {
  const there = [...element.childNodes];
  const wanted = [...made.childNodes];
  for (const [i, node] of wanted.entries()) {
    if (there[i]) morph(there[i], node);
    else element.append(node);
  }
  for (const old of there.slice(wanted.length)) old.remove();
}

function morph(old, made) {
  if (old.nodeName !== made.nodeName) old.replaceWith(made);
  else if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== made.data) old.data = made.data;
  } else {
    for (const { name } of [...old.attributes]) if (!made.hasAttribute(name)) old.removeAttribute(name);
    for (const { name, value } of made.attributes) {
      if (old.getAttribute(name) === value) continue;
      if (name === "style") old.style.cssText = made.style.cssText; // the attribute itself is refused by the page's own policy
      else old.setAttribute(name, value);
    }
    morphChildren(old, made);
  }
}

/** Rows by their key, in the order given: new ones are put in, old ones are taken out, the others stay and take on what differs. */
export function keyed(element, rows, keyOf, make) {
  const wanted = new Set(rows.map((r) => String(keyOf(r))));
  for (const old of [...element.children]) if (!wanted.has(old.dataset.key)) old.remove();
  let at = element.firstElementChild;
  for (const row of rows) {
    const made = make(row);
    made.dataset.key = keyOf(row);
    if (at?.dataset.key === made.dataset.key) {
      morph(at, made);
      at = at.nextElementSibling;
    } else element.insertBefore(made, at);
  }
}

export function setText(element, text) {
  const value = String(text);
  if (element.textContent !== value) element.textContent = value;
}

const DASH = "–";
const isNumber = (x) => typeof x === "number" && Number.isFinite(x);

export function number(x, digits = 4) {
  if (!isNumber(x)) return DASH;
  if (x === 0) return "0";
  const size = Math.abs(x);
  if (size >= 1e6 || size < 1e-4) return x.toExponential(2).replace("e+", "e");
  if (Number.isInteger(x)) return x.toLocaleString("en");
  return Number(x.toPrecision(digits)).toLocaleString("en", { maximumFractionDigits: 6 });
}
export const count = (x) => (isNumber(x) ? Math.round(x).toLocaleString("en") : DASH);
export const percent = (x, digits = 1) => (isNumber(x) ? `${(x * 100).toFixed(digits)} %` : DASH);

export function bytes(x) {
  if (!isNumber(x)) return DASH;
  let unit = "B";
  for (const next of ["kB", "MB", "GB", "TB"]) {
    if (Math.abs(x) < 1000) break;
    x /= 1000;
    unit = next;
  }
  return `${unit === "B" ? x : x.toPrecision(3)} ${unit}`;
}

export function duration(ns) {
  if (!isNumber(ns)) return DASH;
  const size = Math.abs(ns);
  if (size < 1e3) return `${Math.round(ns)} ns`;
  if (size < 1e6) return `${(ns / 1e3).toPrecision(3)} µs`;
  if (size < 1e9) return `${Math.round(ns / 1e6)} ms`;
  const seconds = ns / 1e9;
  if (size < 120e9) return `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`;
  if (size < 7200e9) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

export const clock = (ms) => (ms ? new Date(ms).toLocaleTimeString("en-GB", { hour12: false }) : DASH);
export const dateTime = (ms) => (ms ? new Date(ms).toISOString().replace("T", " ").slice(0, 23) + " UTC" : DASH);
export const short = (id) => (typeof id === "string" ? (id.startsWith("b3:") ? id.slice(0, 11) : id.slice(0, 12)) : DASH);

export function brief(value, width = 120) {
  const text = words(value, 2);
  return text.length > width ? `${text.slice(0, width - 1)}…` : text;
}

function words(value, depth) {
  if (value === null || value === undefined || value === "") return DASH;
  if (typeof value === "number") return number(value);
  if (typeof value === "string") return value.startsWith("b3:") ? short(value) : value;
  if (typeof value !== "object") return String(value);
  if (depth === 0) return Array.isArray(value) ? `[${value.length}]` : "{…}";
  if (Array.isArray(value)) return value.length > 6 ? `[${value.length}]` : `[${value.map((v) => words(v, depth - 1)).join(", ")}]`;
  return Object.entries(value).map(([k, v]) => `${k} ${words(v, depth - 1)}`).join("  ") || DASH;
}

export const pill = (text, tone = "idle", title) => h("span", { class: "pill", "data-tone": tone, title }, text);
export const recordLink = (seq) => h("a", { href: `#/ledger/${seq}` }, `#${seq}`);

export function card(title, { note, tools, wide = "w12", flush = false, label } = {}, ...children) {
  return h("section", { class: `card ${wide}${flush ? " flush" : ""}`, "aria-label": label || title },
    (title || note || tools) && h("header", {}, title && h("h2", {}, title), note && h("span", { class: "note" }, note), tools && h("div", { class: "tools" }, tools)),
    ...children);
}

export function head(title, text, ...tools) {
  return h("div", { class: "page-head" }, h("div", {}, h("h1", {}, title), h("p", {}, text)), tools.length > 0 && h("div", { class: "tools" }, tools));
}

export function empty(title, text, command) {
  return h("div", { class: "empty" }, h("b", {}, title), text && h("span", {}, text), command && h("code", {}, command));
}

export function table(columns, rows, { none = "nothing yet", label, tight } = {}) {
  if (!rows.length) return h("p", { class: "empty" }, none);
  return h("div", { class: "scroll" },
    h("table", { "aria-label": label, class: tight && "tight" },
      h("thead", {}, h("tr", {}, columns.map((c) => h("th", { class: c.num && "num", scope: "col" }, c.name)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, columns.map((c) => h("td", { class: [c.num && "num", c.class].filter(Boolean).join(" ") || null }, c.of(row))))))));
}

export function segments(label, options, chosen, choose) {
  const buttons = options.map(([value, text]) => h("button", { type: "button", "aria-pressed": String(value === chosen), onclick: () => {
    for (const [i, b] of buttons.entries()) b.setAttribute("aria-pressed", String(options[i][0] === value));
    choose(value);
  } }, text));
  return h("div", { class: "segments", role: "group", "aria-label": label }, buttons);
}

export function bar(share, tone) {
  return h("div", { class: "bar", "aria-hidden": "true" }, h("i", { "data-tone": tone, style: { width: `${Math.max(0, Math.min(1, share || 0)) * 100}%` } }));
}

export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
