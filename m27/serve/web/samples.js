/**
 * The pictures and sounds that the examples come with, all made here: drawn on a canvas, or by the
 * arithmetic of `voice.js`. Each is a part of a message in the API's form.
 */

import { RATE, sea, voice } from "./voice.js";
import { toBase64, toWav } from "./wav.js";

const SIDE = 192;

/** What `draw(context)` paints on a square of SIDE pixels, as a part. */
function picture(draw) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIDE;
  draw(canvas.getContext("2d"));
  return { type: "image_url", image_url: { url: canvas.toDataURL("image/png") } };
}

function sound(samples) {
  return { type: "input_audio", input_audio: { data: toBase64(toWav(samples, RATE)), format: "wav" } };
}

function disc(c, x, y, radius, color) {
  c.fillStyle = color;
  c.beginPath();
  c.arc(x, y, radius, 0, 2 * Math.PI);
  c.fill();
}

/** A yellow face that smiles. */
function face(c) {
  c.fillStyle = "#fff";
  c.fillRect(0, 0, SIDE, SIDE);
  disc(c, 96, 96, 80, "#ffd21e");
  disc(c, 68, 76, 10, "#5a3b00");
  disc(c, 124, 76, 10, "#5a3b00");
  Object.assign(c, { strokeStyle: "#5a3b00", lineWidth: 8, lineCap: "round" });
  c.beginPath();
  c.arc(96, 100, 46, 0.3, Math.PI - 0.3);
  c.stroke();
}

/** One blue circle on a pale ground. */
function circle(c) {
  c.fillStyle = "#f3e9d7";
  c.fillRect(0, 0, SIDE, SIDE);
  disc(c, 108, 88, 48, "#1f4fd8");
}

/** A wall clock that shows ten past ten. */
function clock(c) {
  c.fillStyle = "#e9e2f5";
  c.fillRect(0, 0, SIDE, SIDE);
  disc(c, 96, 96, 78, "#5b3b8c");
  disc(c, 96, 96, 67, "#fffdf7");
  const hand = (turn, from, to, width, color) => {
    const [x, y] = [Math.sin(2 * Math.PI * turn), -Math.cos(2 * Math.PI * turn)];
    Object.assign(c, { strokeStyle: color, lineWidth: width, lineCap: "round" });
    c.beginPath();
    c.moveTo(96 + from * x, 96 + from * y);
    c.lineTo(96 + to * x, 96 + to * y);
    c.stroke();
  };
  for (let hour = 0; hour < 12; hour++) hand(hour / 12, hour % 3 ? 57 : 52, 60, 4, "#3a2a55");
  hand(10 / 12 + 1 / 72, 0, 34, 7, "#2a1d40");
  hand(1 / 6, 0, 50, 5, "#2a1d40");
  disc(c, 96, 96, 6, "#d9302c");
}

const text = (words) => ({ type: "text", text: words });
const only = (...modalities) => ({ modalities });

/**
 * One example a capability: its title, what it shows (an icon of the page, or its picture), the
 * parts that are sent (media stand before words, as the model was taught) and the fields of the
 * request that make the answer what the title says.
 */
export function examples() {
  const [smile, round, dial] = [face, circle, clock].map(picture);
  return [
    { title: "Describe a picture", parts: [smile, text("Describe the picture.")], options: only("text") },
    {
      title: "Ask about a picture",
      parts: [round, text("what shape is in the image?")],
      options: only("text"),
    },
    {
      title: "Draw",
      icon: "picture",
      parts: [text("Draw a red apple.")],
      options: { ...only("image"), max_images: 1 },
    },
    {
      title: "A story with pictures",
      icon: "book",
      parts: [text("Tell a story with pictures: The little elephant")],
      options: { ...only("text", "image"), max_images: 3 },
    },
    {
      title: "Write down speech",
      icon: "voice",
      parts: [sound(voice()), text("Transcribe the speech.")],
      options: only("text"),
    },
    {
      title: "Name a sound",
      icon: "sound",
      parts: [sound(sea()), text("What is this sound?")],
      options: only("text"),
    },
    {
      title: "Say something",
      icon: "speak",
      parts: [text("Say: the farmer buys two cows")],
      options: { ...only("audio"), max_sounds: 1 },
    },
    {
      title: "A sound for a picture",
      parts: [dial, text("What sound does this make?")],
      options: { ...only("audio"), max_sounds: 1 },
    },
  ];
}
