"""Numbers in words → digits, by the rules of Whisper's English normaliser.

"twenty-one dollars" → "$21", "one oh one" → "101", "two and a half million" → "2500000". Numbers
are read word by word: `_Reader` holds the number begun, and lets it out when a word does not go on
with it. Knows no other part of the normaliser.
"""

from __future__ import annotations

import re
from fractions import Fraction

ZEROS = frozenset({"o", "oh", "zero"})
_UNITS = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
ONES = {word: n for n, word in enumerate(_UNITS, 1)}
TENS = {
    word: 10 * n
    for n, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)
}
POWERS = {"hundred": 100} | {
    word: 1000**n
    for n, word in enumerate(
        "thousand million billion trillion quadrillion quintillion sextillion septillion octillion "
        "nonillion decillion".split(),
        1,
    )
}
_ODD_ORDINALS = {"one": "first", "two": "second", "three": "third", "five": "fifth"} | {
    "twelve": "twelfth"
}
_ENDINGS = {1: "st", 2: "nd", 3: "rd"}

# Words that end a number, with their value and what is written after the digits.
ENDED_ONES: dict[str, tuple[int, str]] = {"zeroth": (0, "th")}
for _word, _n in ONES.items():
    ENDED_ONES["sixes" if _word == "six" else f"{_word}s"] = (_n, "s")
    _ordinal = _ODD_ORDINALS.get(_word) or _word + ("h" if _word.endswith("t") else "th")
    ENDED_ONES[_ordinal] = (_n, _ENDINGS.get(_n, "th"))
ENDED_TENS = {word.replace("y", "ies"): (n, "s") for word, n in TENS.items()} | {
    word.replace("y", "ieth"): (n, "th") for word, n in TENS.items()
}
ENDED_POWERS = {f"{word}s": (n, "s") for word, n in POWERS.items()} | {
    f"{word}th": (n, "th") for word, n in POWERS.items()
}
SIGNS = {"minus": "-", "negative": "-", "plus": "+", "positive": "+"}
MONEY = {
    f"{word}{s}": sign
    for word, sign in zip(("pound", "euro", "dollar", "cent"), "£€$¢", strict=True)
    for s in ("", "s")
}
SPECIAL = frozenset({"and", "double", "triple", "point"})
WORDS = frozenset().union(
    ZEROS, ONES, ENDED_ONES, TENS, ENDED_TENS, POWERS, ENDED_POWERS, SIGNS, MONEY,
    {"per", "percent"}, SPECIAL,
)  # fmt: skip
_SINGLE = ZEROS | ONES.keys() | TENS.keys()
_PREFIXES = frozenset("-+£€$¢")
_NUMERAL = re.compile(r"\d+(\.\d+)?")


def digits(text: str) -> str:
    """The text with its numbers in digits, words joined by one space; "1" is written "one"."""
    text = _halves(text)
    text = re.sub(r"([a-z])([0-9])", r"\1 \2", text)
    text = re.sub(r"([0-9])([a-z])", r"\1 \2", text)
    text = re.sub(r"([0-9])\s+(st|nd|rd|th|s)\b", r"\1\2", text)
    text = " ".join(_Reader(text.split()).read())
    text = re.sub(
        r"([€£$])([0-9]+) (?:and )?¢([0-9]{1,2})\b", lambda m: f"{m[1]}{m[2]}.{int(m[3]):02d}", text
    )
    text = re.sub(r"[€£$]0.([0-9]{1,2})\b", lambda m: f"¢{int(m[1])}", text)
    return re.sub(r"\b1(s?)\b", r"one\1", text)


def _halves(text: str) -> str:
    """ "three and a half" → "three point five"; elsewhere the phrase stays."""
    parts = re.split(r"\band\s+a\s+half\b", text)
    out = []
    for place, part in enumerate(parts):
        if not part.strip():
            continue  # as in the original, the phrase itself goes where nothing stands before it
        out.append(part)
        if place < len(parts) - 1:
            last = part.split()[-1]
            out.append("point five" if last in _SINGLE or last in POWERS else "and a half")
    return " ".join(out)


def _numeral(word: str | None) -> bool:
    return word is not None and _NUMERAL.fullmatch(word) is not None


def _times(value: int | str, power: int) -> int | None:
    """`value` in whole powers, or None if that is no whole number."""
    try:
        product = Fraction(value) * power
    except ValueError:
        return None
    return product.numerator if product.denominator == 1 else None


class _Reader:
    """Reads words in order; `value` is the number begun: an int while it can be added to, a str
    once digits are only strung together."""

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.out: list[str] = []
        self.value: int | str | None = None
        self.prefix = ""

    def read(self) -> list[str]:
        place = 0
        while place < len(self.words):
            before = self.words[place - 1] if place else None
            after = self.words[place + 1] if place + 1 < len(self.words) else None
            place += 2 if self.word(self.words[place], before, after) else 1
        self.flush()
        return self.out

    def put(self, text: object) -> None:
        """Let out a word or number, with the prefix that waits; nothing is begun then."""
        self.out.append(f"{self.prefix}{text}")
        self.value, self.prefix = None, ""

    def flush(self) -> None:
        if self.value is not None:
            self.put(self.value)

    def word(self, word: str, before: str | None, after: str | None) -> bool:
        """Take in one word; true if it took in the next one, too."""
        bare = word[1:] if word[0] in _PREFIXES else word
        if _numeral(bare):
            self.numeral(word, bare)
        elif word not in WORDS:
            self.flush()
            self.put(word)
        elif word in ZEROS:
            self.value = f"{self.value or ''}0"
        elif word in ONES:
            self.value = self.joined(ONES[word], before)
        elif word in ENDED_ONES:
            n, end = ENDED_ONES[word]
            self.put(f"{self.joined(n, before)}{end}")
        elif word in TENS:
            self.value = self.joined(TENS[word], None)
        elif word in ENDED_TENS:
            n, end = ENDED_TENS[word]
            self.put(f"{self.joined(n, None)}{end}")
        elif word in POWERS:
            self.value = self.raised(POWERS[word])
        elif word in ENDED_POWERS:
            n, end = ENDED_POWERS[word]
            self.put(f"{self.raised(n, ended=True)}{end}")
        elif word in SIGNS:
            self.flush()
            if after in WORDS or _numeral(after):
                self.prefix = SIGNS[word]
            else:
                self.put(word)
        elif word in MONEY:
            if self.value is None:
                self.put(word)
            else:
                self.prefix = MONEY[word]
                self.flush()
        elif word in ("per", "percent"):
            return self.percent(word, after)
        else:
            return self.special(word, before, after)
        return False

    def numeral(self, word: str, bare: str) -> None:
        if isinstance(self.value, str) and self.value.endswith("."):
            self.value += word  # after "point", or parts of an address
            return
        self.flush()
        if word != bare:
            self.prefix = word[0]
        whole = Fraction(bare)
        self.value = whole.numerator if whole.denominator == 1 else bare

    def joined(self, n: int, before: str | None) -> int | str:
        """The number begun with 1 … 19 or a ten behind it: added where there is room, else strung
        on. `before` is the word before, where that decides."""
        value = self.value
        if value is None:
            return n
        if isinstance(value, str) or before in ONES:
            if before in TENS and n < 10:
                return f"{str(value)[:-1]}{n}"
            return f"{value}{n}"
        room = 10 if n < 10 else 100
        return value + n if value % room == 0 else f"{value}{n}"

    def raised(self, power: int, ended: bool = False) -> int:
        """The number begun times a hundred, thousand …; the power alone where that is not whole."""
        value = self.value
        if value is None:
            return power
        if isinstance(value, str) or (value == 0 and not ended):
            product = _times(value, power)
            if product is not None:
                return product
            self.flush()
            return power
        return value // 1000 * 1000 + value % 1000 * power

    def percent(self, word: str, after: str | None) -> bool:
        if self.value is None:
            self.put(word)
        elif word == "percent" or after == "cent":
            self.put(f"{self.value}%")
            return word == "per"
        else:
            self.flush()
            self.put(word)
        return False

    def special(self, word: str, before: str | None, after: str | None) -> bool:
        if after not in WORDS and not _numeral(after):
            self.flush()
            self.put(word)
        elif word == "and":
            if before not in POWERS:  # "two hundred and one" is one number
                self.flush()
                self.put(word)
        elif word == "point":
            if after in _SINGLE or _numeral(after):
                self.value = f"{self.value or ''}."
        elif after in ONES or after in ZEROS:  # double, triple
            self.value = (
                f"{self.value or ''}{str(ONES.get(after, 0)) * (2 if word == 'double' else 3)}"
            )
            return True
        else:
            self.flush()
            self.put(word)
        return False
