"""The id space, and the tokenizer files against transformers and against a plain BPE."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from m27.language.bytelevel import byte_characters
from m27.language.processor import Processor
from m27.language.vocabulary import (
    BASE_CONTROL,
    Vocabulary,
    VocabularyError,
    build_tokenizer,
    save_tokenizer,
)

TEXTS = [
    "The capital of France is Paris.",
    "It's 2024, isn't it?  We'll pay $1,234.50 for 3x4=12!",
    "tabs\tand\n\nnewlines \n  with   spaces   ",
    "naïve café — 日本語 😀 ½ ²",
    "def f(x):\n    return x**2  # <|im_start|>",
]


def test_nano_ids() -> None:
    v = Vocabulary()
    assert (v.image, v.audio, v.size) == (range(49280, 65664), range(65664, 73856), 73856)
    assert v.size == 577 * 128
    assert (v.image_begin, v.image_end, v.audio_begin, v.audio_end) == (49152, 49153, 49154, 49155)
    assert v.media_control["<|h1|>"] == v.heights[0] == 49156
    assert v.media_control["<|w32|>"] == v.widths[31] == 49156 + 63
    assert len(v.media_control) == 128
    assert v.media_control["<|reserved59|>"] == 49279
    assert (v.turn_begin, v.turn_end) == (1, 2)
    assert v.text_spans == ((17, 49152),)


def test_kinds_partition_the_ids(vocabulary: Vocabulary) -> None:
    kinds = [vocabulary.kind(i) for i in range(vocabulary.size)]
    assert kinds.count("control") == 17 + 128
    assert kinds.count("image") == 16
    assert kinds.count("audio") == 8
    assert kinds.count("unused") == vocabulary.size - vocabulary.audio.stop
    in_spans = {i for start, stop in vocabulary.text_spans for i in range(start, stop)}
    assert in_spans == {i for i, kind in enumerate(kinds) if kind == "text"}
    assert vocabulary.size % 128 == 0
    assert vocabulary.kind(-1) == vocabulary.kind(vocabulary.size) == "unused"


def test_text_spans_with_control_in_the_middle() -> None:
    v = Vocabulary(10, 4, 4, {"<|im_start|>": 3, "<|im_end|>": 9})
    assert v.text_spans == ((0, 3), (4, 9))


def test_json_round_trip_and_errors(vocabulary: Vocabulary) -> None:
    data = json.loads(json.dumps(vocabulary.to_json()))
    assert Vocabulary.from_json(data) == vocabulary
    for broken in (
        {**data, "size": 1},
        {**data, "extra": 1},
        {"text_size": 5},
        {**data, "base_control": None},
        {**data, "base_control": {"<|im_start|>": 1}},
        {**data, "image_size": 0},
    ):
        with pytest.raises(VocabularyError):
            Vocabulary.from_json(broken)


def test_files_agree_with_the_vocabulary(
    tiny: tuple[Tokenizer, Vocabulary], tmp_path: Path
) -> None:
    tokenizer, vocabulary = tiny
    save_tokenizer(tokenizer, vocabulary, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
    }  # fmt: skip
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    assert Vocabulary.from_tokenizer_json(data) == vocabulary
    again = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    expected = {**vocabulary.control}
    expected |= {f"<|i{c}|>": vocabulary.image[c] for c in range(16)}
    expected |= {f"<|a{c}|>": vocabulary.audio[c] for c in range(8)}
    assert {name: again.token_to_id(name) for name in expected} == expected
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] != "<|i3|>"]
    with pytest.raises(VocabularyError):
        Vocabulary.from_tokenizer_json(data)


def test_digits_are_never_merged(tiny: tuple[Tokenizer, Vocabulary]) -> None:
    assert tiny[0].token_to_id("12") is not None  # the merge exists, and digits are split before it
    assert tiny[0].encode("hello 12").tokens == ["hello", "Ġ", "1", "2"]


def test_unusable_base_tokenizers() -> None:
    with pytest.raises(VocabularyError, match="im_end"):
        build_tokenizer(["<|im_start|>", "a"], [])
    with pytest.raises(VocabularyError, match="twice"):
        build_tokenizer([*BASE_CONTROL, "a", "a"], [])
    with pytest.raises(VocabularyError, match="merge"):
        build_tokenizer([*BASE_CONTROL, "a"], ["aa"])


def test_transformers_opens_the_tiny_files_with_equal_ids(
    tiny: tuple[Tokenizer, Vocabulary], tmp_path: Path, processor: Processor
) -> None:
    save_tokenizer(*tiny, tmp_path)
    _same_as_stock(_stock(tmp_path), processor)


def test_transformers_opens_the_shipped_files_with_equal_ids(
    real_folder: Path, real: Processor
) -> None:
    stock = _stock(real_folder)
    assert len(stock) == 73856
    assert (stock.bos_token_id, stock.eos_token_id, stock.pad_token_id) == (1, 2, 2)
    v = real.vocabulary
    spelled = "<|audio|><|a0|><|a8191|><|/audio|><|h32|><|i16383|><|im_end|>"
    expected = [
        v.audio_begin, v.audio[0], v.audio[-1], v.audio_end, v.heights[31], v.image[-1], v.turn_end,
    ]  # fmt: skip
    assert stock(spelled)["input_ids"] == expected
    assert stock.decode(expected) == spelled
    _same_as_stock(stock, real)


def test_shipped_tokenization_equals_a_plain_bpe(real_folder: Path, real: Processor) -> None:
    """Against merge-by-rank over the split that is published for SmolLM's tokenizer family."""
    regex = pytest.importorskip("regex")
    data = json.loads((real_folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = data["model"]["vocab"]
    ranks = {tuple(pair): n for n, pair in enumerate(data["model"]["merges"])}
    split = regex.compile(
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    )
    letters = {byte: c for c, byte in byte_characters().items()}

    def plain(text: str) -> list[int]:
        ids: list[int] = []
        for run in regex.split(r"(\p{N})", text):
            for word in split.findall(run):
                pieces = [letters[byte] for byte in word.encode()]
                while True:
                    pairs = list(pairwise(pieces))
                    best = min(pairs, key=lambda p: ranks.get(p, 1 << 30), default=None)
                    if best is None or best not in ranks:
                        break
                    at = pairs.index(best)
                    pieces[at : at + 2] = ["".join(best)]
                ids += [vocab[piece] for piece in pieces]
        return ids

    for text in TEXTS:
        assert real.encode_text(text) == plain(text)
    digits = [real.decode([i])[0]["text"] for i in real.encode_text("12345")]
    assert digits == ["1", "2", "3", "4", "5"]


def _stock(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(folder)


def _same_as_stock(stock: Any, processor: Processor) -> None:
    """Ids of texts and of chats are those of the stock tokenizer and its chat template."""
    for text in TEXTS[:4]:
        assert stock(text)["input_ids"] == processor.encode_text(text)
        assert stock.decode(processor.encode_text(text)) == text
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": TEXTS[0]},
        {"role": "assistant", "content": "Yes.\n"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "And "},
                {"type": "text", "text": "this? "},
                {"type": "image", "codes": [[1, 2, 3], [4, 5, 6]]},
                {"type": "audio", "codes": [7, 0]},
            ],
        },
    ]
    for generate in (False, True):
        ids = stock.apply_chat_template(chat, add_generation_prompt=generate, return_dict=False)
        assert ids == processor.encode(chat, generate=generate).ids
    with pytest.raises(Exception, match="codes"):
        stock.apply_chat_template([{"role": "user", "content": [{"type": "image", "path": "x"}]}])
