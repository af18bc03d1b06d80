"""Figures of a whole set, against what the official programs define them as, worked out by hand."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from m27.cli import main
from m27.codec import media
from m27.eval.benchmarks import BENCHMARKS
from m27.eval.figures import (
    DISCIPLINES,
    Answered,
    Figures,
    averaged,
    by,
    captions,
    mmbench,
    mmmu,
    pope,
)
from m27.eval.samples import Sample


def answered(reference, answer, score, **meta):
    return Answered(Sample("x", [], (reference,), meta), answer, score)


def test_pope_tells_the_five_figures_of_its_script():
    said = [("yes", "Yes."), ("yes", "No"), ("no", "Yes, there is"), ("no", "no"), ("yes", "yes")]
    told = pope([answered(label, reply, 0.0) for label, reply in said])
    assert told.values == {
        "accuracy": 3 / 5, "precision": 2 / 3, "recall": 2 / 3, "F1": pytest.approx(2 / 3), "yes ratio": 3 / 5
    }  # fmt: skip


def test_mmbench_counts_a_question_where_every_rotation_is_right():
    rows = [
        (7, 1.0, "a"), (8, 1.0, "b"), (9, 0.0, "a"), (1_000_007, 1.0, "a"), (1_000_008, 0.0, "b"), (1_000_009, 1.0, "a")
    ]
    told = mmbench([answered("A", "A", right, index=index, category=kind) for index, right, kind in rows])
    assert told.values == {
        "vanilla": 2 / 3, "circular": 1 / 3, "category: a": 1 / 2, "category: b": 0.0
    }  # fmt: skip
    assert told.notes == ()


def test_mmbench_without_rotations_has_no_circular_score_and_says_so():
    told = mmbench([answered("A", "A", 1.0, index=7, **{"l2-category": "logic", "category": ""})])
    assert told.values == {"vanilla": 1.0, "l2-category: logic": 1.0}
    assert "no circular score" in told.notes[0]
    assert mmbench([answered("A", "A", 1.0, index=1_000_007)]).notes


def test_mmmu_is_told_by_discipline_and_by_subject():
    rows = [("Art", 1.0), ("Music", 0.0), ("Physics", 1.0)]
    told = mmmu([answered("A", "A", right, subject=subject) for subject, right in rows])
    assert told.values == {
        "discipline: Art and Design": 0.5, "discipline: Science": 1.0,
        "subject: Art": 1.0, "subject: Music": 0.0, "subject: Physics": 1.0,
    }  # fmt: skip
    assert sum(len(subjects.split()) for subjects in DISCIPLINES.values()) == 30


def test_categories_are_means_of_marks_and_what_has_none_is_left_out():
    rows = [answered("A", "A", 0.5, kind="x"), answered("A", "A", 1.0, kind="x"), answered("A", "A", 0.0)]
    assert by("kind", "other")(rows).values == {"kind: x": 0.75}


def test_several_seeds_are_averaged():
    told = averaged([Figures({"a": 1.0, "b": 0.0}, ("said",)), Figures({"a": 0.0}, ("said",))])
    assert told == Figures({"a": 0.5}, ("said",))


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Programs that speak as METEOR and SPICE do, in the variables that name those."""

    def made(name, body):
        path = tmp_path / name
        path.write_text(f"#!{sys.executable}\n{body}")
        path.chmod(0o755)
        monkeypatch.setenv(f"M27_{name.upper()}", str(path))
        return path

    for name in ("METEOR", "SPICE"):
        monkeypatch.delenv(f"M27_{name}", raising=False)
    return made


METEOR = """
import sys
assert sys.argv[1:] == ["-", "-", "-stdio", "-l", "en", "-norm"]
for line in sys.stdin:
    kind, *rest = line.rstrip("\\n").split(" ||| ")
    if kind == "SCORE":
        print(len(rest) - 1, rest[-1].count("dog"), flush=True)
    else:
        for counts in rest:
            print(float(counts.split()[1]) / 2, flush=True)
        print(0.25 + len(rest), flush=True)
"""
SPICE = """
import json, sys
source, out, target, silent = sys.argv[1:]
rows = json.load(open(source))
json.dump([{"image_id": r["image_id"], "scores": {"All": {"f": len(r["refs"]) / 10}}} for r in rows], open(target, "w"))
"""
CAPTIONS = [
    Answered(Sample("a", [], ("A dog runs.", "The dog is running")), "a dog runs", 0.0),
    Answered(Sample("b", [], ("Two cats.",)), "A man's hat", 0.0),
]


def test_captions_without_the_programs_say_what_is_missing(programs):
    told = captions(CAPTIONS)
    assert list(told.values) == [*(f"BLEU-{n}" for n in (1, 2, 3, 4)), "ROUGE-L", "CIDEr-D", "METEOR (exact and stem)"]
    assert told.values["ROUGE-L"] == pytest.approx(0.5)
    assert ["M27_METEOR" in told.notes[0], "no SPICE and no SPIDEr: M27_SPICE" in told.notes[1]] == [True, True]


def test_captions_take_meteor_and_spice_of_their_programs(programs):
    programs("meteor", METEOR)
    programs("spice", SPICE)
    told = captions(CAPTIONS)
    assert told.values["METEOR"] == 2.25
    assert told.values["SPICE"] == pytest.approx((0.2 + 0.1) / 2)
    assert told.values["SPIDEr"] == pytest.approx((told.values["CIDEr-D"] + told.values["SPICE"]) / 2)
    assert "METEOR (exact and stem)" not in told.values
    assert told.notes[0].startswith("METEOR by meteor (")
    assert told.notes[1].startswith("SPICE by spice (")


@pytest.mark.parametrize(
    ("name", "body", "says"),
    [
        ("meteor", "import sys; sys.exit('no paraphrases')", "METEOR: no paraphrases"),
        ("meteor", "print('Usage: meteor', flush=True)", "METEOR"),
        ("spice", "import sys; sys.exit('no CoreNLP')", "SPICE: no CoreNLP"),
        ("spice", "import sys; open(sys.argv[3], 'w').write('[]')", "SPICE: KeyError"),
    ],
)
def test_a_program_that_fails_is_one_clear_line(programs, name, body, says):
    from m27.eval.scorers.java import ProgramError

    programs(name, body)
    with pytest.raises(ProgramError, match=says):
        captions(CAPTIONS)


def test_a_jar_needs_java(programs, monkeypatch, tmp_path):
    from m27.eval.scorers import java

    monkeypatch.setenv("M27_SPICE", str(tmp_path / "spice-1.0.jar"))
    assert "no file" in java.SPICE.missing()
    (tmp_path / "spice-1.0.jar").write_bytes(b"")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert java.SPICE.missing() == "no java on the path"
    (tmp_path / "java").write_text("")
    (tmp_path / "java").chmod(0o755)
    assert java.SPICE.command("x")[:3] == ["java", "-Xmx8G", "-jar"]


def run(*words):
    with pytest.raises(SystemExit) as left:
        main(["eval", *map(str, words)])
    assert not left.value.code
    return json.loads(next(Path("out/eval").rglob("rows.jsonl")).read_text())


def test_a_row_holds_the_figures_and_the_command_tells_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("val2014").mkdir()
    media.write_png(tmp_path / "val2014" / "a.png", np.zeros((8, 8, 3), np.uint8))
    rows = [{"question_id": n, "image": "a.png", "text": f"Is there {n}?", "label": "no"} for n in (1, 2)]
    Path("pope.json").write_text("\n".join(map(json.dumps, rows)))
    Path("saved.json").write_text('{"pope:1": "No.", "pope:2": "Yes."}')
    row = run("pope.json", "--form", "pope", "--model", "stored:saved.json")
    assert row["figures"] == {"accuracy": 0.5, "precision": 0.0, "recall": 0.0, "F1": 0.0, "yes ratio": 0.5}
    assert "\n  yes ratio 0.500\n" in capsys.readouterr().out


def test_captions_of_coco_are_scored_by_its_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("val2014").mkdir()
    for name in ("a", "b"):
        media.write_png(tmp_path / "val2014" / f"{name}.png", np.zeros((8, 8, 3), np.uint8))
    whole = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
        "annotations": [{"image_id": 1, "caption": "A man's dog."}, {"image_id": 2, "caption": "A red bus"}],
    }
    Path("annotations").mkdir()
    Path("annotations/captions_val2014.json").write_text(json.dumps(whole))
    Path("saved.json").write_text('{"1": "a man \'s dog", "2": "a red bus"}')
    row = run("annotations/captions_val2014.json", "--form", "coco-captions", "--model", "stored:saved.json")
    assert row["figures"]["BLEU-1"] == pytest.approx(1.0, abs=1e-6)
    assert row["score"] == pytest.approx(row["figures"]["CIDEr-D"])
    assert "coco-caption@" in row["scorer"]


def test_mmau_is_read_and_marked_by_words(tmp_path):
    from m27.eval.sets import SETS

    rows = [
        {"id": "q1", "audio_id": "./clips/a.wav", "question": "Who speaks?", "choices": ["A man", "A woman"],
         "answer": "A man", "task": "speech", "difficulty": "easy", "sub-category": "Speaker"},
    ]  # fmt: skip
    file = tmp_path / "mmau-test-mini.json"
    file.write_text(json.dumps(rows))
    form = SETS["mmau"]
    with pytest.raises(ValueError, match=r"question 0: no clip ./clips/a.wav"):
        list(form.samples(file))
    media.write_wav(tmp_path / "clips" / "a.wav", np.zeros(160, np.float32))
    (sample,) = form.samples(file)
    assert sample.messages[0]["content"][1]["text"].splitlines()[1:] == [
        "Choose one of:", "A man", "A woman", "Answer with the text of your choice alone."
    ]  # fmt: skip
    mark = BENCHMARKS["mmau"][1].scorer([sample])
    said = {"A man.": 1, "It is a MAN speaking": 1, "man": 0, "A man, not a woman": 0, "": 0, "(A)": 0}
    assert {reply: mark(sample, reply).score for reply in said} == said
    assert list(form.metric.figures([Answered(sample, "A man", 1.0)]).values) == [
        "task: speech", "difficulty: easy", "sub-category: Speaker"
    ]  # fmt: skip
