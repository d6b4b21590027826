// The text of a document beside the conversation, with the passages that carry an answer marked. It is cut into leaves that
// the browser lays out only when they come near, so a text of megabytes scrolls like a short one.

import { ApiError, api } from "./api.js";
import { fill, h } from "./dom.js";
import { readingOf } from "./following.js";
import { model, on } from "./state.js";
import { sourcesOf } from "./talk.js";
import { t } from "./words.js";
import { strength, supportWords } from "./why.js";

const LEAF = 4000; // characters of a leaf, about
const NAME = 58; // pixels that the name of a place takes, about
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

/** Where leaves begin: at the page, chapter, row or paragraph after about `LEAF` characters. */
function leavesOf(text, starts) {
  const cuts = [0];
  while (cuts.at(-1) < text.length) {
    const least = cuts.at(-1) + LEAF;
    const newline = text.slice(least, least + LEAF).indexOf("\n");
    const natural = newline < 0 ? least + LEAF : least + newline + 1;
    const cut = Math.min(starts[firstFrom(starts, least)] ?? text.length, natural, text.length);
    cuts.push(HIGH.test(text[cut - 1]) ? cut + 1 : cut); // never within a character
  }
  return cuts;
}

/** Where in an ascending list the first number is that is at least `value`. */
function firstFrom(list, value) {
  let [low, high] = [0, list.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (list[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** The panes of the documents of a conversation: one is shown, and chosen above it if there are several. */
export function originals(entries) {
  if (entries.length === 1) return original(entries[0]);
  const node = h("div", { class: "original" });
  const select = h("select", { "aria-label": t("ask.text"), on: { change: () => turnTo(select.value) } }, entries.map((one) => h("option", { value: one.id }, one.name)));
  let pane = null;
  let last = null;
  const turnTo = (id) => {
    pane?.end();
    select.value = id;
    pane = original(entries.find((one) => one.id === id), true);
    if (last) pane.show(last);
    fill(node, h("p", { class: "texts" }, select), pane.node);
  };
  turnTo(entries[0].id);
  const ends = [on("why", (turn) => { last = turn; }),
    on("jump", (target) => {
      if (target.document === select.value || !entries.some((one) => one.id === target.document)) return;
      turnTo(target.document);
      pane.go(target);
    })];
  return { node, show: (turn) => { last = turn; pane.show(turn); }, seen: () => pane.seen(), end: () => { pane.end(); ends.forEach((end) => end()); } };
}

/** The pane of a document: `show` marks the passages of a turn; `part` says that only passages of it may be read. */
function original(entry, part = readingOf(entry, model()?.id ?? "")?.state === "refused") {
  const body = h("div", { class: "leaves", tabindex: "0", role: "region", "aria-label": t("ask.textOf", { name: entry.name }) }, h("p", { class: "note" }, t("text.loading")));
  const head = h("div", { class: "marks" });
  const node = h("div", { class: "original" }, head, body);
  const pane = { id: entry.id, part, text: "", cuts: [], leaves: [], starts: [], names: new Map(), marks: [], at: -1, here: [], head, body, wanted: null, target: null };
  paintHead(pane, null);
  const stop = new AbortController();
  load(pane, entry, stop.signal);
  const ends = [on("why", (turn) => { if (turn.document === entry.id || sourcesOf(turn).some((one) => one.id === entry.id)) show(pane, turn); }),
    on("jump", (target) => { if (target.document === entry.id) go(pane, target); })];
  return { node, show: (turn) => show(pane, turn), go: (target) => go(pane, target), seen: () => seen(pane), end: () => { stop.abort(); ends.forEach((end) => end()); } };
}

async function load(pane, entry, signal) {
  try {
    const found = await api.text(entry.id, signal);
    pane.text = found.text;
    const starts = units(pane.text, found.places.map((one) => one.start));
    starts.forEach((start, at) => pane.names.set(start, found.places[at].name));
    pane.starts = [...pane.names.keys()].sort((a, b) => a - b);
    pane.cuts = leavesOf(pane.text, pane.starts);
    pane.leaves = pane.cuts.slice(0, -1).map((_, at) => paintLeaf(pane, at, h("div", { class: "leaf" })));
    fill(pane.body, pane.leaves);
    if (pane.wanted) show(pane, pane.wanted);
    if (pane.target) go(pane, pane.target);
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof ApiError)) throw error;
    fill(pane.body, h("p", { class: "fault" }, error.message || t("unreachable")));
  }
}

/** A leaf with the names of the places and the marks that lie in it. */
function paintLeaf(pane, at, leaf) {
  const [from, to] = [pane.cuts[at], pane.cuts[at + 1]];
  const parts = [];
  let here = from;
  let next = firstFrom(pane.starts, from);
  const write = (end, shown = (text) => text) => {
    while (here < end) {
      if (pane.starts[next] === here) parts.push(h("span", { class: here ? "page" : "page first" }, pane.names.get(pane.starts[next++])));
      const stop = Math.min(end, pane.starts[next] ?? end);
      parts.push(shown(pane.text.slice(here, stop)));
      here = stop;
    }
  };
  pane.marks.forEach((mark, which) => {
    if (mark.to <= here || mark.from >= to) return;
    write(mark.from);
    write(Math.min(mark.to, to), (text) => markNode(mark, which, text));
  });
  write(to);
  const names = firstFrom(pane.starts, to) - firstFrom(pane.starts, from);
  leaf.style.containIntrinsicSize = `auto ${Math.ceil((to - from) / 2.2) + names * NAME}px`;
  return fill(leaf, parts);
}

function markNode(mark, which, text) {
  const node = h("mark", { tabindex: "-1", title: mark.effect === null ? t("sources.shown") : supportWords(mark.effect) }, text);
  node.dataset.strength = strength(mark.effect ?? 0);
  node.dataset.which = String(which);
  return node;
}

function show(pane, turn) {
  pane.wanted = turn;
  if (!pane.text) return;
  mark(pane, marksOf(pane, turn));
  paintHead(pane, turn);
  if (pane.marks.length) jump(pane, strongest(pane), false);
}

/** The passages that an answer rests on; or those that were all that it was given of this document. */
function marksOf(pane, turn) {
  if (turn?.why?.state === "done") return turn.why.marks.filter((one) => one.marked);
  const source = turn ? sourcesOf(turn).find((one) => one.id === pane.id) : null;
  return (source?.passages ?? []).map((one) => ({ ...one, effect: null }));
}

/** Mark passages in the text, instead of those that are. */
function mark(pane, found) {
  const touched = new Set(touchedBy(pane));
  const places = units(pane.text, found.flatMap((one) => [one.start, one.end]));
  pane.marks = found.map((one, at) => ({ ...one, from: places[2 * at], to: places[2 * at + 1] })).sort((a, b) => a.from - b.from);
  pane.at = -1;
  for (const at of touchedBy(pane)) touched.add(at);
  for (const at of touched) paintLeaf(pane, at, pane.leaves[at]);
}

/** Go to a passage of the document, which is marked if it is not yet; later, if the text has not arrived. */
function go(pane, target) {
  pane.target = target;
  if (!pane.text) return;
  pane.target = null;
  if (target.end !== undefined && !pane.marks.some((one) => one.start === target.number)) {
    mark(pane, [{ start: target.number, end: target.end, effect: null }]);
    paintHead(pane, pane.wanted);
  }
  jump(pane, target.number);
}

const touchedBy = (pane) => pane.marks.flatMap((one) => leavesWith(pane, one));

/** The numbers of the leaves in which a mark lies. */
function leavesWith({ cuts }, { from, to }) {
  const found = [];
  for (let at = firstFrom(cuts, from + 1) - 1; at < cuts.length - 1 && cuts[at] < to; at++) found.push(at);
  return found;
}

const strongest = (pane) => pane.marks.reduce((best, one) => ((one.effect ?? one.score ?? 0) > (best.effect ?? best.score ?? 0) ? one : best)).start;

function paintHead(pane, turn) {
  const count = pane.marks.length;
  const given = count > 0 && pane.marks.every((one) => one.effect === null);
  if (!count && turn?.why?.state !== "done") fill(pane.head, h("p", { class: "note" }, t(pane.part ? "text.passages" : "text.unmarked")));
  else if (!count) fill(pane.head, h("p", { class: "note" }, t("text.nothing")));
  else {
    const step = (by) => jump(pane, pane.marks[(pane.at + by + count) % count].start);
    fill(pane.head, h("p", { class: "note" }, t(given ? "text.given" : "text.marked", { count })), count > 1 && h("span", { class: "steps" },
      h("button", { class: "plain icon", type: "button", "aria-label": t("text.previous"), title: t("text.previous"), on: { click: () => step(-1) } }, "↑"),
      h("button", { class: "plain icon", type: "button", "aria-label": t("text.next"), title: t("text.next"), on: { click: () => step(1) } }, "↓")));
  }
}

/** The pane may have been hidden while it went to a mark. */
function seen(pane) {
  if (pane.at >= 0) jump(pane, pane.marks[pane.at].start, false);
}

/** Go to the mark that begins at that character of the document. */
function jump(pane, start, focus = true) {
  const which = pane.marks.findIndex((one) => one.start === start);
  if (which < 0) return;
  pane.at = which;
  for (const one of pane.here) one.classList.remove("here");
  pane.here = leavesWith(pane, pane.marks[which]).flatMap((at) => [...pane.leaves[at].querySelectorAll(`mark[data-which="${which}"]`)]);
  const [mark] = pane.here;
  if (!mark) return; // another one covers it
  for (const one of pane.here) one.classList.add("here");
  const place = () => {
    const [inner, outer] = [mark.getBoundingClientRect(), pane.body.getBoundingClientRect()];
    pane.body.scrollTop += inner.top - outer.top - outer.height / 3;
  };
  // Leaves far away, and those of a pane that was hidden, have only a guessed height, so the place is looked for again once
  // they have been laid out.
  mark.closest(".leaf").scrollIntoView({ block: "start" });
  requestAnimationFrame(() => {
    place();
    if (focus) mark.focus({ preventScroll: true });
    requestAnimationFrame(place);
  });
}
