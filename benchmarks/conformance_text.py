"""The second half of `benchmarks.conformance`: short answers of people, yes or no,
captions, transcripts and drawn objects.

Captions and error rates are compared with packages (pycocoevalcap, jiwer), the rest with a
checkout. Same form as there: each function yields (set, sample, official, ours).
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import conformance_cases as cases
from benchmarks.conformance_choice import Compared, taken
from m27.eval.cider import CiderD
from m27.eval.scorers import caption, geneval, pope, spoken, vqa, wer

CLOSE = 1e-6


def _near(theirs: float, ours: float) -> float:
    """Ours, or theirs where the two are within 1e-6 of one another."""
    return theirs if abs(theirs - ours) <= CLOSE else ours


def compare_vqav2(root: Path, n: int) -> Compared:
    """Made-up answers, as the repository's stored ones come without their questions."""
    import re
    import warnings

    text = (root / "PythonEvaluationTools/vqaEvaluation/vqaEval.py").read_text()
    text = re.sub(r'print (".*")', r"print(\1)", text)  # it is Python 2
    space: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(text, "vqaEval.py", "exec"), space)
    space["print"] = lambda *_: None
    rng = random.Random(6)
    for _ in range(n):
        people = _people(rng)
        reply = rng.choice([cases.short(rng), rng.choice(people)])
        answers = [{"answer": one, "answer_id": k} for k, one in enumerate(people)]
        gold = {"q": {"answers": answers, "question_type": "", "answer_type": ""}}
        asked = argparse.Namespace(qa=gold, getQuesIds=lambda: ["q"])
        official = space["VQAEval"](asked, argparse.Namespace(qa={"q": {"answer": reply}}))
        official.updateProgress = lambda share: None
        official.evaluate()
        ours = round(100 * vqa.vqav2(reply, people), 2)
        yield "vqav2 made-up", (reply, people), official.evalQA["q"], ours


def _people(rng: random.Random) -> list[str]:
    few = [cases.short(rng) for _ in range(rng.choice([1, 1, 2, 3, 5]))]
    return [rng.choice([*few, *few, f"{few[0]} ", f"the {few[0]}"]) for _ in range(10)]


def compare_textvqa(root: Path, n: int) -> Compared:
    """Made-up answers: the repository stores none."""
    import re

    names = {"EvalAIAnswerProcessor", "TextVQAAccuracyEvaluator"}
    space = taken(root / "mmf/utils/m4c_evaluators.py", names, {"re": re})
    official = space["TextVQAAccuracyEvaluator"]()
    rng = random.Random(7)
    for _ in range(n):
        people = _people(rng)
        reply = rng.choice([cases.short(rng), rng.choice(people)])
        theirs = official.eval_pred_list([{"pred_answer": reply, "gt_answers": people}])
        ours = vqa.textvqa(reply, people)
        yield "textvqa made-up", (reply, people), round(theirs, 12), round(ours, 12)


def compare_pope(root: Path, n: int) -> Compared:
    """Made-up replies to the stored questions, and the five figures of each set of questions."""
    import io
    from contextlib import redirect_stdout

    script = (root / "evaluate.py").read_text()
    rng = random.Random(8)
    files = sorted((root / "output/coco").glob("*.json"))
    for file in files:
        labels = [json.loads(line)["label"] for line in file.read_text().splitlines()]
        labels = (labels * 2)[: max(2, n // len(files) + 1)]
        replies = [cases.yes_no(rng) for _ in labels]
        lines = "\n".join(json.dumps({"answer": reply}) for reply in replies)
        golds = "\n".join(json.dumps({"label": label}) for label in labels)
        texts = {"answers": lines, "labels": golds}
        space: dict[str, Any] = {"open": lambda name, mode, texts=texts: io.StringIO(texts[name])}
        told = script.replace("ans_file = ''", "ans_file = 'answers'")
        told = told.replace("label_file = ''", "label_file = 'labels'")
        with redirect_stdout(io.StringIO()):
            exec(compile(told, "evaluate.py", "exec"), space)
        said = [pope.says_yes(reply) for reply in replies]
        for reply, theirs, ours in zip(replies, space["pred_list"], said, strict=True):
            yield "pope made-up", reply, bool(theirs), ours
        own = pope.figures(zip(said, [label != "no" for label in labels], strict=True))
        theirs = [space[k] for k in ("acc", "precision", "recall", "f1", "yes_ratio")]
        ours = [own.accuracy, own.precision, own.recall, own.f1, own.yes]
        yield (
            "pope figures",
            file.name,
            [round(x, 12) for x in theirs],
            [round(x, 12) for x in ours],
        )


def compare_coco(root: Path, n: int) -> Compared:
    """Captions of 1,000 made-up pictures at a time with one to five references each; with a
    checkout of coco-caption, its stored captions, too, each against its neighbours'."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    rng = random.Random(9)
    sets = []
    for start in range(0, n, 1000):
        size = min(1000, n - start)
        said = [cases.caption(rng) for _ in range(size)]
        known = [
            [cases.caption(rng) if rng.random() < 0.7 else one for _ in range(rng.randint(1, 5))]
            for one in said
        ]
        sets.append(("coco made-up", said, known))
    stored = root / "results/captions_val2014_fakecap_results.json"
    if stored.is_file():
        words = [
            " ".join(caption.coco_words(row["caption"])) for row in json.loads(stored.read_text())
        ]
        known = [[words[k - j] for j in range(1, 6)] for k in range(len(words))]
        sets.append(("coco stored", words, known))
    for name, said, known in sets:
        gold = dict(enumerate(known))
        candidates = {k: [one] for k, one in enumerate(said)}
        split = [one.split() for one in said], [[r.split() for r in refs] for refs in known]
        whole, each = Bleu(4).compute_score(gold, candidates, verbose=0)
        total, own = caption.bleu(*split)
        for k in range(4):
            yield f"{name}, corpus BLEU", f"BLEU-{k + 1}", whole[k], _near(whole[k], total[k])
        rouge = Rouge().compute_score(gold, candidates)[1]
        cider = Cider().compute_score(gold, candidates)[1]
        measure = CiderD(known, words=str.split)
        for k, one in enumerate(said):
            for order in range(4):
                yield f"{name}, BLEU", one, each[order][k], _near(each[order][k], own[k][order])
            ours = caption.rouge_l(split[0][k], split[1][k])
            yield f"{name}, ROUGE-L", one, rouge[k], _near(rouge[k], ours)
            yield f"{name}, CIDEr-D", one, cider[k], _near(cider[k], measure.score(one, known[k]))


def compare_coco_words(root: Path, n: int) -> Compared:
    """The words of the checkout's stored captions, as the official tokenizer (Java) has them."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    rows = json.loads((root / "results/captions_val2014_fakecap_results.json").read_text())
    texts = [row["caption"] for row in rows] + list(_TEXTS)
    official = PTBTokenizer().tokenize({k: [{"caption": t}] for k, t in enumerate(texts)})
    for k, text in enumerate(texts):
        name = "coco words, stored" if k < len(rows) else "coco words, written for this"
        yield name, text, official[k][0].split(), caption.coco_words(text)


_TEXTS = (
    "A man's dog isn't here.", "Two-way street (at night), no cars!", "The dogs' bowls; 3.5 or 1,000 of them...",
    "A sign that says \"STOP\" & go", "She can't, won't and doesn't: they're cannot.", "10:30 a.m. in the U.S. -- sun",
    "A t-shirt with #1 on it / blue", "A 50% off sign, $4.00 each", "Mr. Smith rides a bike", "he'll say it's 'fine'",
    "A café with naïve art", "rock 'n' roll band", "A cat-like, dog-like thing.", "man wearing a hat?", "don’t look",
    "I'm gonna wanna go", "A [blurred] photo {cut}", "one_two three", "end.Start again", "a 1/2 eaten cake",
)  # fmt: skip


def compare_wer(root: Path, n: int) -> Compared:
    """Word and character error rates of made-up transcripts, one by one and as a corpus."""
    import jiwer

    rng = random.Random(10)
    counts: list[tuple[int, int]] = []
    texts: tuple[list[str], list[str]] = ([], [])
    for _ in range(n):
        said = cases.caption(rng, 20)
        heard = " ".join(
            w
            for w in said.split()
            for w in rng.choices([[w], [], [w, "x"], ["y"]], [8, 1, 1, 1])[0]
        )
        heard = heard or "x"
        counts.append(wer.word_errors(said, heard))
        texts[0].append(said)
        texts[1].append(heard)
        theirs = jiwer.wer(said, heard)
        yield "wer made-up", (said, heard), theirs, _near(theirs, wer.rate(counts[-1:]))
        theirs = jiwer.cer(said, heard)
        ours = wer.rate([wer.character_errors(said, heard)])
        yield "cer made-up", (said, heard), theirs, _near(theirs, ours)
    theirs = jiwer.wer(*texts)
    yield "wer of the corpus", "all", theirs, _near(theirs, wer.rate(counts))


def compare_whisper(root: Path, n: int) -> Compared:
    """Both normalisers on made-up transcripts; a text on which the original fails is left out."""
    sys.path.insert(0, str(root / "whisper"))  # the package around it would import torch
    try:
        official = importlib.import_module("normalizers")
    finally:
        sys.path.pop(0)
    spellings = json.loads((root / "whisper/normalizers/english.json").read_text())
    english, basic = official.EnglishTextNormalizer(), official.BasicTextNormalizer()
    plain = official.EnglishTextNormalizer()
    plain.standardize_spellings.mapping = {}
    rng = random.Random(11)
    for _ in range(n):
        text = cases.spoken(rng)
        try:
            theirs = english(text)
        except (AssertionError, ValueError, TypeError, IndexError):
            continue
        yield "whisper, English with spellings", text, theirs, spoken.english(text, spellings)
        yield "whisper made-up, English", text, plain(text), spoken.english(text)
        yield "whisper made-up, basic", text, basic(text), spoken.basic(text)


def compare_geneval(root: Path, n: int) -> Compared:
    """Made-up boxes for the official requests: which count, and the verdict."""
    import numpy as np

    names = {"COLORS", "compute_iou", "relative_position", "evaluate", "evaluate_image"}
    lines = (root / "prompts/evaluation_metadata.jsonl").read_text().splitlines()
    requests = [json.loads(line) for line in lines]
    classes = (root / "evaluation/object_names.txt").read_text().split("\n")
    classes = [line.strip() for line in classes if line.strip()]
    rng = random.Random(12)
    made: dict[str, Any] = {}

    def colours(picture: Any, boxes: Any, name: str) -> list[str]:
        # Of the box's corner, so that both sides read the same colour of the same box.
        return [
            geneval.COLOURS[int(b.left if isinstance(b, geneval.Box) else b[0][0]) % 3]
            for b in boxes
        ]

    given = {
        "np": np,
        "json": json,
        "inference_detector": lambda model, path: made["arrays"],
        "object_detector": None,
        "ImageOps": argparse.Namespace(exif_transpose=lambda image: image),
        "Image": argparse.Namespace(open=lambda path: None),
        "color_classification": colours,
        "classnames": classes,
        "THRESHOLD": geneval.THRESHOLD,
        "COUNTING_THRESHOLD": geneval.COUNTING_THRESHOLD,
        "MAX_OBJECTS": geneval.MOST,
        "POSITION_THRESHOLD": geneval.POSITION_THRESHOLD,
    }
    official = taken(root / "evaluation/evaluate_images.py", names, given)
    for number in range(n):
        request = requests[number % len(requests)]
        wanted = {clause["class"] for clause in request["include"]}
        found = {}
        for name in {*wanted, rng.choice(classes)}:
            boxes = []
            for _ in range(rng.choice([0, 1, 1, 1, 2, 3, 4, 5, 20])):
                x, y = rng.randrange(200), rng.randrange(200)
                size = rng.choice([0, 5, 40, 120]), rng.choice([0, 5, 40, 120])
                sure = rng.choice([rng.random(), 0.9 + rng.random() / 10])
                boxes.append(geneval.Box(x, y, x + size[0], y + size[1], sure))
            found[name] = boxes
        made["arrays"] = [
            np.array(
                [[b.left, b.top, b.right, b.bottom, b.confidence] for b in found.get(name, [])],
            ).reshape(-1, 5)
            for name in classes
        ]
        official["NMS_THRESHOLD"] = most = rng.choice([1.0, 1.0, 0.5])
        theirs = official["evaluate_image"]("x.png", request)
        objects = geneval.kept(found, request["tag"], most)
        verdict = geneval.judge(request, objects, colours)
        counted = {name: len(boxes) for name, boxes in json.loads(theirs["details"]).items()}
        ours = {name: len(boxes) for name, boxes in objects.items()}
        yield (
            f"geneval made-up, {request['tag']}",
            (request, found),
            (theirs["correct"], counted),
            (verdict.right, ours),
        )


COMPARE: dict[str, Callable[[Path, int], Compared]] = {
    name.removeprefix("compare_"): function
    for name, function in list(globals().items())
    if name.startswith("compare_")
}
