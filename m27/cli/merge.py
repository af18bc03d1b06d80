"""`m27 merge`: an adapter and its base → one stock checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from m27.cli.console import InputError, busy, check_model, default_model

DTYPES = ("bfloat16", "float32", "float16")


def merge(
    adapter: Annotated[Path, typer.Argument(help="Folder of the adapter, as PEFT writes it.")],
    base: Annotated[
        Path, typer.Option(help="Folder of the model it belongs to.", default_factory=default_model)
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; must not hold other weights.")],
    dtype: Annotated[str, typer.Option(help="Of the weights: bfloat16, float32 or float16.")] = "bfloat16",
) -> None:
    """Add an adapter to the weights of its base, for every program that opens stock checkpoints."""
    if dtype not in DTYPES:
        raise InputError(f"--dtype {dtype}: is one of {', '.join(DTYPES)}")
    check_model(base, "name its folder with --base")
    from m27.cli.export import MARKS

    if out.exists() and out.resolve() in (base.resolve(), adapter.resolve()):
        raise InputError(f"{out}: is read from; choose another folder")
    for name in (*MARKS["blocks"], *MARKS["packed"]):
        if (out / name).exists():
            raise InputError(f"{out / name}: weights of another layout; choose another folder")
    with busy("merging"):
        import torch

        from m27.infer.adapters import read_adapter
        from m27.model import checkpoint
        from recipes.finetune_card import write_model

        read = read_adapter(adapter)
        decoder = checkpoint.load(base)
        weights = dict(decoder.named_parameters())
        with torch.no_grad():
            for name, (a, b) in read.matrices.items():
                weight = weights.get(f"{name}.weight")
                if weight is None or weight.shape != (len(b), a.shape[1]):
                    raise InputError(f"{adapter}: {name} has no matrix of its shape in {base}")
                weight.add_(torch.from_numpy(b) @ torch.from_numpy(a))
        write_model(decoder, base, out, getattr(torch, dtype))
    print(f"{out}: stock checkpoint, {decoder.config.family}, {dtype}")
