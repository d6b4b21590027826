// Mathematics: $...$, $$...$$, \(...\) and \[...\], written by KaTeX as MathML, which browsers draw themselves: no fonts, no
// styles. KaTeX's tree is copied element by element, so that no attribute outside the list below ever reaches the page.

import { fill, h } from "./dom.js";

const SPACE = "http://www.w3.org/1998/Math/MathML";
const NAMES = new Set(("math semantics annotation mrow mi mn mo ms mtext mspace msub msup msubsup mfrac msqrt mroot munder mover " +
  "munderover mtable mtr mtd mlabeledtr mstyle mpadded mphantom menclose merror mglyph").split(" "));
const ATTRIBUTES = new Set(("accent accentunder align columnalign columnlines columnspacing depth display displaystyle encoding fence form " +
  "height linebreak linethickness lspace mathbackground mathcolor mathsize mathvariant maxsize minsize movablelimits notation rowlines " +
  "rowspacing rspace scriptlevel separator side stretchy symmetric voffset width").split(" "));
const OPTIONS = { output: "mathml", throwOnError: true, strict: false, trust: false, maxSize: 20, maxExpand: 500 };
let loading = null;

/** KaTeX is fetched from our own server when the first formula comes. */
function katex() {
  loading ??= import("../vendor/katex.min.js").then(() => globalThis.katex);
  return loading;
}

/** A formula; its source stands there until it is drawn, and stays if it cannot be. */
export function mathsNode(source, block) {
  const node = h("span", { class: block ? "maths block" : "maths" }, h("code", {}, source));
  if (block) node.tabIndex = 0;
  katex().then((engine) => {
    try {
      fill(node, copied(engine.__renderToDomTree(source, { ...OPTIONS, displayMode: block })));
    } catch (error) {
      node.title = error.message;
      node.classList.add("wrong");
    }
  });
  return node;
}

/** KaTeX's tree as nodes: elements of MathML only, and only the attributes that are known. */
function copied(tree) {
  if (typeof tree.type === "string") return element(tree);
  if (typeof tree.text === "string") return document.createTextNode(tree.text);
  if (typeof tree.character === "string") return document.createTextNode(tree.character);
  if (typeof tree.width === "number") return element({ type: "mspace", attributes: { width: `${tree.width}em` }, children: [] });
  return (tree.children ?? []).map(copied).flat(Infinity);
}

function element(tree) {
  if (!NAMES.has(tree.type)) return (tree.children ?? []).map(copied);
  const node = document.createElementNS(SPACE, tree.type);
  for (const [name, value] of Object.entries(tree.attributes)) if (ATTRIBUTES.has(name)) node.setAttribute(name, value);
  node.append(...tree.children.map(copied).flat(Infinity));
  return node;
}

/** A rule of markdown-it for formulas. A dollar sign before a number is money: what it opens must not begin or end with a space, nor be followed by a digit. */
export function mathsPlugin(markdown) {
  markdown.inline.ruler.before("escape", "maths", inline);
  markdown.block.ruler.before("fence", "maths", block, { alt: ["paragraph", "reference", "blockquote", "list"] });
}

function inline(state, silent) {
  const { src, pos } = state;
  const open = ["$$", "\\(", "\\[", "$"].find((one) => src.startsWith(one, pos));
  if (!open) return false;
  const close = { "\\(": "\\)", "\\[": "\\]" }[open] ?? open;
  const end = src.indexOf(close, pos + open.length);
  const source = end < 0 ? "" : src.slice(pos + open.length, end);
  if (!source.trim()) return false;
  if (open === "$" && (/^\s|\s$/.test(source) || /\d/.test(src[end + 1] ?? ""))) return false;
  if (!silent) state.push(open === "$$" || open === "\\[" ? "maths_block" : "maths_inline", "", 0).content = source.trim();
  state.pos = end + close.length;
  return true;
}

function block(state, first, last, silent) {
  const line = (at) => state.src.slice(state.bMarks[at] + state.tShift[at], state.eMarks[at]);
  const open = ["$$", "\\["].find((one) => line(first).startsWith(one));
  if (!open || state.sCount[first] - state.blkIndent >= 4) return false;
  const close = open === "$$" ? "$$" : "\\]";
  const parts = [line(first).slice(2)];
  let at = first;
  while (!parts.at(-1).includes(close)) {
    if (++at >= last) return false;
    parts.push(line(at));
  }
  const [end, rest] = [parts.at(-1).indexOf(close), parts.at(-1).slice(parts.at(-1).indexOf(close) + 2)];
  if (rest.trim()) return false;
  parts[parts.length - 1] = parts.at(-1).slice(0, end);
  if (silent) return true;
  const token = state.push("maths_block", "", 0);
  token.content = parts.join("\n").trim();
  token.map = [first, at + 1];
  state.line = at + 1;
  return true;
}
