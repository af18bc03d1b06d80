"""The words of a transcript for comparing: Whisper's English normaliser, and its basic one.

Numbers become digits, contractions are written out, titles spelt, hesitations, brackets, accents
and marks dropped. British spellings become American ones by a table that OpenAI's package carries
and this one does not: give it as `spellings` (the `english.json` of an installed `openai-whisper`)
and say beside the score whether it was given. What numbers are is in `spoken_numbers`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from m27.eval.scorers.spoken_numbers import digits

SCORER = "github.com/openai/whisper@c0d2f624c09dc18e709e37c2ad90c039a4eb72a2"

# Letters that Unicode does not take apart into a letter and an accent.
_LETTERS = {
    **dict(zip("œŒæÆßẞ", ("oe", "OE", "ae", "AE", "ss", "SS"), strict=True)),
    **dict(zip("øØđĐðÐłŁ", "oOdDdDlL", strict=True)),
    **dict.fromkeys("þÞ", "th"),
}
_KEPT = frozenset(".%$¢€£")

_BRACKETS = re.compile(r"[<\[][^>\]]*[>\]]")
_PARENTHESES = re.compile(r"\(([^)]+?)\)")
_HESITATIONS = re.compile(r"\b(hmm|mm|mhm|mmm|uh|um)\b")

_WHOLE = {
    "won't": "will not",
    "can't": "can not",
    "let's": "let us",
    "ain't": "aint",
    "y'all": "you all",
    "wanna": "want to",
    "gotta": "got to",
    "gonna": "going to",
    "i'ma": "i am going to",
    "imma": "i am going to",
    "woulda": "would have",
    "coulda": "could have",
    "shoulda": "should have",
    "ma'am": "madam",
}
_TITLES = (
    "mr mister mrs missus st saint dr doctor prof professor capt captain gov governor ald alderman "
    "gen general sen senator rep representative pres president rev reverend hon honorable "
    "asst assistant assoc associate lt lieutenant col colonel jr junior sr senior esq esquire"
).split()
_PERFECT = ("'d been", "'s been", "'d gone", "'s gone", "'d done", "'s got")
_ENDINGS = {
    "n't": "not",
    "'re": "are",
    "'s": "is",
    "'d": "would",
    "'ll": "will",
    "'t": "not",
    "'ve": "have",
    "'m": "am",
}
_REPLACED = [
    *((re.compile(rf"\b{word}\b"), full) for word, full in _WHOLE.items()),
    *(
        (re.compile(rf"\b{short}\b"), f"{full} ")
        for short, full in zip(_TITLES[::2], _TITLES[1::2], strict=True)
    ),
    *(
        (re.compile(rf"{end}\b"), f" {'had' if end[1] == 'd' else 'has'}{end[2:]}")
        for end in _PERFECT
    ),
    *((re.compile(rf"{end}\b"), f" {full}") for end, full in _ENDINGS.items()),
]


def unmarked(text: str, accents: bool = True, kept: frozenset[str] = frozenset()) -> str:
    """Marks, symbols and punctuation to spaces, but those `kept`; accents off unless `accents`."""
    out = []
    for sign in unicodedata.normalize("NFKC" if accents else "NFKD", text):
        kind = unicodedata.category(sign)
        if sign in kept:
            out.append(sign)
        elif not accents and sign in _LETTERS:
            out.append(_LETTERS[sign])
        elif not accents and kind == "Mn":
            continue
        else:
            out.append(" " if kind[0] in "MSP" else sign)
    return "".join(out)


def _unbracketed(text: str) -> str:
    return _PARENTHESES.sub("", _BRACKETS.sub("", text.lower()))


def basic(text: str) -> str:
    """For any language: lower case, no brackets, marks and symbols to spaces; accents stay.

    As in the original a space may stay at either end.
    """
    return re.sub(r"\s+", " ", unmarked(_unbracketed(text)).lower())


def english(text: str, spellings: Mapping[str, str] | None = None) -> str:
    """For English; see the module. As in the original a space may stay at either end.

    >>> english("Mr. Smith can't pay twenty-one dollars!")
    'mister smith can not pay $21'
    """
    text = _HESITATIONS.sub("", _unbracketed(text))
    text = re.sub(r"\s+'", "'", text)
    for pattern, full in _REPLACED:
        text = pattern.sub(full, text)
    text = re.sub(r"(\d),(\d)", r"\1\2", text)
    text = re.sub(r"\.([^0-9]|$)", r" \1", text)
    text = digits(unmarked(text, accents=False, kept=_KEPT))
    known = spellings or {}
    text = " ".join(known.get(word, word) for word in text.split())
    text = re.sub(r"[.$¢€£]([^0-9])", r" \1", text)
    text = re.sub(r"([^0-9])%", r"\1 ", text)
    return re.sub(r"\s+", " ", text)
