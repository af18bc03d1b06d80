/**
 * The list of conversations: open one, begin one, forget one. On a narrow screen it is a drawer that
 * Escape and a click beside it close. What a person does goes to `calls`.
 */

import { button, el } from "./dom.js";

const NARROW = matchMedia("(max-width: 56rem)");

/** `place`: the aside; `opener`: the button that opens the drawer; `shade`: what lies behind it. */
export class Sidebar {
  #list;
  #calls;

  constructor({ place, opener, shade, list, confirm }, calls) {
    Object.assign(this, { place, opener, shade, confirm });
    this.#list = list;
    this.#calls = calls;
    opener.addEventListener("click", () => this.#slide(true));
    shade.addEventListener("click", () => this.close());
    place.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.close();
    });
    NARROW.addEventListener("change", () => this.#slide(false));
    this.#slide(false);
  }

  #slide(open) {
    this.place.classList.toggle("open", open);
    this.shade.hidden = !open;
    this.opener.setAttribute("aria-expanded", String(open));
    this.place.inert = NARROW.matches && !open; // out of sight, out of the order of focus
    if (open) this.place.querySelector("button").focus();
  }

  /** Close the drawer, if it is one and open. */
  close() {
    if (!this.place.classList.contains("open")) return;
    this.#slide(false);
    this.opener.focus();
  }

  /** Show these conversations; `current` is the id of the open one. */
  show(chats, current) {
    const items = chats.map((chat) => {
      const title = chat.title || "Conversation";
      const open = el("button", { type: "button", class: "chat", title, onclick: () => this.#calls.onopen(chat) }, title);
      if (chat.id === current) open.setAttribute("aria-current", "true");
      const remove = button("delete", `Delete “${title}”`, () => this.#ask(chat, title), { bare: true });
      return el("li", {}, open, remove);
    });
    this.#list.replaceChildren(...items);
  }

  #ask(chat, title) {
    this.confirm.querySelector("p").textContent = `“${title}” is kept in this browser alone and will be gone.`;
    this.confirm.returnValue = "";
    this.confirm.onclose = () => {
      if (this.confirm.returnValue === "delete") this.#calls.onremove(chat);
    };
    this.confirm.showModal();
  }
}
