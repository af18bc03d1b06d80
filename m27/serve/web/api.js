/**
 * The server's HTTP: which model it has, and an answer as a stream of objects. Addresses are
 * relative to the page. Knows the form of errors, not what answers hold.
 */

import { StreamError } from "./answer.js";
import { objects } from "./sse.js";

/** A request that the server refused; `status`, and `retryAfter` in seconds where it said so. */
export class ApiError extends Error {
  constructor(message, status, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

const headers = (key) => (key ? { Authorization: `Bearer ${key}` } : {});

async function refusal(response) {
  let message = "";
  try {
    message = (await response.json()).error?.message ?? "";
  } catch {
    // A proxy in between answers in its own form; the status says enough.
  }
  const seconds = Number.parseFloat(response.headers.get("Retry-After"));
  const retryAfter = Number.isFinite(seconds) ? Math.max(1, Math.ceil(seconds)) : null;
  return new ApiError(message || `The server answered ${response.status}.`, response.status, retryAfter);
}

async function reached(address, options) {
  try {
    return await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached. Is it still running?", 0);
  }
}

/** The name of the first model that the server lists. Throws ApiError. */
export async function modelName(key) {
  const response = await reached("v1/models", { headers: headers(key) });
  if (!response.ok) throw await refusal(response);
  return (await response.json()).data?.[0]?.id ?? "";
}

/** The stream's objects. Throws ApiError, or AbortError on `signal`. */
export async function* complete(body, key, signal) {
  const response = await reached("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers(key) },
    body: JSON.stringify(body),
    signal,
  });
  if (!response.ok) throw await refusal(response);
  const reader = response.body.getReader();
  const chunks = {
    // Not every browser can iterate over a stream itself.
    async *[Symbol.asyncIterator]() {
      for (let piece; !(piece = await next(reader)).done; ) yield piece.value;
    },
  };
  try {
    yield* objects(chunks);
  } finally {
    reader.cancel().catch(() => {}); // after [DONE] or a stop nothing more is wanted
  }
}

async function next(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The connection to the server broke off.", 0);
  }
}

/** One line for a person: what went wrong, and what may help. */
export function explain(error) {
  if (error instanceof ApiError && error.status === 429) {
    const wait = error.retryAfter ? ` in ${error.retryAfter} s` : " in a moment";
    return `The server is busy. Try again${wait}.`;
  }
  if (error instanceof ApiError && error.status === 401) {
    return "The server asks for a key. Put it into the settings, then try again.";
  }
  if (error instanceof ApiError || error instanceof StreamError) return error.message;
  return "The server sent something that is no answer.";
}
