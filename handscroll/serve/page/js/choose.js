// Which documents a conversation is about: one of a list, or several that are ticked, or those of last time.

import { ask, h } from "./dom.js";
import { readingOf } from "./following.js";
import { documentsOf, emit, model, state } from "./state.js";
import * as tab from "./tab.js";
import { number, t } from "./words.js";

/** Documents that a model knows: those it has read, and those that are too long for it, which are read by passages. */
export const known = () => state.documents.filter((one) => readingOf(one));

/** Whether a model has read a document, or will read it by passages. */
export const askable = (entry, name) => ["read", "refused"].includes(readingOf(entry, name)?.state);

const LAST = "last";

/** Remember the documents that were chosen or given, by their ids joined by "+"; "" says that none were wanted. */
export function chosen(key) {
  tab.set(LAST, key);
  emit("chosen");
}

/** Forget what was chosen last, if `about` says so of it. */
export function forgetChoice(about) {
  if (about(tab.get(LAST) ?? "")) tab.set(LAST, null);
  emit("chosen");
}

/** What "Ask" is about: what was chosen last in this tab, or the only document that there is. */
export function usual() {
  const key = tab.get(LAST);
  if (key !== null && (!key || documentsOf(key).length === key.split("+").length)) return key;
  return state.documents.length === 1 ? state.documents[0].id : "";
}

/** Let a person tick documents, and go to the conversation about them. */
export async function several(chosen = []) {
  const boxes = known().filter((one) => askable(one, model()?.id ?? "")).map((entry) => {
    const box = h("input", { type: "checkbox", checked: chosen.includes(entry.id) });
    const reading = readingOf(entry, model()?.id ?? "");
    const note = t(reading.state === "read" ? "choose.tokens" : "choose.long", { tokens: number(reading.tokens) });
    return { id: entry.id, box, node: h("li", {}, h("label", { class: "check" }, box, h("span", {}, entry.name, " ", h("span", { class: "note" }, note)))) };
  });
  const every = h("button", { class: "plain", type: "button", on: { click: () => {
    const all = boxes.every((one) => one.box.checked);
    for (const one of boxes) one.box.checked = !all;
  } } }, t("choose.all"));
  const body = h("div", {}, h("p", { class: "note" }, t("choose.text")), h("ul", { class: "ticks" }, boxes.map((one) => one.node)), h("p", {}, every));
  const ids = await ask({ title: t("choose.title"), body, accept: t("choose.go"), refuse: t("cancel"), value: () => boxes.filter((one) => one.box.checked).map((one) => one.id) });
  if (ids?.length) location.hash = `#/ask/${ids.join("+")}`;
}
