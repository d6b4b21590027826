// Conversations outlive a reload of the page: they are kept for this tab (tab.js), with what their contracts say, until a new
// one is begun or one of their documents is deleted. Explanations and the probabilities of tokens are not kept.

import { forgetChoice } from "./choose.js";
import { emit, on, state } from "./state.js";
import { begin } from "./talk.js";
import * as tab from "./tab.js";

const TALK = "talk."; // before the ids of the documents, in the name of what is kept
const TURN = ["body", "model", "document", "question", "answer", "thought", "state", "error", "code", "finish", "contract", "usage", "first"];

const LEAVING = 3000; // milliseconds that a page may take to be left
let left = -LEAVING;

function keep(talk) {
  if (state.talks.get(talk.document) !== talk) return; // it was forgotten while its answer was written
  if (performance.now() - left < LEAVING) return;
  const { turns, draft, system, temperature, most } = talk;
  const kept = turns.map((turn) => ({ ...Object.fromEntries(TURN.map((name) => [name, turn[name]])), body: { ...turn.body, messages: undefined } }));
  const empty = !turns.length && !draft && !system && temperature === null && most === null;
  talk.unkept = !tab.set(TALK + talk.document, empty ? null : JSON.stringify({ turns: kept, draft, system, temperature, most }));
}

function keepAll() {
  for (const talk of state.talks.values()) keep(talk);
}

/** Take up what this tab kept before it was reloaded; what is about documents that are gone is removed. */
export function restore() {
  for (const name of tab.names().filter((one) => one.startsWith(TALK))) {
    const document = name.slice(TALK.length);
    const there = !document || document.split("+").every((id) => state.documents.some((one) => one.id === id));
    if (!there) tab.set(name, null);
    else state.talks.set(document, revived(document, JSON.parse(tab.get(name))));
  }
}

function revived(document, kept) {
  const turns = kept.turns.map((turn) => ({ ...begin(turn.body), ...turn, state: turn.state === "writing" ? "interrupted" : turn.state }));
  return { ...kept, document, turns };
}

/** End a conversation and remove what is kept of it. */
export function drop(talk) {
  for (const turn of talk.turns) turn.stop.abort();
  talk.turns = [];
  state.talks.delete(talk.document);
  tab.set(TALK + talk.document, null);
}

/** Remove all that the page holds of a document that is gone. */
export function forget(id) {
  const about = (key) => key.split("+").includes(id);
  state.documents = state.documents.filter((one) => one.id !== id);
  for (const talk of [...state.talks.values()]) if (about(talk.document)) drop(talk);
  for (const [task, { turn, values }] of state.drafts) {
    if (values.document !== id && turn?.document !== id) continue;
    turn?.stop.abort();
    state.drafts.delete(task);
  }
  if (state.look && about(state.look.document)) state.look = null;
  forgetChoice(about);
}

// Other tabs of this browser may hold conversations about it too.
const others = new BroadcastChannel("handscroll");
on("deleted", (id) => { forget(id); others.postMessage(id); });
others.addEventListener("message", ({ data }) => {
  forget(data);
  emit(location.hash.includes(data) ? "show" : "documents");
});

on("talk", keep);
// Browsers end the requests of a page that is left before they tell it so: what they make fail then was interrupted.
addEventListener("beforeunload", () => { keepAll(); left = performance.now(); });
addEventListener("pagehide", keepAll);
