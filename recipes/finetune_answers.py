"""What a model answers to held-out records before and after: words marked, media written to look at.

    OUT/answers.jsonl    each question with the expected answer and both models'
    OUT/samples/         N-before.png, N-after.png, N-real.png (.wav for sounds)
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from m27.codec import media
from m27.data.sources.base import Document
from m27.eval import tuned
from m27.infer.adapters import read_adapter
from m27.infer.engine import Engine
from m27.infer.request import RequestError
from m27.language.template import MessageError

if TYPE_CHECKING:
    from recipes.finetune import FinetuneConfig

T = TypeVar("T")
SHORT = 240  # characters: longer answers are not marked right or wrong
MAX_TOKENS = 128
NAME = "tuned"


def compare(
    config: FinetuneConfig, documents: Sequence[Document], base: Path, out: Path
) -> dict[str, Any]:
    """The shares of right answers before and after; empty where no held-out answer is short words."""
    asked = [q for q in map(tuned.question, documents) if q is not None and len(q.answer) <= SHORT]
    asked = spread(asked, config.answers)
    with_media = spread([d for d in documents if _ends_in_media(d)], config.samples)
    if not asked and not with_media:
        return {}
    found: dict[str, list[str]] = {}
    for when in ("before", "after"):
        engine, adapter = _engine(config, base, out, when)
        try:
            if asked:
                found[when] = tuned.answers(engine, asked, adapter, MAX_TOKENS, f"answers {when}")
            for number, document in enumerate(with_media):
                _sample(engine, document, adapter, out / "samples", f"{number + 1}-{when}")
        finally:
            engine.close()
    _write(out / "answers.jsonl", asked, found)
    return {
        when: tuned.shares(
            [tuned.marks(q.answer, given) for q, given in zip(asked, texts, strict=True)]
        )
        for when, texts in found.items()
    }  # fmt: skip


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of the items, evenly over all of them: files are often sorted by what they show."""
    if len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def _engine(
    config: FinetuneConfig, base: Path, out: Path, when: str
) -> tuple[Engine, str | None]:
    """The engine, and the name of the adapter it is to answer with."""
    if when == "after" and config.method == "full":
        return Engine.load(out / "model", threads=config.threads), None
    engine = Engine.load(base, threads=config.threads)
    if when == "before":
        return engine, None
    engine.add_adapter(NAME, read_adapter(out, NAME))
    return engine, NAME


def _ends_in_media(document: Mapping[str, Any]) -> bool:
    content = document["messages"][-1]["content"]
    return not isinstance(content, str) and any(part["type"] != "text" for part in content)


def _sample(
    engine: Engine, document: Document, adapter: str | None, folder: Path, name: str
) -> None:
    """Write the media of an answer; one that cannot be made is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        response = tuned.drawn(engine, document, adapter, seed=0)
    except (RequestError, MessageError):
        return
    for part in response.content:
        if part["type"] == "image" and "image" in part:
            media.write_png(folder / f"{name}.png", part["image"])
        elif part["type"] == "audio" and "audio" in part:
            media.write_wav(folder / f"{name}.wav", part["audio"])


def _write(
    path: Path, asked: Sequence[tuned.Question], found: Mapping[str, Sequence[str]]
) -> None:
    lines = [
        json.dumps(
            {
                **{k: v for k, v in dataclasses.asdict(q).items() if k != "messages"},
                **{when: texts[i] for when, texts in found.items()},
            },
            ensure_ascii=False,
        )
        for i, q in enumerate(asked)
    ]
    media.write_atomic(path, ("\n".join(lines) + "\n").encode())
