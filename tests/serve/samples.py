"""Real files of every allowed format, and hostile ones: bombs, lies in headers, polyglots."""

import io
import struct
import wave
import zlib
from collections.abc import Iterator

import numpy as np
import soundfile
from PIL import Image

PICTURES = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
SOUNDS = ("WAV", "FLAC", "OGG", "MP3")


def gradient(height: int = 40, width: int = 60) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 4, columns * 4, rows * 0 + 90], axis=2).astype(np.uint8)


def tone(seconds: float, rate: int = 16_000) -> np.ndarray:
    t = np.arange(int(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * 440.0 * t)).astype(np.float32)


def picture(kind: str, rgb: np.ndarray | None = None, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(gradient() if rgb is None else rgb).save(out, kind, **options)
    return out.getvalue()


def sound(kind: str, samples: np.ndarray | None = None, rate: int = 16_000, **options: str) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, tone(0.3, rate) if samples is None else samples, rate, format=kind, **options)
    return out.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    check = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)


def png(width: int, height: int, *chunks: bytes, rows: bytes | None = None, bits: int = 8) -> bytes:
    """A grey PNG of any claimed size; black, if it is as large as that, unless `rows` are given."""
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    if rows is None:
        rows = deflated((width * bits // 8 + 1) * height)
    middle = b"".join(chunks) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + middle


def deflated(zeros: int) -> bytes:
    """So many zero bytes, as zlib packs them, without ever holding them."""
    pack, piece = zlib.compressobj(1), bytes(1 << 20)
    whole, rest = divmod(zeros, len(piece))
    return b"".join([*(pack.compress(piece) for _ in range(whole)), pack.compress(piece[:rest])]) + (
        pack.flush()
    )


def nested(zeros: int, times: int = 2) -> bytes:
    """Zeros packed, and the result packed again."""
    data = deflated(zeros)
    for _ in range(times - 1):
        data = zlib.compress(data)
    return data


def gif(screen: tuple[int, int], frame: tuple[int, int] | None) -> bytes:
    """A GIF whose one frame claims a size of its own; without one, no frame at all."""
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + bytes(3) + b"\xff" * 3
    if frame is None:
        return head + b";"
    return head + b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\2\2\x4c\1\0;"


def jpeg_of_size(width: int, height: int) -> bytes:
    """A small JPEG whose header claims another size."""
    data = bytearray(picture("JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def jpeg_of_scans(side: int, scans: int) -> bytes:
    """A grey progressive JPEG, its last scan said over and over: little to read, much to decode."""
    data = picture("JPEG", np.full((side, side), 128, np.uint8), progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


def wav(raw: bytes, channels: int = 1, width: int = 2, rate: int = 16_000) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(raw)
    return out.getvalue()


def wav_with(at: int, form: str, value: int) -> bytes:
    """A WAV with one number of its header replaced (20 codec, 22 channels, 24 rate, 40 length)."""
    data = bytearray(wav(bytes(3200)))
    struct.pack_into(form, data, at, value)
    return bytes(data)


def flac_of_samples(count: int) -> bytes:
    """A FLAC whose header claims `count` samples."""
    data = bytearray(sound("FLAC"))
    at = 8 + 13  # behind "fLaC", the block's header and 13 bytes: 4 bits, then 32
    data[at] = data[at] & 0xF0 | count >> 32
    struct.pack_into(">I", data, at + 1, count & 0xFFFFFFFF)
    return bytes(data)


def id3(size: int, body: bytes = b"") -> bytes:
    """An ID3v2 tag that claims `size` bytes."""
    digits = bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\4\0\0" + digits + body


def ogg_pages(data: bytes) -> Iterator[tuple[int, int]]:
    """(start, end) of each page."""
    at = 0
    while at + 27 <= len(data):
        segments = data[at + 26]
        end = at + 27 + segments + sum(data[at + 27 : at + 27 + segments])
        yield at, end
        at = end


def ogg_crc(page: bytes) -> int:
    register = 0
    for byte in page:
        register ^= byte << 24
        for _ in range(8):
            register = (register << 1 ^ 0x04C11DB7 * (register >> 31)) & 0xFFFFFFFF
    return register


def sealed(data: bytes) -> bytes:
    """A PNG or OGG with the checksums it should have, so that decoders look further; others as they are."""
    out = bytearray(data)
    if data.startswith(b"OggS"):
        for start, end in ogg_pages(data):
            out[start + 22 : start + 26] = bytes(4)
            struct.pack_into("<I", out, start + 22, ogg_crc(bytes(out[start:end])))
    at = 8
    while data.startswith(b"\x89PNG") and at + 12 <= len(out):
        end = at + 8 + int.from_bytes(out[at : at + 4], "big")
        if end + 4 > len(out):
            break
        struct.pack_into(">I", out, end, zlib.crc32(out[at + 4 : end]))
        at = end + 4
    return bytes(out)


def ogg_of_granule(granule: int) -> bytes:
    """An OGG whose last page claims to end at `granule`, with a checksum that agrees."""
    data = bytearray(sound("OGG"))
    start, end = list(ogg_pages(bytes(data)))[-1]
    struct.pack_into("<q", data, start + 6, granule)
    data[start + 22 : start + 26] = bytes(4)
    struct.pack_into("<I", data, start + 22, ogg_crc(bytes(data[start:end])))
    return bytes(data)


def ogg_of(packet: bytes) -> bytes:
    """The first page of an Ogg stream of another codec."""
    page = b"OggS\0\2" + bytes(20) + b"\1" + bytes([len(packet)]) + packet
    return page[:22] + struct.pack("<I", ogg_crc(page)) + page[26:]


def strangers() -> dict[str, bytes]:
    """What is not on the list, by a word that its refusal must name."""
    box = struct.pack(">I", 24)
    return {
        "SVG": b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>",
        "TIFF": picture("TIFF"),
        "AVIF": box + b"ftypavif" + bytes(12),
        "HEIF": box + b"ftypheic" + bytes(12),
        "MP4": box + b"ftypisom" + bytes(12),
        "QuickTime": box + b"ftypqt  " + bytes(12),
        "Matroska": b"\x1a\x45\xdf\xa3" + bytes(40),
        "AVI": b"RIFF\x40\0\0\0AVI LIST" + bytes(40),
        "Flash": b"FLV\1\5" + bytes(20),
        "MPEG": (b"\x47" + bytes(187)) * 3,
        "playlist": b"#EXTM3U\n#EXTINF:1,x\nhttp://127.0.0.1/x.ts\n",
        "JPEG XL": b"\xff\x0a" + bytes(20),
        "icon": b"\0\0\1\0\1\0" + bytes(20),
        "PDF": b"%PDF-1.7\n",
        "PostScript": b"%!PS-Adobe-3.0\n",
        "Photoshop": b"8BPS\0\1" + bytes(30),
        "ZIP": b"PK\3\4" + bytes(40),
        "pickle": b"\x80\x04\x95\x20\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
        "NumPy": b"\x93NUMPY\1\0" + bytes(60),
        "HTML": b"<!DOCTYPE html><html></html>",
        "AIFF": sound("AIFF"),
        "AU": sound("AU"),
        "CAF": sound("CAF"),
        "RF64": sound("RF64"),
        "Wave64": sound("W64"),
        "AAC": b"\xff\xf1\x50\x80" + bytes(40),
        "MIDI": b"MThd\0\0\0\6" + bytes(20),
        "Opus": ogg_of(b"OpusHead\1\2" + bytes(9)),
        "Theora": ogg_of(b"\x80theora\3\2\1" + bytes(30)),
        "Speex": ogg_of(b"Speex   1.2" + bytes(60)),
        "codec 85": wav_with(20, "<H", 85),  # MP3 in a WAV
        "codec 49": wav_with(20, "<H", 49),  # GSM
        "ID3": id3(0) + sound("FLAC"),
    }
