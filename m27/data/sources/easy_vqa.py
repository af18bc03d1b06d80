"""easy-VQA: 5,000 pictures of one coloured shape with 48,248 questions. Test side held out.

Victor Zhou: "easy-VQA" (2019), PyPI package easy-vqa.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from m27.data import messages as say
from m27.data import registry
from m27.data.prompts import ask
from m27.data.sources.base import (
    Document,
    Item,
    Side,
    SourceError,
    of_split,
    with_article,
)

NAME = "easy_vqa"
LICENCE = "MIT"
ORIGIN = "PyPI easy-vqa 1.0"
SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")


def items() -> Iterator[Item]:
    """Every picture; text is "blue rectangle", `meta["questions"]` its (question, answer) pairs.

    A colour or shape that no question of a picture reveals is left out of its text.
    """
    folder = registry.fetch("easy-vqa") / "easy_vqa" / "data"
    for side in ("train", "test"):
        questions: dict[int, list[tuple[str, str]]] = {}
        for question, answer, number in _read(folder / side / "questions.json"):
            questions.setdefault(number, []).append((question, answer))
        for number, pairs in sorted(questions.items()):
            text = " ".join(word for word in (_colour(pairs), _shape(pairs)) if word)
            image = (folder / side / "images" / f"{number}.png").read_bytes()
            meta = {"split": side, "questions": pairs}
            yield Item(f"{NAME}/{side}/{number:05d}", text, text, image, meta=meta)


def _read(path: Any) -> list[tuple[str, str, int]]:
    try:
        return [
            (question, answer, number) for question, answer, number in json.loads(path.read_text())
        ]
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: {error}") from error


def _colour(pairs: list[tuple[str, str]]) -> str:
    return _told(pairs, COLOURS)


def _shape(pairs: list[tuple[str, str]]) -> str:
    return _told(pairs, SHAPES)


def _told(pairs: list[tuple[str, str]], words: tuple[str, ...]) -> str:
    """The one of `words` that the questions tell: as an answer, or by "is there a red …" → yes."""
    for question, answer in pairs:
        if answer in words:
            return answer
        named = [word for word in words if word in question.split() or f"{word}?" in question]
        if len(named) == 1:
            if question.startswith("what") and " the " in question:
                return named[0]
            if answer == ("no" if " not " in question else "yes"):
                return named[0]
    return ""


def documents(split: Side, seed: int) -> Iterator[Document]:
    """vqa and draw.

    Train: a picture with up to four of its questions in turn (a picture costs more tokens than
    they do), then once more with others; every fourth picture also to draw.
    Test: one document a question.
    """
    for number, item in enumerate(say.shuffled(of_split(items(), split), seed)):
        shown = say.picture(item)
        pairs: list[tuple[str, str]] = item.meta["questions"]
        if split == "test":
            for index, (question, answer) in enumerate(pairs):
                asked = [shown, say.words(ask("vqa", None, text=question))]
                one = say.turn(asked, [say.words(answer)])
                yield say.document(f"{item.key}/{index}", "vqa", NAME, one)
        else:
            draw = random.Random(f"{seed}:{item.key}")
            for index in range(2):
                chosen = _choose(pairs, draw)
                pairs = [pair for pair in pairs if pair not in chosen]
                messages: list[say.Message] = []
                for question, answer in chosen:
                    asked = [say.words(ask("vqa", None, text=question))]
                    first = [] if messages else [shown]
                    messages += say.turn([*first, *asked], [say.words(answer)])
                if messages:
                    yield say.document(f"{item.key}/{index}", "vqa", NAME, messages)
        if number % 4 == 0 and " " in item.text:
            rng = say.phrasing(split, seed, item.key)
            wish = say.words(ask("draw", rng, text=with_article(item.text)))
            yield say.document(item.key, "draw", NAME, say.turn([wish], [shown]))


def _choose(pairs: list[tuple[str, str]], rng: random.Random) -> list[tuple[str, str]]:
    """At most two open questions, one with yes and one with no for an answer, in random order."""
    pairs = rng.sample(pairs, len(pairs))
    chosen = [pair for pair in pairs if pair[1] not in ("yes", "no")][:2]
    for answer in ("yes", "no"):
        chosen += [pair for pair in pairs if pair[1] == answer][:1]
    return rng.sample(chosen, len(chosen))
