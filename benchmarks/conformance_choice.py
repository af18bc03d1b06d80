"""The first half of `benchmarks.conformance`: multiple choice and short answers of MMMU, MathVista,
MMBench, MMStar and ScienceQA.

Each `compare_…` takes a checkout and how many answers to make up, and yields (set of samples,
sample, official, ours).
"""

from __future__ import annotations

import argparse
import ast
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import conformance_cases as cases
from m27.eval.scorers import choice, mathvista, mmau, mmmu

Compared = Iterator[tuple[str, Any, Any, Any]]
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

    for model in sorted(p for p in (root / "mmmu/example_outputs").iterdir() if p.is_dir()):
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
        yield from _guessed_alike(root, model, official, mmmu.official_guesser())
    rng = random.Random(0)
    for _ in range(n // 2):
        known = cases.options(rng)
        reply = cases.chosen(rng, known)
        gold: Any = rng.choice(list(known))
        yield ("mmmu made-up choice", (reply, known, gold), *both(reply, known, gold))
        reply, gold = cases.opened(rng)
        yield ("mmmu made-up open", (reply, gold), *both(reply, None, gold))


def _guessed_alike(
    root: Path, model: Path, official: dict[str, Any], guess: mmmu.Guesser
) -> Compared:
    """The same once more with every guess drawn, in the order of the official program."""
    tree = ast.parse((root / "mmmu/utils/data_utils.py").read_text())
    order = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "CAT_SHORT2LONG"
    )
    official["random"] = random.Random(42)
    for subject in order.values():
        for row in json.loads((model / subject / "output.json").read_text()):
            if row["question_type"] == "multiple-choice":
                known = row["index2ans"]
                theirs = official["parse_multi_choice_response"](
                    row["response"], row["all_choices"], known
                )
                ours = mmmu.choice(row["response"], known) or guess(row["all_choices"])
                yield f"mmmu {model.name}, guesses drawn", row["id"], theirs, ours
    official["random"] = _Guesses()


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
        known = cases.options(rng, 5)
        reply = cases.chosen(rng, known)
        if rng.random() < 0.6:
            reply = f"The answer is {rng.choice(list(known))}. {rng.choice([reply, ''])}"
        yield "scienceqa made-up", reply, theirs(reply), choice.scienceqa_letter(reply) or GUESSED


def compare_mmau(root: Path, n: int) -> Compared:
    """Made-up replies to the questions of the stored test-mini file, and to made-up ones."""
    import re

    official = taken(root / "evaluation.py", {"string_match"}, {"re": re})["string_match"]
    rows = json.loads((root / "mmau-test-mini.json").read_text())
    rng = random.Random(15)
    for number in range(n):
        row = rows[number % len(rows)]
        choices, answer, name = row["choices"], row["answer"], "mmau, stored questions"
        if number % 2:
            choices = list(cases.options(rng, 4).values())
            answer, name = rng.choice(choices), "mmau made-up"
        reply = rng.choice(
            [cases.chosen(rng, _letters(choices)), answer, f"It is {answer.lower()}.", " ".join(choices), ""]
        )
        yield name, [answer, reply, choices], official(answer, reply, choices), mmau.right(answer, reply, choices)


COMPARE: dict[str, Callable[[Path, int], Compared]] = {
    name.removeprefix("compare_"): function
    for name, function in list(globals().items())
    if name.startswith("compare_")
}
