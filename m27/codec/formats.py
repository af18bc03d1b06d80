"""What a file is, by its first bytes alone: the formats that may be decoded, and names for the rest.

The name or type that somebody claims never counts. Containers are looked into as far as needed to
know the codec in them (an Ogg may hold Opus or a video, a WAV or an ID3 tag nearly anything), so that
no decoder is opened for what is not on the list. Decodes nothing.
"""

from __future__ import annotations

import struct

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
AUDIO_FORMATS = ("WAV", "FLAC", "OGG", "MP3")
WAV_CODECS = (1, 3, 6, 7)  # PCM, float, A-law, mu-law
_EXTENSIBLE = 0xFFFE
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)
_MAX_CHUNKS = _MAX_TAGS = 64

# Signatures of what is not accepted, so that it can be refused by its name. The order matters.
_OTHERS = (
    (b"II*\0", "a TIFF picture"), (b"MM\0*", "a TIFF picture"),
    (b"II+\0", "a TIFF picture"), (b"MM\0+", "a TIFF picture"),
    (b"\xff\x0a", "a JPEG XL picture"), (b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"), (b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (b"\0\0\1\0", "an icon"), (b"8BPS", "a Photoshop picture"),
    (b"%PDF", "a PDF document"), (b"%!PS", "a PostScript document"),
    (b"\x1a\x45\xdf\xa3", "a WebM or Matroska video"), (b"FLV", "a Flash video"),
    (b"\0\0\1\xba", "an MPEG video"), (b"\0\0\1\xb3", "an MPEG video"),
    (b"\x30\x26\xb2\x75", "a Windows Media file"),
    (b"RF64", "an RF64 sound"), (b"riff", "a Wave64 sound"), (b"FORM", "an AIFF sound"),
    (b"caff", "a CAF sound"), (b".snd", "an AU sound"), (b"#!AMR", "an AMR sound"),
    (b"MThd", "a MIDI file"), (b"PK", "a ZIP archive"), (b"\x1f\x8b", "a gzip archive"),
    (b"\x93NUMPY", "a NumPy array"), (b"\x80\x02", "a pickle"), (b"\x80\x03", "a pickle"),
    (b"\x80\x04", "a pickle"), (b"\x80\x05", "a pickle"), (b"\x7fELF", "a program"),
)  # fmt: skip
_OGG_CODECS = (
    (b"OpusHead", "an Ogg Opus sound"), (b"\x80theora", "an Ogg Theora video"),
    (b"Speex", "an Ogg Speex sound"), (b"\x7fFLAC", "an Ogg FLAC sound"),
)  # fmt: skip
_TEXTS = (
    (b"#extm3u", "a playlist"), (b"[playlist]", "a playlist"), (b"<asx", "a playlist"),
    (b"ffconcat", "a playlist"), (b"<playlist", "a playlist"), (b"<smil", "a playlist"),
    (b"<svg", "an SVG drawing"), (b"<!doctype html", "an HTML page"), (b"<html", "an HTML page"),
)  # fmt: skip
_BRANDS = {
    b"avif": "an AVIF picture", b"avis": "an AVIF picture", b"mif1": "a HEIF picture",
    b"heic": "a HEIF picture", b"heix": "a HEIF picture", b"msf1": "a HEIF picture",
    b"M4A ": "an M4A sound", b"qt  ": "a QuickTime video",
}  # fmt: skip


_TYPES = {
    "PNG": "image/png", "JPEG": "image/jpeg", "GIF": "image/gif", "WEBP": "image/webp", "BMP": "image/bmp",
    "WAV": "audio/wav", "MP3": "audio/mpeg", "FLAC": "audio/flac", "OGG": "audio/ogg",
}  # fmt: skip


def media_type(data: bytes) -> str:
    """What the format is called on the network ("image/png"), by the first bytes; "" for no format of ours."""
    return _TYPES.get(sniff(data) or "", "")


def sniff(data: bytes) -> str | None:
    """The format, one of IMAGE_FORMATS or AUDIO_FORMATS; None where it is none of them."""
    head = data[:16]
    riff = head[8:12] if head[:4] == b"RIFF" else b""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if riff == b"WEBP":
        return "WEBP"
    if head.startswith(b"BM") and int.from_bytes(data[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if riff == b"WAVE":
        codec = wav_codec(data)
        return "WAV" if codec is None or codec in WAV_CODECS else None
    if head.startswith(b"fLaC"):
        return "FLAC"
    if head.startswith(b"OggS"):
        return "OGG" if _ogg_packet(data).startswith(b"\x01vorbis") else None
    return "MP3" if _mp3_frame(data[mp3_start(data) :][:4]) else None


def stranger(data: bytes) -> str:
    """What something is that `sniff` does not know, for a message, as "an SVG drawing"; "" where unknown."""
    if data.startswith(b"ID3"):
        return "an ID3 tag without an MP3 sound behind it"
    if data.startswith(b"OggS"):
        packet = _ogg_packet(data)
        return next((name for sign, name in _OGG_CODECS if packet.startswith(sign)), "an Ogg file")
    if data.startswith(b"RIFF"):
        kind, codec = data[8:12], wav_codec(data)
        if kind == b"WAVE" and codec is not None:
            return f"a WAV sound of codec {codec} (PCM, float, A-law and mu-law can be read)"
        return "an AVI video" if kind == b"AVI " else "a RIFF file"
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], "an MP4 video or its like")
    for sign, name in _OTHERS:
        if data.startswith(sign):
            return name
    if len(data) > 188 and data[0] == data[188] == 0x47:
        return "an MPEG video"
    if len(data) > 1 and data[0] == 0xFF and data[1] & 0xF6 == 0xF0:
        return "an AAC sound"
    text = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<", b"#", b"[", b"ffconcat")):
        found = [(text.find(sign), name) for sign, name in _TEXTS if sign in text]
        if found:
            return min(found)[1]
        if text.startswith(b"<?xml"):
            return "an XML document"
    return ""


def wav_codec(data: bytes) -> int | None:
    """The codec's number in the `fmt ` chunk of a RIFF/WAVE file; None where there is no such chunk."""
    at = 12
    for _ in range(_MAX_CHUNKS):
        if len(data) < at + 10:
            return None
        kind, size = struct.unpack_from("<4sI", data, at)
        if kind == b"fmt ":
            codec = int.from_bytes(data[at + 8 : at + 10], "little")
            if codec == _EXTENSIBLE and len(data) >= at + 34:
                codec = int.from_bytes(data[at + 32 : at + 34], "little")  # of the subformat's GUID
            return codec
        at += 8 + size + size % 2
    return None


def mp3_start(data: bytes) -> int:
    """Where the first frame of an MP3 should be: behind ID3v2 tags and the zeros that pad them.

    At most `len(data)`; a tag may claim any length.
    """
    at = 0
    for _ in range(_MAX_TAGS):
        if data[at : at + 3] != b"ID3" or len(data) < at + 10:
            break
        size = 0
        for byte in data[at + 6 : at + 10]:
            size = size << 7 | byte & 0x7F
        at += 10 + size + (10 if data[at + 5] & 0x10 else 0)
    if 0 < at < len(data):
        pad = data[at : at + 65_536]
        at += len(pad) - len(pad.lstrip(b"\0"))
    return min(at, len(data))


def webp_size(data: bytes) -> tuple[int, int]:
    """(width, height) from the header of a WebP file (Google, WebP container specification).

    Raises struct.error where it is cut short.
    """
    kind = data[12:16]
    if kind == b"VP8X":
        width = int.from_bytes(data[24:27], "little") + 1
        return width, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack("<HH", data[26:30])
    return width & 0x3FFF, height & 0x3FFF


def _ogg_packet(data: bytes) -> bytes:
    """The beginning of the first packet of an Ogg file."""
    at = 27 + data[26] if len(data) > 26 else len(data)
    return data[at : at + 16]


def _mp3_frame(head: bytes) -> bool:
    """Whether these four bytes can begin a frame of MPEG layer III (ISO 11172-3, 2.4.2.3)."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2 or head[1] & 0x18 == 0x08:
        return False
    bitrate, rate = head[2] >> 4, head[2] >> 2 & 3
    return bitrate not in (0, 15) and rate != 3
