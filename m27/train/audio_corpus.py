"""Sounds → a folder of fixed features that audio codec training reads by memory map.

Whisper's encoder is frozen in the first training, so it hears every clip once, here, and never
in the loop: its block that the codec keeps (the ear) and its last (the teacher) are stored at
the codec's 40 Hz.

Shape suffixes: T samples, N codes, D width.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from m27.codec.audio import HOP, AudioCodec, at_codes
from m27.codec.mel import (
    ACOUSTIC_BANDS,
    PITCH_BINS,
    acoustic_log_mel,
    pitch_salience,
    whisper_log_mel,
)
from m27.codec.whisper_encoder import WhisperEncoder
from m27.runtime import cpu_bf16
from m27.train.audio_captions import Span

ACOUSTIC = ACOUSTIC_BANDS + PITCH_BINS
SECONDS = 8  # longest strip: one window of the codec's ear
_PAD = 8_000
_KEY = re.compile(r" key\d+")


def fast_bf16(device: str) -> bool:
    """Whether a device multiplies in bfloat16 faster than in float32: a CPU that lacks instructions
    for it is ten to sixty times slower."""
    return cpu_bf16() if device.startswith("cpu") else True


class Clip(NamedTuple):
    """A sound to learn from: its source, samples (float32 in -1..1, or int16), and what is heard
    in it, "" where that is unknown."""

    source: str
    samples: NDArray[Any]
    text: str = ""


@dataclass
class Strip:
    """A stretch of whole codes: ``wave`` float32, and ``spans`` of its clips: first code, code
    after the last, text."""

    source: str
    wave: NDArray[np.float32]
    spans: list[tuple[int, int, str]]


def strips(clips: Iterable[Clip], seed: int, shortest: float = 1.6) -> Iterator[Strip]:
    """Clips → strips of 1.6 to 8 s with random gain, in whole codes.

    Long clips are cut; of the short ones half stand alone before silence and half are joined
    with others of their source, so that the codec meets both.
    """
    rng = np.random.default_rng(seed)
    waiting: dict[str, list[tuple[NDArray[np.float32], str]]] = {}

    def finish(source: str, pieces: list[tuple[NDArray[np.float32], str]]) -> Strip:
        total = min(sum(len(wave) for wave, _ in pieces), SECONDS * 16_000)
        out = np.zeros(max(-(-total // HOP) * HOP, int(shortest * 16_000)), np.float32)
        spans, at = [], 0
        for wave, text in pieces:
            room = out[at : at + len(wave)]
            room[:] = wave[: len(room)]
            if text and len(room):
                spans.append((at // HOP, -(-(at + len(room)) // HOP), text))
            at += len(wave)
        peak = float(np.abs(out).max()) + 1e-6
        gain = min(10 ** (rng.uniform(-12, 4) / 20), 0.98 / peak)
        return Strip(source, out * np.float32(gain), spans)

    for source, samples, text in clips:
        clip = samples.astype(np.float32)
        if samples.dtype == np.int16:
            clip /= 32_767
        for at in range(0, max(len(clip), 1), SECONDS * 16_000):
            piece = clip[at : at + SECONDS * 16_000]
            if len(piece) < 800:
                continue
            if len(piece) >= 32_000 or rng.random() < 0.5:
                yield finish(source, [(piece, text)])
                continue
            group = waiting.setdefault(source, [])
            pause = np.zeros(int(rng.uniform(800, 6400)), np.float32)
            group += [(piece, text), (pause, "")]
            if sum(len(wave) for wave, _ in group) > 6 * 16_000:
                yield finish(source, group)
                waiting[source] = []
    for source, group in waiting.items():
        if group:
            yield finish(source, group)


@torch.no_grad()
def prepare(
    clips: Iterable[Clip],
    codec: AudioCodec,
    teacher: WhisperEncoder,
    folder: Path,
    seed: int = 0,
    report: int = 500,
    minutes: float = 0.0,
    device: str = "cpu",
) -> None:
    """Write ``folder`` (atomically): waves int16, ear, teacher and acoustic features float16,
    and ``meta.json``.

    ``teacher`` is the whole Whisper encoder whose first blocks are those of ``codec.ear``; one
    pass gives both. After ``minutes`` (0: never) the clips that are left are left out.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tap = codec.config.whisper_blocks
    teacher.eval().to(device)
    rows: list[tuple[str, int, list[tuple[int, int, str]]]] = []
    names = ("wave", "heard", "teacher", "acoustic")
    files = {name: (partial / f"{name}.bin").open("wb") for name in names}
    began = time.monotonic()
    # Held open, so that weights are cast once.
    with torch.autocast(device, torch.bfloat16, enabled=fast_bf16(device)):
        for strip in strips(clips, seed):
            wave = torch.from_numpy(strip.wave)[None].to(device)
            n = wave.shape[1] // HOP
            with torch.autocast(device, enabled=False):
                mel = whisper_log_mel(F.pad(wave, (0, _PAD)))
                sound = torch.cat([acoustic_log_mel(wave), pitch_salience(wave)], -1)
            heard, taught = teacher(mel, taps=(tap,))
            files["wave"].write((strip.wave * 32_767).astype(np.int16).tobytes())
            files["heard"].write(at_codes(heard.float(), n)[0].half().cpu().numpy().tobytes())
            files["teacher"].write(at_codes(taught.float(), n)[0].half().cpu().numpy().tobytes())
            files["acoustic"].write(sound[0].half().cpu().numpy().tobytes())
            rows.append((strip.source, n, strip.spans))
            if len(rows) % report == 0:
                hours = sum(row[1] for row in rows) / 40 / 3600
                print(f"prepared {len(rows)} strips, {hours:.2f} h", flush=True)
            if minutes and time.monotonic() - began > 60 * minutes:
                print("prepared for as long as allowed; the rest is left out", flush=True)
                break
    for file in files.values():
        file.close()
    if not rows:
        raise ValueError("audio corpus: no clip was long enough to train on")
    (partial / "meta.json").write_text(
        json.dumps({"dim": teacher.conv1.out_channels, "clips": rows})
    )
    codec.save(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


@dataclass
class Batch:
    """Crops of one length: ``wave_BT``, ``heard_BND``, ``teacher_BND``, ``acoustic_BFM`` (two
    frames a code), the captioned ``spans`` in them, captions from elsewhere in the corpus, and codes
    where the corpus was encoded."""

    wave_BT: torch.Tensor
    heard_BND: torch.Tensor
    teacher_BND: torch.Tensor
    acoustic_BFM: torch.Tensor
    spans: list[Span] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    codes_BN: torch.Tensor | None = None


class Corpus:
    """A prepared folder, from which random crops are drawn by source weight.

    On the CPU the features stay in the files (memory maps); on another device they are copied
    there whole, half precision as stored, so that a batch costs no transfer.
    """

    def __init__(self, folder: Path, weights: dict[str, float], device: str = "cpu") -> None:
        meta = json.loads((folder / "meta.json").read_text())
        dim = int(meta["dim"])
        self.device = device
        self.sources = [str(row[0]) for row in meta["clips"]]
        self.counts = np.array([row[1] for row in meta["clips"]])
        self.spans = [
            [(int(a), int(b), str(text)) for a, b, text in row[2]] for row in meta["clips"]
        ]
        self.starts = np.concatenate([[0], self.counts.cumsum()])
        total = int(self.starts[-1])

        def view(name: str, kind: Any, shape: tuple[int, ...]) -> torch.Tensor:
            stored = torch.from_numpy(np.memmap(folder / f"{name}.bin", kind, "c", shape=shape))
            return stored if device == "cpu" else stored.to(device)

        self.wave = view("wave", np.int16, (total, HOP))
        self.heard = view("heard", np.float16, (total, dim))
        self.teacher = view("teacher", np.float16, (total, dim))
        self.acoustic = view("acoustic", np.float16, (total, 2 * ACOUSTIC))
        self.codes: torch.Tensor | None = None  # of every strip, where someone has encoded them
        self._share(weights)

    def _share(self, weights: dict[str, float]) -> None:
        """How often each strip is drawn, and the captions that others are taken from."""
        share = np.zeros(len(self.sources))
        texts: dict[str, set[str]] = {}
        for source in sorted(set(self.sources)):
            mine = np.array([s == source for s in self.sources])
            share[mine] = weights.get(source, 0.02) * self.counts[mine] / self.counts[mine].sum()
            found = {text for i in np.flatnonzero(mine) for _, _, text in self.spans[i]}
            if found and share[mine].sum() > 0:
                texts[source] = found
        self.share = share / share.sum()
        self.cumulative = self.share.cumsum()
        self.texts = [sorted(found) for found in texts.values()]
        self.text_share = np.array([weights.get(source, 0.02) for source in texts])
        self.text_share /= max(self.text_share.sum(), 1e-9)

    @property
    def hours(self) -> float:
        """Length of all strips in hours."""
        return float(self.counts.sum() / 40 / 3600)

    def teacher_sample(self, count: int = 20_000) -> torch.Tensor:
        """Teacher features of codes with sound in them, evenly spread over the corpus, ``[<= count, D]``."""
        every = torch.arange(0, len(self.teacher), max(len(self.teacher) // (2 * count), 1))
        every = every.to(self.device)
        columns = torch.tensor([50, 120, 200, 300], device=self.device)
        level = self.wave[every][:, columns].int().abs().amax(1)
        kept = every[level > 60][:: max(int((level > 60).sum()) // count, 1)]
        return self.teacher[kept].float()

    def draw(
        self, rng: np.random.Generator, size: int, codes: int, others: int = 0
    ) -> tuple[torch.Tensor, list[Span], list[str]]:
        """Places ``[size, codes]`` of random crops on the device, their captioned spans, and ``others``
        further captions.

        Half of the batches name notes without their keys, so that the instrument counts by itself.
        """
        last = int(self.starts[-1]) - codes
        rows: list[int] = []
        spans: list[Span] = []
        without_keys = rng.random() < 0.5

        def named(text: str) -> str:
            return _KEY.sub("", text) if without_keys else text

        drawn = np.searchsorted(self.cumulative, rng.random(size) * self.cumulative[-1], "right")
        for row, clip in enumerate(np.minimum(drawn, len(self.share) - 1)):
            room = int(self.counts[clip]) - codes
            at = int(rng.integers(0, max(room, 0) + 1))
            rows.append(min(int(self.starts[clip]) + at, last))
            for first, end, text in self.spans[clip]:
                low, high = max(first - at, 0), min(end - at, codes)
                if high - low >= min(end - first, codes) * 0.6:
                    spans.append((row, low, high, named(text)))
        picked: list[str] = []
        if others and self.texts:
            for group in rng.choice(len(self.texts), others, p=self.text_share):
                texts = self.texts[group]
                picked.append(named(texts[int(rng.integers(len(texts)))]))
        where = torch.tensor(rows)[:, None] + torch.arange(codes)
        return where.to(self.device), spans, picked

    def batch(self, rng: np.random.Generator, size: int, codes: int, others: int = 0) -> Batch:
        """``size`` random crops of ``codes`` codes, and ``others`` further captions, see `draw`."""
        where, spans, picked = self.draw(rng, size, codes, others)
        return Batch(
            self.wave[where].flatten(1).float() / 32_767,
            self.heard[where].float(),
            self.teacher[where].float(),
            self.acoustic[where].float().unflatten(-1, (2, ACOUSTIC)).flatten(1, 2),
            spans,
            picked,
            None if self.codes is None else self.codes[where],
        )
