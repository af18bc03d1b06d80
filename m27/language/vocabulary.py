"""Which id means what, and the stock tokenizer files that say the same to any other engine.

One id space holds everything: the base tokenizer's text ids, then 128 control slots, then the image
codes, then the audio codes. Knows nothing of messages, of pixels or of sound.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from m27.language.template import CHAT_TEMPLATE

CONTROL_SLOTS = 128
MAX_GRID = 32  # codes along one side of a picture: 512 pixels at 16 pixels a code
PAD_TO = 128

# SmolLM2's own control tokens in id order (token type 3 in its GGUF metadata).
BASE_CONTROL: tuple[str, ...] = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>", "<file_sep>",
    "<filename>", "<gh_stars>", "<issue_start>", "<issue_comment>", "<issue_closed>",
    "<jupyter_start>", "<jupyter_text>", "<jupyter_code>", "<jupyter_output>",
    "<jupyter_script>", "<empty_output>",
)  # fmt: skip

Kind = Literal["text", "control", "image", "audio", "unused"]
Span = tuple[int, int]  # half-open range of ids


class VocabularyError(ValueError):
    """Tokenizer files or settings that do not describe a vocabulary of ours."""


@dataclass(frozen=True)
class Vocabulary:
    """The id space: text | control | image codes | audio codes, padded to a multiple of 128.

    The defaults are those of nano: SmolLM2's 49,152 text ids, 16,384 image and 8,192 audio codes,
    73,856 ids in all. `base_control` are the base tokenizer's own control tokens (name → id).
    """

    text_size: int = 49152
    image_size: int = 16384
    audio_size: int = 8192
    base_control: Mapping[str, int] = field(
        default_factory=lambda: {name: i for i, name in enumerate(BASE_CONTROL)}
    )

    def __post_init__(self) -> None:
        if min(self.text_size, self.image_size, self.audio_size) < 1:
            raise VocabularyError("text_size, image_size and audio_size must be at least 1")
        for name in ("<|im_start|>", "<|im_end|>"):
            if name not in self.base_control:
                raise VocabularyError(f"the base tokenizer has no {name}")
        for name, i in self.base_control.items():
            if not 0 <= i < self.text_size:
                raise VocabularyError(f"control token {name} has id {i}, outside the text ids")

    @cached_property
    def image(self) -> range:
        """Ids of the image codes: code c is id `image[c]`."""
        start = self.text_size + CONTROL_SLOTS
        return range(start, start + self.image_size)

    @cached_property
    def audio(self) -> range:
        """Ids of the audio codes: code c is id `audio[c]`."""
        return range(self.image.stop, self.image.stop + self.audio_size)

    @cached_property
    def size(self) -> int:
        """Rows of the embedding: all ids, rounded up to a multiple of 128."""
        return -(-self.audio.stop // PAD_TO) * PAD_TO

    @cached_property
    def media_control(self) -> dict[str, int]:
        """Our own 128 control slots, name → id: span marks, grid sizes 1..32, reserved."""
        names = ["<|image|>", "<|/image|>", "<|audio|>", "<|/audio|>"]
        names += [f"<|{axis}{n}|>" for axis in "hw" for n in range(1, MAX_GRID + 1)]
        names += [f"<|reserved{n}|>" for n in range(CONTROL_SLOTS - len(names))]
        return {name: self.text_size + i for i, name in enumerate(names)}

    @cached_property
    def control(self) -> dict[str, int]:
        """Every control token, name → id: the base tokenizer's and ours (not the codes)."""
        return {**self.base_control, **self.media_control}

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        return frozenset(self.control.values())

    def is_control(self, token: int) -> bool:
        """Whether an id is a control token of the base or of ours (a code is not one)."""
        return token in self._control_ids

    def kind(self, token: int) -> Kind:
        """What an id is: "text", "control", "image", "audio", or "unused" (padding rows)."""
        if token in self._control_ids:
            return "control"
        if 0 <= token < self.text_size:
            return "text"
        if token in self.image:
            return "image"
        return "audio" if token in self.audio else "unused"

    @property
    def turn_begin(self) -> int:
        """Id of `<|im_start|>`."""
        return self.base_control["<|im_start|>"]

    @property
    def turn_end(self) -> int:
        """Id of `<|im_end|>`, which ends a turn and so a generation."""
        return self.base_control["<|im_end|>"]

    @property
    def image_begin(self) -> int:
        """Id of `<|image|>`."""
        return self.text_size

    @property
    def image_end(self) -> int:
        """Id of `<|/image|>`."""
        return self.text_size + 1

    @property
    def audio_begin(self) -> int:
        """Id of `<|audio|>`."""
        return self.text_size + 2

    @property
    def audio_end(self) -> int:
        """Id of `<|/audio|>`."""
        return self.text_size + 3

    @property
    def heights(self) -> range:
        """Ids of `<|h1|>`…`<|h32|>`: a height of n codes is `heights[n - 1]`."""
        return range(self.text_size + 4, self.text_size + 4 + MAX_GRID)

    @property
    def widths(self) -> range:
        """Ids of `<|w1|>`…`<|w32|>`: a width of n codes is `widths[n - 1]`."""
        return range(self.heights.stop, self.heights.stop + MAX_GRID)

    @cached_property
    def text_spans(self) -> tuple[Span, ...]:
        """The ordinary text ids as half-open ranges, control tokens of the base left out."""
        edges = sorted(self.base_control.values())
        spans = zip([0, *(i + 1 for i in edges)], [*edges, self.text_size], strict=True)
        return tuple((start, stop) for start, stop in spans if start < stop)

    def added_tokens(self) -> list[str]:
        """Every token after the text ids, in id order: control slots, `<|i…|>`, `<|a…|>`."""
        images = [f"<|i{c}|>" for c in range(self.image_size)]
        return [*self.media_control, *images, *(f"<|a{c}|>" for c in range(self.audio_size))]

    def to_json(self) -> dict[str, Any]:
        """The settings as plain JSON values (`size` is written for the reader's comfort)."""
        return {
            "text_size": self.text_size, "image_size": self.image_size,
            "audio_size": self.audio_size, "size": self.size,
            "base_control": dict(self.base_control),
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Vocabulary:
        """The inverse of `to_json`; raises VocabularyError on missing, unknown or wrong values."""
        unknown = set(data) - {"text_size", "image_size", "audio_size", "size", "base_control"}
        if unknown:
            raise VocabularyError(f"vocabulary has unknown keys: {', '.join(sorted(unknown))}")
        try:
            vocabulary = cls(
                int(data["text_size"]), int(data["image_size"]), int(data["audio_size"]),
                {str(k): int(v) for k, v in data["base_control"].items()},
            )  # fmt: skip
        except (KeyError, TypeError, AttributeError) as error:
            raise VocabularyError(f"vocabulary is incomplete: {error}") from error
        if int(data.get("size", vocabulary.size)) != vocabulary.size:
            raise VocabularyError(f"vocabulary says size {data['size']}, not {vocabulary.size}")
        return vocabulary

    @classmethod
    def from_tokenizer_json(cls, data: Mapping[str, Any]) -> Vocabulary:
        """Read the offsets off the contents of a `tokenizer.json` written by `save_tokenizer`."""
        text_size = len(data["model"]["vocab"])
        added = {str(t["content"]): int(t["id"]) for t in data["added_tokens"]}
        base = {name: i for name, i in added.items() if i < text_size}
        names = [name for name, i in sorted(added.items(), key=lambda x: x[1]) if i >= text_size]
        images = sum(name.startswith("<|i") and name[3:-2].isdigit() for name in names)
        audios = sum(name.startswith("<|a") and name[3:-2].isdigit() for name in names)
        vocabulary = cls(text_size, images, audios, base)
        if vocabulary.added_tokens() != names:
            raise VocabularyError("tokenizer.json does not hold the control and code tokens")
        return vocabulary


def build_tokenizer(
    base_tokens: Sequence[str],
    merges: Sequence[str],
    token_types: Sequence[int] | None = None,
    image_size: int = 16384,
    audio_size: int = 8192,
) -> tuple[Tokenizer, Vocabulary]:
    """SmolLM2's tokenizer, extended by our control slots and codes, with its `Vocabulary`.

    Arguments are the GGUF metadata `tokenizer.ggml.tokens`, `.merges` ("left right" strings) and
    `.token_type` (3 = control; without it SmolLM2's 17 names are looked for). The result is
    byte-level BPE over digits split one by one, no prefix space, nothing added around a text.
    Source: the SmolLM2 tokenizer (HuggingFaceTB, Apache-2.0), GPT-2's byte-level BPE.
    """
    if token_types is None:
        base = {t: i for i, t in enumerate(base_tokens) if t in BASE_CONTROL}
    else:
        pairs = zip(base_tokens, token_types, strict=True)
        base = {t: i for i, (t, kind) in enumerate(pairs) if kind == 3}
    vocabulary = Vocabulary(len(base_tokens), image_size, audio_size, base)
    pairs_of = [tuple(merge.split(" ")) for merge in merges]
    if any(len(pair) != 2 for pair in pairs_of):
        raise VocabularyError("a merge is not of the form 'left right'")
    table = {token: i for i, token in enumerate(base_tokens)}
    if len(table) != len(base_tokens):
        raise VocabularyError("the base tokenizer lists a token twice")
    tokenizer = Tokenizer(models.BPE(vocab=table, merges=[(a, b) for a, b in pairs_of]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    names = [*base, *vocabulary.added_tokens()]
    tokenizer.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in names])
    return tokenizer, vocabulary


def save_tokenizer(tokenizer: Tokenizer, vocabulary: Vocabulary, directory: str | Path) -> None:
    """Write the stock tokenizer folder that `transformers.AutoTokenizer` opens with equal ids.

    Files: `tokenizer.json` (every control token and code as an added special token),
    `tokenizer_config.json`, `special_tokens_map.json`, `chat_template.jinja`.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    special = {
        "bos_token": "<|im_start|>", "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>", "pad_token": "<|im_end|>",
    }  # fmt: skip
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": False,
        "clean_up_tokenization_spaces": False, "model_max_length": 8192, **special,
    }  # fmt: skip
    files = {
        "tokenizer.json": tokenizer.to_str(pretty=False),
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
        "special_tokens_map.json": json.dumps(special, indent=2) + "\n",
        "chat_template.jinja": CHAT_TEMPLATE,
    }
    if tokenizer.get_vocab_size() != vocabulary.audio.stop:
        raise VocabularyError("the tokenizer and the vocabulary disagree about the number of ids")
    for name, text in files.items():
        temporary = folder / f".{name}.tmp"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, folder / name)
