// The history of the run, folded from its records in ledger order: the one place that knows what a record means for the page.

export const LANE = "learner";

export class Store {
  constructor() {
    this.records = [];
    this.first = 0;
    this.next = 0;
    this.boots = [];
    this.windows = [];
    this.commits = [];
    this.open = new Map();
    this.bySnapshot = new Map();
    this.evaluations = [];
    this.generations = [];
    this.policies = [];
    this.changes = [];
    this.probes = new Map();
    this.faults = [];
    this.collections = [];
    this.snapshots = [];
    this.nexus = [];
    this.guards = [];
    this.programs = [];
    this.gauges = { up: null };
    this.history = [];
    this.listeners = new Set();
    this.version = 0;
  }

  /** Take one record; a number that was seen already is ignored, a gap is an error of ours and shown as one. */
  take(record) {
    if (record.seq < this.next) return false;
    if (!this.records.length) this.first = record.seq;
    else if (record.seq !== this.next) throw new Error(`record ${record.seq} came where ${this.next} was due`);
    this.next = record.seq + 1;
    this.records.push(record);
    this.version += 1;
    const fold = FOLDS[record.kind];
    if (fold) fold(this, record, record.args);
    else if (record.kind.startsWith("nexus.")) this.nexus.push(record);
    return true;
  }

  takeGauges(gauges) {
    const before = this.gauges;
    this.gauges = gauges;
    if (!gauges.status) return;
    const now = { at: gauges.at, uptime: gauges.status.uptime_ns, boot: gauges.status.boot, host: gauges.status.device?.host || {}, devices: gauges.status.device?.devices || [], processes: {} };
    for (const p of [{ name: "kernel", ...gauges.status.kernel }, ...gauges.status.servers]) {
      const old = this.history.findLast((s) => s.boot === now.boot && now.uptime - s.uptime > 1.9e9);
      const was = old?.processes[p.name];
      const span = old ? now.uptime - old.uptime : 0;
      const share = was && was.pid === p.pid && span > 0 ? Math.max(0, p.cpu_ns - was.cpu) / span : null;
      now.processes[p.name] = { pid: p.pid, cpu: p.cpu_ns, rss: p.rss_bytes, share };
    }
    if (before.status?.uptime_ns === gauges.status.uptime_ns) return;
    this.history.push(now);
    if (this.history.length > 1200) this.history.splice(0, 200);
  }

  record(seq) {
    return this.records[seq - this.first];
  }

  get boot() {
    return this.boots.at(-1);
  }

  get last() {
    return this.records.at(-1);
  }

  get commit() {
    return this.commits.at(-1);
  }

  /** Scores of the first teacher on a split: what retention refers to. */
  reference(split) {
    return this.gauges.status?.reference?.[split] || this.evaluations.find((e) => e.split === split && e.gen === 0)?.teacher;
  }

  counts() {
    const found = { committed: 0, missed: 0, rolled: 0 };
    for (const w of this.windows) {
      if (w.outcome === "committed") found.committed += 1;
      if (w.missed) found.missed += 1;
      if (w.outcome === "rolled back") found.rolled += 1;
    }
    return found;
  }
}

const current = (store, record) => store.boot || begin(store, record, { boot: "", app: "" });

function begin(store, record, args) {
  for (const w of store.open.values()) {
    w.outcome = "cut off";
    w.end = w.end || w.boot.lastMono;
  }
  store.open.clear();
  const boot = { id: String(args.boot), app: args.app, watched: record.actor.startsWith("watch:"), seq: record.seq, t: record.t, mono: record.mono, lastMono: record.mono, resumed: args.resumed_from, env: args.env || {}, dispatches: new Map(), admissions: [], marks: [], halted: null };
  store.boots.push(boot);
  return boot;
}

/** A window that nobody granted (a watched loop has no deadlines), or whose grant is not loaded: it lasts since the record before. */
function ungranted(store, r, a) {
  const boot = current(store, r);
  const w = { id: a.window, boot, seq: r.seq, t: r.t, start: boot.lastMono, end: 0, steps: a.steps, step0: a.step0, phase: a.phase?.name ?? "", gen: r.gen, missed: false, reason: "", directives: [] };
  store.windows.push(w);
  return w;
}

function attempt(store, window) {
  return store.open.get(window);
}

const FOLDS = {
  boot(store, r, a) {
    const before = store.boot;
    const spawned = before?.marks.at(-1)?.seq === r.seq - 1 ? before.marks.pop() : null; // the archivist starts before it can write the boot record
    if (before && !before.id && !store.windows.some((w) => w.boot === before)) store.boots.pop();
    const boot = begin(store, r, a);
    if (spawned) boot.marks.push(spawned);
  },
  halt(store, r, a) {
    const boot = current(store, r);
    boot.halted = { seq: r.seq, t: r.t, ...a };
    boot.lastMono = r.mono;
  },
  "window.grant"(store, r, a) {
    const boot = current(store, r);
    boot.lastMono = Math.max(boot.lastMono, r.mono);
    const w = { id: a.window, boot, seq: r.seq, t: r.t, start: r.mono, end: 0, outcome: "running", missed: false, reason: "", steps: a.steps, step0: a.step0, budget: a.budget_ns, deadline: a.deadline_ns, phase: a.phase?.name ?? String(a.phase ?? ""), gen: r.gen, base: r.parent, metrics: null, policySeq: a.policy_seq, directives: a.directives || [] };
    store.windows.push(w);
    store.open.set(a.window, w);
  },
  "window.commit"(store, r, a) {
    const w = attempt(store, a.window) || ungranted(store, r, a);
    w.boot.lastMono = Math.max(w.boot.lastMono, r.mono);
    Object.assign(w, { end: r.mono, outcome: "committed", metrics: a.metrics, commitSeq: r.seq, snapshot: r.result, committedAt: r.t, gen: r.gen, evidence: a.inputs?.evidence || "" });
    store.open.delete(a.window);
    store.commits.push(w);
    if (r.result) store.bySnapshot.set(r.result, w);
  },
  "window.miss"(store, r, a) {
    const w = attempt(store, a.window);
    if (w) Object.assign(w, { missed: String(a.reason).startsWith("E7-MISSED") || a.late_ns > 0, reason: a.reason, missSeq: r.seq, missAt: r.mono, late: a.late_ns });
    current(store, r).lastMono = r.mono;
  },
  "window.rollback"(store, r, a) {
    const w = attempt(store, a.window);
    if (w) Object.assign(w, { end: r.mono, outcome: "rolled back", rollSeq: r.seq, exact: a.exact });
    store.open.delete(a.window);
    current(store, r).lastMono = r.mono;
  },
  "sched.dispatch"(store, r, a) {
    const boot = current(store, r);
    for (const [mono, server, method] of a.rows) {
      if (!boot.dispatches.has(server)) boot.dispatches.set(server, []);
      boot.dispatches.get(server).push([mono, method]);
    }
  },
  "sched.admit": admission, "sched.refuse": admission, "sched.set": admission,
  spawn: life, exit: life, restart: life,
  evaluate(store, r, a) {
    const w = store.bySnapshot.get(r.parent);
    store.evaluations.push({ seq: r.seq, t: r.t, split: a.split, student: a.scores.student || {}, teacher: a.scores.teacher || {}, window: w?.id ?? store.commit?.id ?? 0, gen: r.gen });
  },
  generation(store, r, a) {
    store.generations.push({ seq: r.seq, t: r.t, gen: a.generation, window: a.window, reason: a.reason });
  },
  policy(store, r, a) {
    store.policies.push({ seq: r.seq, t: r.t, window: a.window, at: a.applies_at, settings: a.settings || {}, pack: a.pack, actor: r.actor });
  },
  "kd.set": change, "gate.set": change, prune: change, swap: change, calibrate: change, interrupt: change, restore: change,
  device(store, r, a) {
    store.guards.push({ seq: r.seq, t: r.t, ...a });
  },
  snapshot(store, r, a) {
    store.snapshots.push({ seq: r.seq, t: r.t, name: a.name, window: a.window, id: r.result });
    change(store, r, a);
  },
  "probe.load"(store, r, a) {
    store.programs.push({ seq: r.seq, t: r.t, actor: r.actor, ...a });
  },
  "probe.attach"(store, r, a) {
    store.probes.set(`${store.boots.length}/${a.id}`, { boot: current(store, r), id: a.id, hook: a.hook, prog: a.prog, sites: a.sites, step: a.step, seq: r.seq, t: r.t, actor: r.actor, gone: null });
  },
  "probe.detach"(store, r, a) {
    gone(store, r, a, "detached");
  },
  "probe.evict"(store, r, a) {
    gone(store, r, a, a.reason || "evicted");
  },
  fault(store, r, a) {
    store.faults.push({ seq: r.seq, t: r.t, mono: r.mono, boot: current(store, r), ...a });
  },
  "gc.plan"(store, r, a) {
    store.collections.push({ seq: r.seq, t: r.t, count: a.ids.length, reason: a.reason, done: null });
  },
  "gc.done"(store, r, a) {
    const plan = store.collections.find((c) => c.seq === a.plan_seq);
    if (plan) plan.done = { seq: r.seq, packs: a.packs, bytes: a.bytes };
  },
};

function admission(store, r, a) {
  current(store, r).admissions.push({ seq: r.seq, t: r.t, mono: r.mono, kind: r.kind, ...a });
}

function life(store, r, a) {
  current(store, r).marks.push({ seq: r.seq, mono: r.mono, t: r.t, kind: r.kind, name: a.name, detail: a });
}

function change(store, r, a) {
  store.changes.push({ seq: r.seq, t: r.t, kind: r.kind, actor: r.actor, args: a, window: a.window ?? null });
}

function gone(store, r, a, why) {
  const probe = store.probes.get(`${store.boots.length}/${a.id}`);
  if (probe) probe.gone = { seq: r.seq, step: a.step, why };
}

const TONES = { "window.commit": "good", "window.miss": "bad", "window.rollback": "bad", fault: "bad", "probe.evict": "bad", "sched.refuse": "warn", exit: "warn", restart: "warn", interrupt: "warn", policy: "accent", swap: "accent", generation: "accent", evaluate: "accent", "kd.set": "accent", restore: "warn", device: "warn", "nexus.gate": "accent" };
export const toneOf = (record) => (record.kind === "exit" && record.args.status === 0 ? "idle" : TONES[record.kind] || "idle");
