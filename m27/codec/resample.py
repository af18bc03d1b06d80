"""Sounds from one sample rate to another.

By soxr where it is installed, else by a polyphase filter of numpy alone. Knows nothing of files.
Shapes: T samples, P phases, K taps of a filter.
"""

import math

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]


def resample(samples: Samples, rate: int, new_rate: int) -> Samples:
    """Change the sample rate of float32 [T] (Hz to Hz): by soxr where installed, else by
    `resample_polyphase`."""
    if rate == new_rate or len(samples) == 0:
        return samples
    try:
        import soxr
    except ImportError:
        return resample_polyphase(samples, rate, new_rate)
    changed: Samples = soxr.resample(samples, rate, new_rate).astype(np.float32)
    return changed


def resample_polyphase(samples: Samples, rate: int, new_rate: int, zeros: int = 24) -> Samples:
    """Band-limited resampling of float32 [T] with numpy alone: a Kaiser-windowed sinc of `zeros`
    crossings a side, one filter a phase (J. O. Smith, Digital Audio Resampling). About -60 dB of
    aliasing. Returns float32 [ceil(T * new_rate / rate)]."""
    shared = math.gcd(rate, new_rate)
    up, down = new_rate // shared, rate // shared
    cutoff = min(1.0, up / down) * 0.95  # of the input's Nyquist; the rest is the transition band
    reach = math.ceil(zeros / cutoff)
    offsets = np.arange(1 - reach, reach + 1)

    def kernel(fraction_P: npt.NDArray[np.float64]) -> Samples:
        t_PK = fraction_P[:, None] - offsets[None, :]
        inside = np.clip(1.0 - (t_PK / reach) ** 2, 0.0, None)
        window = np.i0(8.0 * np.sqrt(inside)) / np.i0(8.0)
        return (cutoff * np.sinc(cutoff * t_PK) * window).astype(np.float32)

    # Common rates have few phases: build each filter once. Odd rates build them as they go.
    bank = kernel(np.arange(up) / up) if up <= 1024 else None
    count = -(-len(samples) * up // down)
    padded = np.pad(samples, (reach - 1, reach + 1))
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach)
    out = np.empty(count, np.float32)
    for start in range(0, count, 4096):
        n = np.arange(start, min(start + 4096, count), dtype=np.int64) * down
        phase = n % up
        filters = bank[phase] if bank is not None else kernel(phase / up)
        out[start : start + len(n)] = np.einsum("nk,nk->n", windows[n // up], filters)
    return out
