/**
 * What a screen reader hears of an answer as it comes: whole sentences, one after the other, and not
 * every few letters. Knows nothing of chats.
 */

const PAUSE_MS = 1200; // a polite region that changes faster than it is read loses words

/** Speaks through one polite live region. */
export class Announcer {
  #region;
  #waiting = "";
  #unended = "";
  #timer = null;

  constructor(region) {
    this.#region = region;
  }

  /** Text of an answer, in pieces of any length: what ends in a full stop or a line is spoken. */
  text(piece) {
    this.#unended += piece;
    const end = Math.max(...[". ", "! ", "? ", "\n"].map((mark) => this.#unended.lastIndexOf(mark)));
    if (end < 0) return;
    this.say(this.#unended.slice(0, end + 1));
    this.#unended = this.#unended.slice(end + 1);
  }

  /** A whole remark. */
  say(words) {
    this.#waiting = `${this.#waiting} ${words}`.trim();
    if (this.#timer === null) this.#speak();
  }

  /** The answer is over: what is left of its text, then a remark. */
  end(words) {
    const rest = this.#unended;
    this.#unended = "";
    this.say(`${rest.trim()} ${words}`);
  }

  #speak() {
    this.#timer = null;
    if (!this.#waiting) return;
    this.#region.textContent = this.#waiting;
    this.#waiting = "";
    this.#timer = setTimeout(() => this.#speak(), PAUSE_MS);
  }
}
