"""Fine-tuning: a user's records → an adapter (or a whole checkpoint), with figures before and after.

    OUT/adapter_config.json, adapter_model.safetensors    LoRA: what plain `peft` loads
    OUT/model/                                            `full`: a stock checkpoint
    OUT/README.md, results.json, answers.jsonl, samples/  what it was trained on, and what changed
    OUT/data/, OUT/run/                                   shards; log, page and snapshots

The same call goes on where an earlier one was stopped, and says the figures again where it had ended.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from m27 import runtime
from m27.cli.bench import memory
from m27.cli.console import InputError
from m27.codec.media import write_atomic
from m27.data.loader import MEDIA
from m27.data.mixture import Corpus
from m27.eval.report import weights_revision
from m27.eval.tuned import Change, change
from m27.language.processor import Processor
from m27.model import checkpoint
from m27.model.config import Config
from m27.model.decoder import Decoder
from m27.model.files import read_json
from m27.train.loop import Result, Trainer, prepare_machine
from m27.train.lora import LoraConfig, merged
from m27.train.measure import Losses, document_losses
from m27.train.optim import OptimConfig
from m27.train.peft import write_adapter
from m27.train.qlora import open_base
from m27.train.rows import FreeRows, FrozenRows, Rows
from m27.train.settings import DataConfig, TrainConfig
from recipes import finetune_answers, finetune_card, finetune_data
from recipes.finetune_data import Given, Prepared

Method = Literal["lora", "full", "qlora"]
STEP_TOKENS = (1024, 8192)  # of one step: the least and the most
LONGEST = 2048  # tokens of a record, where nothing else is said
MEASURED = 100  # held-out records that are measured
Say = Callable[[str], None]


@dataclass(frozen=True)
class FinetuneConfig:
    """What is asked for; see `m27 finetune --help` and docs/finetune.md.

    `lr` None takes the method's usual, `max_tokens` None 2,048 or what the base can read; of `epochs`,
    `steps` and `minutes` the last two go first. `val` is a share or a file; `answers` and `samples` how many
    held-out records are answered, in words and with media.
    """

    data: tuple[str, ...]
    base: str
    out: str
    method: Method = "lora"
    rank: int = 16
    alpha: float = 32.0
    lr: float | None = None
    epochs: float = 3.0
    steps: int | None = None
    minutes: float | None = None
    max_tokens: int | None = None
    val: str = "0.1"
    seed: int = 0
    skip_bad: bool = False
    kind: str = "auto"
    direction: str = "both"
    prompt: str = ""
    answers: int = 100
    samples: int = 4
    device: str = "auto"
    threads: int = 0
    compile: bool = True


def recipe(config: FinetuneConfig, corpus: Corpus) -> TrainConfig:
    """The run: rows as long as the longest record wants, some hundred steps where the data give them.

    Few records make small steps, down to a thousand tokens: so that there are steps to learn in.
    """
    tokens = int(corpus.lengths.sum())
    row = max(1024, 128 * math.ceil(int(corpus.lengths.max()) / 128))
    least, most = STEP_TOKENS
    wanted = min(max(tokens * config.epochs / 150, least), most)
    accumulate = max(1, round(wanted / row))
    steps = config.steps
    if steps is None and config.minutes is None:
        steps = max(1, math.ceil(tokens * config.epochs / (row * accumulate)))
    full = config.method == "full"
    lr = config.lr if config.lr is not None else (3e-5 if full else 5e-4)
    data = DataConfig(row=row, rows=1, accumulate=accumulate, full_share=0.1)
    return TrainConfig(
        "finetune", steps=steps, minutes=config.minutes, seed=config.seed, device=config.device,
        threads=config.threads, compile=config.compile, body="full" if full else "adapters",
        rows="free" if full else "frozen", base_bits=4 if config.method == "qlora" else None,
        sample_minutes=0.0, save_minutes=2.0, keep=1,
        lora=LoraConfig(config.rank, config.alpha), data=data,
        optim=OptimConfig(lr=lr, warmup=0.05, schedule="cosine", weight_decay=0.01 if full else 0.0),
    )  # fmt: skip


def run(config: FinetuneConfig, say: Say = print) -> dict[str, Any] | None:
    """All of it; what results.json holds comes back, or None where it was stopped (and saved).

    Raises InputError and the rooms' typed errors.
    """
    base, out, started = Path(config.base), Path(config.out), time.monotonic()
    begun = _begun(config, base, out)
    if begun is not None:
        say(f"{out}: was trained before; these are its figures")
        return begun
    longest = Config.from_hf(read_json(base / "config.json")).max_len
    max_tokens = config.max_tokens or min(LONGEST, longest)
    if max_tokens > longest:
        raise InputError(f"--max-tokens {max_tokens}: the model reads {longest} at most")
    if (out / "run" / "settings.json").is_file():
        _same(out, _plain(config))  # before anything is read
    processor = Processor.load(base)
    given = Given(
        [Path(name) for name in config.data], config.kind, config.direction, config.prompt, config.val,
        config.seed, max_tokens, config.skip_bad, runtime.set_threads(config.threads),
    )  # fmt: skip
    prepared = finetune_data.prepare(given, processor, base, out / "data")
    for note in prepared.notes:
        say(note)
    _same(out, {**_plain(config), "data hash": prepared.digest})
    settings = recipe(config, prepared.train)
    say(_described(config, settings, prepared))
    device, dtype = prepare_machine(settings)
    decoder, rows = _open(settings, base, device, dtype)
    made_of = [prepared.digest, weights_revision(base), str(dtype), config.method]
    measure = partial(_measure, decoder, rows, prepared, dtype, "before")
    before = kept(out / "run" / "before.json", made_of, measure)
    del measure  # it holds the decoder
    trainer = Trainer(settings, decoder, rows, prepared.train, out / "run")
    result = trainer.run()
    if not result.finished:
        return None
    if config.method == "full":
        finetune_card.write_model(decoder, base, out / "model")
    else:
        write_adapter(out, result.trained, settings.lora, base.resolve().name)
    if config.method == "lora":  # afresh: what the pass has made of the decoder is its own matter
        del trainer, decoder, rows
        gc.collect()
        decoder, rows = _open(settings, base, device, dtype)
        _merge(decoder, result.trained, settings.lora)
    else:
        _ = trainer.way  # of QLoRA: whose making hangs the adapters on the decoder
        del trainer
    after = _measure(decoder, rows, prepared, dtype, "after")
    del decoder, rows
    gc.collect()
    results = {
        **_told(config, settings, prepared, result, base, max_tokens),
        "held_out": _by_medium(before["held_out"], after["held_out"], config.seed),
        "regression": _by_kind(prepared.regression, before, after, config.seed),
        "answers": finetune_answers.compare(config, prepared.held_documents, base, out),
    }
    results["warnings"] = warnings(results)
    results["cost"] = {
        "minutes": round((time.monotonic() - started) / 60, 1),
        "processor_minutes": round(time.process_time() / 60, 1), "threads": torch.get_num_threads(),
        "peak_mb": memory()[1],
    }  # fmt: skip
    write_atomic(out / "README.md", finetune_card.card(results).encode())
    write_atomic(out / "results.json", (json.dumps(results, indent=2) + "\n").encode())
    return results


def _told(
    config: FinetuneConfig, settings: TrainConfig, prepared: Prepared, result: Result, base: Path,
    max_tokens: int,
) -> dict[str, Any]:  # fmt: skip
    """What was trained, on what and for how long."""
    return {
        "asked": _plain(config), "base": base.resolve().name, "base_revision": weights_revision(base),
        "method": config.method,
        "data": {
            "files": [Path(name).name for name in config.data], "hash": prepared.digest,
            "records": len(prepared.train), "held_out": len(prepared.held_out),
            "skipped": prepared.skipped, "tokens": int(prepared.train.lengths.sum()),
        },
        "training": {
            "steps": result.step, "tokens": result.tokens, "seconds": round(result.seconds, 1),
        },
        "settings": {
            **dataclasses.asdict(config), "lr": settings.optim.lr, "steps": settings.steps,
            "max_tokens": max_tokens,
        },
        "notes": prepared.notes,
    }  # fmt: skip


def warnings(results: dict[str, Any]) -> list[str]:
    """What fell by more than its noise, a line each."""
    found = []
    for kind, row in results["regression"].items():
        if row["worse"]:
            low, high = row["interval"]
            found.append(
                f"{kind} got worse: loss {row['loss_before']:.3f} to {row['loss_after']:.3f} nats "
                f"(95 % interval of the change {low:+.3f} to {high:+.3f})"
            )
    if results["held_out"]["all"]["worse"]:
        found.append("the held-out records got worse: fewer epochs, or a lower --lr")
    return found


def _begun(config: FinetuneConfig, base: Path, out: Path) -> dict[str, Any] | None:
    """What an ended run into `out` found, if its settings were these. Raises InputError."""
    if not (base / "config.json").is_file():
        raise InputError(f"{base}: no model here; name its folder with --base")
    path = out / "results.json"
    if not path.is_file():
        return None
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    _agree(out, results["asked"], _plain(config))
    return results


def _same(out: Path, stated: dict[str, Any]) -> None:
    """Note what the run in `out` is made of. Raises InputError where it was begun with something else."""
    path = out / "run" / "settings.json"
    held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    _agree(out, held, stated)
    write_atomic(path, (json.dumps(held | stated, indent=2) + "\n").encode())


def _agree(out: Path, held: dict[str, Any], stated: dict[str, Any]) -> None:
    for key, value in stated.items():
        if key in held and held[key] != value:
            raise InputError(f"{out}: holds a run with another {key}; choose another --out")


def _plain(config: FinetuneConfig) -> dict[str, Any]:
    """The settings that make the result what it is, as JSON has them."""
    found: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return {key: value for key, value in found.items() if key not in ("out", "threads", "device", "compile")}


def _described(config: FinetuneConfig, settings: TrainConfig, prepared: Prepared) -> str:
    data = settings.data
    length = f"{settings.steps} steps" if settings.steps is not None else f"{settings.minutes:g} minutes"
    left = f", {prepared.skipped} left out" if prepared.skipped else ""
    return (
        f"{len(prepared.train)} records ({int(prepared.train.lengths.sum()):,} tokens) to train on, "
        f"{len(prepared.held_out)} held out{left}; {length} of {data.row * data.accumulate:,} tokens"
    )


def _open(
    settings: TrainConfig, base: Path, device: torch.device, dtype: torch.dtype
) -> tuple[Decoder, Rows]:
    """The base and its rows: whole, or (QLoRA) with its body in blocks from the first matrix on."""
    if settings.base_bits is not None:
        decoder, table = open_base(base, settings.base_bits, dtype)
        # `to` refuses the rows that were given up, which are nowhere.
        decoder._apply(lambda tensor: tensor if tensor.is_meta else tensor.to(device))
        return decoder, FrozenRows(table.to(device), dtype)
    decoder = checkpoint.load(base, device=device)
    if settings.rows == "free":
        return decoder, FreeRows(decoder, dtype)
    if not decoder.config.tied:
        raise InputError(f"{base}: has a head of its own beside the embedding: only --full trains it")
    return decoder, FrozenRows(decoder.output_weight, dtype)


@torch.no_grad()
def _merge(decoder: Decoder, factors: Mapping[str, Tensor], lora: LoraConfig) -> None:
    weights = dict(decoder.named_parameters())
    for name, weight in merged(weights, factors, lora.alpha / lora.rank).items():
        weights[name].copy_(weight)


def _measure(
    decoder: Decoder, rows: Rows, prepared: Prepared, dtype: torch.dtype, when: str
) -> dict[str, Losses]:
    some = finetune_answers.spread(range(len(prepared.held_out)), MEASURED)
    out = {
        "held_out": document_losses(
            decoder, prepared.held_out, dtype, some, f"held-out records {when}",
            rows.table_VD,
        )
    }
    if prepared.regression is not None:
        out["regression"] = document_losses(
            decoder, prepared.regression, dtype, label=f"regression set {when}", rows_VD=rows.table_VD
        )
    return out


def kept(path: Path, made_of: list[str], measure: Callable[[], dict[str, Losses]]) -> dict[str, Losses]:
    """What `measure` gives, from `path` where an earlier call left it there, made of the same."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if held["made of"] == made_of:
            return {name: Losses(*map(np.array, both)) for name, both in held["losses"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or not whole: measured again
    found = measure()
    losses = {name: [one.sums.tolist(), one.counts.tolist()] for name, one in found.items()}
    write_atomic(path, json.dumps({"made of": made_of, "losses": losses}).encode())
    return found


def _by_medium(before: Losses, after: Losses, seed: int) -> dict[str, Any]:
    found: dict[str, Change | None] = {
        "all": change(before.sums.sum(1), after.sums.sum(1), before.counts.sum(1), seed)
    }
    for i, name in enumerate(MEDIA):
        found[name] = change(before.sums[:, i], after.sums[:, i], before.counts[:, i], seed)
    return {name: one.to_json() for name, one in found.items() if one is not None}


def _by_kind(
    corpus: Corpus | None, before: dict[str, Losses], after: dict[str, Losses], seed: int
) -> dict[str, Any]:
    if corpus is None:
        return {}
    out = {}
    for i, kind in enumerate(corpus.tasks):
        rows = [n for n, task in enumerate(corpus.task_of) if task == i]
        a, b = before["regression"].pick(rows), after["regression"].pick(rows)
        one = change(a.sums.sum(1), b.sums.sum(1), a.counts.sum(1), seed)
        if one is not None:
            out[kind] = one.to_json()
    return out


