/**
 * The little Markdown that language models write → a tree, and the tree → elements. Paragraphs,
 * headings, lists, quotes, code and emphasis; no links, no pictures and no HTML, which stay the text
 * they are: an answer must not be able to lead anyone anywhere. `blocks` is pure.
 */

import { el } from "./dom.js";

const FENCE = /^ {0,3}```/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*)$/;
const ITEM = /^\s*(?:[-*+]|(\d{1,9})[.)])\s+(.*)$/;
const QUOTE = /^ {0,3}>\s?(.*)$/;
const INLINE = /`([^`]+)`|\*\*(?=\S)(.+?)(?<=\S)\*\*|(?<![\w*])\*(?=\S)([^*]+?)(?<=\S)\*(?![\w*])/g;

/** Text → blocks: {kind: "p" | "pre" | "heading" | "quote", text} or {kind: "ul" | "ol", start, items}. */
export function blocks(text) {
  const found = [];
  const lines = text.split("\n");
  for (let i = 0; i < lines.length; i++) {
    const line = lines[i];
    const last = found.at(-1);
    if (FENCE.test(line)) {
      const code = [];
      while (++i < lines.length && !FENCE.test(lines[i])) code.push(lines[i]);
      found.push({ kind: "pre", text: code.join("\n") });
    } else if (!line.trim()) {
      found.push({ kind: "gap" });
    } else if (HEADING.test(line)) {
      found.push({ kind: "heading", text: HEADING.exec(line)[2] });
    } else if (ITEM.test(line)) {
      const [, number, item] = ITEM.exec(line);
      const kind = number ? "ol" : "ul";
      const list = last?.kind === "gap" ? found.at(-2) : last; // a gap does not end a list
      if (list?.kind === kind) list.items.push(item);
      else found.push({ kind, start: Number(number ?? 1), items: [item] });
    } else if (QUOTE.test(line)) {
      const [, words] = QUOTE.exec(line);
      if (last?.kind === "quote") last.text += `\n${words}`;
      else found.push({ kind: "quote", text: words });
    } else if (last?.kind === "p") {
      last.text += `\n${line}`;
    } else if ((last?.kind === "ul" || last?.kind === "ol") && /^\s/.test(line)) {
      last.items.push(`${last.items.pop()}\n${line.trim()}`);
    } else {
      found.push({ kind: "p", text: line });
    }
  }
  return found.filter((block) => block.kind !== "gap");
}

/** Emphasis and code within a line → nodes. */
function inline(text) {
  const nodes = [];
  let at = 0;
  for (const match of text.matchAll(INLINE)) {
    const [whole, code, strong, emphasis] = match;
    if (match.index > at) nodes.push(text.slice(at, match.index));
    if (code) nodes.push(el("code", {}, code));
    else if (strong) nodes.push(el("strong", {}, strong));
    else nodes.push(el("em", {}, emphasis));
    at = match.index + whole.length;
  }
  nodes.push(text.slice(at));
  return nodes;
}

/** Text → elements. */
export function elements(text) {
  return blocks(text).map(({ kind, text: words, items, start }) => {
    if (items) {
      const given = kind === "ol" && start !== 1 ? { start } : {};
      return el(kind, given, ...items.map((item) => el("li", {}, ...inline(item))));
    }
    if (kind === "pre") return el("pre", { tabindex: "0" }, el("code", {}, words));
    if (kind === "heading") return el("p", { class: "heading" }, ...inline(words));
    return el(kind === "quote" ? "blockquote" : "p", {}, ...inline(words));
  });
}
