"""The second reader of outputs: it accepts the valid, names the faults; random weights pass."""

import pytest

from m27.eval.bench import Bench
from m27.eval.report import Origin
from m27.eval.tasks.language import Capital
from m27.eval.tasks.structure import Structure, cases, faults
from tests import tiny

V = tiny.VOCABULARY
TEXT = V.text_spans[-1][0]
I0, A0, END = V.image.start, V.audio.start, V.turn_end
PICTURE = [V.image_begin, V.heights[1], V.widths[2], *range(I0, I0 + 6), V.image_end]
SOUND = [V.audio_begin, A0, A0 + 1, V.audio_end]
FREE = {
    "modalities": ["text", "image", "audio"], "max_images": 2, "max_sounds": 1, "image_grid": None,
    "max_audio_codes": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    "body", [[], [TEXT, TEXT], PICTURE, SOUND, [TEXT, *PICTURE, *PICTURE, TEXT, *SOUND]]
)
def test_valid_answers_have_no_faults(body):
    assert faults([*body, END], V, FREE) == []


@pytest.mark.parametrize(
    ("ids", "changes", "fault"),
    [
        ([TEXT], {}, "does not end"),
        ([V.turn_begin, END], {}, "outside its place"),
        ([I0, END], {}, "outside its place"),
        ([*PICTURE[:-2], PICTURE[-1], END], {}, "without its 6 codes"),
        ([*PICTURE[:-1], I0, PICTURE[-1], END], {}, "not closed"),
        ([V.image_begin, *PICTURE[3:], END], {}, "without a size"),
        ([*PICTURE[:4], A0, *PICTURE[5:], END], {}, "without its 6 codes"),
        ([*PICTURE, END], {"image_grid": (3, 2)}, "picture of 2 by 3"),
        ([*PICTURE, END], {"modalities": ["text"]}, "not allowed"),
        ([*PICTURE * 3, END], {}, "more pictures"),
        ([*SOUND * 2, END], {}, "more pictures or sounds"),
        ([V.audio_begin, V.audio_end, END], {}, "sound of 0"),
        ([V.audio_begin, A0, A0, A0, V.audio_end, END], {}, "sound of 3"),
        ([V.audio_begin, A0, END], {}, "not closed"),
        ([*PICTURE, TEXT, END], {"plan": ["text", "image"]}, "not the plan"),
    ],
)
def test_each_fault_is_seen(ids, changes, fault):
    (found,) = faults(ids, V, {**FREE, **changes})
    assert fault in found


def test_cases_cover_every_set_of_modalities_and_forced_plans():
    made = cases(200, 0, V)
    assert len({tuple(case.settings["modalities"]) for case in made}) == 7
    assert 20 < sum("plan" in case.settings for case in made) < 150
    assert any(case.settings["image_grid"] is None for case in made)
    assert cases(3, 0, V)[2].settings == made[2].settings
    assert [c.settings for c in cases(50, 1, V)] != [c.settings for c in made[:50]]


@pytest.fixture
def bench():
    engine = tiny.engine(sequences=10)
    return Bench(engine, None, Origin(0, "c", "w"), samples=4, validity=70)


def test_random_weights_give_valid_outputs(bench):
    row, records = Structure().run(bench)
    assert row.passed, [r for r in records if r["faults"]][:5]
    assert row.n == 70
    assert sum(r["ids"] for r in records) > 700


def test_answers_are_text_and_the_same_alone_or_together(bench):
    talks = [[{"role": "user", "content": text}] for text in ("a", "long words here", "?!")]
    together = bench.answers(talks, 6)
    bench.engine = tiny.engine(sequences=1)
    assert bench.answers(talks, 6) == together
    row, (record,) = Capital().run(bench)
    assert row.score == 0.0
    assert row.note == repr(record["prediction"])
    assert record["prediction"]
