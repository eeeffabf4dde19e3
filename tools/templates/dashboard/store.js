// What the page knows of the runs, kept up to date by asking the server for what is new.

const EVERY_MS = 1000;
const HIDDEN_MS = 10000;
const FAILED_MS = 3000;

export class Store {
  constructor() {
    this.about = null;
    this.runs = [];
    this.answers = 0;
    this.heard = 0;
    this.failure = "";
    this.listeners = [];
  }

  onChange(listener) {
    this.listeners.push(listener);
  }

  async begin() {
    this.about = await this.fetched("/api/about");
    this.runs = this.about.runs.map((run, index) => ({ ...run, index, visible: true, now: null, tables: {}, life: -1 }));
  }

  /** Asks for what is new, tells the listeners, and asks again later. */
  async ask() {
    let pause = EVERY_MS;
    try {
      const have = this.runs.map((run) => ({
        life: run.life,
        tables: Object.fromEntries(Object.entries(run.tables).map(([name, table]) => [name, table.at])),
      }));
      const reply = await this.fetched(`/api/changes?have=${encodeURIComponent(JSON.stringify(have))}`);
      reply.runs.forEach((news, index) => take(this.runs[index], news));
      this.answers = reply.answers;
      this.heard = Date.now();
      this.failure = "";
      if (reply.more) pause = 50;
    } catch (error) {
      this.failure = error.message || String(error);
      pause = FAILED_MS;
    }
    for (const listener of this.listeners) listener(this);
    if (document.hidden) pause = Math.max(pause, HIDDEN_MS);
    this.timer = setTimeout(() => this.ask(), pause);
  }

  /** Asks at once, as when the page comes to the front again. */
  hurry() {
    if (!this.timer) return;
    clearTimeout(this.timer);
    this.timer = 0;
    this.ask();
  }

  async fetched(path) {
    const reply = await fetch(path, { credentials: "same-origin", cache: "no-store", redirect: "error" });
    if (reply.status === 401) {
      location.assign("/login");
      throw new Error("logged out");
    }
    if (!reply.ok) throw new Error(`the server answered ${reply.status}`);
    return reply.json();
  }

  get visible() {
    return this.runs.filter((run) => run.visible);
  }
}

/** Puts new rows into a run's tables. */
function take(run, news) {
  if (news.now.life !== run.life) run.tables = {};
  run.life = news.now.life;
  run.now = news.now;
  for (const [name, change] of Object.entries(news.curves)) {
    const table = change.anew || !run.tables[name] ? { rows: new Map() } : run.tables[name];
    table.at = change.at;
    for (const row of change.rows) {
      const made = {};
      change.columns.forEach((column, i) => (made[column] = row[i]));
      table.rows.set(Math.floor(made.x / change.width), made);
    }
    table.ordered = [...table.rows.values()].sort((a, b) => a.x - b.x);
    table.names = change.columns;
    run.tables[name] = table;
  }
}

/** Rows of a table, by x. */
export const rowsOf = (run, name) => run.tables[name]?.ordered ?? [];

/** The step that a run was at, at some seconds; null before the end of the first one and after the newest. */
export function stepAt(run, t) {
  const rows = rowsOf(run, "steps");
  let low = 0;
  let high = rows.length - 1;
  if (high < 0 || t < rows[0].t || t > rows[high].t) return null;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (rows[middle].t < t) low = middle + 1;
    else high = middle;
  }
  if (low === 0) return rows[0].x;
  const [a, b] = [rows[low - 1], rows[low]];
  return b.t > a.t ? a.x + ((b.x - a.x) * (t - a.t)) / (b.t - a.t) : b.x;
}
