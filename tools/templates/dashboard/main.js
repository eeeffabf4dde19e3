// The page: controls, and everything drawn anew when the server has news.

import { Answers } from "./answers.js";
import { Chart, colourOf } from "./chart.js";
import { h, say } from "./dom.js";
import { showHappenings, showNotes, showNow, showReplicas, showSettings } from "./now.js";
import { CURVES, FLEET } from "./panels.js";
import { Store } from "./store.js";
import { followPointer, showWaiting } from "./waiting.js";

const at = (id) => document.getElementById(id);
const view = { axis: "step", range: 1, smooth: 10 };
const store = new Store();
const charts = [];

function buildCharts() {
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) charts.find((chart) => chart.element === entry.target)?.see(entry.isIntersecting);
  }, { rootMargin: "300px" });
  const sizes = new ResizeObserver(() => redraw());
  for (const [place, specs] of [[at("charts"), CURVES], [at("fleetcharts"), FLEET]]) {
    for (const spec of specs) {
      const chart = new Chart(spec, charts);
      charts.push(chart);
      place.append(chart.element);
      watcher.observe(chart.element);
    }
    sizes.observe(place);
  }
}

let isPlanned = false;
function redraw() {
  if (isPlanned) return;
  isPlanned = true;
  requestAnimationFrame(() => {
    isPlanned = false;
    for (const chart of charts) chart.update(store, view);
  });
}

function buildControls() {
  for (const [id, read] of [["axis", String], ["range", Number], ["smooth", Number]]) {
    const control = at(id);
    const kept = remembered(id);
    if (kept !== null && [...control.options].some((option) => option.value === kept)) control.value = kept;
    view[id] = read(control.value);
    control.addEventListener("change", () => {
      view[id] = read(control.value);
      remember(id, control.value);
      redraw();
    });
  }
}

function remembered(name) {
  try { return localStorage.getItem(`weir.${name}`); } catch { return null; }
}

function remember(name, value) {
  try { localStorage.setItem(`weir.${name}`, value); } catch { /* a browser that keeps nothing */ }
}

function buildLegend() {
  const legend = at("legend");
  legend.replaceChildren(...store.runs.map((run) => h("button", {
    type: "button", class: "chip", "aria-pressed": "true", title: `show or hide ${run.label}`,
    on: { click: (event) => {
      run.visible = !run.visible;
      event.currentTarget.setAttribute("aria-pressed", String(run.visible));
      refresh();
    } },
  }, h("span", { class: "dot", vars: { "--c": colourOf(run) } }), h("span", {}, run.label))));
}

function showStatus() {
  const place = at("status");
  const now = store.runs.map((run) => run.now).filter(Boolean);
  const over = now.length && now.every((one) => one.over);
  const failed = Boolean(store.failure);
  const quiet = now.every((one) => one.over || one.silent > 60 || one.began === null);
  place.className = `status ${failed ? "lost" : quiet ? "" : "live"}`;
  const words = failed ? `No answer from the server; trying again (${store.failure})` : !now.length ? "Reading the run ..." : over ? "Finished" : quiet ? "Waiting for events" : "Live";
  say(place.lastElementChild, words);
}

function refresh() {
  showStatus();
  showNotes(at("notes"), store);
  showNow(at("now"), store);
  showWaiting(at("waits"), store);
  showReplicas(at("replicas"), store);
  showHappenings(at("happenings"), store);
  answers.update();
  redraw();
  const first = store.runs.length === 1 ? store.runs[0] : null;
  const step = first?.now?.step;
  const title = first ? `${first.label}${typeof step === "number" ? ` · step ${step}` : ""} · Weir` : `${store.runs.length} runs · Weir`;
  if (document.title !== title) document.title = title;
}

let answers;
async function begin() {
  buildControls();
  buildCharts();
  followPointer(at("waits"));
  for (;;) {
    try {
      await store.begin();
      break;
    } catch (error) {
      store.failure = error.message;
      showStatus();
      await new Promise((resolve) => setTimeout(resolve, 3000));
    }
  }
  at("logout").hidden = !store.about.locked;
  buildLegend();
  showSettings(at("differences"), store);
  answers = new Answers(store);
  store.onChange(refresh);
  await store.ask();
}

document.addEventListener("visibilitychange", () => { if (!document.hidden) store.hurry(); });
begin();
