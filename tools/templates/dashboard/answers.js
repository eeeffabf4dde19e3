// Answers side by side with their rewards: found by text, reward, step and kind; beside others to the same prompt.

import { colourOf } from "./chart.js";
import { h, say, show } from "./dom.js";
import { fixed, number, whole } from "./words.js";

const TYPING_MS = 250;
/** Characters from which answers are read in wide columns. */
const LONG = 100;

export class Answers {
  constructor(store) {
    this.store = store;
    this.page = 0;
    this.serial = -1;
    this.asked = 0;
    this.form = document.getElementById("filter");
    this.newer = document.getElementById("newer");
    this.form.addEventListener("input", () => this.soon());
    this.form.addEventListener("submit", (event) => { event.preventDefault(); this.load(0); });
    this.form.addEventListener("reset", () => setTimeout(() => this.load(0)));
    this.newer.addEventListener("click", () => this.load(0));
  }

  soon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.load(0), TYPING_MS);
  }

  /** Called when the page heard from the server: new answers wait for a press, so that nothing moves under a reader. */
  update() {
    const runs = this.store.visible.map((run) => run.index).join(",");
    if (this.serial < 0 || (this.isEmpty && this.store.answers > this.serial) || runs !== this.runs) return this.load(0);
    const fresh = this.store.answers - this.serial;
    this.newer.hidden = fresh <= 0;
    say(this.newer, `Show ${whole(fresh)} newer ${fresh === 1 ? "answer" : "answers"}`);
  }

  async load(page) {
    const query = new URLSearchParams();
    for (const [name, value] of new FormData(this.form)) if (value !== "") query.set(name, value);
    this.runs = this.store.visible.map((run) => run.index).join(",");
    query.set("runs", this.runs);
    query.set("page", page);
    const turn = ++this.asked;
    this.serial = Math.max(this.serial, 0);
    let found;
    try {
      found = await this.store.fetched(`/api/answers?${query}`);
    } catch (error) {
      say(document.getElementById("found"), `The answers can't be read: ${error.message}`);
      return;
    }
    if (turn !== this.asked) return;
    this.page = found.page;
    this.serial = found.serial;
    this.isEmpty = !found.kept;
    this.newer.hidden = true;
    this.show(found);
  }

  show(found) {
    const words = !found.kept
      ? "No answers yet: held-out ones come with each evaluation, those of training from the queue while the run goes on."
      : found.answers ? `${whole(found.answers)} answers to ${whole(found.prompts)} prompts` : "No answer is as asked for.";
    say(document.getElementById("found"), words);
    show(document.getElementById("prompts"), found.shown.map((prompt) => this.prompt(prompt)));
    const pages = document.getElementById("pages");
    show(pages);
    if (found.pages > 1) {
      const to = (page, name) => h("button", { type: "button", disabled: page < 0 || page >= found.pages, on: { click: () => this.load(page).then(() => document.getElementById("answers").scrollIntoView()) } }, name);
      pages.append(to(found.page - 1, "Previous"), h("span", {}, `${found.page + 1} of ${found.pages}`), to(found.page + 1, "Next"));
    }
  }

  prompt(prompt) {
    const expected = prompt.expected ? h("span", { class: "soft" }, `expected ${prompt.expected}`) : null;
    const isLong = prompt.answers.some((answer) => answer.answer.length > LONG);
    const more = prompt.more ? h("span", { class: "soft" }, `${whole(prompt.more)} older answers are left out`) : null;
    return h("article", { class: prompt.answers.length > 2 ? "card prompt broad" : "card prompt" },
      h("div", { class: "ask" }, text(prompt.prompt), expected, more),
      h("div", { class: isLong ? "beside long" : "beside", tabindex: "0", role: "group", "aria-label": "answers to this prompt" }, prompt.answers.map((answer) => this.answer(answer))));
  }

  answer(answer) {
    const run = this.store.runs[answer.run];
    const several = this.store.runs.length > 1;
    const [oldest, newest] = answer.versions;
    const version = oldest === undefined ? "" : oldest === newest ? `v${oldest}` : `v${oldest}–${newest}`;
    const facts = [answer.when, version, answer.tokens ? `${whole(answer.tokens)} tokens` : "", answer.ended === "length" ? "cut" : ""].filter(Boolean).join(" · ");
    const parts = Object.entries(answer.parts);
    return h("div", { class: "answer" },
      h("div", { class: "head" }, several ? h("span", { class: "dot", title: run.label, vars: { "--c": colourOf(run) } }) : null, badge(answer), h("span", {}, several ? `${run.label} · ${facts}` : facts)),
      text(answer.answer),
      parts.length > 1 ? h("div", { class: "parts" }, parts.map(([name, value]) => `${name} ${number(value)}`).join(" · ")) : null);
  }
}

function badge(answer) {
  if (answer.reward === null) return h("span", { class: "badge warn", title: answer.verdict }, `no verdict${answer.verdict ? `: ${answer.verdict.slice(0, 40)}` : ""}`);
  return h("span", { class: `badge ${answer.reward >= 0.999 ? "good" : answer.reward <= 0 ? "bad" : ""}` }, fixed(answer.reward, 2));
}

const text = (written) => (written.trim() ? h("pre", { dir: "auto" }, written) : h("pre", { class: "empty" }, written ? "only blanks" : "empty"));
