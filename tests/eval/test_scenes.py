"""Questions about scenes and boxes: what is asked, which answer is right, honest baselines."""

import numpy as np
import pytest

from m27.eval.bench import Bench
from m27.eval.report import Origin
from m27.eval.tasks import scenes
from m27.eval.tasks.grounding import Grounding, best_constant, overlaps, parsed
from m27.eval.tasks.scenes import Scenes, asked, kind_of


class Says(Bench):
    """A bench whose model gives prepared answers."""

    def __init__(self, reply, samples=200):
        super().__init__(None, None, Origin(seed=0, commit="c", weights="w"), samples)
        self.reply = reply

    def answers(self, conversations, max_tokens, label=""):
        return [self.reply(messages[0]["content"][1]["text"]) for messages in conversations]


def document(number, task, question, answer, kind=""):
    parts = [{"type": "image", "image": None}, {"type": "text", "text": question}]
    messages = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]
    name = f"{task}:scenes/test/0/{number:05d}" + (f"/{kind}" if kind else "")
    return {"id": name, "task": task, "source": "scenes", "messages": messages}


ASKED = (
    ("scene_count", "count", "three", ""),
    ("scene_caption", "say", "three dogs", ""),
    ("scene_color", "color", "gray", ""),
    ("scene_relation", "where", "left", "where"),
    ("scene_relation", "what", "red fox", "what"),
    ("scene_relation", "is", "yes", "is"),
)


@pytest.fixture
def documents(monkeypatch):
    made = [
        document(6 * turn + k, task, question, answer, kind)
        for turn in range(10)
        for k, (task, question, answer, kind) in enumerate(ASKED)
    ]
    monkeypatch.setattr(scenes.catalogue, "documents", lambda name: lambda side, seed: iter(made))
    return made


def test_asked_takes_the_first_of_the_wanted_tasks(documents):
    samples = asked("scenes", tuple(scenes.TASKS), 7, 0, kind_of)
    assert [s.kind for s in samples] == ["count", "colour", "where", "what", "is"] + [
        "count",
        "colour",
    ]
    assert all([m["role"] for m in s.messages] == ["user"] for s in samples)
    assert samples[3].answer == "red fox"


def test_scenes_accept_other_spellings_and_no_other_kind_of_answer(documents):
    replies = {
        "count": "There are 3.",
        "color": "grey",
        "where": "to the left",
        "what": "a red fox.",
    }
    row, records = Scenes().run(Says(lambda question: replies.get(question, "yes")))
    assert row.n == 50
    assert row.score == 1.0
    assert row.by_kind == 1.0  # every question of a kind has one answer here
    assert row.frequent == 0.2
    assert row.chance == pytest.approx((1 / 7 + 1 / 11 + 1 / 4 + 1 / 2 + 1) / 5)
    assert {r["part"] for r in records} == {"count", "colour", "relation"}
    row, records = Scenes().run(Says(lambda question: "three yes"))
    assert row.score == 0.4
    assert not row.passed
    assert [r["choice"] for r in records[:3]] == ["three", None, None]


def test_parsed_boxes():
    assert parsed("2 1 6 5") == (2, 1, 6, 5)
    assert parsed("left 2, top 1, right 6, bottom 5.5") == (2, 1, 6, 5.5)
    assert parsed("6 1 2 5") is None
    assert parsed("2 1 6") is None
    assert parsed("the dog") is None


def test_overlaps_by_hand():
    ones = np.array([[0, 0, 2, 2], [0, 0, 8, 8]], float)
    others = np.array([[0, 0, 2, 2], [1, 1, 3, 3], [4, 4, 5, 5]], float)
    expected = [[1, 1 / 7, 0], [4 / 64, 4 / 64, 1 / 64]]
    assert overlaps(ones, others) == pytest.approx(np.array(expected))


def test_the_best_constant_box_beats_every_other():
    true = np.array([[1, 1, 4, 4], [1, 1, 4, 5], [5, 5, 8, 8]], float)
    box, share = best_constant(true)
    assert share == pytest.approx(2 / 3)
    assert (overlaps(np.array([box]), true)[0] >= 0.5).sum() == 2


def test_grounding_counts_an_answer_without_a_box_as_wrong(monkeypatch):
    boxes = ["0 0 2 2", "4 4 8 8", "0 4 3 8", "5 0 8 3"]
    made = [document(k, "scene_box", box, box) for k, box in enumerate(boxes * 5)]
    monkeypatch.setattr(scenes.catalogue, "documents", lambda name: lambda side, seed: iter(made))
    task = Grounding("grounding", "scenes", "scene_box", (0.3, 0.7))
    row, _ = task.run(Says(lambda question: question))
    assert (row.n, row.score, row.passed) == (20, 1.0, True)
    assert row.frequent == 0.25
    assert row.chance == pytest.approx(4 / 19)
    row, records = task.run(Says(lambda question: "here" if question == boxes[0] else boxes[1]))
    assert row.score == 0.25
    assert not row.passed
    assert "no box in 5 answers" in row.note
    assert records[0]["iou"] == 0
