// The frame: loading the history, following what comes, the pages by their addresses, theme, banner and token.

import { h, put, s, setText } from "./dom.js";
import { act, follow, get, Refused, token } from "./net.js";
import { Store } from "./store.js";
import devices from "./pages/devices.js";
import kfs from "./pages/kfs.js";
import layers from "./pages/layers.js";
import learning from "./pages/learning.js";
import ledger from "./pages/ledger.js";
import nexus from "./pages/nexus.js";
import overview from "./pages/overview.js";
import policies from "./pages/policies.js";
import probes from "./pages/probes.js";
import schedule from "./pages/schedule.js";

const PAGES = { overview, schedule, learning, layers, probes, policies, ledger, kfs, devices, nexus };
const DRAW_EVERY_MS = 200;
const REST = 5;
const STATE_TONES = { running: "good", done: "good", paused: "warn", draining: "warn", booting: "warn", starting: "warn", failed: "bad" };

const store = new Store();
const app = { store, steer: false, run: "", get, act, ask, say, version: "" };
const element = (id) => document.getElementById(id);
let shown = null;
let stale = false;
let drawnAt = 0;
let drawWait = 0;
let late = false;
let toldAt = 0;
let tellWait = 0;

app.page = () => shown?.page;
window.recuros = { store, app };

// --- pages -------------------------------------------------------------------------------------------------------------

function address() {
  const [name, ...rest] = location.hash.replace(/^#\//, "").split("/");
  return { name: PAGES[name] ? name : "overview", rest: rest.map(decodeURIComponent) };
}

function open() {
  const { name, rest } = address();
  if (shown?.name === name && shown.page.goTo) {
    shown.page.goTo(rest);
    return;
  }
  shown?.page.close?.();
  const root = h("div", {});
  put(element("page"), root);
  shown = { name, page: PAGES[name].mount(root, app, rest) };
  document.title = `${PAGES[name].title} · RecurOS`;
  for (const link of element("nav").children) {
    if (link.dataset.page === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  closeMenu();
  draw();
}

function draw() {
  stale = false;
  const began = performance.now();
  shown?.page.draw?.();
  drawnAt = performance.now();
  drawWait = Math.max(DRAW_EVERY_MS, REST * (drawnAt - began));
}

function instant() {
  late = false;
  const began = performance.now();
  shown?.page.instant?.();
  toldAt = performance.now();
  tellWait = REST * (toldAt - began);
}

/**
 * What one line can say is written at once; charts and tables are drawn at most five times a second. Both rest for a multiple of the time
 * that they took, so that a flood of records on a slow machine leaves the page usable.
 */
function touch() {
  const now = performance.now();
  if (now - toldAt >= tellWait) instant();
  else if (!late) {
    late = true;
    setTimeout(instant, tellWait - (now - toldAt));
  }
  if (stale) return;
  stale = true;
  setTimeout(draw, Math.max(0, drawWait - (now - drawnAt)));
}

function buildNav() {
  put(element("nav"), Object.entries(PAGES).map(([name, page]) => h("a", { href: `#/${name}`, "data-page": name }, s("svg", { viewBox: "0 0 20 20", "aria-hidden": "true" }, s("path", { d: page.icon })), page.title)));
}

function closeMenu() {
  element("nav").classList.remove("open");
  element("menu").setAttribute("aria-expanded", "false");
}

// --- the top line ----------------------------------------------------------------------------------------------------

function drawTop() {
  const { status, up, busy } = store.gauges;
  const halted = store.boot?.halted;
  const state = up && status ? status.state : busy ? "busy" : up === false ? (halted ? "halted" : "not running") : "ledger";
  const pill = element("state");
  setText(pill, state);
  pill.dataset.tone = (up && STATE_TONES[state]) || (busy ? "warn" : "idle");
  setText(element("app"), [store.boot?.app, status ? `generation ${status.generation}` : ""].filter(Boolean).join(" · "));
  setText(element("ledger-size"), store.next.toLocaleString("en"));
}

function connection(tone, text) {
  element("conn").dataset.tone = tone;
  setText(element("conn-text"), text);
}

function banner(text, tone = "warn") {
  const box = element("banner");
  box.hidden = !text;
  box.dataset.tone = tone;
  put(box, text || "");
}

let link = "first";
function drawBanner() {
  const { up, busy, why } = store.gauges;
  if (link === "lost") banner("The dashboard does not answer. What you see is the last that came; it goes on by itself when the dashboard is back.", "bad");
  else if (store.damaged) banner(`The ledger is damaged: ${store.damaged}. recuros kfs verify names what is wrong.`, "bad");
  else if (busy) banner("The runtime is up and does not answer in time; gauges are as old as the last answer.");
  else if (up === false && store.boot?.watched) banner(["A training loop that ", h("code", {}, "recuros.watch"), store.boot.halted ? " watched; it has ended." : " watches. It has no kernel, so there are no gauges; each window of it shows when it is recorded."]);
  else if (up === false) banner([store.seenUp ? "The runtime went away. " : "No runtime is up here: this is the ledger of a run directory, read-only. ", "Its records stay readable; ", h("code", {}, "recuros boot"), " goes on from the last committed window.", why && store.seenUp ? ` (${why})` : ""]);
  else if (store.first > 0) banner(`Plots begin at record ${store.first.toLocaleString("en")}; older ones are found by the ledger page's search.`);
  else banner("");
}

// --- theme ---------------------------------------------------------------------------------------------------------------

const THEMES = ["system", "light", "dark"];
function setTheme(name) {
  if (name === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  localStorage.setItem("recuros-theme", name);
  element("theme").setAttribute("aria-label", `Colour theme: ${name}`);
  element("theme").title = `Colour theme: ${name}`;
  touch();
}

// --- asking before a change ------------------------------------------------------------------------------------------------

/** A dialog that says what will happen and takes a reason; resolves to the values of `fields` and the reason, or null. */
function ask(title, text, fields = []) {
  return new Promise((resolve) => {
    const inputs = fields.map((f) => h("input", { class: "field", required: true, name: f.name, ...f.input }));
    const reason = h("input", { class: "field", name: "reason", maxlength: 180, placeholder: "goes into the ledger" });
    const form = h("form", { method: "dialog", onsubmit: () => done({ reason: reason.value, ...Object.fromEntries(fields.map((f, i) => [f.name, inputs[i].value])) }) },
      h("h2", {}, title), h("p", {}, text), fields.map((f, i) => h("label", {}, f.label, inputs[i])), h("label", {}, "Reason", reason),
      h("div", { class: "row" }, h("button", { class: "button", type: "button", onclick: () => done(null) }, "Cancel"), h("button", { class: "button primary" }, title)));
    const box = h("dialog", { "aria-label": title, oncancel: () => done(null) }, form);
    function done(value) {
      resolve(value);
      box.close();
      box.remove();
    }
    document.body.append(box);
    box.showModal();
    (inputs[0] || reason).focus();
  });
}

function say(text) {
  setText(element("live"), text);
}

// --- start -----------------------------------------------------------------------------------------------------------------

function askForToken(error) {
  link = "denied";
  connection("bad", "no access");
  banner("");
  setText(element("state"), "locked");
  shown?.page.close?.();
  shown = null;
  const field = h("input", { class: "field", type: "password", "aria-label": "Token", autocomplete: "off" });
  put(element("page"), h("section", { class: "card token-form" }, h("h1", {}, "This page needs its token"),
    h("p", { class: "quiet" }, token.get() ? `${error.message}. A dashboard makes a new token each time it starts.` : "Open the address that recuros dash printed, or paste the token that stands in it."),
    h("form", { onsubmit: (e) => {
      e.preventDefault();
      token.set(field.value.trim().replace(/^.*token=/, ""));
      location.reload();
    } }, field, h("button", { class: "button primary" }, "Open"))));
}

async function load() {
  const hello = await get("/api/hello");
  Object.assign(app, { steer: hello.steer, run: hello.run, version: hello.version });
  store.damaged = hello.damage;
  let after = hello.first - 1;
  let size = hello.size;
  while (after < size - 1) {
    const page = await get("/api/records", { after });
    if (!page.records.length) break;
    for (const record of page.records) store.take(record);
    after = store.next - 1;
    size = page.size;
    connection("warn", `loading ${Math.floor((100 * store.next) / size)} %`);
  }
  return after;
}

async function start() {
  token.take();
  setTheme(localStorage.getItem("recuros-theme") || "system");
  buildNav();
  element("theme").addEventListener("click", () => setTheme(THEMES[(THEMES.indexOf(localStorage.getItem("recuros-theme") || "system") + 1) % 3]));
  element("menu").addEventListener("click", () => element("menu").setAttribute("aria-expanded", String(element("nav").classList.toggle("open"))));
  document.querySelector("[data-skip]").addEventListener("click", (e) => {
    e.preventDefault();
    element("main").focus();
  });
  document.addEventListener("keydown", (e) => e.key === "Escape" && closeMenu());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", touch);
  let after;
  for (;;) {
    try {
      after = await load();
      break;
    } catch (error) {
      if (error instanceof Refused && (error.status === 401 || error.status === 403)) return askForToken(error);
      connection("bad", "not reachable");
      put(element("page"), h("p", { class: "empty" }, `The dashboard does not answer (${error.message}); trying again.`));
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
  addEventListener("hashchange", open);
  open();
  drawTop();
  follow(after, {
    record(record) {
      if (!store.take(record)) return;
      setText(element("ledger-size"), store.next.toLocaleString("en"));
      touch();
    },
    gauges(gauges) {
      store.takeGauges(gauges);
      store.seenUp ||= gauges.up;
      drawTop();
      drawBanner();
      connection(gauges.up ? "good" : "idle", gauges.up ? "live" : gauges.busy ? "busy" : "ledger only");
      touch();
    },
    damage(error) {
      store.damaged = error.message;
      drawBanner();
    },
    open() {
      link = "open";
      connection(store.gauges.up ? "good" : "idle", store.gauges.up ? "live" : "connected");
      drawBanner();
    },
    lost() {
      link = "lost";
      connection("bad", "disconnected");
      drawBanner();
    },
    denied: askForToken,
  });
}

start();
