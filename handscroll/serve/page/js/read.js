// Read: give documents, watch them being read, and the library of all that were.

import { ApiError, api } from "./api.js";
import { bar, howFar, paintBar, stoppedAt } from "./bar.js";
import { ask, field, fill, h, say } from "./dom.js";
import { chosen, known, several } from "./choose.js";
import { act, follow, going, learned, readingOf } from "./following.js";
import { broken, emit, model, modelOf, on, state } from "./state.js";
import { bytes, number, percent, t, when } from "./words.js";

const sending = new Map(); // uploads by number: {name, share, error, stop, awaits: the words for what they wait for}
let numbered = 0;

export function readView(main) {
  const now = h("section", { "aria-labelledby": "now", class: "now", hidden: true });
  const library = h("section", { "aria-labelledby": "library", class: "library" });
  const unread = h("section", { "aria-labelledby": "unread", class: "unread", hidden: true });
  const box = dropping();
  fill(main, h("div", { class: "sheet" },
    h("div", { class: "title" }, h("h1", {}, t("read.title")), h("p", { class: "subtitle" }, t("read.subtitle"))),
    box, now, library, unread));
  // A whole page is easier to hit than a box.
  const drop = (event) => { if (event.dataTransfer?.files.length && !box.hidden) give([...event.dataTransfer.files]); };
  main.addEventListener("drop", drop);
  const paint = () => { box.hidden = broken().length > 0; paintNow(now); paintLibrary(library); paintUnread(unread); };
  paint();
  const ends = [on("documents", paint), on("models", paint), () => main.removeEventListener("drop", drop)];
  return () => ends.forEach((end) => end());
}

function dropping() {
  const input = h("input", { type: "file", multiple: true, class: "unseen", tabindex: "-1", "aria-hidden": "true", on: {
    change: () => { give([...input.files]); input.value = ""; } } });
  const box = h("div", { class: "drop" }, input,
    h("p", { class: "big" }, t("read.drop")),
    h("p", { class: "chooses" },
      h("button", { class: "press", type: "button", on: { click: () => input.click() } }, t("read.choose")),
      h("button", { class: "quiet", type: "button", on: { click: paste } }, t("read.paste"))),
    h("p", { class: "note" }, t("read.kinds")));
  box.addEventListener("dragover", (event) => { event.preventDefault(); box.classList.add("over"); });
  box.addEventListener("dragleave", () => box.classList.remove("over"));
  box.addEventListener("drop", () => box.classList.remove("over"));
  return box;
}

async function paste() {
  const name = h("input", { type: "text", value: t("paste.default"), maxlength: "120" });
  const text = h("textarea", { rows: "10" });
  const given = await ask({ title: t("paste.title"), body: h("div", {}, field(t("paste.name"), name), field(t("paste.text"), text)),
    accept: t("paste.give"), refuse: t("cancel"), value: () => ({ name: name.value.trim(), text: text.value }) });
  if (!given?.text.trim()) return;
  const stem = (given.name || t("paste.default")).replace(/\.(txt|md)$/i, "");
  give([new File([given.text], `${stem}.txt`, { type: "text/plain" })]);
}

/** Send files one after the other; each is read as soon as it has arrived. */
async function give(files) {
  const rows = files.map((file) => {
    const stop = new AbortController();
    const row = { number: ++numbered, name: file.name, share: 0, error: "", stop, file, awaits: "read.others" };
    sending.set(row.number, row);
    return row;
  });
  emit("documents");
  for (const row of rows) {
    if (!sending.has(row.number)) continue;
    try {
      await loaded(row);
      awaits(row, "");
      const entry = await api.upload(row.file, model()?.id ?? "", (share) => { row.share = share; emit("documents"); }, row.stop.signal);
      sending.delete(row.number);
      learned(entry);
      chosen(entry.id);
      follow();
    } catch (error) {
      if (error.name === "AbortError") sending.delete(row.number);
      else if (error instanceof ApiError) { row.error = error.message || t("unreachable"); say(row.error, true); }
      else throw error;
    }
    emit("documents");
  }
}

function awaits(row, words) {
  row.awaits = words;
  emit("documents");
}

/** Wait until the model that is to read is there, so that nothing is sent in vain, or until somebody stops it. */
function loaded(row) {
  const there = () => !["waiting", "loading"].includes(model()?.state);
  return new Promise((resolve) => {
    if (there()) { resolve(); return; }
    awaits(row, "read.model");
    const off = on("models", () => { if (there()) { off(); resolve(); } });
    row.stop.signal.addEventListener("abort", () => { off(); resolve(); });
  });
}

/** A place that keeps its nodes while the same things are in it, so that focus and progress survive. */
function keep(node, rows) {
  const known = new Map([...node.children].map((one) => [one.dataset.id, one]));
  const wanted = rows.map(([id, make, update]) => {
    const row = known.get(id) ?? make();
    row.dataset.id = id;
    update(row);
    return row;
  });
  for (const one of [...node.children]) if (!wanted.includes(one)) one.remove();
  wanted.forEach((one, at) => { if (node.children[at] !== one) node.insertBefore(one, node.children[at] ?? null); });
}

function paintNow(section) {
  const rows = [];
  for (const row of sending.values()) if (!row.error) rows.push([`up-${row.number}`, () => progressing(row.name), (node) => paintSending(node, row)]);
  for (const entry of state.documents) {
    for (const [name, one] of going(entry)) rows.push([`${entry.id} ${name}`, () => progressing(entry.name, askLink(entry)), (node) => paintReading(node, entry, name, one)]);
  }
  section.hidden = rows.length === 0;
  if (!section.firstChild) fill(section, h("h2", { id: "now" }, t("read.now")), h("ul", { class: "bars" }));
  keep(section.lastChild, rows);
}

function progressing(name, link = null) {
  return h("li", {}, h("div", { class: "line" }, h("span", { class: "called" }, name), h("span", { class: "does" }, link, h("button", { class: "plain", type: "button" }, t("stop")))),
    bar(name), h("p", { class: "note" }));
}

function paintSending(node, row) {
  const words = row.awaits ? t(row.awaits) : row.share < 1 ? t("read.sending", { percent: percent(row.share) }) : t("read.opening");
  paintBar(node.querySelector(".progress"), row.awaits || row.share === 1 ? null : row.share);
  fill(node.lastChild, words);
  node.querySelector("button").onclick = () => {
    row.stop.abort();
    dismiss(row);
  };
}

function dismiss(row) {
  sending.delete(row.number);
  emit("documents");
}

/** Files that the server did not take, each until it is dismissed. */
function paintUnread(section) {
  const rows = [...sending.values()].filter((row) => row.error).map((row) => [`no-${row.number}`, () => h("li", {},
    h("div", { class: "line" }, h("span", { class: "called" }, row.name), h("button", { class: "plain", type: "button", "aria-label": t("read.dismissOne", { name: row.name }), on: { click: () => dismiss(row) } }, t("read.dismiss"))),
    h("p", { class: "fault" }, row.error)), () => {}]);
  section.hidden = rows.length === 0;
  if (!section.firstChild) fill(section, h("h2", { id: "unread" }, t("read.not")), h("ul", { class: "bars" }));
  keep(section.lastChild, rows);
}

function paintReading(node, entry, name, one) {
  const { share, words } = howFar(one);
  const { memory } = one.progress ?? {};
  if (memory) words.push(t("read.memory", { used: bytes(memory.used), planned: bytes(memory.planned) }));
  paintBar(node.querySelector(".progress"), share);
  fill(node.lastChild, words.join(" · "));
  node.querySelector("button").onclick = () => act(() => api.stop(entry.id, name));
}

function paintLibrary(section) {
  const shown = state.documents.filter((one) => !going(one).length).sort((a, b) => b.created - a.created);
  if (!section.firstChild) fill(section, h("div", { class: "line" }, h("h2", { id: "library" }, t("library")), h("button", { class: "plain", type: "button", on: { click: () => several() } }, t("choose.several"))), h("p", { class: "note empty" }, t("library.empty")), table());
  section.firstChild.lastChild.hidden = known().length < 2;
  section.children[1].hidden = !state.documentsKnown || state.documents.length > 0 || sending.size > 0 || broken().length > 0;
  section.children[2].hidden = shown.length === 0;
  section.hidden = shown.length === 0 && section.children[1].hidden;
  const rows = [];
  for (const entry of shown) {
    const key = `${entry.id} ${JSON.stringify([entry.readings, state.models])}`;
    const told = more(entry);
    rows.push([key, () => row(entry), () => {}]);
    if (told.length) rows.push([`${key} more`, () => h("tr", { class: "more" }, h("td", { colspan: "6" }, told)), () => {}]);
  }
  keep(section.querySelector("tbody"), rows);
}

function table() {
  const heads = ["name", "tokens", "size", "model", "when"].map((one) =>
    h("th", { scope: "col", class: one === "tokens" || one === "size" ? "right" : "" }, t(`library.${one}`)));
  return h("table", {}, h("thead", {}, h("tr", {}, heads, h("td", {}))), h("tbody"));
}

function row(entry) {
  const one = readingOf(entry);
  const read = one?.state === "read";
  const name = read || one?.state === "refused" ? h("a", { href: `#/ask/${entry.id}`, title: t("library.askAbout", { name: entry.name }) }, entry.name) : h("span", {}, entry.name);
  const cell = (label, ...content) => h("td", { class: "right", "data-label": t(label) }, ...content);
  return h("tr", {},
    h("th", { scope: "row" }, name),
    cell("library.tokens", one?.tokens ? number(one.tokens) : "–"),
    cell("library.size", bytes(entry.bytes)),
    h("td", { "data-label": t("library.model"), class: "model" }, read ? one.model : t("library.unread")),
    h("td", { "data-label": t("library.when"), class: "when" }, when(one?.read_at ?? entry.created)),
    h("td", { class: "does" }, again(entry, one),
      h("button", { class: "plain danger", type: "button", "aria-label": t("library.deleteOne", { name: entry.name }), on: { click: () => remove(entry) } }, t("library.delete"))));
}

/** What else there is to say of a document: why it could not be read, where its reading stopped, what its file did not give. */
function more(entry) {
  const one = readingOf(entry);
  const found = [];
  if (one?.state === "refused") found.push(h("p", { class: "note" }, refused(one.model)));
  else if (one?.error) found.push(h("p", { class: "fault" }, h("b", {}, t("library.failed", { model: one.model })), " ", one.error));
  if (one?.state === "stopped") found.push(h("p", { class: "note" }, [stoppedAt(one), one.done !== undefined && t("read.kept", { done: number(one.done) })].filter(Boolean).join(" · ")));
  if (entry.notes?.length) found.push(h("details", {}, h("summary", {}, t("read.notes")), entry.notes.map((note) => h("p", { class: "note" }, note))));
  return found;
}

/** That a document is longer than the window of a model; how long that is, is not known while the model is being loaded. */
function refused(name) {
  const context = modelOf(name)?.context;
  return context ? t("library.refused", { model: name, context: number(context) }) : t("library.refusedBy", { model: name });
}

const askLink = (entry) => h("a", { class: "plain", href: `#/ask/${entry.id}`, "aria-label": t("library.askAbout", { name: entry.name }) }, t("library.ask"));

function again(entry, one) {
  if (one?.state === "read" || one?.state === "refused") return askLink(entry);
  if (!model()) return null;
  const same = one !== null && modelOf(one.model) !== null;
  return h("button", { class: "plain", type: "button", on: { click: () => act(() => api.read(entry.id, same ? one.model : model().id)) } },
    t(same && one.state === "stopped" ? "read.on" : "read.again"));
}

async function remove(entry) {
  const sure = await ask({ title: t("delete.title", { name: entry.name }), body: h("p", {}, t("delete.text")), accept: t("library.delete"), refuse: t("delete.keep") });
  if (!sure) return;
  await act(async () => {
    await api.remove(entry.id);
    emit("deleted", entry.id);
    say(t("delete.done", { name: entry.name }));
    return {};
  });
}

