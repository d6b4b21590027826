// A question and its answer, as the page shows them: painted anew at each piece that arrives, at most once a frame.

import { contractNode, sourcesNode } from "./contract.js";
import { copyButton } from "./copy.js";
import { fill, framed, h } from "./dom.js";
import { showMarkdown } from "./markdown.js";
import { documentsOf, emit, on, state } from "./state.js";
import { retrievalNode } from "./retrieval.js";
import { back, busy, compare, explain, lacks, question, whole } from "./talk.js";
import { number, t } from "./words.js";
import { whyNode } from "./why.js";

const EDGE = 12; // pixels between what is new and the edge of the conversation
const SLOW = 1200; // milliseconds without a word after which the page says how long it has been

/** The words of an answer that is being written: nothing yet, its thoughts, its text, and why it ended. */
export function answerNode(turn, pinned = () => {}) {
  const thought = h("details", { class: "thought", hidden: true }, h("summary", {}, t("ask.thinking")), h("div", { class: "prose" }));
  const body = h("div", { class: "prose" });
  const wait = h("p", { class: "note wait" });
  const end = h("div");
  const node = h("div", { class: "said" }, thought, wait, body, end);
  const paint = () => {
    thought.hidden = !turn.thought;
    if (turn.thought) showMarkdown(thought.lastChild, turn.thought);
    showMarkdown(body, turn.answer);
    node.classList.toggle("writing", turn.state === "writing");
    wait.hidden = turn.state !== "writing" || turn.first !== null;
    const waited = performance.now() - turn.begun;
    fill(wait, waited < SLOW ? t("ask.waiting") : t("ask.waitingLong", { seconds: number(waited / 1000) }));
    fill(end, ended(turn) || null);
    pinned();
  };
  const soon = framed(paint);
  const clock = setInterval(() => (turn.first === null && ["queued", "writing"].includes(turn.state) ? soon() : clearInterval(clock)), 500);
  paint();
  const off = on("turn", (one) => { if (one === turn) soon(); });
  return { node, end: () => { off(); clearInterval(clock); } };
}

/** What keeps an answer from being complete. */
export function ended(turn) {
  if (turn.state === "failed") return h("p", { class: "fault" }, turn.code !== "unreachable" && [h("b", {}, t("error")), " "], turn.error);
  const words = lacks(turn);
  return words && h("p", { class: "note" }, words);
}

/** A turn of a conversation; `edit` takes its question back into the composer. */
export function turnNode(talk, turn, { edit, pinned, showText }) {
  const answer = answerNode(turn, pinned);
  const after = h("div", { class: "after", tabindex: "-1" });
  after.addEventListener("toggle", ({ target }) => { if (target.open) reveal(target); }, true); // what opens is seen
  const node = h("article", { class: "turn" }, h("h2", {}, h("span", { class: "unseen" }, `${t("ask.you")}: `), turn.question), answer.node, after);
  const show = (target) => { showText(); emit("jump", target); };
  let shown = [];
  const paint = () => {
    const last = talk.turns.at(-1) === turn;
    const [before, now] = [shown, [turn.why?.state, turn.retrieval?.state, turn.state, last, busy(talk)]];
    if (now.join() === before.join()) return;
    shown = now;
    const focused = after.contains(document.activeElement);
    const [why, retrieval] = [whyNode(turn, show), retrievalNode(turn, showText)];
    if (turn.state === "queued") fill(after, queued(talk, turn, edit));
    else fill(after, turn.state === "writing" ? null : [contractNode(turn), sourcesNode(turn, showText), why, retrieval, actions(talk, turn, last, { edit, showText })]);
    if (focused) after.focus({ preventScroll: true }); // what was pressed may be gone
    if (before.length) [why, retrieval].forEach((one, at) => { if (now[at] !== before[at]) reveal(one); });
  };
  paint();
  const ends = [on("turn", (one) => { if (one === turn) paint(); }), on("talk", (one) => { if (one === talk) paint(); })];
  return { node, end: () => { answer.end(); ends.forEach((end) => end()); } };
}

/** Scroll the conversation so far that something new in it is seen, from its beginning. */
function reveal(node) {
  const box = node?.closest(".turns");
  if (!box) return;
  const [inner, outer] = [node.getBoundingClientRect(), box.getBoundingClientRect()];
  box.scrollTop += Math.min(Math.max(0, inner.bottom - outer.bottom + EDGE), inner.top - outer.top - EDGE);
}

/** Explain an answer; on a narrow screen the text is shown once passages are marked in it, unless somebody writes. */
async function explained(talk, turn, showText) {
  await explain(talk, turn);
  const writes = document.activeElement?.id === "question" && talk.draft;
  if (turn.why.marks?.some((one) => one.marked) && !writes) showText();
}

/** What a question waits for that cannot be asked yet, and the way to take it back. */
function queued(talk, turn, edit) {
  const names = documentsOf(talk.document).map((one) => one.name).join(", ");
  return [h("p", { class: "note" }, names ? t("ask.queued", { name: names }) : t("ask.queuedFree")),
    h("p", { class: "actions" }, h("button", { class: "plain", type: "button", on: { click: () => edit(back(talk, turn)) } }, t("ask.takeBack")))];
}

function actions(talk, turn, last, { edit, showText }) {
  const button = (words, click) => h("button", { class: "plain", type: "button", on: { click } }, words);
  const parts = [];
  if (whole(turn) && turn.answer && !turn.retrieval) parts.push(button(t("retrieval"), () => compare(talk, turn)));
  if (whole(turn) && turn.answer && !turn.why) parts.unshift(button(t("ask.why"), () => explained(talk, turn, showText)));
  if (turn.answer) {
    parts.push(button(t("ask.inside"), () => { state.look = turn; location.hash = "#/look"; }));
    parts.push(copyButton(turn.answer));
  }
  if (last && !busy(talk)) {
    parts.push(button(t("ask.again"), () => question(talk, back(talk))));
    parts.push(button(t("ask.edit"), () => edit(back(talk))));
  }
  return h("p", { class: "actions" }, parts);
}

