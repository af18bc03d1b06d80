"""Is the language model still itself? Perplexity of English against the base, and one plain fact.

The text is old (Moby Dick, 1851, and the State of the Union addresses) and surely known to the
base; what counts is the ratio of the two models on the same tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from m27.data.progress import Progress
from m27.data.registry import fetch
from m27.data.sources import storybooks
from m27.data.sources.base import split
from m27.data.sources.sentences import TEXTS, measured
from m27.eval.bench import Bench, Records
from m27.eval.report import Row, bars
from m27.eval.score import bootstrap_ratio, named, perplexity, wilson
from m27.eval.tasks.sample import Sample, data_hash, rank
from m27.infer.base import load_base
from m27.infer.likelihood import log_likelihoods
from m27.infer.torch_runner import TorchRunner

LENGTH = 512  # tokens a passage
PASSAGES = 24
LEVELS = (1.05, 1.02)  # floor and goal of the ratio
QUOTATIONS = ("etymology", "extracts")  # files of "Moby-Dick" that only quote other books


class Perplexity:
    """Perplexity after training divided by perplexity before, on the same passages.

    The trained model spreads its probability over the whole vocabulary, codes and all; the base
    over text.
    """

    def __init__(self, name: str, texts: Callable[[int, int], list[tuple[str, str]]]) -> None:
        self.name, self.texts = name, texts

    def run(self, bench: Bench) -> tuple[Row, Records]:
        """Both models on up to `PASSAGES` passages of `LENGTH` tokens (fewer for fewer samples)."""
        count = max(2, min(PASSAGES, bench.samples * PASSAGES // 200))
        encode = bench.engine.processor.encode_text
        texts = self.texts(count, bench.seed)
        rows = [(name, encode(text)[:LENGTH]) for name, text in texts]
        ids = [tokens for _, tokens in rows]
        text = bench.engine.processor.vocabulary.text_size
        with Progress(f"{self.name}: two models", 3) as bar:
            engine = bench.engine
            number = engine.adapter[1]
            after = log_likelihoods(engine.runner, ids, engine.blocks, adapter=number)
            bar.add(1)
            among = log_likelihoods(engine.runner, ids, engine.blocks, size=text, adapter=number)
            bar.add(1)
            base = TorchRunner(load_base(bench.folder), blocks=LENGTH // 16)
            before = log_likelihoods(base, ids)
            bar.add(1)
        ratio = perplexity(after) / perplexity(before)
        low, high = bootstrap_ratio(before, after, bench.seed)
        spelled = "\n".join(f"{name} {tokens}" for name, tokens in rows)
        passed, goal, level = bars(ratio, *LEVELS, lower=True, unit="ratio")
        row = Row(
            task=self.name, n=sum(len(x) for x in after), score=ratio, low=low, high=high,
            chance=None, frequent=None, by_kind=None, passed=passed, goal=goal, bar=level,
            data=hashlib.sha256(spelled.encode()).hexdigest()[:12], seconds=0.0,
            origin=bench.origin, unit="ratio",
            note=f"before {perplexity(before):.2f}, after {perplexity(after):.2f} "
            f"({perplexity(among):.2f} among text ids alone); n in tokens",
        )  # fmt: skip
        records = [
            {"id": name, "before": float(np.exp(-b.mean())), "after": float(np.exp(-a.mean()))}
            for (name, _), b, a in zip(rows, before, after, strict=True)
        ]
        return row, records


def passages(count: int, seed: int) -> list[tuple[str, str]]:
    """(name, text) of `count` held-out passages, half from each book, over 3,000 characters each.

    Raises ValueError naming the book that has too few.
    """
    found: list[tuple[str, str]] = []
    for package, half in zip(TEXTS, (count - count // 2, count // 2), strict=True):
        files = sorted((fetch(package) / "package" / "data").glob("*.json"))
        files = [path for path in files if path.stem not in QUOTATIONS and measured(path.stem)]
        chosen = sorted(files, key=lambda path: rank(seed, path.name))
        texts = ((path.stem, passage_text(path)) for path in chosen)
        long = [(name, text) for name, text in texts if len(text) > 3000]
        if len(long) < half:
            raise ValueError(f"{package}: {half} held-out passages wanted, {len(long)} there")
        found += long[:half]
    return found


def manual(count: int, seed: int) -> list[tuple[str, str]]:
    """(name, text) of topics of Python's own manual: English of a kind that training never holds.

    At most half of `count`. The text comes with the interpreter, so the row's hash of the data
    changes with its version.
    """
    from pydoc_data.topics import topics

    long = [(name, " ".join(text.split())) for name, text in topics.items() if len(text) > 3000]
    return sorted(long, key=lambda item: rank(seed, item[0]))[: max(2, count // 2)]


def stories(count: int, seed: int) -> list[tuple[str, str]]:
    """(title, text) of held-out picture books, plain words for children; at most `count`, none
    under 400 characters."""
    books = [pages for pages in storybooks.books() if split(pages[0]) == "test"]
    told = [
        (f"{pages[0].meta['story']} {pages[0].concept}", " ".join(page.text for page in pages))
        for pages in books
    ]
    long = [(name, text) for name, text in told if len(text) > 400]
    return sorted(long, key=lambda item: rank(seed, item[0]))[:count]


def passage_text(path: Path) -> str:
    """The text of one chapter or address; "" of the lists of files that lie beside them."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return str(content.get("text", "")) if isinstance(content, dict) else ""


class Capital:
    """One question that the base answers: the capital of France."""

    name = "capital"

    def run(self, bench: Bench) -> tuple[Row, Records]:
        """Greedy; right if the answer names Paris."""
        text = "What is the capital of France?"
        sample = Sample("capital/france", [{"role": "user", "content": text}], "Paris")
        (answer,) = bench.answers([sample.messages], 24, self.name)
        right = named(answer, ["Paris"]) is not None
        low, high = wilson(int(right), 1)
        row = Row(
            task=self.name, n=1, score=float(right), low=low, high=high, chance=None,
            frequent=None, by_kind=None, passed=right, bar="names Paris", data=data_hash([sample]),
            seconds=0.0, origin=bench.origin, note=f"{answer!r}",
        )  # fmt: skip
        return row, [{"id": sample.id, "answer": "Paris", "prediction": answer, "right": right}]
