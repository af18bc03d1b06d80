"""Altered copies of records: of which there are some, what changes in them, and that they are the same again."""

from typing import Any

import numpy as np
import pytest

from m27.codec import media
from m27.data.copies import PACE, can_be_altered, copies

RGB = np.full((64, 64, 3), 255, np.uint8)
RGB[16:40, 20:50] = (200, 30, 30)
WAVE = (0.4 * np.sin(np.arange(8_000) / 9)).astype(np.float32)
WORDS = {"type": "text", "text": "a red box"}


def document(user: Any, answer: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    return {"id": "7", "task": "t", "source": "s", "messages": messages}


SEEN = document([{"type": "image", "image": RGB, "size": (64, 64)}, WORDS], [WORDS])


@pytest.mark.parametrize(
    ("user", "answer", "some"),
    [
        ([{"type": "image", "image": RGB}], "a box", True),
        ([{"type": "audio", "audio": WAVE}, WORDS], [WORDS], True),
        ("a box", [{"type": "image", "image": RGB}], False),
        ([{"type": "image", "image": RGB}], [WORDS, {"type": "audio", "audio": WAVE}], False),
        ("what?", [WORDS], False),
    ],
)
def test_only_what_is_shown_and_answered_in_words_has_copies(user, answer, some) -> None:
    assert can_be_altered(document(user, answer)) == some
    assert len(list(copies([document(user, answer)], 2, 0))) == 2 * some


def test_a_record_with_branches_has_none() -> None:
    assert not can_be_altered({**SEEN, "branches": [SEEN["messages"]]})


def test_copies_differ_from_each_other_and_are_the_same_again() -> None:
    one, two = copies([SEEN], 2, 0)
    again, _ = copies([SEEN], 2, 0)
    other, _ = copies([SEEN], 2, 1)
    pictures = [d["messages"][0]["content"][0]["image"] for d in (one, two, again, other)]
    assert [d["id"] for d in (one, two)] == ["7~1", "7~2"]
    assert all(p.shape == (64, 64, 3) and p.dtype == np.uint8 for p in pictures)
    assert np.array_equal(pictures[0], pictures[2])
    assert not any(np.array_equal(pictures[0], p) for p in (RGB, pictures[1], pictures[3]))
    assert one["messages"][0]["content"][1] == WORDS and one["messages"][1] == SEEN["messages"][1]
    assert SEEN["messages"][0]["content"][0]["image"] is RGB


def test_a_sound_is_played_faster_or_slower(tmp_path) -> None:
    media.write_wav(tmp_path / "a.wav", WAVE)
    heard = document([{"type": "audio", "path": str(tmp_path / "a.wav")}], [WORDS])
    waves = [d["messages"][0]["content"][0]["audio"] for d in copies([heard], 8, 0)]
    lengths = [len(wave) for wave in waves]
    assert len(set(lengths)) > 4
    assert len(WAVE) / PACE[1] - 1 <= min(lengths) < len(WAVE) < max(lengths) <= len(WAVE) / PACE[0] + 1
    assert all(wave.dtype == np.float32 and np.abs(wave).max() <= 1 for wave in waves)
