// Markdown as nodes. markdown-it reads it into tokens (HTML is text to it), and each token becomes an element of the table
// below. Nothing is ever parsed as HTML, no picture is fetched, and links lead elsewhere only when they are clicked.

import MarkdownIt from "../vendor/markdown-it.esm.min.mjs";
import { copyButton } from "./copy.js";
import { fill, h } from "./dom.js";
import { mathsPlugin, mathsNode } from "./maths.js";
import { t } from "./words.js";

const SAFE = /^(https?|mailto):/i;
const NAMES = new Set(["p", "ul", "ol", "li", "blockquote", "table", "thead", "tbody", "tr", "th", "td", "em", "strong", "s"]);
const markdown = new MarkdownIt({ html: false, linkify: false, typographer: false }).use(mathsPlugin);

/** Show a text in `node`. Blocks that are the same as before stay, so a growing answer neither flickers nor loses a selection. */
export function showMarkdown(node, text) {
  const blocks = blocksOf(markdown.parse(text, {}), text);
  const known = node.blocks ?? [];
  let same = 0;
  while (same < blocks.length && same < known.length && known[same].source === blocks[same].source) same++;
  for (const one of known.slice(same)) one.node.remove();
  for (const block of blocks.slice(same)) {
    const place = document.createElement("div");
    build(place, block.tokens);
    block.node = place.firstChild ?? document.createTextNode("");
    node.append(block.node);
  }
  node.blocks = [...known.slice(0, same), ...blocks.slice(same)];
}

/** The top-level blocks: the tokens of each, and the lines that they came from. */
function blocksOf(tokens, text) {
  const lines = text.split("\n");
  const blocks = [];
  let open = [];
  let depth = 0;
  for (const token of tokens) {
    open.push(token);
    depth += token.nesting;
    if (depth) continue;
    const [first, last] = open[0].map ?? [0, 0];
    blocks.push({ tokens: open, source: `${open[0].type} ${lines.slice(first, last).join("\n")}` });
    open = [];
  }
  return blocks;
}

function build(root, tokens) {
  const stack = [root];
  for (const token of tokens) {
    const top = stack.at(-1);
    if (token.nesting === -1) { if (stack.length > 1) stack.pop(); continue; }
    if (token.type === "inline") { build(top, token.children); continue; }
    // Paragraphs of tight lists have no element, but open and close all the same.
    const node = token.hidden ? top : nodeOf(token);
    if (node !== top) top.append(node);
    if (token.nesting === 1) stack.push(node);
  }
}

function nodeOf(token) {
  if (token.type === "heading_open") return h(`h${Math.min(6, Number(token.tag[1]) + 2)}`);
  if (token.type === "link_open") return link(token.attrGet("href") ?? "");
  if (token.type === "ordered_list_open") return h("ol", { start: token.attrGet("start") });
  if (token.type === "th_open" || token.type === "td_open") return h(token.tag, { class: aligned(token), scope: token.tag === "th" && "col" });
  if (token.type === "table_open") return h("table");
  if (token.nesting === 1) return h(NAMES.has(token.tag) ? token.tag : "span");
  if (token.type === "code_inline") return h("code", {}, token.content);
  if (token.type === "fence") return code(token.content, token.info.trim().split(/\s+/)[0]);
  if (token.type === "code_block") return code(token.content, "");
  if (token.type === "hr") return h("hr");
  if (token.type === "hardbreak") return h("br");
  if (token.type === "softbreak") return document.createTextNode("\n");
  if (token.type === "image") return image(token);
  if (token.type === "maths_inline" || token.type === "maths_block") return mathsNode(token.content, token.type === "maths_block");
  return document.createTextNode(token.content);
}

function aligned(token) {
  const found = /text-align:(left|right|center)/.exec(token.attrGet("style") ?? "");
  return found ? found[1] : null;
}

/** A link says where it leads and opens elsewhere; one that leads into this page or to another scheme is only text. */
function link(href) {
  if (!SAFE.test(href)) return h("span", { class: "dead" });
  return h("a", { href, title: href, target: "_blank", rel: "noopener noreferrer nofollow" });
}

/** A picture is never fetched: its description stands for it, as a link. */
function image(token) {
  return fill(link(token.attrGet("src") ?? ""), t("image", { name: token.content || token.attrGet("src") }));
}

function code(text, language) {
  const body = h("code", {}, text.replace(/\n$/, ""));
  return h("figure", { class: "code" }, h("figcaption", {}, h("span", {}, language), copyButton(text)), h("pre", { tabindex: "0" }, body));
}
