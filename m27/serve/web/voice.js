/**
 * Sounds made by arithmetic: a voice that says one sentence, and the sea. Pure; samples are floats
 * between -1 and 1, one channel, RATE a second.
 *
 * The voice is a source and a filter (Fant 1960; Klatt 1980): pulses of the vocal folds through
 * four resonances of the mouth, which glide from target to target. That makes vowels and glides alone,
 * and so it says the start of the sentence that speech science uses where no others are wanted:
 * "We were away a year ago".
 */

export const RATE = 16000;

// Seconds at which the first three resonances (Hz) are reached, the loudness, and the pitch (Hz).
// Figures: Peterson and Barney (1952) for vowels, a closed lip for each w.
const SENTENCE = [
  [0.0, 300, 620, 2200, 0.0, 118],
  [0.06, 300, 620, 2200, 0.6, 120], // w
  [0.16, 280, 2250, 2950, 1.0, 128], // ee
  [0.25, 280, 2250, 2950, 0.9, 128],
  [0.33, 310, 620, 2100, 0.5, 122], // w
  [0.43, 470, 1300, 1690, 0.9, 120], // er
  [0.52, 480, 1320, 1700, 0.9, 118],
  [0.6, 600, 1250, 2400, 0.8, 118], // a
  [0.68, 310, 620, 2200, 0.5, 122], // w
  [0.8, 560, 1800, 2500, 1.0, 134], // ay
  [0.9, 480, 2000, 2600, 1.0, 126],
  [1.04, 300, 2250, 2850, 0.8, 108],
  [1.16, 290, 2250, 2850, 0.0, 92],
];

/** The targets of the sentence at a time, on straight lines between those given. */
function targets(time) {
  const next = SENTENCE.findIndex(([at]) => at > time);
  if (next < 0) return SENTENCE.at(-1).slice(1);
  const [a, b] = [SENTENCE[next - 1], SENTENCE[next]];
  const part = (time - a[0]) / (b[0] - a[0]);
  const smooth = part * part * (3 - 2 * part);
  return a.slice(1).map((value, i) => value + (b[i + 1] - value) * smooth);
}

/** A resonance of two poles: filters one sample, with its frequency and width in Hz given anew. */
function resonance() {
  let [before, last] = [0, 0];
  return (sample, frequency, width) => {
    const radius = Math.exp((-Math.PI * width) / RATE);
    const c = -radius * radius;
    const b = 2 * radius * Math.cos((2 * Math.PI * frequency) / RATE);
    const out = (1 - b - c) * sample + b * last + c * before;
    [before, last] = [last, out];
    return out;
  };
}

/** A generator of noise between -1 and 1 that is the same each time (mulberry32). */
function noise(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 31 - 1;
  };
}

function loudest(samples, peak) {
  const most = samples.reduce((max, s) => Math.max(max, Math.abs(s)), 1e-9);
  return samples.map((s) => (s * peak) / most);
}

/** "We were away", 1.4 s. */
export function voice() {
  const samples = new Float32Array(Math.round(1.4 * RATE));
  const filters = [resonance(), resonance(), resonance(), resonance()];
  const random = noise(1);
  let [phase, tilt, last] = [0, 0, 0];
  for (let i = 0; i < samples.length; i++) {
    const [f1, f2, f3, loud, pitch] = targets(Math.max(0, i / RATE - 0.1));
    phase = (phase + (pitch * (1 + 0.004 * random())) / RATE) % 1;
    // The folds' flow: it opens slowly and closes fast (Rosenberg 1971).
    const flow = phase < 0.4 ? 0.5 - 0.5 * Math.cos((Math.PI * phase) / 0.4)
      : phase < 0.56 ? Math.cos((Math.PI * (phase - 0.4)) / 0.32) : 0;
    tilt = loud * (flow + 0.015 * random());
    let out = tilt - last; // lips radiate the change of flow
    last = tilt;
    out = filters[0](out, f1, 60);
    out = filters[1](out, f2, 90);
    out = filters[2](out, f3, 130);
    samples[i] = filters[3](out, 3500, 200);
  }
  return loudest(samples, 0.7);
}

/** Waves that break on a beach, 4 s: noise that swells, darker the further off it is. */
export function sea() {
  const samples = new Float32Array(4 * RATE);
  const random = noise(27);
  let [deep, bright] = [0, 0];
  for (let i = 0; i < samples.length; i++) {
    const t = i / RATE;
    const wave = Math.exp(-(((t - 1.1) / 0.55) ** 2)) + 0.9 * Math.exp(-(((t - 3.1) / 0.6) ** 2));
    const white = random();
    deep += 0.04 * (white - deep);
    bright += (0.12 + 0.5 * wave) * (white - bright);
    const edge = Math.min(1, t / 0.3, (4 - t) / 0.3);
    samples[i] = edge * (1.2 * deep + bright * (0.06 + 0.6 * wave));
  }
  return loudest(samples, 0.7);
}
