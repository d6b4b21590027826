// The window's gauge: how many tokens instructions, document, conversation and question take and how many are kept for the
// answer. Every number is the server's own count of the very prompt that it will read.

import { ApiError, api } from "./api.js";
import { fill, h, settled } from "./dom.js";
import { relearn } from "./following.js";
import { documentsOf, model } from "./state.js";
import { UNREAD, about, messages } from "./talk.js";
import { number, t } from "./words.js";

const PARTS = ["system", "document", "history", "question", "answer"];
const PAUSE = 350; // milliseconds without a key before the question is counted anew
const FULL = 1000; // milliseconds until a count that found no place is asked for again
const USUAL = 1024; // tokens of an answer, if the server does not say

/** A gauge that follows a conversation: `ready` says whether it can be asked, `draft` gives the question that is written. */
export function gauge(talk, ready, draft) {
  const node = h("div", { class: "gauge" });
  const stop = new AbortController();
  let asked = false;
  let newer = false; // whether there is something newer to count than what was asked for
  let known = { key: "" };

  /** One at a time: a server that counts goes on with it when nobody listens any more. */
  async function measure() {
    if (stop.signal.aborted) return;
    newer = asked;
    if (asked) return;
    const served = model();
    if (!served || served.state !== "ready" || !served.chat || !ready()) { fill(node); return; }
    asked = true;
    try {
      paint(node, await parts(served, stop.signal), served, talk);
    } catch (error) {
      told(error);
    } finally {
      asked = false;
    }
    if (newer) await measure();
  }

  function told(error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof ApiError)) throw error;
    if (UNREAD.has(error.code)) relearn(documentsOf(talk.document).map((one) => one.id));
    else if (error.code === "unreachable") fill(node); // the answer says so, or will
    else if (error.code === "too_many_requests") { fill(node); setTimeout(later, FULL); }
    else fill(node, h("p", { class: "fault" }, error.message));
  }

  /** The parts of the next prompt, which add up to the server's count of the whole. */
  async function parts(served, signal) {
    const count = async (list) => {
      const found = await api.count({ model: served.id, messages: list, ...about(talk) }, signal);
      const seen = (found.documents ?? []).reduce((sum, one) => sum + one.seen, 0);
      return { total: found.count, seen, said: found.count - seen };
    };
    const earlier = messages(talk, null, "");
    const key = JSON.stringify([served.id, earlier]);
    if (known.key !== key) {
      const alone = (await count([{ role: "user", content: "?" }])).said;
      const system = earlier[0]?.role === "system" ? Math.max(0, (await count([earlier[0], { role: "user", content: "?" }])).said - alone) : 0;
      const all = earlier.length ? (await count([...earlier, { role: "user", content: "?" }])).said : alone;
      known = { key, system, history: Math.max(0, all - alone - system) };
    }
    const { total, seen } = await count([...earlier, { role: "user", content: draft() || "?" }]);
    const document = Math.min(total, seen);
    const { system, history } = known;
    return { system, document, history, question: Math.max(0, total - system - document - history), total };
  }

  const later = settled(measure, PAUSE);
  later();
  return { node, changed: later, end: () => stop.abort() };
}

function paint(node, found, served, talk) {
  const { context } = served;
  const most = talk.most ?? served.answer ?? USUAL;
  const answer = Math.max(0, Math.min(most, context - found.total));
  const free = Math.max(0, context - found.total - answer);
  const sizes = { ...found, answer };
  const shown = PARTS.filter((part) => sizes[part] > 0);
  const strip = h("div", { class: "strip", "aria-hidden": "true" });
  for (const part of shown) {
    const piece = h("i", { class: part });
    piece.style.flexGrow = String(sizes[part]);
    strip.append(piece);
  }
  const rest = h("i", { class: "free" });
  rest.style.flexGrow = String(free);
  strip.append(rest);
  const entries = [...shown.map((part) => [part, sizes[part]]), ["free", free]];
  const over = found.total + 1 - context;
  const warning = over > 0 ? t("gauge.over", { over: number(over) }) : answer < most ? t("gauge.less", { left: number(answer), most: number(most) }) : "";
  node.dataset.total = String(found.total);
  fill(node, h("details", { open: node.querySelector("details")?.open ?? false },
    h("summary", {}, h("span", { class: "label" }, t("gauge")), strip, h("span", { class: "sum" }, t("gauge.of", { used: number(found.total), context: number(context) }))),
    h("dl", {}, entries.map(([part, size]) => h("div", {}, h("dt", { class: part }, t(`gauge.${part}`)), h("dd", {}, number(size)))))),
  warning && h("p", { class: over > 0 ? "fault" : "note" }, warning));
}
