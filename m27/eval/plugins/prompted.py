"""A checkpoint as other programs ask it: plain text to go on from, and how probable a text is.

Prompts and continuations go through the engine and its cache, many at once. Text is never a control token, whatever it
spells; only `chat` makes those, and marks them so that `ids` knows them. Knows no evaluation program.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from m27.eval.answerers.base import AnswererError, Settings
from m27.eval.answerers.checkpoint import stock_processor
from m27.infer.continuations import Scored, continuations
from m27.infer.engine import Engine
from m27.infer.load import load_runner
from m27.infer.request import Event, Request, RequestError
from m27.infer.respond import EngineError, collect
from m27.infer.scheduler import Limits
from m27.language.processor import Encoded, Processor
from m27.language.template import Message
from m27.language.vocabulary import VocabularyError

MARK = "\u2063"  # INVISIBLE SEPARATOR, behind each control token that `chat` wrote
_TURNS = re.compile(rf"(<\|im_start\|>|<\|im_end\|>){MARK}")
PROMPT = "prompt"  # the role of what is no message but ids


class Prompts(Processor):
    """The processor, which also takes a prompt's ids as they are: one message of the role `PROMPT`."""

    def encode(self, messages: Sequence[Message], *, generate: bool = False) -> Encoded:
        """As `Processor.encode`; of a prompt its own ids, and nothing is appended."""
        if len(messages) == 1 and messages[0].get("role") == PROMPT:
            ids = list(messages[0]["content"])
            return Encoded(ids, [False] * len(ids))
        return super().encode(messages, generate=generate)


class Prompted:
    """The engine on a folder of weights, ours or a stock one of words. Raises AnswererError where it holds none."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        if not (folder / "config.json").is_file():
            raise AnswererError(f"{folder}: no model here; give the folder of one")
        limits = Limits(sequences=settings.at_once)
        try:
            self.processor: Processor = Prompts.load(folder)
        except VocabularyError as error:
            self.processor = stock_processor(folder, error, Prompts)
        runner = load_runner(folder, settings.precision, settings.device, "auto", settings.threads, limits, "auto")
        self.engine, self.folder, self._settings = Engine(runner, self.processor, limits), folder, settings

    @property
    def max_length(self) -> int:
        """Tokens that the model holds."""
        return self.engine.runner.config.max_len

    def control(self, name: str) -> int:
        """The id of a control token such as "<|im_start|>"."""
        return self.processor.vocabulary.control[name]

    def chat(self, messages: Sequence[Mapping[str, str]], generate: bool = True) -> str:
        """A conversation of words as one text, to be read by `ids`, up to the opening of the answer; without `generate`
        the last message stays open, to be gone on from."""
        text = "".join(
            f"<|im_start|>{MARK}{m['role']}\n{m['content'].replace(MARK, '')}<|im_end|>{MARK}\n" for m in messages
        )
        return f"{text}<|im_start|>{MARK}assistant\n" if generate else text.removesuffix(f"<|im_end|>{MARK}\n")

    def ids(self, text: str) -> list[int]:
        """The ids of a text; control tokens are those that `chat` marked, and no others."""
        out: list[int] = []
        for number, piece in enumerate(_TURNS.split(text)):
            out += [self.control(piece)] if number % 2 else self.processor.encode_text(piece)
        return out

    def score(self, rows: Sequence[tuple[Sequence[int], int]]) -> Iterator[Scored]:
        """How probable the last n ids of each row (ids, n) are; see `continuations`."""
        yield from continuations(self.engine.runner, rows, self.engine.blocks)

    def complete(self, prompts: Sequence[tuple[Sequence[int], Mapping[str, Any]]]) -> Iterator[tuple[int, str]]:
        """(place, text) of what follows each prompt's ids, as it is done; the options are those of `Request`, greedy
        and without penalty where they say nothing, but that the id that ends an answer does not count towards
        `max_tokens`. Raises AnswererError where the engine cannot answer."""
        plain = {"modalities": ("text",), "temperature": 0.0, "repetition_penalty": 1.0, "seed": 0}
        asked = []
        for ids, options in prompts:
            given = {**plain, **options, "max_tokens": options.get("max_tokens", 256) + 1}
            asked.append(Request([{"role": PROMPT, "content": ids}], **given))
        yield from self.answer(asked)

    def answer(self, requests: Sequence[Request]) -> Iterator[tuple[int, str]]:
        """(place, text) of each request's answer as it is done. Raises AnswererError where one cannot be had."""
        waiting = deque(enumerate(requests))
        under: dict[int, tuple[int, list[Event]]] = {}
        try:
            while waiting or under:
                while waiting and len(under) < self._settings.at_once:
                    place, request = waiting.popleft()
                    under[self.engine.add(request, live=False)] = place, []
                for number, event in self.engine.step():
                    place, events = under[number]
                    events.append(event)
                    if event["type"] in ("done", "error"):
                        del under[number]
                        yield place, collect(events).text
        except (RequestError, EngineError) as error:
            raise AnswererError(f"{self.folder}: {' '.join(str(error).split())}") from error
        finally:
            for number in under:
                self.engine.cancel(number)

    def close(self) -> None:
        """End the engine's threads."""
        self.engine.close()
