/**
 * Parts of messages as elements: words, pictures (also half drawn ones), sounds (also while they
 * come). Each view has `node` and `update()`, which shows the part as it is now. Knows nothing of
 * conversations.
 */

import { button, el, icon } from "./dom.js";
import { dataUrl } from "./files.js";
import { elements } from "./markdown.js";

const SHOWN_WIDTH = 288; // CSS pixels; a picture of the nano model has 128

/** A view of `part`; `mine`: a person gave it. `calls`: onshown(), onplay(), onsilence(). */
export function viewOf(part, mine, calls = {}) {
  if (part.type === "text") return mine ? new PlainView(part) : new TextView(part);
  if (part.type === "image_url") return new PictureView(part, mine, calls);
  return new SoundView(part, mine, calls);
}

/** What a person typed, as typed. */
class PlainView {
  constructor(part) {
    this.node = el("p", { class: "typed" }, part.text);
  }

  update() {}
}

/** What the model wrote. */
class TextView {
  constructor(part) {
    this.part = part;
    this.node = el("div", { class: "words" });
    this.update();
  }

  update() {
    // Only what changed is replaced: what a person marks further up stays marked.
    const [shown, made] = [[...this.node.children], elements(this.part.text)];
    made.forEach((block, i) => {
      if (!shown[i]) this.node.append(block);
      else if (!shown[i].isEqualNode(block)) shown[i].replaceWith(block);
    });
    shown.slice(made.length).forEach((block) => block.remove());
  }
}

/** A picture; while it is drawn, a preview that sharpens and how far it is. */
class PictureView {
  #shown = "";

  constructor(part, mine, calls) {
    Object.assign(this, { part, mine, calls });
    this.img = el("img", { alt: "", class: "drawn", hidden: true });
    this.bar = el("progress", { max: "1", "aria-label": "Drawing the picture" });
    this.note = el("figcaption", { class: "note" });
    this.frame = el("div", { class: "frame" }, this.img);
    this.node = el("figure", { class: mine ? "picture mine" : "picture" }, this.frame, this.bar, this.note);
    this.update();
  }

  /** `live`: more of it is still to come. */
  update(live = false) {
    const { part, mine, img, bar } = this;
    const url = dataUrl(part);
    if (url && url !== this.#shown) {
      this.#shown = url;
      img.src = url;
      img.hidden = false;
      img.decode().then(() => this.calls.onshown?.(), () => {}); // a broken one is never shown
    }
    const width = part.width || SHOWN_WIDTH;
    if (!mine) {
      const times = Math.max(1, Math.round(SHOWN_WIDTH / width));
      img.width = width * times;
      img.height = (part.height || width) * times;
    }
    const drawing = Boolean(part.partial) && live;
    this.node.classList.toggle("drawing", drawing);
    bar.hidden = !drawing;
    if (drawing && part.of) [bar.max, bar.value] = [part.of, part.codes];
    const done = part.of ? `${part.codes} of ${part.of}` : "";
    img.alt = mine ? "Picture you gave" : part.partial ? "Picture, not finished" : "Picture drawn by the model";
    if (drawing) this.note.textContent = done ? `Drawing, ${done}` : "Drawing";
    else if (part.partial) this.note.textContent = done ? `Stopped at ${done}` : "Stopped before it showed";
    else if (!mine && url) this.note.replaceChildren(save(url, "picture"));
    else this.note.textContent = url ? "" : "This picture cannot be shown";
    this.note.hidden = !this.note.childNodes.length;
  }
}

function save(url, what) {
  const ending = /^data:\w+\/([a-z0-9]+)/.exec(url)?.[1] ?? "bin";
  const name = `m27-${what}.${ending === "jpeg" ? "jpg" : ending}`;
  return el("a", { class: "quiet", href: url, download: name }, icon("save"), el("span", {}, `Save ${what}`));
}

/** A sound; while it comes, that it plays and how long it is so far. */
class SoundView {
  #shown = "";

  constructor(part, mine, calls) {
    Object.assign(this, { part, mine, calls, playing: false });
    const words = mine ? "Sound you gave" : "Sound made by the model";
    this.audio = el("audio", { controls: true, preload: "metadata", "aria-label": words, hidden: true });
    this.audio.addEventListener("play", () => calls.onplay?.(this));
    const bars = el("span", { class: "bars", "aria-hidden": "true" }, ...[1, 2, 3, 4, 5].map(() => el("i")));
    this.note = el("span", { class: "note" });
    this.silence = button("silence", "Silence", () => calls.onsilence?.());
    this.live = el("div", { class: "live" }, bars, this.note, this.silence);
    this.node = el("figure", { class: "sound" }, this.live, this.audio);
    this.update();
  }

  /** `live`: more of it is still to come. */
  update(live = false) {
    const { part, audio } = this;
    const coming = Boolean(part.partial) && live;
    const url = coming ? "" : dataUrl(part); // by hand only when it is all there and no longer plays
    if (url && url !== this.#shown) {
      this.#shown = url;
      audio.src = url;
    }
    audio.hidden = !url || this.playing;
    const length = part.seconds ? `${part.seconds.toFixed(1)} s` : "";
    const state = this.playing ? "Playing" : coming ? "Receiving" : part.partial ? "Stopped" : "";
    this.note.textContent = [state, length].filter(Boolean).join(", ");
    this.node.classList.toggle("coming", coming || this.playing);
    this.silence.hidden = !this.playing;
    this.live.hidden = !(coming || this.playing || part.partial);
  }

  /** Whether its packets can be heard right now. */
  setPlaying(playing, live) {
    this.playing = playing;
    this.update(live);
  }
}
