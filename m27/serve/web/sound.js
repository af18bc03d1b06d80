/**
 * Sound in and out of the browser: plays packets one after the other without gaps, and records the
 * microphone. Knows nothing of messages; samples are floats, one channel.
 */

import { joined } from "./wav.js";

const LEAD = 0.08; // seconds between a packet's arrival and its sound, so that the next is in time

/** When the next packet starts: right after the last, or, if it came too late, a little from now. */
export const startOf = (next, now) => (next > now ? next : now + LEAD);

/** Plays the packets of one sound after another as they come. */
export class Player {
  #context = null;
  #next = 0;
  #playing = new Set();

  /** Called when nothing is left to play. */
  onend = () => {};

  /** Call in a click or key press: browsers let a page sound only after one. */
  wake(rate = 16000) {
    try {
      // A context at the packets' own rate: resampling each by itself would click where they meet.
      this.#context ??= new AudioContext({ sampleRate: rate });
    } catch {
      return; // no sound on this machine; an answer is shown all the same
    }
    if (this.#context.state === "suspended") this.#context.resume().catch(() => {});
  }

  /** Queue samples; says whether they will be heard. */
  packet(samples, rate) {
    this.wake(rate);
    const context = this.#context;
    if (!context || !samples.length) return false;
    const buffer = context.createBuffer(1, samples.length, rate);
    buffer.copyToChannel(samples, 0);
    const source = context.createBufferSource();
    source.buffer = buffer;
    source.connect(context.destination);
    source.onended = () => {
      this.#playing.delete(source);
      if (!this.#playing.size) this.onend();
    };
    const start = startOf(this.#next, context.currentTime);
    source.start(start);
    this.#next = start + buffer.duration;
    this.#playing.add(source);
    return true;
  }

  /** Silence, now. */
  stop() {
    for (const source of this.#playing) source.stop();
    this.#next = 0;
  }
}

/** Samples at one rate → at another. */
async function resampled(samples, from, to) {
  if (from === to || !samples.length) return samples;
  const context = new OfflineAudioContext(1, Math.ceil((samples.length * to) / from), to);
  const buffer = context.createBuffer(1, samples.length, from);
  buffer.copyToChannel(samples, 0);
  const source = context.createBufferSource();
  source.buffer = buffer;
  source.connect(context.destination);
  source.start();
  return (await context.startRendering()).getChannelData(0);
}

/** One recording of the microphone. */
export class Recording {
  #pieces = [];
  #context;
  #stream;

  /**
   * Begins. `onlevel(loudness 0 … 1, seconds so far)` is called as sound comes. Throws the browser's
   * error where there is no microphone or a person said no.
   */
  static async begin(onlevel) {
    if (!navigator.mediaDevices?.getUserMedia) throw new Error("no microphone in this browser");
    const recording = new Recording();
    const audio = { channelCount: 1, echoCancellation: false, noiseSuppression: false };
    recording.#stream = await navigator.mediaDevices.getUserMedia({ audio });
    try {
      await recording.#listen(onlevel);
    } catch (error) {
      recording.#close();
      throw error;
    }
    return recording;
  }

  async #listen(onlevel) {
    const context = new AudioContext();
    this.#context = context;
    await context.audioWorklet.addModule(new URL("recorder.js", import.meta.url));
    const node = new AudioWorkletNode(context, "recorder");
    let [samples, peak, shown] = [0, 0, 0];
    node.port.onmessage = ({ data }) => {
      this.#pieces.push(data);
      samples += data.length;
      peak = data.reduce((most, s) => Math.max(most, Math.abs(s)), peak);
      if (samples - shown < context.sampleRate / 20) return;
      onlevel(peak, samples / context.sampleRate);
      [peak, shown] = [0, samples];
    };
    context.createMediaStreamSource(this.#stream).connect(node);
    await context.resume();
  }

  #close() {
    this.#stream.getTracks().forEach((track) => track.stop());
    this.#context?.close();
  }

  /** Ends it; returns what was recorded, at `rate` samples a second. */
  async end(rate) {
    const from = this.#context.sampleRate;
    this.#close();
    return resampled(joined(this.#pieces), from, rate);
  }
}
