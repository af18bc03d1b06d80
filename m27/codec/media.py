"""Bytes to arrays and back: the only place in the project that decodes untrusted bytes.

A picture becomes uint8 [H, W, 3] (sRGB, alpha composed on white), a sound becomes float32 [T] at
16 kHz mono in -1..1. Everything is checked before it is believed: the size in bytes before more
is read, the format by its first bytes before any decoder sees it, the pixels from the header before
any are allocated, the seconds while they are being decoded. Whatever a decoder raises on hostile
bytes comes out as one `MediaError` of one line that names the file and nothing of the process.

Knows nothing of codes, models or messages.
Shapes: H W pixels, T samples.
"""

import io
import math
import os
import struct
import tempfile
import warnings
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

SAMPLE_RATE = 16_000
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
AUDIO_FORMATS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3")
MAX_CHANNELS = 16
SAMPLE_RATES = (1_000, 384_000)

Pixels = npt.NDArray[np.uint8]
Samples = npt.NDArray[np.float32]
Source = bytes | str | Path

# `read_image` has its own, lower pixel cap; Pillow's advice would only add a second line to it.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class MediaError(ValueError):
    """A file or byte string that cannot be used. The message is one line that names it."""


@dataclass(frozen=True)
class Limits:
    """What one medium may cost: `max_bytes` as stored, `max_pixels` (H x W), `max_seconds`."""

    max_bytes: int = 20_000_000
    max_pixels: int = 40_000_000
    max_seconds: float = 30.0


DEFAULT_LIMITS = Limits()


def read_image(source: Source, limits: Limits = DEFAULT_LIMITS) -> Pixels:
    """Decode a PNG, JPEG, WebP, GIF or BMP to uint8 [H, W, 3].

    The first frame of an animation, turned upright by its EXIF tag, alpha composed on white.
    `source` is the bytes themselves or a path. Raises `MediaError`.
    """
    name, image = _load(source, limits)
    with _decoding(name, "picture"):
        return _to_rgb(image)


def read_cutout(source: Source, limits: Limits = DEFAULT_LIMITS) -> Pixels:
    """Decode as `read_image` does, but keep the transparency: uint8 [H, W, 4], opaque where none.

    For pasting a picture on another. Raises `MediaError`.
    """
    name, image = _load(source, limits)
    with _decoding(name, "picture"):
        return np.asarray(image.convert("RGBA")).copy()


def fit_image(
    rgb: Pixels, height: int = 128, width: int = 128, *, letterbox: bool = False, crop: bool = False
) -> Pixels:
    """Resize uint8 [H, W, 3] to [height, width, 3] with antialiasing.

    Fills the frame (the aspect may change), or with `letterbox` keeps the aspect and pads white, or
    with `crop` takes its `middle`, as training does of photographs.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or 0 in rgb.shape:
        raise MediaError(f"a picture is uint8 [H, W, 3], not {rgb.dtype} {list(rgb.shape)}")
    if crop and not letterbox:
        rgb = middle(rgb, height, width)
    if rgb.shape[:2] == (height, width):
        return rgb
    image = Image.fromarray(np.ascontiguousarray(rgb))
    if not letterbox:
        return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)).copy()
    scale = min(height / image.height, width / image.width)
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    frame = Image.new("RGB", (width, height), "white")
    corner = ((width - inner[0]) // 2, (height - inner[1]) // 2)
    frame.paste(image.resize(inner, Image.Resampling.BICUBIC), corner)
    return np.asarray(frame).copy()


def middle(rgb: Pixels, height: int = 1, width: int = 1) -> Pixels:
    """The largest part of uint8 [H, W, 3] about its middle that is as high to wide as `height` to
    `width`, by default a square: fitting it changes no proportions. A view, not a copy."""
    scale = min(rgb.shape[0] / height, rgb.shape[1] / width)
    high, wide = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (rgb.shape[0] - high) // 2, (rgb.shape[1] - wide) // 2
    return rgb[top : top + high, left : left + wide]


def read_audio(source: Source, limits: Limits = DEFAULT_LIMITS) -> Samples:
    """Decode a WAV, FLAC, OGG or MP3 to float32 [T] in -1..1, mono, 16 kHz.

    Plain PCM WAV needs nothing but numpy; the rest needs the package soundfile (libsndfile). The
    budget in seconds holds while decoding: a forged header cannot raise it. Raises `MediaError`.
    """
    name, data = _read(source, limits, "audio data")
    kind = _format(data)
    if kind not in AUDIO_FORMATS:
        raise MediaError(f"{name}: not a WAV, FLAC, OGG or MP3 sound")
    with _decoding(name, "sound"):
        plain = _read_pcm_wav(name, data, limits) if kind == "WAV" else None
        samples, rate = plain or _read_with_soundfile(name, data, limits)
        if len(samples) == 0:
            raise MediaError(f"{name}: holds no sound")
        clean = np.clip(np.nan_to_num(samples, posinf=1.0, neginf=-1.0), -1.0, 1.0)
        return np.clip(resample(clean, rate, SAMPLE_RATE), -1.0, 1.0).astype(np.float32, copy=False)


def medium_of(source: Source, limits: Limits = DEFAULT_LIMITS) -> str:
    """The medium by the first bytes: "image" or "audio". Raises `MediaError` where neither."""
    name, data = _read(source, limits, "data")
    kind = _format(data)
    if kind is None:
        raise MediaError(f"{name}: neither a picture nor a sound of a known format")
    return "image" if kind in IMAGE_FORMATS else "audio"


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


def png_bytes(rgb: Pixels) -> bytes:
    """uint8 [H, W, 3] as a PNG file."""
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgb)).save(out, "PNG")
    return out.getvalue()


def wav_bytes(samples: Samples, rate: int = SAMPLE_RATE) -> bytes:
    """float32 [T] in -1..1 as a 16-bit mono WAV file; what lies outside is clipped."""
    pcm = np.round(np.clip(samples, -1.0, 1.0) * 32767.0).astype("<i2")
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(pcm.tobytes())
    return out.getvalue()


def write_png(path: str | Path, rgb: Pixels) -> None:
    """Write uint8 [H, W, 3] as PNG; whole or not at all."""
    write_atomic(path, png_bytes(rgb))


def write_wav(path: str | Path, samples: Samples, rate: int = SAMPLE_RATE) -> None:
    """Write float32 [T] in -1..1 as 16-bit mono WAV; whole or not at all."""
    write_atomic(path, wav_bytes(samples, rate))


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write `data` under a temporary name beside `path`, then rename: a reader never sees half."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.chmod(temporary, 0o644)  # mkstemp makes it private; these are ordinary outputs
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:  # it is to name what was asked for
        raise OSError(error.errno, error.strerror, str(path)) from None


@contextmanager
def _decoding(name: str, noun: str) -> Iterator[None]:
    """Turn whatever a decoder raises into one line that shows nothing of the process."""
    try:
        yield
    except MediaError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise MediaError(f"{name}: the {noun} has too many pixels") from None
    except MemoryError:
        raise MediaError(f"{name}: the {noun} is too large to decode") from None
    except Exception as error:  # decoders raise anything: struct.error, SyntaxError, KeyError, …
        raise MediaError(f"{name}: the {noun} is broken or cut short") from error


def _read(source: Source, limits: Limits, fallback: str) -> tuple[str, bytes]:
    """The name to use in messages and the bytes, never more than the budget of them."""
    if isinstance(source, bytes):
        name, data = fallback, source
    else:
        name = str(source)
        try:
            with open(source, "rb") as file:
                data = file.read(limits.max_bytes + 1)
        except FileNotFoundError:
            raise MediaError(f"{name}: no such file") from None
        except IsADirectoryError:
            raise MediaError(f"{name}: is a folder, not a file") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "not a usable path"
            raise MediaError(f"{name}: cannot be read ({reason})") from None
    if not data:
        raise MediaError(f"{name}: is empty")
    if len(data) > limits.max_bytes:
        raise MediaError(f"{name}: is larger than {limits.max_bytes / 1e6:g} MB")
    return name, data


def _format(data: bytes) -> str | None:
    """The format by its signature; None where it is none of ours."""
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
    if head.startswith(b"BM"):
        return "BMP"
    if riff == b"WAVE":
        return "WAV"
    if head.startswith(b"fLaC"):
        return "FLAC"
    if head.startswith(b"OggS"):
        return "OGG"
    if head.startswith(b"ID3") or (len(head) > 2 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2):
        return "MP3"
    return None


def _webp_size(data: bytes) -> tuple[int, int]:
    """(width, height) from a WebP header, (1, 1) for other formats (Google, WebP container)."""
    if _format(data) != "WEBP":
        return 1, 1
    kind = data[12:16]
    if kind == b"VP8X":
        width = int.from_bytes(data[24:27], "little") + 1
        return width, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack("<HH", data[26:30])
    return width & 0x3FFF, height & 0x3FFF


def _check_pixels(name: str, size: tuple[int, int], limits: Limits) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise MediaError(f"{name}: the picture has no pixels")
    if width * height > limits.max_pixels:
        cap = f"{limits.max_pixels / 1e6:g} million"
        raise MediaError(f"{name}: {width} x {height} pixels is more than the {cap} allowed")


def _load(source: Source, limits: Limits) -> tuple[str, Image.Image]:
    """The name to use in messages, and the first frame, upright, its pixels loaded."""
    name, data = _read(source, limits, "image data")
    if _format(data) not in IMAGE_FORMATS:
        raise MediaError(f"{name}: not a PNG, JPEG, WebP, GIF or BMP picture")
    with _decoding(name, "picture"):
        # WebP allocates its canvas while opening, so its size is read before Pillow is asked.
        _check_pixels(name, _webp_size(data), limits)
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            _check_pixels(name, image.size, limits)
            image.load()
            return name, ImageOps.exif_transpose(image)


def _to_rgb(image: Image.Image) -> Pixels:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it to white
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    return np.asarray(image.convert("RGB")).copy()


def _check_sound(name: str, channels: int, rate: int) -> None:
    if not 1 <= channels <= MAX_CHANNELS:
        raise MediaError(f"{name}: {channels} channels; at most {MAX_CHANNELS} are allowed")
    if not SAMPLE_RATES[0] <= rate <= SAMPLE_RATES[1]:
        raise MediaError(f"{name}: a sample rate of {rate} Hz is not possible")


def _too_long(name: str, limits: Limits) -> MediaError:
    return MediaError(f"{name}: is longer than {limits.max_seconds:g} seconds")


def _read_pcm_wav(name: str, data: bytes, limits: Limits) -> tuple[Samples, int] | None:
    """Mono samples [T] and rate of a plain PCM WAV; None where it is another kind of WAV."""
    try:
        with wave.open(io.BytesIO(data)) as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            _check_sound(name, channels, rate)
            most = int(limits.max_seconds * rate)
            raw = file.readframes(most + 1)
    except wave.Error:
        return None
    if not 1 <= width <= 4:
        return None
    raw = raw[: len(raw) // (channels * width) * channels * width]
    if len(raw) // (channels * width) > most:
        raise _too_long(name, limits)
    if width == 1:  # the one unsigned width
        values = np.frombuffer(raw, np.uint8).astype(np.float32) / 128.0 - 1.0
    elif width == 3:  # widened to 32 bits: the low byte stays zero
        wide = np.zeros((len(raw) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        values = wide.view("<i4")[:, 0].astype(np.float32) / 2.0**31
    else:
        values = np.frombuffer(raw, f"<i{width}").astype(np.float32) / 2.0 ** (8 * width - 1)
    return values.reshape(-1, channels).mean(axis=1, dtype=np.float32), rate


def _read_with_soundfile(name: str, data: bytes, limits: Limits) -> tuple[Samples, int]:
    """Mono samples [T] and rate, decoded block by block so that the budget holds on the way."""
    try:
        import soundfile
    except (ImportError, OSError):
        advice = "this format needs the package soundfile; plain PCM WAV does not"
        raise MediaError(f"{name}: {advice}") from None
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        if file.format not in AUDIO_FORMATS:
            raise MediaError(f"{name}: not a WAV, FLAC, OGG or MP3 sound")
        _check_sound(name, file.channels, file.samplerate)
        most = int(limits.max_seconds * file.samplerate)
        blocks: list[Samples] = []
        count = 0
        while len(block := file.read(65_536, dtype="float32", always_2d=True)):
            count += len(block)
            if count > most:
                raise _too_long(name, limits)
            blocks.append(block.mean(axis=1, dtype=np.float32))
        mono = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
        return mono, int(file.samplerate)
