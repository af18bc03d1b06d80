"""African Storybook: 307 picture books in English, 3,603 pages. 30 stories held out, by title.

Page 0 is the cover with the title.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby

from m27.data.sources import parquet
from m27.data.sources.base import Item, shared_file

NAME = "storybooks"
LICENCE = "CC-BY 3.0, credits a story"
ORIGIN = "African Storybook (africanstorybook.org)"


def items() -> Iterator[Item]:
    """Every page in reading order; `meta` has story, page, title and credits.

    Pages without a picture are kept (image None) so that the text stays whole.
    """
    path = shared_file("storybooks/storybooks-en.parquet", ORIGIN)
    for row in parquet.rows(path):
        meta = {name: row[name] for name in ("story", "page", "title", "credits")}
        text = re.sub(r"\s+", " ", row["text"] or "").strip()
        key = f"{NAME}/{row['story']}/{row['page']:02d}"
        yield Item(key, row["title"], text, row["image"], meta=meta)


def books() -> Iterator[list[Item]]:
    """The pages of one book at a time, cover first."""
    for _, pages in groupby(items(), key=lambda item: str(item.meta["story"])):
        yield sorted(pages, key=lambda item: int(item.meta["page"]))
