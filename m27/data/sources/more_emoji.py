"""Emoji in two more styles, as drawings: Twemoji and the first Noto. The concepts of `emoji`, held out alike.

A drawing is known by its sequence of code points, so one that is held out is held out here too. Training only: what
is asked of held-out concepts stays what it was. Skin tones are left out; the first styles have them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from m27.data import holdout, pairs, registry
from m27.data import messages as say
from m27.data.sources import emoji, rendered
from m27.data.sources.base import Document, Item, Side, of_split

NAME = "more_emoji"
LICENCE = "CC BY 4.0 (Twemoji, by Twitter) and Apache-2.0 (Noto, by Google)"
ORIGIN = "npm @iconify-json/twemoji 1.2.5, @iconify-json/noto-v1 1.2.5"
PACKAGES = {"twemoji": "@iconify-json/twemoji", "noto-v1": "@iconify-json/noto-v1"}
SIZE = 128
_REVISION = "1"


def items() -> Iterator[Item]:
    """Every drawing of both styles, rendered at the first call; `meta` as of `fluent`."""
    yield from rendered.stored(NAME, _REVISION, _make)


def _make() -> Iterator[Item]:
    known = emoji.names()
    for style, package in PACKAGES.items():
        folder = registry.fetch(package) / "package"
        icons = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
        chars = json.loads((folder / "chars.json").read_text(encoding="utf-8"))
        seen = set[str]()
        for code, icon in sorted(chars.items()):
            entry = known.get(emoji._plain_code(code))
            toned = any(part in emoji._TONES for part in code.lower().split("-"))
            if entry is None or toned or icon in seen or icon not in icons["icons"]:
                continue
            seen.add(icon)
            text = drawing(icons, icon)
            meta = {
                **{key: entry[key] for key in ("tags", "group")},
                "style": style, "tone": False, "alpha": True, "source": emoji.NAME,
                "content_hash": holdout.content_hash(text.encode()),
            }  # fmt: skip
            name, key = str(entry["name"]), f"{NAME}/{style}/{icon}"
            image = rendered.raster(text, SIZE, key)
            yield Item(key, emoji.concept_of(name), name, image, meta=meta)


def drawing(icons: dict[str, object], icon: str) -> str:
    """One icon of an Iconify set as an SVG file's text."""
    known: dict[str, dict[str, object]] = icons["icons"]  # type: ignore[assignment]
    entry = known[icon]
    width, height = (entry.get(side, icons.get(side, 16)) for side in ("width", "height"))
    left, top = entry.get("left", 0), entry.get("top", 0)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{left} {top} {width} {height}">'
    return f"{head}{entry['body']}</svg>"


def documents(split: Side, seed: int) -> Iterator[Document]:
    """caption_picture and draw of every drawing of the training side; nothing to test on."""
    if split == "train":
        for item in say.shuffled(of_split(items(), split), seed):
            yield from pairs.captioned(item, split, seed, NAME, "an emoji of")
