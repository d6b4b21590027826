// What the server serves, learnt anew when it may have changed: when somebody comes back to the page, after a refusal that says
// so, and again and again while a model is being loaded or the server does not answer.

import { ApiError, api, key } from "./api.js";
import { follow, learned, unlisted } from "./following.js";
import { documentOf, emit, on, state } from "./state.js";

const PAUSE = 2000; // milliseconds between two looks
let timer = 0;
let looking = null;
let keyless = false; // whether a key was asked for and none was given

/** Ask again which models and documents there are. Whoever wants to know it meanwhile gets the same answer. */
export function learnAgain() {
  looking ??= look().finally(() => { looking = null; });
  return looking;
}

/** Look again soon, if there is something to wait for. */
export function lookOn() {
  clearTimeout(timer);
  if (state.silent || state.models.some((one) => one.state === "waiting" || one.state === "loading")) timer = setTimeout(learnAgain, PAUSE);
}

const names = () => state.models.map((one) => one.id).join();
const models = () => JSON.stringify([state.silent, state.models]);
const documents = () => JSON.stringify(state.documents);

async function look() {
  const before = { names: names(), models: models(), documents: documents() };
  let gone = [];
  try {
    state.models = await api.models();
    gone = await learnDocuments();
    state.silent = false;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    state.silent = error.code === "unreachable";
    keyless = error.status === 401;
  }
  unlisted(gone);
  if (models() !== before.models) emit("models");
  if (keyless) return;
  if (documents() !== before.documents) emit("documents");
  if (names() !== before.names || gone.some((id) => location.hash.includes(id))) emit("show");
  follow();
  lookOn();
}

/** Take up what documents there are; returns the ids of those that are not listed any more. */
async function learnDocuments() {
  const known = new Set(state.documents.map((one) => one.id));
  let asked, found;
  do {
    asked = key.get();
    found = await api.documents();
  } while (key.get() !== asked); // another key has other documents
  // This page may have deleted or given one while the server answered.
  for (const one of found) if (!known.has(one.id) || documentOf(one.id)) learned(one);
  return [...known].filter((id) => documentOf(id) && !found.some((one) => one.id === id));
}

const again = () => { if (state.documentsKnown && !keyless && !document.hidden) learnAgain(); };
on("stale", again);
on("key", () => { keyless = false; again(); });
addEventListener("focus", again);
document.addEventListener("visibilitychange", again);
