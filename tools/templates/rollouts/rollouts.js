// The page of rollouts: what /api/rollouts says, once a second, and buttons that ask first.
import { h, s, say, show } from "./dom.js";

const EVERY_MS = 1000;
const at = (id) => document.getElementById(id);
const time = (seconds) => new Date(seconds * 1000).toLocaleString();
const percent = (share) => `${+(100 * share).toFixed(2)}%`;
const signed = (value) => (value > 0 ? "+" : "") + value.toFixed(4);
let data = null;
let wanted = null;

async function read() {
  try {
    const reply = await fetch("/api/rollouts");
    if (reply.status === 401) { location.assign("/login"); return; }
    if (!reply.ok) throw new Error(await reply.text());
    data = await reply.json();
    draw();
    mark("live", `namespace ${data.namespace}`);
  } catch (error) {
    mark("lost", `The page's server can't be read: ${error.message}`);
  }
}

function mark(kind, text) {
  at("status").className = `status ${kind}`;
  say(at("status").querySelector(".said"), text);
}

function draw() {
  at("logout").hidden = !data.locked;
  const rollout = data.rollouts[0];
  show(at("rollout"), ...(rollout ? now(rollout) : [h("p", {}, "No rollout yet.")]));
  show(at("waits"), data.waits.length ? h("ul", { class: "waits" }, data.waits.map((one) => h("li", {}, h("strong", {}, one.who), `: ${one.what}`))) : h("p", {}, "Nobody waits."));
  show(at("metrics"), metrics());
  show(at("days"), drift());
  show(at("graph"), graph());
  show(at("entries"), table(["entry", "stage", "aliases", "parent", "made by", "step", "registered", "note"],
    data.entries.map((one) => [one.number, one.stage, one.aliases.join(", "), one.parent ?? "-", one.run, one.step, time(one.created_s), one.note])));
  show(at("rollouts"), table(["rollout", "began", "entry", "against", "step", "phase", "looks", "by", "reason"],
    data.rollouts.map((one) => [one.rollout, time(one.created_s), one.entry, one.stable, one.step, one.phase, one.looks, one.actor, one.reason])));
  buttons(rollout);
}

function now(rollout) {
  const here = rollout.steps.indexOf(rollout.step);
  const open = ["running", "paused"].includes(rollout.phase);
  const done = rollout.phase === "promoted" ? rollout.steps.length : here;
  const canary = data.traffic.canary;
  const newest = data.looks.at(-1);
  return [
    h("h3", {}, `Rollout ${rollout.rollout}: entry ${rollout.entry} against ${rollout.stable}, ${rollout.phase}`),
    h("ol", { class: "steps" }, rollout.steps.map((name, i) => h("li", { class: i < done ? "done" : i === here && open ? "here" : "" }, name))),
    h("p", { class: "soft" }, rollout.reason),
    s("svg", { viewBox: "0 0 100 4", preserveAspectRatio: "none", width: "100%", height: "14", role: "img", "aria-label": "traffic by arm" },
      s("rect", { x: 0, y: 0, width: 100, height: 4, class: "of-stable" }), s("rect", { x: 0, y: 0, width: 100 * canary, height: 4, class: "of-canary" })),
    h("p", {}, `Traffic: ${data.traffic.said}.`),
    newest ? h("p", { class: "soft" }, `Last look ${time(newest.at_s)}: ${newest.canary} answers of the canary, ${newest.stable} of stable; ${newest.verdict}`) : null,
    h("p", { class: "soft" }, data.controller ? `Controller: ${data.controller}` : "No controller is at work."),
    rollout.asked && open ? h("p", {}, `Asked: ${rollout.asked}`) : null,
  ];
}

function metrics() {
  if (!data.decision) return h("p", {}, "No look yet.");
  const worst = data.decision.findings.filter((one) => one.tenant).sort((a, b) => b.at_least - b.margin - (a.at_least - a.margin)).slice(0, 5);
  const rows = [...data.decision.findings.filter((one) => !one.tenant), ...worst];
  return h("div", {},
    h("p", {}, `Verdict: ${data.decision.verdict}. ${data.decision.reasons.join("; ")}`),
    h("table", {}, h("thead", {}, h("tr", {}, ["metric", "tenant", "values", "worse by at least", "at most", "margin", ""].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, rows.map((one) => h("tr", {},
        h("td", {}, one.metric + (one.direction < 0 ? " (less)" : "")), h("td", {}, one.tenant || "all"),
        h("td", {}, `${one.n_canary} / ${one.n_stable}`), h("td", {}, signed(one.at_least)), h("td", {}, signed(one.at_most)),
        h("td", {}, String(one.margin)), h("td", { class: one.is_worse ? "worse" : one.is_harmless ? "harmless" : "" }, one.is_worse ? "worse" : one.is_harmless ? "harmless" : "unclear"))))));
}

function drift() {
  const days = data.drift.days, newest = [...days].reverse();
  if (!days.length) return h("p", {}, "No answers of stable yet.");
  const names = [...new Set(days.flatMap((day) => Object.keys(day.metrics)))].sort();
  const shown = (one) => (one ? `${+one.mean.toPrecision(3)} ± ${+one.half.toPrecision(1)}` : "-");
  return h("div", {},
    h("p", { class: "soft" }, "Means of what users got, by day (UTC), with 95% intervals as if answers were independent." + (data.drift.is_behind ? " Older answers are still being read." : "")),
    h("table", {}, h("thead", {}, h("tr", {}, ["metric", "", ...newest.map((day) => new Date(1000 * day.at_s).toISOString().slice(5, 10))].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {},
        h("tr", {}, h("td", {}, "weight versions"), h("td", {}), newest.map((day) => h("td", {}, day.versions.join(", ") || "-"))),
        names.map((name) => h("tr", {}, h("td", {}, name), h("td", {}, line(days.map((day) => day.metrics[name]?.mean), name)), newest.map((day) => h("td", {}, shown(day.metrics[name]))))))));
}

function line(values, name) {
  const known = values.filter((value) => value !== undefined);
  const low = Math.min(...known), span = Math.max(...known) - low;
  const points = values.map((value, i) => (value === undefined ? null : [2 + 76 * (values.length > 1 ? i / (values.length - 1) : 0.5), span ? 20 - 16 * (value - low) / span : 12])).filter(Boolean);
  return s("svg", { width: 80, height: 24, viewBox: "0 0 80 24", role: "img", "aria-label": `${name} by day` },
    s("polyline", { class: "drawn", points: points.map((point) => point.join(",")).join(" ") }),
    s("circle", { class: "last", cx: points.at(-1)[0], cy: points.at(-1)[1], r: 2.5 }));
}

function graph() {
  const entries = [...data.entries].sort((a, b) => a.number - b.number);
  const lanes = new Map();
  const taken = new Map();
  let next = 0;
  for (const one of entries) {
    const parent = lanes.get(one.parent);
    if (parent !== undefined && !taken.has(one.parent)) { lanes.set(one.number, parent); taken.set(one.parent, true); }
    else lanes.set(one.number, next++);
  }
  const x = (index) => 50 + 104 * index;
  const y = (number) => 30 + 50 * lanes.get(number);
  const places = new Map(entries.map((one, index) => [one.number, [x(index), y(one.number)]]));
  const edges = entries.filter((one) => places.has(one.parent)).map((one) => {
    const [x1, y1] = places.get(one.parent), [x2, y2] = places.get(one.number);
    return s("path", { class: "edge", d: `M${x1},${y1} C${x1 + 40},${y1} ${x2 - 40},${y2} ${x2},${y2}` });
  });
  const nodes = entries.map((one) => {
    const [cx, cy] = places.get(one.number);
    const kind = one.aliases.includes("stable") ? "stable" : one.aliases.includes("canary") ? "canary" : one.stage;
    return s("g", {}, s("title", {}, `entry ${one.number}: ${one.stage} ${one.aliases.join(" ")} ${one.note}`),
      s("rect", { class: `node ${kind}`, x: cx - 38, y: cy - 14, width: 76, height: 28, rx: 8 }),
      s("text", { x: cx, y: cy + 4, "text-anchor": "middle" }, one.aliases.length ? `${one.number} ${one.aliases[0]}` : String(one.number)));
  });
  const width = x(entries.length - 1) + 60, height = 60 + 50 * Math.max(next - 1, 0);
  return s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "lineage of the entries" }, edges, nodes);
}

function table(heads, rows) {
  return h("table", {}, h("thead", {}, h("tr", {}, heads.map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell) => h("td", {}, String(cell)))))));
}

function buttons(rollout) {
  const place = at("buttons");
  const open = rollout && ["running", "paused"].includes(rollout.phase);
  const chosen = [];
  if (data.can_act && open) chosen.push([rollout.phase === "paused" ? "resume" : "pause", rollout.rollout], ["abort", rollout.rollout]);
  if (data.can_act && !open && data.aliases.previous) chosen.push(["rollback", data.aliases.stable]);
  const key = JSON.stringify(chosen);
  if (place.dataset.key === key) return;
  place.dataset.key = key;
  place.replaceChildren(...chosen.map(([what, number]) => h("button", { type: "button", id: `do-${what}`, on: { click: () => ask(what, number) } }, `${what} ...`)));
}

function ask(what, number) {
  wanted = { what, expected: `${what} ${number}` };
  const told = {
    pause: `Pause rollout ${number}? Nothing goes on until it is resumed; a metric that is worse still takes it back.`,
    resume: `Let rollout ${number} go on?`,
    abort: `Abort rollout ${number}? All traffic goes back to stable at once.`,
    rollback: `Take back entry ${number}? Stable becomes entry ${data.aliases.previous}.`,
  };
  say(at("question"), told[what]);
  say(at("expected"), wanted.expected);
  at("typed").value = at("reason").value = "";
  at("reason").hidden = at("reason-label").hidden = what !== "rollback";
  check();
  at("confirm").showModal();
}

function check() {
  at("yes").disabled = at("typed").value.trim() !== wanted.expected || (wanted.what === "rollback" && !at("reason").value.trim());
}

async function act() {
  const body = JSON.stringify({ what: wanted.what, confirm: at("typed").value.trim(), reason: at("reason").value });
  const reply = await fetch("/api/act", { method: "POST", headers: { "content-type": "application/json" }, body });
  const text = reply.ok ? (await reply.json()).said : await reply.text();
  at("said").hidden = false;
  at("said").className = reply.ok ? "note" : "note bad";
  say(at("said"), text);
  await read();
}

at("typed").addEventListener("input", check);
at("reason").addEventListener("input", check);
at("confirm").addEventListener("close", () => { if (at("confirm").returnValue === "yes") act(); });
await read();
setInterval(read, EVERY_MS);
