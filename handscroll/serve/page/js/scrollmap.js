// The document as a handscroll: attention over it from its beginning to its end, and below it the passages that carry the
// answer. Drawn on a canvas from a pyramid of maxima, so that a screen of pixels is drawn however long the text is, and a
// passage that is narrower than a pixel still shows.

import { short } from "./contract.js";
import { fill, h } from "./dom.js";
import { on } from "./state.js";
import { effectWords, visit } from "./why.js";
import { number, percent, t } from "./words.js";

const HEIGHT = 148;
const BASE = 116; // where the attention stands on
const SHOWN = 240; // characters of the passage below
const LEAST = 400; // characters that are seen at the nearest

/** Maxima of densities over equal cells, level by level, each half as long as the one before. */
export function pyramid(marks, total, cells = 1 << 15) {
  const width = Math.max(1, total / cells);
  const count = Math.ceil(total / width);
  const first = new Float32Array(count);
  for (const one of marks) {
    const density = one.attention / Math.max(1, one.end - one.start);
    for (let at = Math.floor(one.start / width); at < Math.min(count, Math.ceil(one.end / width)); at++) first[at] = Math.max(first[at], density);
  }
  const levels = [{ width, values: first }];
  while (levels.at(-1).values.length > 1) {
    const { width: wide, values } = levels.at(-1);
    const next = new Float32Array(Math.ceil(values.length / 2));
    for (let at = 0; at < next.length; at++) next[at] = Math.max(values[2 * at], values[2 * at + 1] ?? 0);
    levels.push({ width: wide * 2, values: next });
  }
  return levels;
}

/** The greatest density between two places, from cells no wider than the stretch itself. */
export function greatest(levels, from, to) {
  let level = 0;
  while (level + 1 < levels.length && levels[level + 1].width <= to - from) level++;
  const { width, values } = levels[level];
  let most = 0;
  for (let at = Math.max(0, Math.floor(from / width)); at <= Math.min(values.length - 1, Math.floor((to - 1e-9) / width)); at++) most = Math.max(most, values[at]);
  return most;
}

export function scrollMap(turn) {
  const { marks } = turn.why;
  const total = marks.at(-1)?.end ?? 1;
  const levels = pyramid(marks, total);
  const map = { marks, total, levels, top: levels.at(-1).values[0] || 1, from: 0, to: total, at: null };
  const canvas = h("canvas", { tabindex: "0", role: "img", "aria-label": t("look.mapLabel"), "aria-describedby": "map-at" });
  const words = h("p", { class: "note", id: "map-at" });
  const shown = h("p", { class: "passage" });
  const button = (key, act) => h("button", { class: "plain", type: "button", on: { click: act } }, t(key));
  const node = h("div", { class: "map" }, canvas, h("div", { class: "line" }, words,
    h("span", { class: "steps" }, button("look.zoomIn", () => zoom(0.5)), button("look.zoomOut", () => zoom(2)), button("look.all", () => zoom(1e9)))), shown);
  const paint = () => { draw(canvas, map); fill(words, t("look.at", { start: number(Math.floor(map.from) + 1), end: number(Math.ceil(map.to)), total: number(total) })); };
  function zoom(by, around = (map.from + map.to) / 2) {
    const size = Math.min(total, Math.max(Math.min(LEAST, total), (map.to - map.from) * by));
    const share = (around - map.from) / (map.to - map.from);
    move(around - share * size, size);
  }
  function move(from, size = map.to - map.from) {
    map.from = Math.min(Math.max(0, from), total - size);
    map.to = map.from + size;
    paint();
  }
  const placeOf = (event) => map.from + ((map.to - map.from) * (event.clientX - canvas.getBoundingClientRect().left)) / canvas.clientWidth;
  listen(canvas, map, { zoom, move, placeOf, look: (place) => { map.at = passageAt(marks, place); fill(shown, map.at && passageWords(turn, map.at)); paint(); } });
  const seen = new ResizeObserver(paint);
  seen.observe(canvas);
  const best = marks.reduce((most, one) => (one.attention > most.attention ? one : most), marks[0]);
  map.at = best;
  fill(shown, passageWords(turn, best));
  const off = on("theme", paint);
  return { node, end: () => { seen.disconnect(); off(); } };
}

function listen(canvas, map, { zoom, move, placeOf, look }) {
  let dragged = null;
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) move(map.from + ((map.to - map.from) * event.deltaX) / canvas.clientWidth);
    else zoom(Math.exp(event.deltaY / 400), placeOf(event));
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => { dragged = { x: event.clientX, from: map.from }; canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointermove", (event) => {
    if (dragged) move(dragged.from - ((event.clientX - dragged.x) * (map.to - map.from)) / canvas.clientWidth);
    else look(placeOf(event));
  });
  canvas.addEventListener("pointerup", (event) => {
    if (dragged && Math.abs(event.clientX - dragged.x) < 4) look(placeOf(event));
    dragged = null;
  });
  canvas.addEventListener("keydown", (event) => {
    const step = (map.to - map.from) / 8;
    const acts = { ArrowRight: () => move(map.from + step), ArrowLeft: () => move(map.from - step), "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), Home: () => move(0), End: () => move(map.total), 0: () => zoom(1e9) };
    if (!(event.key in acts)) return;
    event.preventDefault();
    acts[event.key]();
    look((map.from + map.to) / 2);
  });
}

const passageAt = (marks, place) => marks.find((one) => one.start <= place && place < one.end) ?? null;

function passageWords(turn, one) {
  const words = [t("why.attention", { percent: percent(one.attention, 2) })];
  if (one.effect !== null) words.unshift(effectWords(one.effect));
  const go = one.marked && h("button", { class: "plain", type: "button", on: { click: () => visit({ document: turn.document, number: one.start }) } }, t("why.show"));
  return [h("q", {}, short(one.text, SHOWN)), " ", h("span", { class: "note" }, words.join(" · ")), go];
}

function colours(canvas) {
  const style = getComputedStyle(canvas);
  // Custom properties keep light-dark(...) unresolved; properties that take colours give what is painted.
  return { ink: style.color, accent: style.outlineColor, rule: style.borderTopColor, soft: style.backgroundColor };
}

function draw(canvas, map) {
  const [width, ratio] = [canvas.clientWidth, devicePixelRatio || 1];
  if (!width) return;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(HEIGHT * ratio);
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const { accent, ink, rule } = colours(canvas);
  const size = map.to - map.from;
  const x = (place) => ((place - map.from) / size) * width;
  pen.fillStyle = rule;
  pen.fillRect(0, BASE, width, 1);
  pen.fillStyle = accent;
  for (let column = 0; column < width; column++) {
    const value = greatest(map.levels, map.from + (column * size) / width, map.from + ((column + 1) * size) / width);
    // The square root keeps small shares visible beside one large one.
    const high = Math.sqrt(value / map.top) * (BASE - 8);
    pen.globalAlpha = 0.35 + 0.65 * Math.sqrt(value / map.top);
    pen.fillRect(column, BASE - high, 1, high);
  }
  pen.globalAlpha = 1;
  pen.fillStyle = ink;
  for (const one of map.marks) {
    if (!one.marked || one.end < map.from || one.start > map.to) continue;
    pen.fillRect(x(one.start), BASE + 6, Math.max(3, x(one.end) - x(one.start)), 6 + Math.min(18, 6 * Math.sqrt(one.effect)));
  }
  if (map.at) {
    pen.strokeStyle = ink;
    pen.strokeRect(Math.round(x(map.at.start)) + 0.5, 0.5, Math.max(2, x(map.at.end) - x(map.at.start)), BASE);
  }
}
