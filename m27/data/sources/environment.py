"""ESC-10: 400 real environmental sounds of 5 s in ten classes (Piczak 2015). Fold 5 is held out."""

from collections.abc import Iterator

from m27.codec.media import read_audio
from m27.data.messages import document, phrasing, shuffled, sound, turn, words
from m27.data.prompts import ask
from m27.data.sources import parquet
from m27.data.sources.base import Document, Item, Side, shared_file
from m27.data.sources.clips import level, loudest, on_side, some_window, stored

NAME = "esc10"
LICENCE = "CC-BY 3.0 (Piczak 2015; the clips' authors are listed by ESC-50)"
ORIGIN = "ESC-10 of github.com/karolpiczak/ESC-50"
# Class → how a request names it, and how a description of what is heard says it.
PHRASES: dict[str, tuple[str, str]] = {
    "baby cry": ("a baby crying", "a baby cries"),
    "chainsaw": ("a chainsaw", "a chainsaw buzzes"),
    "clock tick": ("a clock ticking", "a clock ticks"),
    "dog bark": ("a dog barking", "a dog barks"),
    "fire crackling": ("a crackling fire", "a fire crackles"),
    "helicopter": ("a helicopter", "a helicopter flies"),
    "person sneeze": ("a person sneezing", "a person sneezes"),
    "rain": ("rain", "rain falls"),
    "rooster": ("a rooster crowing", "a rooster crows"),
    "sea waves": ("sea waves", "waves roll"),
}
CLASSES = tuple(PHRASES)
SECONDS = 1.5


def _make() -> Iterator[Item]:
    for row in parquet.rows(shared_file("esc10/esc10.parquet", ORIGIN), batch=32):
        meta = {"split": "test" if row["fold"] == 5 else "train", "fold": row["fold"]}
        audio = level(read_audio(row["audio"]))
        name = row["category"]
        yield Item(f"{NAME}/{row['filename']}", name, name, audio=audio, meta=meta)


def items() -> Iterator[Item]:
    """Every clip whole; concept and text are the class, `meta["split"]` follows the fold."""
    yield from stored(NAME, "1", _make)


def documents(split: Side, seed: int = 0) -> Iterator[Document]:
    """`name_sound` (the loudest 1.5 s; in training a second window) and `sound_for_text`."""
    for item in shuffled(on_side(items(), split), seed):
        rng = phrasing(split, seed, item.key)
        if item.audio is None:
            continue
        heard = [loudest(item.audio, SECONDS)]
        if rng is not None:
            heard.append(some_window(item.audio, SECONDS, rng))
        for number, window in enumerate(heard):
            messages = turn([sound(window), words(ask("name_sound", rng))], [words(item.text)])
            yield document(f"{item.key}/{number}", "name_sound", NAME, messages)
        request = ask("sound_for_text", rng, text=PHRASES[item.text][0])
        messages = turn([words(request)], [sound(heard[0])])
        yield document(item.key, "sound_for_text", NAME, messages)
