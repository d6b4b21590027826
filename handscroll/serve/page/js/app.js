// The frame: the top, the four places, language and theme, the key, and what is asked of the server now and then.

import { ApiError, api, key, locked } from "./api.js";
import { usual } from "./choose.js";
import { ask as askDialog, field, fill, find, h, remember, say } from "./dom.js";
import { broken, chooseModel, emit, model, on, state, writers } from "./state.js";
import { lang, t } from "./words.js";
import { readView } from "./read.js";
import { askView } from "./ask.js";
import { tasksView } from "./tasks.js";
import { lookView } from "./look.js";
import { follow } from "./following.js";
import { restore } from "./kept.js";
import { lookOn } from "./learning.js";

const PLACES = { read: readView, ask: askView, tasks: tasksView, look: lookView };
const RETRY = 4000; // milliseconds until a server that did not answer is asked again
let leave = () => {};
let refusal = null; // what the server said when the page was opened, as long as nothing is known of it

function place() {
  const [, name, id] = location.hash.split("/");
  return { name: name in PLACES ? name : "read", id: decodeURIComponent(id ?? "") };
}

/** Show a place anew. What it keeps is in `state`, so nothing is lost. */
function show(moved = false) {
  leave();
  const { name, id } = place();
  const main = find("main");
  document.title = name === "read" ? "Handscroll" : `${t(name)} · Handscroll`;
  fill(find("skip"), t("skip"));
  top(name);
  fill(main);
  main.className = `place-${name}`;
  leave = (refusal ? refused(main) : PLACES[name](main, id)) ?? (() => {});
  if (moved) {
    if (!main.contains(document.activeElement)) main.focus({ preventScroll: true }); // a place may have a better one
    scrollTo(0, 0);
  }
}

/** The address of a place; to ask is to ask about something, if there is anything. */
const way = (name) => (name === "ask" && usual() ? `#/ask/${usual()}` : `#/${name}`);

function top(current) {
  const links = Object.keys(PLACES).map((name) =>
    h("li", {}, h("a", { href: way(name), "data-place": name, "aria-current": name === current && "page" }, t(name))));
  fill(find("top"), h("div", { class: "bar" },
    h("a", { class: "name", href: "#/read" }, "Handscroll"),
    h("nav", { "aria-label": t("places") }, h("ul", { class: "places" }, links)),
    h("div", { class: "corner" }, which(), switches())), banner());
}

/** What keeps the whole page from being of use. */
function banner() {
  const words = state.silent ? [t("unreachable.again")] : broken().map((one) => `${t("model.failed", { name: one.id })}: ${one.error ?? ""}`);
  if (!words.length) return null;
  if (!state.silent) words.push(t("model.help"));
  return h("section", { class: "banner", "aria-label": t("attention") }, words.map((one) => h("p", {}, one)));
}

/** Which model is asked: its name, or a choice if there are several. */
function which() {
  const able = writers();
  if (able.length < 2) {
    const only = able[0];
    const words = !only ? "" : only.state === "ready" ? only.id : only.state === "failed" ? "" : t("model.loading", { name: only.id });
    return h("span", { class: "which", title: words }, words);
  }
  const select = h("select", { id: "model", "aria-label": t("model"), on: { change: () => {
    chooseModel(select.value);
    show();
    find("model").focus();
  } } },
    able.map((one) => h("option", { value: one.id, disabled: one.state !== "ready" }, one.state === "failed" ? t("model.failed", { name: one.id }) : one.id)));
  select.value = model()?.id ?? "";
  return select;
}

function switches() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const theme = document.documentElement.dataset.theme ?? (dark ? "dark" : "light");
  const other = theme === "dark" ? "light" : "dark";
  return [
    h("button", { class: "plain icon", type: "button", id: "language", title: t("lang.switch"), lang: lang() === "zh" ? "en" : "zh", on: { click: () => {
      document.documentElement.lang = lang() === "zh" ? "en" : "zh";
      remember("lang", lang());
      show();
      find("language").focus();
    } } }, t("lang.other")),
    h("button", { class: "plain icon", type: "button", id: "theme", title: t("theme.switch"), on: { click: () => {
      document.documentElement.dataset.theme = other;
      remember("theme", other);
      top(place().name);
      emit("theme");
      find("theme").focus();
    } } }, t(`theme.${other}`)),
  ];
}

/** Ask for the key once, whoever needs it first; all who wait get the same answer. */
let asking = null;
locked.ask = () => {
  asking ??= askForKey().finally(() => { asking = null; });
  return asking;
};

async function askForKey() {
  const input = h("input", { type: "password", autocomplete: "off", spellcheck: "false" });
  const words = key.get() ? t("key.wrong") : t("key.text");
  const given = await askDialog({ title: t("key.title"), body: h("div", {}, h("p", { class: "note" }, words), field(t("key.label"), input)),
    accept: t("key.enter"), refuse: t("cancel"), value: () => input.value.trim() });
  key.set(given ?? "");
  if (given) emit("key");
  return Boolean(given);
}

/** What stands in every place while nothing is known of the server. A key is asked for again only when somebody wants to give one. */
function refused(main) {
  fill(main, h("div", { class: "sheet" }, h("p", { class: "fault" }, refusalWords()),
    refusal.status === 401 && h("p", {}, h("button", { class: "press", type: "button", on: { click: learn } }, t("key.again")))));
}

const refusalWords = () => (refusal.code === "unreachable" ? t("unreachable.again") : refusal.message);

let learning = null;
function learn() {
  learning ??= learnAll().finally(() => { learning = null; });
  return learning;
}

/** What models and documents there are, when the page is opened; tries again if the server does not answer. */
async function learnAll() {
  if (state.documentsKnown) return;
  try {
    state.models = await api.models();
    state.documents = await api.documents();
    state.documentsKnown = true;
    refusal = null;
    restore();
    follow();
    show();
    emit("documents"); // a question may have waited while the page was away
    lookOn();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    refusal = error;
    leave();
    leave = () => {};
    refused(find("main"));
    say(refusalWords(), true);
    if (error.status !== 401) setTimeout(learn, RETRY);
  }
}

on("models", () => {
  top(place().name);
  const banner = find("top").querySelector(".banner");
  if (banner) say(banner.textContent, true);
});

find("skip").addEventListener("click", (event) => {
  event.preventDefault();
  find("main").focus();
});
// A file that misses its place must not replace this page.
for (const event of ["dragover", "drop"]) addEventListener(event, (one) => one.preventDefault());
addEventListener("hashchange", () => show(true));
on("show", () => show());
on("key", () => { if (!state.documentsKnown) learn(); });
for (const event of ["documents", "chosen"]) on(event, () => { find("top").querySelector("[data-place=ask]").href = way("ask"); });
top(place().name);
learn();
