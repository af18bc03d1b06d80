/**
 * What a person chose: kept in localStorage, the key in sessionStorage alone, so that it is gone
 * with the tab. Fills in and reads the settings form of index.html. Numbers left empty are null: the
 * server's own choice.
 */

import { MEDIA } from "./conversation.js";

const NAME = "m27.settings";
const KEY = "m27.key";
const NUMBERS = ["temperature", "topP", "guidance", "seed", "maxTokens", "maxImages", "maxSounds"];
const DEFAULTS = {
  modalities: MEDIA,
  play: true,
  ...Object.fromEntries(NUMBERS.map((name) => [name, null])),
};

function read(storage, name) {
  try {
    return storage().getItem(name);
  } catch {
    return null; // closed to this page; nothing is kept then
  }
}

function write(storage, name, value) {
  try {
    if (value === "") storage().removeItem(name);
    else storage().setItem(name, value);
  } catch {
    // as above
  }
}

const local = () => localStorage;
const session = () => sessionStorage;

/** The settings kept, each checked, so that an older or spoiled record does no harm. */
export function loadSettings() {
  let kept = {};
  try {
    kept = JSON.parse(read(local, NAME)) ?? {};
  } catch {
    // spoiled: the defaults
  }
  const settings = { ...DEFAULTS, key: read(session, KEY) ?? "" };
  for (const name of NUMBERS) if (Number.isFinite(kept[name])) settings[name] = kept[name];
  if (typeof kept.play === "boolean") settings.play = kept.play;
  const media = MEDIA.filter((medium) => kept.modalities?.includes?.(medium));
  if (media.length) settings.modalities = media;
  return settings;
}

/** Keep them. */
export function saveSettings(settings) {
  const { key, ...rest } = settings;
  write(local, NAME, JSON.stringify(rest));
  write(session, KEY, key);
}

/** Show the settings in the form. */
export function fillForm(form, settings) {
  for (const name of NUMBERS) form.elements[name].value = settings[name] ?? "";
  for (const box of form.elements.modalities) box.checked = settings.modalities.includes(box.value);
  form.elements.play.checked = settings.play;
  form.elements.key.value = settings.key;
}

/**
 * The settings that the form shows. A field that the browser finds wrong keeps its old value, and
 * the last medium its check: an answer holds something.
 */
export function readForm(form, before) {
  const settings = { ...before };
  for (const name of NUMBERS) {
    const field = form.elements[name];
    if (field.validity.valid) settings[name] = field.value === "" ? null : field.valueAsNumber;
  }
  const media = [...form.elements.modalities].filter((box) => box.checked).map((box) => box.value);
  if (media.length) settings.modalities = media;
  for (const box of form.elements.modalities) box.checked = settings.modalities.includes(box.value);
  settings.play = form.elements.play.checked;
  settings.key = form.elements.key.value.trim();
  return settings;
}

/** The theme chosen: "light", "dark", or "" for the system's (see theme.js). */
export const themeChosen = () => read(local, "m27.theme") ?? "";

/** Choose a theme and show it. */
export function chooseTheme(theme) {
  write(local, "m27.theme", theme);
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
}
