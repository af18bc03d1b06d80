/**
 * The messages of the open conversation as elements, and the running answer as it grows. Knows what
 * messages look like, not where they come from: what a person does goes to `calls`.
 */

import { figures } from "./answer.js";
import { chosen, MEDIA, textOf } from "./conversation.js";
import { button, el, icon } from "./dom.js";
import { viewOf } from "./parts.js";

const MEDIA_NAMES = { text: "text", image: "pictures", audio: "sounds" };

/** A person's message: `node`. `calls.onedit(number)` when they want to say it otherwise. */
class Question {
  constructor(message, number, calls) {
    const views = message.parts.map((part) => viewOf(part, true, calls));
    this.edit = button("edit", "Edit and send again", () => calls.onedit(number), { bare: true });
    const asked = message.options?.modalities ?? MEDIA;
    const only = asked.length < MEDIA.length && `Answer in ${asked.map((m) => MEDIA_NAMES[m]).join(" and ")}`;
    const bubble = el("div", { class: "bubble" }, ...views.map((view) => view.node));
    const note = only ? el("p", { class: "note" }, only) : null;
    this.node = el("article", { class: "question", "aria-label": "You" }, this.edit, bubble, note);
  }
}

/** An answer: `node`, and how it grows. */
class Answer {
  #views = new Map(); // part → its view
  #dirty = new Set();

  constructor(message, number, calls) {
    Object.assign(this, { message, number, calls, last: true });
    this.parts = el("div", { class: "parts" });
    this.foot = el("div", { class: "foot" });
    this.node = el("article", { class: "answer", "aria-label": "Answer" }, this.parts, this.foot);
    this.render();
  }

  get live() {
    return ["wait", "stream"].includes(chosen(this.message)?.state);
  }

  /** All of it as it is now. Pictures and sounds that are on the page already stay, and do not flicker. */
  render() {
    const variant = chosen(this.message);
    const views = (variant?.parts ?? []).map((part) => this.#view(part));
    this.parts.replaceChildren(...views.map((view) => view.node));
    for (const view of views) view.update(this.live);
    const fresh = this.node.getAttribute("aria-busy") === "true"; // an old fault is not called out again
    this.node.setAttribute("aria-busy", String(this.live));
    if (variant?.state === "wait") this.parts.append(waiting());
    if (variant?.error) this.parts.append(this.#fault(variant.error, fresh));
    this.#footer(variant);
  }

  #view(part) {
    if (!this.#views.has(part)) {
      const variant = chosen(this.message);
      const onshown = () => {
        if (!this.elapsed || variant.timing.firstPicture !== undefined) return;
        variant.timing.firstPicture = this.elapsed();
        if (this.live) return;
        this.#footer(variant); // a fast answer ends before its picture is on the screen
        this.calls.ontimed(this.number);
      };
      this.#views.set(part, viewOf(part, false, { ...this.calls, onshown }));
    }
    return this.#views.get(part);
  }

  /** Some parts changed; shown with the next frame, since a stream can be faster than a screen. */
  change(changes, elapsed) {
    this.elapsed = elapsed;
    if (!this.#dirty.size) requestAnimationFrame(() => this.#draw());
    for (const { part } of changes) this.#dirty.add(part);
  }

  #draw() {
    for (const part of this.#dirty) {
      const view = this.#view(part);
      if (view.node.parentNode !== this.parts) this.parts.append(view.node);
      view.update(this.live);
    }
    this.#dirty.clear();
    this.parts.querySelector(".waiting")?.remove();
    this.calls.ongrow();
  }

  /** The packets of `part` can be heard, or no longer. */
  setPlaying(part, playing) {
    this.#view(part).setPlaying(playing, this.live);
  }

  #fault(error, fresh) {
    const key = error.status === 401 || error.status === 403;
    const act = key
      ? button("settings", "Open settings", () => this.calls.onsettings(), { kind: "plain" })
      : button("again", "Try again", () => this.calls.onagain(), { kind: "plain" });
    const words = el("p", {}, error.message);
    return el("div", { class: "fault", role: fresh ? "alert" : null }, words, this.last || key ? act : null);
  }

  #footer(variant) {
    this.foot.replaceChildren();
    if (!variant || this.live || (variant.error && this.message.variants.length < 2 && !variant.parts.length)) return;
    const list = el("dl", { class: "figures" });
    for (const [label, value, plain] of figures(variant)) {
      list.append(el("div", {}, el("dt", { class: plain ? "hidden" : "" }, label), el("dd", {}, value)));
    }
    const acts = el("div", { class: "acts" });
    if (this.message.variants.length > 1) acts.append(this.#tries());
    const words = textOf(variant.parts);
    if (words) {
      const copy = button("copy", "Copy the text", () => this.calls.oncopy(words), { bare: true });
      acts.append(copy);
    }
    const again = button("again", "Try again with another seed", () => this.calls.onagain(), { bare: true });
    if (this.last && !variant.error) acts.append(again);
    const ends = { stopped: "Stopped", length: "Cut off at the limit of tokens" };
    const end = ends[variant.state] ?? ends[variant.finish];
    this.foot.replaceChildren(acts.childNodes.length ? acts : "", end ? el("span", { class: "note" }, end) : "", list);
  }

  #tries() {
    const { variants, chosen: at } = this.message;
    const step = (to, name, words) => {
      const go = () => {
        this.calls.onchoose(this.number, to);
        this.render();
        const same = [...this.foot.querySelectorAll("button")].find((b) => b.title === words);
        (same?.disabled ? this.foot.querySelector("button:enabled") : same)?.focus();
      };
      const arrow = button(name, words, go, { bare: true });
      arrow.disabled = to < 0 || to >= variants.length;
      return arrow;
    };
    const count = el("span", { class: "count" }, `${at + 1} of ${variants.length}`);
    const [back, on] = [step(at - 1, "back", "Earlier try"), step(at + 1, "on", "Later try")];
    return el("div", { class: "tries", role: "group", "aria-label": "Tries of this answer" }, back, count, on);
  }
}

function waiting() {
  return el("p", { class: "waiting" }, el("span", { class: "hidden" }, "Waiting for the answer"), ...[1, 2, 3].map(() => el("i")));
}

/** All messages. `place` is the element they go into. */
export class Thread {
  #place;
  #calls;
  #views = [];

  constructor(place, calls) {
    this.#place = place;
    this.#calls = calls;
  }

  /** Show these messages and no others. */
  show(messages) {
    this.#views = [];
    this.#place.replaceChildren();
    messages.forEach((_, number) => this.#add(messages, number));
  }

  #add(messages, number) {
    const Kind = messages[number].role === "user" ? Question : Answer;
    const before = this.#views[number - 2];
    if (before instanceof Answer && before.last) {
      before.last = false; // only the last answer can be tried again
      before.render();
    }
    this.#views[number] = new Kind(messages[number], number, this.#calls);
    this.#place.append(this.#views[number].node);
  }

  /** The view of a message, which is added if it is new, and all before it. */
  view(messages, number) {
    for (let n = this.#views.length; n <= number; n++) this.#add(messages, n);
    return this.#views[number];
  }

  /** Put `node` in place of a message, for as long as it is edited; returns what undoes it. */
  replace(number, node) {
    const view = this.#views[number];
    view.node.replaceWith(node);
    return () => {
      node.replaceWith(view.node);
      view.edit.focus();
    };
  }
}

/** The picture of the page's own set that stands for an example, or its own picture. */
export function example({ title, icon: name, parts }, onclick) {
  const media = parts.find((part) => part.type === "image_url");
  const look = media && !name ? el("img", { src: media.image_url.url, alt: "", width: 44, height: 44 }) : icon(name);
  const words = el("span", { class: "said" }, textOf(parts));
  const label = el("span", { class: "example-text" }, el("strong", {}, title), words);
  return el("button", { type: "button", class: "example", onclick }, el("span", { class: "look" }, look), label);
}
