// Who waits for whom: shares of now, the waits that go on, and a timeline of learner, rollouts, fleet and queue.

import { colourOf, hideTip, showTip } from "./chart.js";
import { h, s, show } from "./dom.js";
import { rowsOf } from "./store.js";
import { clock, percent, whole } from "./words.js";

const CELLS = 160;
const MAX_RUNS = 4;
const VERDICTS = {
  "rollout-bound": "The learner waits for answers: more replicas or workers would speed this run up.",
  "train-bound": "The rollout workers wait for the learner: a faster learner would speed this run up.",
  balanced: "Neither side waits much longer than the other.",
};

export function showWaiting(place, store) {
  const runs = store.visible.filter((run) => run.now).slice(0, MAX_RUNS);
  const cards = runs.map((run) => h("div", { class: "card waiter" }, heading(run, store), sides(run), waits(run), lanes(run)));
  if (store.visible.length > MAX_RUNS) cards.push(h("p", { class: "soft" }, `The first ${MAX_RUNS} of the runs shown; hide some to see the others.`));
  show(place, cards.length ? cards : h("div", { class: "nothing card" }, "Nothing measured yet."));
}

function heading(run, store) {
  const { bottleneck, balance } = run.now;
  const name = store.runs.length > 1 ? h("span", { class: "dot", vars: { "--c": colourOf(run) } }) : null;
  const label = store.runs.length > 1 ? `${run.label}: ` : "";
  const verdict = bottleneck ? `${bottleneck[0].toUpperCase()}${bottleneck.slice(1)}. ${VERDICTS[bottleneck] ?? ""}` : "Not known before the first steps.";
  return h("div", {}, name, name ? " " : null, h("strong", {}, label + verdict), balance ? h("p", { class: "soft" }, `${balance}.`) : null);
}

function sides(run) {
  const rows = [["learner", run.now.learner_idle], ["rollouts", run.now.rollout_idle]].flatMap(([name, idle]) => {
    const known = typeof idle === "number";
    const busy = h("div", { vars: { width: known ? `${(100 * (1 - idle)).toFixed(1)}%` : "0" } });
    return [h("span", {}, name), h("div", { class: known ? "share" : "share unknown", role: "img", "aria-label": `${name} idle ${percent(idle)}` }, busy), h("span", { class: "soft" }, known ? `${percent(idle)} idle` : "not measured")];
  });
  return h("div", { class: "sides" }, rows);
}

function waits(run) {
  if (!run.now.waits?.length) return null;
  return h("ul", { class: "plain" }, run.now.waits.map((wait) => {
    const left = typeof wait.limit === "number" ? `, gives up in ${clock(Math.max(0, wait.limit - wait.waited))}` : "";
    return h("li", {}, h("b", {}, wait.who), ` waits for ${wait.what} from `, h("b", {}, wait.on), h("span", { class: "soft" }, `  ${clock(wait.waited)}${left}`));
  }));
}

/** Lanes of cells over the run's time; each cell is the mean of what lies in it. */
function lanes(run) {
  const steps = rowsOf(run, "steps");
  const intervals = rowsOf(run, "intervals");
  const rounds = rowsOf(run, "rounds");
  const depths = rowsOf(run, "queue");
  const times = [steps, intervals].filter((rows) => rows.length).flatMap((rows) => [rows[0].t, rows.at(-1).t]);
  if (!times.length) return null;
  const [from, to] = [Math.min(...times), Math.max(...times)];
  if (!(to > from)) return null;
  const replicas = Math.max(1, run.now.replicas?.length ?? 1);
  const most = Math.max(1, ...depths.map((row) => row.ready ?? 0));
  const made = [
    ["learner", means(steps, from, to, (row) => row.idle), "idle", (v) => `learner idle ${percent(v)}`],
    ["rollouts", means(intervals, from, to, (row) => row.idle), "idle", (v) => `rollouts idle ${percent(v)}`],
    ["fleet", sums(rounds, from, to, (row) => row.paused_s, replicas), "pause", (v) => `replicas paused ${percent(v)} of the time`],
    ["queue", means(depths, from, to, (row) => (row.ready ?? 0) / most), "depth", (v) => `${whole(v * most)} groups ready`],
  ].filter(([, cells]) => cells.some((cell) => cell !== null));
  return h("div", { class: "timeline" },
    h("div", { class: "lanes" },
      made.flatMap(([name, cells, kind, words]) => [h("span", {}, name), lane(name, cells, kind, words, from, to)]),
      h("span", {}), h("div", { class: "times" }, h("span", {}, clock(from)), h("span", {}, clock((from + to) / 2)), h("span", {}, clock(to)))),
    h("div", { class: "colours" },
      [["busy", "busy"], ["idle", "idle"], ["red", "paused for weights"], ...(made.some(([name]) => name === "queue") ? [["blue", "groups ready"]] : [])]
        .map(([colour, word]) => h("span", {}, h("i", { class: "sw", vars: { "--c": `var(--${colour})` } }), word))));
}

function lane(name, cells, kind, words, from, to) {
  const rects = cells.flatMap((value, i) => {
    if (value === null) return [];
    const size = Math.min(1, Math.max(0, value));
    const part = { x: i, width: 1.03, y: kind === "depth" ? (1 - size).toFixed(3) : 0, height: size.toFixed(3) };
    const under = kind === "depth" ? [] : [s("rect", { class: "cell busy", x: i, width: 1.03, y: 0, height: 1 })];
    return size > 0 ? [...under, s("rect", { class: `cell ${kind}`, ...part })] : under;
  });
  const known = cells.filter((value) => value !== null);
  const average = known.reduce((a, b) => a + b, 0) / known.length;
  const svg = s("svg", { viewBox: `0 0 ${CELLS} 1`, preserveAspectRatio: "none", "aria-hidden": "true" }, rects);
  const place = h("div", { class: "lane", role: "img", "aria-label": `${words(average)} on average` }, svg);
  place.dataset.lane = name;
  LANES.set(name + from + to + average, { cells, words, from, to });
  place.dataset.key = name + from + to + average;
  while (LANES.size > 64) LANES.delete(LANES.keys().next().value);
  return place;
}

/** What the lanes on the page show, for the pointer. */
const LANES = new Map();

export function followPointer(place) {
  place.addEventListener("pointermove", (event) => {
    const target = event.target.closest?.(".lane");
    const known = target && LANES.get(target.dataset.key);
    if (!known) return hideTip();
    const box = target.getBoundingClientRect();
    const i = Math.min(CELLS - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * CELLS)));
    const when = known.from + ((i + 0.5) / CELLS) * (known.to - known.from);
    const value = known.cells[i];
    showTip(event.clientX, event.clientY, h("div", { class: "x" }, clock(when)), h("div", {}, value === null ? "nothing measured" : known.words(value)));
  });
  place.addEventListener("pointerleave", hideTip);
}

/** Mean by cell of what holds from one row's time to the next; a long gap is one in which nothing ran. */
function means(rows, from, to, value) {
  const gaps = rows.slice(1).map((row, i) => row.t - rows[i].t).sort((a, b) => a - b);
  const most = 6 * (gaps[Math.floor(gaps.length / 2)] ?? 1) + 1;
  const weights = new Array(CELLS).fill(0);
  const totals = new Array(CELLS).fill(0);
  rows.forEach((row, i) => {
    const amount = value(row);
    if (typeof amount !== "number") return;
    spread(Math.max(rows[i - 1]?.t ?? row.t - most / 6, row.t - most), row.t, from, to, (cell, share) => {
      weights[cell] += share;
      totals[cell] += share * amount;
    });
  });
  return weights.map((weight, i) => (weight > 0 ? Math.min(1, totals[i] / weight) : null));
}

/** Seconds by cell, as a share of the cell's time. */
function sums(rows, from, to, value, among) {
  const cells = new Array(CELLS).fill(rows.length ? 0 : null);
  const width = (to - from) / CELLS;
  for (const row of rows) {
    const amount = value(row);
    if (typeof amount !== "number" || row.t < from) continue;
    spread(row.t - Math.max(amount, 1e-3), row.t, from, to, (cell, seconds) => (cells[cell] = Math.min(1, cells[cell] + seconds / width / among)));
  }
  return cells;
}

/** Calls with each cell that an interval touches and the seconds in it. */
function spread(begin, end, from, to, take) {
  const width = (to - from) / CELLS;
  const first = Math.max(0, Math.floor((begin - from) / width));
  const last = Math.min(CELLS - 1, Math.floor((end - from) / width));
  for (let cell = first; cell <= last; cell++) {
    const share = Math.min(end, from + (cell + 1) * width) - Math.max(begin, from + cell * width);
    take(cell, Math.max(share, 1e-9));
  }
}
