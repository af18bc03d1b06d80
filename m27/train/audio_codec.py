"""Training of the audio codec: prepared features → weights, resumable, on a budget of minutes or
of steps.

Losses: log-spectra at several resolutions of the wave that comes out, the pitch and voicing of
the wave that went in, and a teacher's units and captions, which must be readable from the codes.

Shape suffixes: B batch, T samples, N codes, F frames, D width.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from m27.codec import packing
from m27.codec.audio import FILE, AudioCodec
from m27.train.audio_corpus import Corpus, fast_bf16
from m27.train.audio_losses import Heads, LossWeights, k_means, losses, perplexity

OWN_VOICE = "own-voice"  # the clips of speech in the one voice that the model speaks with
# How much of a batch comes from each source; what is not named has 0.02. Real voices and single
# words weigh more than their hours.
WEIGHTS = {
    "speech": 0.17,
    OWN_VOICE: 0.10,
    "spoken-orders": 0.14,
    "spoken-words": 0.13,
    "spoken-digits": 0.10,
    "esc10": 0.12,
    "instruments": 0.13,
    "notes": 0.08,
    "stamps": 0.02,
    "sonic-pi": 0.01,
}


CLIP = 2.0  # longest gradient
Row = dict[str, Tensor | float]  # what a step reports; asked for once in so many steps


@dataclass(frozen=True)
class AudioTraining:
    """One training run. It ends after ``minutes`` of work, or after ``steps`` if that is not 0."""

    corpus: str = ".cache/codecs/audio-train"
    run: str = "runs/audio-codec"
    out: str = ".cache/codecs"
    name: str = FILE
    minutes: float = 30.0
    steps: int = 0
    threads: int = 1
    batch: int = 10
    codes: int = 64
    lr: float = 1.5e-3
    warmup: int = 100
    weight_decay: float = 0.02
    weights: LossWeights = field(default_factory=LossWeights)
    begin: str = ""  # a codec to go on from; "": from random weights
    negatives: int = 192  # further captions a batch
    device: str = "cpu"
    seed: int = 0
    save_minutes: float = 4.0
    log_every: int = 20
    bf16: bool | None = None  # None: where the device is fast in it


def rate(step: int, progress: float, recipe: AudioTraining) -> float:
    """Learning rate: linear warm-up, then a cosine to a fiftieth over ``progress`` 0..1."""
    cosine = 0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * min(progress, 1.0)))
    return recipe.lr * min(1.0, (step + 1) / recipe.warmup) * cosine


def adam(recipe: AudioTraining, *modules: tuple[nn.Module, float]) -> torch.optim.AdamW:
    """AdamW over modules, each with its share of the learning rate; vectors do not decay."""
    groups: list[dict[str, Any]] = []
    for module, share in modules:
        parameters = list(module.parameters())
        for some, decay in (
            ([p for p in parameters if p.ndim >= 2], recipe.weight_decay),
            ([p for p in parameters if p.ndim < 2], 0.0),
        ):
            groups.append({"params": some, "weight_decay": decay, "share": share})
    # Not on a device that only has shapes, which tests use.
    fused = recipe.device != "meta"
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), fused=fused)


class Trainer:
    """State of a run: codec, head, optimiser, step, seconds worked."""

    def __init__(self, recipe: AudioTraining) -> None:
        self.recipe = recipe
        torch.manual_seed(recipe.seed)
        device = torch.device(recipe.device)
        self.bf16 = fast_bf16(recipe.device) if recipe.bf16 is None else recipe.bf16
        self.corpus = Corpus(Path(recipe.corpus), WEIGHTS, recipe.device)
        self.codec = AudioCodec.load(recipe.corpus)
        if recipe.begin:
            begun = AudioCodec.load(Path(recipe.begin).parent, name=Path(recipe.begin).name)
        else:
            begun = AudioCodec(self.codec.config)  # the stored one went through int8
        self.codec.encoder, self.codec.decoder = begun.encoder, begun.decoder
        self.codec.ear.requires_grad_(False)
        self.add_heads(self.corpus.teacher_sample())
        self.codec.to(device)
        self.heads.to(device)
        self.learned = nn.ModuleDict(
            {"encoder": self.codec.encoder, "decoder": self.codec.decoder, "heads": self.heads}
        )
        self.optimizers = {"all": adam(recipe, (self.learned, 1.0))}
        self.step = 0
        self.seconds = 0.0

    def train_step(self) -> tuple[Row, Tensor]:
        """One step; its data and noise depend on seed and step number only. Losses stay on the device."""
        recipe = self.recipe
        rng = self.seeded()
        self.learned.train()
        batch = self.corpus.batch(rng, recipe.batch, recipe.codes, recipe.negatives)
        terms, codes, _ = losses(self.codec, self.heads, batch, self.scale, self.bf16)
        loss = recipe.weights.total(terms)
        lr = rate(self.step, self.progress(), recipe)
        norm = self.advance("all", loss, lr)
        self.step += 1
        row: Row = {name: term.detach() for name, term in terms.items()}
        return {**row, "loss": loss.detach(), "norm": norm, "lr": lr}, codes

    def add_heads(self, sample_ND: Tensor) -> None:
        """Make the heads; units of the semantic one are clusters of the teacher's features [N, D], each dimension in
        its own deviation."""
        c = self.codec.config
        self.heads = Heads(len(c.levels), c.decoder_dim, c.whisper_dim)
        self.scale = sample_ND.mean(0), sample_ND.std(0) + 1e-3
        semantic = self.heads.semantic
        standard = (sample_ND - self.scale[0]) / self.scale[1]
        semantic.centroids = k_means(standard, semantic.context.out_features)

    def seeded(self) -> np.random.Generator:
        """The generator of this step's data; torch's is set too. Both depend on seed and step number only."""
        torch.manual_seed(self.recipe.seed * 1_000_003 + self.step)
        return np.random.default_rng((self.recipe.seed, self.step))

    def progress(self) -> float:
        """Share of the run that is over, from 0."""
        recipe = self.recipe
        return self.step / recipe.steps if recipe.steps else self.seconds / (60 * recipe.minutes)

    def advance(self, name: str, loss: Tensor, lr: float) -> Tensor:
        """A step of one optimiser down a loss; the gradient's norm. One that is not finite counts as
        nought, without the host's asking, which would wait for the device."""
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        good = torch.isfinite(norm)
        scale = torch.where(good, (CLIP / (norm + 1e-6)).clamp(max=1.0), torch.zeros_like(norm))
        for gradient in gradients:
            gradient.nan_to_num_(0.0, 0.0, 0.0)
        torch._foreach_mul_(gradients, scale)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["share"]
        optimizer.step()
        return norm

    def save(self, final: bool = False) -> None:
        """Write the resumable state and the codec as shipped, under the run's folder; ``final``
        also to ``out``."""
        run = Path(self.recipe.run)
        tensors = {
            f"model/{k}": v.detach().contiguous() for k, v in self.learned.state_dict().items()
        }
        for name, number, parameter, state in self._moments():
            for key, value in state.get(parameter, {}).items():
                tensors[f"optimizer/{name}/{number}/{key}"] = value
        now = {"step": self.step, "seconds": self.seconds, "recipe": asdict(self.recipe)}
        packing.write(run / "state.safetensors", tensors, {"state": json.dumps(now)})
        self.codec.save(run)
        if final:
            self.codec.save(self.recipe.out, self.recipe.name)

    def _moments(self) -> Iterator[tuple[str, int, nn.Parameter, dict[Any, Any]]]:
        """Optimiser's name, number in it, parameter, and the optimiser's state, of every parameter."""
        for name, optimizer in self.optimizers.items():
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            for number, parameter in enumerate(parameters):
                yield name, number, parameter, optimizer.state

    def resume(self) -> bool:
        """Continue from the run's folder, if it has a state; says whether it had."""
        path = Path(self.recipe.run) / "state.safetensors"
        if not path.is_file():
            return False
        tensors, metadata = packing.read(path)
        model = {k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")}
        self.learned.load_state_dict(model)
        for name, number, parameter, moments in self._moments():
            prefix = f"optimizer/{name}/{number}/"
            for key in [key for key in tensors if key.startswith(prefix)]:
                moments[parameter][key.removeprefix(prefix)] = tensors[key].to(
                    "cpu" if key.endswith("/step") else parameter.device
                )
        state = json.loads(metadata["state"])
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
        return True

    def finished(self) -> bool:
        """Whether the budget is spent."""
        recipe = self.recipe
        return self.step >= recipe.steps if recipe.steps else self.seconds >= 60 * recipe.minutes


def train(recipe: AudioTraining) -> Path:
    """Run or resume a training to its end; returns the codec's file. Logs JSON lines to
    ``run/log.jsonl``."""
    return work(Trainer(recipe))


def work(trainer: Trainer) -> Path:
    """Train to the end of the run; returns the codec's file."""
    recipe = trainer.recipe
    torch.set_num_threads(recipe.threads)
    run = Path(recipe.run)
    run.mkdir(parents=True, exist_ok=True)
    resumed = trainer.resume()
    print(
        f"audio codec: {trainer.corpus.hours:.2f} h, step {trainer.step}, resumed {resumed}",
        flush=True,
    )
    recent: list[Row] = []
    seen: list[Tensor] = []
    saved = time.monotonic()
    with (run / "log.jsonl").open("a") as log:
        while not trainer.finished():
            began = time.monotonic()
            row, codes = trainer.train_step()
            trainer.seconds += time.monotonic() - began
            recent.append(row)
            seen.append(codes)
            if trainer.step % recipe.log_every == 0:
                had = {k: [r[k] for r in recent if k in r] for k in row}
                mean = {k: round(float(sum(v) / len(v)), 5) for k, v in had.items()}
                use = perplexity(torch.cat(seen), trainer.codec.codebook_size)
                line = {"step": trainer.step, "seconds": round(trainer.seconds, 1), **mean}
                log.write(json.dumps({**line, "perplexity": round(use, 1)}) + "\n")
                log.flush()
                print({**line, "perplexity": round(use, 1)}, flush=True)
                recent, seen = [], seen[-40:]
            if time.monotonic() - saved > 60 * recipe.save_minutes:
                trainer.save()
                saved = time.monotonic()
        trainer.save(final=True)
        log.write(json.dumps({"step": trainer.step, "revision": trainer.codec.revision}) + "\n")
        os.fsync(log.fileno())
    return Path(recipe.out) / recipe.name
