/**
 * Sound as bytes: PCM of 16 bits, WAV files, base64. Pure; plays and records nothing.
 * Samples are floats between -1 and 1, one channel.
 */

/** Bytes → base64. Piece by piece, since a call takes only so many arguments. */
export function toBase64(bytes) {
  let text = "";
  for (let start = 0; start < bytes.length; start += 0x8000) {
    text += String.fromCharCode(...bytes.subarray(start, start + 0x8000));
  }
  return btoa(text);
}

/** base64 → bytes. */
export function fromBase64(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

/** PCM of 16 bits, little endian, → samples. An odd last byte is dropped. */
export function fromPcm16(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return Float32Array.from({ length: bytes.length >> 1 }, (_, i) => view.getInt16(2 * i, true) / 32768);
}

/** Samples → a WAV file of one channel and 16 bits. What lies beyond ±1 is clipped. */
export function toWav(samples, rate) {
  const size = 2 * samples.length;
  const bytes = new Uint8Array(44 + size);
  const view = new DataView(bytes.buffer);
  const word = (at, text) => [...text].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  word(0, "RIFF");
  view.setUint32(4, 36 + size, true);
  word(8, "WAVEfmt ");
  view.setUint32(16, 16, true); // bytes of the format that follow
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 1, true); // channels
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true); // bytes a second
  view.setUint16(32, 2, true); // bytes a sample of all channels
  view.setUint16(34, 16, true); // bits
  word(36, "data");
  view.setUint32(40, size, true);
  samples.forEach((s, i) => {
    const clipped = Math.max(-1, Math.min(1, s));
    view.setInt16(44 + 2 * i, Math.round(clipped * (clipped < 0 ? 32768 : 32767)), true);
  });
  return bytes;
}

/** Arrays of samples, one after the other, as one. */
export function joined(pieces) {
  const all = new Float32Array(pieces.reduce((n, piece) => n + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    all.set(piece, at);
    at += piece.length;
  }
  return all;
}
