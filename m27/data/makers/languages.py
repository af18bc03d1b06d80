"""What a picture is called in German, French, Spanish, Italian or Dutch: `caption_language`.

Emoji bring their names in all of these (emojibase), stamps most of their captions. A name keeps
the capitals that its language gives it, without article for emoji, and no closing full stop.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from functools import cache

from m27.data import messages as say
from m27.data import registry
from m27.data.prompts import LANGUAGES, ask_in
from m27.data.sources import emoji, fluent, stamps
from m27.data.sources.base import Document, Side, of_split

NAME = "languages"
MAX_WORDS = 6
_TURNS = 2  # languages a picture is asked for in, in training; in the test one


def documents(split: Side, seed: int) -> Iterator[Document]:
    """`caption_language` of every emoji without skin tone, and of every stamp with a short caption."""
    pictures = list(of_split(stamps.items(), split))
    pictures += [item for item in of_split(emoji.items(), split) if not item.meta["tone"]]
    pictures += of_split(fluent.items(("flat",)), split)
    captions = stamps.translations(tuple(LANGUAGES))
    for item in say.shuffled(pictures, seed):
        known = captions.get(item.key, {}) if item.source == stamps.NAME else names(item.text)
        short = sorted(code for code, text in known.items() if len(text.split()) <= MAX_WORDS)
        if not short:
            continue
        draw = random.Random(f"{NAME}:{split}:{seed}:{item.key}")
        rng = say.phrasing(split, seed, f"{NAME}:{item.key}")
        chosen = draw.sample(short, min(len(short), 1 if rng is None else _TURNS))
        for code in chosen:
            question = say.words(ask_in(code, rng))
            messages = say.turn([say.picture(item), question], [say.words(known[code])])
            yield say.document(f"{item.key}/{code}", "caption_language", NAME, messages)


def names(english: str) -> dict[str, str]:
    """Language → the name of the emoji whose English name, as `emoji` gives it, is `english`."""
    return _names().get(english, {})


@cache
def _names() -> dict[str, dict[str, str]]:
    folder = registry.fetch("emojibase-data") / "package"
    codes = {str(entry["hexcode"]): str(entry["name"]) for entry in emoji.names().values()}
    found: dict[str, dict[str, str]] = {}
    for language in LANGUAGES:
        for row in json.loads((folder / language / "data.json").read_text(encoding="utf-8")):
            name = codes.get(row["hexcode"])
            label = re.sub(r"\s+", " ", str(row.get("label", ""))).strip().rstrip(".")
            if name and label:
                found.setdefault(name, {})[language] = label
    return found
