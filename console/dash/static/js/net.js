// Speaking to the dashboard: the token, questions, and the stream of events.
//
// The token comes in the fragment of the address, which no browser sends anywhere, and goes out in a header. The stream is read with
// fetch and not with EventSource, which cannot send that header; the format and Last-Event-ID are those of server-sent events.

const KEY = "recuros-token";

export class Refused extends Error {
  constructor(status, error) {
    super(error.message || `the dashboard answered ${status}`);
    this.status = status;
    this.code = error.code || "";
    this.hint = error.hint || "";
  }
}

export const token = {
  take() {
    const found = new URLSearchParams(location.hash.replace(/^#\/?/, "")).get("token");
    if (found) {
      localStorage.setItem(KEY, found);
      history.replaceState(null, "", "#/overview");
    }
  },
  get: () => localStorage.getItem(KEY) || "",
  set: (value) => localStorage.setItem(KEY, value),
};

const headers = (more) => ({ Authorization: `Bearer ${token.get()}`, ...more });

async function refuse(response) {
  let error = {};
  try {
    error = (await response.json()).error || {};
  } catch {
    error = { message: `the dashboard answered ${response.status}` };
  }
  throw new Refused(response.status, error);
}

export async function get(path, parameters = {}) {
  const query = new URLSearchParams(Object.entries(parameters).filter(([, v]) => v !== "" && v !== null && v !== undefined));
  const response = await fetch(query.size ? `${path}?${query}` : path, { headers: headers(), cache: "no-store" });
  return response.ok ? response.json() : refuse(response);
}

export async function act(action, args, reason) {
  const response = await fetch("/api/act", {
    method: "POST",
    headers: headers({ "Content-Type": "application/json", "X-Recuros-Action": "confirmed" }),
    body: JSON.stringify({ action, args, reason }),
  });
  return response.ok ? response.json() : refuse(response);
}

const WAIT_FIRST_MS = 400;
const WAIT_MAX_MS = 5000;

/** Follow the events beyond record `after` for ever. `on` has record, gauges, damage, open, lost and denied. */
export async function follow(after, on) {
  let last = after;
  let wait = WAIT_FIRST_MS;
  for (;;) {
    try {
      const response = await fetch("/api/events", { headers: headers({ "Last-Event-ID": String(last), Accept: "text/event-stream" }), cache: "no-store" });
      if (!response.ok) await refuse(response);
      on.open();
      wait = WAIT_FIRST_MS;
      const reader = response.body.getReader();
      const decoder = new TextDecoder();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        rest += decoder.decode(value, { stream: true });
        let end = rest.indexOf("\n\n");
        while (end >= 0) {
          const event = parse(rest.slice(0, end));
          rest = rest.slice(end + 2);
          if (event.id !== null) last = event.id;
          if (event.data && on[event.name]) on[event.name](JSON.parse(event.data));
          end = rest.indexOf("\n\n");
        }
      }
    } catch (error) {
      if (error instanceof Refused && (error.status === 401 || error.status === 403)) {
        on.denied(error);
        return;
      }
    }
    on.lost(wait);
    await new Promise((resolve) => setTimeout(resolve, wait));
    wait = Math.min(WAIT_MAX_MS, wait * 1.6);
  }
}

function parse(block) {
  const event = { id: null, name: "message", data: "" };
  for (const line of block.split("\n")) {
    const colon = line.indexOf(":");
    if (colon <= 0) continue;
    const field = line.slice(0, colon);
    const value = line.slice(colon + 1).replace(/^ /, "");
    if (field === "id") event.id = Number(value);
    else if (field === "event") event.name = value;
    else if (field === "data") event.data += value;
  }
  return event;
}
