"""A model of lmms-eval: `--model m27 --model_args pretrained=FOLDER`, pictures and sounds through our engine.

A task's messages go as they are; generation alone, as of every chat model there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.api.registry import register_model

from m27.data.media_parts import sound_part
from m27.eval.answerers.base import AnswererError, Asked, Settings
from m27.eval.answerers.checkpoint import Checkpoint

_TOKENS = 1024  # of an answer, where a task does not say, as lmms-eval's own models have it


@register_model("m27")
class M27(lmms):
    """A folder of weights. `at_once`: questions under way at once. A question that the model refuses is answered with
    nothing. Raises AnswererError."""

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        precision: str = "auto",
        threads: int = 0,
        at_once: int = 16,
        device: str | None = None,
        batch_size: int | str | None = None,
        system_prompt: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        where = device if device and device.startswith("cuda") else "auto"
        many = int(batch_size or 1) if str(batch_size).isdigit() else 1
        self._settings = Settings(
            at_once=max(int(at_once), many), precision=precision, threads=int(threads), device=where
        )
        self._system = self._resolve_system_prompt(system_prompt) if system_prompt else None
        self.model = Checkpoint(Path(pretrained), self._settings)

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """An answer to each request, in their order; those of equal settings are asked together."""
        groups: dict[tuple[int, float], list[Asked]] = {}
        stops: dict[str, list[str]] = {}
        for number, request in enumerate(requests):
            _, to_messages, options, doc_id, task, split = request.args
            messages = [_message(message) for message in to_messages(self.task_dict[task][split][doc_id])]
            if self._system:
                rest = [message for message in messages if message["role"] != "system"]
                messages = [{"role": "system", "content": self._system}, *rest]
            draws = options.get("temperature") if options.get("do_sample", True) else None
            group = (int(options.get("max_new_tokens", _TOKENS)), float(draws or 0.0))
            groups.setdefault(group, []).append(Asked(str(number), messages, seed=number))
            until = options.get("until") or []
            stops[str(number)] = [until] if isinstance(until, str) else list(until)
        found: dict[str, Any] = {}
        for (tokens, temperature), asked in groups.items():
            settings = replace(self._settings, max_tokens=tokens, temperature=temperature)
            for answer in self.model.answer(asked, settings):
                text = answer.text
                for stop in stops[answer.key]:
                    text = text.split(stop)[0] if stop else text
                counts = TokenCounts(input_tokens=answer.prompt_tokens, output_tokens=answer.completion_tokens)
                found[answer.key] = GenerationResult(text=text, token_counts=counts)
        return [found[str(number)] for number in range(len(requests))]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not to be had."""
        raise AnswererError("the model m27 answers tasks of one round (generate_until)")

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not to be had."""
        raise AnswererError("the model m27 answers tasks of one round (generate_until)")


_Part = Callable[[Any], dict[str, Any]]


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """lmms-eval's message in our form."""
    content = message["content"]
    if isinstance(content, str):
        return {"role": message["role"], "content": content}
    kinds: dict[str, _Part] = {"text": lambda p: {"type": "text", "text": p["text"]}, "image": _image, "audio": _audio}
    parts = []
    for part in content:
        if part["type"] not in kinds:
            raise AnswererError(f"the model m27 takes no {part['type']}")
        parts.append(kinds[part["type"]](part))
    return {"role": message["role"], "content": parts}


def _image(part: Mapping[str, Any]) -> dict[str, Any]:
    """A picture of Pillow's, an array, or a file's name."""
    value = part["url"]
    if isinstance(value, str | Path):
        return {"type": "image", "path": str(value)}
    return {"type": "image", "image": np.asarray(value.convert("RGB") if hasattr(value, "convert") else value)}


def _audio(part: Mapping[str, Any]) -> dict[str, Any]:
    """A sound as `datasets` gives it (samples and their rate), or a file's name."""
    value = part["url"]
    if isinstance(value, str | Path):
        return {"type": "audio", "path": str(value)}
    return sound_part(np.asarray(value["array"]), int(value["sampling_rate"]))
