"""Interleaved answers: what is whole, what stands where, how many, and what fits the words."""

from collections import Counter

import numpy as np
import pytest
import torch

from m27.eval.bench import Bench
from m27.eval.report import Origin
from m27.eval.tasks import coherence, interleave
from m27.eval.tasks.coherence import Coherence, advantages, pairs
from m27.eval.tasks.interleave import Answers, Count, Placement, Structure, marks, sentences
from m27.infer.request import Response, Usage
from tests import tiny


def text(words):
    return {"type": "text", "text": words}


def image(value=0, grid=(8, 8)):
    codes = np.full(grid, value, np.int64)
    return {"type": "image", "image": np.full((128, 128, 3), value, np.uint8), "codes": codes}


def sound(codes=12):
    return {"type": "audio", "audio": np.zeros(codes * 400), "codes": np.zeros(codes, np.int64)}


def document(number, task, *parts):
    wish = {"role": "user", "content": [text(f"{task} {number}")]}
    answer = {"role": "assistant", "content": list(parts)}
    return {"id": f"{task}:{number}", "task": task, "source": "x", "messages": [wish, answer]}


DOCUMENTS = [
    one
    for k in range(12)
    for one in (
        document(k, "place_pictures", text("One. Two!"), image(), text("Three.")),
        document(k, "story_page", image()),
        document(k, "story_count", *[text("A dog."), image(k)] * (1 + k % 4)),
    )
]


class Says(Bench):
    """A bench that answers as told, knowing whether the plan was forced."""

    def __init__(self, reply, samples=200):
        super().__init__(None, None, Origin(seed=0, commit="c", weights="w"), samples)
        self.reply, self.asked = reply, []
        self.engine = type("E", (), {"processor": tiny.processor()})

    def generate(self, requests, label=""):
        self.asked.append(label)
        return [
            Response(
                self.reply(r.messages[0]["content"][0]["text"], r.plan),
                Usage(1, 1, 0, 0, 0, "stop"),
                0,
            )
            for r in requests
        ]


@pytest.fixture(autouse=True)
def documents(monkeypatch):
    def made(name):
        return lambda side, seed: iter(DOCUMENTS)

    monkeypatch.setattr(interleave.catalogue, "documents", made)


def gold(wish, plan):
    (found,) = [d for d in DOCUMENTS if d["messages"][0]["content"][0]["text"] == wish]
    return found["messages"][1]["content"]


def test_marks_count_the_sentences_before_each_medium():
    content = [text(" One. Two!"), image(), sound(), text("Three?  Four"), image()]
    assert marks(content) == Counter([("image", 2), ("audio", 2), ("image", 4)])
    assert marks([image(), text("x")]) == Counter([("image", 0)])
    assert sentences("Who is it? It is 3.5 dogs.") == 2
    assert sentences(" ") == 0


def test_answers_are_asked_for_once_and_the_forced_ones_have_a_plan():
    plans = []

    def reply(wish, plan):
        plans.append(plan)
        return gold(wish, plan)

    bench, answers = Says(reply, samples=5), Answers()
    first = answers.of(bench, "place_pictures")
    assert answers.of(bench, "place_pictures") is first
    assert [d["task"] for d, _ in first] == ["place_pictures"] * 5
    assert set(plans) == {None}
    answers.of(bench, "story_count", forced=4)
    assert plans[5:] == [("text", "image") * k for k in (1, 2, 3, 4)]
    assert len(answers.of(Says(gold, 5), "place_pictures")) == 5
    assert bench.asked == ["place_pictures", "story_count, the plan forced"]


def test_right_answers_get_everything():
    bench, answers = Says(gold), Answers()
    for task in (Structure(answers), Placement(answers), Count(answers)):
        row, records = task.run(bench)
        assert row.score == 1.0 and row.passed, task.name
        assert all(r["right"] for r in records)
    assert len(bench.asked) == 4  # two tasks, free and forced


def test_placement_by_hand():
    def late(wish, plan):
        return [text("One. Two! Three."), image()] if not plan else gold(wish, plan)

    row, _ = Placement(Answers()).run(Says(late))
    assert row.score == 0.0 and not row.passed
    assert row.chance == pytest.approx(1 / 3)
    assert row.frequent == pytest.approx(2 / 4)
    assert "forced 1.000" in row.note

    def twice(wish, plan):
        return [text("One. Two!"), image(), text("Three."), image()]

    row, records = Placement(Answers()).run(Says(twice))
    assert row.score == pytest.approx(2 / 3)
    assert records[0]["found"] == "image after 2, image after 3"


def test_count_takes_nothing_but_the_number_asked_for():
    row, records = Count(Answers()).run(Says(lambda wish, plan: [text("A."), image(), image()]))
    assert row.score == 0.25
    assert row.frequent == 0.25
    assert records[0]["made"] == 2


def test_structure_sees_a_picture_of_another_size_and_silence():
    answers = iter([[text("A."), image(grid=(4, 4))], [], [text("A."), sound(81)]] * 8)
    row, records = Structure(Answers()).run(Says(lambda wish, plan: next(answers)))
    assert row.score == 0.0 and not row.passed
    assert "picture of 4 by 4" in records[0]["faults"][0]
    assert records[1]["faults"] == ["says nothing"]
    assert "sound of 81 codes" in records[2]["faults"][0]


def test_pairs_are_pictures_with_the_words_before_them():
    content = [image(9), text("A."), image(1), image(2), sound(), text(" "), text("B."), image(3)]
    found = [(words, int(picture[0, 0, 0])) for _, words, picture in pairs("x", content)]
    assert found == [("A.", 1), ("A.", 2), ("B.", 3)]


def test_advantages_compare_with_other_documents_only():
    texts = torch.eye(4)
    own = advantages(list("abcd"), texts, texts)
    assert own == pytest.approx([own[0]] * 4) and own[0] > 1.0
    shuffled = advantages(list("abcd"), texts, texts.roll(1, 0))
    assert sum(shuffled) == pytest.approx(-sum(own) / 3)
    assert advantages(["a", "a"], texts[:2], texts[:2]) == []
    # The second picture of "a" is no stranger to its first words.
    alike = advantages(["a", "a", "b"], texts[[0, 0, 1]], texts[[0, 0, 1]])
    assert alike[0] == pytest.approx(alike[1])


class Eyes:
    """A judge for which a picture's brightness is its meaning, and so is a text's length."""

    def __init__(self, codec, seed):
        pass

    def advantages(self, made):
        rows = torch.eye(4)
        texts = torch.stack([rows[len(words) % 4] for _, words, _ in made])
        seen = torch.stack([rows[int(picture[0, 0, 0]) % 4] for _, _, picture in made])
        return advantages([name for name, _, _ in made], texts, seen)


def test_coherence_is_above_nothing_only_where_pictures_fit(monkeypatch):
    monkeypatch.setattr(coherence, "Judge", Eyes)

    def fits(wish, plan):
        number = int(wish.split()[-1])
        return [text("x" * (4 + number % 4)), image(number % 4)] * 2

    row, _ = Coherence(Answers()).run(Says(fits))
    assert row.n == 24
    assert row.score > 0.5 and row.passed and row.goal
    row, _ = Coherence(Answers()).run(Says(lambda wish, plan: [text("x"), image(3)]))
    assert row.score == pytest.approx(0)
    assert not row.passed
    row, _ = Coherence(Answers()).run(Says(lambda wish, plan: [text("x")]))
    assert row.n == 0 and not row.passed
