// What was read for an answer, in one line; opened, all that the server says of it.

import { h } from "./dom.js";
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

/** The fields of a record, those inside others with their way to them. */
function flat(record, way = "") {
  return Object.entries(record).flatMap(([name, value]) => {
    const path = way ? `${way}.${name}` : name;
    if (name === "notes") return [];
    return value !== null && typeof value === "object" ? flat(value, path) : [[path, typeof value === "number" ? number(value) : String(value)]];
  });
}
