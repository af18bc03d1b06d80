/**
 * Puts the page together: the open conversation, its messages, where one writes, the list of
 * conversations, the settings. Each part knows its own business; here they meet.
 */

import { Announcer } from "./announce.js";
import { explain, modelName } from "./api.js";
import { Chat } from "./chat.js";
import { Composer } from "./composer.js";
import { download } from "./dom.js";
import { dropAnywhere } from "./drop.js";
import { asHtml, asJson, fileName } from "./exporting.js";
import { examples } from "./samples.js";
import { Follower } from "./scroll.js";
import { chooseTheme, fillForm, loadSettings, readForm, saveSettings, themeChosen } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { Player } from "./sound.js";
import { openStore } from "./store.js";
import { example, Thread } from "./thread.js";

const $ = (id) => document.getElementById(id);

let settings = loadSettings();
const store = await openStore();
const chat = new Chat(store, () => settings);
const announcer = new Announcer($("live"));

// ---- sound that plays as it comes ----

const player = new Player();
const muted = new WeakSet(); // sounds of which a person has heard enough
let heard = null; // {view, part} whose packets play

player.onend = () => heard?.view.setPlaying(heard.part, false);

function hear(view, part, samples, rate) {
  if (!settings.play || muted.has(part)) return;
  if (heard && heard.part !== part) heard.view.setPlaying(heard.part, false);
  heard = { view, part };
  if (player.packet(samples, rate)) view.setPlaying(part, true);
}

function silence() {
  if (heard) muted.add(heard.part);
  player.stop();
}

// ---- the conversation and its messages ----

let undoEdit = null; // puts the message that is being edited back

const thread = new Thread($("messages"), {
  onedit: edit,
  onagain: () => act(() => chat.again()),
  onchoose: (number, which) => chat.choose(number, which),
  ontimed: (number) => chat.keep(number),
  onsettings: () => openSettings("key"),
  onsilence: silence,
  onplay: silence, // a sound played by hand is not to be mixed with one that comes
  ongrow: () => scroll.follow(),
  oncopy: (words) =>
    navigator.clipboard.writeText(words).then(
      () => toast("Copied"),
      () => toast("The browser does not let this page copy"),
    ),
});

const composer = new Composer(
  {
    onsend: (parts, modalities) => act(() => chat.send(parts, { modalities })),
    onstop: stop,
    onup: () => edit(chat.messages.findLastIndex((message) => message.role === "user")),
    onmodalities: (modalities) => keep({ ...settings, modalities }),
  },
  settings.modalities,
);
composer.field.id = "message"; // where the skip link leads
$("composer").append(composer.node);

/** Whatever makes the model answer, out of a click or a key press: only those let a page sound. */
function act(work) {
  undoEdit?.();
  silence();
  if (settings.play) player.wake();
  work();
  focusField();
}

function stop() {
  silence();
  chat.stop();
  focusField();
}

/** Where one writes; but not where that would bring a keyboard up over what one came to see. */
function focusField() {
  if (matchMedia("(hover: hover)").matches) composer.field.focus();
}

function edit(number) {
  const message = chat.messages[number];
  if (!message || chat.running) return;
  undoEdit?.();
  const editor = new Composer(
    {
      onsend: (parts, modalities) => act(() => chat.resend(number, parts, { modalities })),
      oncancel: () => undoEdit(),
    },
    message.options.modalities,
    message,
  );
  const back = thread.replace(number, editor.node);
  undoEdit = () => {
    undoEdit = null;
    editor.end();
    back();
  };
  editor.begin();
}

chat.onopen = () => {
  undoEdit?.();
  silence();
  thread.show(chat.messages);
  showState();
  if (chat.messages.length) scroll.toEnd();
};

chat.onanswer = (number, event, changes, elapsed) => {
  const view = thread.view(chat.messages, number);
  if (event === "begin") {
    view.render();
    showState();
    scroll.toEnd();
  } else if (event === "change") {
    view.change(changes, elapsed);
    for (const change of changes) {
      const { what, part, piece, samples, rate } = change;
      if (piece) announcer.text(piece);
      if (samples) hear(view, part, samples, rate);
      if (what === "image" && !part.partial) announcer.say("A picture was drawn.");
      if (change.event === "done") announcer.say("A sound was made.");
    }
  } else {
    view.render();
    showState();
    const { state, error } = chat.messages[number].variants.at(-1);
    if (state === "stopped") silence();
    announcer.end(error ? "" : state === "stopped" ? "Stopped." : "End of the answer.");
    scroll.follow();
  }
};

/** What the page around the messages shows of the conversation. */
function showState() {
  const { chat: record, messages, running } = chat;
  $("welcome").hidden = messages.length > 0;
  document.title = record.title ? `${record.title} – m27` : "m27";
  composer.setRunning(running);
  for (const id of ["export-json", "export-html"]) $(id).disabled = running || !messages.length;
}

// ---- scrolling ----

const scroll = new Follower($("messages"), $("to-end"));
$("to-end").addEventListener("click", () => {
  scroll.toEnd();
  composer.field.focus();
});

// ---- conversations ----

const sidebar = new Sidebar(
  {
    place: $("sidebar"),
    opener: $("open-sidebar"),
    shade: $("shade"),
    list: $("chats"),
    confirm: $("confirm"),
  },
  {
    onopen: async (record) => {
      await chat.open(record);
      await showChats();
      leave();
    },
    onremove: async (record) => {
      await chat.remove(record.id);
      $("new-chat").focus(); // the button that was pressed is gone
    },
  },
);

async function showChats() {
  sidebar.show(await store.chats(), chat.chat.id);
}
chat.onchats = showChats;

/** From the list to the messages. */
function leave() {
  sidebar.close();
  focusField();
}

$("new-chat").addEventListener("click", async () => {
  silence();
  await chat.open();
  await showChats();
  leave();
});

function save(ending, type, write) {
  const text = write(chat.chat, chat.messages, chat.model);
  download(fileName(chat.chat, ending), new Blob([text], { type }));
}
$("export-json").addEventListener("click", () => save("json", "application/json", asJson));
$("export-html").addEventListener("click", () => save("html", "text/html", asHtml));

// ---- settings and theme ----

const form = $("settings-form");

function keep(changed) {
  const asksAgain = changed.key !== settings.key;
  settings = changed;
  saveSettings(settings);
  if (asksAgain) showModel();
}

function openSettings(field) {
  fillForm(form, settings);
  form.elements.theme.value = themeChosen();
  $("settings").showModal();
  if (field) form.elements[field].focus();
}

$("open-settings").addEventListener("click", () => openSettings());
form.addEventListener("change", () => {
  keep(readForm(form, settings));
  form.reportValidity();
  composer.setModalities(settings.modalities);
  chooseTheme(form.elements.theme.value);
});
form.addEventListener("reset", () => requestAnimationFrame(() => form.dispatchEvent(new Event("change"))));

$("theme").addEventListener("click", () => {
  const { theme } = document.documentElement.dataset;
  const dark = theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  chooseTheme(dark ? "light" : "dark");
});

// ---- the whole window ----

let timer = 0;
function toast(words) {
  $("toast").textContent = words;
  $("toast").hidden = false;
  clearTimeout(timer);
  timer = setTimeout(() => ($("toast").hidden = true), 4000);
}
chat.onfault = toast;

addEventListener("keydown", (event) => {
  if (event.key === "Escape" && chat.running && !document.querySelector("dialog[open]")) stop();
});

dropAnywhere((files) => composer.add(files));

async function showModel() {
  try {
    chat.model = await modelName(settings.key);
    $("model").textContent = chat.model;
  } catch (error) {
    $("model").textContent = error.status === 401 ? "A key is needed" : "Not reached";
    $("model").title = explain(error);
  }
}

for (const shown of examples()) {
  $("examples").append(example(shown, () => act(() => chat.send(shown.parts, shown.options))));
}

const latest = (await store.chats())[0];
await chat.open(latest);
await Promise.all([showChats(), showModel()]);
if (!store.lasting) toast("This browser keeps nothing here: conversations end with the page.");
focusField();
document.body.dataset.ready = "true";
