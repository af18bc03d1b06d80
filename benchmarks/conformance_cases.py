"""Made-up answers of every form that scorers must read, the same on every machine.

Replies name a letter in all ways, or an option's text, or nothing, or refuse; open answers carry
numbers in all spellings; captions, boxes and transcripts likewise. Knows no scorer.
"""

from __future__ import annotations

import random
import string

NOUNS = "cat dog red bus tree boat lamp river street man woman ball cake clock bench".split()
FILL = (
    "the picture shows it clearly so we choose because thus that is final and of result see here "
    "a an no not yes could be answer"
).split()
MARKS = [*",.!?;:'", "...", ".,", "!.", "'.", " ", "\n", ""]
SHAPES = (
    "{0}", "({0})", "{0}.", "({0}).", "**{0}**", "{0})", "[{0}]", "{0}:", "Option {0}", "option {0}",
    "Answer: {0}", "Answer: ({0}) or ({1})", "The answer is {0}.", "the correct answer is **{0}**",
    "({0}) is wrong, so ({1})", "{0} and {1}", "It is {0} , not {1} .", "Answer is {0}",
    "The answer is {0}. The answer is {1}.", "{2}", "I think that it must be {2}",
    "one of them is {2} and the other one is {3}", "{2} ({0})", "A {2}", "", " ", "Z", "none",
    "I can't process this file.", "Failed to obtain answer via API", "Answer:", "x{0}y", "{0}\n{1}",
    "({4})", "{4}", "Answer: because {0}{1}", "The answer is {4}.", "Cannot determine the answer",
)  # fmt: skip
OPEN = (
    "{0}", "the answer is {0}", "x = {0}", "{1}\nso {0}", "it is {1}. Thus {0} {2}", "{2}{0}", "is ",
    "final answer {1}\n= {0}", "{0} or {1}", "result {2} ", "could be {1} so \n{0}.", "answer .", "{1}",
    "is is so {0}", "=", "a=b={0}", "The result is: {0}\n\n", "therefore ,", "{0}{2}{1}", "",
)  # fmt: skip
NUMERALS = (
    "12", "-3", "3.14159", "1,234", "12,345.678", "1e5", "-2.5E-3", "0.5", ".5", "7.", "$4.00",
    "50%", "1,23", "2.005", "nan", "inf", "1_000", "10:30", "3/4", "x2", "1e400", "٣", "−5", "2.",
    "1.0", "12.", "0", "-0.001", "100,000,000", "2.999", "[1, 2]", "1.5.2", "5 apples", "",
)  # fmt: skip


def options(rng: random.Random, most: int = 10) -> dict[str, str]:
    """Letters to texts: words, phrases, numbers, now and then the same or contained in another."""
    texts = [
        rng.choice(
            [rng.choice(NOUNS), " ".join(rng.choices(NOUNS, k=3)), rng.choice(NUMERALS[:13])]
        )
        for _ in range(rng.randint(2, most))
    ]
    return {
        letter: text.title() if rng.random() < 0.3 else text
        for letter, text in zip(string.ascii_uppercase, texts, strict=False)
    }


def _around(rng: random.Random, text: str) -> str:
    """The text among other words and marks, most often as a word of its own."""
    before, after = (" ".join(rng.choices(FILL, k=rng.choice([0, 0, 1, 3, 9]))) for _ in "ab")
    marks = [rng.choice(MARKS) if rng.random() < 0.4 else "" for _ in range(3)]
    text = f"{before}{rng.choice([' ', ' ', ' ', '. ', ''])}{text}{marks[0]} {after}"
    return marks[1] + text + marks[2]


def chosen(rng: random.Random, known: dict[str, str]) -> str:
    """A reply to a question with the options `known`."""
    letters = list(known)
    a, b = rng.choice(letters), rng.choice(letters)
    shape = rng.choice(SHAPES).format(a, b, known[a], known[b], rng.choice(string.ascii_letters))
    return shape if rng.random() < 0.3 else _around(rng, shape)


def opened(rng: random.Random) -> tuple[str, str | list[str]]:
    """A reply to an open question, and the gold answer or answers."""

    def thing() -> str:
        return rng.choice([*NUMERALS, *NOUNS, rng.choice(string.ascii_letters)])

    a, b = thing(), thing()
    reply = rng.choice(OPEN).format(a, b, rng.choice(MARKS))
    reply = reply if rng.random() < 0.5 else _around(rng, reply)
    gold = rng.choice([a, a.upper(), b, thing()]) or "0"
    return reply, gold if rng.random() < 0.7 else [gold, thing() or "0"]


def short(rng: random.Random) -> str:
    """A short answer as people type it, with marks, articles, numbers and lost apostrophes."""
    bits = [
        *NOUNS[:6], "a", "an", "the", "two", "none", "ten", "dont", "can't", "hed've", "id've", "Im",
        "yall'dve", "let's", "1,000", "3.5", "u.s.", "re-do", "a/b", "(x)", "what's", "somebody'd",
        "end.", "no,", "?", "man's", "1,,2", "\ttab", "line\nend", "'twas", "twas", "ow's'at", "...",
        "é", "_", ". ", "." * 40,
    ]  # fmt: skip
    return rng.choice([" ", " ", "  ", ""]).join(
        rng.choices(bits, k=rng.choice([1, 1, 1, 2, 3, 5]))
    )


def yes_no(rng: random.Random) -> str:
    """A reply to a yes-or-no question."""
    bits = [
        "Yes",
        "No",
        "yes",
        "no",
        "not",
        "No,",
        "no.",
        "There",
        "is",
        "NO",
        "know",
        "is not",
        ".",
        "",
        "nothing",
        "yes.",
    ]
    return rng.choice([" ", ", ", ". ", "\n"]).join(rng.choices(bits, k=rng.randint(1, 6)))


def caption(rng: random.Random, most: int = 12) -> str:
    """A caption already split into words by single spaces; now and then one word, or the words of
    another over again."""
    return " ".join(rng.choices([*NOUNS, *FILL[:9], "1", "'s"], k=rng.randint(1, most)))


def spoken(rng: random.Random) -> str:
    """A transcript with numbers in words and figures, titles, contractions, marks and money."""
    bits = (
        "one two three five six eight nine ten twelve nineteen twenty thirty ninety hundred thousand "
        "million billion zero oh o first second third fifth twelfth twentieth sixes tens twenties "
        "hundreds thousandth millions and point double triple minus negative plus dollars cents euros "
        "pound per cent percent mr mrs st. dr. can't won't it's he'd they've i'm she'd been y'all "
        "gonna wanna uh mm hmm [noise] (laughs) <tag> 3 1 0 21 1,000 3.5 0.25 $20 £3.50 ¢7 $1 -4 50% "
        "1960s 2nd 32nd 10th b2b caf\u00e9 na\u00efve stra\u00dfe \u0153uvre colour theatre grey realise . , ! ? - — & "
        "the cat sat half a and\u00a0a 1.2.3 10:30 $0.07 ones sixty-four Twenty-First ' 's 'tis x' 7. "
    ).split(" ")  # fmt: skip
    words = rng.choices(bits, k=rng.randint(1, 12))
    if rng.random() < 0.15:
        words.insert(rng.randrange(len(words) + 1), "and a half")
    return " ".join(words)
