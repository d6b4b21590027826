// Why an answer was given, below it: the passages without which it becomes less likely, each a way into the text.

import { h } from "./dom.js";
import { emit } from "./state.js";
import { number, percent, t } from "./words.js";

const SHOWN = 180; // characters of a passage in the list
const LITTLE = 1; // nats that an answer loses without the whole document, below which it does not rest on it

/** How strong a mark is, from 1 to 3. */
export const strength = (effect) => (effect >= 3 ? "3" : effect >= 1 ? "2" : "1");

/** What leaving out a passage does to the answer. */
export const effectWords = (effect) => t(effect < 0 ? "why.gain" : "why.effect", { nats: number(Math.abs(effect), 2) });

export function whyNode(turn) {
  const { why } = turn;
  if (!why) return null;
  if (why.state === "working") return h("div", { class: "why" }, h("div", { class: "progress unknown", role: "progressbar", "aria-label": t("why.working") }, h("i")), h("p", { class: "note" }, t("why.working")));
  if (why.state === "failed") return h("p", { class: "fault" }, why.error);
  const causes = why.marks.filter((one) => one.marked).sort((a, b) => b.effect - a.effect);
  const tried = why.marks.filter((one) => one.effect !== null).length;
  const words = causes.length ? t("why.some", { count: causes.length }) : t("why.none", { tried });
  return h("div", { class: "why" }, h("p", {}, words),
    causes.length > 0 && h("ol", { class: "causes" }, causes.map((one) => cause(turn, one))),
    h("p", { class: "note" }, rests(why)));
}

function cause(turn, one) {
  const text = one.text.trim().replace(/\s+/g, " ");
  const letters = [...text];
  const short = letters.length > SHOWN ? `${letters.slice(0, SHOWN).join("")}…` : text;
  return h("li", {}, h("button", { type: "button", title: t("why.show"), "data-strength": strength(one.effect), on: { click: () => emit("jump", { document: turn.document, number: one.start }) } },
    h("q", {}, short),
    h("span", { class: "note" }, `${effectWords(one.effect)} · ${t("why.attention", { percent: percent(one.attention, 1) })}`)));
}

/** Whether the answer rests on the document at all, and whether attention was a good guide. */
function rests(why) {
  const words = [t(why.rests < LITTLE ? "why.free" : "why.whole", { nats: number(why.rests, 2) })];
  if (why.agreement !== null) words.push(t("why.agreement", { value: number(why.agreement, 2) }));
  return words.join(" ");
}
