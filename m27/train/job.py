"""A whole run as one typed value: its settings, the model it trains, and where tokens come from.

A recipe returns a `Job`; `open_trainer` makes of it what the loop needs, whatever the family and the size:
a decoder drawn from the seed or read from a folder, the rows that its settings ask for, the shards. It
knows no registry and no command line.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from m27.data.build import revisions
from m27.data.mixture import Corpus
from m27.language.processor import Processor
from m27.language.vocabulary import VocabularyError
from m27.model import checkpoint as weights
from m27.model.config import SIZES, Config
from m27.model.decoder import Decoder
from m27.model.files import read_json
from m27.train.loop import Trainer, prepare_machine
from m27.train.qlora import open_base
from m27.train.rows import FreeRows, FrozenRows, Rows
from m27.train.settings import SettingError, TrainConfig


@dataclass(frozen=True)
class Job(TrainConfig):
    """A `TrainConfig` with its model and its data.

    `begin` is the folder of the model to begin with, in any layout that `m27 chat` opens; "" draws weights
    of the shape `model` from the seed, with the vocabulary of the shards whatever `model.vocab_size` says.
    `shards` are folders that `m27 data build` wrote. `tokenizer` is the folder whose tokenizer and codecs
    go along with what is written ("": that of `begin`, else of m27-nano where it fits). `write` says which
    weights are written at the end: the last step's, or their moving average (`optim.average`).
    """

    model: Config = SIZES["tiny"]
    begin: str = ""
    shards: Sequence[str] = ()
    tokenizer: str = ""
    write: Literal["last", "average"] = "last"

    def settings(self) -> TrainConfig:
        """The part that the loop reads."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(TrainConfig)}
        return TrainConfig(**own)


def shape_of(folder: str | Path) -> Config:
    """The shape of the model in a folder. Raises what reading its config.json raises."""
    return Config.from_hf(read_json(Path(folder) / "config.json"))


def open_corpus(job: Job) -> Corpus:
    """The job's shards. Raises SettingError where none is named, ShardError for one that is not whole."""
    if not job.shards:
        raise SettingError("no shards: name their folders with --shards; `m27 data build` makes them")
    return Corpus(job.shards)


def open_model(job: Job, corpus: Corpus, device: torch.device, dtype: torch.dtype) -> tuple[Decoder, Rows]:
    """The decoder that training begins with, with rows for every id of the shards, as `job.rows` asks.

    Raises SettingError for what does not go together, and what reading the folder raises.
    """
    if job.rows == "maps":
        raise SettingError("rows=maps: code maps are trained by the recipes nano-…; here it is free or frozen")
    vocabulary = corpus.meta["vocabulary"]
    size = int(vocabulary["audio"][1])  # audio codes are the last ids; what follows only fills up
    if not job.begin:
        if job.rows != "free" or job.body != "full":
            raise SettingError("begin: only a run that trains every weight (body=full, rows=free) goes without")
        torch.manual_seed(job.seed)
        shape = dataclasses.replace(job.model, vocab_size=int(vocabulary["size"]))
        decoder = Decoder(shape, job.recompute).to(device)
        return decoder, FreeRows(decoder, dtype)
    _see_vocabulary(Path(job.begin), corpus)
    shape = shape_of(job.begin)
    if shape.vocab_size < size and job.rows == "frozen":
        raise SettingError(
            f"begin: {job.begin} has {shape.vocab_size:,} rows and the shards {size:,} ids; rows=free adds them"
        )
    if job.base_bits is not None and shape.tied and not shape.n_experts:
        decoder, rows_VD = open_base(job.begin, job.base_bits, dtype)
        for part in (decoder.model.layers, decoder.model.norm):  # the embedding's place is empty
            part.to(device)
        return decoder, FrozenRows(rows_VD.to(device), dtype)
    decoder = weights.load(job.begin)
    if decoder.config.vocab_size < size:
        print(f"{job.begin}: {decoder.config.vocab_size:,} rows, extended to {size:,}", file=sys.stderr)
        decoder = weights.extend_vocabulary(decoder, size)
    decoder = decoder.to(device)
    if job.rows == "free":
        return decoder, FreeRows(decoder, dtype)
    inputs = None if decoder.config.tied else decoder.model.embed_tokens.weight
    return decoder, FrozenRows(decoder.output_weight, dtype, inputs)


def differing(folder: Path, corpus: Corpus) -> str | None:
    """In what the tokenizer and the codecs of a folder are not those that the shards were built with, or None.

    Raises VocabularyError where the folder has no tokenizer of ours.
    """
    own = json.loads(json.dumps(revisions(Processor.load(folder))))
    for name in ("vocabulary", "vocabulary_hash", "image_codec", "audio_codec"):
        theirs = corpus.meta[name]
        if "none" not in (own[name], theirs) and own[name] != theirs:
            return name
    return None


def _see_vocabulary(folder: Path, corpus: Corpus) -> None:
    try:
        name = differing(folder, corpus)
    except VocabularyError:  # a stock model: its tokenizer knows no codes, and its rows are extended
        return
    if name is not None:
        raise SettingError(
            f"shards: their {name} is not that of {folder}; build them with `m27 data build --model {folder}`"
        )


def open_trainer(job: Job, run: Path, quiet: bool = False) -> Trainer:
    """The trainer of a job in the folder `run`, gone on where it was. Raises SettingError and what it reads."""
    device, dtype = prepare_machine(job)
    corpus = open_corpus(job)
    decoder, rows = open_model(job, corpus, device, dtype)
    return Trainer(job.settings(), decoder, rows, corpus, run, quiet)
