// What a question has to wait for: a model that is being loaded, or documents that are being read. How far that is, and what
// to do if nobody reads.

import { api } from "./api.js";
import { bar, howFar, paintBar, stoppedAt } from "./bar.js";
import { askable } from "./choose.js";
import { fill, find, h } from "./dom.js";
import { act, isGoing, readingOf } from "./following.js";
import { documentsOf, model } from "./state.js";
import { t } from "./words.js";

/** What stands in the way of a question about documents, or null. `coming` says that it will go away by itself. */
export function obstacle(key) {
  const served = model();
  if (served?.state !== "ready") return { coming: ["waiting", "loading"].includes(served?.state), entry: null, reading: null };
  const unread = documentsOf(key).filter((one) => !askable(one, served.id));
  if (!unread.length) return null;
  const of = (one) => readingOf(one, served.id);
  const entry = unread.find((one) => !isGoing(of(one))) ?? unread[0];
  return { coming: isGoing(of(entry)), entry, reading: of(entry) };
}

/** The place above a question that says so: `paint` shows an obstacle, `focus` goes to what can be done about it. */
export function waitingNode() {
  const node = h("div", { class: "waiting", hidden: true });
  let shown = "";
  const paint = (found) => {
    node.hidden = !found?.entry;
    if (!found?.entry) { shown = ""; return; }
    const { entry, reading, coming } = found;
    const now = `${entry.id} ${coming} ${coming || JSON.stringify(reading)}`;
    if (now !== shown) fill(node, coming ? [bar(entry.name), h("p", { class: "note" })] : [h("p", { class: "note" }, unreadWords(entry, reading)), reads(entry, reading)]);
    shown = now;
    if (!coming) return;
    const { share, words } = howFar(reading);
    paintBar(node.firstChild, share);
    fill(node.lastChild, [entry.name, ...words].join(" · "));
  };
  return { node, paint, focus: () => node.querySelector("button")?.focus() };
}

function unreadWords(entry, reading) {
  const name = model().id;
  if (reading?.state === "stopped") return `${entry.name}: ${stoppedAt(reading)}`;
  return reading?.error ? `${t("ask.failed", { name: entry.name, model: name })} ${reading.error}` : t("ask.unready", { name: entry.name, model: name });
}

const reads = (entry, reading) => h("button", { class: "quiet", type: "button", on: { click: async () => {
  await act(() => api.read(entry.id, model().id));
  find("question")?.focus(); // the button is gone
} } }, t(reading?.state === "stopped" ? "read.on" : "read.it"));
