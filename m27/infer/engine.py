"""The simple engine: one request at a time, in this process, over the naive `generate`.

Messages become ids through the processor, ids are chosen by the sampler among those the grammar
allows, and come back as events while they are produced. The model is asked for nothing but logits.
"""

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from m27.infer.request import Event, Part, Request, RequestError, Response, Usage
from m27.infer.sampler import Sampler
from m27.language.grammar import Grammar
from m27.language.processor import Processor
from m27.model import checkpoint
from m27.model.decoder import Decoder
from m27.model.generate import generate


class Engine:
    """A decoder and its processor, answering requests. Not for several threads at once."""

    def __init__(self, model: Decoder, processor: Processor) -> None:
        self.model = model.eval()
        self.processor = processor

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "Engine":
        """The engine of a checkpoint folder, packed or in the HF layout, with its codecs.

        Raises the typed error of the room whose file is missing or wrong.
        """
        if not Path(folder).is_dir():
            raise RequestError(f"{folder}: no model here")
        model = checkpoint.load(folder, dtype=dtype).to(device)
        return cls(model, Processor.load(folder))

    def stream(self, request: Request) -> Iterator[Event]:
        """Answer, giving events as soon as they are known.

        The events of `m27.language.stream.StreamDecoder` (text deltas, image_begin, image,
        audio_begin, audio_delta, audio), and at the very end one {"type": "done", "usage": Usage,
        "seconds": wall clock}. Raises MessageError or RequestError before the first event.
        """
        started = time.perf_counter()
        vocabulary = self.processor.vocabulary
        turn = self.begin(request)
        prompt, grammar = turn.prompt, turn.grammar
        decoder = self.processor.stream()
        counts = {"image": 0, "audio": 0}
        completion = 0
        for token in generate(
            self.model,
            prompt,
            choose=turn.sampler,
            constraint=_Steered(grammar),
            max_tokens=turn.max_tokens,
            unconditional=self.processor.unconditional(),
            guidance=request.guidance,
        ):
            completion += 1
            if token in vocabulary.image:
                counts["image"] += 1
            elif token in vocabulary.audio:
                counts["audio"] += 1
            yield from decoder.push(token)
        yield from decoder.finish()
        finish = "length" if grammar.truncated else "stop"
        usage = Usage(len(prompt), completion, counts["image"], counts["audio"], turn.seed, finish)
        yield {"type": "done", "usage": usage, "seconds": time.perf_counter() - started}

    def begin(self, request: Request) -> "Turn":
        """The request as ids and rules, nothing computed yet. Raises as `stream` does."""
        prompt = self.processor.encode(request.messages, generate=True).ids
        room = self.model.config.max_len - len(prompt)
        if room < 1:
            most = self.model.config.max_len
            raise RequestError(f"the conversation is {len(prompt)} tokens long; {most} is the most")
        max_tokens = min(request.max_tokens, room)
        grammar = Grammar(
            self.processor.vocabulary,
            modalities=request.modalities,
            plan=request.plan,
            max_images=request.max_images,
            max_sounds=request.max_sounds,
            image_grid=request.image_grid,
            max_audio_codes=request.max_audio_codes,
            min_audio_codes=request.min_audio_codes,
            max_text=request.max_text,
        )
        grammar.budget(max_tokens)
        seed = secrets.randbits(32) if request.seed is None else request.seed
        sampler = Sampler(request.sampling, grammar, seed, start=len(prompt))
        return Turn(prompt, grammar, sampler, seed, max_tokens)

    def chat(self, request: Request) -> Response:
        """Answer as a whole; raises as `stream` does."""
        return collect(self.stream(request))


@dataclass
class Turn:
    """A request made ready: the prompt's ids, what may follow, and how it is drawn."""

    prompt: list[int]
    grammar: Grammar
    sampler: Sampler
    seed: int
    max_tokens: int


class _Steered:
    """The grammar as `generate` sees it, with the ids from which it redirects let through, so that
    the sampler still finds their logits and can move them to where they are meant."""

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self.advance = grammar.advance
        self.done = grammar.done
        self.medium = grammar.medium

    def allowed(self) -> list[tuple[int, int]]:
        sources = [(source, source + 1) for source, _ in self._grammar.redirects()]
        return [*self._grammar.allowed(), *sources]


def collect(events: Iterator[Event]) -> Response:
    """The events of `Engine.stream` as one response, text deltas joined into parts."""
    content: list[Part] = []
    for event in events:
        kind = event["type"]
        if kind == "text" and content and content[-1]["type"] == "text":
            content[-1]["text"] += event["text"]
        elif kind in ("text", "image", "audio"):
            content.append(dict(event))
        elif kind == "done":
            return Response(content, event["usage"], event["seconds"])
    raise ValueError("the stream of events ended without 'done'")
