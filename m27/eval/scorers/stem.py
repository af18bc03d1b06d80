"""Porter's stemmer (Porter 1980, "An algorithm for suffix stripping") with the extensions that nltk made usual.

Those are: words that the rules get wrong ("dying" is "die"), "ies" and "ied" of short words, words of two letters kept,
"y" kept behind a vowel, "fulli" and "logi" among the suffixes. English, lower case.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise

SCORER = "pypi.org/project/nltk==3.10.4"

IRREGULAR = {
    "skies": "sky", "sky": "sky", "dying": "die", "lying": "lie", "tying": "tie", "news": "news", "innings": "inning",
    "inning": "inning", "outings": "outing", "outing": "outing", "cannings": "canning", "canning": "canning",
    "howe": "howe", "proceed": "proceed", "exceed": "exceed", "succeed": "succeed",
}  # fmt: skip


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    """"ational>ate ness>" → (("ational", "ate"), ("ness", ""))."""
    return tuple((pair.split(">")[0], pair.split(">")[1]) for pair in text.split())


PLURALS = _pairs("sses>ss ies>i ss>ss s>")
MENDED = _pairs("at>ate bl>ble iz>ize")
LONG = _pairs(
    "ational>ate tional>tion enci>ence anci>ance izer>ize bli>ble alli>al entli>ent eli>e ousli>ous ization>ize "
    "ation>ate ator>ate alism>al iveness>ive fulness>ful ousness>ous aliti>al iviti>ive biliti>ble fulli>ful"
)
MIDDLE = _pairs("icate>ic ative> alize>al iciti>ic ical>ic ful> ness>")
LAST = _pairs(
    "al> ance> ence> er> ic> able> ible> ant> ement> ment> ent> ion> ou> ism> ate> iti> ous> ive> ize>"
)


def _consonants(word: str) -> list[bool]:
    """Whether each letter is a consonant; "y" is one at the start and behind a vowel."""
    out: list[bool] = []
    for letter in word:
        out.append(not out or not out[-1] if letter == "y" else letter not in "aeiou")
    return out


def measure(stem: str) -> int:
    """How often a run of vowels is followed by one of consonants: 0 of "tree", 1 of "trees", 2 of "private"."""
    marks = _consonants(stem)
    return sum(not a and b for a, b in pairwise(marks))


def _short(word: str) -> bool:
    """Whether it ends in consonant, vowel, consonant (not w, x or y), or is a vowel and a consonant."""
    marks = _consonants(word)
    if len(word) == 2:
        return marks == [False, True]
    return marks[-3:] == [True, False, True] and word[-1] not in "wxy"


def _double(word: str) -> bool:
    return len(word) > 1 and word[-1] == word[-2] and _consonants(word)[-1]


def _replaced(word: str, rules: Sequence[tuple[str, str]], holds: Callable[[str], bool]) -> str:
    """By the first rule whose suffix the word has, if the rest passes."""
    for suffix, other in rules:
        if word.endswith(suffix):
            stem = word[: len(word) - len(suffix)]
            return stem + other if holds(stem) else word
    return word


def _past(word: str) -> str:
    """Step 1b: "-eed", "-ed" and "-ing"."""
    if word.endswith("ied"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("eed"):
        return word[:-1] if measure(word[:-3]) else word
    cut = next((word[: -len(end)] for end in ("ed", "ing") if word.endswith(end)), "")
    if all(_consonants(cut)):
        return word
    if cut.endswith(("at", "bl", "iz")):
        return _replaced(cut, MENDED, lambda _: True)
    if _double(cut):
        return cut if cut[-1] in "lsz" else cut[:-1]
    return cut + "e" if measure(cut) == 1 and _short(cut) else cut


def _long(word: str) -> str:
    """Step 2: double suffixes."""
    if word.endswith("alli") and measure(word[:-4]):
        return _long(word[:-2])
    if word.endswith("logi") and not any(word.endswith(suffix) for suffix, _ in LONG):
        return word[:-1] if measure(word[:-3]) else word
    return _replaced(word, LONG, lambda stem: measure(stem) > 0)


def _last(word: str) -> str:
    """Step 4: a suffix behind two syllables; "-ion" only behind s or t."""
    if word.endswith("ion"):
        return word[:-3] if measure(word[:-3]) > 1 and word[-4] in "st" else word
    return _replaced(word, LAST, lambda stem: measure(stem) > 1)


@lru_cache(maxsize=100_000)
def stem(word: str) -> str:
    """The stem of a word of lower case: "running" → "run", "relational" → "relat"."""
    if word in IRREGULAR:
        return IRREGULAR[word]
    if len(word) <= 2:
        return word
    if word.endswith("ies") and len(word) == 4:
        word = word[:-1]
    else:
        word = _replaced(word, PLURALS, lambda _: True)
    word = _past(word)
    if word.endswith("y") and len(word) > 2 and _consonants(word)[-2]:
        word = word[:-1] + "i"
    word = _last(_replaced(_long(word), MIDDLE, lambda stem: measure(stem) > 0))
    if word.endswith("e") and (measure(word[:-1]) > 1 or (measure(word[:-1]) == 1 and not _short(word[:-1]))):
        word = word[:-1]
    return word[:-1] if word.endswith("ll") and measure(word[:-1]) > 1 else word
