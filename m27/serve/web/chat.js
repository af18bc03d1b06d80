/**
 * The conversation that is open: sends, stops, tries again, goes back to an earlier message, and keeps
 * everything in the store. Knows the server and the store; whoever shows it listens to its calls.
 */

import { AnswerBuilder, StreamError } from "./answer.js";
import { complete, explain } from "./api.js";
import * as talk from "./conversation.js";

const SAVE_EVERY_MS = 1000; // of a running answer, so that a reload loses little of it
const KEEP_WITHIN_MS = 1000;

/** See the head of the file. `messages` are in the form of conversation.js. */
export class Chat {
  #store;
  #settings;
  #abort = null;
  #running = Promise.resolve();

  /** The listener's calls; set by whoever shows the conversation. */
  onopen = () => {}; // other messages than before
  onanswer = () => {}; // (number, event): "begin", "change" with its changes, "end"
  onchats = () => {}; // the list of conversations is another
  onfault = () => {}; // (one line) something could not be kept

  constructor(store, settings) {
    this.#store = store;
    this.#settings = settings;
    this.model = "";
    this.chat = talk.newChat();
    this.messages = [];
  }

  get running() {
    return this.#abort !== null;
  }

  /** Show a kept conversation, or a new one without `chat`. */
  async open(chat = null) {
    await this.stop();
    this.messages = chat ? await this.#store.messages(chat.id) : [];
    for (const message of this.messages) {
      // Its page was closed while it ran.
      const left = (message.variants ?? []).filter((v) => v.state === "wait" || v.state === "stream");
      for (const variant of left) variant.state = "stopped";
    }
    if (this.messages.at(-1)?.role === "user") {
      const variant = { ...talk.newVariant(talk.randomSeed()), state: "stopped" }; // so that it can be asked again
      this.messages.push({ role: "assistant", variants: [variant], chosen: 0 });
    }
    this.chat = chat ?? talk.newChat();
    this.onopen();
  }

  /** Forget a conversation; the open one is replaced by a new one. */
  async remove(id) {
    if (id === this.chat.id) await this.open();
    await this.#store.remove(id).catch((error) => this.#fault(error));
    this.onchats();
  }

  /** A person's message, and the answer to it. */
  async send(parts, options) {
    await this.stop();
    this.messages.push({ role: "user", parts, options });
    this.messages.push({ role: "assistant", variants: [], chosen: 0 });
    this.chat.title ||= talk.titleOf(this.messages);
    this.#saveChat();
    this.#save(this.messages.length - 2);
    await this.#run(this.messages.length - 1, this.#settings().seed ?? talk.randomSeed());
  }

  /** Another try of the last answer, with another seed; the earlier tries stay. */
  async again() {
    await this.stop();
    const last = this.messages.length - 1;
    if (this.messages[last]?.role === "assistant") await this.#run(last, talk.randomSeed());
  }

  /** Go back to a person's message, say it otherwise, and go on from there. */
  async resend(number, parts, options) {
    await this.stop();
    this.messages.length = number;
    if (number === 0) this.chat.title = "";
    await this.#store.truncate(this.chat.id, number).catch((error) => this.#fault(error));
    this.onopen();
    await this.send(parts, options);
  }

  /** Show another try of an answer. */
  choose(number, which) {
    this.messages[number].chosen = which;
    this.#save(number);
  }

  /** Keep a message as it is now. */
  keep(number) {
    this.#save(number);
  }

  /** Stop the running answer, if any; resolves when it has ended. */
  async stop() {
    this.#abort?.abort();
    await this.#running;
  }

  #run(number, seed) {
    this.#abort = new AbortController();
    this.#running = this.#stream(number, seed, this.#abort.signal);
    return this.#running;
  }

  async #stream(number, seed, signal) {
    const message = this.messages[number];
    const variant = talk.newVariant(seed);
    message.chosen = message.variants.push(variant) - 1;
    const { key, ...settings } = this.#settings();
    const body = talk.requestBody(this.model, this.messages.slice(0, number), settings, seed);
    const began = performance.now();
    const builder = new AnswerBuilder(variant, () => performance.now() - began);
    const keep = () => this.#save(number);
    const timer = setInterval(keep, SAVE_EVERY_MS);
    addEventListener("pagehide", keep);
    this.onanswer(number, "begin");
    try {
      for await (const object of complete(body, key, signal)) {
        const changes = builder.take(object);
        if (changes.length) this.onanswer(number, "change", changes, builder.elapsed);
      }
      if (!variant.finish) throw new StreamError("The answer broke off before its end.");
      builder.end("done");
    } catch (error) {
      if (signal.aborted) builder.end("stopped");
      else builder.end("failed", { message: explain(error), status: error.status ?? null });
    }
    this.#abort = null;
    clearInterval(timer);
    this.chat.updated = Date.now();
    this.#saveChat();
    // It has ended once it is kept: whoever loads the page again when it says so finds all of it. A browser whose
    // storage does not answer is not waited for.
    await Promise.race([keep(), new Promise((resolve) => setTimeout(resolve, KEEP_WITHIN_MS))]);
    removeEventListener("pagehide", keep);
    this.onanswer(number, "end");
  }

  #save(number) {
    const message = this.messages[number];
    if (!message) return Promise.resolve(); // another conversation was opened since
    return this.#store.saveMessage(this.chat.id, number, message).catch((error) => this.#fault(error));
  }

  #saveChat() {
    this.#store
      .saveChat(this.chat)
      .then(() => this.onchats())
      .catch((error) => this.#fault(error));
  }

  #fault(error) {
    const full = error?.name === "QuotaExceededError";
    const why = full ? "the browser's space for this page is full" : String(error?.message ?? error);
    this.onfault(`This conversation could not be kept: ${why}.`);
  }
}
