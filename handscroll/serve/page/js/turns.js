// A question and its answer, as the page shows them: painted anew at each piece that arrives, at most once a frame.

import { contractNode, sourcesNode } from "./contract.js";
import { fill, framed, h } from "./dom.js";
import { showMarkdown } from "./markdown.js";
import { documentsOf, on, state } from "./state.js";
import { retrievalNode } from "./retrieval.js";
import { back, busy, compare, explain, question, whole } from "./talk.js";
import { number, t } from "./words.js";
import { whyNode } from "./why.js";

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
    fill(wait, waited < SLOW ? t("ask.reading") : t("ask.readingLong", { seconds: number(waited / 1000) }));
    fill(end, ended(turn));
    pinned();
  };
  const soon = framed(paint);
  const clock = setInterval(() => (turn.first === null && ["queued", "writing"].includes(turn.state) ? soon() : clearInterval(clock)), 500);
  paint();
  const off = on("turn", (one) => { if (one === turn) soon(); });
  return { node, end: () => { off(); clearInterval(clock); } };
}

function ended(turn) {
  if (turn.state === "failed") return h("p", { class: "fault" }, h("b", {}, t("error")), " ", turn.error);
  if (turn.state === "interrupted") return h("p", { class: "note" }, t("ask.interrupted"));
  if (turn.state === "stopped") return h("p", { class: "note" }, t("ask.stopped"));
  if (turn.finish === "length") return h("p", { class: "note" }, t("ask.length", { most: number(turn.usage?.completion_tokens ?? turn.scored.length) }));
  return null;
}

/** A turn of a conversation; `edit` takes its question back into the composer. */
export function turnNode(talk, turn, { edit, pinned, showText }) {
  const answer = answerNode(turn, pinned);
  const after = h("div", { class: "after" });
  const node = h("article", { class: "turn" }, h("h2", {}, h("span", { class: "unseen" }, `${t("ask.you")}: `), turn.question), answer.node, after);
  let shown = "";
  const paint = () => {
    const last = talk.turns.at(-1) === turn;
    const now = [turn.state, turn.why?.state, turn.retrieval?.state, last, busy(talk)].join();
    if (now === shown) return;
    shown = now;
    if (turn.state === "queued") fill(after, queued(talk, turn, edit));
    else fill(after, turn.state === "writing" ? null : [contractNode(turn), sourcesNode(turn, showText), whyNode(turn), retrievalNode(turn, showText), actions(talk, turn, last, { edit, showText })]);
  };
  paint();
  const ends = [on("turn", (one) => { if (one === turn) { paint(); pinned(); } }), on("talk", (one) => { if (one === talk) paint(); })];
  return { node, end: () => { answer.end(); ends.forEach((end) => end()); } };
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
  if (whole(turn) && turn.answer && !turn.why) parts.unshift(button(t("ask.why"), () => { showText(); explain(talk, turn); }));
  if (turn.answer) {
    parts.push(button(t("ask.inside"), () => { state.look = turn; location.hash = "#/look"; }));
    parts.push(button(t("copy"), async (event) => {
      await navigator.clipboard.writeText(turn.answer);
      const { target } = event;
      fill(target, t("copied"));
      setTimeout(() => fill(target, t("copy")), 1500);
    }));
  }
  if (last && !busy(talk)) {
    parts.push(button(t("ask.again"), () => question(talk, back(talk))));
    parts.push(button(t("ask.edit"), () => edit(back(talk))));
  }
  return h("p", { class: "actions" }, parts);
}

