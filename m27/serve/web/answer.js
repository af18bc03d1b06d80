/**
 * The stream of a chat completion → one variant of an answer (`conversation.js`), with the times at
 * which things came. Pure; shows and plays nothing.
 */

import { fromBase64, fromPcm16, joined, toBase64, toWav } from "./wav.js";

/** The server's word, in the middle of a stream, that the answer ends here. */
export class StreamError extends Error {}

/**
 * Fills a variant from the objects of a stream. `elapsed` gives milliseconds since the request.
 *
 * `take` returns what changed, for whoever shows it: [{what: "text" | "image" | "sound", part}], words
 * with the `piece` that came, sounds with their `event` and, for a packet, `samples` and `rate`.
 */
export class AnswerBuilder {
  #media = new Map(); // the server's index of a part → our part
  #packets = new Map(); // our part → its samples so far

  constructor(variant, elapsed) {
    this.variant = variant;
    this.elapsed = elapsed;
  }

  /** Takes one object of the stream. Throws StreamError for an error in place of an answer. */
  take(object) {
    const { variant } = this;
    if (object.error) throw new StreamError(object.error.message ?? "The server broke the answer off.");
    if (object.usage) variant.usage = object.usage;
    const choice = object.choices?.find((c) => (c.index ?? 0) === 0);
    if (!choice) return [];
    if (choice.finish_reason) variant.finish = choice.finish_reason;
    const { content, part } = choice.delta ?? {};
    const changes = [];
    if (typeof content === "string" && content) changes.push(this.#text(content));
    if (part?.type === "image") changes.push(this.#image(part));
    if (part?.type === "audio") changes.push(this.#sound(part));
    if (changes.length) {
      variant.state = "stream";
      variant.timing.firstToken ??= this.elapsed();
    }
    return changes.filter(Boolean);
  }

  #text(content) {
    const { parts } = this.variant;
    if (parts.at(-1)?.type !== "text") parts.push({ type: "text", text: "" });
    const part = parts.at(-1);
    part.text += content;
    return { what: "text", part, piece: content };
  }

  #part(event, fresh) {
    if (!this.#media.has(event.index)) {
      this.#media.set(event.index, fresh);
      this.variant.parts.push(fresh);
    }
    return this.#media.get(event.index);
  }

  #image(event) {
    const part = this.#part(event, { type: "image_url", image_url: { url: "" }, partial: true });
    if (event.width && event.height) Object.assign(part, { width: event.width, height: event.height });
    if (event.event === "progress") Object.assign(part, { codes: event.codes, of: event.of });
    if (event.image_url?.url) part.image_url = { url: event.image_url.url };
    if (event.event === "done") delete part.partial;
    return { what: "image", part };
  }

  #sound(event) {
    const empty = { data: "", format: "wav" };
    const part = this.#part(event, { type: "input_audio", input_audio: empty, partial: true });
    const rate = event.audio?.sample_rate ?? event.sample_rate ?? part.rate ?? 16000;
    part.rate = rate;
    if (event.event === "packet") {
      const samples = fromPcm16(fromBase64(event.audio.data));
      if (!this.#packets.has(part)) this.#packets.set(part, []);
      this.#packets.get(part).push(samples);
      part.seconds = (part.seconds ?? 0) + samples.length / rate;
      this.variant.timing.firstSound ??= this.elapsed();
      return { what: "sound", event: "packet", part, samples, rate };
    }
    if (event.event === "done") {
      part.input_audio = { data: event.input_audio.data, format: event.input_audio.format };
      if (event.seconds) part.seconds = event.seconds;
      this.variant.timing.firstSound ??= this.elapsed();
      delete part.partial;
      this.#packets.delete(part);
    }
    return { what: "sound", event: event.event, part };
  }

  /** Ends the variant in `state`. Of a sound that was broken off, what came can still be heard. */
  end(state, error = null) {
    const { variant } = this;
    for (const [part, pieces] of this.#packets) {
      part.input_audio = { data: toBase64(toWav(joined(pieces), part.rate)), format: "wav" };
    }
    variant.parts = variant.parts.filter((p) => p.type !== "text" || p.text);
    variant.timing.total = this.elapsed();
    Object.assign(variant, { state, error });
  }
}

/** The figures under an answer: [label, value, whether the value alone says what it is]. */
export function figures(variant) {
  const { timing, usage } = variant;
  const seconds = (ms) => (ms < 9950 ? `${(ms / 1000).toFixed(2)} s` : `${(ms / 1000).toFixed(1)} s`);
  const rows = [];
  const tokens = usage?.completion_tokens;
  const spent = timing.total - timing.firstToken; // prefill is in the time to the first token
  if (tokens > 1 && spent > 0) {
    rows.push(["speed", `${Math.round(((tokens - 1) * 1000) / spent)} tokens/s`, true]);
  }
  if (timing.firstToken !== undefined) rows.push(["first token", seconds(timing.firstToken)]);
  if (timing.firstPicture !== undefined) rows.push(["first picture", seconds(timing.firstPicture)]);
  if (timing.firstSound !== undefined) rows.push(["first sound", seconds(timing.firstSound)]);
  if (tokens !== undefined) rows.push(["length", `${tokens} token${tokens === 1 ? "" : "s"}`, true]);
  rows.push(["seed", String(variant.seed)]);
  return rows;
}
