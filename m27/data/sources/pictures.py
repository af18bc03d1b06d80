"""All picture sources in one stream: what the image codec learns from."""

from __future__ import annotations

from collections.abc import Iterator

from m27.data.sources import (
    cifar10,
    easy_vqa,
    emoji,
    fluent,
    grocery,
    more_emoji,
    nlvr,
    openclipart,
    stamps,
    storybooks,
    tiny_imagenet,
)
from m27.data.sources.base import Item, Items, Side, split

# In the order of a stream, small and varied sources first.
SOURCES: dict[str, Items] = {
    stamps.NAME: stamps.items,
    emoji.NAME: emoji.items,
    openclipart.NAME: openclipart.items,
    storybooks.NAME: storybooks.items,
    grocery.NAME: grocery.items,
    nlvr.NAME: nlvr.items,
    easy_vqa.NAME: easy_vqa.items,
    tiny_imagenet.NAME: tiny_imagenet.items,
    cifar10.NAME: cifar10.items,
}

# Asked for by name alone: drawings of the same emoji, held out by the same concepts.
MORE: dict[str, Items] = {fluent.NAME: fluent.items, more_emoji.NAME: more_emoji.items}

# What kind of picture a source holds, as the codec's report groups them.
KIND: dict[str, str] = {
    stamps.NAME: "stamps",
    emoji.NAME: "emoji",
    openclipart.NAME: "clip-art",
    fluent.NAME: "emoji",
    more_emoji.NAME: "emoji",
    storybooks.NAME: "books",
    grocery.NAME: "photographs",
    nlvr.NAME: "diagrams",
    easy_vqa.NAME: "diagrams",
    tiny_imagenet.NAME: "photographs",
    cifar10.NAME: "photographs",
}


def pictures(side: Side = "train", sources: tuple[str, ...] | None = None) -> Iterator[Item]:
    """Every item with a picture on one side, undecoded, one source after the other.

    sources: names out of `SOURCES` and `MORE`, all of `SOURCES` by default. Near-duplicates of held-out pictures are on
    neither side. The whole train side takes a few seconds and little memory.
    """
    for name in sources or tuple(SOURCES):
        for item in (SOURCES | MORE)[name]():
            if item.image is not None and split(item) == side:
                yield item
