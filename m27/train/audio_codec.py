"""Training of the audio codec: prepared features → weights, resumable, on a budget of minutes or
of steps.

Losses: log-spectra at several resolutions of the wave that comes out, the pitch and voicing of
the wave that went in, and a teacher's features, which must be readable from the codes.

Shape suffixes: B batch, T samples, N codes, F frames, D width.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m27.codec import packing
from m27.codec.audio import REST, AudioCodec, hold_from
from m27.codec.mel import ACOUSTIC_BANDS, PITCH_BINS, hann, mel_filters, pitch_hz, pitch_track
from m27.codec.source_filter import Frames, synthesise
from m27.train.audio_corpus import Batch, Corpus

WEIGHTS = {
    "speech": 0.36,
    "spoken-orders": 0.26,
    "spoken-words": 0.08,
    "spoken-digits": 0.06,
    "esc10": 0.10,
    "instruments": 0.10,
    "sonic-pi": 0.02,
}


FLOOR = 3e-4  # magnitude of a tone at -70 dB: what is below does not count


@dataclass(frozen=True)
class AudioTraining:
    """One training run. It ends after ``minutes`` of work, or after ``steps`` if that is not 0."""

    corpus: str = ".cache/codecs/audio-train"
    run: str = "runs/audio-codec"
    out: str = ".cache/codecs"
    minutes: float = 30.0
    steps: int = 0
    threads: int = 1
    batch: int = 10
    codes: int = 64
    lr: float = 1.5e-3
    warmup: int = 100
    weight_decay: float = 0.02
    semantic: float = 1.0
    seed: int = 0
    save_minutes: float = 4.0
    log_every: int = 20
    bf16: bool = True


class SemanticHead(nn.Module):
    """Reads the teacher's unit (nearest of K centroids) from single codes and from the decoder's
    states.

    Units, not the features themselves: those spread over hundreds of directions, of which 13
    bits keep few, and squared error then teaches hardly anything. Not shipped. Source: Hsu et
    al., "HuBERT" (2021).
    """

    centroids: Tensor

    def __init__(self, levels: int, decoder_dim: int, teacher_dim: int, units: int = 256) -> None:
        super().__init__()
        self.local = nn.Sequential(nn.Linear(levels, 256), nn.GELU(), nn.Linear(256, units))
        self.context = nn.Linear(decoder_dim, units)
        self.register_buffer("centroids", torch.zeros(units, teacher_dim))

    def forward(self, q_BND: Tensor, h_BND: Tensor) -> tuple[Tensor, Tensor]:
        """→ logits of the unit from the codes alone, and with context, ``[B, N, K]`` each."""
        return self.local(q_BND), self.context(h_BND)

    def units(self, standard_BND: Tensor) -> Tensor:
        """Standardised teacher features → numbers of the nearest centroids ``[B, N]``."""
        return nearest(standard_BND, self.centroids)


def nearest(x_ND: Tensor, centroids_KD: Tensor) -> Tensor:
    """Number of the centroid nearest to each row."""
    return (x_ND @ centroids_KD.T - 0.5 * centroids_KD.square().sum(-1)).argmax(-1)


def k_means(x_ND: Tensor, units: int, rounds: int = 12) -> Tensor:
    """Centroids ``[units, D]`` by Lloyd's rounds from evenly spread rows; an empty one keeps its place."""
    centroids = x_ND[torch.linspace(0, len(x_ND) - 1, units).long()].clone()
    for _ in range(rounds):
        number = nearest(x_ND, centroids)
        count = torch.bincount(number, minlength=units)[:, None]
        total = torch.zeros_like(centroids).index_add_(0, number, x_ND)
        centroids = torch.where(count > 0, total / count.clamp_min(1), centroids)
    return centroids


def _magnitudes(wave_BT: Tensor, size: int) -> Tensor:
    window = hann(size).to(wave_BT)
    spectra = torch.stft(wave_BT, size, size // 4, window=window, center=False, return_complex=True)
    return (torch.view_as_real(spectra).square().sum(-1) + 1e-9).sqrt() * (4 / size)


def spectral_loss(
    wave_BT: Tensor, target_BT: Tensor, sizes: tuple[int, ...] = (256, 512, 1024, 2048)
) -> tuple[Tensor, Tensor]:
    """Log-spectrum L1 over the given resolutions, and log-mel L1 (natural logarithms); scalars."""
    total = wave_BT.new_zeros(())
    mel_loss = total
    for size in sizes:
        ours = _magnitudes(wave_BT, size)
        with torch.no_grad():
            theirs = _magnitudes(target_BT, size)
            log_theirs = (theirs + FLOOR).log()
            filters = mel_filters(80 if size > 256 else 40, size)
            filters = filters / filters.sum(1, keepdim=True).clamp_min(1e-6)
            mel_theirs = (filters @ theirs + FLOOR).log()
            loud = theirs.mean().clamp_min(1e-3)
        total = total + ((ours + FLOOR).log() - log_theirs).abs().mean()
        total = total + 0.5 * (ours - theirs).abs().mean() / loud
        mel_loss = mel_loss + ((filters @ ours + FLOOR).log() - mel_theirs).abs().mean()
    return total / len(sizes), mel_loss / len(sizes)


def losses(
    codec: AudioCodec, head: SemanticHead, batch: Batch, scale: tuple[Tensor, Tensor], bf16: bool
) -> tuple[dict[str, Tensor], Tensor]:
    """All loss terms of a batch (unweighted scalars) and the codes ``[B, N]``."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        z = codec.encoder(batch.heard_BND, batch.acoustic_BFM)
        with torch.autocast("cpu", enabled=False):
            q, codes = codec.quantizer(z.float())
        h = codec.decoder.hidden(q)
        logits, voicing, tone, noise = codec.decoder.frames(h)
        near, far = head(q, h)
    pitch, voiced = pitch_track(batch.acoustic_BFM[..., ACOUSTIC_BANDS:])
    bins = torch.arange(PITCH_BINS)
    soft = torch.softmax(-0.5 * (bins - pitch[..., None]).square(), -1)
    wrong = -(soft * logits.log_softmax(-1)).sum(-1)
    start = torch.full_like(pitch[:, 0], REST)
    hertz = hold_from(start, pitch_hz(pitch), voiced)
    phase = torch.rand(len(start), dtype=torch.float64)
    at = int(torch.randint(0, 1 << 16, ()))
    wave = synthesise(Frames(hertz, start, phase, at, tone, noise))
    pair = (256, 1024) if int(torch.randint(0, 2, ())) else (512, 2048)
    spectrum, mel = spectral_loss(wave, batch.wave_BT, pair)
    units = head.units((batch.teacher_BND - scale[0]) / scale[1]).flatten()
    sounding = batch.wave_BT.unflatten(1, codes.shape[1:] + (-1,)).abs().mean(-1) > 1e-3
    weight = sounding.flatten().float()
    weight = weight / weight.sum().clamp_min(1)
    near_loss, far_loss = (
        (F.cross_entropy(x.float().flatten(0, 1), units, reduction="none") * weight).sum()
        for x in (near, far)
    )
    flat = z.flatten(0, 1) - z.mean((0, 1))
    spread = flat.T @ flat / len(flat)
    deviation = spread.diagonal().clamp_min(1e-4).sqrt()
    spread = spread / deviation.outer(deviation)
    return {
        "spectrum": spectrum,
        "mel": mel,
        "pitch": (wrong * voiced).sum() / voiced.sum().clamp_min(1),
        "voiced": F.binary_cross_entropy_with_logits(voicing, voiced.float()),
        "semantic": near_loss,
        "context": far_loss,
        "white": (spread - torch.eye(len(spread))).square().sum() / len(spread),
    }, codes


def weigh(terms: dict[str, Tensor], semantic: float) -> Tensor:
    """The one loss that is minimised."""
    return (
        terms["spectrum"]
        + 2 * terms["mel"]
        + 0.4 * terms["pitch"]
        + 0.2 * terms["voiced"]
        + semantic * (0.4 * terms["semantic"] + 0.2 * terms["context"])
        + 0.05 * terms["white"]
    )


def perplexity(codes: Tensor, size: int) -> float:
    """Exponential of the entropy of the codes' frequencies; at most ``size``."""
    share = torch.bincount(codes.flatten(), minlength=size).double() / codes.numel()
    return float((-(share * share.clamp_min(1e-12).log()).sum()).exp())


def rate(step: int, progress: float, recipe: AudioTraining) -> float:
    """Learning rate: linear warm-up, then a cosine to a fiftieth over ``progress`` 0..1."""
    cosine = 0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * min(progress, 1.0)))
    return recipe.lr * min(1.0, (step + 1) / recipe.warmup) * cosine


class Trainer:
    """State of a run: codec, head, optimiser, step, seconds worked."""

    def __init__(self, recipe: AudioTraining) -> None:
        self.recipe = recipe
        torch.manual_seed(recipe.seed)
        self.corpus = Corpus(Path(recipe.corpus), WEIGHTS)
        self.codec = AudioCodec.load(recipe.corpus)
        fresh = AudioCodec(self.codec.config)  # the stored one went through int8
        self.codec.encoder, self.codec.decoder = fresh.encoder, fresh.decoder
        self.codec.ear.requires_grad_(False)
        c = self.codec.config
        self.head = SemanticHead(len(c.levels), c.decoder_dim, c.whisper_dim)
        sample = self.corpus.teacher_sample()
        self.scale = sample.mean(0), sample.std(0) + 1e-3
        self.head.centroids = k_means(
            (sample - self.scale[0]) / self.scale[1], self.head.context.out_features
        )
        self.learned = nn.ModuleDict(
            {"encoder": self.codec.encoder, "decoder": self.codec.decoder, "head": self.head}
        )
        named = dict(self.learned.named_parameters())
        matrices = [p for p in named.values() if p.ndim >= 2]
        vectors = [p for p in named.values() if p.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": recipe.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=recipe.lr,
            betas=(0.9, 0.98),
            fused=True,
        )
        self.order = matrices + vectors
        self.step = 0
        self.seconds = 0.0

    def train_step(self) -> tuple[dict[str, float], Tensor]:
        """One step; its data and noise depend on seed and step number only."""
        recipe = self.recipe
        rng = np.random.default_rng((recipe.seed, self.step))
        torch.manual_seed(recipe.seed * 1_000_003 + self.step)
        done = self.step / recipe.steps if recipe.steps else self.seconds / (60 * recipe.minutes)
        self.learned.train()
        batch = self.corpus.batch(rng, recipe.batch, recipe.codes)
        terms, codes = losses(self.codec, self.head, batch, self.scale, recipe.bf16)
        loss = weigh(terms, recipe.semantic)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.order, 2.0)
        lr = rate(self.step, done, recipe)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if bool(torch.isfinite(norm)):
            self.optimizer.step()
        self.step += 1
        row = {name: float(term.detach()) for name, term in terms.items()}
        return {**row, "loss": float(loss.detach()), "norm": float(norm), "lr": lr}, codes

    def save(self, final: bool = False) -> None:
        """Write the resumable state and the codec as shipped, under the run's folder; ``final``
        also to ``out``."""
        run = Path(self.recipe.run)
        tensors = {
            f"model/{k}": v.detach().contiguous() for k, v in self.learned.state_dict().items()
        }
        for number, parameter in enumerate(self.order):
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{number}/{key}"] = value
        state = {"step": self.step, "seconds": self.seconds, "recipe": asdict(self.recipe)}
        packing.write(run / "state.safetensors", tensors, {"state": json.dumps(state)})
        self.codec.save(run)
        if final:
            self.codec.save(self.recipe.out)

    def resume(self) -> bool:
        """Continue from the run's folder, if it has a state; says whether it had."""
        path = Path(self.recipe.run) / "state.safetensors"
        if not path.is_file():
            return False
        tensors, metadata = packing.read(path)
        model = {k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")}
        self.learned.load_state_dict(model)
        for name, value in tensors.items():
            if name.startswith("optimizer/"):
                _, number, key = name.split("/")
                self.optimizer.state[self.order[int(number)]][key] = value
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
    torch.set_num_threads(recipe.threads)
    trainer = Trainer(recipe)
    run = Path(recipe.run)
    run.mkdir(parents=True, exist_ok=True)
    resumed = trainer.resume()
    print(
        f"audio codec: {trainer.corpus.hours:.2f} h, step {trainer.step}, resumed {resumed}",
        flush=True,
    )
    recent: list[dict[str, float]] = []
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
                mean = {k: round(sum(r[k] for r in recent) / len(recent), 5) for k in recent[0]}
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
    return Path(recipe.out) / "audio_codec.safetensors"
