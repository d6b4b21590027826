// What the page knows: models, documents, conversations. All of it lives in this tab's memory; conversations are also kept over a
// reload (kept.js).

import * as tab from "./tab.js";

const MODEL = "model";

export const state = {
  models: [],
  model: tab.get(MODEL) ?? "", // chosen by name; "" means the first that can write
  documents: [],
  documentsKnown: false,
  silent: false, // whether the server did not answer when it was looked at last
  talks: new Map(), // by the ids of its documents, joined by "+"; "" for none
  drafts: new Map(), // what stands in the forms of the tasks
  reports: new Map(), // by model: what was measured of it
  look: null, // the turn that is looked into
};

const listeners = new Map();

/** Call `act` at every event of that name; returns what ends it. */
export function on(event, act) {
  if (!listeners.has(event)) listeners.set(event, new Set());
  listeners.get(event).add(act);
  return () => listeners.get(event).delete(act);
}

export function emit(event, detail) {
  for (const act of [...(listeners.get(event) ?? [])]) act(detail);
}

export const writers = () => state.models.filter((one) => one.kind !== "encoder");

/** The models that could not be loaded, if there is no other that writes. */
export const broken = () => (writers().every((one) => one.state === "failed") ? writers() : []);

export const modelOf = (name) => state.models.find((one) => one.id === name) ?? null;

/** The model that is asked: the chosen one, or the first that writes. */
export function model() {
  const able = writers();
  return able.find((one) => one.id === state.model) ?? able.find((one) => one.state === "ready") ?? able[0] ?? null;
}

/** Choose the model that is asked; a reload of this tab keeps it. */
export function chooseModel(name) {
  state.model = name;
  tab.set(MODEL, name);
}

/** The documents of a conversation, by the part of the address that names them: ids joined by "+". */
export const documentsOf = (key) => key.split("+").map(documentOf).filter(Boolean);

export const documentOf = (id) => state.documents.find((one) => one.id === id) ?? null;

/** The conversation about documents, by their ids joined by "+" ("" for none). */
export function talkOf(id) {
  if (!state.talks.has(id)) state.talks.set(id, { document: id, system: "", draft: "", turns: [], temperature: null, most: null });
  return state.talks.get(id);
}
