"""Decoding of sound codes as they come, a few at a time, with what whole decoding gives.

It knows the audio codec, no files and no devices.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .audio import AudioCodec
from .mel import FRAME
from .source_filter import REST, Frames, advance, hold_from


class AudioStream:
    """Decodes codes as they come: ``push`` gives the samples that are certain, ``flush`` the rest.

    What it gives in all equals ``decode`` of all codes (within rounding): each step repeats
    enough codes before and holds back the samples that codes to come could still change, some 8
    codes (0.2 s), 10 with a refiner.
    """

    def __init__(self, codec: AudioCodec) -> None:
        self._codec = codec
        self._codes: list[int] = []
        self._dropped = 0  # codes before the first kept one
        self._rendered = 0  # frames given out
        self._known = 0  # frames whose pitch and phase are settled
        self._pitch: list[float] = []  # settled pitch of frames from _base on
        self._phase: list[float] = []  # phase where those frames begin
        self._base = 0
        self._end_phase = 0.0
        self._closed = False

    @torch.no_grad()
    def push(self, codes_N: NDArray[np.int64] | list[int] | Tensor) -> NDArray[np.float32]:
        """Take codes (any number), give the samples that are ready (float32, maybe none).

        Raises:
            ValueError: for a code outside the codebook, or after ``flush``.
        """
        codes = torch.as_tensor(codes_N).reshape(-1).long()
        if self._closed:
            raise ValueError("audio stream: push after flush")
        self._codec._check(codes)
        self._codes += codes.tolist()
        return self._advance(final=False)

    @torch.no_grad()
    def flush(self) -> NDArray[np.float32]:
        """Give the rest of the samples and close the stream."""
        self._closed = True
        return self._advance(final=True)

    def _advance(self, final: bool) -> NDArray[np.float32]:
        decoder = self._codec.decoder
        total = self._dropped + len(self._codes)
        settled = 2 * (total if final else max(total - decoder.look_ahead, 0))
        ready = settled if final else max(settled - self._codec.after, 0)
        if ready <= self._rendered:
            return np.zeros(0, np.float32)
        device = decoder.embed.weight.device
        pitch, voiced, tone, noise, states = self._codec.predict(
            torch.tensor([self._codes], device=device)
        )
        offset = 2 * self._dropped
        new, seen = pitch[:, self._known - offset : settled - offset], self._known
        mask = voiced[:, seen - offset : settled - offset]
        start = torch.tensor([self._pitch[-1] if self._pitch else REST], device=device)
        new = hold_from(start, new, mask)
        end = torch.tensor([self._end_phase], dtype=torch.float64, device=device)
        phases = advance(new, start, end)[0].tolist()
        self._pitch += new[0].tolist()
        self._phase += phases[:-1]
        self._end_phase = phases[-1]
        self._known = settled
        low = max(self._rendered - self._codec.before, self._base)
        begin = low - self._base
        cut = slice(low - offset, settled - offset)
        before = torch.tensor([self._pitch[begin - 1] if begin else REST], device=device)
        at = torch.tensor([self._pitch[begin:]], device=device)
        phase = torch.tensor([self._phase[begin]], dtype=torch.float64, device=device)
        frames = Frames(at, before, phase, low * FRAME, tone[:, cut], noise[:, cut])
        wave = self._codec.render(frames, states[:, cut])
        samples = wave[0, (self._rendered - low) * FRAME : (ready - low) * FRAME]
        self._rendered = ready
        self._forget()
        return samples.cpu().numpy().astype(np.float32, copy=False)

    def _forget(self) -> None:
        """Drop codes and frames that no sample to come depends on."""
        frame = max(self._rendered - self._codec.before - 1, self._base)
        del self._pitch[: frame - self._base], self._phase[: frame - self._base]
        self._base = frame
        first = (self._rendered - self._codec.before) // 2
        keep = max(first - self._codec.decoder.look_back, self._dropped)
        del self._codes[: keep - self._dropped]
        self._dropped = keep
