// What retrieval would have seen, below an answer: the two answers side by side, and the passages that a search passes on.

import { passagesNode } from "./contract.js";
import { h } from "./dom.js";
import { showMarkdown } from "./markdown.js";
import { number, percent, t } from "./words.js";

export function retrievalNode(turn, showText) {
  const found = turn.retrieval;
  if (!found) return null;
  if (found.state === "working") return h("div", { class: "why" }, h("div", { class: "progress unknown", role: "progressbar", "aria-label": t("retrieval.working") }, h("i")), h("p", { class: "note" }, t("retrieval.working")));
  if (found.state === "failed") return h("p", { class: "fault" }, found.error);
  const held = (one) => {
    const marks = found.rests?.marks.filter((mark) => mark.held && mark.start < one.end && mark.end > one.start) ?? [];
    return marks.length ? h("b", {}, ` · ${t("retrieval.holds")}`) : null;
  };
  return h("section", { class: "retrieval", "aria-label": t("retrieval") },
    h("h3", {}, t("retrieval")),
    h("div", { class: "versus" }, side("whole", found.whole), found.retrieved && side("retrieved", found.retrieved)),
    h("p", {}, words(found)),
    found.passages.length > 0 && h("details", {}, h("summary", {}, t("retrieval.passages", { count: found.passages.length })),
      passagesNode(found.document, [...found.passages].sort((a, b) => b.score - a.score), showText, held)));
}

function side(name, made) {
  const { seen, document } = made.tokens;
  const body = h("div", { class: "prose" });
  showMarkdown(body, made.answer || "–");
  return h("div", { class: `side-${name}` }, h("h4", {}, t(`retrieval.${name}`)), body,
    h("p", { class: "note" }, t("retrieval.tokens", { seen: number(seen), tokens: number(document), percent: percent(seen / Math.max(1, document)) })));
}

/** Whether the answers agree, and whether the passages hold what the answer from the whole rests on. */
function words(found) {
  const said = [t(!found.retrieved ? "retrieval.nothing" : found.same ? "retrieval.same" : "retrieval.differ")];
  const { rests } = found;
  if (!found.retrieved) return said.join(" ");
  if (rests?.of === 0) said.push(t("retrieval.none"));
  else if (rests) said.push(t(rests.held === rests.of ? "retrieval.all" : rests.held ? "retrieval.some" : "retrieval.missing", { held: rests.held, count: rests.of }));
  return said.join(" ");
}
