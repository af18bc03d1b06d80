/**
 * Server-sent events out of a stream of text, as far as chat completions use them: the data of
 * each event. Pure; knows nothing of what the events say, nor where they come from.
 */

const LINE_END = /\r\n|\n|\r(?!$)/; // a CR at the very end may be half of a CRLF, so it waits

/** Collects chunks of text, cut anywhere, and gives the data of every event that is complete. */
export class EventParser {
  #rest = "";
  #data = [];

  /** Takes the next chunk; returns the data of the events it completes, in order. */
  push(text) {
    this.#rest += text;
    const events = [];
    let end;
    while ((end = LINE_END.exec(this.#rest))) {
      const line = this.#rest.slice(0, end.index);
      this.#rest = this.#rest.slice(end.index + end[0].length);
      if (line === "") {
        if (this.#data.length) events.push(this.#data.join("\n"));
        this.#data = [];
      } else if (line.startsWith("data:")) {
        this.#data.push(line.slice(line[5] === " " ? 6 : 5));
      } // comments, ids and names of events say nothing that a chat needs
    }
    return events;
  }
}

/** The JSON objects of a chat completion's stream (chunks of bytes), until `[DONE]` or its end. */
export async function* objects(chunks) {
  const parser = new EventParser();
  const decoder = new TextDecoder(); // a letter may be cut in two by the network
  for await (const bytes of chunks) {
    for (const data of parser.push(decoder.decode(bytes, { stream: true }))) {
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}
