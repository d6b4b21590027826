// Look inside: the map of attention, what the answer might have said instead, the model's facts and its report.

import { api } from "./api.js";
import { short } from "./contract.js";
import { fill, h } from "./dom.js";
import { documentOf, emit, model, on, state, talkOf } from "./state.js";
import { explain, whole } from "./talk.js";
import { factName, number, percent, t } from "./words.js";
import { scrollMap } from "./scrollmap.js";
import { reportSection } from "./report.js";
import { whyNode } from "./why.js";

const TOP = 8; // passages in the list below the map
const SHOWN = 160; // characters of each
const ASKED = 400; // characters of the question

export function lookView(main) {
  const turn = state.look;
  const ends = [];
  const map = h("section", { "aria-labelledby": "map-title" });
  const words = h("section", { "aria-labelledby": "words-title" });
  fill(main, h("div", { class: "sheet look" },
    h("div", { class: "title" }, h("h1", {}, t("look.title")), h("p", { class: "subtitle" }, t("look.subtitle"))),
    turn ? [h("p", { class: "asked" }, short(turn.question, ASKED)), map, words] : h("p", {}, t("look.empty")), facts(ends), model()?.state === "ready" && reportSection(model(), ends)));
  if (turn) {
    let shown = { end: () => {} };
    let known = null;
    const paint = () => {
      shown.end();
      shown = mapSection(map, turn);
      const steps = stepsOf(turn);
      if (steps.length !== known) wordsSection(words, steps); // otherwise the token that was chosen stays so
      known = steps.length;
    };
    paint();
    ends.push(on("turn", (one) => { if (one === turn) paint(); }), () => shown.end());
  }
  const asked = JSON.stringify(model());
  ends.push(on("models", () => { if (JSON.stringify(model()) !== asked) emit("show"); }));
  return () => ends.forEach((end) => end());
}

function mapSection(section, turn) {
  const head = h("h2", { id: "map-title" }, t("look.map"));
  if (turn.why?.state === "done" && turn.why.marks.length) {
    const map = scrollMap(turn);
    const best = [...turn.why.marks].sort((a, b) => b.attention - a.attention).slice(0, TOP);
    fill(section, head, h("p", { class: "lead" }, t("look.mapText")), map.node, whyNode(turn),
      h("details", {}, h("summary", {}, t("look.top")), h("ol", { class: "best" }, best.map((one) =>
        h("li", {}, h("span", { class: "right" }, percent(one.attention, 1)), " ", short(one.text, SHOWN))))));
    return map;
  }
  const able = whole(turn) && turn.answer && documentOf(turn.document) && turn.why?.state !== "working";
  fill(section, head, whyNode(turn) ?? h("p", { class: "note" }, t("look.noMap")),
    able && h("p", {}, h("button", { class: "quiet", type: "button", on: { click: () => explain(talkOf(turn.document), turn) } }, t("ask.why"))));
  return { end: () => {} };
}

/** The tokens of the answer: those that came with it, or those of its explanation. */
function stepsOf(turn) {
  if (turn.scored.length) return turn.scored.map((one) => ({ text: one.token, probability: Math.exp(one.logprob), others: one.top_logprobs.filter((other) => other.token !== one.token).map((other) => [other.token, Math.exp(other.logprob)]) }));
  return turn.why?.steps ?? [];
}

/** How unsure a choice was, in five steps. */
const doubt = (probability) => String(Math.min(4, Math.floor((1 - probability) * 5)));

function wordsSection(section, steps) {
  const head = h("h2", { id: "words-title" }, t("look.words"));
  if (!steps.length) return fill(section, head, h("p", { class: "note" }, t("look.noWords")));
  const instead = h("div", { class: "instead", "aria-live": "polite" });
  const tokens = steps.map((step, at) => h("span", { role: "option", id: `token-${at}`, class: "token", "data-doubt": doubt(step.probability), "aria-selected": "false", "aria-label": step.text.trim() ? null : JSON.stringify(step.text) }, step.text));
  const list = h("div", { class: "tokens", role: "listbox", tabindex: "0", "aria-label": t("look.wordsLabel") }, tokens);
  let chosen = -1;
  const choose = (at) => {
    if (at < 0 || at >= steps.length) return;
    tokens[chosen]?.setAttribute("aria-selected", "false");
    chosen = at;
    tokens[at].setAttribute("aria-selected", "true");
    list.setAttribute("aria-activedescendant", tokens[at].id);
    tokens[at].scrollIntoView({ block: "nearest" });
    fill(instead, choices(steps[at]));
  };
  list.addEventListener("click", (event) => choose(tokens.indexOf(event.target.closest(".token"))));
  list.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    choose(chosen + by);
  });
  fill(section, head, h("p", { class: "lead" }, t("look.wordsText")), list, instead);
  const unsure = steps.reduce((best, step, at) => (step.probability < steps[best].probability ? at : best), 0);
  choose(unsure);
  return undefined;
}

/** A token with its likeliest rivals, as bars. */
function choices(step) {
  const known = [[step.text, step.probability], ...step.others];
  const rest = Math.max(0, 1 - known.reduce((sum, [, share]) => sum + share, 0));
  const row = ([text, share], at) => {
    const bar = h("i", {});
    bar.style.width = `${share * 100}%`;
    return h("div", { class: at < known.length && text === step.text ? "taken" : null }, h("dt", {}, at < known.length ? h("code", {}, JSON.stringify(text).slice(1, -1)) : text), h("dd", {}, bar, h("span", {}, percent(share, share < 0.1 ? 1 : 0))));
  };
  return [h("h3", {}, t("look.instead")), h("dl", { class: "bars" }, [...known.sort((a, b) => b[1] - a[1]), [t("look.others"), rest]].map(row))];
}

/** What the model's files say of it: the numbers that people ask for first, and the rest below. */
function facts(ends) {
  const served = model();
  if (!served) return null;
  const title = h("h2", { id: "facts-title" }, t("look.facts"));
  if (served.state !== "ready") return h("section", { "aria-labelledby": "facts-title" }, title, h("p", { class: "note" }, t(served.state === "failed" ? "model.failed" : "model.loading", { name: served.id })));
  const big = [[number(served.context), t("fact.context")], [t(served.chat ? "yes" : "no"), t("fact.chat")], [t(served.infill ? "yes" : "no"), t("fact.infill")]];
  const list = h("dl", { class: "listed" });
  const stop = new AbortController();
  ends.push(() => stop.abort());
  api.model(served.id, stop.signal).then(({ facts: found }) => fill(list, Object.entries(found ?? {}).flatMap(([name, value]) => [h("dt", {}, factName(name)), h("dd", {}, value)])), (error) => {
    if (error.name !== "AbortError") fill(list, h("dd", { class: "fault" }, error.message || t("unreachable")));
  });
  return h("section", { "aria-labelledby": "facts-title" }, title, h("p", { class: "lead" }, served.id),
    h("dl", { class: "facts" }, big.map(([value, words]) => h("div", {}, h("dt", {}, words), h("dd", {}, value)))), list);
}
