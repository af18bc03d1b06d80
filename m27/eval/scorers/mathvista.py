"""MathVista: the answer in a reply where rules can find it, its normal form, and equality.

The official program asks a language model to extract the answer from most replies. `extract` does
what it does without one, and says None where it would ask; who then takes another way (a judge, a
rule of their own) must say so beside the score. Knows nothing of prompts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from m27.eval.scorers.distance import edits

SCORER = "github.com/lupantech/MathVista@53d525874bdde205128e6b160b7357a88277d479"

_BRACKETED = re.compile(r"\(([a-zA-Z])\)")
_QUOTED = re.compile(r'The answer is "(.*)"\.')


def extract(
    reply: str,
    question_type: str,
    answer_type: str,
    choices: Sequence[str] | None = None,
    quick: bool = False,
) -> str | None:
    """The answer, as far as no language model is needed; None where the official program asks one.

    An empty reply, a choice word for word, a whole number or a decimal number are taken as they
    are; with `quick` also what stands in `The answer is "…".`
    """
    if reply == "":
        return ""
    if question_type == "multi_choice" and reply in (choices or ()):
        return reply
    kind = {"integer": int, "float": float}.get(answer_type)
    if kind is not None:
        try:
            return str(kind(reply))
        except ValueError:
            pass
    quoted = _QUOTED.search(reply) if quick else None
    return quoted.group(1) if quoted else None


def normalised(
    extraction: Any,
    question_type: str,
    answer_type: str,
    choices: Sequence[str] | None = None,
    precision: float | None = None,
    ignore_empty: bool = False,
) -> str | None:
    """The extraction in the form that answers are written in, or None where it has none.

    Multiple choice: "(b)" anywhere or a lone "B" is the second choice, anything else the choice
    nearest in edit distance. Otherwise a whole number (cut, not rounded), a number rounded to
    `precision` places, or the text of a list. Raises ValueError for another answer type, and for
    multiple choice without choices.
    """
    if question_type == "multi_choice":
        return _nearest(str(extraction).strip(), choices or (), ignore_empty)
    try:
        match answer_type:
            case "integer":
                return str(int(float(extraction)))
            case "float":
                return str(round(float(extraction), int(precision)))  # type: ignore[arg-type]
            case "list":
                return str(extraction)
    except (TypeError, ValueError, OverflowError):
        return None
    raise ValueError(f"answer_type must be integer, float or list, not {answer_type!r}")


def _nearest(text: str, choices: Sequence[str], ignore_empty: bool) -> str | None:
    if ignore_empty and not text:
        return None
    if not choices:
        raise ValueError("a multiple-choice question needs choices, got none")
    bracketed = _BRACKETED.search(text)
    if bracketed:
        text = bracketed.group(1).upper()
    place = ord(text) - ord("A") if len(text) == 1 else -1
    if 0 <= place < len(choices):
        return choices[place]
    return min(choices, key=lambda one: edits(text, one))


def right(prediction: str | None, answer: Any) -> bool:
    """Exact equality with the answer as it is written; no tolerance."""
    return bool(prediction == answer)
