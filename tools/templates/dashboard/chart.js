// One chart: curves of the visible runs over steps or time, with axes, bounds, a crosshair and what it points at.

import { h, s, say, show } from "./dom.js";
import { rowsOf, stepAt } from "./store.js";
import { FORMATS, clock, logTicks, number, ticks, whole } from "./words.js";

const HEIGHT = 190;
const EDGE = { top: 8, right: 10, bottom: 34 };
const HUES = ["blue", "orange", "green", "purple", "red", "cyan", "pink", "grey"];
const TIMED = new Set(["intervals", "rounds", "queue"]);

export const colourOf = (run) => `var(--${HUES[run.index % HUES.length]})`;

/** The box at the pointer, one for all charts. */
const tip = h("div", { class: "tip", hidden: true });
document.body.append(tip);

export function showTip(x, y, ...lines) {
  show(tip, ...lines);
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = x + 14 + box.width > innerWidth ? x - 14 - box.width : x + 14;
  const top = y + 14 + box.height > innerHeight ? y - 14 - box.height : y + 14;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, top)}px`;
}

export function hideTip() {
  tip.hidden = true;
}

export class Chart {
  /** `spec` is one of panels.js; `group` are the charts whose crosshairs move together. */
  constructor(spec, group) {
    this.spec = spec;
    this.group = group;
    this.points = [];
    this.isSeen = false;
    this.isStale = true;
    this.plot = h("div", { class: "plot", tabindex: "0", role: "img" });
    this.nothing = h("div", { class: "nothing" }, "");
    this.keys = h("div", { class: "keys" });
    this.last = h("span", { class: "last" });
    const head = h("div", { class: "head" }, h("h3", {}, spec.title), this.last);
    this.element = h("figure", { class: "chart card", id: `chart-${spec.id}` }, head, h("figcaption", {}, spec.about), this.keys, this.plot, this.nothing);
    this.plot.addEventListener("pointermove", (event) => this.point(event.offsetX, event.clientX, event.clientY));
    this.plot.addEventListener("pointerdown", (event) => this.point(event.offsetX, event.clientX, event.clientY));
    this.plot.addEventListener("pointerleave", () => this.leave());
    this.plot.addEventListener("blur", () => this.leave());
    this.plot.addEventListener("keydown", (event) => this.key(event));
  }

  /** Draws, or remembers to when it comes into sight. */
  update(store, view) {
    this.store = store;
    this.view = view;
    this.isStale = true;
    if (this.isSeen) this.draw();
  }

  see(isSeen) {
    this.isSeen = isSeen;
    if (isSeen && this.isStale && this.store) this.draw();
  }

  get inTime() {
    return this.view.axis === "time";
  }

  draw() {
    this.isStale = false;
    const runs = this.spec.stack ? this.store.visible.slice(0, 1) : this.store.visible;
    const curves = runs.flatMap((run) => this.curvesOf(run, runs.length > 1));
    const all = curves.filter((curve) => curve.points.length);
    this.element.hidden = Boolean(this.spec.optional) && !all.length;
    this.plot.hidden = !all.length;
    this.nothing.hidden = Boolean(all.length);
    if (!all.length) {
      say(this.nothing, this.spec.nothing ?? (this.store.visible.length ? "Nothing measured yet." : "No run is shown: choose one above."));
      say(this.last, "");
      show(this.keys);
      return;
    }
    const [x0, x1] = domain(all.flatMap((curve) => [curve.points[0].x, curve.points.at(-1).x]));
    this.from = this.view.range < 1 ? x1 - (x1 - x0) * this.view.range : x0;
    this.to = x1 > this.from ? x1 : this.from + 1;
    this.curves = all.map((curve) => ({ ...curve, points: within(curve.points, this.from, this.to) }));
    this.drawKeys(runs);
    this.drawPlot(runs);
  }

  curvesOf(run, several) {
    const spec = this.spec;
    const parts = spec.parts ? this.partsOf(run) : spec.series;
    return parts.map((series, i) => {
      const points = [];
      for (const row of rowsOf(run, series.table ?? spec.table)) {
        const y = row[series.key];
        if (y === null || y === undefined || (spec.log && y <= 0)) continue;
        const x = this.xOf(run, series.table ?? spec.table, row);
        if (x !== null) points.push({ x, y, t: row.t, low: row[`${series.key}.low`], high: row[`${series.key}.high`] });
      }
      const hue = several ? HUES[run.index % HUES.length] : (series.hue ?? HUES[i % HUES.length]);
      return { run, series, points, dash: several ? i : (series.dash ?? 0), colour: `var(--${hue})` };
    });
  }

  partsOf(run) {
    const names = (run.tables[this.spec.table]?.names ?? []).filter((name) => name.startsWith("part:") && !/\.(low|high)$/.test(name));
    return names.slice(0, 8).map((key) => ({ key, label: key.slice(5) }));
  }

  xOf(run, table, row) {
    if (this.inTime) return row.t / 60;
    return TIMED.has(table) ? stepAt(run, row.t) : row.x;
  }

  drawKeys(runs) {
    const several = runs.length > 1;
    const keys = [];
    const labels = new Set();
    for (const curve of this.curves) {
      if (labels.has(curve.series.label)) continue;
      labels.add(curve.series.label);
      const colour = several ? "var(--faint)" : curve.colour;
      const line = s("path", { d: "M0 4H18", class: `curve dash${curve.dash}`, vars: { "--c": colour } });
      const block = s("rect", { width: 12, height: 8, class: "area", vars: { "--c": colour } });
      const sample = s("svg", { viewBox: "0 0 18 8", "aria-hidden": "true" }, this.spec.stack ? block : line);
      keys.push(h("span", { class: "key" }, sample, h("span", {}, curve.series.label)));
    }
    if (this.spec.stack && this.store.visible.length > 1) keys.push(h("span", { class: "key" }, h("span", {}, `of ${runs[0].label}`)));
    show(this.keys, labels.size > 1 || this.spec.stack ? keys : []);
    const format = FORMATS[this.spec.format ?? "number"];
    const end = this.curves[0].points.at(-1);
    say(this.last, runs.length === 1 && end && !this.spec.stack ? format(end.y) : "");
  }

  drawPlot(runs) {
    const width = Math.max(160, this.plot.clientWidth || 360);
    const format = FORMATS[this.spec.format ?? "number"];
    const [low, high] = this.yDomain(runs);
    const marks = this.spec.log ? logTicks(low, high) : ticks(low, high, 4);
    const longest = Math.max(...marks.map((mark) => format(mark).length));
    const left = Math.max(26, 8 + longest * 6.4);
    const bottom = HEIGHT - EDGE.bottom;
    const right = width - EDGE.right;
    this.toX = (x) => left + ((x - this.from) / (this.to - this.from)) * (right - left);
    const part = this.spec.log
      ? (y) => Math.log(y / low) / Math.log(high / low)
      : (y) => (y - low) / (high - low);
    this.toY = (y) => bottom - Math.min(1.04, Math.max(-0.04, part(y))) * (bottom - EDGE.top);
    const nodes = [];
    for (const mark of marks) {
      if (part(mark) < -0.001 || part(mark) > 1.001) continue;
      const y = Math.round(this.toY(mark)) + 0.5;
      nodes.push(s("line", { class: "grid", x1: left, x2: right, y1: y, y2: y }), s("text", { x: left - 6, y: y + 3.5, "text-anchor": "end" }, format(mark)));
    }
    nodes.push(s("line", { class: "axis", x1: left, x2: right, y1: bottom + 0.5, y2: bottom + 0.5 }));
    const xFormat = this.inTime ? (x) => number(x) : (x) => number(x);
    const across = ticks(this.from, this.to, Math.max(2, Math.floor((right - left) / 78))).filter((x) => this.inTime || Number.isInteger(x));
    for (const x of across) {
      const at = this.toX(x);
      const anchor = at > right - 14 ? "end" : at < left + 8 ? "start" : "middle";
      nodes.push(s("text", { x: anchor === "end" ? right : at, y: bottom + 15, "text-anchor": anchor }, xFormat(x)));
    }
    nodes.push(s("text", { x: right, y: HEIGHT - 4, "text-anchor": "end" }, this.inTime ? "minutes of the run" : (this.spec.xName ?? "optimizer step")));
    nodes.push(s("text", { x: left, y: HEIGHT - 4 }, this.spec.unit));
    nodes.push(...this.boundNodes(runs, left, right));
    nodes.push(...(this.spec.stack ? this.stackNodes() : this.curves.flatMap((curve) => this.curveNodes(curve))));
    this.cross = s("line", { class: "cross", y1: EDGE.top, y2: bottom, visibility: "hidden" });
    const svg = s("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, "aria-hidden": "true" }, nodes, this.cross);
    this.plot.replaceChildren(svg);
    this.plot.setAttribute("aria-label", this.words(format));
    if (this.at !== undefined) this.moveCross(this.at);
  }

  words(format) {
    const told = this.curves.filter((curve) => curve.points.length).map((curve) => {
      const name = this.store.visible.length > 1 ? `${curve.run.label}, ${curve.series.label}` : curve.series.label;
      return `${name} from ${format(curve.points[0].y)} to ${format(curve.points.at(-1).y)}`;
    });
    return `${this.spec.title}, ${this.spec.unit}: ${told.join("; ")}. Arrow keys read single points.`;
  }

  yDomain(runs) {
    let values = this.curves.flatMap((curve) => curve.points.map((point) => point.y));
    if (this.spec.stack) values = this.stacked().map((row) => row.tops.at(-1));
    const bounds = this.boundsOf(runs).map((bound) => bound.y);
    if (this.spec.robust && values.length > 20) {
      const sorted = [...values].sort((a, b) => a - b);
      const cap = sorted[Math.floor(0.97 * (sorted.length - 1))];
      values = values.filter((value) => value <= cap * 1.15);
    }
    let [low, high] = domain([...values, ...bounds]);
    if (this.spec.log) return high > low * 1.5 ? [low / 1.3, high * 1.3] : [low / 3, high * 3];
    low = Math.min(low, this.spec.low ?? low);
    high = Math.max(high, this.spec.high ?? high);
    if (low === high) [low, high] = low === 0 ? [0, 1] : [low - Math.abs(low) * 0.1, high + Math.abs(high) * 0.1];
    const room = (high - low) * 0.06;
    return [low === this.spec.low ? low : low - room, high === this.spec.high ? high : high + room];
  }

  boundsOf(runs) {
    if (!this.spec.bound) return [];
    const found = new Map();
    for (const run of runs) if (typeof run[this.spec.bound.of] === "number") found.set(run[this.spec.bound.of], run);
    return [...found.keys()].map((y) => ({ y, name: this.spec.bound.name }));
  }

  boundNodes(runs, left, right) {
    return this.boundsOf(runs).flatMap(({ y, name }) => {
      const at = this.toY(y);
      const below = at < EDGE.top + 12;
      return [
        s("line", { class: "bound", x1: left, x2: right, y1: at, y2: at }),
        s("text", { class: "boundname", x: right, y: below ? at + 12 : at - 4, "text-anchor": "end" }, `${name} ${number(y)}`),
      ];
    });
  }

  curveNodes({ points, series, colour, dash }) {
    const vars = { "--c": colour };
    const nodes = [];
    const path = (list, y) => list.map((point, i) => `${i ? "L" : "M"}${this.toX(point.x).toFixed(1)} ${this.toY(y(point)).toFixed(1)}`).join("");
    if (series.points) {
      nodes.push(s("path", { class: `curve dash${dash}`, d: path(points, (p) => p.y), vars }));
      const marks = points.length > 60 ? points.slice(-1) : points;
      nodes.push(...marks.map((point) => s("circle", { class: "mark", cx: this.toX(point.x), cy: this.toY(point.y), r: 3.2, vars })));
      return nodes;
    }
    const banded = points.filter((point) => point.high > point.low);
    if (banded.length > 1 && banded.length > points.length / 2) {
      const back = [...banded].reverse();
      nodes.push(s("path", { class: "band", d: `${path(banded, (p) => p.high)}L${path(back, (p) => p.low).slice(1)}Z`, vars }));
    }
    const smoothed = series.smooth === false || this.spec.smooth === false || this.view.smooth <= 1 || points.length < 3 ? null : trailing(points, this.view.smooth);
    if (smoothed) nodes.push(s("path", { class: "curve raw", d: path(points, (p) => p.y), vars }));
    nodes.push(s("path", { class: `curve dash${dash}`, d: path(smoothed ?? points, (p) => p.y), vars }));
    if (points.length === 1) nodes.push(s("circle", { class: "mark", cx: this.toX(points[0].x), cy: this.toY(points[0].y), r: 3, vars }));
    return nodes;
  }

  /** Rows of the first run with the tops of its areas, one above the other. */
  stacked() {
    const byX = new Map();
    this.curves.forEach((curve, i) => {
      for (const point of trailing(curve.points, this.view.smooth)) {
        if (!byX.has(point.x)) byX.set(point.x, { x: point.x, t: point.t, values: new Array(this.curves.length).fill(0) });
        byX.get(point.x).values[i] = point.y;
      }
    });
    return [...byX.values()].sort((a, b) => a.x - b.x).map((row) => {
      let sum = 0;
      return { ...row, tops: row.values.map((value) => (sum += value)) };
    });
  }

  stackNodes() {
    const rows = this.stacked();
    return this.curves.map((curve, i) => {
      const line = (list, top) => list.map((row, j) => `${j ? "L" : "M"}${this.toX(row.x).toFixed(1)} ${this.toY(top(row)).toFixed(1)}`).join("");
      const upper = line(rows, (row) => row.tops[i]);
      const lower = line([...rows].reverse(), (row) => (i ? row.tops[i - 1] : 0));
      return s("path", { class: "area", d: `${upper}L${lower.slice(1)}Z`, vars: { "--c": curve.colour } });
    });
  }

  point(offset, clientX, clientY) {
    if (!this.curves || this.plot.hidden) return;
    const wanted = this.from + ((offset - this.toX(this.from)) / (this.toX(this.to) - this.toX(this.from))) * (this.to - this.from);
    this.tell(wanted, clientX, clientY);
  }

  /** Shows the values nearest to some x, and the crosshair there in every chart. */
  tell(wanted, clientX, clientY) {
    const near = this.curves.map((curve) => ({ curve, point: nearest(curve.points, wanted) })).filter(({ point }) => point);
    if (!near.length) return;
    const closest = near.reduce((a, b) => (Math.abs(b.point.x - wanted) < Math.abs(a.point.x - wanted) ? b : a));
    this.at = closest.point.x;
    const reach = (this.to - this.from) * 0.03;
    const format = FORMATS[this.spec.format ?? "number"];
    const rows = near.filter(({ point }) => Math.abs(point.x - this.at) <= reach).slice(0, 12).map(({ curve, point }) => {
      const names = [this.store.visible.length > 1 ? curve.run.label : "", curve.series.label].filter(Boolean).join(" · ");
      return h("div", { class: "row" }, h("span", { class: "dot", vars: { "--c": curve.colour } }), h("span", {}, names), h("b", {}, format(point.y)));
    });
    const where = this.inTime ? clock(60 * this.at) : `${this.spec.xName ?? "step"} ${whole(this.at)}`;
    const when = this.inTime ? "" : ` · ${clock(closest.point.t)}`;
    showTip(clientX, clientY, h("div", { class: "x" }, `${where}${when}`), ...rows);
    for (const chart of this.group) chart.moveCross(this.at);
  }

  moveCross(x) {
    if (!this.cross || !this.toX) return;
    const inside = x >= this.from && x <= this.to;
    this.cross.setAttribute("visibility", inside ? "visible" : "hidden");
    if (inside) for (const side of ["x1", "x2"]) this.cross.setAttribute(side, this.toX(x).toFixed(1));
  }

  leave() {
    this.at = undefined;
    hideTip();
    for (const chart of this.group) chart.cross?.setAttribute("visibility", "hidden");
  }

  key(event) {
    if (event.key === "Escape") this.leave();
    const by = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    const points = this.curves?.[0]?.points;
    if (by === undefined || !points?.length) return;
    event.preventDefault();
    const now = this.at === undefined ? points.length : points.indexOf(nearest(points, this.at));
    const next = points[Math.min(points.length - 1, Math.max(0, now + by))];
    const box = this.plot.getBoundingClientRect();
    this.tell(next.x, box.left + this.toX(next.x), box.top + 20);
    this.plot.setAttribute("aria-label", tip.textContent);
  }
}

function domain(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}

/** Points within an interval. */
const within = (points, from, to) => points.filter((point) => point.x >= from && point.x <= to);

/** The mean of each point and those before it. */
function trailing(points, size) {
  let sum = 0;
  return points.map((point, i) => {
    sum += point.y - (i >= size ? points[i - size].y : 0);
    return { ...point, y: sum / Math.min(i + 1, size) };
  });
}

/** The point next to x, of points by x. */
function nearest(points, x) {
  let [low, high] = [0, points.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle].x < x) low = middle + 1;
    else high = middle;
  }
  const before = points[low - 1];
  return before && Math.abs(before.x - x) <= Math.abs(points[low]?.x - x) ? before : points[low];
}
