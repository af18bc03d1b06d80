"""A model of lm-evaluation-harness: `--model m27 --model_args pretrained=FOLDER`.

Importing this registers it. Windows, prompts and stop strings follow the harness's own `hf` model, so that the two give
the same figures on one checkpoint; what differs: text that spells a control token stays text, answers hold words alone,
and generation_config.json's penalty counts only where a task asks for one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from m27.eval.answerers.base import AnswererError, Settings
from m27.eval.journal import Journal
from m27.eval.plugins.prompted import Prompted
from m27.language.template import CHAT_TEMPLATE

_PASSED = {"temperature": float, "top_p": float, "top_k": int, "min_p": float, "repetition_penalty": float}
_TOKENS = 256  # of an answer, where a task does not say


@register_model("m27")
class M27(TemplateLM):
    """A folder of weights through our engine. `at_once`: answers under way at once, by default 16 or the harness's
    batch size. With a `journal` what was computed before is not computed again. Raises AnswererError."""

    def __init__(
        self,
        pretrained: str | Path,
        precision: str = "auto",
        threads: int = 0,
        at_once: int | None = None,
        device: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        journal: Journal | None = None,
    ) -> None:
        super().__init__()
        many = int(batch_size or 1) if str(batch_size).isdigit() else 1
        where = "auto" if device in (None, "cuda", "cuda:0") else device  # which the harness says unasked
        settings = Settings(
            at_once=at_once or (many if many > 1 else 16), precision=precision, threads=threads, device=where
        )
        self.model = Prompted(Path(pretrained), settings)
        self.max_length = min(max_length or self.model.max_length, self.model.max_length)
        self._journal = journal

    @property
    def eot_token_id(self) -> int:
        """What ends an answer."""
        return self.model.control("<|im_end|>")

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a beginning: the first token of every conversation."""
        return self.model.control("<|im_start|>")

    @property
    def tokenizer_name(self) -> str:
        """The folder of the model, by which the harness tells its caches of tokens apart."""
        return str(self.model.folder).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template as a note for the harness; `apply_chat_template` is what writes."""
        return CHAT_TEMPLATE if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as one text; its control tokens are marked, those that somebody typed are not."""
        return self.model.chat(chat_history, add_generation_prompt)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The ids of a text."""
        return self.model.ids(string)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of whole texts, in windows as long as the model holds."""
        texts = [request.args[0] for request in requests]
        return self._kept("rolling", texts, lambda todo: self._rolling(texts, todo))

    def _rolling(self, texts: list[str], todo: list[int]) -> dict[int, float]:
        windows: list[tuple[None, list[int], list[int]]] = []
        owners: list[int] = []
        for place in todo:
            ids = self.tok_encode(texts[place])
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(place)
        sums = dict.fromkeys(todo, 0.0)
        for owner, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            sums[owner] += logprob
        return sums

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood, whether it is the likeliest) of each continuation."""
        wanted = [list(request.args) for request in requests]

        def compute(todo: list[int]) -> dict[int, Any]:
            found = super(M27, self).loglikelihood([requests[place] for place in todo], disable_tqdm=True)
            return dict(zip(todo, found, strict=True))

        return [(float(a), bool(b)) for a, b in self._kept("loglikelihood", wanted, compute)]

    def _loglikelihood_tokens(self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any) -> list[Any]:
        rows = []
        for _, context, continuation in requests:
            ids = [*context, *continuation][-(self.max_length + 1) :]
            rows.append((ids, min(len(continuation), len(ids) - 1)))
        found: list[Any] = [None] * len(rows)
        for one in self.model.score(rows):
            found[one.place] = (one.logprob, one.greedy)
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What follows each prompt, up to the first of its stop strings."""
        wanted = [list(request.args) for request in requests]
        return self._kept("generate", wanted, lambda todo: self._generated(wanted, todo))

    def _generated(self, wanted: list[list[Any]], todo: list[int]) -> dict[int, str]:
        prompts = []
        for place in todo:
            text, options = wanted[place]
            given = normalize_gen_kwargs(options, _TOKENS)
            most = int(given["max_gen_toks"])
            if most >= self.max_length:
                raise AnswererError(f"max_gen_toks is {most}; the model holds {self.max_length} tokens")
            ids = self.tok_encode(text)[-(self.max_length - most) :]
            passed = {name: kind(given[name]) for name, kind in _PASSED.items() if given.get(name) is not None}
            stop = tuple(dict.fromkeys(term for term in given["until"] if term))
            prompts.append((ids, {**passed, "max_tokens": most, "stop": stop, "seed": place}))
        return {todo[place]: text for place, text in self.model.complete(prompts)}

    def _kept(self, kind: str, asked: list[Any], compute: Callable[[list[int]], dict[int, Any]]) -> list[Any]:
        """Results by place: those that the journal has, and the rest computed, a hundred at a time so that an end
        costs no more than those."""
        seen: dict[str, int] = {}
        keys = []
        for one in asked:
            digest = sha256(json.dumps([kind, one], sort_keys=True, default=str).encode()).hexdigest()[:24]
            seen[digest] = seen.get(digest, 0) + 1  # the same question again, to be drawn anew
            keys.append(f"{digest}#{seen[digest]}")
        lines = self._journal.lines("requests.jsonl") if self._journal is not None else {}
        found = {place: lines[key]["value"] for place, key in enumerate(keys) if key in lines}
        todo = [place for place in range(len(asked)) if place not in found]
        step = 100 if self._journal is not None else max(1, len(todo))
        for start in range(0, len(todo), step):
            some = compute(todo[start : start + step])
            found.update(some)
            if self._journal is not None:
                for place, value in some.items():
                    self._journal.append("requests.jsonl", {"key": keys[place], "value": value})
        return [found[place] for place in range(len(asked))]
