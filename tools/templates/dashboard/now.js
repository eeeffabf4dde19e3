// Where each run stands: tiles for one, a table for several; replicas, queue, events and settings.

import { colourOf } from "./chart.js";
import { h, show } from "./dom.js";
import { clock, fixed, number, percent, seconds, whole } from "./words.js";

const GOOD = ["healthy"];
const BAD = ["dead", "unfit", "silent", "lost"];
const SILENT_S = 20;

export function showNow(place, store) {
  const runs = store.visible.filter((run) => run.now);
  if (runs.length === 1) show(place, card(runs[0]));
  else show(place, runs.length ? h("div", { class: "card scroll" }, table(runs)) : h("p", { class: "soft" }, "No run is shown: choose one above."));
}

function phase(now) {
  if (now.problem) return h("span", { class: "badge bad" }, "can't be read");
  if (now.over) return h("span", { class: "badge good" }, now.phase);
  if (now.silent > SILENT_S) return h("span", { class: "badge warn" }, `${now.phase}, silent for ${clock(now.silent)}`);
  return h("span", { class: "badge" }, now.phase || "not begun");
}

function progress(run) {
  const { step, warm_step } = run.now;
  if (typeof warm_step === "number" && typeof step !== "number") return { words: `supervised step ${whole(warm_step)} of at most ${whole(run.warm_steps)}`, share: warm_step / (run.warm_steps || 1) };
  return { words: `step ${whole(step ?? 0)} of ${whole(run.steps)}`, share: (step ?? 0) / (run.steps || 1) };
}

function bar(run) {
  const { words, share } = progress(run);
  const inner = h("div", { vars: { width: `${(100 * Math.min(1, share)).toFixed(1)}%`, "--c": colourOf(run) } });
  return h("div", { class: "progress", role: "progressbar", "aria-label": words, "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": Math.round(100 * share) }, inner);
}

function card(run) {
  const now = run.now;
  const left = typeof now.left === "number" && !now.over ? ` · ${clock(now.left)} left` : "";
  return h("div", { class: "card run" },
    h("div", { class: "head" }, h("strong", {}, run.label), phase(now), h("span", { class: "when" }, `${progress(run).words} · ${clock(now.seconds)}${left}`)),
    bar(run),
    h("div", { class: "tiles" }, tiles(run).map(([name, value, why]) => h("div", { class: "tile" }, h("div", { class: "name" }, name), h("div", { class: "value" }, value), h("div", { class: "why" }, why)))),
    now.left_out?.length ? h("p", { class: "soft" }, `Not learned from: ${now.left_out.join("; ")}.`) : null);
}

const skill = (now) => {
  const shown = now.graded ? (value) => fixed(value, 3) : percent;
  const [first, last] = now.held_out ?? [];
  return first === undefined ? "–" : first === last ? shown(last) : `${shown(first)} → ${shown(last)}`;
};

function tiles(run) {
  const now = run.now;
  return [
    ["Reward", fixed(now.reward, 3), typeof now.reward_first === "number" ? `first steps ${fixed(now.reward_first, 3)}` : "mean of 5 steps"],
    [now.graded ? "Held-out score" : "Held-out accuracy", skill(now), "before → now"],
    ["KL to the start", number(now.kl), typeof run.kl_budget === "number" ? `nats per token, budget ${number(run.kl_budget)}` : "nats per token"],
    ["Entropy", number(now.entropy), "nats per token"],
    ["Staleness", fixed(now.staleness, 2), `versions on average, bound ${run.max_staleness}`],
    ["Mismatch", number(now.mismatch), "nats, sampler to trainer"],
    ["Sampling", number(now.tokens_per_s), "tokens per second"],
    ["Learner idle", percent(now.learner_idle), `rollouts idle ${percent(now.rollout_idle)}`],
  ];
}

function table(runs) {
  const heads = ["run", "step", "time", "reward", "held-out", "KL", "entropy", "staleness", "tokens/s", "learner idle", "rollouts idle"];
  const rows = runs.map((run) => {
    const now = run.now;
    const cells = [`${whole(now.step ?? 0)} / ${whole(run.steps)}`, clock(now.seconds), fixed(now.reward, 3), skill(now), number(now.kl), number(now.entropy), fixed(now.staleness, 2), number(now.tokens_per_s), percent(now.learner_idle), percent(now.rollout_idle)];
    return h("tr", {}, h("td", { class: "name" }, h("span", { class: "dot", vars: { "--c": colourOf(run) } }), h("span", { class: "label" }, run.label), " ", phase(now)), cells.map((cell) => h("td", { class: "n" }, cell)));
  });
  return h("table", {}, h("thead", {}, h("tr", {}, heads.map((head, i) => h("th", { class: i > 0 ? "n" : null, scope: "col" }, head)))), h("tbody", {}, rows));
}

export function showNotes(place, store) {
  const notes = [];
  for (const run of store.runs) {
    const now = run.now;
    if (!now) continue;
    const name = store.runs.length > 1 ? `${run.label}: ` : "";
    if (now.problem) notes.push(h("p", { class: "note bad" }, `${name}${now.problem}`));
    else if (now.read < 1) notes.push(h("p", { class: "note" }, `${name}reading what the run has written: ${percent(now.read)}`));
    else if (now.began === null) notes.push(h("p", { class: "note" }, `${name}nothing written yet. The page fills as soon as the run begins.`));
    if (now.refused) notes.push(h("p", { class: "note bad" }, `${name}${whole(now.refused)} events are not as this version of Weir writes them, and are left out.`));
  }
  show(place, notes);
}

export function showReplicas(place, store) {
  const several = store.runs.length > 1;
  const runs = store.visible.filter((run) => run.now);
  const rows = runs.flatMap((run) => (run.now.replicas ?? []).map((replica) => {
    const kind = GOOD.includes(replica.state) ? "badge good" : BAD.includes(replica.state) ? "badge bad" : "badge";
    const behind = run.now.published - replica.version;
    const version = replica.version < 0 ? "none" : `v${whole(replica.version)}${behind > 0 ? ` (${whole(behind)} behind)` : ""}`;
    const flight = typeof replica.in_flight === "number" ? `${whole(replica.in_flight)} of ${whole(replica.limit)}` : "–";
    return h("tr", {},
      several ? h("td", { class: "name" }, h("span", { class: "dot", vars: { "--c": colourOf(run) } }), ` ${run.label}`) : null,
      h("td", { class: "name" }, replica.name), h("td", {}, h("span", { class: kind }, replica.state)), h("td", { class: "n" }, version),
      h("td", { class: "n" }, flight), h("td", { class: "n" }, seconds(replica.pause)), h("td", {}, replica.reason || replica.outcome));
  }));
  const heads = [several ? "run" : null, "replica", "state", "serves version", "answers in flight", "last pause", "last weight round"].filter(Boolean);
  const right = (head) => ["serves version", "answers in flight", "last pause"].includes(head);
  const replicas = rows.length
    ? h("table", {}, h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col", class: right(head) ? "n" : null }, head)))), h("tbody", {}, rows))
    : h("p", { class: "soft" }, "No replica has reported yet.");
  show(place, h("div", { class: "card fleetcard" }, h("div", { class: "scroll" }, replicas), runs.map((run) => queueLine(run, several))));
}

function queueLine(run, several) {
  const queue = run.now.queue ?? {};
  const name = several ? `Queue of ${run.label}: ` : "Queue: ";
  if (queue.ready === undefined) return h("p", { class: "soft" }, queue.problem ? `${name}${queue.problem}` : `${name}not looked at yet.`);
  const parts = [
    `${whole(queue.ready)} groups ready (${fixed(queue.ready / (queue.per_step || 1), 1)} steps)`, `${whole(queue.leased)} held by the learner`, `${whole(queue.trained)} trained, not in a checkpoint yet`,
    `${whole(queue.claimed)} prompts being worked on`, `${whole(queue.acknowledged)} done`, `${whole(queue.dropped)} dropped`, `${whole(queue.dead)} dead letters`,
  ];
  return h("p", { class: "soft" }, `${name}${parts.join(" · ")}`);
}

export function showHappenings(place, store) {
  const several = store.runs.length > 1;
  const all = store.visible.filter((run) => run.now).flatMap((run) => run.now.happenings.map((one) => ({ ...one, run })));
  all.sort((a, b) => (b.wall ?? 0) - (a.wall ?? 0));
  const rows = all.slice(0, 60).map((one) => h("div", { class: `happening ${one.kind}${several ? " named" : ""}` },
    h("time", { title: one.wall ? new Date(1000 * one.wall).toISOString() : null }, clock(one.t)), h("span", { class: "who", title: one.who }, one.who),
    several ? h("span", { class: "who run" }, h("span", { class: "dot", vars: { "--c": colourOf(one.run) } }), ` ${one.run.label}`) : null, h("span", { class: "what" }, one.text)));
  show(place, rows.length ? rows : h("p", { class: "soft" }, "Nothing happened yet."));
}

export function showSettings(place, store) {
  const { all, different } = store.about.settings;
  const heads = ["setting", ...store.runs.map((run) => run.label)];
  const made = (rows) => h("div", { class: "scroll" }, h("table", { class: "values" }, h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell) => h("td", {}, cell ?? "–")))))));
  const parts = [];
  if (store.runs.length > 1) parts.push(different.length ? h("p", { class: "soft" }, `${different.length} of ${all.length} settings differ.`) : h("p", { class: "soft" }, "The runs have the same settings."));
  if (store.runs.length > 1 && different.length) parts.push(made(different));
  parts.push(h("details", {}, h("summary", {}, `All ${all.length} settings`), made(all)));
  show(place, parts);
}
