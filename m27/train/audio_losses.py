"""What the audio codec is trained for: spectra of the wave that comes out, pitch and voicing of the
wave that went in, and what is heard, by a teacher's units and by captions, readable from codes.

Shape suffixes: B batch, T samples, N codes, F frames, D width, K units.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m27.codec.audio import AudioCodec
from m27.codec.mel import ACOUSTIC_BANDS, PITCH_BINS, hann, mel_filters, pitch_hz, pitch_track
from m27.codec.source_filter import REST, Frames, hold_from
from m27.train.audio_captions import CaptionHead
from m27.train.audio_corpus import Batch

FLOOR = 3e-4  # magnitude of a tone at -70 dB: what is below does not count


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
        count = torch.zeros_like(centroids[:, 0]).index_add_(0, number, torch.ones_like(x_ND[:, 0]))
        count = count[:, None]
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
            filters = mel_filters(80 if size > 256 else 40, size).to(theirs)
            filters = filters / filters.sum(1, keepdim=True).clamp_min(1e-6)
            mel_theirs = (filters @ theirs + FLOOR).log()
            loud = theirs.mean().clamp_min(1e-3)
        total = total + ((ours + FLOOR).log() - log_theirs).abs().mean()
        total = total + 0.5 * (ours - theirs).abs().mean() / loud
        mel_loss = mel_loss + ((filters @ ours + FLOOR).log() - mel_theirs).abs().mean()
    return total / len(sizes), mel_loss / len(sizes)


class Heads(nn.Module):
    """The heads that only training needs: the teacher's units and captions."""

    def __init__(self, levels: int, decoder_dim: int, teacher_dim: int) -> None:
        super().__init__()
        self.semantic = SemanticHead(levels, decoder_dim, teacher_dim)
        self.captions = CaptionHead(levels)


@dataclass(frozen=True)
class LossWeights:
    """What each term counts in the one loss that is minimised."""

    spectrum: float = 1.0
    mel: float = 2.5
    pitch: float = 0.6
    voiced: float = 0.2
    semantic: float = 0.4
    context: float = 0.2
    captions: float = 0.3
    white: float = 0.05

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """Weighted sum of the terms (scalars by name)."""
        known = asdict(self)
        return torch.stack([known[name] * term for name, term in terms.items()]).sum()


def losses(
    codec: AudioCodec, heads: Heads, batch: Batch, scale: tuple[Tensor, Tensor], bf16: bool
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """All loss terms of a batch (unweighted scalars), the codes ``[B, N]`` and the wave ``[B, T]`` that
    came out."""
    kind = batch.wave_BT.device.type
    with torch.autocast(kind, torch.bfloat16, enabled=bf16):
        z = codec.encoder(batch.heard_BND, batch.acoustic_BFM)
        with torch.autocast(kind, enabled=False):
            q, codes = codec.quantizer(z.float())
        h = codec.decoder.hidden(q)
        near, far = heads.semantic(q, h)
        sounding = batch.wave_BT.unflatten(1, codes.shape[1:] + (-1,)).abs().mean(-1) > 1e-3
        captions = heads.captions(q, sounding, batch.spans, batch.others)
    wave, terms = resynthesis(codec, h, batch)
    pair = (256, 1024) if int(torch.randint(0, 2, ())) else (512, 2048)
    terms["spectrum"], terms["mel"] = spectral_loss(wave, batch.wave_BT, pair)
    units = heads.semantic.units((batch.teacher_BND - scale[0]) / scale[1]).flatten()
    weight = sounding.flatten().float()
    weight = weight / weight.sum().clamp_min(1)
    terms["semantic"], terms["context"] = (
        (F.cross_entropy(x.float().flatten(0, 1), units, reduction="none") * weight).sum()
        for x in (near, far)
    )
    flat = z.flatten(0, 1) - z.mean((0, 1))
    spread = flat.T @ flat / len(flat)
    deviation = spread.diagonal().clamp_min(1e-4).sqrt()
    spread = spread / deviation.outer(deviation)
    eye = torch.eye(len(spread), device=spread.device)
    terms["white"] = (spread - eye).square().sum() / len(spread)
    terms["captions"] = captions
    return terms, codes, wave


def resynthesis(codec: AudioCodec, h_BND: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """The decoder's states → the wave ``[B, T]`` at the true pitch from a random phase on, and the
    losses of predicted pitch and voicing."""
    h_BND = h_BND.float()  # from here on it is spectra and phases: nothing for half precision
    logits, voicing, tone, noise = codec.decoder.frames(h_BND)
    pitch, voiced = pitch_track(batch.acoustic_BFM[..., ACOUSTIC_BANDS:])
    bins = torch.arange(PITCH_BINS, device=pitch.device)
    soft = torch.softmax(-0.5 * (bins - pitch[..., None]).square(), -1)
    wrong = -(soft * logits.log_softmax(-1)).sum(-1)
    start = torch.full_like(pitch[:, 0], REST)
    hertz = hold_from(start, pitch_hz(pitch), voiced)
    phase = torch.rand(len(start), dtype=torch.float64, device=start.device)
    at = int(torch.randint(0, 1 << 16, ()))
    frames = Frames(hertz, start, phase, at, tone, noise)
    wave = codec.vocode(frames, codec.states(h_BND))
    return wave, {
        "pitch": (wrong * voiced).sum() / voiced.sum().clamp_min(1),
        "voiced": F.binary_cross_entropy_with_logits(voicing, voiced.float()),
    }


def perplexity(codes: Tensor, size: int) -> float:
    """Exponential of the entropy of the codes' frequencies; at most ``size``."""
    share = torch.bincount(codes.flatten(), minlength=size).double() / codes.numel()
    return float((-(share * share.clamp_min(1e-12).log()).sum()).exp())
