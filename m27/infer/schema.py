"""A JSON schema as rules for the text of an answer: which text ids may come next.

The schema is compiled by llguidance (guidance-ai, MIT; an Earley parser over regex derivatives, so a
pattern cannot make it backtrack); here are its limits, and the translation to our ids. The text is
JSON on one line, as Python's `json.dumps` writes it: a small model that may put white space anywhere
finds no end. A keyword that is not implemented is refused, not passed over.

Knows the bytes of the text ids; no model, and not when a turn may hold something else than text.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from m27.infer.request import RequestError
from m27.language.processor import Processor

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

Bools = npt.NDArray[np.bool_]

ANY = {"type": "object"}  # what the schema "json" stands for
# A schema is taken in while others wait for the next step: the worst within these takes 0.1 s.
MOST_BYTES, MOST_DEPTH, MOST_PATTERN = 65_536, 48, 1_000
MOST = {"values": 4_000, "enum": 1_000, "properties": 256, "anyOf": 128, "oneOf": 128, "allOf": 128}
KEPT = 64  # compiled schemas
_STYLE: JsonCompileOptions = {
    "whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ",
    "lenient": False, "coerce_one_of": False,
}  # fmt: skip
_LIMITS: dict[str, Any] = {
    "max_items_in_row": 1_000, "initial_lexer_fuel": 300_000, "step_lexer_fuel": 100_000,
    "step_max_items": 20_000, "max_lexer_states": 20_000, "max_grammar_size": 50_000,
    "verbose_errors": False,
}  # fmt: skip


class JsonRules:
    """The JSON of one answer as far as it is written."""

    def __init__(self, matcher: LLMatcher, size: int) -> None:
        self._matcher, self._size = matcher, size

    def mask(self) -> Bools:
        """Which text ids may come next, [text_size]; of control ids only the one that ends the turn,
        and that exactly when the JSON is complete. Raises RequestError where the schema asks for
        more than the limits allow."""
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise RequestError(f"schema: {_line(self._matcher.get_error())}")
        return np.unpackbits(packed, count=self._size, bitorder="little").view(np.bool_)

    def advance(self, id: int) -> None:
        """Take note of a text id. Raises RequestError for one that `mask` does not allow."""
        if not self._matcher.consume_token(id):
            raise RequestError(f"schema: id {id} is not allowed here")

    def complete(self) -> bool:
        """Whether the text so far is a whole document of the schema."""
        return self._matcher.is_accepting()

    def clone(self) -> JsonRules:
        """An independent copy in the same state."""
        return JsonRules(self._matcher.deep_copy(), self._size)


class JsonSchemas:
    """Makes rules from schemas: `schemas(schema)`, the `make_rules` of an engine.

    The last 64 are kept compiled.
    """

    def __init__(self, processor: Processor) -> None:
        self._processor = processor
        self._tokenizer: LLTokenizer | None = None
        self._kept: OrderedDict[str, LLMatcher] = OrderedDict()

    def __call__(self, schema: Mapping[str, Any] | str) -> JsonRules:
        """The rules of a schema, or of any object for "json", nothing written yet.

        Raises RequestError, in one line, for a schema that is not one, that is beyond the limits,
        that asks for what is not implemented or cannot be met, or without llguidance.
        """
        text = _checked(ANY if schema == "json" else schema)
        if text not in self._kept:
            self._kept[text] = self._compile(text)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(text)
        return JsonRules(self._kept[text].deep_copy(), self._processor.vocabulary.text_size)

    def _compile(self, text: str) -> LLMatcher:
        try:
            from llguidance import LLMatcher, LLParserLimits
        except ImportError:
            raise RequestError("schema: needs llguidance, pip install 'm27[serve]'") from None
        if self._tokenizer is None:
            self._tokenizer = _tokenizer(self._processor)
        try:
            grammar = LLMatcher.grammar_from_json_schema(text, overrides=_STYLE)
        except ValueError as error:
            raise RequestError(f"schema: {_line(str(error))}") from error
        limits = LLParserLimits(**_LIMITS)
        matcher = LLMatcher(self._tokenizer, grammar, limits=limits, log_level=0)
        start = JsonRules(matcher.deep_copy() if not matcher.is_error() else matcher, 1)
        start.mask()  # the first row shows whether there are too many ways to begin
        if start._matcher.is_stopped():
            raise RequestError("schema: no text obeys it")
        return matcher


def _checked(schema: Any) -> str:
    """The schema as JSON text, once it is known to keep to the limits."""
    if not isinstance(schema, Mapping):
        raise RequestError(f"schema: must be an object, not {type(schema).__name__}")
    counts = dict.fromkeys(MOST, 0)
    level: list[Any] = [dict(schema)]
    for _ in range(MOST_DEPTH):
        deeper: list[Any] = []
        for value in level:
            if isinstance(value, Mapping):
                if "x-guidance" in value:
                    raise RequestError("schema: x-guidance is not taken")
                pattern = value.get("pattern")
                if isinstance(pattern, str) and len(pattern) > MOST_PATTERN:
                    raise RequestError(f"schema: a pattern is over {MOST_PATTERN} characters long")
                for key in MOST:
                    if isinstance(many := value.get(key), Mapping | list | tuple):
                        counts[key] += len(many)
                deeper += value.values()
            elif isinstance(value, list | tuple):
                deeper += value
        counts["values"] += len(deeper)
        for key, count in counts.items():
            if count > MOST[key]:
                raise RequestError(f"schema: too large, more than {MOST[key]} in all of {key!r}")
        if not deeper:
            break
        level = deeper
    else:
        raise RequestError(f"schema: nested more than {MOST_DEPTH} deep")
    try:
        text = json.dumps(schema, allow_nan=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise RequestError(f"schema: is not JSON: {_line(str(error))}") from error
    if len(text) > MOST_BYTES:
        raise RequestError(f"schema: {len(text)} bytes long; {MOST_BYTES} is the most")
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


class _Spelling:
    """Our text ids as llguidance wants to be told them; it calls this to tokenise forced text."""

    bos_token_id = None

    def __init__(self, processor: Processor) -> None:
        vocabulary = processor.vocabulary
        self.eos_token_id = vocabulary.turn_end
        self.tokens = list(processor.spelling)
        self.special_token_ids = sorted(vocabulary.base_control.values())
        self._encode = processor.encode_text

    def __call__(self, text: str | bytes) -> list[int]:
        """The ids of a text."""
        return self._encode(text if isinstance(text, str) else text.decode("utf-8"))


def _tokenizer(processor: Processor) -> LLTokenizer:
    from llguidance import LLTokenizer, TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(_Spelling(processor)), slices=LLTokenizer.json_slices())


def _line(message: str) -> str:
    """The first words of a library's message, in one line."""
    return " ".join(message.replace("<non-verbose/>", "").split())[:200] or "not understood"
