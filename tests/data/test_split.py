"""The held-out part depends on contents alone, and what is the same is never on both sides."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m27.data import check
from m27.data.split import content, split
from tests.data import samples


def texts(count: int, start: int = 0) -> list[Any]:
    return [
        {"id": f"{n}", "task": "", "source": "x", "messages": samples.exchange(f"question {n}", f"{n}")}
        for n in range(start, start + count)
    ]


def ids(side: Any) -> list[str]:
    return [document["id"] for document in side]


def test_a_tenth_is_held_out_whatever_the_order() -> None:
    documents = texts(2000)
    train, held = split(documents)
    assert 150 < len(held) < 250
    assert len(train) + len(held) == 2000
    assert sorted(ids(train) + ids(held)) == sorted(ids(documents))
    assert set(ids(split(documents[::-1]).held_out)) == set(ids(held))
    assert ids(split(documents, seed=1).held_out) != ids(held)
    assert len(split(documents, 0.5).held_out) > 900
    assert len(split(documents, 0.0).held_out) == 0
    assert ids(held) == ids(held), "a side can be gone through again"


def test_sides_stay_when_records_are_added() -> None:
    few, many = split(texts(500)), split(texts(1500))
    assert set(ids(few.held_out)) <= set(ids(many.held_out))
    assert set(ids(few.train)) <= set(ids(many.train))


def test_what_stands_twice_is_on_one_side() -> None:
    documents = [*texts(200), *({**d, "id": f"again {d['id']}"} for d in texts(200))]
    held = set(ids(split(documents).held_out))
    assert held
    for n in range(200):
        assert (f"{n}" in held) == (f"again {n}" in held)


@pytest.mark.parametrize("count", [2, 3, 5, 20])
def test_some_are_held_out_and_some_trained_on_however_few(count: int) -> None:
    for seed in range(20):
        for share in (0.001, 0.1, 0.9, 1.0):
            train, held = split(texts(count), share, seed)
            assert len(train) >= 1
            assert len(held) >= 1


def test_one_content_is_trained_on_alone() -> None:
    train, held = split(texts(1) * 3)
    assert (len(train), len(held)) == (3, 0)
    train, held = split([])
    assert (len(train), len(held)) == (0, 0)
    with pytest.raises(ValueError, match="a share of"):
        split([], 1.5)


def test_both_directions_of_a_picture_are_on_one_side(tmp_path: Path) -> None:
    for n in range(60):
        (tmp_path / f"{n}.png").write_bytes(samples.png(n))
        (tmp_path / f"{n}.txt").write_text("The same caption.")
    documents, _ = check.usable(tmp_path)
    train, held = split(documents)
    names = [{i.split(":")[1] for i in ids(side)} for side in (train, held)]
    assert len(held) == 2 * len(names[1]) > 0
    assert not names[0] & names[1]
    assert len(list(train)) == len(train)


def test_content_is_that_of_the_bytes_wherever_they_are(tmp_path: Path) -> None:
    def seen(part: dict[str, Any], question: str = "x") -> str:
        messages = samples.exchange([part, {"type": "text", "text": question}], "y")
        return content({"messages": messages})

    data = samples.png()
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(data)
    by_path = seen({"type": "image", "path": str(tmp_path / "a.png")})
    assert by_path == seen({"type": "image", "path": str(tmp_path / "b.png")}, "another")
    assert by_path == seen({"type": "image", "bytes": data})
    assert by_path != seen({"type": "image", "bytes": samples.png(3)})
    assert seen({"type": "audio", "codes": [1, 2]}) != seen({"type": "audio", "codes": [2, 1]})
    assert seen({"type": "image", "image": np.zeros((2, 2, 3), np.uint8)})
    assert content({"messages": samples.exchange("x", "y")}) != content({"messages": samples.exchange("y", "x")})
    with pytest.raises(check.CheckError, match=r"gone.png: No such file"):
        seen({"type": "image", "path": str(tmp_path / "gone.png")})


def test_an_iterator_is_taken_once() -> None:
    def once() -> Iterator[Any]:
        yield from texts(30)

    train, held = split(once())
    assert len(ids(train)) + len(ids(held)) == 30
