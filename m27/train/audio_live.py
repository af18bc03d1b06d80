"""Training of the audio codec on a GPU: everything at once, from waves alone.

On a CPU Whisper hears every sound once and its states are kept (`audio_corpus`); a GPU hears faster than states can
be carried to it, so here it hears each crop as it comes, and the crop can be altered first. It also hears what the
decoder made of the crop: what Whisper makes of a sound is to stay what it was (a perceptual loss with the teacher's
states, as pictures have it with the trunk's). Encoder, decoder and refiner learn together; discriminators begin later.

Shape suffixes: B batch, T samples, N codes, F frames, D width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m27.codec.audio import HOP, AudioCodec, at_codes
from m27.codec.mel import acoustic_log_mel, pitch_salience
from m27.codec.whisper_encoder import WhisperEncoder
from m27.data.altered import FRAME, through
from m27.train.audio_adversary import Adversary
from m27.train.audio_codec import OWN_VOICE, Row, adam, rate
from m27.train.audio_corpus import Batch, Clip, Corpus, fast_bf16, strips
from m27.train.audio_decoder import DecoderTrainer, DecoderTraining
from m27.train.audio_hearing import TEACHER, listen
from m27.train.audio_losses import LossWeights, losses

ON_THE_LINE = 0.12  # share of crops that are heard through a telephone
# How much of a batch comes from each source: codes must tell what is heard, a decoder what is to be said and played.
SHARES = {
    OWN_VOICE: 0.22,
    "speech": 0.16,
    "spoken-orders": 0.09,
    "spoken-words": 0.09,
    "spoken-digits": 0.06,
    "esc10": 0.12,
    "instruments": 0.17,
    "notes": 0.06,
    "stamps": 0.02,
    "sonic-pi": 0.01,
}


@dataclass(frozen=True)
class LiveTraining(DecoderTraining):
    """One run. ``begin`` is a codec whose ear is taken; its encoder and decoder too, where ``shape`` is none.

    ``shape``: widths and depths of encoder and decoder, and of the refiner. ``hearing``: weight of what the
    teacher hears in the decoded sound, of ``heard_rows`` of a batch.
    """

    run: str = "runs/audio-live"
    out: str = ".cache/codecs"
    name: str = "audio_codec.safetensors"
    minutes: float = 4.0
    batch: int = 48
    codes: int = 96
    lr: float = 1e-3
    shape: tuple[int, ...] = (384, 4, 448, 8, 256, 4)
    teacher: str = TEACHER
    hearing: float = 1.0
    heard_rows: int = 16
    adversary_from: float = 0.4
    rows: int = 16
    samples: int = 16_000
    sizes: tuple[int, ...] = (256, 512, 1024)
    periods: tuple[int, ...] = (3, 7)
    width: int = 24
    device: str = "cuda"
    weights: LossWeights = field(default_factory=lambda: LossWeights(spectrum=1.0, mel=3.0))


class LiveCorpus(Corpus):
    """Waves on a device, cut and altered there; what Whisper hears in a crop is found when it is drawn.

    ``hearers``: the codec's ear and the teacher whose first blocks are that ear.
    """

    def __init__(
        self, clips: Iterable[Clip], weights: dict[str, float], device: str, seed: int = 0
    ) -> None:
        made = list(strips(clips, seed))
        if not made:
            raise ValueError("audio corpus: no clip was long enough to train on")
        self.device = device
        self.sources = [strip.source for strip in made]
        self.counts = np.array([len(strip.wave) // HOP for strip in made])
        self.spans = [strip.spans for strip in made]
        self.starts = np.concatenate([[0], self.counts.cumsum()])
        waves = np.concatenate([(strip.wave * 32_767).astype(np.int16) for strip in made])
        self.wave = torch.from_numpy(waves).view(-1, HOP).to(device)
        self.codes = None
        self._share(weights)
        self.teach: WhisperEncoder | None = None
        self.tap = 0
        self.bf16 = False

    def hears_with(self, teacher: WhisperEncoder, tap: int, bf16: bool) -> None:
        """Take the teacher, the number of its block where the codec's ear ends, and whether in bfloat16."""
        self.teach, self.tap, self.bf16 = teacher, tap, bf16

    def batch(self, rng: np.random.Generator, size: int, codes: int, others: int = 0) -> Batch:
        """As `Corpus.batch`, with crops that are louder or softer, duller or brighter than they were, some of them
        through a telephone."""
        where, spans, picked = self.draw(rng, size, codes, others)
        wave = self.wave[where].flatten(1).float() / 32_767
        tilt = np.where(rng.random(size) < 0.5, rng.uniform(-0.6, 0.6, size), 0.0)
        gain = 10 ** (rng.uniform(-9, 3, size) / 20)
        line = torch.from_numpy(rng.random(size) < ON_THE_LINE).to(self.device)
        level = torch.ones(1, FRAME // 2 + 1, device=self.device)
        wave = torch.where(line[:, None], through(wave, level, line), wave)
        wave = altered(wave, *(torch.from_numpy(a).float().to(self.device) for a in (tilt, gain)))
        heard, taught = self._listen(wave, codes)
        with torch.no_grad():
            acoustic = torch.cat([acoustic_log_mel(wave), pitch_salience(wave)], -1)
        return Batch(wave, heard, taught, acoustic, spans, picked)

    @torch.no_grad()
    def _listen(self, wave_BT: Tensor, codes: int) -> tuple[Tensor, Tensor]:
        """The ear's and the teacher's states at the codes, ``[B, N, D]`` each."""
        assert self.teach is not None, "hears_with comes first"
        heard, taught = listen(self.teach, wave_BT, (self.tap,), self.bf16)
        return at_codes(heard, codes), at_codes(taught, codes)

    def teacher_sample(self, count: int = 20_000) -> Tensor:
        """Teacher features of codes with sound in them, ``[about count, D]``; fewer where there are fewer."""
        rng, found, codes = np.random.default_rng(0), [], min(160, int(self.starts[-1]))
        for _ in range(max(1, count // (16 * codes))):
            where, _, _ = self.draw(rng, 16, codes)
            wave = self.wave[where].flatten(1).float() / 32_767
            taught = self._listen(wave, codes)[1].flatten(0, 1)
            loud = wave.unflatten(1, (codes, -1)).abs().amax(-1).flatten() > 60 / 32_767
            found.append(taught if self.device == "meta" else taught[loud])
        return torch.cat(found)


def altered(wave_BT: Tensor, tilt_B: Tensor, gain_B: Tensor) -> Tensor:
    """Each wave plus ``tilt`` of itself a sample late, at ``gain`` of its level; never beyond full scale."""
    late = F.pad(wave_BT[:, :-1], (1, 0))
    tilted = (wave_BT + tilt_B[:, None] * late) / (1 + tilt_B.abs()[:, None])
    peak = tilted.abs().amax(1, keepdim=True).clamp_min(1e-6)
    return tilted * torch.minimum(gain_B[:, None], 0.98 / peak)


class LiveTrainer(DecoderTrainer):
    """State of a run: codec, heads, discriminators, two optimisers, step, seconds."""

    recipe: LiveTraining
    corpus: LiveCorpus

    def __init__(self, recipe: LiveTraining, corpus: LiveCorpus, teacher: WhisperEncoder) -> None:
        self.recipe, self.corpus = recipe, corpus
        torch.manual_seed(recipe.seed)
        device = torch.device(recipe.device)
        self.bf16 = fast_bf16(recipe.device) if recipe.bf16 is None else recipe.bf16
        begun = AudioCodec.load(Path(recipe.begin).parent, name=Path(recipe.begin).name)
        self.codec = begun
        if recipe.shape:
            names = ("encoder_dim", "encoder_blocks", "decoder_dim", "decoder_blocks")
            shape: dict[str, Any] = dict(zip((*names, "refiner_dim", "refiner_blocks"), recipe.shape, strict=True))
            config = replace(begun.config, vocoder="istft", **shape)
            self.codec = AudioCodec(config)
            self.codec.ear.load_state_dict(begun.ear.state_dict())
        elif self.codec.refiner is None:
            self.codec.add_refiner()
        assert self.codec.refiner is not None
        self.codec.requires_grad_(True)
        self.codec.ear.requires_grad_(False)
        self.teacher = teacher.to(device)
        corpus.hears_with(self.teacher, self.codec.config.whisper_blocks, self.bf16)
        self.add_heads(corpus.teacher_sample())
        self.codec.to(device)
        self.heads.to(device)
        self.adversary = Adversary(recipe.sizes, recipe.periods, recipe.width).to(device)
        maker = nn.ModuleDict(
            {
                "encoder": self.codec.encoder,
                "decoder": self.codec.decoder,
                "refiner": self.codec.refiner,
                "heads": self.heads,
            }
        )
        self.learned = nn.ModuleDict({"maker": maker, "adversary": self.adversary})
        self.optimizers = {
            "maker": adam(recipe, (maker, 1.0)),
            "adversary": adam(recipe, (self.adversary, 1.0)),
        }
        self.step = 0
        self.seconds = 0.0

    def train_step(self) -> tuple[Row, Tensor]:
        """One step; its data and noise depend on seed and step number only. Losses stay on the device."""
        recipe = self.recipe
        rng = self.seeded()
        done = self.progress()
        self.learned.train()
        batch = self.corpus.batch(rng, recipe.batch, recipe.codes, recipe.negatives)
        terms, codes, wave = losses(self.codec, self.heads, batch, self.scale, self.bf16)
        loss = recipe.weights.total(terms)
        loss = loss + self.heard(wave, batch.wave_BT, terms)
        lr = rate(self.step, done, recipe)
        if done >= recipe.adversary_from:
            loss = loss + self.adverse(batch.wave_BT, wave, terms, lr)
        norm = self.advance("maker", loss, lr)
        self.step += 1
        row: Row = {name: term.detach() for name, term in terms.items()}
        return row | {"loss": loss.detach(), "norm": norm, "lr": lr}, codes
