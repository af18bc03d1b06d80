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
from m27.train.rows import FreeRows, FrozenRows, Rows
from m27.train.settings import SettingError, TrainConfig


@dataclass(frozen=True)
class Job(TrainConfig):
    """A `TrainConfig` with its model and its data.

    `begin` is the folder of the model to begin with, in any layout that `m27 chat` opens; "" draws weights
    of the shape `model` from the seed, with the vocabulary of the shards whatever `model.vocab_size` says.
    `shards` are folders that `m27 data build` wrote. `tokenizer` is the folder whose tokenizer and codecs
    go along with what is written ("": that of `begin`).
    """

    model: Config = SIZES["tiny"]
    begin: str = ""
    shards: Sequence[str] = ()
    tokenizer: str = ""

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


def open_decoder(job: Job, corpus: Corpus, device: torch.device) -> Decoder:
    """The decoder that training begins with, float32, with rows for every id of the shards."""
    size = int(corpus.meta["vocabulary"]["size"])
    if not job.begin:
        if job.rows != "free" or job.body != "full":
            raise SettingError("begin: only a run that trains every weight (body=full, rows=free) goes without")
        torch.manual_seed(job.seed)
        return Decoder(dataclasses.replace(job.model, vocab_size=size), job.recompute).to(device)
    _same_vocabulary(Path(job.begin), corpus)
    decoder = weights.load(job.begin)
    held = decoder.config.vocab_size
    if held < size and job.rows == "free":
        print(f"{job.begin}: {held:,} rows, extended to the {size:,} of the shards", file=sys.stderr)
        decoder = weights.extend_vocabulary(decoder, size)
    elif held < size:
        raise SettingError(f"begin: {job.begin} has {held:,} rows and the shards {size:,} ids; rows=free adds them")
    return decoder.to(device)


def _same_vocabulary(folder: Path, corpus: Corpus) -> None:
    """Raise SettingError where the folder has a tokenizer and codecs of ours, and the shards other ones."""
    try:
        own = json.loads(json.dumps(revisions(Processor.load(folder))))
    except VocabularyError:  # a stock model: its tokenizer knows no codes, and its rows are extended
        return
    for name in ("vocabulary", "vocabulary_hash", "image_codec", "audio_codec"):
        theirs = corpus.meta[name]
        if "none" not in (own[name], theirs) and own[name] != theirs:
            raise SettingError(
                f"shards: their {name} is not that of {folder}; build them with `m27 data build --model {folder}`"
            )


def rows_of(job: Job, decoder: Decoder, dtype: torch.dtype) -> Rows:
    """The vocabulary's rows as `job.rows` asks. Raises SettingError for maps, which are of m27-nano's stages."""
    if job.rows == "free":
        return FreeRows(decoder, dtype)
    if job.rows == "frozen":
        inputs = None if decoder.config.tied else decoder.model.embed_tokens.weight
        return FrozenRows(decoder.output_weight, dtype, inputs)
    raise SettingError("rows=maps: code maps are trained by the recipes nano-…; here it is free or frozen")


def open_trainer(job: Job, run: Path, quiet: bool = False) -> Trainer:
    """The trainer of a job in the folder `run`, gone on where it was. Raises SettingError and what it reads."""
    device, dtype = prepare_machine(job)
    corpus = open_corpus(job)
    decoder = open_decoder(job, corpus, device)
    return Trainer(job.settings(), decoder, rows_of(job, decoder, dtype), corpus, run, quiet)
