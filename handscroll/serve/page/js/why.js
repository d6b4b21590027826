// Why an answer was given, below it: the passages without which it becomes less likely, each a way into the text.

import { short } from "./contract.js";
import { fill, h } from "./dom.js";
import { emit } from "./state.js";
import { number, percent, t } from "./words.js";

const ARRIVE = 300; // milliseconds after which a conversation listens
const TICK = 500; // milliseconds between two looks at the clock
const SHOWN = 180; // characters of a passage in the list
const LITTLE = 1; // nats that an answer loses without the whole document, below which it does not rest on it
const CARRIES = 0.5; // share from which a passage carries an answer: alone it gives most of what the document gives
const STRONG = Math.log(10); // nats: without it the answer is ten times less likely
const SOME = Math.log(2);
const SLIGHT = Math.log(1.5); // below this no number is said
const MANY = 1000; // times less likely, above which no number is said

/** The share of what an answer loses without the whole document that it loses without a passage alone. */
const shareOf = (why, { effect }) => effect / Math.max(why.rests, LITTLE);

/** How strongly a passage with that effect is marked, from 1 to 3. */
export const strength = (effect) => (effect >= STRONG ? "3" : effect >= SOME ? "2" : "1");

/** How many times less likely the answer is without a passage. */
export function supportWords(effect) {
  const times = Math.exp(effect);
  if (effect < SLIGHT) return t("why.slightly");
  return times > MANY ? t("why.many", { times: number(MANY) }) : t("why.times", { times: number(times, times < 10 ? 1 : 0) });
}

/** What leaving out a passage does to the answer. */
export const effectWords = (effect) => t(effect < 0 ? "why.gain" : "why.effect", { nats: number(Math.abs(effect), 2) });

/** `show` leads to a passage in the text. */
export function whyNode(turn, show = visit) {
  const { why } = turn;
  if (!why) return null;
  if (why.state === "working") return working(why);
  if (why.state === "failed") return h("p", { class: "fault" }, why.error);
  const causes = why.marks.filter((one) => one.marked).sort((a, b) => b.effect - a.effect);
  return h("div", { class: "why" }, h("p", {}, verdict(why, causes)),
    causes.length > 0 && h("ol", { class: "causes" }, causes.map((one) => cause(turn, one, show))),
    h("details", { class: "numbers" }, h("summary", {}, t("why.numbers")),
      causes.length > 0 && h("ol", {}, causes.map((one) => h("li", {}, `${effectWords(one.effect)} · ${t("why.attention", { percent: percent(one.attention, 1) })}`))),
      h("p", {}, rests(why))));
}

/** That it is being worked on, and for how long. */
function working({ begun }) {
  const note = h("p", { class: "note" }, t("why.working"));
  const clock = setInterval(() => {
    if (note.isConnected) fill(note, t("why.workingLong", { seconds: number((performance.now() - begun) / 1000) }));
    else clearInterval(clock);
  }, TICK);
  return h("div", { class: "why" }, h("div", { class: "progress unknown", role: "progressbar", "aria-label": t("why.working") }, h("i")), note);
}

/** In plain words: whether the answer rests on the document, and whether a passage carries it, or several do together. */
function verdict(why, causes) {
  if (why.rests < LITTLE) return t("why.free");
  if (!causes.length) return t("why.none", { tried: why.marks.filter((one) => one.effect !== null).length });
  const carry = causes.filter((one) => shareOf(why, one) >= CARRIES);
  if (carry.length) return t("why.carry", { count: carry.length });
  if (causes.length > 1 && shareOf(why, { effect: why.together }) >= CARRIES) return t("why.together", { count: causes.length });
  return t("why.several", { count: causes.length });
}

/** Go to a passage from a place that has no text beside it. */
export function visit(target) {
  location.hash = `#/ask/${target.document}`;
  setTimeout(() => emit("jump", target), ARRIVE);
}

function cause(turn, one, show) {
  return h("li", {}, h("button", { type: "button", title: t("why.show"), "data-strength": strength(one.effect), on: { click: () => show({ document: turn.document, number: one.start }) } },
    h("q", {}, short(one.text, SHOWN)),
    h("span", { class: "note" }, supportWords(one.effect))));
}

/** What the answer loses without the whole document, and whether attention was a good guide. */
function rests(why) {
  const words = [t("why.whole", { nats: number(why.rests, 2) }), t("why.nat")];
  if (why.agreement !== null) words.push(t("why.agreement", { value: number(why.agreement, 2) }));
  return words.join(" ");
}
