"""VQA accuracy (VQAv2, TextVQA): how many of ten people gave this answer, after normalisation.

An answer that three of the others gave is fully right. The two benchmarks normalise alike but for
the marks and possessives, which TextVQA's rule takes off first. Knows nothing of prompts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

VQAV2_SCORER = "github.com/GT-Vision-Lab/VQA@a013f0043c1e2cdc995922dfe257f7149aa9af06"
TEXTVQA_SCORER = "github.com/facebookresearch/mmf@b0ffc7fba39f210f833c127362146aec01a2f259"

MARKS = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = frozenset({"a", "an", "the"})
NUMBERS = {
    "none": "0",
    **{
        w: str(n)
        for n, w in enumerate("zero one two three four five six seven eight nine ten".split())
    },
}
AGREEING = 3  # people whose answer counts as fully right

_FULL_STOP = re.compile(r"\.(?!\d)")
_STOPS = 32  # the official call passes a flag where the count goes: no more stops than this are taken off
_INNER_COMMA = re.compile(r"\d,\d")
_INNER_COMMAS = re.compile(r"\d,+\d")

# Right spellings of words people write without the apostrophe, by what is lost.
_SPELLED = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's "
    "how'd how'll how's isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've "
    "o'clock oughtn't shan't should've shouldn't somebody'll somebody's someone'd someone'll "
    "someone's something'd something'll that's there'd there're there's they'd they'll they're "
    "they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's "
    "where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd "
    "you'll you're you've"
).split()
# Those with two apostrophes, either of which may be missing: "hed've" and "he'dve".
_DOUBLE = (
    "couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've "
    "someone'd've something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll "
    "you'd've"
).split()


def _contractions() -> dict[str, str]:
    table = {word.replace("'", ""): word for word in _SPELLED}
    for word in _DOUBLE:
        start, first, last = word.split("'")
        table[f"{start}{first}'{last}"] = table[f"{start}'{first}{last}"] = word
    for start in ("yall'd've", "y'alld've", "y'all'dve"):
        table[start] = "y'all'd've"
    for start in ("ow's'at", "'ows'at", "'ow'sat"):
        table[start] = "'ow's'at"
    table["somebody'd"] = "somebodyd"  # sic, in the official table
    return table


CONTRACTIONS = _contractions()


def unmarked(text: str, inner: re.Pattern[str] = _INNER_COMMA) -> str:
    """Without punctuation: a mark goes if it ever stands at a space (or a comma between digits
    matches `inner`), else a space takes its place; full stops go but before a digit."""
    out = text
    joined = inner.search(text) is not None
    for mark in MARKS:
        goes = joined or f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if goes else " ")
    return _FULL_STOP.sub("", out, count=_STOPS)


def worded(text: str) -> str:
    """Lower case, numbers to ten as digits, articles gone, apostrophes put back."""
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def agreement(answer: str, people: Sequence[str]) -> float:
    """The mean, leaving out each person in turn, of min(1, how many others say so / 3)."""
    same = sum(other == answer for other in people)
    scores = [min(1.0, (same - (other == answer)) / AGREEING) for other in people]
    return sum(scores) / len(scores)


def vqav2(reply: str, people: Sequence[str]) -> float:
    """VQAv2's accuracy of one reply, 0 to 1. Raises ValueError without people's answers.

    Where all people gave the very same answer, nothing is normalised.
    """
    if not people:
        raise ValueError("VQA accuracy needs people's answers, got none")
    reply, people = _one_line(reply), [_one_line(answer) for answer in people]
    if len(set(people)) > 1:
        reply, people = worded(unmarked(reply)), [worded(unmarked(one)) for one in people]
    return agreement(reply, people)


def textvqa_form(text: str) -> str:
    """An answer as TextVQA compares it."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return worded(unmarked(_one_line(text), _INNER_COMMAS))


def textvqa(reply: str, people: Sequence[str]) -> float:
    """TextVQA's accuracy of one reply, 0 to 1. Raises ValueError unless ten people answered."""
    if len(people) != 10:
        raise ValueError(f"TextVQA accuracy needs the answers of 10 people, got {len(people)}")
    return agreement(textvqa_form(reply), [textvqa_form(answer) for answer in people])
