"""`m27 data show`: one self-contained HTML page of samples, to look at what one trains on.

Pictures and players are in the page itself; no script, no network. Knows documents only, whatever
made them: a source, a maker, or data of a user's own.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Iterator
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from m27.codec import media
from m27.data import catalogue, check
from m27.data.progress import track
from m27.data.sources.base import Document, Side

_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:1100px;padding:0 1rem;
background:#fafafa;color:#222}
h1{font-size:1.4rem}nav a{margin-right:1rem}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(320px,1fr));gap:1rem}
article{background:#fff;border:1px solid #ddd;border-radius:8px;padding:.7rem}
article header{color:#777;font-size:.75rem;overflow-wrap:anywhere}
.turn{margin:.45rem 0;padding:.4rem .6rem;border-radius:8px}
.user{background:#eef2f7}.assistant{background:#e9f6ec}.system,.tool{background:#f6f1e4}
.turn img{width:128px;height:128px;object-fit:contain;display:block;margin:4px 0}
.turn audio{width:100%;height:32px}p{margin:.2rem 0;white-space:pre-wrap}
"""


def samples(names: Iterable[str], side: Side, seed: int, count: int) -> Iterator[Document]:
    """`count` documents of each of the catalogue's `names`, tasks in turn as far as they come.

    A name that is a path is data of a user's own. Raises KeyError for an unknown name.
    """
    for name in names:
        if catalogue.is_path(name):
            yield from islice(check.read(name), count)
        else:
            yield from _balanced(catalogue.documents(name)(side, seed), count)


def show(documents: Iterable[Document], path: str | Path, title: str = "Samples") -> int:
    """Write the page of `documents` to `path` (atomically); returns how many there are."""
    by_task: dict[str, list[str]] = {}
    for document in track(documents, "drawing samples"):
        by_task.setdefault(document["task"] or "messages", []).append(_article(document))
    total = sum(len(articles) for articles in by_task.values())
    links = " ".join(
        f'<a href="#{html.escape(task)}">{html.escape(task)} ({len(articles)})</a>'
        for task, articles in sorted(by_task.items())
    )
    body = "".join(
        f'<h2 id="{html.escape(task)}">{html.escape(task)}</h2>'
        f'<div class="grid">{"".join(articles)}</div>'
        for task, articles in sorted(by_task.items())
    )
    name = html.escape(title)
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title>'
        f"<style>{_STYLE}</style><h1>{name}</h1><p>{total} documents</p><nav>{links}</nav>{body}"
    )
    media.write_atomic(path, page.encode())
    return total


def _balanced(documents: Iterator[Document], count: int) -> Iterator[Document]:
    """`count` of the first 4×count, one of each task in turn."""
    by_task: dict[str, list[Document]] = {}
    for document in islice(documents, 4 * count):
        by_task.setdefault(document["task"], []).append(document)
    turns = (d for row in zip_longest(*by_task.values()) for d in row if d is not None)
    return islice(turns, count)


def _article(document: Document) -> str:
    turns = "".join(_turn(message) for message in document["messages"])
    for branch in document.get("branches", ()):
        label = "rather than" if document.get("preference") else "and also"
        turns += f"<p>{label}:</p>" + "".join(_turn(message) for message in branch)
    head = f"{document['source']} · {document['id']}"
    return f"<article><header>{html.escape(head)}</header>{turns}</article>"


def _turn(message: dict[str, Any]) -> str:
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    inner = "".join(_part(part) for part in parts)
    return f'<div class="turn {html.escape(str(message["role"]))}">{inner}</div>'


def _part(part: dict[str, Any]) -> str:
    if part["type"] == "text":
        return f"<p>{html.escape(part['text'])}</p>"
    if "codes" in part:
        return f"<p>[{html.escape(part['type'])} given as codes]</p>"
    if part["type"] == "image":
        rgb = part.get("image")
        if rgb is None:
            rgb = media.read_image(part.get("bytes") or part["path"])
        return f'<img alt="picture" src="{_data("image/png", media.png_bytes(rgb))}">'
    samples_T = part.get("audio")
    if samples_T is None:
        samples_T = media.read_audio(part.get("bytes") or part["path"])
    return f'<audio controls src="{_data("audio/wav", media.wav_bytes(samples_T))}"></audio>'


def _data(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
