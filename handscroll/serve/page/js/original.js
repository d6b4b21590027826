// The text of a document beside the conversation, with the passages that carry an answer marked. It is cut into leaves that
// the browser lays out only when they come near, so a text of megabytes scrolls like a short one.

import { ApiError, api } from "./api.js";
import { fill, h } from "./dom.js";
import { on } from "./state.js";
import { t } from "./words.js";
import { effectWords, strength } from "./why.js";

const LEAF = 4000; // characters of a leaf, about
const HIGH = /[\ud800-\udbff]/;

/** Places that the server counts in characters, as places in a JavaScript string, where some characters are two units. */
export function units(text, places) {
  if (!HIGH.test(text)) return places;
  const order = places.map((_, at) => at).sort((a, b) => places[a] - places[b]);
  const found = new Array(places.length);
  let [unit, point] = [0, 0];
  for (const at of order) {
    while (point < places[at] && unit < text.length) {
      unit += text.codePointAt(unit) > 0xffff ? 2 : 1;
      point++;
    }
    found[at] = unit;
  }
  return found;
}

/** Where leaves begin: at pages and chapters, and otherwise at the paragraph after about `LEAF` characters. */
function leavesOf(text, starts) {
  const cuts = [0];
  let next = 0;
  while (cuts.at(-1) < text.length) {
    const from = cuts.at(-1);
    while (next < starts.length && starts[next] <= from) next++;
    const forced = starts[next] ?? text.length;
    const newline = text.indexOf("\n", from + LEAF);
    const natural = newline < 0 || newline > from + 2 * LEAF ? Math.min(from + 2 * LEAF, text.length) : newline + 1;
    const cut = Math.min(forced, natural, text.length);
    cuts.push(HIGH.test(text[cut - 1]) ? cut + 1 : cut); // never within a character
  }
  return cuts;
}

/** The pane of a document: `show` marks the passages of a turn. */
export function original(entry) {
  const body = h("div", { class: "leaves", tabindex: "0", role: "region", "aria-label": t("ask.textOf", { name: entry.name }) }, h("p", { class: "note" }, t("text.loading")));
  const head = h("div", { class: "marks" });
  const node = h("div", { class: "original" }, head, body);
  const pane = { text: "", cuts: [], leaves: [], names: new Map(), marks: [], at: -1, head, body, wanted: null };
  paintHead(pane, null);
  const stop = new AbortController();
  load(pane, entry, stop.signal);
  const ends = [on("why", (turn) => { if (turn.document === entry.id) show(pane, turn); }),
    on("jump", ({ document, number: which }) => { if (document === entry.id) jump(pane, which); })];
  return { node, show: (turn) => show(pane, turn), end: () => { stop.abort(); ends.forEach((end) => end()); } };
}

async function load(pane, entry, signal) {
  try {
    const found = await api.text(entry.id, signal);
    pane.text = found.text;
    const starts = units(pane.text, found.places.map((one) => one.start));
    starts.forEach((start, at) => pane.names.set(start, found.places[at].name));
    pane.cuts = leavesOf(pane.text, [...new Set(starts)].sort((a, b) => a - b));
    pane.leaves = pane.cuts.slice(0, -1).map((_, at) => paintLeaf(pane, at, h("div", { class: "leaf" })));
    fill(pane.body, pane.leaves);
    if (pane.wanted) show(pane, pane.wanted);
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof ApiError)) throw error;
    fill(pane.body, h("p", { class: "fault" }, error.message || t("unreachable")));
  }
}

/** A leaf with the marks that lie in it. */
function paintLeaf(pane, at, leaf) {
  const [from, to] = [pane.cuts[at], pane.cuts[at + 1]];
  const parts = [];
  const name = pane.names.get(from);
  if (name) parts.push(h("span", { class: "page" }, name));
  let here = from;
  pane.marks.forEach((mark, which) => {
    const [start, end] = [Math.max(mark.from, here), Math.min(mark.to, to)];
    if (start >= end) return;
    parts.push(pane.text.slice(here, start));
    const element = h("mark", { tabindex: "-1", title: effectWords(mark.effect) }, pane.text.slice(start, end));
    element.dataset.strength = strength(mark.effect);
    element.dataset.which = String(which);
    parts.push(element);
    here = end;
  });
  parts.push(pane.text.slice(here, to));
  leaf.style.containIntrinsicSize = `auto ${Math.ceil((to - from) / 2.2)}px`;
  return fill(leaf, parts);
}

function show(pane, turn) {
  pane.wanted = turn;
  if (!pane.text) return;
  const touched = new Set(touchedBy(pane));
  const found = turn?.why?.state === "done" ? turn.why.marks.filter((one) => one.marked) : [];
  const places = units(pane.text, found.flatMap((one) => [one.start, one.end]));
  pane.marks = found.map((one, at) => ({ ...one, from: places[2 * at], to: places[2 * at + 1] })).sort((a, b) => a.from - b.from);
  pane.at = -1;
  for (const at of touchedBy(pane)) touched.add(at);
  for (const at of touched) paintLeaf(pane, at, pane.leaves[at]);
  paintHead(pane, turn);
  if (pane.marks.length) jump(pane, strongest(pane), false);
}

const touchedBy = (pane) => pane.leaves.map((_, at) => at).filter((at) => pane.marks.some((one) => one.from < pane.cuts[at + 1] && one.to > pane.cuts[at]));

const strongest = (pane) => pane.marks.reduce((best, one) => (one.effect > best.effect ? one : best)).start;

function paintHead(pane, turn) {
  const count = pane.marks.length;
  if (!turn?.why || turn.why.state !== "done") fill(pane.head, h("p", { class: "note" }, t("text.unmarked")));
  else if (!count) fill(pane.head, h("p", { class: "note" }, t("text.nothing")));
  else {
    const step = (by) => jump(pane, pane.marks[(pane.at + by + count) % count].start);
    fill(pane.head, h("p", { class: "note" }, t("text.marked", { count })), count > 1 && h("span", { class: "steps" },
      h("button", { class: "plain icon", type: "button", "aria-label": t("text.previous"), title: t("text.previous"), on: { click: () => step(-1) } }, "↑"),
      h("button", { class: "plain icon", type: "button", "aria-label": t("text.next"), title: t("text.next"), on: { click: () => step(1) } }, "↓")));
  }
}

/** Go to the mark that begins at that character of the document. */
function jump(pane, start, focus = true) {
  const which = pane.marks.findIndex((one) => one.start === start);
  if (which < 0) return;
  pane.at = which;
  const leaf = pane.leaves.find((one) => one.querySelector(`mark[data-which="${which}"]`));
  const mark = leaf.querySelector(`mark[data-which="${which}"]`);
  for (const one of pane.body.querySelectorAll("mark.here")) one.classList.remove("here");
  for (const one of pane.body.querySelectorAll(`mark[data-which="${which}"]`)) one.classList.add("here");
  // Leaves far away have only a guessed height, so the place is looked for again once they have been laid out.
  leaf.scrollIntoView({ block: "start" });
  requestAnimationFrame(() => {
    const [inner, outer] = [mark.getBoundingClientRect(), pane.body.getBoundingClientRect()];
    pane.body.scrollTop += inner.top - outer.top - outer.height / 3;
    if (focus) mark.focus({ preventScroll: true });
  });
}
