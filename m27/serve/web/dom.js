/**
 * Elements made by code: text goes in as text, never as HTML, so nothing that a model or a person
 * wrote can become part of the page. Knows nothing of chats.
 */

const SVG = "http://www.w3.org/2000/svg";

/**
 * A new element. `given`: attributes (true sets an empty one; false, null and undefined leave it
 * out), `class`, and listeners as `onclick` and the like. `children`: elements, or strings of text.
 */
export function el(name, given = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(given)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** A picture of the page's own set (the symbols in index.html); says nothing to a screen reader. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** A button with an icon and, unless `bare`, its words beside it; the words name it either way. */
export function button(name, words, onclick, { bare = false, kind = "quiet" } = {}) {
  const label = bare ? { "aria-label": words, title: words } : {};
  const given = { type: "button", class: `${kind}${bare ? " round" : ""}`, onclick, ...label };
  return el("button", given, icon(name), bare ? null : el("span", {}, words));
}

/** Gives the person's browser a file to keep. */
export function download(name, blob) {
  const url = URL.createObjectURL(blob);
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000); // after the browser has begun to read it
}
