"""payload.py: one file has one spelling, and what is wrong with another is said."""

import base64
import tracemalloc

import numpy as np
import pytest

from m27.serve import payload
from m27.serve.limits import MediaRefused


def complaint(text: str, most: int = 1000) -> str:
    with pytest.raises(MediaRefused) as caught:
        payload.decode(payload.ascii_bytes(text), most)
    assert caught.value.code in ("bad_encoding", "media_too_large")
    return str(caught.value)


@pytest.mark.parametrize("length", [*range(1, 12), 999, 1000])
def test_what_was_encoded_is_decoded(length: int) -> None:
    data = np.random.default_rng(length).bytes(length)
    text = base64.b64encode(data)
    assert payload.decode(text, length) == data
    lines = base64.encodebytes(data)
    assert payload.decode(lines, length) == data
    assert payload.decode(lines.replace(b"\n", b"\r\n"), length) == data
    payload.check_size(len(lines.replace(b"\n", b"\r\n")), length)
    with pytest.raises(MediaRefused, match="larger"):
        payload.decode(text, length - 1)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("QUJD RUZH", "holds ' '"),
        (" QUJD", "holds ' '"),
        ("QUJD\tRUZH", "a control character"),
        ("QUJD\0", "a control character"),
        ("_-8=", "URL alphabet"),
        ("QUJD%3D", "percent-encoded"),
        ("QUJDRA", "lacks its padding"),
        ("QUJDRA=", "lacks its padding"),
        ("QUJDR", "lacks its padding"),
        ("QUJDRA==QUJD", "padding where there should be none"),
        ("QUJDRA======", "padding where there should be none"),
        ("====", "padding where there should be none"),
        ("=QUJ", "padding where there should be none"),
        ("QUJDRB==", "stray bits"),
        ("QUJDREV=", "stray bits"),
        ("QUJDé", "not ASCII"),
        ("QUJD\ud800", "not ASCII"),
    ],
)
def test_other_spellings_are_refused_with_their_fault(text: str, reason: str) -> None:
    assert reason in complaint(text)


def test_every_other_character_is_refused() -> None:
    allowed = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=\r\n")
    for code in set(range(256)) - {ord(c) for c in allowed}:
        assert "base64 holds" in complaint("QUJD" + chr(code) * 4)


def test_the_size_is_checked_before_anything_is_read() -> None:
    text = "A" * 4_000_000
    url = "data:;base64," + text
    tracemalloc.start()
    with pytest.raises(MediaRefused, match="larger than 1 MB") as caught:
        payload.data_url(url, 1_000_000)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()
    assert caught.value.status == 413
    assert "larger than 1 MB" in complaint(text, 1_000_000)


def test_line_breaks_cannot_make_room() -> None:
    with pytest.raises(MediaRefused, match="larger"):
        payload.check_size(2000, 1000)
    assert payload.decode(b"\n\r\n", 1000) == b""


@pytest.mark.parametrize(
    "url",
    ["data:image/png;base64,QUJD", "DATA:;BASE64,QUJD", "data:a/b;charset=x;base64,QUJD", "data:;base64,QUJD"],
)
def test_the_base64_of_a_data_url(url: str) -> None:
    assert payload.data_url(url, 3) == "QUJD"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("data:image/png,abc", "must be base64"),
        ("data:image/png;base64", "no comma"),
        ("data:", "no comma"),
        ("data:image/svg+xml;utf8,<svg/>", "must be base64"),
        ("data:image/png;base64;x,QUJD", "must be base64"),
        ("data:" + "a" * 10_000_000 + ";base64,QUJD", "no comma"),
    ],
)
def test_other_data_urls_are_refused(url: str, reason: str) -> None:
    with pytest.raises(MediaRefused, match=reason):
        payload.data_url(url, 3)
