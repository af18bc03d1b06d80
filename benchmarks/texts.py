"""The prompts and the passages on which every engine is measured, as ids.

Prompts are whole conversations of an exact number of tokens; their text is Python's own manual, which
comes with the interpreter. Passages are those of the language task of `m27 eval`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from m27.language.processor import Processor

Ids = list[int]


def manual() -> Iterator[str]:
    """Topics of Python's manual, blanks collapsed, in the order of a hash of their names."""
    from pydoc_data.topics import topics

    names = sorted(topics, key=lambda name: hashlib.sha256(name.encode()).digest())
    return (" ".join(topics[name].split()) for name in names)


def prompts(processor: Processor, count: int, length: int, skip: int = 0) -> list[Ids]:
    """`count` different conversations of exactly `length` ids, from the `skip`-th on.

    Raises ValueError where the manual is too short for that many.
    """
    found: list[Ids] = []
    for text in manual():
        while len(text) > 8 * length:
            piece, text = text[: 8 * length], text[8 * length :]
            ids = exact(processor, piece, length)
            if ids is not None:
                found.append(ids)
            if len(found) == skip + count:
                return found[skip:]
    raise ValueError(f"{skip + count} prompts of {length} tokens wanted, {len(found)} there")


def exact(processor: Processor, text: str, length: int) -> Ids | None:
    """A conversation that asks to go on with a beginning of `text`, of exactly `length` ids; None
    where no beginning gives that."""

    def spell(end: int) -> Ids:
        content = f"Go on with this text: {text[:end]}"
        return list(processor.encode([{"role": "user", "content": content}], generate=True).ids)

    low, high = 0, len(text)
    while low < high:  # the shortest beginning that is long enough
        middle = (low + high) // 2
        low, high = (middle + 1, high) if len(spell(middle)) < length else (low, middle)
    for end in range(low, min(low + 16, len(text) + 1)):
        ids = spell(end)
        if len(ids) == length:
            return ids
    return None


def passages(processor: Processor, count: int, length: int = 512, seed: int = 0) -> list[Ids]:
    """Held-out English as the language task has it: half "Moby-Dick", half addresses."""
    from m27.eval.tasks import language

    return [list(processor.encode_text(text)[:length]) for _, text in language.passages(count, seed)]


def not_text(processor: Processor) -> frozenset[int]:
    """Ids that an answer of text alone does not hold: ends of turns, spans and codes. Our engine does
    not give them where text is asked for; the peers, who know no grammar, go on with a picture."""
    vocabulary = processor.vocabulary
    return frozenset(i for i in range(vocabulary.size) if vocabulary.kind(i) != "text")


def digest(rows: Sequence[Ids]) -> str:
    """What tells one set of rows from another."""
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:12]


def load(folder: Path) -> Processor:
    """The processor of a checkpoint folder."""
    return Processor.load(folder)
