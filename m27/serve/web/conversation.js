/**
 * What a conversation is and what of it is sent: plain data and pure functions. Knows nothing of
 * the page, of storage, or of the network.
 *
 * A message of a person: {role: "user", parts, options}. `options` are fields of the request that
 * this turn asks for (`modalities` always). An answer: {role: "assistant", variants, chosen}; each
 * variant is one try of it: {parts, state, seed, timing, usage, finish, error}. Parts are in the API's
 * input form; a part with `partial` was broken off and is shown, but not sent again.
 */

export const MEDIA = ["text", "image", "audio"];

/** A new, empty conversation. */
export function newChat() {
  const now = Date.now();
  return { id: crypto.randomUUID?.() ?? `${now}-${Math.random()}`, title: "", created: now, updated: now };
}

/** One try of an answer, before anything of it has come. `state`: wait, stream, done, stopped, failed. */
export function newVariant(seed) {
  return { parts: [], state: "wait", seed, timing: {}, usage: null, finish: null, error: null };
}

/** A seed that nobody chose: short enough to be typed again. */
export function randomSeed() {
  return Math.floor(Math.random() * 1e6);
}

/** The variant of an answer that is shown, and that the conversation goes on from. */
export const chosen = (message) => message.variants[message.chosen];

/** All text of some parts, in order. */
export const textOf = (parts) => parts.filter((p) => p.type === "text").map((p) => p.text).join("");

/** What a conversation is called: the start of its first words, or what else it holds. */
export function titleOf(messages) {
  const first = messages.find((m) => m.role === "user");
  if (!first) return "";
  const words = textOf(first.parts).trim().replace(/\s+/g, " ");
  if (words) return words.length > 60 ? `${words.slice(0, 57).trimEnd()}…` : words;
  return first.parts.some((p) => p.type === "image_url") ? "A picture" : "A sound";
}

/** Parts as the API takes them: those of text alone as a string, unfinished ones left out. */
function content(parts) {
  const sent = parts.filter((p) => !p.partial).map(apiPart);
  const filled = sent.filter((p) => p.type !== "text" || p.text);
  return filled.every((p) => p.type === "text") ? textOf(filled) : filled;
}

function apiPart(part) {
  if (part.type === "text") return { type: "text", text: part.text };
  if (part.type === "image_url") return { type: "image_url", image_url: { url: part.image_url.url } };
  const { data, format } = part.input_audio;
  return { type: "input_audio", input_audio: { data, format } };
}

/**
 * Messages in the API's form, each with its number: [number, message]. A turn whose answer holds
 * nothing (refused, or stopped at once) is left out with its question: roles alternate, and a
 * question repeated is not asked twice.
 */
export function toApi(messages) {
  const sent = [];
  messages.forEach((message, number) => {
    const { role } = message;
    const said = content(role === "user" ? message.parts : chosen(message).parts);
    if (role === "user" || said.length) sent.push([number, { role, content: said }]);
    else sent.pop();
  });
  return sent;
}

const FIELDS = {
  temperature: "temperature",
  topP: "top_p",
  guidance: "guidance",
  maxTokens: "max_completion_tokens",
  maxImages: "max_images",
  maxSounds: "max_sounds",
};

/** The request whose answer goes on from `messages`. What a person left open, the server chooses. */
export function requestBody(model, messages, settings, seed) {
  const body = {
    ...(model && { model }),
    messages: toApi(messages).map(([, message]) => message),
    stream: true,
    stream_options: { include_usage: true },
    seed,
  };
  for (const [ours, field] of Object.entries(FIELDS)) {
    if (settings[ours] !== null && settings[ours] !== undefined) body[field] = settings[ours];
  }
  const options = messages.at(-1)?.options ?? {};
  return { ...body, modalities: settings.modalities, ...options };
}
