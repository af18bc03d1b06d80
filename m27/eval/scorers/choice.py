"""Letters in replies: MMBench with its circular evaluation, MMStar, ScienceQA.

MMBench's rules are those without a language model ("exact matching"): a reply from which no option
can be read is wrong. Knows nothing of prompts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

MMBENCH_SCORER = "github.com/open-compass/VLMEvalKit@e8e78f05f3080fe28154f2130321f17951c3be94"
MMSTAR_SCORER = "github.com/MMStar-Benchmark/MMStar@88f243ab4a39cb339530085c33aecb22819881a1"
SCIENCEQA_SCORER = "github.com/lupantech/ScienceQA@2cbf8318e07b9ece895bb2ae605e71e38d623264"

FAILED = "Failed to obtain answer via API"  # what the official runner stores for a failed request
REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
NONE = "Z"  # the letter of "none of the options"
CYCLE = 1_000_000  # MMBench: the index of a rotation is its question's plus a multiple of this

_MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_VERBOSE = re.compile(r"answer\s+is\s+\**([ABCD])", re.IGNORECASE)
_SCIENCEQA = re.compile(r"The answer is ([A-Z]).")
_MMSTAR_LEADS = ("", "(", "option ", "the answer is ")


def mmbench_letter(reply: str, options: Mapping[str, str]) -> str | None:
    """The option that a reply names, `NONE` for a refusal, or None where the rules find nothing.

    One lone letter whose first place is among the last five words; else "answer is B"; else the
    only option whose text the reply holds, if the reply is at most twice as long as all options.
    """
    return _lettered(reply, options) or _worded(reply, options)


def _lettered(reply: str, options: Mapping[str, str]) -> str | None:
    if FAILED in reply:
        return None
    if any(refusal in reply for refusal in REFUSALS):
        return NONE
    words = reply.translate(_MARKS).split()
    named = [letter for letter in options if letter in words]
    if len(named) == 1 and words.index(named[0]) > len(words) - 5:
        return named[0]
    if not named and NONE in words:
        return NONE
    verbose = _VERBOSE.search(reply)
    letter = verbose.group(1).upper() if verbose else ""
    return letter if letter in options else None


def _worded(reply: str, options: Mapping[str, str]) -> str | None:
    folded = reply.lower()
    if len(folded) > 2 * sum(len(words) for words in options.values()):
        return None
    held = [letter for letter, words in options.items() if words.lower() in folded]
    return held[0] if len(held) == 1 else None


def circular(right: Mapping[int, bool]) -> dict[int, bool]:
    """Question → whether every rotation of its options was answered right (MMBench).

    `right` is by index; the rotations of question 7 are 7, 1,000,007, 2,000,007 … A question whose
    unrotated form is missing is left out.
    """
    every: dict[int, bool] = {}
    for index, hit in right.items():
        every[index % CYCLE] = every.get(index % CYCLE, True) and hit
    return {index: hit for index, hit in every.items() if index in right}


def mmstar_right(reply: str, answer: str) -> bool:
    """Whether a reply starts with the letter, bare or after "(", "option " or "the answer is ".

    Case and line ends are nothing. What follows the letter is not looked at: "Apple" is A.
    """
    text = reply.lower().strip().replace("\n", " ")
    letter = answer.lower().strip().replace("\n", " ")
    return len(letter) == 1 and any(text.startswith(lead + letter) for lead in _MMSTAR_LEADS)


def scienceqa_letter(reply: str) -> str | None:
    """The letter of "The answer is B." if the reply holds exactly one such, else None.

    The official program draws at random where this is None or is no option of the question.
    """
    found = _SCIENCEQA.findall(reply.strip())
    return found[0] if len(found) == 1 else None


def accuracy(hits: Iterable[bool]) -> float:
    """The share of right ones; 0 of none."""
    every: Sequence[bool] = list(hits)
    return sum(every) / len(every) if every else 0.0
