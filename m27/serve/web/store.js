/**
 * Conversations in the browser's IndexedDB. One record a conversation, one a message (key: the
 * conversation's id and the message's number), so that a new message rewrites no old pictures.
 * Where there is no IndexedDB (some private windows) nothing is kept, and `lasting` is false.
 */

const NAME = "m27";
const VERSION = 1;

const done = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

const finished = (transaction) =>
  new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = transaction.onerror = () => reject(transaction.error);
  });

/** Opens the store; never fails. */
export async function openStore() {
  try {
    const opening = indexedDB.open(NAME, VERSION);
    opening.onupgradeneeded = () => {
      opening.result.createObjectStore("chats", { keyPath: "id" });
      opening.result.createObjectStore("messages", { keyPath: ["chat", "number"] });
    };
    return new Store(await done(opening));
  } catch {
    return new Store(null);
  }
}

/** See the head of the file. Numbers count a conversation's messages from 0. */
class Store {
  #database;

  constructor(database) {
    this.#database = database;
    this.lasting = database !== null;
  }

  #all(chat, from = 0) {
    return IDBKeyRange.bound([chat, from], [chat, Infinity]);
  }

  #write(work) {
    if (!this.#database) return Promise.resolve();
    const transaction = this.#database.transaction(["chats", "messages"], "readwrite");
    const end = finished(transaction);
    work(transaction.objectStore("chats"), transaction.objectStore("messages"));
    return end;
  }

  /** Conversations without their messages, the latest first. */
  async chats() {
    if (!this.#database) return [];
    const all = await done(this.#database.transaction("chats").objectStore("chats").getAll());
    return all.sort((a, b) => b.updated - a.updated);
  }

  /** A conversation's messages in order. */
  async messages(chat) {
    if (!this.#database) return [];
    const store = this.#database.transaction("messages").objectStore("messages");
    return (await done(store.getAll(this.#all(chat)))).map((record) => record.message);
  }

  /** Keep a conversation's record. */
  saveChat(chat) {
    return this.#write((chats) => chats.put(chat));
  }

  /** Keep one message. Throws what IndexedDB throws, such as QuotaExceededError. */
  saveMessage(chat, number, message) {
    return this.#write((_, messages) => messages.put({ chat, number, message }));
  }

  /** Forget the messages from `number` on. */
  truncate(chat, number) {
    return this.#write((_, messages) => messages.delete(this.#all(chat, number)));
  }

  /** Forget a conversation. */
  remove(chat) {
    return this.#write((chats, messages) => {
      chats.delete(chat);
      messages.delete(this.#all(chat));
    });
  }
}
