"""Scalars of a run as TensorBoard's event files, written without TensorBoard.

An event file is a row of records (TFRecord: length, its checksum, content, its checksum), each an `Event` in the
encoding of protocol buffers, of which four fields are needed. A run that goes on opens a file of its own, which
tells TensorBoard from which step on the earlier ones are void.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path


def _table() -> tuple[int, ...]:
    """The table of CRC-32C (Castagnoli), which the format asks for and no module of Python's has."""
    out = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        out.append(value)
    return tuple(out)


_TABLE = _table()


def _masked(content: bytes) -> bytes:
    """The checksum of TFRecord: CRC-32C, turned and moved, as 4 bytes."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _text(field: int, content: bytes) -> bytes:
    """A field of bytes, text or a message."""
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _event(step: int, rest: bytes) -> bytes:
    """An Event: wall_time = 1 (double), step = 2 (int64), and `rest`."""
    return b"\x09" + struct.pack("<d", time.time()) + b"\x10" + _varint(step) + rest


class EventWriter:
    """A new event file in `folder`; steps from `first` on of earlier files are void. It is not held open."""

    def __init__(self, folder: Path, first: int = 1) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self.path = folder / name
        self._write(
            _event(0, _text(3, b"brain.Event:2")),  # file_version = 3
            _event(first, _text(7, b"\x08\x01")),  # session_log = 7: status = START
        )

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """The values of a step, by tag."""
        summary = b"".join(
            # Summary.value = 1: tag = 1 (text), simple_value = 2 (float)
            _text(1, _text(1, tag.encode()) + b"\x15" + struct.pack("<f", value))
            for tag, value in values.items()
        )
        self._write(_event(step, _text(5, summary)))  # summary = 5

    def close(self) -> None:
        """Nothing is held open."""

    def _write(self, *events: bytes) -> None:
        with open(self.path, "ab") as file:
            for content in events:
                length = struct.pack("<Q", len(content))
                file.write(length + _masked(length) + content + _masked(content))
