"""A folder of weights, ours or any stock text one that speaks ChatML, through the engine's continuous batching."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from m27.eval.answerers.base import Answer, AnswererError, Asked, Facts, Settings
from m27.eval.answerers.memory import Growth, licence
from m27.eval.report import weights_revision
from m27.infer.engine import Engine
from m27.infer.load import load_runner
from m27.infer.request import Event, Request, RequestError
from m27.infer.respond import EngineError, collect
from m27.infer.scheduler import Limits
from m27.language.processor import Processor
from m27.language.template import MessageError
from m27.language.vocabulary import Vocabulary, VocabularyError


class Checkpoint:
    """The engine on a folder of weights. Raises AnswererError where the folder holds no model that it can run."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._folder, self._settings = folder, settings
        self._adapter = None if settings.adapter is None else Path(settings.adapter)
        self._growth = Growth()
        if not (folder / "config.json").is_file():
            raise AnswererError(f"{folder}: no model here; give 'nano', a folder, hf:, openai: or stored:")
        limits = Limits(sequences=settings.at_once)
        self.stock = False
        try:
            self.engine = Engine.load(
                folder, precision=settings.precision, device=settings.device, threads=settings.threads, limits=limits,
                adapter=settings.adapter,
            )  # fmt: skip
        except VocabularyError as ours:
            if settings.adapter is not None:
                raise AnswererError(f"{folder}: an adapter is for a model of ours: {ours}") from ours
            # No vocabulary of ours: a stock model of words, whose tokenizer must mark turns as ChatML does.
            processor = stock_processor(folder, ours)
            runner = load_runner(
                folder, settings.precision, settings.device, "auto", settings.threads, limits, "auto"
            )
            self.engine, self.stock = Engine(runner, processor, limits), True

    def facts(self) -> Facts:
        """The weights' hash, the runner's precision and device."""
        runner = self.engine.runner.facts()
        device = str(runner.get("device", "cpu"))
        return Facts(
            str(self._folder), "checkpoint", weights_revision(self._folder, self._adapter),
            str(runner.get("precision", "unknown")), device, licence(self._folder),
            memory_bytes=self._growth.bytes(device), at_once=self._settings.at_once,
        )  # fmt: skip

    def answer(self, asked: Sequence[Asked], settings: Settings | None = None) -> Iterator[Answer]:
        """All questions through one batch, `at_once` under way; an answer comes when it is done.

        A question that the engine refuses (too long, a broken picture) comes back with its error. `settings`: other
        tokens and temperature than the model was opened with.
        """
        settings = settings or self._settings
        waiting = deque(asked)
        under: dict[int, tuple[str, float, list[Event], list[float]]] = {}
        try:
            while waiting or under:
                while waiting and len(under) < settings.at_once:
                    one = waiting.popleft()
                    began = time.perf_counter()
                    try:
                        under[self.engine.add(_request(one, settings), live=False)] = (one.key, began, [], [])
                    except (RequestError, MessageError) as error:
                        yield Answer(one.key, "", error=" ".join(str(error).split()))
                done = []
                for number, event in self.engine.step():
                    key, began, events, first = under[number]
                    events.append(event)
                    if not first:
                        first.append(time.perf_counter() - began)
                    if event["type"] in ("done", "error"):
                        done.append(number)
                for number in done:
                    key, began, events, first = under.pop(number)
                    self._growth.look()
                    yield _whole(key, events, first[0], time.perf_counter() - began)
        finally:
            for number in under:
                self.engine.cancel(number)

    def close(self) -> None:
        """End the engine's threads."""
        self.engine.close()


def _request(one: Asked, settings: Settings) -> Request:
    return Request(
        one.messages, modalities=("text",), max_tokens=settings.max_tokens,
        temperature=settings.temperature, repetition_penalty=1.0, seed=one.seed,
    )  # fmt: skip


def _whole(key: str, events: list[Event], first: float, seconds: float) -> Answer:
    try:
        response = collect(events)
    except EngineError as error:
        return Answer(key, "", seconds, first, error=" ".join(str(error).split()))
    usage = response.usage
    return Answer(key, response.text.strip(), seconds, first, usage.prompt_tokens, usage.completion_tokens)


def stock_processor(folder: Path, ours: VocabularyError, kind: type[Processor] = Processor) -> Processor:
    """A processor of words alone, of this kind, over a stock `tokenizer.json` with ChatML's turns. AnswererError where
    it has none."""
    try:
        data: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        added = {str(token["content"]): int(token["id"]) for token in data["added_tokens"] if token["special"]}
        if data["model"]["type"] != "BPE" or not {"<|im_start|>", "<|im_end|>"} <= added.keys():
            raise KeyError("ChatML")
        tokenizer = Tokenizer.from_str(json.dumps(data))
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f"{folder}: {ours}; of stock models the engine runs those with ChatML, ask hf:{folder}"
        raise AnswererError(why) from error
    if "<|i0|>" in added:
        raise AnswererError(str(ours)) from ours  # a model of ours whose files disagree
    size = 1 + max(tokenizer.get_vocab().values())
    try:
        # One code a medium, as the vocabulary must have some; answers are words alone, so they are never reached.
        return kind(tokenizer, Vocabulary(size, 1, 1, added))
    except VocabularyError as error:
        raise AnswererError(f"{folder}: {error}") from error
