"""The third part of `benchmarks.conformance`: the Fréchet distance of stored features, and METEOR.

    python -m benchmarks.conformance frechet meteor meteor_java

in an environment with pytorch-fid, torchmetrics, nltk and pycocoevalcap (Java for the last). `frechet=FOLDER` also
takes `a.npy` and `b.npy` of that folder. Same form as there: each function yields (set, sample, official, ours).
"""

from __future__ import annotations

import importlib.util
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import conformance_cases as cases
from benchmarks.conformance_choice import Compared, taken
from m27.eval.scorers import java, meteor
from m27.eval.scorers.caption import coco_words
from m27.eval.scorers.frechet import Stream, estimate

CLOSE = 1e-6
DISTANCE_CLOSE = 1e-3
SIZES = ((2000, 1500, 64), (900, 1100, 192), (300, 280, 24), (60, 5000, 48), (40, 50, 96))  # rows, rows, features

Rows = npt.NDArray[np.float32]


def sets_of_features(n: int) -> Iterator[tuple[str, Rows, Rows]]:
    """Made-up features of many shapes: correlated, never negative as pooled ones are, of full rank and not."""
    for number in range(n):
        rows_a, rows_b, size = SIZES[number % len(SIZES)]
        rng = np.random.default_rng(number)
        mix = rng.normal(size=(size, size)) * np.exp(-np.arange(size) / size * rng.uniform(0, 6))
        a = rng.normal(size=(rows_a, size)) @ mix
        b = rng.normal(size=(rows_b, size)) @ (mix + 0.2 * rng.normal(size=mix.shape)) + rng.normal()
        if number % 2:
            a, b = np.abs(a), np.maximum(b, 0)
        yield f"{rows_a} and {rows_b} rows of {size}, {number}", a.astype(np.float32), b.astype(np.float32)


def ours(a: Rows, b: Rows) -> float:
    """The distance as `m27 eval` reckons it, a row a sample."""
    streams = Stream(), Stream()
    for stream, rows in zip(streams, (a, b), strict=True):
        for row in rows:
            stream.add(row)
    return estimate(*streams).distance


def references() -> dict[str, Callable[[Rows, Rows], float]]:
    """pytorch-fid's and torchmetrics' own functions of means and covariances (in float64, as theirs are)."""
    import torch
    from scipy import linalg

    def place(package: str, *names: str) -> Path:
        found = importlib.util.find_spec(package)
        assert found is not None and found.origin is not None, f"pip install {package}"
        return Path(found.origin).parent.joinpath(*names)

    def square_root(matrix: Any, disp: bool = True) -> Any:
        """scipy's, in the form of the versions that those packages were written for."""
        return linalg.sqrtm(matrix) if disp else (linalg.sqrtm(matrix), 0.0)

    path = place("pytorch_fid", "fid_score.py")
    given = {"np": np, "linalg": type("linalg", (), {"sqrtm": staticmethod(square_root)})}
    fid = taken(path, {"calculate_frechet_distance"}, given)["calculate_frechet_distance"]
    path = place("torchmetrics", "image", "fid.py")
    metric = taken(path, {"_compute_fid"}, {"torch": torch, "Tensor": torch.Tensor})["_compute_fid"]

    def moments(rows: Rows) -> tuple[Any, Any]:
        wide = rows.astype(np.float64)
        return wide.mean(0), np.cov(wide, rowvar=False)

    def by_torchmetrics(a: Rows, b: Rows) -> float:
        return float(metric(*(torch.from_numpy(x) for rows in (a, b) for x in moments(rows))))

    return {"pytorch-fid": lambda a, b: float(fid(*moments(a), *moments(b))), "torchmetrics": by_torchmetrics}


def compare_frechet(root: Path, n: int) -> Compared:
    """Made-up features, one set of five shapes for each 400 cases; and `a.npy` and `b.npy` of the folder."""
    sets = list(sets_of_features(max(5, n // 400)))
    if (root / "a.npy").is_file():
        sets.append(("stored", *(np.load(root / f"{side}.npy", allow_pickle=False) for side in "ab")))
    known = references()
    for name, a, b in sets:
        own = ours(a, b)
        for reference, official in known.items():
            theirs = official(a, b)
            kind = "stored" if name == "stored" else "made-up"
            full = "" if min(len(a), len(b)) > a.shape[1] else ", fewer rows than features"
            same = abs(theirs - own) <= DISTANCE_CLOSE * max(1.0, theirs * 1e-3)
            yield f"fid by {reference}, {kind}{full}", name, theirs, theirs if same else own


def compare_meteor(root: Path, n: int) -> Compared:
    """nltk's METEOR on made-up captions, its WordNet being empty; and its stems of their words and of made-up ones."""
    from nltk.stem.porter import PorterStemmer
    from nltk.translate.meteor_score import meteor_score

    from m27.eval.scorers.stem import IRREGULAR, LAST, LONG, MIDDLE, PLURALS, stem

    class Empty:
        def synsets(self, word: str) -> list[Any]:
            return []

    rng, official = random.Random(13), PorterStemmer()
    suffixes = [suffix for suffix, _ in (*PLURALS, *LONG, *MIDDLE, *LAST)]
    suffixes += ["ed", "ing", "eed", "ied", "y", "ly", "logi"]
    words = list(IRREGULAR)
    for _ in range(n):
        root_word = "".join(rng.choice("aeiouybcdlmnrstz") for _ in range(rng.randint(1, 7)))
        words.append(root_word + rng.choice(["", *suffixes]) + rng.choice(["", "", *suffixes]))
    for word in words:
        yield "stems made-up", word, official.stem(word), stem(word)
    for _ in range(n):
        said, known = inflected(rng), [inflected(rng) for _ in range(rng.randint(1, 4))]
        known = [one if rng.random() < 0.6 else varied(rng, said) for one in known]
        theirs = meteor_score([one.split() for one in known], said.split(), wordnet=Empty())
        own = meteor.score(said.split(), [one.split() for one in known])
        yield "meteor made-up", [said, known], theirs, theirs if abs(theirs - own) <= CLOSE else own


def inflected(rng: random.Random) -> str:
    """A made-up caption with endings of all kinds."""
    return " ".join(word + rng.choice(["", "", "", "s", "ing", "ed"]) for word in cases.caption(rng).split())


def varied(rng: random.Random, caption: str) -> str:
    """The same caption with words moved, dropped or inflected otherwise."""
    words = [word + rng.choice(["", "", "s"]) for word in caption.split() if rng.random() < 0.9] or ["x"]
    cut = rng.randrange(len(words))
    return " ".join(words[cut:] + words[:cut])


def compare_meteor_java(root: Path, n: int) -> Compared:
    """METEOR 1.5 as pycocoevalcap runs it beside ours, on corpora of 100 made-up captions."""
    from pycocoevalcap.meteor import meteor as theirs

    os.environ["M27_METEOR"] = str(Path(theirs.__file__).with_name(theirs.METEOR_JAR))
    rng = random.Random(14)
    for number in range(max(1, n // 2000)):
        said = [inflected(rng) for _ in range(100)]
        known = [[inflected(rng), varied(rng, one), varied(rng, one)] for one in said]
        candidates = {k: [" ".join(coco_words(one))] for k, one in enumerate(said)}
        gold = {k: [" ".join(coco_words(one)) for one in many] for k, many in enumerate(known)}
        official = theirs.Meteor().compute_score(gold, candidates)[0]
        own = java.meteor(said, known)[0]
        yield "METEOR 1.5 of corpora", number, official, official if abs(official - own) <= CLOSE else own


COMPARE: dict[str, Callable[[Path, int], Compared]] = {
    name.removeprefix("compare_"): function
    for name, function in list(globals().items())
    if name.startswith("compare_")
}


def frozen() -> list[dict[str, Any]]:
    """A few sets of features with what the packages say of them, small enough to be kept in a file."""
    rng = np.random.default_rng(5)
    out = []
    sizes = (("full rank", 40, 50, 6), ("fewer rows than features", 8, 9, 12), ("non-negative", 60, 30, 5))
    for name, n, m, size in sizes:
        a, b = rng.normal(size=(n, size)).round(4), (rng.normal(size=(m, size)) * 1.7 + 0.4).round(4)
        if name == "non-negative":
            a, b = np.abs(a), np.abs(b)
        known = {reference: official(a, b) for reference, official in references().items()}
        out.append({"name": name, "a": a.tolist(), "b": b.tolist(), **known})
    return out
