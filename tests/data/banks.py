"""A tiny SoundFont 2 bank, written byte by byte, for the tests of the sampler and its users."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

RATE = 32_000
ROOT = 69
LOOP = 3200  # frames; 100 Hz divides it, so that the loop has no seam


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def _gens(*pairs: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("<HH", oper, amount & 0xFFFF) for oper, amount in pairs)


def write_bank(
    path: Path, programs: tuple[int, ...] = (0,), keys: tuple[int, int] = (0, 127)
) -> Path:
    """One 440 Hz sine (0.1 s, looped) with root key 69, under each program; full scale 0.5."""
    t = np.arange(LOOP + 64) / RATE
    wave = np.round(np.sin(2 * np.pi * 440 * t) * 16384).astype("<i2").tobytes()
    keyrange = keys[0] | keys[1] << 8
    release = (38, -7973)  # 2 ** (-7973 / 1200) = 0.01 s
    # An instrument with a global zone (loop mode, release) and one zone of its own.
    igen = _gens((54, 1), release, (43, keyrange), (53, 0), (0, 0))
    ibag = struct.pack("<6H", 0, 0, 2, 0, 4, 0)
    inst = struct.pack("<20sH20sH", b"sine", 0, b"EOI", 2)
    pgen = _gens(*[(41, 0)] * len(programs), (0, 0))
    pbag = b"".join(struct.pack("<HH", i, 0) for i in range(len(programs) + 1))
    phdr = b"".join(
        struct.pack("<20s3H3I", b"p%d" % p, p, 0, i, 0, 0, 0) for i, p in enumerate(programs)
    ) + struct.pack("<20s3H3I", b"EOP", 0, 0, len(programs), 0, 0, 0)
    shdr = struct.pack("<20s5IBbHH", b"sine", 0, LOOP, 0, LOOP, RATE, ROOT, 0, 0, 1)
    shdr += struct.pack("<20s5IBbHH", b"EOS", 0, 0, 0, 0, 0, 0, 0, 0, 0)
    tables = {b"phdr": phdr, b"pbag": pbag, b"pmod": b"", b"pgen": pgen, b"inst": inst}
    tables |= {b"ibag": ibag, b"imod": b"", b"igen": igen, b"shdr": shdr}
    sdta = _chunk(b"LIST", b"sdta" + _chunk(b"smpl", wave))
    pdta = _chunk(b"LIST", b"pdta" + b"".join(_chunk(k, v) for k, v in tables.items()))
    info = _chunk(b"LIST", b"INFO" + _chunk(b"ifil", struct.pack("<HH", 2, 4)))
    path.write_bytes(_chunk(b"RIFF", b"sfbk" + info + sdta + pdta))
    return path
