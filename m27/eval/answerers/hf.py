"""Any model that transformers opens with its own code: vision-language ones, and plain ones of words.

LLaVA-NeXT, Idefics, Qwen2.5-VL, SmolVLM and the like through `AutoModelForImageTextToText`, others through
`AutoModelForCausalLM`. Never runs code from a repository. transformers is imported when a model is opened.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from m27.data.media_parts import pixels
from m27.eval.answerers.base import Answer, AnswererError, Asked, Facts, Messages, Settings
from m27.eval.answerers.memory import Growth, licence
from m27.eval.report import weights_revision

_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Transformers:
    """A model of the Hub, or a folder. Raises AnswererError where transformers cannot open it."""

    def __init__(self, name: str, settings: Settings) -> None:
        import transformers

        self._name, self._settings, self._growth = name, settings, Growth()
        cuda = torch.cuda.is_available()
        self._device = ("cuda" if cuda else "cpu") if settings.device == "auto" else settings.device
        precision = settings.precision
        if precision == "auto":
            precision = "bfloat16" if self._device.startswith("cuda") else "float32"
        if precision not in _TYPES:
            raise AnswererError(f"hf:{name}: precision is one of {', '.join(_TYPES)}, not {precision}")
        self._precision = precision
        try:
            config = transformers.AutoConfig.from_pretrained(name)
            self._sees = type(config) in transformers.AutoModelForImageTextToText._model_mapping
            kind = transformers.AutoModelForImageTextToText if self._sees else transformers.AutoModelForCausalLM
            self._model = kind.from_pretrained(name, dtype=_TYPES[precision]).to(self._device).eval()
            reads = transformers.AutoProcessor if self._sees else transformers.AutoTokenizer
            self._reads: Any = reads.from_pretrained(name)
        except (OSError, ValueError, KeyError, ImportError, AttributeError) as error:
            # AttributeError: what transformers says of a processor for films where torchvision is missing.
            raise AnswererError(f"hf:{name}: {' '.join(str(error).split())[:300]}") from error
        self._tokenizer: Any = getattr(self._reads, "tokenizer", self._reads)
        self._tokenizer.padding_side = "left"
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token or self._tokenizer.convert_ids_to_tokens(0)
        self._commit = str(getattr(config, "_commit_hash", None) or "")

    def facts(self) -> Facts:
        """The Hub's commit or the hash of the folder's files."""
        folder = Path(self._name)
        revision = weights_revision(folder) if folder.is_dir() else self._commit[:12] or "unknown"
        return Facts(
            f"hf:{self._name}", "hf", revision, self._precision, self._device, licence(folder),
            memory_bytes=self._growth.bytes(self._device), at_once=self._settings.at_once,
        )  # fmt: skip

    def answer(self, asked: Sequence[Asked]) -> Iterator[Answer]:
        """Batches of `at_once`, each as long as its longest answer."""
        size = self._settings.at_once
        for start in range(0, len(asked), size):
            good, inputs = [], []
            for one in asked[start : start + size]:
                try:
                    inputs.append(self._prompt(one.messages))
                    good.append(one)
                except (ValueError, OSError) as error:  # a broken picture, a sound, a template that says no
                    yield Answer(one.key, "", error=" ".join(str(error).split())[:300])
            if good:
                yield from self._batch(good, inputs)

    def close(self) -> None:
        """Let go of the weights."""
        del self._model

    def _prompt(self, messages: Messages) -> tuple[str, list[Any]]:
        """The prompt as text, and its pictures. ValueError where the model cannot be asked so."""
        from PIL import Image

        pictures: list[Any] = []
        turns: list[dict[str, Any]] = []
        for message in messages:
            parts = message["content"]
            if isinstance(parts, str):
                parts = [{"type": "text", "text": parts}]
            for part in parts:
                if part["type"] == "audio" or (part["type"] == "image" and not self._sees):
                    raise ValueError(f"the model takes no {part['type']}")
                if part["type"] == "image":
                    pictures.append(Image.fromarray(pixels(part)))
            content: Any = [
                {"type": "image"} if p["type"] == "image" else {"type": "text", "text": p["text"]} for p in parts
            ]
            if not self._sees:
                content = "".join(part["text"] for part in parts)
            turns.append({"role": message["role"], "content": content})
        if getattr(self._reads, "chat_template", None):
            text = self._reads.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        elif self._sees:
            raise ValueError("the model has no chat template")
        else:
            text = "\n".join(turn["content"] for turn in turns)
        return str(text), pictures

    def _batch(self, asked: list[Asked], inputs: list[tuple[str, list[Any]]]) -> Iterator[Answer]:
        from transformers import StoppingCriteriaList

        texts = [text for text, _ in inputs]
        pictures = [images for _, images in inputs]
        plain = bool(getattr(self._reads, "chat_template", None))  # a template spells the first token itself
        options: dict[str, Any] = {"return_tensors": "pt", "padding": True}
        if self._sees and any(pictures):
            options["images"] = pictures
        elif not self._sees:
            options["add_special_tokens"] = not plain
        encoded = self._reads(text=texts, **options).to(self._device)
        first: list[float] = []

        def look(ids: Any, scores: Any, **_: Any) -> Any:
            if not first:
                first.append(time.perf_counter() - began)
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        settings = self._settings
        # What a model's own generation_config.json would change besides is left out, as in every other answerer.
        draws: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if settings.temperature > 0:
            torch.manual_seed(asked[0].seed)
            draws = {"do_sample": True, "temperature": settings.temperature, "top_p": 1.0, "top_k": 0}
        began = time.perf_counter()
        with torch.inference_mode():
            ids = self._model.generate(
                **encoded, max_new_tokens=settings.max_tokens, stopping_criteria=StoppingCriteriaList([look]),
                pad_token_id=self._tokenizer.pad_token_id, repetition_penalty=1.0, no_repeat_ngram_size=0, **draws,
            )  # fmt: skip
        seconds = time.perf_counter() - began
        self._growth.look()
        length = encoded["input_ids"].shape[1]
        prompts = encoded["attention_mask"].sum(1).tolist()
        pad = self._tokenizer.pad_token_id
        for one, prompt, row in zip(asked, prompts, ids[:, length:].tolist(), strict=True):
            text = self._tokenizer.decode(row, skip_special_tokens=True)
            made = len(row) - next((n for n, token in enumerate(reversed(row)) if token != pad), len(row))
            yield Answer(one.key, text.strip(), seconds, first[0] if first else None, int(prompt), made)
