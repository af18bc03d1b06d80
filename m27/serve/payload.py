"""The base64 that media arrive in: data URLs and plain strings, to bytes.

Strict, and this is what is decided: the standard alphabet alone, padded, with nothing after the
padding and no stray bits in the last character, so that one file has one spelling. Line breaks are
let through, since mail encoders and `base64` without `-w0` put them in; any other character is
refused by name. Knows nothing of formats: the type that a data URL claims is not read.
"""

from __future__ import annotations

import binascii
import re

from m27.serve.limits import MediaRefused

_MAX_HEAD = 200  # characters of a data URL before its comma
_ALPHABET = re.compile(rb"[^A-Za-z0-9+/=]")
_CODE = "bad_encoding"


def data_url(url: str, most: int) -> str:
    """The base64 in `data:[type][;name=value]*;base64,…`, where it can be at most `most` bytes.

    Raises MediaRefused, for what is too long before a copy of it is made.
    """
    comma = url.find(",", 0, _MAX_HEAD)
    if comma < 0:
        raise MediaRefused("the data URL has no comma where its data should begin", _CODE)
    if not url[:comma].lower().endswith(";base64"):
        raise MediaRefused("the data URL must be base64: data:image/png;base64,…", _CODE)
    check_size(len(url) - comma - 1, most)
    return url[comma + 1 :]


def check_size(length: int, most: int) -> None:
    """Refuse a length of base64 that is too long for `most` bytes, line breaks included."""
    if length > 4 * (most // 3 + 1) * 78 // 76 + 2:
        raise MediaRefused(f"the file is larger than {most / 1e6:g} MB", "media_too_large")


def ascii_bytes(text: str) -> bytes:
    """The base64's characters as bytes. Raises MediaRefused for those that cannot be base64."""
    try:
        return text.encode("ascii")
    except UnicodeEncodeError:
        raise MediaRefused("the base64 holds characters that are not ASCII", _CODE) from None


def decode(text: bytes, most: int) -> bytes:
    """The bytes of a base64 text, at most `most` of them. Raises MediaRefused."""
    packed = text.translate(None, b"\r\n")
    size = len(packed) // 4 * 3 - (len(packed) - len(packed.rstrip(b"=")))
    if size > most:
        raise MediaRefused(f"the file is larger than {most / 1e6:g} MB", "media_too_large")
    if wrong := _ALPHABET.search(packed):
        raise MediaRefused(f"the base64 holds {_shown(wrong[0])}, {_advice(wrong[0])}", _CODE)
    if len(packed) % 4:
        raise MediaRefused("the base64 is cut short or lacks its padding", _CODE)
    try:
        data = binascii.a2b_base64(packed, strict_mode=True)
    except binascii.Error:
        raise MediaRefused("the base64 has padding where there should be none", _CODE) from None
    tail = data[len(data) - (len(data) % 3 or 3) :]
    if data and binascii.b2a_base64(tail, newline=False) != packed[-4:]:
        raise MediaRefused("the base64 has stray bits in its last character", _CODE)
    return data


def _shown(character: bytes) -> str:
    return repr(character.decode()) if b" " <= character <= b"~" else "a control character"


def _advice(character: bytes) -> str:
    if character in b"-_":
        return "which is of the URL alphabet; the standard one is expected"
    if character == b"%":
        return "so it is percent-encoded; send it plain"
    return "which is not of its alphabet"
