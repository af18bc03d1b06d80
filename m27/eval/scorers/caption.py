"""BLEU-1 to -4 and ROUGE-L of captions as the COCO caption evaluation reckons them; its words.

CIDEr-D is `m27.eval.cider`, which takes `coco_words` as its splitter. `coco_words` follows the Penn
Treebank rules of the official tokenizer (a Java program) as far as captions need them. METEOR and
SPICE are Java programs with their own word lists, which `scorers.java` runs.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from m27.eval.scorers.distance import common

SCORER = "github.com/tylin/coco-caption@3a9afb2682141a03e1cdc02b0df6770d2c884f6f"

N = 4
BETA = 1.2  # ROUGE-L: how much more recall counts than precision
SMALL, TINY = 1e-9, 1e-15  # the official guards against a division by 0

_DROPPED = frozenset(".?!,:;'\"`‘’“”…") | {"''", "``", "..."}  # marks alone; "!!" stays, as there
_CLITIC = r"'(?:s|m|d|re|ve|ll)\b"
_SHORT = "mr|mrs|ms|dr|st|mt|vs|jr|sr|prof|gen|inc|co|ltd|etc|jan|feb|aug|sept|oct|nov|dec"
_WORD = re.compile(
    r"n't\b"  # left over once its verb has been cut off
    rf"|{_CLITIC}|'n'|'\d0s\b|'t(?=is\b|was\b)|y'(?=all\b)"
    r"|[\w.]+@[\w.]+\w|@\w+|<\w+>"  # addresses, names, tags
    r"|(?<![\w.])[-+]?\d*(?:[.,:/]\d+)+|(?<!\w)[-+]\d+"  # 1,000 and 3.5 and 10:30 and -5
    r"|\d+(?:[.,:/]\d+)+"
    r"|(?:[a-z]\.){2,}(?!\w)"  # u.s.
    rf"|\b(?:{_SHORT})\.(?!\w)"
    r"|[^\W_]+?(?=n't\b|'n')"
    rf"|[^\W_]+(?:[-&/'.][^\W_]+)*?(?={_CLITIC})"
    rf"|[^\W_]+(?:(?:[-_&/.]|'(?!(?:s|m|d|re|ve|ll)\b))[^\W_]+)*"
    r"|\.\.\.|[-–—]+|[!?]+|''|``|[^\w\s]|_+"
)
_SPLIT = {
    word: tuple(halves.split())
    for word, halves in {
        "cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na",
        "lemme": "lem me", "gimme": "gim me", "£": "#",
        "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-",
    }.items()
}  # fmt: skip


def coco_words(caption: str) -> list[str]:
    """The words of a caption, lower case, without punctuation: "A man's dog." → a man 's dog.

    Brackets become words (-lrb-), as the official list of punctuation has them in capitals and so
    misses them.
    """
    out: list[str] = []
    for word in _WORD.findall(caption.replace("’", "'").lower()):
        if word not in _DROPPED and word.strip("-–—"):
            out.extend(_SPLIT.get(word, (word,)))
    return out


def grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """How often each run of `n` words stands in `words`."""
    return Counter(tuple(words[at : at + n]) for at in range(len(words) - n + 1))


def bleu(
    candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> tuple[list[float], list[list[float]]]:
    """BLEU-1 to -4 of the corpus, and of each candidate alone, 0 to 1 (Papineni et al. 2002).

    Words are split already. The length compared with is that of the closest reference (the shorter
    of two as close); of a corpus of one candidate, the mean length of its references.
    Raises ValueError where the numbers differ or a candidate has no reference.
    """
    _check(candidates, references)
    right, said, length, wanted = [0] * N, [0] * N, 0, 0.0
    each = []
    for words, known in zip(candidates, references, strict=True):
        lengths = [len(reference) for reference in known]
        closest = float(min((abs(n - len(words)), n) for n in lengths)[1])
        if len(candidates) == 1:
            closest = sum(lengths) / len(lengths)
        hits, tries = [], []
        for n in range(1, N + 1):
            most: Counter[tuple[str, ...]] = Counter()
            for reference in known:
                most |= grams(reference, n)
            hits.append(sum((grams(words, n) & most).values()))
            tries.append(max(0, len(words) - n + 1))
        each.append(_bleus(hits, tries, len(words), closest))
        right = [a + b for a, b in zip(right, hits, strict=True)]
        said = [a + b for a, b in zip(said, tries, strict=True)]
        length, wanted = length + len(words), wanted + closest
    return _bleus(right, said, length, wanted), each


def _bleus(hits: Sequence[int], tries: Sequence[int], length: int, wanted: float) -> list[float]:
    ratio = (length + TINY) / (wanted + SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, out = 1.0, []
    for n, (hit, tried) in enumerate(zip(hits, tries, strict=True), 1):
        product *= (hit + TINY) / (tried + SMALL)
        out.append(product ** (1 / n) * brevity)
    return out


def rouge_l(candidate: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """ROUGE-L of one candidate, 0 to 1 (Lin 2004): best precision and best recall over the
    references, which need not be of one reference. Raises ValueError without references."""
    _check([candidate], [references])
    # The official program splits an empty text into one empty word.
    words = list(candidate) or [""]
    known = [list(reference) or [""] for reference in references]
    runs = [common(reference, words) for reference in known]
    precision = max(run / len(words) for run in runs)
    recall = max(run / len(reference) for run, reference in zip(runs, known, strict=True))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _check(candidates: Sequence[object], references: Sequence[Sequence[object]]) -> None:
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} candidates, but references of {len(references)}")
    for place, known in enumerate(references):
        if not known:
            raise ValueError(f"candidate {place} has no reference")
