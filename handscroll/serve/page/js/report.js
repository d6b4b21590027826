// The model's report: needles hidden in a long text, and the loss by position, measured while the page waits.

import { ApiError, api } from "./api.js";
import { field, fill, h, say } from "./dom.js";
import { documentOf, emit, on, state } from "./state.js";
import { number, percent, span, t } from "./words.js";

const SHORTEST = 512;
const USUAL = 2048;

/** What was measured of a model, or is being measured; it goes on while other places are open. */
function reportOf(name) {
  if (!state.reports.has(name)) state.reports.set(name, { longest: USUAL, document: "", state: "none", done: null, records: [], error: "", stop: null });
  return state.reports.get(name);
}

export function reportSection(served, ends) {
  const report = reportOf(served.id);
  const body = h("div", { class: "report" });
  const paint = () => fill(body, report.state === "working" ? working(report) : form(served, report), report.error && h("p", { class: "fault", role: "alert" }, report.error), report.records.length > 0 && found(report));
  paint();
  const offered = () => JSON.stringify(state.documents.map((one) => [one.id, one.name]));
  let known = offered();
  ends.push(on("report", (name) => { if (name === served.id) paint(); }),
    on("documents", () => {
      if (offered() === known) return; // the list may be open
      known = offered();
      paint();
    }));
  return h("section", { "aria-labelledby": "report-title" }, h("h2", { id: "report-title" }, t("report.title")), h("p", { class: "lead" }, t("report.text")), body);
}

function form(served, report) {
  const lengths = [];
  for (let one = SHORTEST; one <= served.context; one *= 2) lengths.push(one);
  if (!lengths.length) lengths.push(served.context);
  if (!lengths.includes(report.longest)) report.longest = lengths[lengths.length - 1];
  const longest = h("select", {}, lengths.map((one) => h("option", { value: one }, number(one))));
  const texts = h("select", {}, [h("option", { value: "" }, t("report.own")), ...state.documents.map((one) => h("option", { value: one.id }, one.name))]);
  if (!documentOf(report.document)) report.document = "";
  longest.value = String(report.longest);
  texts.value = report.document;
  longest.addEventListener("change", () => { report.longest = Number(longest.value); });
  texts.addEventListener("change", () => { report.document = texts.value; });
  const node = h("form", { class: "task" }, h("div", { class: "row" }, field(t("report.longest"), longest), field(t("report.on"), texts)),
    h("p", { class: "ends" }, h("button", { class: "press", type: "submit" }, t("report.go"))));
  node.addEventListener("submit", (event) => { event.preventDefault(); measure(served.id, report); });
  return node;
}

function working(report) {
  const share = report.done ? report.done.done / report.done.total : null;
  const bar = h("i");
  if (share !== null) bar.style.width = `${share * 100}%`;
  const words = share === null ? t("report.waiting") : t("read.tokens", { done: number(report.done.done), total: number(report.done.total) });
  const left = report.done?.seconds_left ? ` · ${t("report.left", { left: span(report.done.seconds_left) })}` : "";
  return [h("div", { class: share === null ? "progress unknown" : "progress", role: "progressbar", "aria-label": t("report.title"), "aria-valuemin": "0", "aria-valuemax": "100", "aria-valuenow": share === null ? null : Math.floor(share * 100) }, bar),
    h("p", { class: "note" }, words + left), h("p", { class: "ends" }, h("button", { class: "quiet", type: "button", on: { click: () => report.stop.abort() } }, t("stop")))];
}

async function measure(name, report) {
  Object.assign(report, { state: "working", done: null, records: [], error: "", stop: new AbortController() });
  emit("report", name);
  const body = { longest: report.longest };
  if (report.document) body.document = report.document;
  try {
    for await (const event of api.report(name, body, report.stop.signal)) {
      if (event.records) Object.assign(report, { records: event.records, text: body.document ? event.text : "" });
      else if (event.done) report.done = event;
      emit("report", name);
    }
    say(t("report.done"));
  } catch (error) {
    if (error.name !== "AbortError") {
      if (!(error instanceof ApiError)) throw error;
      report.error = error.message || t("unreachable");
    }
  } finally {
    report.state = "none";
    emit("report", name);
  }
}

function found(report) {
  const [needles, losses] = report.records;
  return [h("p", { class: "note" }, t("report.over", { text: report.text || t("report.own"), count: number(report.records.reduce((sum, one) => sum + one.tokens, 0)) })), grid(needles), curve(losses),
    h("p", {}, h("button", { class: "quiet", type: "button", on: { click: () => save(report) } }, t("report.save")))];
}

/** A row a depth, a column a length: the share of needles that were found. */
function grid(record) {
  const head = h("tr", {}, h("th", { scope: "col" }, t("report.depth")), record.lengths.map((one) => h("th", { scope: "col", class: "right" }, number(one))));
  const rows = record.depths.map((depth, row) => h("tr", {}, h("th", { scope: "row" }, percent(depth)), record.accuracy[row].map((share) =>
    h("td", { class: "right cell", "data-share": String(Math.round(share * 4)) }, t("report.cell", { found: number(Math.round(share * record.samples)), all: number(record.samples) })))));
  return h("table", { class: "grid" }, h("caption", {}, t("report.needles")), h("thead", {}, head), h("tbody", {}, rows));
}

/** The loss of blocks of positions, as bars; at most sixteen of them. */
function curve(record) {
  const each = Math.ceil(record.loss.length / 16);
  const bars = [];
  for (let first = 0; first < record.loss.length; first += each) {
    const part = record.loss.slice(first, first + each);
    bars.push([first * record.block, Math.min((first + part.length) * record.block, record.length) - 1, part.reduce((sum, one) => sum + one, 0) / part.length]);
  }
  const most = Math.max(...bars.map(([, , loss]) => loss));
  return h("figure", { class: "curve" }, h("figcaption", {}, t("report.loss", { mean: number(record.mean, 3) })), h("dl", { class: "bars" }, bars.map(([first, last, loss]) => {
    const bar = h("i");
    bar.style.width = `${(loss / most) * 100}%`;
    return h("div", {}, h("dt", {}, `${number(first)}–${number(last)}`), h("dd", {}, bar, h("span", {}, number(loss, 2))));
  })));
}

/** The records as a file, of which `handscroll report` makes a page. */
function save(report) {
  const lines = report.records.map((one) => JSON.stringify(one)).join("\n");
  const link = h("a", { href: URL.createObjectURL(new Blob([`${lines}\n`], { type: "application/jsonl" })), download: "report.jsonl" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
