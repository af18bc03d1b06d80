"""Emoji in further styles: known by their code points, on the side of their concept, rendered once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from m27.data import holdout, registry
from m27.data.sources import emoji, more_emoji
from m27.data.sources.base import split

ICONS = {
    "width": 36,
    "height": 36,
    "icons": {
        "red-apple": {"body": '<circle cx="18" cy="18" r="16" fill="#d00"/>'},
        "wave": {"body": '<rect width="30" height="30" fill="#fc0"/>', "left": 2},
        "wave-dark": {"body": '<rect width="9" height="9"/>'},
        "unknown": {"body": '<rect width="9" height="9"/>'},
    },
}
CHARS = {"1f34e": "red-apple", "1f44b": "wave", "1f44b-1f3ff": "wave-dark", "e000": "unknown"}


def test_drawings_are_known_by_their_code_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "icons.json").write_text(json.dumps(ICONS))
    (tmp_path / "package" / "chars.json").write_text(json.dumps(CHARS))
    monkeypatch.setattr(registry, "fetch", lambda package: tmp_path)
    monkeypatch.setenv("M27_CACHE", str(tmp_path / "cache"))
    known = {"1f34e": ("red apple", "food"), "1f44b": ("waving hand", "people")}
    monkeypatch.setattr(
        emoji,
        "names",
        lambda: {c: {"name": n, "tags": [], "group": g} for c, (n, g) in known.items()},
    )
    pytest.importorskip("resvg_py")
    made = list(more_emoji.items())
    assert [(item.meta["style"], item.text) for item in made] == [
        (style, name) for style in more_emoji.PACKAGES for name in ("red apple", "waving hand")
    ]
    for item in made:
        wanted = "test" if holdout.held_out("emoji", item.concept) else "train"
        assert item.source == "emoji" and split(item) in (wanted, "dropped")
        assert (item.image or b"").startswith(b"\x89PNG")
    assert list(more_emoji.documents("test", 0)) == []
    asked = {document["task"] for document in more_emoji.documents("train", 0)}
    assert asked <= {"caption_picture", "draw"}


def test_an_icon_is_a_whole_drawing() -> None:
    text = more_emoji.drawing(ICONS, "wave")
    assert text.startswith("<svg") and 'viewBox="2 0 36 36"' in text and text.endswith("</svg>")
