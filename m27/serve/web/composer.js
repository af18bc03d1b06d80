/**
 * Where a message is written: words, pictures and sounds (chosen, pasted, dropped or recorded), and
 * which media its answer may hold. One for new messages, and one for each that is edited. Knows nothing of the
 * conversation: what is sent goes to `calls`.
 */

import { MEDIA, textOf } from "./conversation.js";
import { button, el, icon } from "./dom.js";
import { ACCEPT, dataUrl, readFile, Refused } from "./files.js";
import { Recording } from "./sound.js";
import { toBase64, toWav } from "./wav.js";

const RATE = 16000; // what the model hears
const LONGEST = 30; // seconds of a recording
const CHIPS = { text: ["Text", "text"], image: ["Pictures", "picture"], audio: ["Sounds", "sound"] };

/** `node` is its form. */
export class Composer {
  #media = [];
  #recording = null;
  #calls;

  /**
   * `calls`: onsend(parts, modalities), onmodalities(modalities), onstop(), and for an edit oncancel().
   * `editing`: the message whose parts it begins with, or null.
   */
  constructor(calls, modalities, editing = null) {
    this.#calls = calls;
    this.modalities = modalities;
    this.#build(editing);
    if (editing) {
      this.field.value = textOf(editing.parts);
      this.#media = editing.parts.filter((part) => part.type !== "text");
    }
    this.#showMedia();
    this.#showChips();
    this.setRunning(false);
  }

  #build(editing) {
    const label = editing ? "Your message, to be sent again" : "Message";
    this.field = el("textarea", {
      rows: "1",
      "aria-label": label,
      placeholder: editing ? "" : "Ask, or add a picture or a sound",
      oninput: () => this.#grow(),
      onkeydown: (event) => this.#key(event),
      onpaste: (event) => this.#take(event, event.clipboardData),
    });
    const onchange = () => {
      this.add(this.picker.files);
      this.picker.value = "";
    };
    this.picker = el("input", { type: "file", multiple: true, accept: ACCEPT, hidden: true, onchange });
    this.attachments = el("ul", { class: "attachments", "aria-label": "Added pictures and sounds" });
    this.notice = el("p", { class: "notice", role: "alert", hidden: true });
    this.level = el("meter", { min: "0", max: "1", "aria-label": "Loudness" });
    this.clock = el("span", { class: "count" }, "0.0 s");
    const keep = button("stop", "Stop and add", () => this.#keepRecording(), { kind: "plain" });
    const drop = button("delete", "Discard", () => this.#endRecording(), { kind: "quiet" });
    const dot = el("span", { class: "dot", "aria-hidden": "true" });
    const strip = { class: "recording", role: "group", "aria-label": "Recording", hidden: true };
    this.strip = el("div", strip, dot, this.clock, this.level, keep, drop);
    const attach = button("attach", "Add pictures or sounds", () => this.picker.click(), { bare: true });
    this.microphone = button("microphone", "Record a sound", () => this.#record(), { bare: true });
    this.chips = MEDIA.map((medium) => this.#chip(medium));
    const group = { class: "chips", role: "group", "aria-label": "The answer may hold" };
    this.stop = button("stop", "Stop the answer", () => this.#calls.onstop(), { bare: true, kind: "strong" });
    this.send = el(
      "button",
      { type: "submit", class: editing ? "strong" : "strong round", "aria-label": editing ? null : "Send" },
      icon("send"),
      editing ? el("span", {}, "Send again") : null,
    );
    const cancel = editing ? button("cancel", "Cancel", () => this.#calls.oncancel(), { kind: "quiet" }) : null;
    const end = el("div", { class: "end" }, cancel, this.stop, this.send);
    const bar = el("div", { class: "bar" }, attach, this.microphone, el("div", group, ...this.chips), end);
    const onsubmit = (event) => {
      event.preventDefault();
      this.#submit();
    };
    const onkeydown = (event) => {
      if (event.key !== "Escape" || !(this.#calls.oncancel || this.#recording)) return;
      event.stopPropagation();
      if (this.#recording) this.#endRecording();
      else this.#calls.oncancel();
    };
    const ondrop = (event) => this.#take(event, event.dataTransfer);
    const given = { class: "composer", onsubmit, onkeydown, ondrop };
    this.node = el("form", given, this.attachments, this.field, this.strip, this.notice, bar, this.picker);
  }

  #chip(medium) {
    const [words, name] = CHIPS[medium];
    const onclick = () => {
      const on = this.modalities.includes(medium);
      if (on && this.modalities.length === 1) return; // an answer holds something
      this.modalities = MEDIA.filter((m) => (m === medium ? !on : this.modalities.includes(m)));
      this.#showChips();
      this.#calls.onmodalities?.(this.modalities);
    };
    const given = { type: "button", class: "chip", title: `${words} in the answer`, onclick };
    return el("button", given, icon(name), el("span", {}, words));
  }

  #showChips() {
    MEDIA.forEach((medium, i) => {
      this.chips[i].setAttribute("aria-pressed", String(this.modalities.includes(medium)));
    });
  }

  /** The media chosen elsewhere, in the settings. */
  setModalities(modalities) {
    this.modalities = modalities;
    this.#showChips();
  }

  /** Whether an answer runs: then it can be stopped, and words wait until it has ended. */
  setRunning(running) {
    this.running = running;
    this.stop.hidden = !running;
    this.send.hidden = running;
  }

  /** Put it on the page first; then its words get their room, and the focus. */
  begin() {
    this.#grow();
    this.field.focus();
    this.field.setSelectionRange(this.field.value.length, this.field.value.length);
  }

  /** The height its words need (as far as the style sheet lets it). */
  #grow() {
    this.field.style.height = "auto";
    this.field.style.height = `${this.field.scrollHeight}px`;
  }

  #key(event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      this.#submit();
    } else if (event.key === "ArrowUp" && !this.field.value && this.#calls.onup) {
      event.preventDefault();
      this.#calls.onup();
    }
  }

  #submit() {
    const words = this.field.value.trim();
    if (this.running || this.#recording || (!words && !this.#media.length)) return;
    // Media stand before words: so the model was taught to be asked.
    const parts = [...this.#media, ...(words ? [{ type: "text", text: words }] : [])];
    this.#media = [];
    this.field.value = "";
    this.#grow();
    this.#say("");
    this.#showMedia();
    this.#calls.onsend(parts, this.modalities);
  }

  /** It leaves the page: nothing goes on listening. */
  end() {
    this.#endRecording();
  }

  /** Files that came by paste or drop; anything else is the browser's business. */
  #take(event, data) {
    if (!data?.files.length) return;
    event.preventDefault();
    event.stopPropagation();
    this.add(data.files);
  }

  /** Adds files; those that are not taken get a line each. */
  async add(files) {
    const refused = [];
    for (const file of [...files]) {
      try {
        this.#media.push(await readFile(file));
      } catch (error) {
        if (!(error instanceof Refused)) throw error;
        refused.push(error.message);
      }
    }
    this.#say(refused.join("\n"));
    this.#showMedia();
    this.field.focus();
  }

  #say(line) {
    this.notice.textContent = line;
    this.notice.hidden = !line;
  }

  #showMedia() {
    const items = this.#media.map((part, i) => {
      const image = part.type === "image_url";
      const look = image
        ? el("img", { src: dataUrl(part), alt: `Picture ${i + 1} to send` })
        : el("audio", { src: dataUrl(part), controls: true, "aria-label": `Sound ${i + 1} to send` });
      const remove = () => {
        this.#media.splice(i, 1);
        this.#showMedia();
        this.field.focus();
      };
      const words = `Remove ${image ? "picture" : "sound"} ${i + 1}`;
      return el("li", { class: image ? "" : "wide" }, look, button("cancel", words, remove, { bare: true, kind: "remove" }));
    });
    this.attachments.replaceChildren(...items);
    this.attachments.hidden = !items.length;
  }

  async #record() {
    if (this.#recording) return this.#keepRecording();
    this.#say("");
    this.#recording = "asked"; // the browser asks for leave; a second click must not ask again
    try {
      this.#recording = await Recording.begin((loudness, seconds) => {
        this.level.value = Math.min(1, loudness * 1.5);
        this.clock.textContent = `${seconds.toFixed(1)} s`;
        if (seconds >= LONGEST) this.#keepRecording();
      });
    } catch (error) {
      this.#recording = null;
      const why = error.name === "NotAllowedError" ? "the browser was told not to" : error.message;
      this.#say(`The microphone cannot be used: ${why}.`);
      return undefined;
    }
    this.clock.textContent = "0.0 s";
    this.strip.hidden = false;
    this.microphone.setAttribute("aria-pressed", "true");
    this.strip.querySelector("button").focus();
    return undefined;
  }

  async #endRecording() {
    const recording = this.#recording;
    if (!(recording instanceof Recording)) return new Float32Array();
    this.#recording = null;
    this.strip.hidden = true;
    this.microphone.removeAttribute("aria-pressed");
    this.field.focus();
    return recording.end(RATE);
  }

  async #keepRecording() {
    const samples = await this.#endRecording();
    if (!samples.length) return;
    const data = toBase64(toWav(samples, RATE));
    this.#media.push({ type: "input_audio", input_audio: { data, format: "wav" } });
    this.#showMedia();
  }
}
