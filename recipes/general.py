"""Recipes for any model and any data: pretraining, fine-tuning every weight, adapters. See docs/train.md.

Each is a function that returns one typed `Job`; its parameters are what settings follow from. They all go through
the one loop. What a run leaves is written as a stock checkpoint, or as an adapter that PEFT opens.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from m27.cli.console import default_model
from m27.cli.export import CODEC_FILES, TOKENIZER_FILES, generation_config
from m27.language.vocabulary import Vocabulary, VocabularyError
from m27.model import checkpoint
from m27.model.config import SIZES
from m27.model.files import read_json, write_json
from m27.train import plan_run
from m27.train.job import Job, differing, open_corpus, open_trainer, shape_of
from m27.train.loop import Result, Trainer
from m27.train.lora import LoraConfig
from m27.train.optim import OptimConfig
from m27.train.peft import write_adapter
from m27.train.settings import DataConfig, SettingError


def pretrain(size: str = "nano", begin: str = "") -> Job:
    """A language model from its shape (or gone on with from `begin`), every weight and every row trained.

    Muon for the hidden matrices, AdamW for the rest; warm-up, a long hold, a decay over the last fifth.
    """
    if size not in SIZES:
        raise SettingError(f"size: {size!r} is none of {', '.join(SIZES)}")
    return Job(
        "pretrain", steps=1000, body="full", rows="free", sample_minutes=0.0,
        model=shape_of(begin) if begin else SIZES[size], begin=begin,
        data=DataConfig(row=2048, rows=4, step_rows=32),
        optim=OptimConfig(
            kind="muon", lr=2e-3, beta2=0.95, weight_decay=0.1, warmup=0.02, decay=0.2, floor=0.0
        ),
    )  # fmt: skip


def sft(begin: str = "") -> Job:
    """Every weight of a model (m27-nano unless `begin` names another) on your shards, at a falling rate."""
    folder = begin or str(default_model())
    return Job(
        "sft", steps=200, body="full", rows="free", sample_minutes=0.0,
        model=shape_of(folder), begin=folder,
        data=DataConfig(row=1024, rows=2, step_rows=8),
        optim=OptimConfig(lr=2e-5, beta2=0.98, schedule="cosine", warmup=0.05, floor=0.1),
    )  # fmt: skip


def lora(begin: str = "") -> Job:
    """Low-rank adapters on a frozen model (m27-nano unless `begin` names another), written for PEFT."""
    job = sft(begin)
    return replace(
        job, name="lora", body="adapters", rows="frozen", lora=LoraConfig(rank=16, alpha=32.0),
        optim=replace(job.optim, lr=2e-4),
    )  # fmt: skip


def qlora(begin: str = "") -> Job:
    """Adapters on a model that is held in blocks of 4 bits (`--base_bits 8` for 8), for the memory."""
    return replace(lora(begin), name="qlora", base_bits=4, path="plain")


def dpo(begin: str = "") -> Job:
    """Adapters that prefer the better of two answers, from shards of pairs (see docs/data.md), by DPO."""
    job = lora(begin)
    return replace(
        job, name="dpo", objective="preference",
        optim=replace(job.optim, lr=5e-5, beta2=0.999),
    )  # fmt: skip


def go(
    job: Job, run: Path, out: Path | None = None, until: int | None = None, minutes: float | None = None
) -> Result:
    """Train `job` in the folder `run`, or go on with it; the model is written to `out` (run/model) at its end."""
    if job.write == "average" and job.optim.average <= 0:
        raise SettingError("write=average: no average is kept; set optim.average, such as 0.999")
    trainer = open_trainer(job, run)
    if job.tokenizer and (name := differing(Path(job.tokenizer), trainer.corpus)):
        raise SettingError(f"tokenizer: the {name} of {job.tokenizer} is not that of the shards")
    held = json.loads(json.dumps(asdict(job), default=str))
    if trainer.parallel.leads:
        write_json(run / "settings.json", held)
    result = trainer.run(until, minutes)
    if result.finished:
        trained = trainer.trained(average=True) if job.write == "average" else result.trained
        if trainer.parallel.leads:
            print(write(job, trainer, trained, out or run / "model"))
    return result


def expected(job: Job) -> list[str]:
    """Memory and time that `job` is expected to take here, as lines; of the shards only their lengths are read."""
    corpus = open_corpus(job)
    model = job.model
    if not job.begin:
        model = replace(model, vocab_size=int(corpus.meta["vocabulary"]["size"]))
    return plan_run.expected(job.settings(), model, document=int(corpus.lengths.mean())).lines()


def write(job: Job, trainer: Trainer, trained: Mapping[str, Tensor], out: Path) -> str:
    """Write the trained model or adapter to `out`; a line that says what it is."""
    if job.body != "full":
        factors = {name: tensor for name, tensor in trained.items() if ".lora_" in name}
        write_adapter(out, factors, job.lora, job.begin)
        return f"{out}: adapter of rank {job.lora.rank} on {job.begin}"
    # From the tensors and not the trainer's decoder, of which a rank may hold a part.
    decoder = checkpoint.assemble(trainer.decoder.config, trained)
    checkpoint.save(decoder, out, dtype=torch.bfloat16)
    held = f"{out}: stock checkpoint, {decoder.config.family}, bfloat16"
    source = Path(job.tokenizer or job.begin or default_model())
    try:
        if differing(source, trainer.corpus) is not None:
            return f"{held}, without a tokenizer"
    except VocabularyError:
        return f"{held}, without a tokenizer"
    for name in (*TOKENIZER_FILES, *CODEC_FILES):
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    vocabulary = Vocabulary.from_tokenizer_json(read_json(source / "tokenizer.json"))
    write_json(out / "generation_config.json", generation_config(vocabulary.control))
    return f"{held}; m27 chat --model {out}"
