"""media.py: what is read is what was written, and nothing hostile gets past it."""

import io
import struct
import sys
import wave
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from m27.codec import formats, media
from m27.codec.media import Limits, MediaError, read_audio, read_image


def picture_bytes(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def gradient(height: int = 40, width: int = 60) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 4, columns * 4, rows * 0 + 90], axis=2).astype(np.uint8)


def tone(seconds: float, rate: int, pitch: float = 440.0) -> np.ndarray:
    t = np.arange(int(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * pitch * t)).astype(np.float32)


def wav(raw: bytes, channels: int = 1, width: int = 2, rate: int = 16_000) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(raw)
    return out.getvalue()


def complaint(read: Callable[[bytes], object], data: bytes) -> str:
    """What `read` says of broken data; nothing where it could be read all the same."""
    try:
        read(data)
    except MediaError as error:
        return str(error)
    return ""


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 100)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "JPEG", "GIF"])
def test_every_allowed_picture_format_is_read(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    rgb = read_image(picture_bytes(Image.fromarray(gradient()), kind, **options))
    assert rgb.shape == (40, 60, 3)
    assert rgb.dtype == np.uint8
    error = np.abs(rgb.astype(int) - gradient()).mean()
    assert error < 4.0 if kind in ("JPEG", "GIF") else error == 0


def test_png_round_trip_on_disk(tmp_path: Path) -> None:
    media.write_png(tmp_path / "new" / "a.png", gradient())
    assert np.array_equal(read_image(tmp_path / "new" / "a.png"), gradient())
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.png"]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_alpha_is_composed_on_white(mode: str) -> None:
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.putpixel((0, 0), (0, 0, 0, 255))
    rgb = read_image(picture_bytes(image.convert(mode), "PNG"))
    assert rgb[0, 0].tolist() == [0, 0, 0]
    assert rgb[2, 2].tolist() == [255, 255, 255]


def test_sixteen_bit_grey_keeps_its_shades() -> None:
    grey = np.array([[0, 0x8000, 0xFFFF]], np.uint16)
    rgb = read_image(picture_bytes(Image.fromarray(grey), "PNG"))
    assert rgb[0, :, 0].tolist() == [0, 128, 255]


def test_exif_rotation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = picture_bytes(Image.fromarray(gradient()), "JPEG", exif=exif)
    assert read_image(data).shape == (60, 40, 3)


@pytest.mark.parametrize("turn", range(10))
def test_every_orientation_is_as_pillow_turns_it(turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    data = picture_bytes(Image.fromarray(gradient()), "PNG", exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(read_image(data), np.asarray(ImageOps.exif_transpose(image)))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow says so, and reads on
@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
def test_a_broken_tag_is_no_reason_to_refuse_a_picture(exif: bytes) -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        assert read_image(picture_bytes(Image.fromarray(gradient()), kind, exif=exif)).shape == (40, 60, 3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    kind = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    image = Image.new("RGB", (16, 16), "white").convert("I" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.full((16, 16), 0xFFFF, np.uint16))
    rgb = read_image(picture_bytes(image, kind))
    assert rgb.shape == (16, 16, 3)
    assert rgb.dtype == np.uint8
    assert rgb.min() > 250


def test_a_shade_of_sixteen_bits_can_be_transparent() -> None:
    grey = np.array([[0, 0x8000, 0xFFFF]], np.uint16)
    data = picture_bytes(Image.fromarray(grey), "PNG", transparency=0)
    assert read_image(data)[0, :, 0].tolist() == [255, 128, 255]


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    data = picture_bytes(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert read_image(data)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (20000, 1)])
def test_odd_shapes_are_read_and_fitted(size: tuple[int, int]) -> None:
    rgb = read_image(picture_bytes(Image.new("RGB", size, "red"), "PNG"))
    assert media.fit_image(rgb).shape == (128, 128, 3)
    assert media.fit_image(rgb, letterbox=True).shape == (128, 128, 3)


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    for path in (tmp_path / "taken", Path("/proc/x.png")):
        with pytest.raises(OSError, match=path.name) as caught:
            media.write_atomic(path, b"x")
        assert caught.value.filename == str(path)
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_a_picture_is_shown_by_its_middle_or_whole() -> None:
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 40:80] = 200
    assert (media.fit_image(wide, 32, 32, crop=True) == 200).all()
    assert media.middle(wide, 1, 2).shape == (40, 80, 3)
    boxed = media.fit_image(wide, 120, 120, letterbox=True, crop=True)
    assert (boxed[:40] == 255).all()
    assert (boxed[41:79, 45:75] == 200).all()
    assert (boxed[41:79, :35] == 0).all()


def test_fit_image_fills_or_letterboxes() -> None:
    red = np.zeros((10, 40, 3), np.uint8) + np.array([255, 0, 0], np.uint8)
    assert (media.fit_image(red, 32, 64) == [255, 0, 0]).all()
    boxed = media.fit_image(red, 64, 64, letterbox=True)
    assert boxed[0, 0].tolist() == [255, 255, 255]
    assert boxed[32, 32].tolist() == [255, 0, 0]
    assert (boxed == [255, 0, 0]).all(axis=2).sum() == 16 * 64
    with pytest.raises(MediaError):
        media.fit_image(np.zeros((0, 4, 3), np.uint8))


@pytest.mark.parametrize("size", [(30_000, 30_000), (10_000, 4_001)])
def test_image_bomb_is_refused_by_its_header(size: tuple[int, int]) -> None:
    with pytest.raises(MediaError, match="pixels"):
        read_image(png_header(*size))


def test_webp_bomb_is_refused_before_its_canvas_exists() -> None:
    for kind in ({"lossless": True}, {"quality": 50}, {"exif": b"Exif\0\0II*\0\b\0\0\0\0\0"}):
        data = bytearray(picture_bytes(Image.new("RGB", (16, 16)), "WEBP", **kind))
        assert formats.webp_size(bytes(data)) == (16, 16)
    data[24:30] = b"\xff\x3f\x00" * 2
    with pytest.raises(MediaError, match="16384 x 16384"):
        read_image(bytes(data))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "JPEG", "GIF"])
def test_cut_or_flipped_pictures_give_one_plain_line(kind: str) -> None:
    data = picture_bytes(Image.fromarray(gradient()), kind)
    random = np.random.default_rng(0)
    for _ in range(40):
        broken = bytearray(data)
        for place in random.integers(12, len(data), 6):
            broken[place] = random.integers(256)
        text = complaint(read_image, bytes(broken[: random.integers(12, len(data) + 1)]))
        assert text == "" or text.startswith("image data: ")
        assert "\n" not in text
        assert "0x" not in text


def test_formats_outside_the_list_are_refused() -> None:
    tiff = picture_bytes(Image.fromarray(gradient()), "TIFF")
    for data in (tiff, b"%PDF-1.4 ...", b"<svg xmlns='...'/>", b"P6 1 1 255 abc", b"\0" * 64):
        with pytest.raises(MediaError, match="not a PNG"):
            read_image(data)
        with pytest.raises(MediaError, match="not a WAV"):
            read_audio(data)
        with pytest.raises(MediaError, match="neither"):
            media.medium_of(data)


@pytest.mark.parametrize("read", [read_image, read_audio])
def test_unusable_files_are_named(read: Callable[..., object], tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "big").write_bytes(b"x" * 2000)
    cases = {"missing": "no such file", "empty": "is empty", "big": "larger", ".": "folder"}
    for name, reason in cases.items():
        path = tmp_path / name
        with pytest.raises(MediaError) as caught:
            read(path, Limits(max_bytes=1000))
        assert str(path) in str(caught.value)
        assert reason in str(caught.value)
        assert "\n" not in str(caught.value)


def test_endless_file_is_not_read_to_its_end() -> None:
    with pytest.raises(MediaError, match="larger than 20 MB"):
        read_image("/dev/zero")


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_plain_wav_of_every_width_is_read_exactly(width: int, channels: int) -> None:
    expected = np.array([0.0, 0.5, -0.5, 0.25], np.float32)
    scale = 2 ** (8 * width - 1)
    numbers = [int(v * scale) + (128 if width == 1 else 0) for v in expected]
    raw = b"".join(n.to_bytes(width, "little", signed=width > 1) * channels for n in numbers)
    assert np.array_equal(read_audio(wav(raw, channels, width)), expected)


def test_wav_needs_neither_soundfile_nor_soxr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    monkeypatch.setitem(sys.modules, "soxr", None)
    samples = read_audio(media.wav_bytes(tone(1.0, 44_100), 44_100))
    assert len(samples) == 16_000
    assert np.abs(samples - tone(1.0, 16_000))[200:-200].max() < 2e-3
    with pytest.raises(MediaError, match="soundfile"):
        read_audio(b"fLaC" + b"\0" * 60)


@pytest.mark.parametrize("kind", ["FLAC", "OGG", "MP3", "WAV"])
def test_compressed_sounds_are_read(kind: str) -> None:
    soundfile = pytest.importorskip("soundfile")
    out = io.BytesIO()
    subtype = "FLOAT" if kind == "WAV" else None
    stereo = np.stack([tone(1.0, 32_000)] * 2, axis=1)
    soundfile.write(out, stereo, 32_000, format=kind, subtype=subtype)
    samples = read_audio(out.getvalue())
    assert abs(len(samples) - 16_000) < 1200
    assert samples.dtype == np.float32
    assert 0.3 < np.abs(samples).max() < 0.7


def test_long_sounds_are_refused_while_decoding() -> None:
    soundfile = pytest.importorskip("soundfile")
    out = io.BytesIO()
    soundfile.write(out, np.zeros(8000 * 600, np.float32), 8000, format="FLAC")
    assert len(out.getvalue()) < 100_000  # ten minutes in a few kilobytes: a bomb
    with pytest.raises(MediaError, match="longer than 30 seconds"):
        read_audio(out.getvalue())
    with pytest.raises(MediaError, match="longer than 1 seconds"):
        read_audio(media.wav_bytes(tone(1.1, 16_000)), Limits(max_seconds=1))


@pytest.mark.parametrize("rate", [1, 2_000_000_000])
def test_forged_sample_rate_is_refused(rate: int) -> None:
    data = bytearray(media.wav_bytes(tone(0.1, 16_000)))
    data[24:28] = struct.pack("<I", rate)
    with pytest.raises(MediaError, match="sample rate"):
        read_audio(bytes(data))


def test_wav_with_nothing_or_with_forged_lengths() -> None:
    with pytest.raises(MediaError, match="no sound"):
        read_audio(wav(b""))
    data = bytearray(media.wav_bytes(tone(0.1, 16_000)))
    data[40:44] = b"\xff\xff\xff\xff"  # what a recorder that streams writes
    assert len(read_audio(bytes(data))) == 1600
    with pytest.raises(MediaError):
        read_audio(bytes(data[:30]))


def test_not_a_number_and_overload_are_tamed() -> None:
    soundfile = pytest.importorskip("soundfile")
    out = io.BytesIO()
    hostile = np.array([np.nan, np.inf, -np.inf, 1e30, 0.5], np.float32)
    soundfile.write(out, hostile, 16_000, format="WAV", subtype="FLOAT")
    assert read_audio(out.getvalue()).tolist() == [0.0, 1.0, -1.0, 1.0, 0.5]
    out = io.BytesIO()
    pairs = np.array([[np.inf, -np.inf], [3e38, 3e38], [np.nan, 1.0], [0.5, 0.25]], np.float32)
    soundfile.write(out, pairs, 16_000, format="WAV", subtype="FLOAT")
    assert read_audio(out.getvalue()).tolist() == [0.0, 1.0, 0.0, 0.375]


def test_samples_are_counted_over_all_channels() -> None:
    data = wav(bytes(2 * 16 * 1000), channels=16)
    assert len(read_audio(data, Limits(max_samples=16_000))) == 1000
    with pytest.raises(MediaError, match="more than 15999 samples"):
        read_audio(data, Limits(max_samples=15_999))


@pytest.mark.parametrize("kind", ["FLAC", "OGG", "MP3", "WAV"])
def test_broken_sounds_give_one_plain_line(kind: str) -> None:
    soundfile = pytest.importorskip("soundfile")
    out = io.BytesIO()
    soundfile.write(out, tone(0.3, 16_000), 16_000, format=kind)
    random = np.random.default_rng(1)
    for _ in range(20):
        broken = bytearray(out.getvalue())
        for place in random.integers(4, len(broken), 8):
            broken[place] = random.integers(256)
        text = complaint(read_audio, bytes(broken[: random.integers(16, len(broken) + 1)]))
        assert "\n" not in text
        assert "0x" not in text


@pytest.mark.parametrize("rate", [8_000, 22_050, 24_000, 44_100, 48_000, 44_101])
def test_polyphase_resampler_keeps_a_tone_and_drops_aliases(rate: int) -> None:
    kept = media.resample_polyphase(tone(0.5, rate, 1000.0), rate, 16_000)
    wanted = tone(0.5, 16_000, 1000.0)
    middle = slice(400, -400)
    assert np.abs(kept[: len(wanted)] - wanted)[middle].max() < 3e-3
    if rate > 20_000:  # 10 kHz lies above the new Nyquist and must vanish, not fold to 6 kHz
        assert (
            np.abs(media.resample_polyphase(tone(0.5, rate, 10_000.0), rate, 16_000))[middle].max()
            < 3e-3
        )


def test_polyphase_agrees_with_soxr() -> None:
    soxr = pytest.importorskip("soxr")
    noise = np.random.default_rng(2).standard_normal(48_000).astype(np.float32)
    low = media.resample_polyphase(noise, 48_000, 4_000)  # a signal far below every cutoff
    smooth = media.resample_polyphase(low, 4_000, 44_100)
    ours = media.resample_polyphase(smooth, 44_100, 16_000)
    theirs = soxr.resample(smooth, 44_100, 16_000)
    n = min(len(ours), len(theirs))
    assert np.abs(ours[:n] - theirs[:n])[800:-800].max() < 5e-3


def test_wav_round_trip_and_medium(tmp_path: Path) -> None:
    media.write_wav(tmp_path / "a.wav", tone(0.2, 16_000))
    assert np.abs(read_audio(str(tmp_path / "a.wav")) - tone(0.2, 16_000)).max() < 1e-4
    assert media.medium_of(tmp_path / "a.wav") == "audio"
    assert media.medium_of(media.png_bytes(gradient())) == "image"
