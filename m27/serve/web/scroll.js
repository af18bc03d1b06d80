/**
 * Scrolls along with what grows, unless a person reads further up; then a button leads back. Knows
 * nothing of messages.
 */

const NEAR = 80; // pixels from the end that count as the end

/** Follows the page's end as `content` grows; `button` is shown while it does not. */
export class Follower {
  #page = document.scrollingElement;
  #following = true;

  constructor(content, button) {
    addEventListener("scroll", () => {
      const { scrollHeight, scrollTop } = this.#page;
      this.#following = scrollHeight - scrollTop - innerHeight < NEAR;
      button.hidden = this.#following;
    });
    new ResizeObserver(() => this.follow()).observe(content); // pictures get their height late
  }

  /** To the end, if that is where the person is. */
  follow() {
    if (this.#following) this.#page.scrollTop = this.#page.scrollHeight;
  }

  /** To the end, wherever the person is. */
  toEnd() {
    this.#following = true;
    requestAnimationFrame(() => this.follow());
  }
}
