"""Do our scorers say what the official ones say, of every sample?

    python -m benchmarks.conformance mmmu=/path/to/MMMU mathvista=/path/to/MathVista --cases 10000

takes a checkout of the official repository per benchmark (or its name alone, for a scorer that is
an installed package), runs both scorers on the outputs stored there and on made-up answers, and
prints for each set how many samples agree, and the first that do not. Exit status 1 if any does
not. The official code is read from the checkout and run in this process: only give checkouts that
you trust. It wants what that code imports, in an environment of its own; ours needs numpy alone.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import conformance_cases as cases
from m27.eval.scorers import choice, mathvista, mmmu, pope, vqa

Compared = Iterator[tuple[str, Any, Any, Any]]  # set of samples, sample, official, ours
GUESSED = "guessed"


def taken(path: Path, names: set[str], given: dict[str, Any]) -> dict[str, Any]:
    """The functions, classes and constants `names` of a source file, run with `given` as globals:
    the rest of the file and its imports are not run."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kept = [
        node
        for node in tree.body
        if getattr(node, "name", None) in names
        or (isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) in names)
    ]
    space = dict(given)
    exec(compile(ast.Module(kept, []), str(path), "exec"), space)
    return space


class _Guesses:
    """Stands in for the module `random`, so that a guess is seen as one."""

    def choice(self, letters: list[str]) -> str:
        return GUESSED


def _letters(options: list[str]) -> dict[str, str]:
    return {chr(65 + n): text for n, text in enumerate(options)}


def compare_mmmu(root: Path, n: int) -> Compared:
    """Both stored models, 900 answers each; and 10,000 made-up ones, half of them open."""
    import re

    import numpy as np

    source = root / "mmmu/utils/eval_utils.py"
    names = {node.name for node in ast.parse(source.read_text()).body if hasattr(node, "name")}
    official = taken(source, names, {"re": re, "np": np, "random": _Guesses(), "Dict": dict})

    def both(reply: str, options: dict[str, str] | None, gold: Any) -> tuple[Any, Any]:
        if options is not None:
            theirs = official["parse_multi_choice_response"](reply, list(options), options)
            ours = mmmu.choice(reply, options) or GUESSED
            verdict = official["eval_multi_choice"](gold, theirs)
            return (theirs, verdict), (ours, mmmu.right_choice(ours, gold))
        read, own = official["parse_open_response"](reply), mmmu.open_answers(reply)
        theirs = (sorted(map(repr, read)), official["eval_open"](gold, read))
        return theirs, (sorted(map(repr, own)), mmmu.right_open(own, gold))

    for model in sorted((root / "mmmu/example_outputs").iterdir()):
        for file in sorted(model.glob("*/output.json")):
            for row in json.loads(file.read_text()):
                letters = (
                    row.get("index2ans") if row["question_type"] == "multiple-choice" else None
                )
                yield (
                    f"mmmu {model.name}",
                    row["id"],
                    *both(row["response"], letters, row["answer"]),
                )
    rng = random.Random(0)
    for _ in range(n // 2):
        known = cases.options(rng)
        reply = cases.chosen(rng, known)
        gold: Any = rng.choice(list(known))
        yield ("mmmu made-up choice", (reply, known, gold), *both(reply, known, gold))
        reply, gold = cases.opened(rng)
        yield ("mmmu made-up open", (reply, gold), *both(reply, None, gold))


def compare_mmmu_pro(root: Path, n: int) -> Compared:
    """The four stored files of 1,730 answers; and made-up ones."""
    import re

    import numpy as np

    names = {"parse_multi_choice_response"}
    space = taken(root / "mmmu-pro/evaluate.py", names, {"re": re, "np": np, "random": _Guesses()})
    official = space["parse_multi_choice_response"]
    for file in sorted((root / "mmmu-pro/output").glob("*.jsonl")):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            known = _letters(ast.literal_eval(str(row["options"])))
            reply = "" if isinstance(row["response"], dict) else row["response"]
            theirs = official(reply, list(known), known)
            yield (
                f"mmmu_pro {file.stem}",
                row["id"],
                theirs,
                mmmu.pro_choice(reply, known) or GUESSED,
            )
    rng = random.Random(1)
    for _ in range(n):
        known = cases.options(rng)
        reply = cases.chosen(rng, known)
        theirs = official(reply, list(known), known)
        yield "mmmu_pro made-up", (reply, known), theirs, mmmu.pro_choice(reply, known) or GUESSED


class _Asked:
    """Stands in for the language model that extracts answers."""

    def get_response(self, user_prompt: str) -> None:
        return None


def compare_mathvista(root: Path, n: int) -> Compared:
    """Every stored file: normal form and verdict, and extraction by rules; and made-up ones."""
    import logging
    import re

    from Levenshtein import distance

    names = {"get_most_similar", "normalize_extracted_answer", "safe_equal"}
    given = {"re": re, "logging": logging, "distance": distance, "demo_prompt": ""}
    space = taken(root / "evaluation/calculate_score.py", names, given)
    names = {"extract_answer", "create_test_prompt"}
    extract = taken(root / "evaluation/extract_answer.py", names, given)["extract_answer"]

    def both(row: dict[str, Any], ignore: bool) -> tuple[Any, Any]:
        about = [row[k] for k in ("question_type", "answer_type", "choices")]
        theirs = space["normalize_extracted_answer"](
            row["extraction"], about[2], about[0], about[1], row["precision"], ignore
        )
        ours = mathvista.normalised(row["extraction"], *about, row["precision"], ignore)
        verdict = space["safe_equal"](theirs, row["answer"])
        return (theirs, verdict), (ours, mathvista.right(ours, row["answer"]))

    def extractions(row: dict[str, Any], quick: bool) -> tuple[Any, Any]:
        about = [row[k] for k in ("question_type", "answer_type", "choices")]
        theirs = extract(_Asked(), row["response"], {"query": "", "pid": "", **row}, quick)
        return theirs, mathvista.extract(row["response"], *about, quick)

    known_problems = []
    for file in sorted((root / "results").glob("*/output_*.json")):
        stored = json.loads(file.read_text())
        problems = {pid: row for pid, row in stored.items() if "true_false" in row}
        known_problems += problems.values()
        pairs = {pid: both(row, False) for pid, row in problems.items()}
        for pid, (theirs, ours) in pairs.items():
            yield f"mathvista {file.stem}", pid, theirs, ours
        # A third of the files were written by an older scorer than the one beside them.
        if all(problems[pid]["true_false"] == theirs[1] for pid, (theirs, _) in pairs.items()):
            for pid, (_, ours) in pairs.items():
                yield (
                    "mathvista stored verdicts",
                    (file.stem, pid),
                    problems[pid]["true_false"],
                    ours[1],
                )
        for pid, row in problems.items():
            if isinstance(row["response"], str):
                yield ("mathvista stored, extraction", pid, *extractions(row, True))
    rng = random.Random(2)
    for _ in range(n):
        known = cases.options(rng)
        number, choices = rng.choice(cases.NUMERALS), list(known.values())
        reply = cases.chosen(rng, known)
        kind, precision = rng.choice(
            [("text", None), ("integer", None), ("float", 1), ("float", 2.0), ("list", None)]
        )
        row = {
            "question_type": "multi_choice" if kind == "text" else "free_form",
            "answer_type": kind,
            "choices": choices if kind == "text" else None,
            "precision": precision,
            "answer": rng.choice([number, *choices]),
            "extraction": rng.choice([reply, number, None, 3, 2.5, [1, 2], f" {number}\n"]),
            "response": rng.choice([reply, number, f'The answer is "{number}".', choices[0]]),
        }
        flag = rng.random() < 0.5
        yield ("mathvista made-up", (row, flag), *both(row, flag))
        yield ("mathvista made-up, extraction", (row, flag), *extractions(row, flag))


def compare_mmbench(root: Path, n: int) -> Compared:
    """Made-up replies: the repository stores no outputs."""
    import copy
    import os
    import re
    import string

    names = {"can_infer_option", "can_infer_text", "can_infer", "_VERBOSE_ANSWER_RE"}
    given = {"re": re, "os": os, "string": string, "cp": copy}
    official = taken(root / "vlmeval/utils/matching_util.py", names, given)["can_infer"]
    rng = random.Random(3)
    for _ in range(n):
        known = cases.options(rng, 5)
        reply = cases.chosen(rng, known)
        ours = choice.mmbench_letter(reply, known)
        yield "mmbench made-up", (reply, known), official(reply, dict(known)) or None, ours


class _Rows:
    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.iloc = rows

    def __len__(self) -> int:
        return len(self.iloc)


def compare_mmstar(root: Path, n: int) -> Compared:
    """The stored 1,500 answers of one model; and made-up ones. The official function scores a file,
    so each sample is put into a file of its own, among empty answers."""
    import copy

    import pandas as pd

    source = root / "eval/vlmeval/evaluate/mmstar.py"
    tree = ast.parse(source.read_text())
    kinds = next(
        ast.literal_eval(node.value) for node in ast.walk(tree) if isinstance(node, ast.Assign)
    )
    empty = [
        {"prediction": "", "answer": "A", "bench": "", "category": one, "l2_category": two}
        for one, below in kinds.items()
        for two in below
    ]
    kept: dict[str, Any] = {}
    given = {
        "get_logger": lambda name: argparse.Namespace(info=lambda text: None),
        "tqdm": iter,
        "deepcopy": copy.deepcopy,
        "load": lambda path: _Rows([kept["row"], *empty]),
        "dump": lambda score, path: kept.update(score=score),
    }
    official = taken(source, {"MMStar_eval"}, given)["MMStar_eval"]

    def theirs(reply: str, answer: str) -> bool:
        kept["row"] = {**empty[0], "prediction": reply, "answer": answer}
        official("x.xlsx")
        return kept["score"]["final score"] > 0

    for file in (root / "eval/submits").glob("*.xlsx"):
        for row in pd.read_excel(file).to_dict("records"):
            reply, answer = str(row["prediction"]), str(row["answer"])
            ours = choice.mmstar_right(reply, answer)
            yield f"mmstar {file.stem}", row["index"], theirs(reply, answer), ours
    rng = random.Random(4)
    for _ in range(n):
        known = cases.options(rng, 4)
        reply, answer = cases.chosen(rng, known), rng.choice(list(known))
        yield (
            "mmstar made-up",
            (reply, answer),
            theirs(reply, answer),
            choice.mmstar_right(reply, answer),
        )


def compare_scienceqa(root: Path, n: int) -> Compared:
    """The stored 4,241 outputs, whose verdicts are stored, too; and made-up ones."""
    import re

    kept = {"text": ""}
    completion = argparse.Namespace(create=lambda **_: {"choices": [kept]})
    given = {"re": re, "openai": argparse.Namespace(Completion=completion)}
    official = taken(root / "models/run_gpt3.py", {"get_gpt3_result"}, given)["get_gpt3_result"]
    settings = argparse.Namespace(
        engine="", temperature=0, max_tokens=0, top_p=1, frequency_penalty=0, presence_penalty=0
    )

    def theirs(reply: str) -> str:
        kept["text"] = reply
        letter = official("", settings)[0]
        return GUESSED if letter == "FAILED" else letter

    for file in (root / "results/gpt3").glob("*.json"):
        stored = json.loads(file.read_text())
        for name, reply in stored["outputs"].items():
            ours = choice.scienceqa_letter(reply) or GUESSED
            yield "scienceqa stored", name, theirs(reply), ours
            if ours != GUESSED:
                place = stored["results"][name]
                yield "scienceqa stored, place", name, place, ord(ours) - 65
    rng = random.Random(5)
    for _ in range(n):
        reply = cases.chosen(rng, cases.options(rng, 5))
        yield "scienceqa made-up", reply, theirs(reply), choice.scienceqa_letter(reply) or GUESSED


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
        labels = labels[: max(2, n // len(files) + 1)]
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


COMPARE: dict[str, Callable[[Path, int], Compared]] = {
    name.removeprefix("compare_"): function
    for name, function in list(globals().items())
    if name.startswith("compare_")
}


def report(compared: Compared, shown: int) -> int:
    """Print a line a set, and the first disagreements; how many disagree."""
    counts: dict[str, list[int]] = {}
    wrong: list[str] = []
    for name, sample, theirs, ours in compared:
        count = counts.setdefault(name, [0, 0, 0])
        count[0] += 1
        count[1] += theirs == ours
        count[2] += GUESSED in (theirs if isinstance(theirs, tuple) else (theirs,))
        if theirs != ours:
            wrong.append(f"{name}: {sample!r}: official {theirs!r}, ours {ours!r}")
    for name, (total, same, guessed) in counts.items():
        print(f"{name}: {same} of {total} agree" + (f", {guessed} guessed" if guessed else ""))
    for line in wrong[:shown]:
        print("  ", line[:600])
    return len(wrong)


def main() -> int:
    """Run what was asked for; 1 if anything disagrees."""
    from benchmarks.conformance_text import COMPARE as TEXT

    known = COMPARE | TEXT
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("scorer", nargs="+", help=f"NAME=CHECKOUT or NAME; of {', '.join(known)}")
    parser.add_argument("--cases", type=int, default=10_000, help="made-up answers per scorer")
    parser.add_argument("--show", type=int, default=10, help="disagreements printed per scorer")
    told = parser.parse_args()
    wrong = 0
    for one in told.scorer:
        name, _, path = one.partition("=")
        if name not in known:
            parser.error(f"no scorer {name!r}; there are {', '.join(known)}")
        if path and not Path(path).is_dir():
            parser.error(f"{name}: no folder {path}")
        wrong += report(known[name](Path(path), told.cases), told.show)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
