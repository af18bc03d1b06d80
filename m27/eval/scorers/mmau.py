"""MMAU: whether a reply names the right choice, by the words that it holds.

Every word of the answer must stand in the reply, and no word that only a wrong choice has. A reply that repeats the
choice's letter is therefore wrong where another choice holds the word "a". Knows nothing of prompts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

SCORER = "github.com/Sakshi113/MMAU@110127f54c0dfba3faa5ec9feee4a7e4148679c5"

_WORD = re.compile(r"\b\w+\b")


def words(text: str) -> set[str]:
    """The words of a text, in lower case."""
    return set(_WORD.findall(text.lower()))


def right(answer: str, reply: str, choices: Iterable[str]) -> bool:
    """Whether the reply holds all words of the answer and none that wrong choices have besides those."""
    said, wanted = words(reply), words(answer)
    others = set().union(*(words(choice) for choice in choices)) - wanted
    return bool(said) and wanted <= said and not said & others
