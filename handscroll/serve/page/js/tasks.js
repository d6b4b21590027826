// Tasks: summarise, translate, classify, complete code. Forms over the same endpoints as the conversation.

import { ApiError, api } from "./api.js";
import { contractNode, short } from "./contract.js";
import { copyButton } from "./copy.js";
import { field, fill, h, say } from "./dom.js";
import { readingOf } from "./following.js";
import { LANGUAGES, LENGTHS, classify, summarise, translate } from "./prompts.js";
import { model, on, state } from "./state.js";
import { LIKELIEST, begin, run } from "./talk.js";
import { answerNode, ended } from "./turns.js";
import { lang, percent, t } from "./words.js";

const TASKS = ["summarise", "translate", "classify", "complete"];
const CODE = { before: "def fibonacci(n):\n    \"\"\"The first n Fibonacci numbers.\"\"\"\n", after: "    return numbers\n" };
const FEW = 256; // tokens that a translation may always have
const SHOWN = 120; // characters of a text that got a label
const TWICE = 2; // times as many tokens as its text

/** What stands in a form, and what came of it; kept while the page is open. */
function draftOf(task) {
  if (!state.drafts.has(task)) state.drafts.set(task, { values: { document: "", text: "", length: "paragraph", language: lang(), focus: "", labels: t("tasks.labelsDefault"), lines: false, most: 256, ...CODE }, turn: null, rows: null, error: "", stop: null, paint: () => {} });
  return state.drafts.get(task);
}

export function tasksView(main, id) {
  let current = TASKS.includes(id) ? id : TASKS[0];
  let end = () => {};
  const panel = h("div", { role: "tabpanel", id: "task", tabindex: "-1" });
  const tabs = TASKS.map((task) => h("button", { role: "tab", type: "button", id: `tab-${task}`, "aria-controls": "task", on: { click: () => choose(task) } }, t(`tasks.${task}`)));
  const list = h("div", { role: "tablist", class: "tabs", "aria-label": t("tasks") }, tabs);
  list.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    choose(TASKS[(TASKS.indexOf(current) + by + TASKS.length) % TASKS.length]);
    tabs[TASKS.indexOf(current)].focus();
  });
  function choose(task) {
    current = task;
    tabs.forEach((tab, at) => {
      tab.setAttribute("aria-selected", String(TASKS[at] === task));
      tab.tabIndex = TASKS[at] === task ? 0 : -1;
    });
    panel.setAttribute("aria-labelledby", `tab-${task}`);
    history.replaceState(null, "", `#/tasks/${task}`);
    end();
    end = form(panel, task);
  }
  fill(main, h("div", { class: "sheet" }, h("div", { class: "title" }, h("h1", {}, t("tasks.title")), h("p", { class: "subtitle" }, t("tasks.subtitle"))), list, panel));
  choose(current);
  return () => end();
}

function form(panel, task) {
  const draft = draftOf(task);
  const result = h("section", { class: "result", "aria-label": t("tasks.result") });
  const button = h("button", { class: "press", type: "submit" });
  const ends = [];
  let shown = { end: () => {} };
  const paint = () => {
    fill(button, t(busy(draft) ? "stop" : "tasks.go"));
    button.disabled = model()?.state !== "ready";
    shown.end();
    shown = resultNode(task, draft);
    fill(result, shown.node);
  };
  const node = h("form", { class: "task" }, fields(task, draft.values, ends), h("p", { class: "ends" }, button));
  node.addEventListener("submit", (event) => {
    event.preventDefault();
    if (busy(draft)) { draft.stop.abort(); draft.turn?.stop.abort(); return; }
    start(task, draft).catch((error) => {
      if (error.name === "AbortError") return;
      if (!(error instanceof ApiError)) throw error;
      failed(draft, error.message || t("unreachable"));
    });
  });
  fill(panel, node, result);
  draft.paint = paint; // also for work that began before the form was left and entered again
  paint();
  ends.push(on("turn", (turn) => { if (turn === draft.turn && turn.state !== "writing") paint(); }),
    on("models", () => { button.disabled = model()?.state !== "ready"; }));
  return () => { ends.forEach((end) => end()); shown.end(); draft.paint = () => {}; };
}

const busy = (draft) => draft.turn?.state === "writing" || draft.working;

function bound(values, name, control) {
  const checked = control.type === "checkbox";
  if (checked) control.checked = values[name];
  else control.value = values[name];
  control.addEventListener(checked ? "change" : "input", () => { values[name] = checked ? control.checked : control.value; });
  return control;
}

function choice(values, name, options) {
  return bound(values, name, h("select", {}, options.map(([value, words]) => h("option", { value }, words))));
}

function fields(task, values, ends) {
  const languages = LANGUAGES.map(([code, english, chinese]) => [code, lang() === "zh" ? chinese : english]);
  if (task === "summarise") return [source(values, ends), h("div", { class: "row" },
    field(t("tasks.length"), choice(values, "length", LENGTHS.map((one) => [one, t(`tasks.${one}`)]))),
    field(t("tasks.language"), choice(values, "language", languages)),
    field(t("tasks.focus"), bound(values, "focus", h("input", { type: "text" }))))];
  if (task === "translate") return [source(values, ends), field(t("tasks.into"), choice(values, "language", languages))];
  if (task === "classify") {
    const lines = bound(values, "lines", h("input", { type: "checkbox" }));
    return [source(values, ends, h("label", { class: "check" }, lines, " ", t("tasks.lines"))),
      field(t("tasks.labels"), bound(values, "labels", h("textarea", { rows: "4" })), t("tasks.labelsHint"))];
  }
  return [field(t("tasks.before"), bound(values, "before", h("textarea", { class: "code", rows: "6", spellcheck: "false" }))),
    field(t("tasks.after"), bound(values, "after", h("textarea", { class: "code", rows: "4", spellcheck: "false" }))),
    field(t("tasks.most"), bound(values, "most", h("input", { type: "number", min: "1", step: "1" })))];
}

/** A document of the library, or a text that is written here. */
function source(values, ends, more = null) {
  const own = h("div", {}, field(t("tasks.text"), bound(values, "text", h("textarea", { rows: "7" }))), more);
  const place = h("div");
  let shown = "";
  const turn = () => { own.hidden = values.document !== ""; };
  const paint = () => {
    const found = offered();
    if (JSON.stringify(found) === shown) return; // the list may be open
    shown = JSON.stringify(found);
    if (!found.known.some(([id]) => id === values.document)) values.document = "";
    const select = choice(values, "document", [["", t("tasks.own")], ...found.known]);
    select.addEventListener("change", turn);
    fill(place, found.known.length ? field(t("tasks.of"), select, found.unlisted) : found.unlisted && h("p", { class: "note" }, found.unlisted));
    turn();
  };
  paint();
  ends.push(on("documents", paint), on("models", paint));
  return [place, own];
}

/** The documents that the chosen model has read, and what is said of the others. */
function offered() {
  const name = model()?.id ?? "";
  const known = state.documents.filter((one) => readingOf(one, name)?.state === "read").map((one) => [one.id, one.name]);
  const count = state.documents.length - known.length;
  return { known, unlisted: name && count ? t("tasks.unlisted", { count, model: name }) : "" };
}

function failed(draft, words) {
  draft.error = words;
  say(words, true);
  draft.paint();
}

/** Work of several requests, which the form's button stops by `draft.stop`. */
async function during(draft, work) {
  draft.working = true;
  draft.paint();
  try {
    return await work();
  } finally {
    draft.working = false;
    draft.paint();
  }
}

async function start(task, draft) {
  const { values } = draft;
  Object.assign(draft, { turn: null, rows: null, error: "", stop: new AbortController() });
  if (task !== "complete" && !values.document && !values.text.trim()) return failed(draft, t("tasks.needText"));
  if (task === "classify") return sorted(draft);
  if (task === "complete") {
    const body = { model: model().id, prompt: values.before, max_tokens: Math.max(1, Number(values.most) || FEW), temperature: 0 };
    if (values.after.trim()) body.suffix = values.after;
    return write(draft, body, api.complete);
  }
  const instruction = (task === "summarise" ? summarise : translate)(values, !values.document);
  const { body, stream } = asked(values.document, values.text, instruction);
  if (task === "translate" && body.messages) {
    const { count, left } = await during(draft, () => api.count(countable(body), draft.stop.signal));
    body.max_tokens = Math.max(1, Math.min(left, Math.max(FEW, TWICE * count)));
  }
  return write(draft, body, stream);
}

const countable = ({ model: name, messages, document }) => ({ model: name, messages, ...(document ? { document } : {}) });

/** The request for an instruction after a document or before a text. */
function asked(document, text, instruction) {
  const served = model();
  const known = { model: served.id, temperature: 0 };
  if (document) return { body: { ...known, document, messages: [{ role: "user", content: instruction }] }, stream: api.chat };
  if (served.chat) return { body: { ...known, messages: [{ role: "user", content: `${instruction}\n\n${text.trim()}` }] }, stream: api.chat };
  return { body: { ...known, prompt: `${instruction}\n\n${text.trim()}\n\n`, max_tokens: FEW }, stream: api.complete };
}

async function write(draft, body, stream) {
  draft.turn = begin(stream === api.chat ? { ...body, logprobs: true, top_logprobs: LIKELIEST } : body);
  draft.turn.question = body.messages?.at(-1).content ?? body.prompt;
  draft.paint();
  await run(draft.turn, stream);
}

/** Each text gets one of the labels; the answer can be nothing else, because the server only lets it be one of them. */
async function sorted(draft) {
  const { values } = draft;
  const labels = [...new Set(values.labels.split("\n").map((one) => one.trim()).filter(Boolean))];
  if (labels.length < 2) return failed(draft, t("tasks.needLabels"));
  const texts = values.document ? [null] : values.lines ? values.text.split("\n").map((one) => one.trim()).filter(Boolean) : [values.text.trim()];
  draft.rows = [];
  return during(draft, async () => {
    for (const text of texts) {
      const { body, stream } = asked(values.document, text ?? "", classify(labels, lang() === "zh", !values.document));
      Object.assign(body, { response_format: { type: "choice", choices: labels } }, stream === api.chat ? { logprobs: true } : {});
      draft.turn = begin(body);
      await run(draft.turn, stream);
      if (draft.turn.state === "stopped") return;
      draft.rows.push({ text: text ?? state.documents.find((one) => one.id === values.document)?.name, turn: draft.turn });
      draft.paint();
      if (draft.turn.state === "failed" || draft.stop.signal.aborted) return;
    }
  });
}

function resultNode(task, draft) {
  const nothing = { node: null, end: () => {} };
  if (draft.error) return { ...nothing, node: h("p", { class: "fault" }, draft.error) };
  if (task === "classify") return { ...nothing, node: draft.rows && labelled(draft) };
  if (!draft.turn) return nothing;
  if (task === "complete") return filled(draft);
  const answer = answerNode(draft.turn);
  return { node: [h("h2", {}, t("tasks.result")), answer.node, draft.turn.state !== "writing" && [contractNode(draft.turn), after(draft.turn)]], end: answer.end };
}

function after(turn) {
  if (!turn.answer) return null;
  return h("p", { class: "actions" },
    copyButton(turn.answer),
    turn.scored.length > 0 && h("button", { class: "plain", type: "button", on: { click: () => { state.look = turn; location.hash = "#/look"; } } }, t("ask.inside")));
}

function labelled(draft) {
  const last = draft.rows.at(-1)?.turn;
  return [h("h2", {}, t("tasks.result")), h("table", { class: "labels" },
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, t("tasks.text")), h("th", { scope: "col" }, t("tasks.label")), h("th", { scope: "col", class: "right" }, t("tasks.share")))),
    h("tbody", {}, draft.rows.map(({ text, turn }) => h("tr", {}, h("td", { class: "short" }, short(text, SHOWN)),
      h("td", {}, turn.error ? h("span", { class: "fault" }, turn.error) : h("strong", {}, turn.answer)), h("td", { class: "right" }, sureness(turn)))))),
  last && contractNode(last)];
}

function sureness(turn) {
  return turn.scored.length ? percent(Math.exp(turn.scored.reduce((sum, one) => sum + one.logprob, 0))) : "–";
}

/** The gap filled: what was there before and after, and between them what the model wrote. */
function filled(draft) {
  const { turn } = draft;
  const suffix = turn.body.suffix ?? "";
  const made = h("ins", {}, turn.answer);
  const node = h("figure", { class: "code" }, h("pre", { tabindex: "0" }, h("code", {}, h("span", { class: "given" }, turn.body.prompt), made, suffix && h("span", { class: "given" }, suffix))));
  const off = on("turn", (one) => { if (one === turn) fill(made, turn.answer); });
  return { node: [h("h2", {}, t("tasks.result")), node, ended(turn), turn.state !== "writing" && [contractNode(turn), after(turn)]], end: off };
}
