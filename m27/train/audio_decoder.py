"""Second stage of the audio codec's training: encoder and codes stay, the decoder gets better.

Every strip is encoded once; then the decoder and the refiner of its wave learn from codes alone:
spectra at several resolutions, pitch, what Whisper hears (where asked for), and discriminators, which begin later.

Shape suffixes: B batch, T samples, N codes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from m27.codec.audio import AudioCodec
from m27.codec.whisper_encoder import WhisperEncoder
from m27.train.audio_adversary import Adversary, fool_loss, judge_loss, matching_loss
from m27.train.audio_codec import OWN_VOICE, AudioTraining, Row, Trainer, adam, rate
from m27.train.audio_corpus import Corpus, fast_bf16
from m27.train.audio_hearing import hearing_loss, load_teacher
from m27.train.audio_losses import LossWeights, resynthesis, spectral_loss

# How much of a batch comes from each source: what is to be spoken and played weighs most, and not, as for the codes,
# what is hard to hear.
SHARES = {
    OWN_VOICE: 0.26,
    "speech": 0.14,
    "spoken-orders": 0.08,
    "spoken-words": 0.06,
    "spoken-digits": 0.04,
    "esc10": 0.14,
    "instruments": 0.18,
    "notes": 0.05,
    "stamps": 0.03,
}


@dataclass(frozen=True)
class DecoderTraining(AudioTraining):
    """One run of the second stage. ``begin`` is the codec whose encoder stays.

    ``hearing``: weight of what the ``teacher`` (a file of `audio_hearing.save_teacher`) hears in the decoded sound,
    of ``heard_rows`` of a batch.
    """

    run: str = "runs/audio-decoder"
    name: str = "audio_codec_decoder.safetensors"
    batch: int = 8
    lr: float = 1e-3
    vocoder: str = "istft"
    decoder_rate: float = 0.5  # of the learning rate, for what is trained already
    weights: LossWeights = field(default_factory=lambda: LossWeights(spectrum=1.0, mel=3.0))
    teacher: str = ""
    hearing: float = 0.0
    heard_rows: int = 4
    fool: float = 0.1
    matching: float = 0.5
    adversary_from: float = 0.4  # share of the run after which discriminators judge
    rows: int = 4  # of the batch that they judge
    samples: int = 9_600  # of each of these
    sizes: tuple[int, ...] = (256, 512, 1024)
    periods: tuple[int, ...] = ()
    width: int = 8


@torch.no_grad()
def encode(codec: AudioCodec, corpus: Corpus) -> Tensor:
    """Codes of every strip of a corpus, from its features, one after another: ``[total]`` int64."""
    found = []
    for first, last in zip(corpus.starts[:-1], corpus.starts[1:], strict=True):
        heard = corpus.heard[first:last].float()[None]
        acoustic = corpus.acoustic[first:last].float().unflatten(-1, (2, -1)).flatten(0, 1)[None]
        found.append(codec.quantizer(codec.encoder(heard, acoustic))[1][0])
    return torch.cat(found)


class DecoderTrainer(Trainer):
    """State of a run of the second stage: codec, discriminators, two optimisers, step, seconds."""

    recipe: DecoderTraining
    teacher: WhisperEncoder

    def __init__(self, recipe: DecoderTraining) -> None:
        self.recipe = recipe
        torch.manual_seed(recipe.seed)
        device = torch.device(recipe.device)
        self.bf16 = fast_bf16(recipe.device) if recipe.bf16 is None else recipe.bf16
        self.corpus = Corpus(Path(recipe.corpus), SHARES, recipe.device)
        self.codec = AudioCodec.load(Path(recipe.begin).parent, name=Path(recipe.begin).name)
        if recipe.vocoder == "istft" and self.codec.refiner is None:
            self.codec.add_refiner()
        self.codec.to(device).eval()
        self.codec.requires_grad_(False)
        self.corpus.codes = encode(self.codec, self.corpus)
        if recipe.hearing > 0:
            self.teacher = load_teacher(Path(recipe.teacher), self.codec.config).to(device)
        self.adversary = Adversary(recipe.sizes, recipe.periods, recipe.width).to(device)
        maker = nn.ModuleDict({"decoder": self.codec.decoder})
        if self.codec.refiner is not None:
            maker["refiner"] = self.codec.refiner
        maker.requires_grad_(True)
        self.learned = nn.ModuleDict({"maker": maker, "adversary": self.adversary})
        slow = [maker["decoder"]]
        fresh = [maker["refiner"]] if "refiner" in maker else []
        self.optimizers = {
            "maker": adam(
                recipe,
                *((module, recipe.decoder_rate) for module in slow),
                *((module, 1.0) for module in fresh),
            ),
            "adversary": adam(recipe, (self.adversary, 1.0)),
        }
        self.step = 0
        self.seconds = 0.0

    def train_step(self) -> tuple[Row, Tensor]:
        """One step; its data and noise depend on seed and step number only. Losses stay on the device."""
        recipe, device = self.recipe, self.recipe.device
        rng = self.seeded()
        done = self.progress()
        batch = self.corpus.batch(rng, recipe.batch, recipe.codes)
        assert batch.codes_BN is not None
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=self.bf16):
            h_BND = self.codec.decoder.hidden(self.codec.quantizer.vectors(batch.codes_BN))
        wave, terms = resynthesis(self.codec, h_BND, batch)
        pair = (256, 1024) if int(torch.randint(0, 2, ())) else (512, 2048)
        terms["spectrum"], terms["mel"] = spectral_loss(wave, batch.wave_BT, pair)
        loss = recipe.weights.total(terms)
        loss = loss + self.heard(wave, batch.wave_BT, terms)
        lr = rate(self.step, done, recipe)
        if done >= recipe.adversary_from:
            loss = loss + self.adverse(batch.wave_BT, wave, terms, lr)
        norm = self.advance("maker", loss, lr)
        self.step += 1
        row: Row = {name: term.detach() for name, term in terms.items()}
        return row | {"loss": loss.detach(), "norm": norm, "lr": lr}, batch.codes_BN.detach()

    def heard(self, made_BT: Tensor, real_BT: Tensor, terms: dict[str, Tensor]) -> Tensor | float:
        """What the maker's loss gets from what the teacher hears, into ``terms`` too; 0 without a teacher."""
        recipe = self.recipe
        if recipe.hearing <= 0:
            return 0.0
        rows, taps = recipe.heard_rows, (2, self.codec.config.whisper_blocks)
        terms["hearing"] = hearing_loss(
            self.teacher, made_BT[:rows], real_BT[:rows], taps, self.bf16
        )
        return recipe.hearing * terms["hearing"]

    def adverse(
        self, real_BT: Tensor, made_BT: Tensor, terms: dict[str, Tensor], lr: float
    ) -> Tensor:
        """A step of the discriminators, and what the maker's loss gets from them; both into ``terms``."""
        recipe = self.recipe
        at = int(torch.randint(0, made_BT.shape[1] - recipe.samples + 1, ()))
        cut = (slice(0, recipe.rows), slice(at, at + recipe.samples))
        real, made = real_BT[cut], made_BT[cut]
        terms["judge"] = judge_loss(self.adversary(real), self.adversary(made.detach()))
        self.advance("adversary", terms["judge"], lr)
        self.adversary.requires_grad_(False)
        with torch.no_grad():
            wanted = self.adversary(real)
        maps = self.adversary(made)
        terms["fool"], terms["matching"] = fool_loss(maps), matching_loss(wanted, maps)
        self.adversary.requires_grad_(True)
        return recipe.fool * terms["fool"] + recipe.matching * terms["matching"]
