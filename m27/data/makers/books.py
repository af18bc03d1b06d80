"""Documents of the picture books: stories with pictures, and the pieces they consist of.

Long sequences alone converge slowly, so a book is also cut into pieces: text → picture,
picture → text, page → next page. A page is its text, then its picture; a text longer than
`MAX_WORDS` is cut at the end of a sentence. A story has at most four pictures a document.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from m27.data import messages as say
from m27.data.prompts import ask
from m27.data.sources import storybooks
from m27.data.sources.base import Document, Item, Side
from m27.data.sources.base import split as side_of

NAME = storybooks.NAME
MAX_WORDS = 40
MAX_PICTURES = 4


def documents(split: Side, seed: int) -> Iterator[Document]:
    """Of every book of one side: its beginning as a story, and each page as pieces, all mixed.

    Tasks: story, story_page (text → picture), story_text (picture → text), story_next.
    """
    plans: list[tuple[str, list[Item]]] = []
    for pages in books(split):
        plans += _stories(pages, seed)
        for index, page in enumerate(pages):
            plans.append(("picture", [page]))
            if page.meta["page"] > 0 and index % 3 == seed % 3:
                plans.append(("text", [page]))
            if page.meta["page"] > 0 and index + 1 < len(pages) and index % 2 == seed % 2:
                plans.append(("next", [page, pages[index + 1]]))
    for kind, pages in say.shuffled(plans, seed):
        yield _document(kind, pages, split, seed)


def books(split: Side) -> Iterator[list[Item]]:
    """The usable pages of each book of a side: those with both a text and a picture, in order.

    A page that looks like a held-out picture ends the book there, so that no story has a hole.
    """
    for pages in storybooks.books():
        kept: list[Item] = []
        for page in pages:
            side = side_of(page) if page.image is not None else split
            if side != split:
                break
            if page.image is not None and shorten(page.text):
                kept.append(page)
        if len(kept) > 1:
            yield kept


def shorten(text: str, limit: int = MAX_WORDS) -> str:
    """As many whole sentences from the start as fit `limit` words; "" where not even one does.

    >>> shorten("One two. Three four five.", 3)
    'One two.'
    """
    text = re.sub(r"\s+", " ", text).strip()
    if len(text.split()) <= limit:
        return text
    kept = ""
    for sentence in re.split(r"(?<=[.!?])\s+", text):
        longer = f"{kept} {sentence}".strip()
        if len(longer.split()) > limit:
            break
        kept = longer
    return kept


def _stories(pages: list[Item], seed: int) -> list[tuple[str, list[Item]]]:
    """The book's beginning in two lengths, and a whole short book with its cover."""
    inner = [page for page in pages if page.meta["page"] > 0]
    plans: list[tuple[str, list[Item]]] = []
    if len(pages) <= MAX_PICTURES:
        plans.append(("whole", pages))
    for length in (2, 3 + seed % 2):
        if len(inner) >= length:
            plans.append((f"start{length}", inner[:length]))
    if pages[0].meta["page"] == 0 and len(inner) > 1:
        plans.append(("cover", pages[:3]))
    return plans


def _page(page: Item) -> list[say.Part]:
    return [say.words(shorten(page.text)), say.picture(page)]


def _document(kind: str, pages: list[Item], split: Side, seed: int) -> Document:
    first = pages[0]
    name = f"{kind}:{first.key}"
    rng = say.phrasing(split, seed, name)
    if kind == "picture":
        wish = say.words(ask("story_page", rng, text=shorten(first.text)))
        return say.document(name, "story_page", NAME, say.turn([wish], [say.picture(first)]))
    if kind == "text":
        asked = [say.picture(first), say.words(ask("story_text", rng))]
        answer = [say.words(shorten(first.text))]
        return say.document(name, "story_text", NAME, say.turn(asked, answer))
    if kind == "next":
        asked = [*_page(first), say.words(ask("story_next", rng))]
        return say.document(name, "story_next", NAME, say.turn(asked, _page(pages[1])))
    wish = say.words(ask("story", rng, text=str(first.meta["title"]).strip().rstrip(".")))
    told = [part for page in pages for part in _page(page)]
    return say.document(name, "story", NAME, say.turn([wish], told))
