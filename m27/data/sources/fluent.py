"""The Fluent emoji as drawings, flat and in color: the concepts of `emoji`, held out alike.

A drawing is known by the file's name ("woman-running"), which is matched to the emoji's English
label. Skin tones are left out: the other styles have them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from m27.data import holdout, pairs, registry
from m27.data import messages as say
from m27.data.sources import emoji, rendered
from m27.data.sources.base import Document, Item, Side, of_split

NAME = "fluent"
PACKAGE = "fluentui-emoji"
LICENCE = "MIT (Microsoft's Fluent emoji; package by M. Abu Mattar)"
ORIGIN = "npm fluentui-emoji 1.3.0"
STYLES = {"flat": "flat", "color": "modern"}  # style → its folder in the package
SIZE = 128
_REVISION = "2"
_TONE = re.compile(r"-(light|medium-light|medium|medium-dark|dark)$")
_DEFAULT = "-default"  # ends the names of emoji that also come in skin tones


def items(styles: tuple[str, ...] = tuple(STYLES)) -> Iterator[Item]:
    """Every drawing of the styles; `meta` has style, tags, group, alpha and `content_hash`.

    The hash is of the drawing itself, so that it does not change with the renderer.
    """
    for item in rendered.stored(NAME, _REVISION, _make):
        if item.meta["style"] in styles:
            yield item


def slug(label: str) -> str:
    """A label as the package's files spell it: "one o’clock" → "one-oclock"."""
    plain = re.sub(r"['’“”.!,():&]", "", label.lower())
    return re.sub(r"[^\w]+", "-", plain).strip("-")


def _make() -> Iterator[Item]:
    folder = registry.fetch(PACKAGE) / "package" / "icons"
    known = {slug(str(entry["label"])): entry for entry in emoji.names().values()}
    for style, place in STYLES.items():
        for path in sorted((folder / place).glob("*.svg")):
            entry = known.get(path.stem.removesuffix(_DEFAULT))
            if entry is None or _TONE.search(path.stem):
                continue
            text = path.read_text(encoding="utf-8")
            meta = {
                **{key: entry[key] for key in ("tags", "group")},
                "style": style, "tone": False, "alpha": True, "source": emoji.NAME,
                "content_hash": holdout.content_hash(text.encode()),
            }  # fmt: skip
            name = str(entry["name"])
            key = f"{NAME}/{style}/{path.stem}"
            image = rendered.raster(text, SIZE, key)
            yield Item(key, emoji.concept_of(name), name, image, meta=meta)


def documents(split: Side, seed: int) -> Iterator[Document]:
    """caption_picture and draw of every drawing, flat and in color."""
    for item in say.shuffled(of_split(items(), split), seed):
        yield from pairs.captioned(item, split, seed, NAME, "an emoji of")
