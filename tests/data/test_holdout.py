"""The two sides share no concept, no bytes and no look-alike; and they never move."""

import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from m27.data import holdout, likeness, registry
from m27.data.sources import (
    emoji,
    fashion,
    fluent,
    openclipart,
    quickdraw,
    stamps,
    storybooks,
)
from m27.data.sources.base import Item, SourceError, of_split, shared_data, split
from m27.data.sources.pictures import SOURCES, pictures

NEEDS = {
    "emoji": ("emojibase-data", "emoji-datasource-google", "@lobehub/fluent-emoji-3d"),
    "stamps": ("tuxpaint-stamps-default",),
    "openclipart": ("openclipart-png", "openclipart-svg"),
    "easy_vqa": ("easy-vqa",),
}
FOLDERS = {"tiny_imagenet": "tiny-imagenet"}


def available(source: str) -> bool:
    """Tests use no network: a source counts where its packages or files are on disk already."""
    if source in NEEDS:
        return all(registry.is_fetched(name) for name in NEEDS[source])
    return (shared_data() / FOLDERS.get(source, source)).is_dir()


def need(source: str) -> None:
    if not available(source):
        pytest.skip(f"{source} is not on this machine (m27 data fetch)")


def test_sides_never_move() -> None:
    assert holdout.fraction("emoji", "waving hand") == pytest.approx(0.5554087414, abs=1e-9)
    assert holdout.held_out("emoji", "Waving Hand") == holdout.held_out("emoji", "waving hand")
    assert holdout.fraction("emoji", "dog") != holdout.fraction("stamps", "dog")


def test_no_concept_falls_back_to_the_bytes() -> None:
    sides = {
        holdout.held_out("openclipart", "", holdout.content_hash(bytes([i]))) for i in range(99)
    }
    assert sides == {True, False}


def test_family_without_a_rate_is_an_error() -> None:
    with pytest.raises(KeyError):
        holdout.held_out("nowhere", "dog")


@pytest.mark.parametrize(
    ("name", "concept"),
    [("woman running", "running"), ("man running", "running"), ("man", "man"), ("dog", "dog")],
)
def test_emoji_of_all_genders_are_one_concept(name: str, concept: str) -> None:
    assert emoji.concept_of(name) == concept


def test_official_side_wins_and_must_be_known() -> None:
    assert split(Item("x/1", "a", "a", b"1", meta={"split": "test"})) == "test"
    with pytest.raises(SourceError, match="x/1"):
        split(Item("x/1", "a", "a", b"1", meta={"split": "dev"}))


def test_look_alikes_belong_to_neither_side(monkeypatch: pytest.MonkeyPatch) -> None:
    item = Item("x/1", "a", "a", b"1", meta={"split": "train"})
    monkeypatch.setattr(holdout, "near_duplicates", lambda: frozenset({item.content_hash}))
    assert split(item) == "dropped"


def made(style: str, number: int, data: bytes) -> Item:
    """One made picture of a family with a rate; with no concept its bytes decide."""
    concept = f"thing {'x' * number}" if style != "nameless" else ""
    return Item(f"emoji/{style}/{number}", concept, concept, data, meta={"style": style})


def test_made_items_part_into_two_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [made(s, n, f"{s}{n}".encode()) for s in ("one", "two") for n in range(300)]
    items += [made("nameless", n, bytes([n % 100])) for n in range(200)]  # each twice, renamed
    one = next(item for item in items if split(item) == "train")
    monkeypatch.setattr(holdout, "near_duplicates", lambda: frozenset({one.content_hash}))
    train, test = list(of_split(iter(items), "train")), list(of_split(iter(items), "test"))
    assert split(one) == "dropped"
    assert one not in train
    assert one not in test
    assert len(train) + len(test) == len(items) - 1
    assert 0.05 < len(test) / len(items) < 0.25
    named = [{item.concept for item in side if item.concept} for side in (train, test)]
    assert not named[0] & named[1]
    assert not {item.content_hash for item in train} & {item.content_hash for item in test}
    both = [item.concept for item in test if item.meta["style"] != "nameless"]
    assert len(both) == 2 * len(set(both))  # each held-out concept, in both styles


def test_without_its_list_nothing_is_split(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(holdout, "NEAR_DUPLICATES", tmp_path / "near_duplicates.txt")
    holdout.near_duplicates.cache_clear()
    with pytest.raises(FileNotFoundError, match="near_duplicates"):
        holdout.near_duplicates()


@pytest.mark.parametrize(
    ("source", "low", "high"),
    [("emoji", 190, 230), ("stamps", 85, 110), ("openclipart", 600, 900), ("storybooks", 28, 32)],
)
def test_no_concept_on_both_sides(source: str, low: int, high: int) -> None:
    need(source)
    sides: dict[str, set[str]] = defaultdict(set)
    for item in SOURCES[source]():
        side = "test" if split(item) == "test" else "train"
        sides[side].add(holdout.normalise(item.concept) or item.content_hash)
    assert not sides["train"] & sides["test"]
    assert low <= len(sides["test"]) <= high


def test_emoji_is_held_out_in_both_styles() -> None:
    need("emoji")
    styles: dict[str, set[str]] = defaultdict(set)
    for item in emoji.items():
        styles[f"{item.meta['style']}:{split(item) == 'test'}"].add(item.concept)
    assert len(styles["google:True"] & styles["fluent3d:True"]) > 150
    assert not styles["google:True"] & styles["fluent3d:False"]
    assert not styles["fluent3d:True"] & styles["google:False"]


def test_drawn_emoji_are_held_out_with_the_others() -> None:
    need("emoji")
    if not rendered_is_there("fluent"):
        pytest.skip("the drawings are not on this machine (m27 data fetch)")
    held = {item.concept for item in emoji.items() if split(item) == "test"}
    sides: dict[str, set[str]] = defaultdict(set)
    for item in fluent.items():
        sides["test" if split(item) == "test" else "train"].add(item.concept)
        assert item.source == "emoji"
    assert sides["test"] <= held
    assert not sides["train"] & held
    assert len(sides["test"]) > 100


@pytest.mark.parametrize("source", [fashion, quickdraw])
def test_small_pictures_are_held_out_by_what_they_hold(source: ModuleType) -> None:
    if not rendered_is_there(source.NAME):
        pytest.skip(f"{source.NAME} is not on this machine (m27 data fetch)")
    sides: dict[str, set[str]] = defaultdict(set)
    names: dict[str, set[str]] = defaultdict(set)
    for item in source.items():
        sides[split(item)].add(item.content_hash)
        names[split(item)].add(item.text)
    assert not sides["train"] & sides["test"]
    assert 0.08 < len(sides["test"]) / len(sides["train"]) < 0.14
    assert names["train"] == names["test"], "every name is known on both sides"


def rendered_is_there(source: str) -> bool:
    """Whether pictures that are made once have been made: that takes longer than a test may."""
    return any((registry.cache_folder() / "generated").glob(f"{source}-*"))


@pytest.mark.parametrize(
    "names",
    [("stamps", "emoji", "storybooks", "grocery"), pytest.param((), marks=pytest.mark.slow)],
)
def test_no_bytes_on_both_sides(names: tuple[str, ...]) -> None:
    sources = tuple(name for name in names or SOURCES if available(name))
    if not sources:
        pytest.skip("no picture source is on this machine")
    train = {item.content_hash for item in pictures("train", sources)}
    test = {item.content_hash for item in pictures("test", sources)}
    assert train
    assert test
    assert not train & test


def signatures_of(items: Iterator[Item], limit: int) -> np.ndarray:
    chosen = list(items)
    if len(chosen) > limit:
        chosen = random.Random(0).sample(chosen, limit)
    return np.stack([likeness.signature(item) for item in chosen])


@pytest.mark.parametrize("source", ["storybooks", "emoji", "easy_vqa", "cifar10"])
def test_no_look_alike_on_both_sides(source: str) -> None:
    need(source)
    test = signatures_of(pictures("test", (source,)), 250)
    train = signatures_of(pictures("train", (source,)), 750)
    assert list(likeness.alike(train, test)) == []


def test_without_the_list_there_are_look_alikes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: the same pictures do leak when the list is empty."""
    need("storybooks")
    monkeypatch.setattr(holdout, "near_duplicates", frozenset)
    test = signatures_of(pictures("test", ("storybooks",)), 200)
    train = signatures_of(pictures("train", ("storybooks",)), 900)
    assert len(list(likeness.alike(train, test))) > 5


def test_alike_means_correlated() -> None:
    draw = np.random.default_rng(0)
    one = draw.integers(0, 256, (1, 16, 16, 3)).astype(np.uint8)
    noisy = np.clip(one.astype(int) + draw.integers(-9, 10, one.shape), 0, 255).astype(np.uint8)
    other = draw.integers(0, 256, one.shape).astype(np.uint8)
    assert [(i, j) for i, j, _ in likeness.alike(one, np.concatenate([other, noisy]))] == [(0, 1)]


def test_stamp_sounds_follow_their_pictures() -> None:
    need("stamps")
    held = {item.concept for item in stamps.items() if split(item) == "test"}
    for item in stamps.items():
        if item.meta["sound"] is not None and item.concept in held:
            assert holdout.held_out("stamps", item.concept)


def test_stories_with_one_title_stay_together() -> None:
    need("storybooks")
    titles: dict[str, set[bool]] = defaultdict(set)
    for pages in storybooks.books():
        titles[holdout.normalise(pages[0].concept)].add(split(pages[0]) == "test")
    assert all(len(sides) == 1 for sides in titles.values())


def test_clip_art_titles_are_clean() -> None:
    words = frozenset({"red", "fox", "apple", "the"})
    clean = openclipart.clean_title
    assert clean("Clipart by Ann Lee - red_fox_01", "Ann Lee", "animals", words) == "red fox"
    assert clean("The RedFox", "", "animals", words) == "red fox"
    assert clean("Ann Lee", "Ann Lee", "animals", words) == ""
    assert clean("volpe rossa", "", "animals", words) == ""
    assert clean("Lemon SVG theme", "", "icons", words) == ""
    assert clean(" ireland", "", "signs/flags/europe", words) == "flag of ireland"
