"""Who looks at pictures, and who listens to sounds, for FID and FAD: files → features.

The published figures are of InceptionV3 and VGGish, whose weights are not ours to ship: a TorchScript file of either is
taken by its path, and features that were made elsewhere are read as they are (`m27.eval.features`). Without them ours
look: the vision teacher of the image codec, and Whisper-base's encoder. Which one it was stands in the row, as no
figure of one can be held against a figure of another.

Shapes: N rows of a file, F features, T samples at 16 kHz.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from m27.data.media_parts import fitted, pixels, waveform
from m27.eval import whisper
from m27.eval.report import files_hash
from m27.eval.teacher import BATCH, Teacher
from m27.language.processor import Processor

Features = npt.NDArray[np.float32]
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
SOUNDS = (".wav", ".flac", ".ogg", ".mp3")
SIZE = 224  # of the vision teacher's pictures, as it was trained


class EncoderError(ValueError):
    """An encoder that cannot be opened or does not give features; the message is one line that says why."""


class Encoder(Protocol):
    """One way to turn files into features. `name` tells who it is with its weights' hash, `seen` how a file was made
    ready for it (size and kernel of resizing; rate and pieces), `endings` which files it takes, `device` where it
    runs."""

    name: str
    seen: str
    endings: tuple[str, ...]
    device: str

    def features(self, files: Sequence[Path]) -> Iterator[Features]:
        """[N, F] of each file, in order. Raises EncoderError, and MediaError or OSError for a broken file."""


class VisionTeacher:
    """The frozen EfficientNet-Lite0 trunk of a checkpoint's image codec: 1,280 pooled features, a row a picture."""

    endings: tuple[str, ...] = PICTURES

    def __init__(self, folder: Path, size: int = SIZE) -> None:
        codec: Any = Processor.load(folder).codecs.image
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if hasattr(codec, "trunk"):
            codec.trunk.to(self.device)
        self._teacher, self._size = Teacher(codec), size
        revision = files_hash([folder / "image_codec.safetensors"])
        self.name = f"EfficientNet-Lite0 (m27's vision teacher, {revision}), 1,280 pooled features"
        self.seen = f"{size} x {size}, Pillow bicubic with antialiasing, aspect not kept"

    def features(self, files: Sequence[Path]) -> Iterator[Features]:
        """A row a picture."""
        for start in range(0, len(files), BATCH):
            pictures = [fitted(file, self._size, self._size) for file in files[start : start + BATCH]]
            yield from self._teacher.features(pictures).numpy()[:, None]


class WhisperEncoder:
    """Whisper-base's encoder (the `eval` extra), in int8: the mean of its 512 states over each second, a row each."""

    endings: tuple[str, ...] = SOUNDS
    device = "cpu"
    name = "Whisper-base's encoder (int8, CTranslate2), mean of 512 states a second"
    seen = "16 kHz mono, pieces of 30 s, a row a second (and for a rest of half a second or more)"

    def features(self, files: Sequence[Path]) -> Iterator[Features]:
        """A row a second."""
        for file in files:
            wave = waveform(file)
            piece = 30 * whisper.RATE
            states = np.concatenate(
                [whisper.encoded(wave[at : at + piece])[1] for at in range(0, max(1, len(wave)), piece)]
            )
            yield seconds(states)


def seconds(states_TF: Features, rate: int = 50) -> Features:
    """The mean of every `rate` states; of the rest where it is half as many at least, or where there is no more."""
    whole = len(states_TF) // rate
    rows = [states_TF[k * rate : (k + 1) * rate].mean(0) for k in range(whole)]
    rest = states_TF[whole * rate :]
    if len(rest) * 2 >= rate or not rows:
        rows.append(rest.mean(0))
    return np.stack(rows).astype(np.float32)


class TorchScript:
    """A TorchScript file that the user trusts: pictures as uint8 [B, 3, H, W] or a sound as float32 [1, T] → [N, F].

    `return_features=True` is said to it where it knows that word, as the published InceptionV3 of StyleGAN does, which
    takes pictures of any size and resizes them itself. `size`: resize them before, with antialiasing.
    """

    def __init__(self, path: Path, sounds: bool, size: int | None = None) -> None:
        self._sounds, self._size = sounds, size
        self.endings: tuple[str, ...] = SOUNDS if sounds else PICTURES
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit; the weights there are come so
                loaded: Any = torch.jit.load(str(path), map_location=self.device)
            self._module = loaded.eval()
        except (RuntimeError, ValueError, OSError) as error:
            said = str(error).strip().splitlines()[0][:160]
            raise EncoderError(f"{path}: is no TorchScript file ({said})") from error
        told = str(self._module.forward.schema)
        self._words = {"return_features": True} if "return_features" in told else {}
        self.name = f"{path.name} (TorchScript, {files_hash([path])})"
        if sounds:
            self.seen = "16 kHz mono, whole"
        elif size:
            self.seen = f"{size} x {size}, Pillow bicubic with antialiasing, aspect not kept"
        else:
            self.seen = "as they are; whatever resizing is inside the file"

    def features(self, files: Sequence[Path]) -> Iterator[Features]:
        """Pictures of one size go together."""
        waiting: list[npt.NDArray[np.uint8]] = []
        for file in files:
            if self._sounds:
                yield self._asked(torch.from_numpy(waveform(file))[None], file)
                continue
            picture = self._picture(file)
            if waiting and (len(waiting) == BATCH or picture.shape != waiting[0].shape):
                yield from self._pictures(waiting, file)
                waiting = []
            waiting.append(picture)
        if waiting:
            yield from self._pictures(waiting, files[-1])

    def _picture(self, file: Path) -> npt.NDArray[np.uint8]:
        if self._size:
            return fitted(file, self._size, self._size)
        return pixels({"type": "image", "path": file})

    def _pictures(self, pictures: Sequence[npt.NDArray[np.uint8]], file: Path) -> Iterator[Features]:
        rows = self._asked(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous(), file)
        if len(rows) != len(pictures):
            raise EncoderError(f"{self.name}: gave {len(rows)} rows of {len(pictures)} pictures")
        yield from rows[:, None]

    @torch.inference_mode()
    def _asked(self, batch: torch.Tensor, file: Path) -> Features:
        try:
            rows = self._module(batch.to(self.device), **self._words)
        except (RuntimeError, ValueError) as error:
            raise EncoderError(f"{self.name}: {file}: {str(error).strip().splitlines()[-1][:200]}") from error
        if not isinstance(rows, torch.Tensor):
            raise EncoderError(f"{self.name}: gave {type(rows).__name__}, not features [N, F]")
        return np.asarray(rows.reshape(len(rows), -1).float().cpu().numpy(), np.float32)


def open_encoder(metric: str, told: str | None, model: Path, size: int | None = None) -> Encoder:
    """The encoder of `fid` or `fad`: ours where `told` is None, else a TorchScript file. Raises EncoderError."""
    sounds = metric == "fad"
    if sounds and size:
        raise EncoderError("a size is of pictures, and fad is of sounds")
    if told is not None:
        path = Path(told)
        if not path.is_file():
            raise EncoderError(f"{told}: no such file; an encoder is a TorchScript file")
        return TorchScript(path, sounds, size)
    return WhisperEncoder() if sounds else VisionTeacher(model, size or SIZE)
