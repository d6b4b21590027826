// The server's interface, in one place. Every error is an ApiError with the server's own words.

import { emit } from "./state.js";
import * as tab from "./tab.js";

const KEY = "key";
// Refusals after which what the page knows of the server may no longer be so.
const STALE = new Set(["unreachable", "model_loading", "model_not_found", "document_not_found"]);

export class ApiError extends Error {
  constructor(message, status = 0, code = "") {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** The key is kept for this tab only, and goes nowhere but into the header of our own server's requests. */
export const key = {
  get: () => tab.get(KEY) ?? "",
  set: (value) => tab.set(KEY, value || null),
};

const headers = (more = {}) => (key.get() ? { ...more, Authorization: `Bearer ${key.get()}` } : more);

/** Asked once when the server wants a key: resolves to true if one was given (set by app.js). */
export const locked = { ask: async () => false };

/** A refusal; that the page should look again at what is served is told as the event "stale". */
function refusal(message, status, code) {
  if (STALE.has(code)) emit("stale");
  return new ApiError(message, status, code);
}

const unreachable = () => refusal("", 0, "unreachable");

/** A connection that ends within an answer is told as a TypeError. */
const dropped = (error) => { throw error instanceof TypeError ? unreachable() : error; };

/** The error of an answer. One of another form is not the server's own, but that of a gateway before it. */
function errorOf(status, text) {
  let error;
  try {
    ({ error } = JSON.parse(text));
  } catch {
    error = null;
  }
  if (typeof error?.message === "string") return refusal(error.message, status, error.code ?? "");
  return new ApiError(text.slice(0, 500) || `HTTP ${status}`, status);
}

function parsed(status, text) {
  try {
    return JSON.parse(text);
  } catch {
    throw errorOf(status, text);
  }
}

async function send(method, path, { json, signal, again = true } = {}) {
  const init = { method, signal, headers: headers(json === undefined ? {} : { "Content-Type": "application/json" }) };
  if (json !== undefined) init.body = JSON.stringify(json);
  let response;
  try {
    response = await fetch(path, init);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw unreachable();
  }
  if (response.ok) return response;
  if (response.status === 401 && again && (await locked.ask())) return send(method, path, { json, signal, again: false });
  throw errorOf(response.status, await response.text().catch(dropped));
}

async function json(method, path, options) {
  const response = await send(method, path, options);
  return parsed(response.status, await response.text().catch(dropped));
}

const at = (id, rest = "") => `/v1/documents/${encodeURIComponent(id)}${rest}`;

/** The objects of a stream of server-sent events, as they arrive. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch(dropped);
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
        const event = parsed(response.status, line.slice(6));
        if (event.error) throw refusal(event.error.message, 200, event.error.code ?? "");
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Upload a file; `onSent` hears the share that has left this machine. fetch cannot tell it, so this is the older way. */
function upload(file, model, onSent, signal, again = true) {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted(); // while a model was loaded or a key was asked for
    const request = new XMLHttpRequest();
    const form = new FormData();
    form.append("file", file, file.name);
    if (model) form.append("model", model);
    request.open("POST", "/v1/documents");
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.upload.addEventListener("progress", (event) => event.lengthComputable && onSent(event.loaded / event.total));
    const answer = async () => {
      if (request.status < 300) return parsed(request.status, request.responseText);
      if (request.status === 401 && again && (await locked.ask())) return upload(file, model, onSent, signal, false);
      throw errorOf(request.status, request.responseText);
    };
    request.addEventListener("load", () => answer().then(resolve, reject));
    request.addEventListener("error", () => reject(unreachable()));
    request.addEventListener("abort", () => reject(new DOMException("stopped", "AbortError")));
    signal?.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}

export const api = {
  models: async () => (await json("GET", "/v1/models")).data,
  model: (name, signal) => json("GET", `/v1/models/${encodeURIComponent(name)}`, { signal }),
  documents: async () => (await json("GET", "/v1/documents")).data,
  document: (id) => json("GET", at(id)),
  text: (id, signal) => json("GET", at(id, "/text"), { signal }),
  upload,
  read: (id, model) => json("POST", at(id, "/read"), { json: { model } }),
  stop: (id, model) => json("POST", at(id, "/stop"), { json: { model } }),
  remove: (id) => json("DELETE", at(id)),
  explain: (id, body, signal) => json("POST", at(id, "/explain"), { json: body, signal }),
  versus: (id, body, signal) => json("POST", at(id, "/retrieval"), { json: body, signal }),
  count: (body, signal) => json("POST", "/v1/count", { json: body, signal }),
  /** How far a report of a model is: {done, total, seconds_left}, and at the end {text, records}. */
  async *report(name, body, signal) {
    yield* events(await send("POST", `/v1/models/${encodeURIComponent(name)}/report`, { json: body, signal }));
  },
  /** The pieces of an answer: {text, thought, scored, finish, contract, usage}. */
  async *chat(body, signal) {
    const response = await send("POST", "/v1/chat/completions", {
      json: { ...body, stream: true, stream_options: { include_usage: true } }, signal });
    for await (const event of events(response)) {
      const choice = event.choices[0];
      yield {
        text: choice?.delta.content ?? "",
        thought: choice?.delta.reasoning_content ?? "",
        scored: choice?.logprobs?.content ?? [],
        finish: choice?.finish_reason ?? null,
        contract: event.handscroll ?? null,
        usage: event.usage ?? null,
      };
    }
  },
  /** The pieces of a text that is continued, in the same form. */
  async *complete(body, signal) {
    const response = await send("POST", "/v1/completions", { json: { ...body, stream: true }, signal });
    for await (const event of events(response)) {
      const choice = event.choices[0];
      yield { text: choice?.text ?? "", thought: "", scored: [], finish: choice?.finish_reason ?? null,
        contract: event.handscroll ?? null, usage: null };
    }
  },
};
