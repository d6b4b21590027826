// Conversations: what is sent, what comes back, and how it is stopped. No view in here.

import { ApiError, api } from "./api.js";
import { say } from "./dom.js";
import { readingOf, relearn } from "./following.js";
import { learnAgain } from "./learning.js";
import { documentsOf, emit, model, on, state } from "./state.js";
import { obstacle } from "./waiting.js";
import { number, t } from "./words.js";

export const LIKELIEST = 5; // tokens that are kept at each place of an answer
export const UNREAD = new Set(["being_read", "not_read"]); // refusals that end when the documents are read
const UNTIL = 256; // tokens of a text that a model without a template continues

/** The messages of a conversation up to a turn, with its question. Turns that failed before they said a word are left out. */
export function messages(talk, until, question) {
  const said = [];
  if (!model()?.chat) return question ? [{ role: "user", content: question }] : said; // one question at a time
  if (talk.system.trim() && !talk.document) said.push({ role: "system", content: talk.system.trim() });
  for (const turn of talk.turns) {
    if (turn === until) break;
    if (!turn.answer) continue;
    said.push({ role: "user", content: turn.question }, { role: "assistant", content: turn.answer });
  }
  if (question) said.push({ role: "user", content: question });
  return said;
}

/** The fields of a request that name the documents of a conversation: several, or one that is too long, are read by
 * passages where they do not fit, and the answer says so. */
export function about(talk) {
  const ids = talk.document ? talk.document.split("+") : [];
  if (!ids.length) return {};
  if (ids.length > 1) return { documents: ids, reading: "auto" };
  const long = readingOf(documentsOf(ids[0])[0] ?? { readings: {} }, model()?.id ?? "")?.state === "refused";
  return { document: ids[0], ...(long ? { reading: "auto" } : {}) };
}

/** What an answer says of the documents that were read for it. */
export const sourcesOf = ({ contract }) => contract?.documents ?? (contract?.document ? [contract.document] : []);

/** Whether one document was read whole for an answer: only then is there more to find out. */
export const whole = (turn) => turn.contract?.document?.how === "whole";

/** The earlier questions and answers that a turn was asked with. Of a turn that was restored they are those of its conversation. */
function before(talk, turn) {
  const said = turn.body.messages?.slice(0, -1) ?? (talk.turns.includes(turn) ? messages(talk, turn, "") : []);
  return said.filter((one) => one.role !== "system");
}

/** A new answer: empty until pieces arrive. `body` is what was asked for. */
export function begin(body) {
  return { body, model: body.model, document: (body.documents ?? [body.document ?? ""]).join("+"), question: "", answer: "", thought: "", scored: [], state: "writing",
    error: "", code: "", finish: null, contract: null, usage: null, begun: performance.now(), first: null, why: null, retrieval: null, stop: new AbortController() };
}

/** Let the pieces of an answer arrive in `turn`; everything that happens to it is told as the event "turn". */
export async function run(turn, stream = api.chat) {
  try {
    for await (const piece of stream(turn.body, turn.stop.signal)) {
      if ((piece.text || piece.thought) && turn.first === null) turn.first = performance.now() - turn.begun;
      turn.answer += piece.text;
      turn.thought += piece.thought;
      turn.scored.push(...piece.scored);
      turn.finish = piece.finish ?? turn.finish;
      turn.contract = piece.contract ?? turn.contract;
      turn.usage = piece.usage ?? turn.usage;
      emit("turn", turn);
    }
    turn.state = "done";
    if (sourcesOf(turn).some((one) => one.passages)) emit("why", turn);
    say(t("ask.answered"));
  } catch (error) {
    if (error.name === "AbortError") turn.state = "stopped";
    else {
      turn.state = "failed";
      turn.code = error.code ?? "";
      turn.error = error.message || t("unreachable");
      say(turn.error, true);
      if (!(error instanceof ApiError)) throw error;
    }
  } finally {
    emit("turn", turn);
  }
  return turn;
}

/** Ask the next question of a conversation: now, or as soon as nothing stands in its way. */
export function question(talk, text) {
  talk.turns.push({ ...begin({}), question: text, state: "queued" });
  emit("talk", talk);
  next(talk);
}

/** Begin the first question that waits, if it can be asked now. */
async function next(talk) {
  const turn = talk.turns.find((one) => one.state === "queued");
  if (!turn || busy(talk) || obstacle(talk.document)) return;
  const { body, stream } = request(talk, turn);
  Object.assign(turn, begin(body), { question: turn.question });
  emit("turn", turn);
  emit("talk", talk);
  await run(turn, stream).catch((error) => { emit("talk", talk); throw error; });
  const learns = missing(talk, turn);
  if (learns) Object.assign(turn, { state: "queued", returned: [...(turn.returned ?? []), turn.code] });
  emit("turn", turn);
  emit("talk", talk);
  await learns?.();
  next(talk);
}

/** A reading may have been evicted since the page heard of it, or the server been started anew and be loading the model: then the
 * question waits, once for each of these refusals. Returns what learns how far that is, or null. */
function missing(talk, { code, returned }) {
  if (returned?.includes(code)) return null;
  if (UNREAD.has(code)) return () => relearn(documentsOf(talk.document).map((one) => one.id));
  return code === "model_loading" ? learnAgain : null;
}

/** The request of a turn, and what streams its answer. */
function request(talk, turn) {
  const talks = talk.document || model().chat;
  const body = talks ? { model: model().id, messages: messages(talk, turn, turn.question), logprobs: true, top_logprobs: LIKELIEST } : { model: model().id, prompt: turn.question, max_tokens: UNTIL };
  Object.assign(body, about(talk));
  if (talk.temperature !== null) body.temperature = talk.temperature;
  if (talk.most !== null) body.max_tokens = talk.most;
  return { body, stream: talks ? api.chat : api.complete };
}

for (const event of ["documents", "models"]) on(event, () => { for (const talk of state.talks.values()) next(talk); });

/** Take a turn back, the last if none is named; returns its question. */
export function back(talk, turn = talk.turns.at(-1)) {
  talk.turns = talk.turns.filter((one) => one !== turn);
  turn?.stop.abort();
  emit("talk", talk);
  return turn?.question ?? "";
}

/** The turn whose answer is being written. */
export const written = (talk) => talk.turns.find((turn) => turn.state === "writing");

export const busy = (talk) => Boolean(written(talk));

/** Find out why an answer was given. */
export async function explain(talk, turn) {
  turn.why = { state: "working", begun: performance.now() };
  emit("turn", turn);
  try {
    const body = { model: turn.model, question: turn.question, answer: turn.answer, history: before(talk, turn) };
    turn.why = { state: "done", ...(await api.explain(turn.document, body, turn.stop.signal)) };
    say(t("why.done"));
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof ApiError)) throw error;
    turn.why = { state: "failed", error: error.message || t("unreachable") };
    say(turn.why.error, true);
  }
  emit("turn", turn);
  emit("why", turn);
}

/** Find out what a search would have seen of the document, and what the model would have said to that alone. */
export async function compare(talk, turn) {
  turn.retrieval = { state: "working" };
  emit("turn", turn);
  try {
    const { temperature, max_tokens } = turn.body;
    const body = { model: turn.model, question: turn.question, answer: turn.answer, history: before(talk, turn), explain: true, temperature: temperature ?? 0, ...(max_tokens ? { max_tokens } : {}) };
    turn.retrieval = { state: "done", ...(await api.versus(turn.document, body, turn.stop.signal)) };
    say(t("retrieval.done"));
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof ApiError)) throw error;
    turn.retrieval = { state: "failed", error: error.message || t("unreachable") };
    say(turn.retrieval.error, true);
  }
  emit("turn", turn);
}

/** What keeps an answer from being complete, or "". */
export function lacks(turn) {
  if (turn.state === "failed") return turn.code === "unreachable" ? turn.error : `${t("error")}: ${turn.error}`;
  if (turn.state === "interrupted") return t("ask.interrupted");
  if (turn.state === "stopped") return t("ask.stopped");
  if (turn.finish === "length") return t("ask.length", { most: number(turn.usage?.completion_tokens ?? turn.body.max_tokens ?? turn.scored.length) });
  return "";
}

const UNDONE = { queued: "ask.notAsked", writing: "ask.notWritten" };

/** A conversation as Markdown. */
export function asMarkdown(talk, name) {
  const parts = [`# ${name}`];
  for (const turn of talk.turns) {
    const note = turn.state in UNDONE ? t(UNDONE[turn.state]) : lacks(turn);
    parts.push(`## ${turn.question.replaceAll("\n", " ")}`, ...[turn.answer.trim(), note && `> ${note.replaceAll("\n", "\n> ")}`].filter(Boolean));
    if (turn.contract) parts.push(`<!-- ${JSON.stringify(turn.contract)} -->`);
  }
  return `${parts.join("\n\n")}\n`;
}
