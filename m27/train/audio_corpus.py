"""Sounds → a folder of fixed features that audio codec training reads by memory map.

Whisper's encoder is frozen in the first training, so it hears every clip once, here, and never
in the loop: its block that the codec keeps (the ear) and its last (the teacher) are stored at
the codec's 40 Hz.

Shape suffixes: T samples, N codes, D width.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

ACOUSTIC = ACOUSTIC_BANDS + PITCH_BINS
SECONDS = 8  # longest strip: one window of the codec's ear
_PAD = 8_000


def strips(
    clips: Iterable[tuple[str, NDArray[np.float32]]], seed: int, shortest: float = 2.0
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Clips (source, samples) → strips of 2 to 8 s with random gain, in whole codes.

    Long clips are cut; of the short ones half stand alone before silence and half are joined
    with others of their source, so that the codec meets both.
    """
    rng = np.random.default_rng(seed)
    waiting: dict[str, list[NDArray[np.float32]]] = {}

    def finish(wave: NDArray[np.float32]) -> NDArray[np.float32]:
        size = max(-(-len(wave) // HOP) * HOP, int(shortest * 16_000))
        out = np.zeros(size, np.float32)
        out[: len(wave)] = wave
        peak = float(np.abs(out).max()) + 1e-6
        return out * min(10 ** (rng.uniform(-12, 4) / 20), 0.98 / peak)

    for source, clip in clips:
        for at in range(0, max(len(clip), 1), SECONDS * 16_000):
            piece = clip[at : at + SECONDS * 16_000]
            if len(piece) < 800:
                continue
            if len(piece) >= 32_000 or rng.random() < 0.5:
                yield source, finish(piece)
                continue
            group = waiting.setdefault(source, [])
            group += [piece, np.zeros(int(rng.uniform(800, 6400)), np.float32)]
            if sum(map(len, group)) > 6 * 16_000:
                yield source, finish(np.concatenate(group)[: SECONDS * 16_000])
                waiting[source] = []
    for source, group in waiting.items():
        if group:
            yield source, finish(np.concatenate(group)[: SECONDS * 16_000])


@torch.no_grad()
def prepare(
    clips: Iterable[tuple[str, NDArray[np.float32]]],
    codec: AudioCodec,
    teacher: WhisperEncoder,
    folder: Path,
    seed: int = 0,
    report: int = 500,
) -> None:
    """Write ``folder`` (atomically): waves int16, ear, teacher and acoustic features float16,
    and ``meta.json``.

    ``teacher`` is the whole Whisper encoder whose first blocks are those of ``codec.ear``; one
    pass gives both.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tap = codec.config.whisper_blocks
    teacher.eval()
    rows: list[tuple[str, int]] = []
    names = ("wave", "heard", "teacher", "acoustic")
    files = {name: (partial / f"{name}.bin").open("wb") for name in names}
    with torch.autocast("cpu", torch.bfloat16):  # held open, so that weights are cast once
        for source, strip in strips(clips, seed):
            wave = torch.from_numpy(strip)[None]
            n = wave.shape[1] // HOP
            with torch.autocast("cpu", enabled=False):
                mel = whisper_log_mel(F.pad(wave, (0, _PAD)))
                sound = torch.cat([acoustic_log_mel(wave), pitch_salience(wave)], -1)
            heard, taught = teacher(mel, taps=(tap,))
            files["wave"].write((strip * 32_767).astype(np.int16).tobytes())
            files["heard"].write(at_codes(heard.float(), n)[0].half().numpy().tobytes())
            files["teacher"].write(at_codes(taught.float(), n)[0].half().numpy().tobytes())
            files["acoustic"].write(sound[0].half().numpy().tobytes())
            rows.append((source, n))
            if len(rows) % report == 0:
                hours = sum(count for _, count in rows) / 40 / 3600
                print(f"prepared {len(rows)} strips, {hours:.2f} h", flush=True)
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
    frames a code)."""

    wave_BT: torch.Tensor
    heard_BND: torch.Tensor
    teacher_BND: torch.Tensor
    acoustic_BFM: torch.Tensor


class Corpus:
    """A prepared folder, from which random crops are drawn by source weight."""

    def __init__(self, folder: Path, weights: dict[str, float]) -> None:
        meta = json.loads((folder / "meta.json").read_text())
        dim = int(meta["dim"])
        self.sources = [str(source) for source, _ in meta["clips"]]
        self.counts = np.array([count for _, count in meta["clips"]])
        self.starts = np.concatenate([[0], self.counts.cumsum()])
        total = int(self.starts[-1])

        def view(name: str, kind: Any, shape: tuple[int, ...]) -> NDArray[Any]:
            return np.memmap(folder / f"{name}.bin", kind, "r", shape=shape)

        self.wave = view("wave", np.int16, (total * HOP,))
        self.heard = view("heard", np.float16, (total, dim))
        self.teacher = view("teacher", np.float16, (total, dim))
        self.acoustic = view("acoustic", np.float16, (total * 2, ACOUSTIC))
        share = np.zeros(len(self.sources))
        for source in set(self.sources):
            mine = np.array([s == source for s in self.sources])
            share[mine] = weights.get(source, 0.02) * self.counts[mine] / self.counts[mine].sum()
        self.share = share / share.sum()

    @property
    def hours(self) -> float:
        """Length of all strips in hours."""
        return float(self.counts.sum() / 40 / 3600)

    def teacher_sample(self, count: int = 20_000) -> torch.Tensor:
        """Teacher features of codes with sound in them, evenly spread over the corpus, ``[<= count, D]``."""
        every = np.arange(0, len(self.teacher), max(len(self.teacher) // (2 * count), 1))
        level = np.abs(self.wave[every * HOP + HOP // 2]).astype(np.int32)
        for shift in (50, 120, 300):
            level = np.maximum(level, np.abs(self.wave[every * HOP + shift].astype(np.int32)))
        kept = every[level > 60][:: max(int((level > 60).sum()) // count, 1)]
        return torch.from_numpy(np.asarray(self.teacher[kept], np.float32))

    def batch(self, rng: np.random.Generator, size: int, codes: int) -> Batch:
        """``size`` random crops of ``codes`` codes."""
        columns: dict[str, list[NDArray[Any]]] = {k: [] for k in ("w", "h", "t", "a")}
        for clip in rng.choice(len(self.share), size, p=self.share):
            room = int(self.counts[clip]) - codes
            at = int(self.starts[clip]) + int(rng.integers(0, max(room, 0) + 1))
            at = min(at, int(self.starts[-1]) - codes)
            columns["w"].append(
                self.wave[at * HOP : (at + codes) * HOP].astype(np.float32) / 32_767
            )
            columns["h"].append(self.heard[at : at + codes].astype(np.float32))
            columns["t"].append(self.teacher[at : at + codes].astype(np.float32))
            columns["a"].append(self.acoustic[at * 2 : (at + codes) * 2].astype(np.float32))
        w, h, t, a = (torch.from_numpy(np.stack(columns[k])) for k in ("w", "h", "t", "a"))
        return Batch(w, h, t, a)
