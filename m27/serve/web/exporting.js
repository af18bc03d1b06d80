/**
 * A conversation as a file to keep: JSON whose messages are in the API's form, or a page that needs
 * nothing else: text is escaped, media are data URLs, and there are no scripts. Shows and saves nothing.
 */

import { figures } from "./answer.js";
import { chosen, toApi } from "./conversation.js";
import { el } from "./dom.js";
import { dataUrl } from "./files.js";
import { elements } from "./markdown.js";

/** A name for the file, out of the conversation's title. */
export function fileName(chat, ending) {
  const words = chat.title.normalize("NFKD").replace(/[^\w]+/g, "-").replace(/^-+|-+$/g, "");
  return `m27-${words.slice(0, 40).toLowerCase() || "chat"}.${ending}`;
}

/**
 * JSON text. `messages` can be sent to the API as they are. `turns` says of each message on the page
 * how it came about; parts stand there only if they are not in `messages[turn.message]` already.
 */
export function asJson(chat, messages, model) {
  const sent = toApi(messages);
  const turns = messages.map((message, number) => {
    const at = sent.findIndex(([n]) => n === number);
    const without = (record, here) => (at >= 0 && here ? { ...record, parts: undefined } : record);
    const { role, variants } = message;
    const tries = variants?.map((variant, i) => without(variant, i === message.chosen));
    return { ...without(message, true), role, variants: undefined, tries, message: at < 0 ? null : at };
  });
  const head = { format: "m27.conversation", version: 1, title: chat.title, model };
  const dates = { created: new Date(chat.created).toISOString(), exported: new Date().toISOString() };
  return JSON.stringify({ ...head, ...dates, messages: sent.map(([, message]) => message), turns }, null, 1);
}

const ESCAPES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
const escape = (text) => String(text).replace(/[&<>"']/g, (letter) => ESCAPES[letter]);

const STYLE = `
:root { color-scheme: light dark; --paper: light-dark(#faf9f7, #16171a); --ink: light-dark(#1d1d1f, #e9e9ea);
  --soft: light-dark(#63636a, #a3a3ab); --you: light-dark(#ebeefb, #262b3d); }
body { margin: 0; background: var(--paper); color: var(--ink); font: 17px/1.6 system-ui, sans-serif; }
main { max-width: 44rem; margin: 0 auto; padding: 3rem 1.25rem 5rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0; }
header p, .note { color: var(--soft); font-size: .85rem; margin: .4rem 0 0; }
section { margin: 2rem 0 0; overflow-wrap: anywhere; }
section p, blockquote { white-space: pre-wrap; margin: .6rem 0; }
.heading { font-weight: 650; }
blockquote { padding-left: 1rem; border-left: 3px solid var(--you); color: var(--soft); }
pre { overflow-x: auto; padding: .8rem 1rem; background: var(--you); border-radius: 12px; line-height: 1.45; }
.you { background: var(--you); border-radius: 18px; padding: .1rem 1.1rem; width: fit-content; max-width: 85%; margin-left: auto; }
img { display: block; max-width: 100%; width: 18rem; border-radius: 12px; margin: .8rem 0; }
.you img { width: 9rem; }
audio { display: block; width: 22rem; max-width: 100%; margin: .8rem 0; }
`;

function partHtml(part, mine) {
  if (part.type === "text") {
    // Elements of text, written out by the browser, are escaped by it.
    return mine ? `<p>${escape(part.text)}</p>` : el("div", {}, ...elements(part.text)).innerHTML;
  }
  const url = dataUrl(part);
  if (!url) return '<p class="note">(a part that was broken off before it could be shown)</p>';
  return part.type === "image_url" ? `<img alt="Picture" src="${url}">` : `<audio controls src="${url}"></audio>`;
}

function messageHtml(message) {
  if (message.role === "user") {
    return `<section class="you" aria-label="You">${message.parts.map((part) => partHtml(part, true)).join("\n")}</section>`;
  }
  const variant = chosen(message);
  const took = figures(variant).map(([label, value, plain]) => escape(plain ? value : `${label} ${value}`));
  const fault = variant.error ? `<p>${escape(variant.error.message)}</p>` : "";
  const body = variant.parts.map((part) => partHtml(part, false)).join("\n");
  return `<section aria-label="Answer">${body}${fault}\n<p class="note">${took.join(" · ")}</p></section>`;
}

/** A page of HTML. Its own policy lets nothing run and nothing load. */
export function asHtml(chat, messages, model) {
  const policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:";
  const title = escape(chat.title || "Conversation");
  const date = new Date(chat.created).toISOString().slice(0, 10);
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="${policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${title}</title>
<style>${STYLE}</style>
</head>
<body>
<main>
<header><h1>${title}</h1><p>A conversation with ${escape(model || "m27")}, ${date}</p></header>
${messages.map(messageHtml).join("\n")}
</main>
</body>
</html>
`;
}
