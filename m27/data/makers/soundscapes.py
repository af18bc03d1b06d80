"""Soundscapes: two or three sounds one after another, or two at once, whose description is exact.

"a dog barks, then a piano plays". Real environmental sounds (ESC-10) and rendered notes, each kept
to its own side of the hold-out; a scene has one sound of a kind at most. Two tasks: `soundscape`
(sound → description) and `sound_for_text` (description → sound).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from m27.data import messages as say
from m27.data.prompts import ask
from m27.data.sources import environment, instruments
from m27.data.sources.base import Document, Side
from m27.data.sources.clips import RATE, Samples, level, loudest, on_side

NAME = "soundscapes"
COUNTS: dict[Side, int] = {"train": 4000, "test": 400}
SECONDS = 0.9
_GAP = 0.1
_SING = {"choir": "sings", "bells": "ring", "timpani": "roll"}


@dataclass(frozen=True)
class Event:
    """One sound of a scene: its kind, how a request names it, what a description says; [T]."""

    kind: str
    noun: str
    clause: str
    audio: Samples


def events(split: Side) -> dict[str, list[Event]]:
    """Every sound of one side that a scene may hold, at most 0.9 s each, by kind."""
    found: dict[str, list[Event]] = {}
    for item in on_side(environment.items(), split):
        if item.audio is not None:
            noun, clause = environment.PHRASES[item.text]
            event = Event(item.text, noun, clause, loudest(item.audio, SECONDS))
            found.setdefault(item.text, []).append(event)
    for item in on_side(instruments.items(), split):
        # The other bank's notes are for `name_instrument`: a scene is heard in known timbres.
        if item.audio is not None and item.meta["kind"] == "note":
            if item.meta["font"] != instruments.FLUID:
                continue
            noun = instruments.with_name(item.text)
            clause = f"{noun} {_SING.get(item.text, 'plays')}"
            event = Event(item.text, noun, clause, item.audio)
            found.setdefault(item.text, []).append(event)
    return found


def in_turn(parts: list[Samples]) -> Samples:
    """The sounds one after another with 0.1 s of silence between them: float32 [T]."""
    gap = np.zeros(int(_GAP * RATE), dtype=np.float32)
    return np.concatenate([piece for part in parts for piece in (part, gap)][:-1])


def at_once(parts: list[Samples]) -> Samples:
    """The sounds on top of each other, at the project's loudness: float32 [longest T]."""
    out = np.zeros(max(part.size for part in parts), dtype=np.float32)
    for part in parts:
        out[: part.size] += part
    return level(out)


def documents(split: Side, seed: int = 0) -> Iterator[Document]:
    """`soundscape` and `sound_for_text` of 4,000 (test: 400) scenes, every other one each.

    Kinds are drawn first, then a sound of the kind, so that many notes do not drown few barks;
    half of the sounds are environmental. `COUNTS` are documents.
    """
    kinds = events(split)
    real = [kind for kind in kinds if kind in environment.CLASSES]
    played = [kind for kind in kinds if kind not in environment.CLASSES]
    for number in range(COUNTS[split]):
        draw = random.Random(f"m27-soundscape:{split}:{seed}:{number}")
        many = 3 if draw.random() < 0.25 else 2
        pool = [draw.choice((real, played)) for _ in range(many)]
        names: list[str] = []
        for group in pool:
            fresh = [kind for kind in group if kind not in names]
            names.append(draw.choice(fresh or [kind for kind in kinds if kind not in names]))
        chosen = [draw.choice(kinds[name]) for name in names]
        parts = [event.audio for event in chosen]
        if many == 2 and draw.random() < 0.2:
            audio, joint, ending = at_once(parts), " while ", " and "
        else:
            audio, joint, ending = in_turn(parts), ", then ", " then "
        rng = say.phrasing(split, seed, f"{NAME}/{number}")
        if number % 2:
            wanted = ending.join(event.noun for event in chosen)
            request = say.words(ask("sound_for_text", rng, text=wanted))
            task, turns = "sound_for_text", say.turn([request], [say.sound(audio)])
        else:
            told = joint.join(event.clause for event in chosen)
            heard = [say.sound(audio), say.words(ask("soundscape", rng))]
            task, turns = "soundscape", say.turn(heard, [say.words(told)])
        yield say.document(f"{split}/{number}", task, NAME, turns)


def vocabulary() -> set[str]:
    """Every clause that a description can hold, for those who check answers."""
    plays = (f"{instruments.with_name(n)} {_SING.get(n, 'plays')}" for n in instruments.INSTRUMENTS)
    return set(itertools.chain(plays, (clause for _, clause in environment.PHRASES.values())))
