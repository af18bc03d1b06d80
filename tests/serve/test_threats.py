"""One named test for each row of the threat table that concerns a server, held against the gate.

Rows, or the parts of them, that live in the HTTP layer are listed in `FOR_THE_SERVER`: the server's own
tests are to have one named test for each.
"""

import ast
import asyncio
import io
import os
import re
import signal
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from m27.serve.gate import GateLimits, MediaRefused
from tests.serve import samples
from tests.serve.conftest import PATIENCE, Door, data_url, opened, plain
from tests.serve.test_fetch import Site, answer
from tests.serve.test_gate import SLOW, forks, resident, until

SERVE = Path(__file__).resolve().parents[2] / "m27" / "serve"

FOR_THE_SERVER = {
    "a code path that goes round the gate": "no part of a request reaches the processor as `path` or `bytes`: only "
    "arrays of the gate and text do",
    "size checked after reading": "a 1 GB upload and an endless body are answered 413 while they are read, memory flat",
    "native decoder bugs": "a decoder child killed under load: 400 for its request, /health stays true",
    "addresses and paths in error text": "no `0x…`, path or traceback in any body or stream event",
    "tensors and pickles from clients or checkpoints": "no route takes tensors (checkpoints: tests/model, tests/train)",
    "control tokens typed as text": "each control token as user, system and tool text stays text over HTTP",
    "grammar, regex, schema DoS": "deep nesting, huge enum, `(a+)+b`: 400, the engine lives",
    "cache confusion between tenants": "the salt of each key; the same picture hits for one key and not for another",
    "auth bypass, timing": "every route without a key, with a bad Host; compare_digest",
    "huge n, headers, max_tokens": "the server's ceilings beat the request's values (media a request: tested here)",
}


def test_ssrf_through_a_media_url(open_door: Callable[..., Door], monkeypatch: pytest.MonkeyPatch) -> None:
    async def dialled(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    async def inner(host: str, port: int) -> list[str]:
        return {"mapped.test": ["::ffff:10.0.0.1"], "half.test": ["8.8.8.8", "127.0.0.1"]}.get(host, ["10.0.0.1"])

    monkeypatch.setattr(asyncio, "open_connection", dialled)
    off, on = open_door(), open_door(GateLimits(fetch=True), resolve=inner)
    for host in (
        "127.0.0.1", "localhost", "10.0.0.1", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.100.100.200",
        "0.0.0.0", "0", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "017700000001", "[::1]", "[::]",
        "[::ffff:127.0.0.1]", "[::ffff:a9fe:a9fe]", "[fe80::1]", "[fd00:ec2::254]", "[64:ff9b::a00:1]",
        "[2002:7f00:1::]", "224.0.0.1", "255.255.255.255", "168.63.129.16", "metadata.google.internal",
        "mapped.test", "half.test", "user:pw@8.8.8.8", "8.8.8.8\\@10.0.0.1", "10.0.0.1\\.example.org",
        "8.8.8.8:22", "10.0.0.1#@8.8.8.8", "10.0.0.1?@8.8.8.8", "１０.0.0.1", "8.8.8.8%00.x", "8.8.8.8 .x",
    ):  # fmt: skip
        for scheme in ("http", "https", "HTTP"):
            url = f"{scheme}://{host}/latest/meta-data"
            assert off.no(url).code == "url_not_allowed"
            assert on.no(url).code in ("url_not_allowed", "bad_url")
    for url in ("file:///etc/passwd", "ftp://8.8.8.8/", "gopher://8.8.8.8/", "//8.8.8.8/", "http:8.8.8.8", "unix:/x"):
        assert on.no(url).code == "bad_url"


def test_a_code_path_that_goes_round_the_gate() -> None:
    """In the server's room only the decoder decodes and only the fetcher connects."""
    may = {
        r"(.*\.)?read_(image|audio|cutout)": "decoder.py",
        r"(.*\.)?(open_connection|create_connection|getaddrinfo|sock_connect)": "fetch.py",
        r"(.*\.)?(a2b_base64|b64decode|decodebytes|urlsafe_b64decode)": "payload.py",
        r"(urllib\.request|http\.client|requests|httpx\d?|aiohttp|urllib3)\..*|(.*\.)?urlopen": None,
        r"(pickle|torch\.load|numpy\.load|np\.load|marshal)(\..*)?": None,
    }
    seen = set()
    for path in SERVE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Call):
                names = [ast.unparse(node.func)]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [f"{alias.name}." for alias in node.names]
            for name in names:
                for form, place in may.items():
                    if re.fullmatch(form, name):
                        assert path.name == place, f"{path.name}:{node.lineno}: {name}"
                        seen.add(place)
    assert seen == {"decoder.py", "fetch.py", "payload.py"}  # the rule sees what it is to see


def test_size_checked_after_reading(open_door: Callable[..., Door]) -> None:
    door = open_door(GateLimits(file_bytes=1_000_000, workers=1))
    huge, text = bytes(100_000_000), "A" * 100_000_000
    url = data_url(b"") + text
    before = resident()
    assert door.no(huge).status == 413
    assert door.no(url).status == 413
    with pytest.raises(MediaRefused, match="larger than 1 MB"):
        door(door.gate.sound(text, "wav"))
    assert door.workers() == []  # nobody was even asked
    assert resident() - before < 30_000_000
    site = Site(open_door)
    site.pages["/endless"] = answer(b"", "Content-Type: image/png")
    limits = site.limits(fetch_bytes=1_000_000)
    fetching = open_door(limits, resolve=site.resolve, allowed=lambda ip: True)
    before = resident()
    assert fetching.no(site.url("/endless")).status == 413
    assert resident() - before < 30_000_000
    site.stop()


def test_audio_bomb(door: Door) -> None:
    minutes = samples.sound("FLAC", np.zeros(8000 * 60 * 20, np.float32), 8000)
    assert len(minutes) < 200_000
    assert "longer than 30 seconds" in str(door.no(minutes, "sound"))
    longer = samples.sound("OGG", np.zeros(8000 * 120, np.float32), 8000)
    assert "longer than 30 seconds" in str(door.no(longer, "sound"))
    wide = samples.sound("FLAC", np.zeros((48_000 * 35, 8), np.float32), 48_000)
    assert door.no(wide, "sound").status == 413
    fine = samples.wav(bytes(16 * 192_000 * 5), channels=16, width=1, rate=192_000)  # under 30 s, but 15 M samples
    assert "12000000 samples" in str(door.no(fine, "sound"))
    opus = samples.ogg_of(b"OpusHead\1\xff" + bytes(9))
    assert "Opus" in str(door.no(opus, "sound"))
    for rate in (0, 1, 999, 384_001, 2**31, 2**32 - 1):
        assert "sample rate" in str(door.no(samples.wav_with(24, "<I", rate), "sound"))
    for channels in (17, 255, 65_535):
        assert "channels" in str(door.no(samples.wav_with(22, "<H", channels), "sound"))
    assert len(door.sound(samples.wav_with(40, "<I", 2**32 - 1))) == 1600
    for at, form, value in ((22, "<H", 0), (34, "<H", 0), (34, "<H", 65_535), (16, "<I", 0), (16, "<I", 2**32 - 1)):
        assert door.no(samples.wav_with(at, form, value), "sound").code == "broken_media"
    for count in (0, 10**6, 2**36 - 1):  # more than there are, or an unknown number
        assert door.no(samples.flac_of_samples(count), "sound").code == "broken_media"
    mp3 = samples.sound("MP3")
    assert "ID3" in str(door.no(samples.id3(2**28 - 1) + mp3, "sound"))
    assert "ID3" in str(door.no(samples.id3(0) * 100_000 + mp3, "sound"))
    for granule in (2**63 - 1, 2**62, -1, -(2**63)):
        within(door, samples.ogg_of_granule(granule), "sound")


def test_image_bomb_odd_shapes(door: Door) -> None:
    zeros = samples.png(50_000, 50_000, bits=1)
    assert len(zeros) < 2_000_000
    for bomb in (
        zeros, samples.png(5001, 5000, rows=b""), samples.png(2**31 - 1, 2**31 - 1, rows=b""),
        samples.gif((1, 1), (65_535, 65_535)), samples.gif((65_535, 65_535), (1, 1)),
        samples.jpeg_of_size(65_500, 65_500), samples.jpeg_of_size(25_001, 1000),
        webp_of_size(16_384, 16_384), bmp_of_size(60_000, 60_000), bmp_of_size(60_000, -60_000),
    ):  # fmt: skip
        refusal = door.no(bomb)
        assert (refusal.code, refusal.status) == ("media_too_large", 413)
        assert "pixels" in str(refusal)
    packed = [samples.deflated(200 << 20), samples.nested(200 << 20)]
    bodies = {b"zTXt": b"a\0\0", b"iCCP": b"a\0\0", b"iTXt": b"a\0\1\0\0\0"}
    for kind, start in bodies.items():
        for body in packed:
            within(door, samples.png(4, 4, samples.chunk(kind, start + body)))
    many = (samples.chunk(b"zTXt", b"%d\0\0" % n + samples.deflated(1_000_000)) for n in range(80))
    within(door, samples.png(4, 4, *many))
    assert door.picture(samples.png(4, 4, rows=packed[0])).shape == (4, 4, 3)  # more rows than it has
    for height, width in ((1, 1), (1, 20_000), (20_000, 1), (3, 2)):
        for kind in samples.PICTURES:
            if kind == "WEBP" and max(height, width) > 16_383:
                continue
            rgb = np.full((height, width, 3), 200, np.uint8)
            assert door.picture(samples.picture(kind, rgb)).shape == (height, width, 3)
    for empty in (samples.gif((4, 4), None), samples.gif((0, 0), (0, 0)), samples.jpeg_of_size(0, 0)):
        assert door.no(empty).code == "broken_media"
    red, blue = (np.full((8, 8, 3), c, np.uint8) for c in ([255, 0, 0], [0, 0, 255]))
    later = [Image.fromarray(blue)] * 300
    for kind in ("GIF", "PNG", "WEBP"):
        moving = samples.picture(kind, red, save_all=True, append_images=later)
        assert door.picture(moving)[0, 0].tolist()[2] < 60


def webp_of_size(width: int, height: int) -> bytes:
    data = bytearray(samples.picture("WEBP", exif=b"Exif\0\0II*\0\b\0\0\0\0\0"))
    data[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


def bmp_of_size(width: int, height: int) -> bytes:
    data = bytearray(samples.picture("BMP"))
    data[18:26] = width.to_bytes(4, "little") + height.to_bytes(4, "little", signed=True)
    return bytes(data)


def within(door: Door, data: bytes, medium: str = "picture") -> None:
    """Either one plain line, or an array within the limits."""
    try:
        array = door.picture(data) if medium == "picture" else door.sound(data)
    except MediaRefused as error:
        refusal = error
    else:
        refusal = None
    if refusal is not None:
        plain(str(refusal))
        assert refusal.code in ("broken_media", "media_too_large", "unsupported_format", "empty_media")
        return
    if medium == "picture":
        assert array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3
        assert 0 < array.shape[0] * array.shape[1] <= door.gate.limits.pixels
    else:
        assert array.dtype == np.float32 and array.ndim == 1
        assert 0 < len(array) <= door.gate.limits.seconds * 16_000 + 1
        assert np.isfinite(array).all() and np.abs(array).max() <= 1.0


def test_native_decoder_bugs(open_door: Callable[..., Door]) -> None:
    """What is on no list reaches no decoder; a decoder that dies is a 400, and the gate lives."""
    door = open_door(GateLimits(workers=1, decode_seconds=PATIENCE))
    for name, data in samples.strangers().items():
        for medium in ("picture", "sound"):
            refusal = door.no(data, medium)
            assert refusal.code == "unsupported_format"
            assert name in str(refusal)
    (worker,) = door.workers()
    lost = door.begin(door.gate.picture_bytes(samples.jpeg_of_scans(2000, SLOW)))
    until(lambda: forks(worker))
    os.kill(forks(worker)[0], signal.SIGSEGV)
    with pytest.raises(MediaRefused) as caught:
        lost.result(PATIENCE)
    assert (caught.value.code, caught.value.status) == ("decoder_died", 400)
    assert door.picture(samples.picture("PNG")).shape == (40, 60, 3)
    slow = open_door(GateLimits(workers=1, decode_seconds=1.0))
    assert slow.no(samples.jpeg_of_scans(2000, SLOW)).code == "decoder_timeout"
    assert slow.picture(samples.picture("PNG")).shape == (40, 60, 3)


@pytest.mark.parametrize("seed", range(4))
def test_native_decoder_bugs_mutated_files(fuzzed: Door, seed: int) -> None:
    """Real files with bytes flipped, cut out, doubled or swapped, and plain noise behind each signature."""
    random = np.random.default_rng(seed)
    files = [("picture", samples.picture(kind)) for kind in samples.PICTURES]
    files += [("sound", samples.sound(kind)) for kind in samples.SOUNDS]
    for medium, data in files:
        for _ in range(5):
            within(fuzzed, mutated(data, random), medium)
        within(fuzzed, data[: int(random.integers(4, 32))] + random.bytes(int(random.integers(1, 3000))), medium)
        within(fuzzed, data + random.bytes(500), medium)
    for _ in range(10):
        noise = random.bytes(int(random.integers(1, 400)))
        within(fuzzed, noise)
        within(fuzzed, noise, "sound")
    assert fuzzed.gate.metrics()["replaced"] == 0


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[Door]:
    with opened(GateLimits(pixels=1_000_000, seconds=5.0)) as door:
        yield door


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    broken = bytearray(data)
    head = random.random() < 0.5  # where the lengths are
    for _ in range(int(random.integers(1, 8))):
        end = min(80, len(broken)) if head else len(broken)
        at, span = int(random.integers(4, end)), int(random.integers(1, 9))
        way = random.integers(5)
        if way == 0:
            broken[at] = int(random.integers(256))
        elif way == 1:
            broken[at : at + 4] = random.choice([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"])
        elif way == 2:
            del broken[at : at + span]
        elif way == 3:
            broken[at:at] = broken[at : at + span]
        else:
            broken[at] ^= 1 << int(random.integers(8))
    if random.random() < 0.25:
        del broken[int(random.integers(len(broken) // 2, len(broken))) :]
    return samples.sealed(bytes(broken)) if random.random() < 0.75 else bytes(broken)


def test_addresses_and_paths_in_error_text(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """`door.no` holds every refusal of these tests to `plain`; here are those most likely to leak."""
    broken = [samples.picture(kind)[:60] for kind in samples.PICTURES]
    for data in (*broken, bytes(64), b"BM" + bytes(60), b"\xff\xd8\xff" + bytes(60)):
        assert str(door.no(data)).startswith("image data: ")
    for kind in samples.SOUNDS:
        assert str(door.no(samples.sound(kind)[:40], "sound")).startswith("audio data: ")
    for url in ("/etc/passwd", "file:///etc/passwd", "x" * 5_000_000, "data:" + "y" * 5_000_000, "\0", "\x1b[2J:"):
        assert len(str(door.no(url))) < 150
    for text in ("é" * 10, "<script>", "\r\n" * 3, "A" * 5, "%2Fetc%2Fpasswd"):
        with pytest.raises(MediaRefused) as caught:
            door(door.gate.sound(text, "wav"))
        plain(str(caught.value))


def test_tensors_and_pickles_from_clients(door: Door) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02cposix\nsystem\n.")
    numpy = io.BytesIO()
    np.save(numpy, np.zeros((8, 8, 3), np.uint8))
    safetensors = (2).to_bytes(8, "little") + b"{}"
    protocols = [b"\x80" + bytes([version]) + b"}." for version in range(2, 6)]
    for data in (archive.getvalue(), numpy.getvalue(), safetensors, b"cposix\nsystem\n.", *protocols):
        for medium in ("picture", "sound"):
            assert door.no(data, medium).code == "unsupported_format"
        assert door.no(data_url(data, "application/x-pytorch")).code == "unsupported_format"


def test_cache_confusion_between_tenants(door: Door) -> None:
    """What a cache is keyed by differs: the same bytes of pixels in two shapes, two pictures of one length."""
    pixels = np.random.default_rng(0).integers(0, 256, 30 * 100 * 3, np.uint8)
    wide, high = pixels.reshape(30, 100, 3), pixels.reshape(100, 30, 3)
    first, second = (door.picture(samples.picture("PNG", rgb)) for rgb in (wide, high))
    assert first.tobytes() == second.tobytes()
    assert (first.shape, second.shape) == ((30, 100, 3), (100, 30, 3))
    one, other = (samples.picture("BMP", np.full((9, 9, 3), shade, np.uint8)) for shade in (1, 2))
    assert len(one) == len(other)
    assert not np.array_equal(door.picture(one), door.picture(other))
    assert np.array_equal(door.picture(one), door.picture(data_url(one)))


def test_polyglots_are_what_their_first_bytes_say(door: Door) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("x.html", "<script>")
    for kind in samples.PICTURES:
        data = samples.picture(kind)
        for tail in (archive.getvalue(), b"<svg onload='x'/>", b"%PDF-1.4", samples.sound("WAV"), bytes(1000)):
            assert np.array_equal(door.picture(data + tail), door.picture(data))
    for kind in samples.SOUNDS:
        data = samples.sound(kind)
        heard = door.sound(data + archive.getvalue())
        assert np.array_equal(heard[: len(door.sound(data))], door.sound(data))
    assert "PDF" in str(door.no(b"%PDF-1.4\n" + samples.picture("JPEG")))
    assert "ZIP" in str(door.no(archive.getvalue() + samples.picture("PNG")))
    assert door.no(b"GIF89a/*" + b"*/=1;alert(1)").code == "broken_media"
    assert door.no(b" " + samples.picture("PNG")).code == "unsupported_format"


def test_huge_numbers_of_media(door: Door) -> None:
    for count in (17, 10**9):
        with pytest.raises(MediaRefused, match=f"{count} pictures and sounds are more than the 16") as caught:
            door.gate.check_count(count)
        plain(str(caught.value))


def test_every_row_is_tested_here_or_listed_for_the_server() -> None:
    rows = [
        "SSRF through a media URL", "a code path that goes round the gate", "size checked after reading", "audio bomb",
        "image bomb, odd shapes", "native decoder bugs", "addresses and paths in error text",
        "tensors and pickles from clients or checkpoints", "control tokens typed as text", "grammar, regex, schema DoS",
        "cache confusion between tenants", "auth bypass, timing", "huge n, headers, max_tokens",
    ]  # fmt: skip
    tests = [name for name in globals() if name.startswith("test_")]
    here = [
        row for row in rows
        if any(name.startswith("test_" + "_".join(re.findall(r"\w+", row.lower())[:3])) for name in tests)
    ]  # fmt: skip
    assert set(rows) - set(here) <= set(FOR_THE_SERVER)
    assert set(FOR_THE_SERVER) <= set(rows)
