"""stops.py: whatever the cut into deltas, what is shown is the text before the first stop string."""

import random
import time

import pytest

from m27.infer.request import RequestError
from m27.infer.stops import Stops


def plain(text: str, strings: list[str]) -> tuple[str, str | None]:
    """The same by looking at every place: the earliest end wins, then the longest string."""
    for end in range(1, len(text) + 1):
        found = [s for s in strings if text[:end].endswith(s)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


def test_equal_to_looking_at_every_place() -> None:
    rng = random.Random(0)
    hits = 0
    for _ in range(3000):
        strings = [
            "".join(rng.choices("abé", k=rng.randint(1, 4))) for _ in range(rng.randint(1, 4))
        ]
        text = "".join(rng.choices("abcé", k=rng.randint(0, 14)))
        stops, shown, at = Stops(strings), "", 0
        while at < len(text):
            size = rng.randint(1, 4)
            shown += stops.push(text[at : at + size])
            at += size
            assert plain(text, strings)[0].startswith(shown)  # nothing is shown that must not be
        if stops.hit is None:
            shown += stops.flush()
        assert (shown, stops.hit) == plain(text, strings)
        hits += stops.hit is not None
    assert 500 < hits < 2900


def test_holds_back_no_more_than_it_must() -> None:
    stops = Stops(["</end>"])
    assert stops.push("a < b, <") == "a < b, "
    assert stops.push("/en") == ""
    assert stops.push("try") == "</entry"
    assert stops.push("</end> and more") == ""
    assert stops.hit == "</end>"
    assert stops.push("more") == ""


def test_a_medium_between_ends_what_had_begun() -> None:
    stops = Stops(["END"])
    assert stops.push("so EN") == "so "
    assert stops.flush() == "EN"
    assert stops.push("D") == "D"
    assert stops.hit is None


def test_limits() -> None:
    for wrong in ([""], ["x" * 257], ["x"] * 17, "word", [3]):
        with pytest.raises(RequestError, match="stop"):
            Stops(wrong)  # type: ignore[arg-type]
    assert Stops([]).push("x") == "x"


def test_cost_is_that_of_the_text() -> None:
    """The worst case of a plain search: a long run that nearly matches long strings."""
    stops = Stops(["a" * 255 + c for c in "bcdefghijklmnop"])
    started = time.perf_counter()
    for _ in range(200):
        stops.push("a" * 500)
    assert time.perf_counter() - started < 2.0
    assert stops.hit is None
