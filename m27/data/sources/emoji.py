"""Emoji in two styles, with English names and tags: Noto (Google) at 64 px, Fluent 3D at 256 px.

Skin tones and the three genders of one emoji are one concept, so a held-out emoji is held out in
every style, tone and gender.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from m27.data import messages as say
from m27.data import pairs, registry
from m27.data.sources.base import (
    Document,
    Item,
    Side,
    of_split,
)

NAME = "emoji"
LICENCE = "names MIT (emojibase); pictures Apache-2.0 (Noto) and MIT (Fluent)"
ORIGIN = "npm emoji-datasource-google 16.0.0, @lobehub/fluent-emoji-3d 1.1.0, emojibase-data 17.0.0"
STYLES = ("google", "fluent3d")
_TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
_PERSON = re.compile(r"^(man|woman|person|men|women|people|boy|girl|child)\b[\s:,]*(in |with )?")
_HIDDEN = {"component"}


def items() -> Iterator[Item]:
    """Every emoji of both styles; text is its name, `meta` has style, tone, tags, group, alpha."""
    known_names = names()
    folders = (
        registry.fetch("emoji-datasource-google") / "package/img/google/64",
        registry.fetch("@lobehub/fluent-emoji-3d") / "package/assets",
    )
    for style, folder in zip(STYLES, folders, strict=True):
        for path in sorted(folder.iterdir()):
            known = known_names.get(_plain_code(path.stem))
            if path.suffix not in (".png", ".webp") or known is None:
                continue
            tone = any(code in _TONES for code in path.stem.split("-"))
            meta = {**known, "style": style, "tone": tone, "alpha": True}
            concept = concept_of(known["name"])
            key = f"{NAME}/{style}/{path.stem}"
            yield Item(key, concept, known["name"], path.read_bytes(), meta=meta)


def concept_of(name: str) -> str:
    """An emoji's name without who does it: "woman running" and "man running" are "running"."""
    rest = _PERSON.sub("", name).strip()
    return rest or name


def _plain_code(code: str) -> str:
    """A code sequence without tones and without the invisible selector, in lower case."""
    return "-".join(c for c in code.lower().split("-") if c not in _TONES and c != "fe0f")


def names() -> dict[str, dict[str, Any]]:
    """Plain code sequence → name, tags and group, of every emoji that is not a component."""
    folder = registry.fetch("emojibase-data") / "package" / "en"
    groups = {
        g["order"]: g["key"] for g in json.loads((folder / "messages.json").read_text())["groups"]
    }
    found: dict[str, dict[str, Any]] = {}
    for row in json.loads((folder / "data.json").read_text()):
        group = groups.get(row.get("group"), "component")
        if group in _HIDDEN:
            continue
        found[_plain_code(row["hexcode"])] = {
            "name": _name(row["label"]),
            "label": row["label"],
            "hexcode": row["hexcode"],
            "tags": row.get("tags", []),
            "group": group,
        }
    return found


def _name(label: str) -> str:
    """A label as one would say it: "flag: France" → "flag of france"."""
    name = label.lower().replace("’", "'").replace("“", "").replace("”", "")
    if name.startswith("flag: "):
        return "flag of " + name.removeprefix("flag: ")
    if name.startswith("keycap: "):
        return "key " + name.removeprefix("keycap: ")
    return name.replace(": ", " with ", 1) if ": " in name else name


def documents(split: Side, seed: int) -> Iterator[Document]:
    """caption_picture and draw for every emoji in both styles, without the skin tones."""
    plain = (item for item in of_split(items(), split) if not item.meta["tone"])
    for item in say.shuffled(plain, seed):
        yield from pairs.captioned(item, split, seed, NAME, "an emoji of")
