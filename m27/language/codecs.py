"""What the language room asks of codecs, and arrays ↔ codes through them.

The two protocols name the few methods that are used, so that tests can put tiny codecs in. `Codecs`
loads the shipped ones from a checkpoint folder when they are first needed. Knows nothing of ids.

Shapes: B batch, T samples at 16 kHz, N audio codes, H W pixels, h w grid of image codes.
"""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Pixels = npt.NDArray[np.uint8]
Samples = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int64]


class AudioStream(Protocol):
    """Decodes the codes of one sound as they arrive."""

    def push(self, codes_N: Tensor, /) -> Samples:
        """The samples that the new codes complete, float32 in -1..1 (possibly none)."""

    def flush(self) -> Samples:
        """The samples that were still held back, after the last code."""


class ImageCodec(Protocol):
    """What is used of an image codec; `m27.codec.image.ImageCodec` is one."""

    levels: tuple[int, ...]

    @property
    def codes_revision(self) -> str:
        """Changes when the codes of some medium may; not when decoding alone does."""

    def encode(self, pixels_B3HW: Tensor, /) -> Tensor:
        """Pixels 0..1 → codes [B, h, w]."""

    def decode(self, codes_Bhw: Tensor, /) -> Tensor:
        """Codes → pixels [B, 3, H, W] in 0..1."""


class AudioCodec(Protocol):
    """What is used of an audio codec; `m27.codec.audio.AudioCodec` is one."""

    levels: tuple[int, ...]

    @property
    def codes_revision(self) -> str:
        """Changes when the codes of some medium may; not when decoding alone does."""

    def encode(self, wave_BT: Tensor, /) -> Tensor:
        """Samples -1..1 at 16 kHz → codes [B, N]."""

    def decode(self, codes_BN: Tensor, /) -> Tensor:
        """Codes → samples [B, T]."""

    def stream(self) -> AudioStream:
        """A decoder for one sound whose codes arrive one by one."""


C = TypeVar("C", ImageCodec, AudioCodec)


class CodecsError(ValueError):
    """A codec is needed that is not there, or does not fit the vocabulary."""


class Codecs:
    """The image and the audio codec, each given, loaded from `folder` at first use, or absent."""

    def __init__(
        self,
        sizes: tuple[int, int],
        image: ImageCodec | None = None,
        audio: AudioCodec | None = None,
        folder: Path | None = None,
    ) -> None:
        """`sizes` are the numbers of image and of audio codes that the vocabulary has."""
        self._sizes = sizes
        self._folder = folder
        self._loading = threading.Lock()  # one thread loads, others that want the same wait for it
        self._image = _checked(image, sizes[0], "image")
        self._audio = _checked(audio, sizes[1], "audio")

    @property
    def image(self) -> ImageCodec | None:
        """The image codec, or None where there is none."""
        if self._image is None and self._has("image_codec.safetensors"):
            from m27.codec.image import ImageCodec as Shipped

            with self._loading:
                if self._image is None:
                    codec = Shipped.load(self._folder or "")
                    self._image = _checked(codec, self._sizes[0], "image")
        return self._image

    @property
    def audio(self) -> AudioCodec | None:
        """The audio codec, or None where there is none."""
        if self._audio is None and self._has("audio_codec.safetensors"):
            from m27.codec.audio import AudioCodec as Shipped

            with self._loading:
                if self._audio is None:
                    codec = Shipped.load(self._folder or "")
                    self._audio = _checked(codec, self._sizes[1], "audio")
        return self._audio

    def _has(self, name: str) -> bool:
        return self._folder is not None and (self._folder / name).is_file()

    def encode_image(self, rgb_HW3: Pixels) -> Codes:
        """uint8 [H, W, 3] → codes [h, w]. Raises CodecsError without a codec."""
        codes: Codes = self.encode_images(rgb_HW3[None])[0]
        return codes

    def encode_images(self, rgb_BHW3: Pixels) -> Codes:
        """uint8 [B, H, W, 3] → codes [B, h, w] in one call. Raises CodecsError without a codec."""
        codec = self.image
        if codec is None:
            raise CodecsError("no image codec is loaded to turn a picture into codes")
        # A copy: the array may be read-only, as those that Pillow lends are.
        pixels_B3HW = torch.from_numpy(np.array(rgb_BHW3)).permute(0, 3, 1, 2)
        with torch.inference_mode():
            codes_Bhw = codec.encode((pixels_B3HW.float() / 255.0).to(_device(codec)))
            return np.asarray(codes_Bhw.cpu().numpy(), dtype=np.int64)

    def decode_image(self, codes_hw: Codes) -> Pixels | None:
        """Codes [h, w] → uint8 [H, W, 3], or None where there is no image codec."""
        pictures = self.decode_images(codes_hw[None])
        return None if pictures is None else pictures[0]

    def decode_images(self, codes_Bhw: Codes) -> Pixels | None:
        """Codes [B, h, w] → uint8 [B, H, W, 3] in one call, or None where there is no image codec."""
        codec = self.image
        if codec is None:
            return None
        with torch.inference_mode():
            pixels_B3HW = codec.decode(torch.from_numpy(codes_Bhw).to(_device(codec)))
            rgb_BHW3 = pixels_B3HW.clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1)
            return np.ascontiguousarray(rgb_BHW3.cpu().numpy())

    def encode_audio(self, samples_T: Samples) -> Codes:
        """float32 [T] at 16 kHz → codes [N]. Raises CodecsError without a codec."""
        codes: Codes = self.encode_sounds(samples_T[None])[0]
        return codes

    def encode_sounds(self, samples_BT: Samples) -> Codes:
        """float32 [B, T] at 16 kHz → codes [B, N] in one call. Raises CodecsError without a codec."""
        codec = self.audio
        if codec is None:
            raise CodecsError("no audio codec is loaded to turn a sound into codes")
        wave_BT = torch.from_numpy(np.array(samples_BT)).to(_device(codec))
        with torch.inference_mode():
            return np.asarray(codec.encode(wave_BT).cpu().numpy(), dtype=np.int64)

    def decode_audio(self, codes_N: Codes) -> Samples | None:
        """Codes [N] → float32 [T], or None where there is no audio codec."""
        codec = self.audio
        if codec is None:
            return None
        with torch.inference_mode():
            wave_T = codec.decode(torch.from_numpy(codes_N)[None].to(_device(codec)))[0]
            return np.asarray(wave_T.float().cpu().numpy(), dtype=np.float32)


def _checked(codec: C | None, size: int, medium: str) -> C | None:
    if codec is not None and math.prod(codec.levels) != size:
        raise CodecsError(
            f"the {medium} codec has {math.prod(codec.levels)} codes, the vocabulary {size}"
        )
    return codec


def _device(codec: object) -> torch.device:
    if isinstance(codec, nn.Module):
        return next((p.device for p in codec.parameters()), torch.device("cpu"))
    return torch.device("cpu")
