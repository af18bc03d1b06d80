"""What the official scorers say of made-up answers, kept in `frozen.json`, is what ours say.

The file is written by `benchmarks/conformance_freeze.py`, which runs the official scorers.
"""

import json
from pathlib import Path

import pytest

from m27.eval.cider import CiderD
from m27.eval.scorers import caption, choice, mathvista, meteor, mmau, mmmu, pope, spoken, vqa, wer
from m27.eval.scorers.stem import stem

FROZEN = json.loads(Path(__file__).with_name("frozen.json").read_text(encoding="utf-8"))
GUESSED = "guessed"


def mmmu_choice(reply, options, gold):
    letter = mmmu.choice(reply, options) or GUESSED
    return [letter, mmmu.right_choice(letter, gold)]


def mmmu_open(reply, gold):
    read = mmmu.open_answers(reply)
    return [sorted(map(repr, read)), mmmu.right_open(read, gold)]


def about(row):
    return [row[name] for name in ("question_type", "answer_type", "choices")]


def mathvista_form(row, ignore):
    form = mathvista.normalised(row["extraction"], *about(row), row["precision"], ignore)
    return [form, mathvista.right(form, row["answer"])]


OURS = {
    "mmmu made-up choice": mmmu_choice,
    "mmmu made-up open": mmmu_open,
    "mmmu_pro made-up": lambda reply, options: mmmu.pro_choice(reply, options) or GUESSED,
    "mathvista made-up": mathvista_form,
    "mathvista made-up, extraction": lambda row, quick: mathvista.extract(
        row["response"], *about(row), quick
    ),
    "mmbench made-up": choice.mmbench_letter,
    "mmstar made-up": choice.mmstar_right,
    "scienceqa made-up": lambda reply: choice.scienceqa_letter(reply) or GUESSED,
    "vqav2 made-up": lambda reply, people: round(100 * vqa.vqav2(reply, people), 2),
    "textvqa made-up": vqa.textvqa,
    "pope made-up": pope.says_yes,
    "wer made-up": lambda said, heard: wer.rate([wer.word_errors(said, heard)]),
    "cer made-up": lambda said, heard: wer.rate([wer.character_errors(said, heard)]),
    "mmau made-up": mmau.right,
    "stems made-up": stem,
    "meteor made-up": lambda said, known: meteor.score(said.split(), [one.split() for one in known]),
    "whisper made-up, English": spoken.english,
    "whisper made-up, basic": spoken.basic,
}


def test_every_frozen_set_is_compared():
    assert set(OURS) | {"captions"} == set(FROZEN)
    assert all(len(FROZEN[name]) >= 50 for name in OURS)


@pytest.mark.parametrize("name", OURS)
def test_ours_is_the_official_score(name):
    wrong = []
    for sample, official in FROZEN[name]:
        ours = OURS[name](*sample) if isinstance(sample, list) else OURS[name](sample)
        same = abs(ours - official) <= 1e-9 if isinstance(official, float) else ours == official
        if not same:
            wrong.append((sample, official, ours))
    assert wrong == []


def test_captions_have_the_scores_of_pycocoevalcap():
    known = FROZEN["captions"]
    said = [one.split() for one in known["said"]]
    references = [[one.split() for one in captions] for captions in known["known"]]
    whole, each = caption.bleu(said, references)
    assert whole == pytest.approx(known["bleu"], abs=1e-9)
    for order, official in enumerate(known["bleu_each"]):
        assert [own[order] for own in each] == pytest.approx(official, abs=1e-9)
    rouge = [caption.rouge_l(*pair) for pair in zip(said, references, strict=True)]
    assert rouge == pytest.approx(known["rouge_l"], abs=1e-9)
    measure = CiderD(known["known"], words=str.split)
    cider = [measure.score(*pair) for pair in zip(known["said"], known["known"], strict=True)]
    assert cider == pytest.approx(known["cider"], abs=1e-9)
