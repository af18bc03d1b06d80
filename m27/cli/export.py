"""`m27 export` writes the model for other tools; `m27 sizes` prints what each size takes."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m27.cli.console import InputError, ModelOption, busy, check_model

if TYPE_CHECKING:
    from m27.model.config import Config

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
CODEC_FILES = ("image_codec.safetensors", "audio_codec.safetensors")
# What makes a folder of weights a whole model for every command of ours, where the base has it.
BESIDE = (
    *TOKENIZER_FILES, *CODEC_FILES, "generation_config.json", "regression.safetensors", "importance.safetensors",
)  # fmt: skip
LAYOUTS = ("hf", "int8", "int4")
# What tells one layout from another: a folder with two of them would be read as either.
MARKS = {
    "hf": ("model.safetensors", "model.safetensors.index.json"),
    "blocks": ("quantised.safetensors",),
    "packed": ("base.safetensors",),
}


def export(
    model: ModelOption,
    out: Annotated[Path, typer.Option(help="Folder to write; made where it is not there.")],
    to: Annotated[
        str,
        typer.Option(
            help="'hf': a stock bf16 checkpoint; 'int8', 'int4': rounded weights, for m27 on a CPU."
        ),
    ] = "hf",
) -> None:
    """Write the model for plain transformers ('hf'), or rounded, so that m27 opens it in less time and memory."""
    if to not in LAYOUTS:
        raise InputError(f"--to {to}: the layouts are {', '.join(LAYOUTS)}")
    check_model(model)
    if out.exists() and out.resolve() == model.resolve():
        raise InputError(f"{out}: is the model itself; choose another folder")
    for layout, marks in MARKS.items():
        if layout != ("hf" if to == "hf" else "blocks"):
            for name in marks:
                if (out / name).exists():
                    raise InputError(
                        f"{out / name}: weights of another layout; choose another folder"
                    )
    for name in TOKENIZER_FILES:
        if not (model / name).is_file():
            raise InputError(f"{model / name}: no such file")
    with busy("exporting"):
        from m27.language.vocabulary import Vocabulary
        from m27.model.packed import read_json, write_json

        config = _write_weights(model, out, to)
        vocabulary = Vocabulary.from_tokenizer_json(read_json(model / "tokenizer.json"))
        if not (model / "generation_config.json").is_file():
            write_json(out / "generation_config.json", generation_config(vocabulary.control))
        # The codecs go along, so that whoever samples codes elsewhere can turn them into media,
        # and so that the folder is a whole model for every command of ours too.
        for name in (*BESIDE, "README.md"):
            if (model / name).is_file():
                shutil.copyfile(model / name, out / name)
    if to == "hf":
        print(f"{out}: stock checkpoint, {config.family}, bfloat16")
    else:
        print(f"{out}: weights in {to}, {config.family}; m27 chat --model {out}")


def _write_weights(model: Path, out: Path, to: str) -> "Config":
    if to != "hf":
        from m27.infer.store import store

        return store(model, out, to)
    import torch

    from m27.model import checkpoint

    decoder = checkpoint.load(model)
    checkpoint.save(decoder, out, dtype=torch.bfloat16)
    return decoder.config


def generation_config(control: dict[str, int]) -> dict[str, object]:
    """The stock generation_config.json: a turn ends at `<|im_end|>`; words are sampled as here."""
    from m27.infer.request import DEFAULTS

    end, words = control["<|im_end|>"], DEFAULTS["text"]
    return {
        "bos_token_id": control["<|im_start|>"],
        "eos_token_id": end,
        "pad_token_id": end,
        "do_sample": True,
        "temperature": words.temperature,
        "top_p": words.top_p,
        "repetition_penalty": words.repetition_penalty,
    }


def sizes() -> None:
    """Print parameters and bytes of every size."""
    from rich.console import Console
    from rich.table import Table

    from m27.model.config import size_table

    table = Table(title="Sizes (weights with blocks of 32 and their scales; training with AdamW)")
    for name in ("size", "family", "parameters", "active"):
        table.add_column(name, justify="left" if name in ("size", "family") else "right")
    for name in ("bf16", "int8", "int4", "cache a token", "training"):
        table.add_column(name, justify="right")
    for row in size_table():
        amounts = (row.bf16, row.int8, row.int4, row.cache_per_token, row.training)
        counts = (row.parameters, row.active_parameters)
        table.add_row(
            row.name,
            row.family,
            *(_short(n, "") for n in counts),
            *(_short(n, "B") for n in amounts),
        )
    console = Console()
    console.width = max(console.width, 110)  # a log or a narrow pipe gets whole rows too
    console.print(table)


def _short(value: float, unit: str) -> str:
    """1234567 -> "1.23 M" + unit, decimal steps."""
    for step in ("", "k", "M", "G", "T"):
        if value < 1000:
            return f"{value:.3g} {step}{unit}".strip()
        value /= 1000
    return f"{value:.3g} P{unit}"
