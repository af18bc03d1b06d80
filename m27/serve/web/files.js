/**
 * Files that a person gives → parts of a message, or one clear line why not. What a file is, its
 * first bytes say, not its name. Knows nothing of the page.
 */

import { toBase64 } from "./wav.js";

export const MAX_BYTES = 10 * 1000 * 1000;
const KINDS = "PNG, JPEG, WebP, GIF, BMP, WAV, FLAC, OGG and MP3";
export const ACCEPT = ".png,.jpg,.jpeg,.webp,.gif,.bmp,.wav,.flac,.ogg,.oga,.mp3";

/** A file that is not taken; the message is one line that names it. */
export class Refused extends Error {}

const text = (bytes, start, end) => String.fromCharCode(...bytes.subarray(start, end));

/** What the first dozen bytes are: {image: MIME type}, {audio: format of the API} or null. */
export function sniff(bytes) {
  const riff = text(bytes, 0, 4) === "RIFF" ? text(bytes, 8, 12) : "";
  if (text(bytes, 0, 8) === "\x89PNG\r\n\x1a\n") return { image: "image/png" };
  if (text(bytes, 0, 3) === "\xff\xd8\xff") return { image: "image/jpeg" };
  if (riff === "WEBP") return { image: "image/webp" };
  if (/^GIF8[79]a$/.test(text(bytes, 0, 6))) return { image: "image/gif" };
  if (text(bytes, 0, 2) === "BM") return { image: "image/bmp" };
  if (riff === "WAVE") return { audio: "wav" };
  if (text(bytes, 0, 4) === "fLaC") return { audio: "flac" };
  if (text(bytes, 0, 4) === "OggS") return { audio: "ogg" };
  // MP3: a tag, or a frame's eleven set bits followed by a layer (AAC has none there).
  const frame = bytes[0] === 0xff && (bytes[1] & 0xe0) === 0xe0 && (bytes[1] & 0x06) !== 0;
  if (text(bytes, 0, 3) === "ID3" || frame) return { audio: "mp3" };
  return null;
}

/** Bytes of a picture or sound → a part in the API's form, or null if it is neither. */
export function partOf(bytes) {
  const kind = sniff(bytes);
  if (kind?.image) {
    return { type: "image_url", image_url: { url: `data:${kind.image};base64,${toBase64(bytes)}` } };
  }
  if (kind?.audio) {
    return { type: "input_audio", input_audio: { data: toBase64(bytes), format: kind.audio } };
  }
  return null;
}

/** A part of the API that holds the file's picture or sound. Throws Refused. */
export async function readFile(file) {
  const name = file.name || "The file";
  if (file.size > MAX_BYTES) {
    const size = (file.size / 1e6).toFixed(1);
    throw new Refused(`${name} was not added: it has ${size} MB, and 10 MB is the most.`);
  }
  let bytes;
  try {
    bytes = new Uint8Array(await file.arrayBuffer());
  } catch {
    throw new Refused(`${name} was not added: it cannot be read (a folder, perhaps).`);
  }
  const part = partOf(bytes);
  if (!part) {
    throw new Refused(`${name} was not added: it is none of ${KINDS}.`);
  }
  return part;
}

const MIME = { wav: "audio/wav", mp3: "audio/mpeg", ogg: "audio/ogg", flac: "audio/flac" };
const DATA_URL = /^data:(image|audio)\/[a-z0-9.+-]{1,40};base64,/;
const NOT_BASE64 = /[^A-Za-z0-9+/=]/; // sought, not matched as a whole: a match of megabytes runs out of stack

/**
 * The data URL of a picture or sound part, "" for anything else: what a server sends is shown only
 * if it is media, and never fetched.
 */
export function dataUrl(part) {
  const url =
    part.type === "image_url"
      ? part.image_url?.url
      : part.type === "input_audio" && MIME[part.input_audio?.format]
        ? `data:${MIME[part.input_audio.format]};base64,${part.input_audio.data}`
        : "";
  const head = typeof url === "string" ? DATA_URL.exec(url)?.[0] : null;
  return head && !NOT_BASE64.test(url.slice(head.length)) ? url : "";
}
