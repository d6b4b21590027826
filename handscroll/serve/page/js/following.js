// Follows the documents that are being read, and tells the views.

import { ApiError, api } from "./api.js";
import { ask, h, say } from "./dom.js";
import { emit, modelOf, state } from "./state.js";
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

export const isGoing = (reading) => GOING.has(reading?.state);

/** The readings of a document that go on or will. By a model that is not served here none does, whatever was said of it last. */
export const going = (entry) => Object.entries(entry.readings).filter(([name, one]) => isGoing(one) && modelOf(name) && modelOf(name).state !== "failed");

/** Put what the server says of a document into the list. */
export function learned(entry) {
  const at = state.documents.findIndex((one) => one.id === entry.id);
  if (at < 0) state.documents.push(entry);
  else state.documents[at] = entry;
}

/** Take documents from the list that the server does not name. What is said about them stays: the server may have been asked with
 * another key, or be another one. */
export function unlisted(ids) {
  state.documents = state.documents.filter((one) => !ids.includes(one.id));
}

/** Do something to a document and learn what became of it. */
export async function act(work) {
  try {
    const entry = await work();
    if (entry.readings) learned(entry);
    follow();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    say(error.message || t("unreachable"), true);
    const silent = error.code === "unreachable";
    await ask({ title: t(silent ? "unreachable" : "error"), body: silent ? "" : h("p", { class: "fault" }, error.message), accept: t("close") });
  }
  emit("documents");
}

/** Ask the server anew how documents are read; what it does not say stays as it was. */
export async function relearn(ids) {
  for (const id of ids) {
    try {
      learned(await api.document(id));
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
    }
  }
  emit("documents");
  follow();
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
      if (error.status === 404) unlisted([entry.id]);
      if (error.status === 401) { watching = false; return; } // no key was given: it is asked for at the next need
    }
  }
  watching = false;
  emit("documents");
  follow();
}
