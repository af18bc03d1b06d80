"""Sound ↔ codes: 16 kHz mono, 40 codes a second, one FSQ codebook of 8,192.

The encoder joins the first blocks of Whisper's encoder (what is said) with a convolutional
branch on log-mel and pitch salience (how it sounds), at 40 Hz, and quantises. The decoder is
convolutions with a little look-ahead that predict pitch and two envelopes for a source-filter
synthesis, whose short-time spectrum a second network may correct; it streams. It reads no files
but its own weights; bytes of sounds are ``codec.media``'s business.

Shape suffixes: B batch, T samples, N codes, F frames (two a code), D width.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import packing
from .conv import ConvBlock
from .istft import Refiner
from .mel import (
    ACOUSTIC_BANDS,
    PITCH_BINS,
    acoustic_log_mel,
    pitch_hz,
    pitch_salience,
    whisper_log_mel,
)
from .packing import CodecError
from .quantize import FSQ
from .source_filter import CONTEXT, REST, Frames, hold_from, synthesise
from .whisper_encoder import WhisperEncoder

if TYPE_CHECKING:
    from .audio_stream import AudioStream

FILE = "audio_codec.safetensors"
HOP = 400
VOCODERS = ("source-filter", "istft")
_CORE = 240  # codes a window of a long sound
_MARGIN = 40  # codes of context on either side of a window
_PAD = 8_000  # samples of silence after what Whisper hears: it was trained on padded windows


@dataclass(frozen=True)
class AudioConfig:
    """Shape of an audio codec. ``levels`` of the FSQ, widths and depths of encoder and decoder.

    ``vocoder`` is "source-filter", or "istft" where a `Refiner` corrects that wave.
    """

    levels: tuple[int, ...] = (4, 4, 4, 4, 4, 4, 2)
    whisper_blocks: int = 4
    whisper_dim: int = 512
    whisper_heads: int = 8
    whisper_frames: int = 600
    encoder_dim: int = 256
    encoder_blocks: int = 3
    decoder_dim: int = 320
    decoder_blocks: int = 8
    look_ahead: int = 6
    bands: int = 128
    vocoder: str = "source-filter"
    refiner_dim: int = 192
    refiner_blocks: int = 3

    def __post_init__(self) -> None:
        if self.vocoder not in VOCODERS:
            raise ValueError(f"audio codec: vocoder {self.vocoder!r} is none of {VOCODERS}")


class Encoder(nn.Module):
    """Features of a sound → latents ``[B, N, len(levels)]``."""

    mean: Tensor
    variance: Tensor

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        dim = config.encoder_dim
        self.acoustic_in = nn.Conv1d(ACOUSTIC_BANDS + PITCH_BINS, dim, 5, padding=2)
        self.acoustic_down = nn.Conv1d(dim, dim, 4, stride=2, padding=1)
        self.heard_norm = nn.LayerNorm(config.whisper_dim)
        self.heard_in = nn.Linear(config.whisper_dim, dim)
        self.blocks = nn.ModuleList(ConvBlock(dim, 3, 3) for _ in range(config.encoder_blocks))
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, len(config.levels))
        self.register_buffer("mean", torch.zeros(len(config.levels)))
        self.register_buffer("variance", torch.ones(len(config.levels)))

    def forward(self, heard_BND: Tensor, acoustic_BFM: Tensor) -> Tensor:
        """Whisper's states at 40 Hz and acoustic features at 80 Hz → latents that fill the FSQ's
        cells evenly.

        Latents are standardised (by the batch in training, by running averages after), so that
        no level of the codebook goes unused; 0.9 is the deviation whose tanh is nearly uniform.
        """
        x = self.acoustic_down(F.gelu(self.acoustic_in(acoustic_BFM.transpose(1, 2))))
        x = x.transpose(1, 2) + self.heard_in(self.heard_norm(heard_BND))
        for block in self.blocks:
            x = block(x)
        z = self.out(self.norm(x)).float()
        mean, variance = self.mean, self.variance
        if self.training:
            mean, variance = z.mean((0, 1)), z.var((0, 1))
            with torch.no_grad():
                self.mean.lerp_(mean, 0.02)
                self.variance.lerp_(variance, 0.02)
        return (z - mean) * (variance + 1e-4).rsqrt() * 0.9


class Decoder(nn.Module):
    """Codebook vectors → pitch, voicing and two envelopes a frame, two frames a code."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        dim = config.decoder_dim
        self.bands = config.bands
        self.embed = nn.Linear(len(config.levels), dim)
        self.blocks = nn.ModuleList(
            ConvBlock(dim, *((5, 1) if i < config.look_ahead else (6, 0)))
            for i in range(config.decoder_blocks)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 2 * (2 * config.bands + PITCH_BINS + 1))
        self.look_ahead = min(config.look_ahead, config.decoder_blocks)
        self.look_back = 6 * config.decoder_blocks - self.look_ahead

    def hidden(self, q_BND: Tensor) -> Tensor:
        """Codebook vectors ``[B, N, levels]`` → hidden states ``[B, N, D]``."""
        x = self.embed(q_BND)
        for block in self.blocks:
            x = block(x)
        return cast(Tensor, self.norm(x))

    def frames(self, h_BND: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Hidden states → pitch logits ``[B, 2N, 128]``, voicing logit ``[B, 2N]``, tone and
        noise envelopes ``[B, 2N, bands]`` (natural logarithm)."""
        out = self.head(h_BND).float().unflatten(-1, (2, -1)).flatten(1, 2)
        pitch, voicing, tone, noise = out.split([PITCH_BINS, 1, self.bands, self.bands], -1)
        return pitch, voicing.squeeze(-1), tone.clamp(-14, 4) - 3, noise.clamp(-14, 4) - 4

    def pitch(self, logits_BFL: Tensor) -> Tensor:
        """Pitch logits → Hz ``[B, F]``: the likeliest bin, refined by its neighbours."""
        best = logits_BFL.argmax(-1, keepdim=True).clamp(2, PITCH_BINS - 3)
        around = best + torch.arange(-2, 3, device=best.device)
        weights = logits_BFL.gather(-1, around).softmax(-1)
        return pitch_hz((weights * around).sum(-1))


class AudioCodec(nn.Module):
    """The audio codec: ``encode``, ``decode``, ``stream``, ``save``, ``load``."""

    sample_rate = 16_000
    hop = HOP

    def __init__(self, config: AudioConfig | None = None) -> None:
        super().__init__()
        self.config = config or AudioConfig()
        c = self.config
        self.levels = c.levels
        self.ear = WhisperEncoder(
            c.whisper_blocks, c.whisper_dim, c.whisper_heads, c.whisper_frames
        )
        self.encoder = Encoder(c)
        self.quantizer = FSQ(c.levels)
        self.decoder = Decoder(c)
        self.refiner: Refiner | None = None
        self.before = self.after = CONTEXT  # frames that a frame's samples depend on
        if c.vocoder == "istft":
            self.add_refiner()

    def add_refiner(self) -> None:
        """Turn a source-filter codec into one with a `Refiner` that changes nothing yet."""
        c = replace(self.config, vocoder="istft")
        self.config = c
        self.refiner = Refiner(c.decoder_dim, c.refiner_dim, c.refiner_blocks)
        self.before, self.after = CONTEXT + self.refiner.before, CONTEXT + self.refiner.after

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return self.quantizer.size

    @property
    def revision(self) -> str:
        """12 hex digits that change when any weight, as shipped, does."""
        return packing.revision(packing.pack(self.state_dict()))

    @property
    def codes_revision(self) -> str:
        """12 hex digits that change when the codes of a sound may: hash of the ear, the encoder and
        the levels. Another decoder keeps it, and what was encoded stays valid."""
        state = self.state_dict()
        kept = {k: v for k, v in state.items() if k.startswith(("ear.", "encoder."))}
        return packing.revision(packing.pack(kept | {"levels": torch.tensor(self.levels)}))

    def features(self, wave_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Waves (T a multiple of 400) → the ear's states ``[B, N, D]`` and acoustic features
        ``[B, 2N, 224]``.

        Long sounds go through the ear in windows of 6 s with 1 s of context on either side.
        """
        n = wave_BT.shape[1] // HOP
        if n <= _CORE + 2 * _MARGIN:
            heard = self._hear(wave_BT)
        else:
            pieces = []
            for core in range(0, n, _CORE):
                first, last = max(core - _MARGIN, 0), min(core + _CORE + _MARGIN, n)
                states = self._hear(wave_BT[:, first * HOP : last * HOP])
                pieces.append(states[:, core - first : core - first + _CORE])
            heard = torch.cat(pieces, 1)
        sounds = torch.cat([acoustic_log_mel(wave_BT), pitch_salience(wave_BT)], -1)
        return heard, sounds

    def _hear(self, wave_BT: Tensor) -> Tensor:
        n = wave_BT.shape[1] // HOP
        states = self.ear(whisper_log_mel(F.pad(wave_BT, (0, _PAD))))[-1]
        return at_codes(states, n)

    @torch.no_grad()
    def encode(self, wave_BT: Tensor) -> Tensor:
        """Waves in -1..1 → codes ``[B, N]`` (int64), N = T / 400 rounded up; the last code is
        padded with silence.

        Raises:
            ValueError: if the wave is not two-dimensional, is empty, or holds a value that is not
                finite.
        """
        if wave_BT.ndim != 2 or wave_BT.shape[1] == 0:
            raise ValueError(
                f"audio codec: expected samples [B, T] with T > 0, got {list(wave_BT.shape)}"
            )
        if not bool(torch.isfinite(wave_BT).all()):
            raise ValueError("audio codec: a sample is not a finite number")
        wave_BT = F.pad(wave_BT.float(), (0, -wave_BT.shape[1] % HOP))
        latents = self.encoder(*self.features(wave_BT))
        return cast(Tensor, self.quantizer(latents)[1])

    @torch.no_grad()
    def decode(self, codes_BN: Tensor) -> Tensor:
        """Codes → waves ``[B, N * 400]`` in -1..1 (float32).

        Raises:
            ValueError: if codes are not two-dimensional, none, or outside the codebook.
        """
        if codes_BN.ndim != 2 or codes_BN.shape[1] == 0:
            raise ValueError(
                f"audio codec: expected codes [B, N] with N > 0, got {list(codes_BN.shape)}"
            )
        self._check(codes_BN)
        frames = self.predict(codes_BN)
        start = torch.full_like(frames[0][:, 0], REST)
        pitch = hold_from(start, frames[0], frames[1])
        at_rest = Frames(pitch, start, start.double() * 0, 0, frames[2], frames[3])
        return self.render(at_rest, frames[4])

    def predict(self, codes_BN: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Codes → pitch in Hz and voiced (bool), ``[B, 2N]``, tone and noise envelopes ``[B, 2N,
        bands]``, and what the refiner reads, ``[B, 2N, D]`` (D = 0 without one)."""
        h_BND = self.decoder.hidden(self.quantizer.vectors(codes_BN))
        logits, voicing, tone, noise = self.decoder.frames(h_BND)
        return self.decoder.pitch(logits), voicing > 0, tone, noise, self.states(h_BND)

    def states(self, h_BND: Tensor) -> Tensor:
        """The decoder's states → what the refiner reads, ``[B, 2N, D]`` (D = 0 without one)."""
        if self.refiner is None:
            return h_BND.new_zeros(h_BND.shape[0], 2 * h_BND.shape[1], 0)
        return self.refiner.states(h_BND)

    def vocode(self, frames: Frames, states_BFD: Tensor) -> Tensor:
        """Frames → waves, as trained: not clipped."""
        wave_BT = synthesise(frames)
        return wave_BT if self.refiner is None else self.refiner(wave_BT, states_BFD)

    def render(self, frames: Frames, states_BFD: Tensor) -> Tensor:
        """Frames → waves, clipped to -1..1. Of a cut from a longer signal the outer ``before`` and
        ``after`` frames are not exact."""
        return self.vocode(frames, states_BFD).clamp(-1, 1)

    def stream(self) -> AudioStream:
        """A decoder that takes codes as they come."""
        from .audio_stream import AudioStream

        return AudioStream(self)

    def _check(self, codes: Tensor) -> None:
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= self.codebook_size):
            raise CodecError(f"audio codec: a code is outside 0..{self.codebook_size - 1}")

    def save(self, folder: str | Path, name: str = FILE) -> Path:
        """Write ``audio_codec.safetensors`` into ``folder`` (large matrices int8 a row, the rest
        float16 or 32)."""
        config = json.dumps(asdict(self.config))
        packed = packing.pack(self.state_dict())
        return packing.write(Path(folder) / name, packed, {"config": config})

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu", name: str = FILE) -> AudioCodec:
        """Read what ``save`` wrote, in evaluation mode.

        Raises:
            CodecError: naming the file, if it is missing, broken or not one of this version.
        """
        path = Path(folder) / name
        tensors, metadata = packing.read(path)
        try:
            fields = json.loads(metadata["config"])
            codec = cls(AudioConfig(**{**fields, "levels": tuple(fields["levels"])}))
            codec.load_state_dict(packing.unpack(tensors))
        except (KeyError, TypeError, ValueError, RuntimeError):
            raise CodecError(f"{path}: not an audio codec of this version") from None
        return codec.eval().to(device)


def at_codes(states_BFD: Tensor, n: int) -> Tensor:
    """States at 50 Hz, centred on samples 320 i → states at the middle of codes 0..n-1, ``[B, n, D]``."""
    where = torch.arange(n, device=states_BFD.device) * 1.25 + 0.625
    low = where.floor().long()
    share = (where - low)[:, None]
    last = states_BFD.shape[1] - 1
    left, right = states_BFD[:, low.clamp_max(last)], states_BFD[:, (low + 1).clamp_max(last)]
    return left * (1 - share) + right * share
