"""MMMU and MMMU-Pro: the letter or the open answer in a free reply, and whether it is right.

A reply that names no option gets a random one by the official rule, from one generator whose state
depends on every reply before. Here `choice` says None for it, and `guess` draws by the question's
id, so a score does not depend on the order; count such samples apart. `official_guesser` draws as
the official program does, for whoever scores its samples in its order. Knows nothing of prompts.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Mapping, Sequence

SCORER = "github.com/MMMU-Benchmark/MMMU@bb0b95a945998d91dfef37e969e07d49d1139438"

Answer = float | str
Guesser = Callable[[Sequence[str]], str]

EDGE_MARKS = ",.!?;:'"  # taken off both ends, in this order, each once
LONG_REPLY = 5  # words above which the text of an option is looked for
LEADS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
LONE_MARKS = frozenset(":,.!?;'")

_WITH_COMMAS = re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b")
_EXPONENT = re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+")
_PLAIN = re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])")


def guess(name: str, letters: Sequence[str], seed: int = 42) -> str:
    """A letter that depends on the question's id and the seed alone, each equally likely."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return letters[int.from_bytes(digest[:8], "big") % len(letters)]


def official_guesser() -> Guesser:
    """The official generator at its start; right only for all samples in the official order."""
    return random.Random(42).choice


def choice(reply: str, options: Mapping[str, str]) -> str | None:
    """The letter that a reply names, or None; `options` maps letters to texts, in order.

    First "(A)" is looked for, then a lone "A", then, in replies of over five words, the option's
    text in any case. Of several found the one that stands last wins.
    """
    text = _bare(reply)
    for form in ("({})", " {} "):
        found = [letter for letter in options if form.format(letter) in text]
        if found:
            return _last(text, {letter: form.format(letter) for letter in found})
    return _by_text(text, options)


def pro_choice(reply: str, options: Mapping[str, str]) -> str | None:
    """MMMU-Pro's rule: what follows the last "Answer:" decides if it holds exactly one letter.

    Otherwise "(A)" is looked for, then "A " and then "A.", both also at the end of a word, then the
    texts as in `choice`. Of several "A " or "A." that counts as last which stands between spaces
    last, and if none does, the first option.
    """
    _, marked, after = reply.rpartition("Answer:")
    if marked:
        named = [letter for letter in options if letter in after.strip()]
        if len(named) == 1:
            return named[0]
    text = _bare(reply)
    for form, placed in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        found = [letter for letter in options if form.format(letter) in text]
        if found:
            return _last(text, {letter: placed.format(letter) for letter in found})
    return _by_text(text, options)


def _bare(reply: str) -> str:
    for mark in EDGE_MARKS:
        reply = reply.strip(mark)
    return f" {reply} "


def _by_text(text: str, options: Mapping[str, str]) -> str | None:
    if len(text.split()) <= LONG_REPLY:
        return None
    folded = text.lower()
    lower = {letter: words.lower() for letter, words in options.items()}
    found = {letter: words for letter, words in lower.items() if words in folded}
    return _last(folded, found) if found else None


def _last(text: str, spelled: Mapping[str, str]) -> str:
    """The letter whose spelling stands last in `text`; the first of equals."""
    return max(spelled, key=lambda letter: text.rfind(spelled[letter]))


def right_choice(letter: str, gold: str | Sequence[str]) -> bool:
    """Whether the letter is the right one, or one of the right ones."""
    return letter == gold if isinstance(gold, str) else letter in gold


def numbers(text: str) -> list[str]:
    """Every number in `text`: with thousands' commas, then with exponents, then plain ones."""
    return [m for form in (_WITH_COMMAS, _EXPONENT, _PLAIN) for m in form.findall(text)]


def normalised(text: str) -> list[Answer]:
    """What an open answer is compared as: a number of two places, or lower case.

    A single character becomes two strings with a space at one side, so that it matches as a word.
    """
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def open_answers(reply: str) -> list[Answer]:
    """All that a reply to an open question may mean: its key phrases and the numbers in them.

    The key phrase of a line is its shortest end after "is", "so", "answer" and the like ("=" too,
    in the last line). A reply without any is taken whole.
    """
    reply = reply.strip().strip(".").lower()
    lines = reply.split("\n")
    phrases = []
    for number, line in enumerate(lines, 1):
        shortest = ""
        for lead in LEADS if number < len(lines) else (*LEADS, "="):
            if lead in line:
                end = line.rpartition(lead)[2].strip()
                if not shortest or len(end) < len(shortest):
                    shortest = end
        if shortest and shortest not in LONE_MARKS:
            phrases.append(shortest)
    phrases = phrases or [reply]
    every = phrases + [number for phrase in phrases for number in numbers(phrase)]
    return list(dict.fromkeys(answer for one in every for answer in normalised(one)))


def right_open(answers: Sequence[Answer], gold: str | Sequence[str]) -> bool:
    """Whether one of `answers` (of `open_answers`) equals a gold number or holds a gold text."""
    golds = [gold] if isinstance(gold, str) else gold
    wanted = [form for one in golds for form in normalised(one)]
    words = [form for form in wanted if isinstance(form, str)]
    return any(
        any(word in answer for word in words) if isinstance(answer, str) else answer in wanted
        for answer in answers
    )
