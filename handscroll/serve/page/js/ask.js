// Ask: a conversation about documents (or about none), with their texts beside it.

import { composes, field, fill, h, say } from "./dom.js";
import { readingOf } from "./following.js";
import { gauge } from "./gauge.js";
import { drop } from "./kept.js";
import { originals } from "./original.js";
import { chosen, several } from "./choose.js";
import { documentsOf, model, on, state, talkOf } from "./state.js";
import { asMarkdown, busy, question, sourcesOf, written } from "./talk.js";
import { turnNode } from "./turns.js";
import { obstacle, waitingNode } from "./waiting.js";
import { number, t } from "./words.js";

const NEAR = 80; // pixels from the end within which the conversation follows what is written

const SEVERAL = "several"; // the choice that opens the list of documents

export function askView(main, key) {
  const entries = documentsOf(key);
  const talk = talkOf(entries.map((one) => one.id).join("+"));
  if (entries.length) chosen(talk.document);
  // Before the pane hears of it: what is hidden cannot be scrolled to.
  const ends = [on("jump", (target) => { if (view.entries.some((one) => one.id === target.document)) turnTo(view, "text"); })];
  const scroll = h("div", { class: "turns", tabindex: "0", role: "region", "aria-label": t("ask.conversation") });
  const pane = entries.length ? originals(entries) : null;
  const grid = h("div", { class: entries.length ? "asking with-text" : "asking" });
  const view = { main, entries, talk, scroll, pane, grid, parts: new Map(), follows: true };
  scroll.addEventListener("scroll", () => { view.follows = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < NEAR; });
  const composer = composing(view);
  fill(grid, h("div", { class: "talk" }, head(view), scroll, composer.node), pane && h("aside", { class: "text", "aria-label": t("ask.text") }, pane.node));
  fill(main, h("h1", { class: "unseen" }, t("ask.title")), grid);
  ends.push(on("talk", (one) => { if (one === talk) { paint(view); composer.changed(); } }), composer.end, () => pane?.end());
  ends.push(() => { for (const part of view.parts.values()) part.end(); });
  const learned = () => {
    view.entries = documentsOf(key);
    offer(view);
    paint(view);
    composer.learned();
  };
  ends.push(on("documents", learned), on("models", () => { learned(); composer.changed(); }));
  paint(view);
  const explained = talk.turns.findLast((turn) => turn.why?.state === "done" || sourcesOf(turn).some((one) => one.passages));
  if (explained) pane?.show(explained);
  scroll.scrollTop = scroll.scrollHeight;
  composer.focus();
  return () => ends.forEach((end) => end());
}

/** Which documents, which side on a narrow screen, and the settings. */
function head(view) {
  const { talk, entries } = view;
  const select = h("select", { id: "which-document", on: { change: () => choose(select, talk) } });
  view.select = select;
  offer(view);
  const side = (name) => h("button", { class: "plain side", type: "button", "aria-pressed": String(name === "conversation"), "data-side": name, on: { click: () => turnTo(view, name) } }, t(`ask.${name}`));
  return h("div", { class: "about" },
    h("div", { class: "which-document" }, h("label", { for: "which-document", class: "unseen" }, t("ask.of")), select, entries.length > 0 && h("span", { class: "sides" }, side("conversation"), side("text"))),
    settings(talk));
}

/** The documents that can be chosen; only written anew if they are others, since the list may be open. */
function offer({ select, talk, entries }) {
  const all = state.documents;
  const offered = JSON.stringify(all.map((one) => [one.id, one.name]));
  if (select.dataset.offered === offered) return;
  select.dataset.offered = offered;
  fill(select, h("option", { value: "" }, t("ask.none")), all.map((one) => h("option", { value: one.id }, one.name)),
    entries.length > 1 && h("option", { value: talk.document }, t("choose.these", { count: entries.length, names: entries.map((one) => one.name).join(", ") })),
    all.length > 1 && h("option", { value: SEVERAL }, t("choose.several")));
  select.value = talk.document;
}

function choose(select, talk) {
  const { value } = select;
  select.value = talk.document;
  if (value === SEVERAL) several(talk.document ? talk.document.split("+") : []);
  else {
    chosen(value);
    location.hash = value ? `#/ask/${value}` : "#/ask";
  }
}

/** On a narrow screen: the conversation or the text. */
function turnTo(view, side) {
  view.grid.classList.toggle("text-first", side === "text");
  for (const one of view.grid.querySelectorAll(".side")) one.setAttribute("aria-pressed", String(one.dataset.side === side));
  if (side === "text") view.pane?.seen();
}

function settings(talk) {
  const numeric = (value, min, max, step, keep) => {
    const input = h("input", { type: "number", min, max, step, inputmode: "decimal" });
    input.value = value ?? "";
    input.addEventListener("change", () => keep(input.value === "" || !input.checkValidity() ? null : Number(input.value)));
    return input;
  };
  const system = h("textarea", { rows: "2", value: talk.system, on: { input: () => { talk.system = system.value; } } });
  return h("details", { class: "settings" }, h("summary", {}, t("ask.settings")), h("div", { class: "row" },
    talk.document ? h("p", { class: "note wide" }, t("ask.systemNot")) : h("div", { class: "wide" }, field(t("ask.system"), system)),
    field(t("ask.temperature"), numeric(talk.temperature, 0, 2, 0.1, (value) => { talk.temperature = value; }), t("ask.temperatureHint")),
    field(t("ask.most"), numeric(talk.most, 1, 1e6, 1, (value) => { talk.most = value; }))),
  h("p", { class: "row ends" },
    h("button", { class: "quiet", type: "button", on: { click: () => clear(talk) } }, t("ask.clear")),
    h("button", { class: "quiet", type: "button", on: { click: () => save(talk) } }, t("ask.save"))),
  h("p", { class: "note lives" }));
}

function clear(talk) {
  drop(talk);
  dispatchEvent(new HashChangeEvent("hashchange"));
}

function save(talk) {
  const name = documentsOf(talk.document).map((one) => one.name).join(", ") || "Handscroll";
  const url = URL.createObjectURL(new Blob([asMarkdown(talk, name)], { type: "text/markdown" }));
  h("a", { href: url, download: `${name.replace(/\.\w+$/, "")}.md` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

/** Show the turns; those that are there already stay as they are. */
function paint(view) {
  const { talk, scroll, parts } = view;
  fill(view.grid.querySelector(".lives"), t(talk.unkept ? "ask.unkept" : "ask.lives"));
  for (const [turn, part] of parts) if (!talk.turns.includes(turn)) { part.end(); part.node.remove(); parts.delete(turn); }
  const pinned = () => { if (view.follows) scroll.scrollTop = scroll.scrollHeight; };
  for (const turn of talk.turns) {
    if (parts.has(turn)) continue;
    const part = turnNode(talk, turn, { edit: view.edit, pinned, showText: () => { if (view.grid.isConnected) turnTo(view, "text"); } });
    parts.set(turn, part);
    scroll.append(part.node);
    scroll.scrollTop = scroll.scrollHeight;
  }
  scroll.querySelector(".empty")?.remove();
  if (!talk.turns.length) scroll.prepend(h("p", { class: "empty" }, emptyWords(view)));
}

function emptyWords({ entries, talk }) {
  const served = model();
  if (!served) return t("model.none");
  if (served.state !== "ready") return t(served.state === "failed" ? "model.failed" : "model.loading", { name: served.id });
  if (!entries.length) return served.chat ? t("ask.emptyFree", { model: served.id }) : t("ask.plainModel", { model: served.id });
  const awaited = obstacle(talk.document);
  if (awaited) return t(awaited.coming ? "ask.coming" : "ask.unread", { name: awaited.entry.name });
  if (entries.length > 1) return t("ask.emptySeveral", { count: entries.length });
  const [entry] = entries;
  const { state, tokens } = readingOf(entry, served.id);
  return t(state === "read" ? "ask.empty" : "ask.emptyLong", { name: entry.name, tokens: number(tokens), context: number(served.context) });
}

/** Where questions are written, with the gauge of the window below. */
function composing(view) {
  const { talk } = view;
  const input = h("textarea", { rows: "1", id: "question", "aria-label": t("ask.question"), "aria-describedby": "question-keys", placeholder: t("ask.placeholder"), value: talk.draft });
  const send = h("button", { class: "press", type: "submit" });
  const measured = gauge(talk, () => !obstacle(talk.document), () => talk.draft.trim());
  const waiting = waitingNode();
  const node = h("form", { class: "composer" }, waiting.node, h("div", { class: "writing" }, input, send), h("p", { class: "unseen", id: "question-keys" }, t("ask.keys")), measured.node);
  const grow = () => { input.style.height = "auto"; input.style.height = `${Math.min(input.scrollHeight + 2, 240)}px`; };
  const changed = () => {
    fill(send, t(busy(talk) ? "stop" : "ask.send"));
    send.classList.toggle("stopping", busy(talk));
    show(obstacle(talk.document));
    measured.changed();
  };
  let seen = null;
  /** What stands in the way of a question, if anything does. */
  const show = (found) => {
    seen = found;
    send.disabled = !busy(talk) && found !== null && !found.coming && !found.entry;
    waiting.paint(found);
  };
  const learned = () => {
    const before = seen;
    show(obstacle(talk.document));
    if (Boolean(before) !== Boolean(seen)) measured.changed();
  };
  input.addEventListener("input", () => { talk.draft = input.value; grow(); measured.changed(); });
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || composes(event)) return;
    event.preventDefault();
    if (!busy(talk)) node.requestSubmit();
  });
  node.addEventListener("submit", (event) => {
    event.preventDefault();
    if (busy(talk)) {
      written(talk).stop.abort();
      say(t("ask.stopped"));
      return;
    }
    const text = input.value.trim();
    if (!text || send.disabled) return;
    input.value = talk.draft = "";
    grow();
    turnTo(view, "conversation");
    if (seen) say(t("ask.later"));
    question(talk, text);
    if (seen && !seen.coming) waiting.focus();
  });
  view.edit = (text) => { input.value = talk.draft = text; grow(); input.focus(); measured.changed(); };
  changed();
  return { node, changed, learned, end: measured.end, focus: () => { grow(); if (matchMedia("(pointer: fine)").matches) input.focus({ preventScroll: true }); } };
}
