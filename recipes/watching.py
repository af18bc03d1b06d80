"""What a run is asked while it trains: the same few held-out prompts each time, answered by its present weights.

Three drawings, one sound, two captions, one answer, decoded together so that the weights are read once a
step for all of them. The present weights are written as the shipped layout into the run's own folder and read
from there, so this also tries the way out of training every time.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m27.codec.media import png_bytes, wav_bytes
from m27.data import catalogue
from m27.infer.engine import Engine
from m27.infer.request import Request
from m27.infer.torch_runner import TorchRunner
from m27.language.processor import Processor
from m27.model import checkpoint
from m27.model.packed import save_packed
from m27.train.watch import Sample

SEED = 27
_LONGEST = 150  # ids of an answer


@dataclass(frozen=True)
class Prompt:
    """What is asked, in words for the page and as messages, and the media that the answer may hold."""

    asked: str
    messages: list[dict[str, Any]]
    modalities: tuple[str, ...]
    max_text: int = 48


def _asked(text: str, *modalities: str) -> Prompt:
    return Prompt(text, [{"role": "user", "content": text}], modalities)


def _held_out(source: str, task: str, count: int) -> Iterator[dict[str, Any]]:
    """The first questions of a task on the test side of a source; none where it cannot be read."""
    try:
        found = (d for d in catalogue.documents(source)("test", SEED) if d["task"] == task)
        for document in islice(found, count):
            yield {**document}
    except Exception as error:  # a missing package must not cost the run
        print(f"no samples of {source}: {type(error).__name__}: {error}", file=sys.stderr)


def prompts() -> list[Prompt]:
    """The fixed set, in the order in which the page shows it."""
    made = []
    for document in _held_out("emoji", "draw", 2):
        made.append(_asked(_text(document["messages"][0]["content"]), "image"))
    made.append(_asked("Draw a ship.", "image"))
    made.append(_asked("Make the sound of a low note on a cello.", "audio"))
    for source, task in (("cifar10", "name_picture"), ("emoji", "caption_picture")):
        for document in _held_out(source, task, 1):
            question = document["messages"][:1]
            wanted = _text(document["messages"][1]["content"])
            said = f"{_text(question[0]['content'])} ({wanted})"
            made.append(Prompt(said, question, ("text",), 16))
    made.append(_asked("What is the capital of France?", "text"))
    return made


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return " ".join(str(part["text"]) for part in content if part["type"] == "text")


class Sampling:
    """Answers the fixed prompts with the weights of a moment; called by the loop.

    `folder` is where those weights are written, beside links to the base and the other files of `out`; `save`
    holds what else `save_packed` wants: config, alpha, rank and both codecs' levels.
    """

    def __init__(self, out: Path, folder: Path, save: Mapping[str, Any]) -> None:
        self.folder, self.save = folder, dict(save)
        folder.mkdir(parents=True, exist_ok=True)
        for path in out.iterdir():
            link = folder / path.name
            if (
                path.name not in ("trained.safetensors", "m27.json", "config.json")
                and not link.exists()
            ):
                link.symlink_to(path.resolve())
        self.processor = Processor.load(out)
        self.prompts = prompts()

    def __call__(self, trained: Mapping[str, Tensor], step: int) -> list[Sample]:
        """The answers of these weights; the random draws are the same at every step."""
        with torch.random.fork_rng(devices=[]):
            return self._answers(trained)

    def _answers(self, trained: Mapping[str, Tensor]) -> list[Sample]:
        save_packed(self.folder, trained=trained, **self.save)
        model = checkpoint.load(self.folder, dtype=torch.float32).eval()
        engine = Engine(TorchRunner(model, blocks=256), self.processor)
        responses = engine.answer(
            [
                Request(
                    prompt.messages, modalities=prompt.modalities, max_images=1, max_sounds=1,
                    max_audio_codes=80, max_text=prompt.max_text, max_tokens=_LONGEST,
                    guidance=1.0, seed=SEED,
                )
                for prompt in self.prompts
            ]
        )  # fmt: skip
        return [
            Sample(prompt.asked, [*_shown(prompt, self.processor), *map(_part, response.content)])
            for prompt, response in zip(self.prompts, responses, strict=True)
        ]


def _shown(prompt: Prompt, processor: Processor) -> list[tuple[Any, str]]:
    """The picture of a question, so that the answer can be judged."""
    content = prompt.messages[0]["content"]
    parts = [] if isinstance(content, str) else content
    return [_part(part) for part in parts if part["type"] == "image" and "image" in part]


def _part(part: Mapping[str, Any]) -> tuple[Any, str]:
    if part["type"] == "image" and "image" in part:
        data = base64.b64encode(png_bytes(part["image"])).decode()
        return "image", f"data:image/png;base64,{data}"
    if part["type"] == "audio" and "audio" in part:
        data = base64.b64encode(wav_bytes(part["audio"])).decode()
        return "audio", f"data:audio/wav;base64,{data}"
    return "text", str(part.get("text", "(codes without a codec)"))
