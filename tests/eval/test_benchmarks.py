"""Official files asked and scored through the same run: a reader put to its rule."""

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from m27.cli import main
from m27.codec import media
from m27.eval.benchmarks import BENCHMARKS
from m27.eval.samples import Sample
from m27.eval.sets import SETS

pytest.importorskip("m27.eval.official")
pytest.importorskip("m27.eval.scorers")

CHOICE = {"question_type": "multi_choice", "answer_type": "text"}
FOUR = {"A": "a cat", "B": "a dog", "C": "a fox", "D": "an owl"}


@pytest.mark.parametrize(
    ("name", "reference", "meta", "answer", "score"),
    [
        ("mmmu", ["B"], {"options": FOUR}, "(A)? No, (B).", 1.0),
        ("mmmu", ["3.5"], {}, "The answer is 3.50", 1.0),
        ("mmmu-pro", ["C"], {"options": FOUR}, "Hmm. Answer: C", 1.0),
        ("mathvista", ["a fox"], {**CHOICE, "choices": [*FOUR.values()]}, "(C)", 1.0),
        ("mathvista", ["7"], {"question_type": "free_form", "answer_type": "integer"}, "7", 1.0),
        ("pope", ["no"], {}, "No, there is none. Yes.", 1.0),
        ("pope", ["no"], {}, "There is one.", 0.0),
        ("vqav2", ["red"] * 2 + ["blue"] * 8, {}, "Red.", 0.6),
        ("textvqa", ["stop"] * 10, {}, "Stop", 1.0),
        ("mmbench", ["B"], {"options": FOUR}, "The answer is B.", 1.0),
        ("mmstar", ["B"], {}, "B: a dog", 1.0),
        ("scienceqa", ["B"], {"options": FOUR}, "The answer is B.", 1.0),
        ("librispeech", ["MISTER SMITH PAID TEN DOLLARS"], {}, "Mr. Smith paid $10.", 0.0),
    ],
)  # fmt: skip
def test_each_rule_marks_an_answer(name, reference, meta, answer, score):
    sample = Sample("validation_Art_1", [], tuple(reference), meta)
    mark = BENCHMARKS[name][1].scorer([sample])(sample, answer)
    assert mark.score == pytest.approx(score)


def test_a_guess_is_marked_as_one():
    sample = Sample("validation_Art_1", [], ("B",), {"options": FOUR})
    assert BENCHMARKS["mmmu"][1].scorer([sample])(sample, "no idea").extracted.startswith("guessed ")


def test_every_reader_is_there():
    for reader, _ in BENCHMARKS.values():
        assert callable(import_module(f"m27.eval.official.{reader}").samples)
    assert BENCHMARKS.keys() <= SETS.keys()


def test_an_official_file_goes_through_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("val2014").mkdir()
    media.write_png(tmp_path / "val2014" / "a.png", np.zeros((8, 8, 3), np.uint8))
    rows = [{"question_id": n, "image": "a.png", "text": "Is there a dog?", "label": "no"} for n in (1, 2)]
    Path("coco_pope_random.json").write_text("\n".join(map(json.dumps, rows)))
    Path("saved.json").write_text('{"coco_pope_random:1": "No.", "coco_pope_random:2": "Yes."}')
    with pytest.raises(SystemExit) as left:
        main(["eval", "coco_pope_random.json", "--form", "pope", "--model", "stored:saved.json"])
    assert not left.value.code
    assert "coco_pope_random.json pope: 50.0 %" in capsys.readouterr().out
