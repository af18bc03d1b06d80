"""Bytes to arrays and back: the only place in the project that decodes untrusted bytes.

A picture becomes uint8 [H, W, 3] (sRGB, alpha composed on white), a sound becomes float32 [T] at
16 kHz mono in -1..1. Everything is checked before it is believed: the size in bytes before more
is read, the format by its first bytes before any decoder sees it, the pixels from the header before
any are allocated, the seconds while they are being decoded. Whatever a decoder raises on hostile
bytes comes out as one `MediaError` of one line that names the file and nothing of the process.

What is decided about odd files: a picture, FLAC or OGG that is cut short is refused; a WAV or MP3 is
taken as far as it goes, since recorders that stream cannot write a length. What follows the end of a
file (an archive behind a picture, the clip that a phone appends) is not looked at. Of metadata only
the orientation is used, and dropped with the rest.

Knows nothing of codes, models or messages.
Shapes: H W pixels, T samples.
"""

import io
import os
import tempfile
import warnings
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL.WebPImagePlugin  # noqa: F401 - else Pillow imports every plugin there is to find it
from PIL import Image

from m27.codec.formats import AUDIO_FORMATS as AUDIO_FORMATS
from m27.codec.formats import IMAGE_FORMATS as IMAGE_FORMATS
from m27.codec.formats import media_type as media_type
from m27.codec.formats import mp3_start, sniff, stranger, webp_size
from m27.codec.resample import resample as resample
from m27.codec.resample import resample_polyphase as resample_polyphase

SAMPLE_RATE = 16_000
MAX_CHANNELS = 16
SAMPLE_RATES = (1_000, 384_000)
# What libsndfile calls the formats of ours that it may open, and the codecs in them.
_CONTAINERS = {"WAV": ("WAV", "WAVEX"), "FLAC": ("FLAC",), "OGG": ("OGG",), "MP3": ("MP3",)}
_CODECS = (
    "PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW",
    "VORBIS", "MPEG_LAYER_III",
)  # fmt: skip
# What an EXIF orientation asks for, of ExifTags.Base.Orientation.
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip

Pixels = npt.NDArray[np.uint8]
Samples = npt.NDArray[np.float32]
Source = bytes | str | Path

# `read_image` has its own, lower pixel cap; Pillow's advice would only add a second line to it.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class MediaError(ValueError):
    """A file or byte string that cannot be used. The message is one line that names it.

    `code`: "unsupported_format", "broken_media", "media_too_large", "empty_media" or "unusable".
    """

    def __init__(self, message: str, code: str = "unusable") -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Limits:
    """What one medium may cost: `max_bytes` as stored, `max_pixels` (H x W), `max_seconds`, and
    `max_samples` of all channels as stored. `formats`: those that may be opened at all."""

    max_bytes: int = 20_000_000
    max_pixels: int = 40_000_000
    max_seconds: float = 30.0
    max_samples: int = 200_000_000
    formats: tuple[str, ...] = IMAGE_FORMATS + AUDIO_FORMATS


DEFAULT_LIMITS = Limits()
_FORMAT, _LARGE = "unsupported_format", "media_too_large"


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
    kind = _allowed(name, data, limits, AUDIO_FORMATS, "a WAV, FLAC, OGG Vorbis or MP3 sound")
    with _decoding(name, "sound"):
        plain = _read_pcm_wav(name, data, limits) if kind == "WAV" else None
        samples, rate = plain or _read_with_soundfile(name, data, kind, limits)
        if len(samples) == 0:
            raise MediaError(f"{name}: holds no sound", "empty_media")
        clean = np.clip(np.nan_to_num(samples, posinf=1.0, neginf=-1.0), -1.0, 1.0)
        return np.clip(resample(clean, rate, SAMPLE_RATE), -1.0, 1.0).astype(np.float32, copy=False)


def medium_of(source: Source, limits: Limits = DEFAULT_LIMITS) -> str:
    """The medium by the first bytes: "image" or "audio". Raises `MediaError` where neither."""
    name, data = _read(source, limits, "data")
    kind = sniff(data)
    if kind is None:
        raise MediaError(f"{name}: neither a picture nor a sound of a known format", _FORMAT)
    return "image" if kind in IMAGE_FORMATS else "audio"


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
        raise MediaError(f"{name}: the {noun} has too many pixels", _LARGE) from None
    except MemoryError:
        raise MediaError(f"{name}: the {noun} is too large to decode", _LARGE) from None
    except Exception as error:  # decoders raise anything: struct.error, SyntaxError, KeyError, …
        raise MediaError(f"{name}: the {noun} is broken or cut short", "broken_media") from error


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
        raise MediaError(f"{name}: is empty", "empty_media")
    if len(data) > limits.max_bytes:
        raise MediaError(f"{name}: is larger than {limits.max_bytes / 1e6:g} MB", _LARGE)
    return name, data


def _allowed(
    name: str, data: bytes, limits: Limits, formats: tuple[str, ...], wanted: str
) -> str:
    """The format of `data`, one of `formats` that the limits allow."""
    kind = sniff(data)
    if kind in formats and kind in limits.formats:
        return kind
    if kind in formats:
        raise MediaError(f"{name}: {kind} is not accepted here", _FORMAT)
    found = f"{kind} data" if kind else stranger(data)
    raise MediaError(f"{name}: {found + ', ' if found else ''}not {wanted}", _FORMAT)


def _check_pixels(name: str, size: tuple[int, int], limits: Limits) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise MediaError(f"{name}: the picture has no pixels", "broken_media")
    if width * height > limits.max_pixels:
        what = f"{width} x {height} pixels is more than the {limits.max_pixels / 1e6:g} million allowed"
        raise MediaError(f"{name}: {what}", _LARGE)


def _load(source: Source, limits: Limits) -> tuple[str, Image.Image]:
    """The name to use in messages, and the first frame, upright, its pixels loaded."""
    name, data = _read(source, limits, "image data")
    kind = _allowed(name, data, limits, IMAGE_FORMATS, "a PNG, JPEG, WebP, GIF or BMP picture")
    with _decoding(name, "picture"):
        if kind == "WEBP":  # it allocates its canvas while opening, before Pillow can be asked
            _check_pixels(name, webp_size(data), limits)
        with Image.open(io.BytesIO(data), formats=(kind,)) as image:
            _check_pixels(name, image.size, limits)
            image.load()
            return name, _upright(image)


def _upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF tag asks; a broken tag is no reason to refuse it."""
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # whatever a broken tag raises
        turn = None
    return image.copy() if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Pixels:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it to white
        shades = np.asarray(image)
        grey = (shades.clip(0, 0xFFFF) >> 8).astype(np.uint8)
        clear = image.info.get("transparency")
        if isinstance(clear, int):  # the one shade that a PNG may name
            grey[shades == clear] = 255
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    return np.asarray(image.convert("RGB")).copy()


def _check_sound(name: str, channels: int, rate: int, limits: Limits) -> int:
    """The most frames that a sound of this form may have; it is refused where none may be."""
    if not 1 <= channels <= MAX_CHANNELS:
        what = f"{channels} channels; at most {MAX_CHANNELS} are allowed"
        raise MediaError(f"{name}: {what}", "broken_media")
    if not SAMPLE_RATES[0] <= rate <= SAMPLE_RATES[1]:
        raise MediaError(f"{name}: a sample rate of {rate} Hz is not possible", "broken_media")
    return min(int(limits.max_seconds * rate), limits.max_samples // channels)


def _too_long(name: str, most: int, rate: int, limits: Limits) -> MediaError:
    if most < int(limits.max_seconds * rate):
        return MediaError(f"{name}: has more than {limits.max_samples} samples", _LARGE)
    return MediaError(f"{name}: is longer than {limits.max_seconds:g} seconds", _LARGE)


def _mono(frames: npt.NDArray[np.float32]) -> Samples:
    """The mean of the channels of [T, channels]; what overflows is clipped by the caller."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean: Samples = frames.mean(axis=1, dtype=np.float32)
    return mean


def _read_pcm_wav(name: str, data: bytes, limits: Limits) -> tuple[Samples, int] | None:
    """Mono samples [T] and rate of a plain PCM WAV; None where it is another kind of WAV."""
    try:
        with wave.open(io.BytesIO(data)) as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            most = _check_sound(name, channels, rate, limits)
            raw = file.readframes(most + 1)
    except wave.Error:
        return None
    if not 1 <= width <= 4:
        return None
    raw = raw[: len(raw) // (channels * width) * channels * width]
    if len(raw) // (channels * width) > most:
        raise _too_long(name, most, rate, limits)
    if width == 1:  # the one unsigned width
        values = np.frombuffer(raw, np.uint8).astype(np.float32) / 128.0 - 1.0
    elif width == 3:  # widened to 32 bits: the low byte stays zero
        wide = np.zeros((len(raw) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        values = wide.view("<i4")[:, 0].astype(np.float32) / 2.0**31
    else:
        values = np.frombuffer(raw, f"<i{width}").astype(np.float32) / 2.0 ** (8 * width - 1)
    return _mono(values.reshape(-1, channels)), rate


def _read_with_soundfile(
    name: str, data: bytes, kind: str, limits: Limits
) -> tuple[Samples, int]:
    """Mono samples [T] and rate, decoded block by block so that the budget holds on the way."""
    try:
        import soundfile
    except (ImportError, OSError):
        advice = "this format needs the package soundfile; plain PCM WAV does not"
        raise MediaError(f"{name}: {advice}", _FORMAT) from None
    if kind == "MP3":  # libsndfile would open whatever it finds behind a tag
        data = data[mp3_start(data) :]
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        if file.format not in _CONTAINERS[kind] or file.subtype not in _CODECS:
            raise MediaError(f"{name}: the sound is not what its first bytes say", _FORMAT)
        most = _check_sound(name, file.channels, file.samplerate, limits)
        blocks: list[Samples] = []
        count = 0
        while len(block := file.read(65_536, dtype="float32", always_2d=True)):
            count += len(block)
            if count > most:
                raise _too_long(name, most, file.samplerate, limits)
            blocks.append(_mono(block))
        mono = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
        return mono, int(file.samplerate)
