// Follows the documents that are being read, and tells the views.

import { ApiError, api } from "./api.js";
import { say } from "./dom.js";
import { emit, state } from "./state.js";
import { number, t } from "./words.js";

const LOOK = 700; // milliseconds between two looks
const GOING = new Set(["waiting", "reading"]);
let watching = false;

/** The reading of a document by a model (the first that has any, unless named): its state and how far it is. */
export function readingOf(entry, model = "") {
  const found = model ? [model] : Object.keys(entry.readings);
  const best = found.find((name) => entry.readings[name]?.state === "read") ?? found[0];
  return best && entry.readings[best] ? { model: best, ...entry.readings[best] } : null;
}

export const going = (entry) => Object.entries(entry.readings).filter(([, one]) => GOING.has(one.state));

/** Put what the server says of a document into the list. */
export function learned(entry) {
  const at = state.documents.findIndex((one) => one.id === entry.id);
  if (at < 0) state.documents.push(entry);
  else state.documents[at] = entry;
}

/** Look at what is being read until nothing is. */
export function follow() {
  if (watching || !state.documents.some((one) => going(one).length)) return;
  watching = true;
  setTimeout(look, LOOK);
}

async function look() {
  const before = state.documents.filter((one) => going(one).length);
  for (const entry of before) {
    try {
      const now = await api.document(entry.id);
      // It may have been deleted on this page while the server answered.
      if (!state.documents.some((one) => one.id === entry.id)) continue;
      learned(now);
      for (const [model] of going(entry)) {
        const one = now.readings[model];
        if (one.state === "read") say(t("read.done", { name: now.name, tokens: number(one.tokens) }));
        else if (one.error) say(one.error, true);
      }
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (error.status === 404) state.documents = state.documents.filter((one) => one.id !== entry.id);
    }
  }
  watching = false;
  emit("documents");
  follow();
}
