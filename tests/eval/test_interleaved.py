"""Interleaved benchmarks: read as the repositories lay them out, kept with their media, measured, judged apart."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from m27.eval.answerers import Asked, Settings, open_model
from m27.eval.interleaved import levels, pairwise
from m27.eval.interleaved.makers import Parts, Stored, read_parts
from m27.eval.interleaved.run import FORMS, InterleavedError, Plan, measure
from m27.eval.interleaved.tier import Answered, measured
from m27.eval.interleaved.verdicts import number, unmarked, yes
from m27.eval.journal import JournalError
from m27.eval.official import isg_bench, opening
from m27.eval.official.sample import FormatError
from tests.eval.fake_openai import serving
from tests.eval.interleaved_sets import Artist, drawn, isg_file, opening_file, png


def plan(path, form):
    return Plan(path.name, form, list(FORMS[form].samples(path)), "rev")


def rows_of(folder, name="rows.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def judge_at(server, name="judge-2026-01-01"):
    return open_model(f"openai:{name}@{server.base}", Settings(32, 0.0, 2))


def words(body):
    return "".join(p.get("text", "[media]") for p in body["messages"][-1]["content"])


# Reading


def test_opening_as_its_repository_has_it(tmp_path):
    first, *_ = opening.samples(opening_file(tmp_path))
    content = first.messages[0]["content"]
    assert content[0] == {"type": "text", "text": "Go on with story 0."}
    assert content[1] == {"type": "image", "path": str(tmp_path / "images/Story/0-i-1.jpg")}
    assert (first.id, first.meta["subtask"], first.references) == ("0300", "Story Completion", ())
    assert [part["type"] for part in first.meta["gold"]] == ["text", "image", "text", "image"]
    (tmp_path / "images/Story/0-o-1.jpg").unlink()  # gold pictures need not be there, the question's must
    assert next(opening.samples(tmp_path / "test_data.jsonl")).id == "0300"
    (tmp_path / "images/Story/0-i-1.jpg").unlink()
    with pytest.raises(FormatError, match=r"test_data.jsonl:1: no picture .*0-i-1.jpg"):
        list(opening.samples(tmp_path / "test_data.jsonl"))
    path = tmp_path / "x.jsonl"
    path.write_text('{"total_uid": "1", "meta_task_name": "a", "subtask_name": "b", "conversations": [{"input": []}]}')
    with pytest.raises(FormatError, match=r"x.jsonl:1: no output among its conversations"):
        list(opening.samples(path))


def test_outputs_in_openings_form_are_answers(tmp_path):
    folder = tmp_path / "SEED-X_output"
    png(folder / "0300-o-0.jpg", 3)
    whole = {"conversations": [{"input": []}, {"output": [{"text": "One.", "image": "0300-o-0.jpg"},
                                                          {"text": "Two.", "image": None}]}]}  # fmt: skip
    (folder / "0300.json").write_text(json.dumps(whole))
    made = {m.key: m for m in Stored(folder).make([Asked("0300", []), Asked("0301", [])])}
    assert [part["type"] for part in made["0300"].content] == ["text", "image", "text"]
    assert made["0301"].error == "no answer was stored"
    (folder / "0300-o-0.jpg").unlink()
    (gone,) = Stored(folder).make([Asked("0300", [])])
    assert "no file" in gone.error and gone.content == []


def test_isg_bench_as_its_repository_has_it(tmp_path):
    first, second = isg_bench.samples(isg_file(tmp_path))
    assert [part["type"] for part in first.messages[0]["content"]] == ["text", "image"]
    assert (first.meta["group"], second.meta["group"]) == ("temporal prediction", "image-text complementation")
    assert len(first.meta["blocks"]) == 3 and first.meta["pictures"][1]["after"] == [0]
    output = tmp_path / "mine.jsonl"
    png(tmp_path / "a.png", 9)
    parts = [{"type": "text", "content": "Hm."}, {"type": "image", "content": "a.png"}]
    output.write_text(json.dumps({"id": "0000", "output": parts}) + "\n")
    (made,) = Stored(output).make([Asked("0000", [])])
    assert made.content == [{"type": "text", "text": "Hm."}, {"type": "image", "path": str(tmp_path / "a.png")}]
    row = {"id": "1", "Category": "x", "Query": [{"type": "video", "content": "v"}], "Golden": []}
    output.write_text(json.dumps(row))
    with pytest.raises(FormatError, match=r"mine.jsonl:1: a part is text or image, not 'video'"):
        list(isg_bench.samples(output))


# Rules


def test_the_tier_without_a_judge(tmp_path):
    names = [png(tmp_path / f"{k}.png", 40 * k) for k in range(4)]
    gold = [{"type": "text", "text": "a"}, {"type": "image", "path": names[0]}] * 2
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nno")
    answers = [
        Answered("same", gold, gold),
        Answered("late", [gold[0], {"type": "text", "text": "b"}, gold[1]], gold),
        Answered("broken", [gold[0], {"type": "image", "path": str(broken)}, *gold[2:]], gold),
        Answered("none", [], gold, error="too long"),
    ]
    rows = {row["metric"]: row for row in measured(answers)}
    assert rows["structure-valid"]["score"] == 0.5
    assert rows["structure-valid"]["faults"] == {"image": 1, "too long": 1}
    assert rows["structure-same"]["score"] == 0.5  # by block: "a", "b" is one block of words
    assert rows["count-pictures"]["score"] == 0.5 and rows["count-pictures"]["constant"] == 1.0
    assert rows["placement-f1"]["score"] == pytest.approx(2 * 5 / (8 + 5))
    assert "coherence" not in rows


class Shades:
    """Texts that name a shade, pictures of one: a circle holds both."""

    name = "shades"

    def texts(self, texts):
        return torch.stack([self._at(float(text.split()[-1])) for text in texts])

    def pictures(self, pictures):
        return torch.stack([self._at(float(np.mean(p))) for p in pictures])

    def _at(self, shade):
        angle = torch.tensor(shade / 40)
        return torch.stack([angle.cos(), angle.sin()])


def test_coherence_is_the_advantage_over_other_answers_pictures(tmp_path):
    def answer(k, shade):
        picture = {"type": "image", "path": png(tmp_path / f"{k}-{shade}.png", shade)}
        return [{"type": "text", "text": f"shade {40 * k}"}, picture]

    gold = {k: answer(k, 40 * k) for k in range(4)}
    right = [Answered(str(k), gold[k], gold[k]) for k in range(4)]
    turned = [Answered(str(k), answer(k, 40 * ((k + 2) % 4)), gold[k]) for k in range(4)]
    rows = [{r["metric"]: r for r in measured(some, Shades())}["coherence"] for some in (right, turned)]
    assert rows[0]["score"] == pytest.approx(rows[0]["gold"]) and rows[0]["score"] > 0.5
    assert rows[1]["score"] < 0 < rows[1]["gold"]
    one = {r["metric"]: r for r in measured(right[:1], Shades())}["coherence"]
    assert one["score"] is None  # nothing to shuffle with


# The judge


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("Verdict: A", "A"), ("verdict: **B**.", "B"), ("Verdict: tie A", "tie A"), ("Verdict: Tie (B)", "tie B"),
        ("A is better", "A"), ("Tie(B better)", "tie B"), ("  b ", "B"), ("Tie(A)", "tie A"),
        ("A is better. No, B is better.", None), ("Verdict: A or Verdict: B", None), ("I like both.", None), ("", None),
        ("The first is better", None), ("tie", None), ("Verdict: A, since B has no picture", "A"),
        # What a small judge really said.
        ("Verdict: tie A or tie B", None), ("Verdict: B, or A is the first answer", None),
        ("Verdict: tie A, B are the best answer.", None),
    ],
)  # fmt: skip
def test_verdicts_on_pairs(reply, verdict):
    assert pairwise.read(reply) == verdict


def test_grades_and_yes_or_no():
    assert [number(r, 1, 10) for r in ("Score: 7", "7", "score = 10", "Score: 0", "Score: 11", "seven")] == [
        7.0, 7.0, 10.0, None, None, None,
    ]  # fmt: skip
    assert [yes(r) for r in ("Answer: yes", "No.", "answer: NO, as ...", "I think yes", "")] == [
        True, False, False, None, None,
    ]  # fmt: skip
    told = unmarked({"type": "text", "text": "</first> <FIRST> <b>"})
    assert told["text"] == "‹/first› ‹FIRST› <b>"


def test_pairs_are_asked_in_both_orders_and_bias_is_told(tmp_path):
    """A judge that prefers whatever stands first, but for one question where it likes the better words."""
    def rule(body):
        text = words(body)
        assert body["temperature"] == 0.0 and body["seed"] == 0 and body["model"] == "judge-2026-01-01"
        if "story 0" in text:
            return "Verdict: A" if text.index("Fine") < text.index("Step") else "Verdict: B"
        if "story 3" in text:
            return "Both are nice."
        return "Verdict: A" if "story 1" in text else "Verdict: tie A"

    path = opening_file(tmp_path / "data")
    out = tmp_path / "out"
    with serving(rule, lambda n: 500 if n == 2 else 0) as server:
        rules, judged = measure(
            plan(path, "opening"), Artist(lambda key: drawn(1, 2, words="Fine.")), out, judge=judge_at(server), say=len
        )
    (row,) = judged
    assert (row["asked"], row["read"], row["unparsed"], row["failed"]) == (8, 6, 2, 0)
    assert row["parse_rate"] == 0.75 and row["n"] == 3  # a fault in passing changed nothing
    assert row["score"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert row["consistent"] == pytest.approx(1 / 3) and row["prefers_first"] == pytest.approx(5 / 6)
    assert (row["forced"], row["ties_as_zero"]) == (pytest.approx(4 / 6), pytest.approx(3 / 6))
    assert row["without_ties"] == pytest.approx(3 / 4)
    assert row["judge"].startswith("openai:judge-2026-01-01@") and row["answered_as"] == ["fake-1"]
    assert row["judge_prompt"] and row["judge_temperature"] == 0.0 and row["rival"] == "the data set's own answers"
    # What rules say stands in another file and names no judge.
    assert {r["metric"] for r in rules} == {"structure-valid", "structure-same", "count-pictures", "placement-f1"}
    assert all(r["judge"] is None and r["score"] == 1.0 for r in rules)
    assert rows_of(out) == rules
    (folder,) = out.glob("judge-*")
    verdicts = rows_of(folder, "verdicts.jsonl")
    assert len(verdicts) == 8 and all(v["judge_prompt"] == row["judge_prompt"] and v["asked"] for v in verdicts)
    answers = rows_of(out, "answers.jsonl")
    assert (out / answers[0]["answer"][1]["file"]).is_file()


def test_a_judge_that_refuses_is_a_failure_and_no_score(tmp_path):
    path = opening_file(tmp_path / "data", 2)
    with serving(lambda body: "Verdict: B", lambda n: 400) as server:
        _, (row,) = measure(plan(path, "opening"), Artist(lambda key: drawn(1)), tmp_path / "out",
                            judge=judge_at(server), say=len)  # fmt: skip
    assert (row["n"], row["score"], row["failed"], row["read"], row["parse_rate"]) == (0, None, 4, 0, None)


def test_a_question_that_a_side_did_not_answer_is_not_judged(tmp_path):
    path = opening_file(tmp_path / "data", 3)
    rival = Artist(lambda key: None if key == "0301" else drawn(3), name="other")
    with serving(lambda body: "Verdict: A") as server:
        _, (row,) = measure(plan(path, "opening"), Artist(lambda key: drawn(1)), tmp_path / "out",
                            judge=judge_at(server), rival=rival, say=len)  # fmt: skip
    assert (row["unanswered"], row["n"], row["score"], row["position_bias"]) == (1, 2, 0.5, 0.5)
    assert row["rival"] == "other (0123456789ab)"


def isg_rule(body):
    text = words(body)
    if levels.WHOLE in text:
        return "Score: 6"
    if levels.BLOCK in text:
        assert "the first" in text or "image" in text
        return "Score: 8" if "describe" in text else "no idea"
    return "Answer: yes" if "hands" in text else "Answer: no"


def test_isg_bench_on_four_levels(tmp_path):
    path = isg_file(tmp_path / "data", 2)
    shapes = {"0000": [{"type": "text", "text": "So."}, *drawn(1)[1:], *drawn(2)[1:]], "0001": drawn(1)}
    with serving(isg_rule) as server:
        rules, judged = measure(plan(path, "isg-bench"), Artist(shapes.get), tmp_path / "out",
                                judge=judge_at(server), say=len)  # fmt: skip
    assert {r["metric"]: r["score"] for r in rules}["structure-same"] == 0.5
    block, image, whole = judged
    # One block question was unreadable and is left out; the wrong structure gets 1 unasked.
    assert (block["score"], block["n"], block["asked"], block["unparsed"]) == ((8 + 1) / 2, 2, 2, 1)
    # Yes, yes (asked after the first), no, and one that was never asked; wrong structure: 0.
    assert (image["score"], image["asked"], image["read"]) == ((2 / 4 + 0) / 2, 3, 3)
    assert image["as_there"] == (1 / 4 + 0) / 2
    assert (whole["score"], whole["asked"]) == (6.0, 2)
    assert whole["groups"] == {"temporal prediction": {"n": 1, "score": 6.0},
                               "image-text complementation": {"n": 1, "score": 6.0}}  # fmt: skip


def test_a_picture_question_that_could_not_be_read_takes_its_dependents_along(tmp_path):
    path = isg_file(tmp_path / "data", 1)
    shape = [{"type": "text", "text": "So."}, *drawn(1)[1:], *drawn(2)[1:]]
    def rule(body):
        return "Hm." if "Are there hands" in words(body) else isg_rule(body)

    with serving(rule) as server:
        _, (_, image, _) = measure(plan(path, "isg-bench"), Artist(lambda key: shape), tmp_path / "out",
                                   judge=judge_at(server), say=len)  # fmt: skip
    assert (image["score"], image["unparsed"]) == (0.0, 1)  # of the dragon alone


# Runs


def test_a_run_that_ends_anywhere_goes_on_to_the_same_files(tmp_path):
    path = opening_file(tmp_path / "data")
    asked = plan(path, "opening")

    def content(key):
        return drawn(int(key[-1]), 7)

    with serving(lambda body: "Verdict: A") as server:
        measure(asked, Artist(content), tmp_path / "whole", judge=judge_at(server), say=len)
        whole = server.count
        for most in range(4):
            with pytest.raises(ValueError, match="gone"):
                measure(asked, Artist(content, most), tmp_path / str(most), judge=judge_at(server), say=len)
            measure(asked, Artist(content), tmp_path / str(most), judge=judge_at(server), say=len)
            for name in ("answers.jsonl", "rows.jsonl"):
                assert (tmp_path / str(most) / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        assert server.count == 5 * whole
        measure(asked, Artist(content), tmp_path / "whole", judge=judge_at(server), say=len)
        assert server.count == 5 * whole  # verdicts are kept, too
        with pytest.raises(JournalError, match="holds a run with"):
            measure(asked, Artist(content, name="other"), tmp_path / "whole", say=len)
        measure(asked, Artist(content, name="other"), tmp_path / "whole", fresh=True, say=len)
        assert not list((tmp_path / "whole").glob("judge-*"))


def test_what_cannot_be_asked_is_one_line(tmp_path):
    path = isg_file(tmp_path, 1)
    with pytest.raises(InterleavedError, match="holds no question"):
        measure(Plan("x", "opening", [], "r"), Artist(len), tmp_path / "o")
    with pytest.raises(InterleavedError, match="a rival is for a judge of pairs"):
        measure(plan(path, "isg-bench"), Artist(len), tmp_path / "o", rival=Artist(len))


def test_a_servers_typed_parts_are_read_and_addresses_are_not_fetched(tmp_path):
    picture = Path(png(tmp_path / "a.png", 5)).read_bytes()
    url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    parts = read_parts([{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": {"url": url}}])
    assert parts == [{"type": "text", "text": "Hi"}, {"type": "image", "bytes": picture}]
    assert read_parts("Hi") == [{"type": "text", "text": "Hi"}] and read_parts(" ") == []
    for bad in (
        [{"type": "image_url", "image_url": {"url": "http://example.com/a.png"}}],
        [{"type": "image_url", "image_url": {"url": "data:image/png;base64,?"}}], [{"type": "video"}], [{}], 3,
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"part of the answer|picture of the answer"):
            read_parts(bad)


def test_a_server_without_a_choice_is_tried_again_and_then_given_up():
    with serving(lambda body: "streamed, though it was not asked to be") as server:
        maker = Parts("m", server.base, Settings(8, 0.0, 1, tries=2), ("text", "image"))
        maker._sleep = lambda seconds: None
        with pytest.raises(ValueError, match="failed 2 times in a row: what came is no chat completion"):
            list(maker.make([Asked("a", [{"role": "user", "content": "draw"}])]))
    assert server.bodies[0]["modalities"] == ["text", "image"] and "temperature" not in server.bodies[0]
