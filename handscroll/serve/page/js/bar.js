// How far something is: a bar, and the words below it.

import { h } from "./dom.js";
import { going } from "./following.js";
import { state } from "./state.js";
import { clock, number, span, t } from "./words.js";

export const bar = (name) => h("div", { class: "progress", role: "progressbar", "aria-label": name, "aria-valuemin": "0", "aria-valuemax": "100" }, h("i"));

/** `share` of the whole, or null while it is not known. */
export function paintBar(node, share) {
  node.classList.toggle("unknown", share === null);
  if (share === null) node.removeAttribute("aria-valuenow");
  else node.setAttribute("aria-valuenow", String(Math.floor(share * 100)));
  node.firstChild.style.width = share === null ? "" : `${share * 100}%`;
}

/** How far a reading that goes on is: its share (null before the first token), and what is said of it. */
export function howFar(reading) {
  const progress = reading.progress ?? { done: 0, total: reading.tokens };
  const { done, total } = progress;
  const alone = reading.state === "reading" || state.documents.flatMap(going).length < 2;
  const words = [done ? t("read.tokens", { done: number(done), total: number(total) }) : t(alone ? "read.soon" : "read.waiting", { total: number(total) })];
  if (progress.tokens_per_second) words.push(t("read.speed", { speed: number(progress.tokens_per_second) }));
  const left = progress.seconds_left;
  if (left !== null && left !== undefined) words.push(t("read.until", { time: clock(new Date(Date.now() + left * 1000)), left: span(left) }));
  return { share: done ? done / total : null, words };
}

/** Where a reading was stopped: what a server left whose model is not served now does not say. */
export const stoppedAt = (reading) =>
  (reading.done === undefined ? t("read.stoppedBefore") : t("read.stopped", { done: number(reading.done), total: number(reading.tokens) }));
