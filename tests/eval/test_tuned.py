"""tuned.py: changes with their noise, and answers marked right or wrong."""

import json

import numpy as np
import pytest

from m27.eval.tuned import change, fields, marks, question, shares


def test_a_change_beyond_its_noise_is_seen_and_noise_is_not():
    rng = np.random.default_rng(0)
    counts = rng.integers(5, 50, 60)
    before = rng.normal(2, 0.3, 60) * counts
    worse = change(before, before + 0.1 * counts, counts)
    assert worse is not None
    assert worse.worse
    assert worse.after - worse.before == pytest.approx(0.1)
    assert worse.low == pytest.approx(0.1)
    noise = change(before, before + rng.normal(0, 1.0, 60) * counts * 0.05, counts)
    assert noise is not None
    assert noise.low < 0 < noise.high
    assert not noise.worse
    better = change(before, before - 0.1 * counts, counts)
    assert better is not None
    assert not better.worse
    assert better.to_json()["interval"][1] < 0


def test_no_target_and_one_document():
    zero = np.zeros(3)
    assert change(zero, zero, np.zeros(3, np.int64)) is None
    one = change(np.array([5.0]), np.array([9.0]), np.array([2]))
    assert one is not None
    assert not one.worse  # one document says nothing of noise


def test_marks():
    assert marks("red fox", "A red fox.") == {"exact": 1.0, "contains": 1.0}
    assert marks("red fox", "it is a red fox, surely") == {"exact": 0.0, "contains": 1.0}
    assert marks("fox", "foxes") == {"exact": 0.0, "contains": 0.0}
    entry = json.dumps({"name": "Gala", "count": 2})
    assert marks(entry, '{"count": 2, "name": "Gala"}') == {
        "exact": 1.0, "json": 1.0, "field name": 1.0, "field count": 1.0,
    }  # fmt: skip
    assert marks(entry, '{"name": "gala", "count": 3, "x": []}') == {
        "exact": 0.0, "json": 1.0, "field name": 1.0, "field count": 0.0,
    }  # fmt: skip
    assert marks(entry, "Gala")["json"] == 0.0
    assert fields("[" * 100_000) is None
    found = shares([marks("a fox", "fox"), marks("a fox", "dog")])
    assert found["exact"]["share"] == 0.5
    assert found["exact"]["n"] == 2


def test_what_is_a_question():
    words = {"id": "1", "messages": [
        {"role": "user", "content": [{"type": "image", "path": "x.png"}]},
        {"role": "assistant", "content": "fox"},
    ]}  # fmt: skip
    asked = question(words)
    assert asked is not None
    assert asked.answer == "fox"
    assert asked.messages == words["messages"][:1]
    drawn = {"id": "2", "messages": [
        {"role": "user", "content": "draw"},
        {"role": "assistant", "content": [{"type": "image", "path": "x.png"}]},
    ]}  # fmt: skip
    assert question(drawn) is None
    assert question({"id": "3", "messages": words["messages"][1:]}) is None
