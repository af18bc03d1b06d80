"""A small SoundFont 2 sampler in numpy: one note of one General MIDI program as 16 kHz mono
samples.

Does: zones, key and velocity ranges, tuning, sample loops, the volume envelope, a static low-pass
filter. Does not know: modulators, LFOs, chorus, reverb, the modulation envelope. Stereo zones are
summed to mono. Source: "SoundFont Technical Specification 2.04" (E-mu Systems, 2006), sections 4 to
9.

Shapes: T samples of one note.
"""

import itertools
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from m27.data.sources.base import SourceError

RENDER_RATE = 48_000
OUT_RATE = 16_000

# Generator numbers of section 8.1.2.
_START, _END, _LOOP_START, _LOOP_END = 0, 1, 2, 3
_START_COARSE, _END_COARSE, _LOOP_START_COARSE, _LOOP_END_COARSE = 4, 12, 45, 50
_FILTER, _RESONANCE = 8, 9
_DELAY, _ATTACK, _HOLD, _DECAY, _SUSTAIN, _RELEASE = 33, 34, 35, 36, 37, 38
_INSTRUMENT, _KEYS, _VELOCITIES, _ATTENUATION = 41, 43, 44, 48
_COARSE, _FINE, _SAMPLE, _MODES, _SCALE, _ROOT = 51, 52, 53, 54, 56, 58
_DEFAULTS = {_FILTER: 13500, _SCALE: 100, _ROOT: -1} | dict.fromkeys(
    (_DELAY, _ATTACK, _HOLD, _DECAY, _RELEASE), -12000
)


class SoundFontError(SourceError):
    """The file is not a SoundFont 2 bank, or lacks what was asked; the message names the file."""


@dataclass(frozen=True)
class Sample:
    """Where one recording lies in the bank (frames), its loop, rate (Hz), root key and fine tuning
    (cents).
    """

    start: int
    end: int
    loop_start: int
    loop_end: int
    rate: int
    root: int
    cents: int


@dataclass(frozen=True)
class _Zone:
    """Generators of one zone, with the key and velocity ranges taken out."""

    keys: tuple[int, int]
    velocities: tuple[int, int]
    values: dict[int, int]

    def holds(self, key: int, velocity: int) -> bool:
        """Whether a note of this key and velocity sounds this zone."""
        return (
            self.keys[0] <= key <= self.keys[1]
            and self.velocities[0] <= velocity <= self.velocities[1]
        )


class SoundFont:
    """One opened bank. The samples stay on disk (memory map); `note` renders."""

    def __init__(self, path: Path) -> None:
        """Read the tables of the bank at `path`; `SoundFontError` if it is none."""
        self.path = path
        chunks = self._chunks()
        start, size = chunks["smpl"]
        self._wave = np.memmap(path, dtype="<i2", mode="r", offset=start, shape=(size // 2,))
        raw = path.open("rb")
        with raw:
            table = {}
            for name in ("phdr", "pbag", "pgen", "inst", "ibag", "igen", "shdr"):
                raw.seek(chunks[name][0])
                table[name] = raw.read(chunks[name][1])
        self.samples = [
            Sample(*row[1:8]) for row in struct.iter_unpack("<20s5IBbHH", table["shdr"])
        ]
        instruments = [row[1] for row in struct.iter_unpack("<20sH", table["inst"])]
        self._instruments = self._zones(instruments, table["ibag"], table["igen"], _SAMPLE)
        presets = list(struct.iter_unpack("<20s3H3I", table["phdr"]))
        zones = self._zones([row[3] for row in presets], table["pbag"], table["pgen"], _INSTRUMENT)
        self._presets = {(row[2], row[1]): zones[i] for i, row in enumerate(presets[:-1])}

    def _chunks(self) -> dict[str, tuple[int, int]]:
        """Offset and size in bytes of every leaf chunk."""
        found: dict[str, tuple[int, int]] = {}
        length = self.path.stat().st_size
        with open(self.path, "rb") as file:
            head = file.read(12)
            if head[:4] != b"RIFF" or head[8:] != b"sfbk":
                raise SoundFontError(f"{self.path}: not a SoundFont 2 bank")
            at = 12
            while at + 8 <= length:
                file.seek(at)
                name, size = struct.unpack("<4sI", file.read(8))
                if name == b"LIST":
                    at += 12
                    continue
                found[name.decode("latin-1")] = (at + 8, min(size, length - at - 8))
                at += 8 + size + size % 2
        missing = {"smpl", "phdr", "pbag", "pgen", "inst", "ibag", "igen", "shdr"} - set(found)
        if missing:
            raise SoundFontError(f"{self.path}: chunk {min(missing)} is missing")
        return found

    @staticmethod
    def _zones(starts: list[int], bags: bytes, gens: bytes, last: int) -> list[list[_Zone]]:
        """Zones of every owner; the zone without a `last` generator at its head is global and fills
        in the others.
        """
        first = [row[0] for row in struct.iter_unpack("<HH", bags)]
        rows = list(struct.iter_unpack("<Hh", gens))
        owners = []
        for begin, end in itertools.pairwise(starts):
            zones: list[_Zone] = []
            common: dict[int, int] = {}
            for bag in range(begin, end):
                values = common | dict(rows[first[bag] : first[bag + 1]])
                if last not in values:
                    if bag == begin:
                        common = values
                    continue
                zones.append(
                    _Zone(_range(values.get(_KEYS)), _range(values.get(_VELOCITIES)), values)
                )
            owners.append(zones)
        return owners

    def note(
        self, program: int, key: int, velocity: int, held: float, seconds: float, bank: int = 0
    ) -> np.ndarray:
        """One note as float32 [seconds · 16000]: key 0..127 (60 = middle C) struck at `velocity`,
        let go after `held` s.

        Full scale is that of the recordings; the caller sets the level. `SoundFontError` if nothing
        sounds.
        """
        zones = self._presets.get((bank, program))
        if zones is None:
            raise SoundFontError(f"{self.path}: no program {program} in bank {bank}")
        n = round(seconds * OUT_RATE) * RENDER_RATE // OUT_RATE
        out = np.zeros(round(seconds * OUT_RATE), dtype=np.float64)
        sounded = False
        for preset in zones:
            if not preset.holds(key, velocity):
                continue
            for zone in self._instruments[preset.values[_INSTRUMENT]]:
                if zone.holds(key, velocity):
                    out += self._voice(zone, preset, key, velocity, held, n)
                    sounded = True
        if not sounded:
            raise SoundFontError(f"{self.path}: program {program} has no zone for key {key}")
        return out.astype(np.float32)

    def _voice(
        self, zone: _Zone, preset: _Zone, key: int, velocity: int, held: float, n: int
    ) -> np.ndarray:
        """One zone's part of a note, rendered at 48 kHz and brought to 16 kHz [n // 3]."""
        values = zone.values

        def value(generator: int) -> int:
            own = values.get(generator, _DEFAULTS.get(generator, 0))
            return own + (
                preset.values.get(generator, 0) if generator not in (_MODES, _ROOT) else 0
            )

        sample = self.samples[values[_SAMPLE]]
        own = sample.root if sample.root < 128 else 60  # 255 marks an unpitched recording
        root = value(_ROOT) if value(_ROOT) >= 0 else own
        cents = (key - root) * value(_SCALE) + sample.cents + 100 * value(_COARSE) + value(_FINE)
        step = 2.0 ** (cents / 1200) * sample.rate / RENDER_RATE
        start = sample.start + value(_START) + 32768 * value(_START_COARSE)
        end = sample.end + value(_END) + 32768 * value(_END_COARSE)
        left = sample.loop_start + value(_LOOP_START) + 32768 * value(_LOOP_START_COARSE)
        right = sample.loop_end + value(_LOOP_END) + 32768 * value(_LOOP_END_COARSE)
        where = np.arange(n) * step + start
        if value(_MODES) & 1 and right - left >= 8:
            late = where >= right
            where[late] = left + (where[late] - left) % (right - left)
            sounding = np.ones(n)
        else:
            sounding = (where < end - 2).astype(np.float64)
            where = np.minimum(where, end - 3)
        voice = _interpolate(self._wave, where) * sounding
        voice *= _envelope(
            n, held, *(value(g) for g in (_DELAY, _ATTACK, _HOLD, _DECAY, _SUSTAIN, _RELEASE))
        )
        gain = (velocity / 127) ** 2 * 10 ** (-0.4 * value(_ATTENUATION) / 200)
        return _band(voice, value(_FILTER), value(_RESONANCE)) * gain


def _range(amount: int | None) -> tuple[int, int]:
    """Low and high byte of a range generator; the whole range when it is absent."""
    if amount is None:
        return 0, 127
    return amount & 0xFF, (amount >> 8) & 0xFF


def _interpolate(wave: np.ndarray, where_T: np.ndarray) -> np.ndarray:
    """Values of 16-bit `wave` at fractional frames, as −1..1, by the cubic through four neighbours
    (Catmull-Rom).
    """
    base = np.floor(where_T).astype(np.int64)
    t = where_T - base
    a, b, c, d = (
        wave[np.clip(base + k, 0, wave.size - 1)].astype(np.float64) / 32768 for k in (-1, 0, 1, 2)
    )
    value: np.ndarray = b + 0.5 * t * (
        c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a))
    )
    return value


def _envelope(
    n: int, held: float, delay: int, attack: int, hold: int, decay: int, sustain: int, release: int
) -> np.ndarray:
    """Volume envelope [n] at 48 kHz (times in timecents, `sustain` in centibels): linear attack,
    decay and release in dB.
    """
    t = np.arange(n) / RENDER_RATE
    d, a, h, fall, out = (
        2.0 ** (max(cents, -12000) / 1200) for cents in (delay, attack, hold, decay, release)
    )
    cut = np.clip((t - d - a - h) / fall, 0, None) * 100
    curve = np.clip((t - d) / a, 0, 1) * 10 ** (
        -np.minimum(cut, np.clip(sustain, 0, 1440) / 10) / 20
    )
    after = np.clip(t - held, 0, None) / max(out, 0.02) * 100
    shaped: np.ndarray = np.where(
        t < held, curve, curve[min(n - 1, int(held * RENDER_RATE))] * 10 ** (-after / 20)
    )
    return shaped


def _band(voice_T: np.ndarray, cutoff_cents: int, resonance_cb: int) -> np.ndarray:
    """Second-order low-pass of the zone, and the step from 48 to 16 kHz, both on the spectrum."""
    n = voice_T.size
    spectrum = np.fft.rfft(voice_T)
    hertz = np.fft.rfftfreq(n, 1 / RENDER_RATE)
    if cutoff_cents < 13500:
        ratio = hertz / (8.176 * 2 ** (max(cutoff_cents, 1500) / 1200))
        q = 10 ** ((np.clip(resonance_cb, 0, 960) / 10 - 3.01) / 20)
        spectrum = spectrum / (1 - ratio**2 + 1j * ratio / q)
    # A soft edge below 8 kHz keeps the cut from ringing.
    spectrum *= np.clip((7900 - hertz) / 400, 0, 1)
    short = n * OUT_RATE // RENDER_RATE
    small: np.ndarray = np.fft.irfft(spectrum[: short // 2 + 1], short) * (short / n)
    return small
