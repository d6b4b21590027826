// What was read for an answer, in one line; opened, all that the server says of it.

import { h } from "./dom.js";
import { emit } from "./state.js";
import { sourcesOf } from "./talk.js";
import { number, t } from "./words.js";

const HASH = 10; // signs of a hash that are shown

export function contractNode(turn) {
  const { contract } = turn;
  if (!contract) return null;
  const { offered, seen, cached } = contract.tokens;
  const text = contract.document?.text_sha256;
  const line = [
    h("span", { class: seen === offered ? "whole" : "cut" }, t("contract.read", { seen: number(seen), offered: number(offered) })),
    h("span", {}, t("contract.cached", { cached: number(cached) })),
    h("span", {}, contract.model),
    text ? h("span", { title: text }, t("contract.text", { hash: text.slice(0, HASH) })) : h("span", { title: contract.sha256 }, t("contract.ids", { hash: contract.sha256.slice(0, HASH) })),
  ];
  if (turn.first !== null) line.push(h("span", {}, t("contract.first", { seconds: number(turn.first / 1000, 1) })));
  return h("details", { class: "contract" }, h("summary", {}, line), h("dl", {}, flat(contract).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
    (contract.notes ?? []).map((note) => h("p", { class: "fault" }, note)));
}

/** What was read of each document, where there are several or one was not read whole. */
export function sourcesNode(turn, showText) {
  const sources = sourcesOf(turn);
  if (!sources.length || (sources.length === 1 && sources[0].how === "whole")) return null;
  const read = sources.filter((one) => one.seen > 0);
  const rest = sources.filter((one) => !one.seen);
  return h("div", { class: "sources" }, h("ul", { "aria-label": t("sources") }, read.map((one) => source(one, showText))),
    rest.length > 0 && h("p", { class: "note" }, t("sources.nothing", { names: rest.map((one) => one.name).join(", ") })));
}

function source(one, showText) {
  const values = { seen: number(one.seen), tokens: number(one.tokens), kept: number(one.from_reading) };
  const name = h("b", {}, one.name);
  if (one.how === "whole") return h("li", { class: "whole" }, name, " ", h("span", {}, t(one.from_reading ? "sources.wholeKept" : "sources.whole", values)));
  return h("li", { class: "cut" }, h("details", {},
    h("summary", {}, name, " ", h("span", {}, t("sources.passages", { ...values, count: number(one.passages.length) }))),
    passagesNode(one.id, one.passages, showText)));
}

/** Passages that a search found, each a way into the text. */
export function passagesNode(document, passages, showText, extra = () => null) {
  return h("ol", { class: "passages" }, passages.map((one) => h("li", {}, h("button", { type: "button", title: t("why.show"),
    on: { click: () => { showText(); emit("jump", { document, number: one.start, end: one.end }); } } },
  one.text && h("q", {}, short(one.text)), h("span", { class: "note" }, [where(one), t("contract.tokens", { count: number(one.tokens) }), ranks(one)].filter(Boolean).join(" · "), extra(one))))));
}

const LETTERS = 220; // characters of a passage in a list

/** The beginning of a text on one line. */
export function short(text, most = LETTERS) {
  const letters = [...text.trim().replace(/\s+/g, " ")];
  return letters.length > most ? `${letters.slice(0, most).join("")}…` : letters.join("");
}

const where = (one) => [one.place, one.heading].filter((part, at, all) => part && all.indexOf(part) === at).join(", ") || t("sources.at", { start: number(one.start) });

const ranks = (one) => Object.entries(one.ranks).map(([kind, rank]) => t(`sources.${kind}`, { rank })).join(", ");

/** The fields of a record, those inside others with their way to them. */
function flat(record, way = "") {
  return Object.entries(record).flatMap(([name, value]) => {
    const path = way ? `${way}.${name}` : name;
    if (name === "notes" || name === "passages") return [];
    return value !== null && typeof value === "object" ? flat(value, path) : [[path, typeof value === "number" ? number(value) : String(value)]];
  });
}
