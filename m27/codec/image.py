"""The image codec: pixels ↔ a grid of codes, 16×16 pixels a code, one codebook.

The encoder looks through a frozen ImageNet trunk (semantics) and through its own patch embedding
(detail), joins the two on the code grid, and quantises with FSQ. The decoder is convolutional, so
any height and width that are multiples of 16 work. It does not know about files, resizing or
language models.

Shape suffixes: B batch, C channels, H/W pixels, h/w code grid, D latent dimensions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m27.codec import packing
from m27.codec.packing import CodecError
from m27.codec.quantize import FSQ
from m27.codec.trunk import SCALES, Trunk

LEVELS = (4, 4, 4, 4, 4, 4, 4)
EVEN = 0.8  # tanh(0.8 z) is within 0.02 of 2Φ(z) − 1
WIDTH = 256  # channels of the encoder's neck
DECODER = (224, 112, 64, 32)  # channels of the decoder at strides 16, 8, 4, 2
FILE = "image_codec.safetensors"


class ResBlock(nn.Module):
    """Two 3×3 convolutions with group norm and SiLU, added to the input."""

    def __init__(self, channels: int, groups: int = 8) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x_BChw: Tensor) -> Tensor:
        """``[B, C, h, w]`` → the same shape."""
        y = self.conv1(F.silu(self.norm1(x_BChw)))
        out: Tensor = x_BChw + self.conv2(F.silu(self.norm2(y)))
        return out


class Neck(nn.Module):
    """All scales of the trunk and the raw patches, joined on the code grid, to latents."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        detail = SCALES[0] * 16 + SCALES[1] * 4  # strides 4 and 8, folded to stride 16
        self.patch = nn.Conv2d(3, WIDTH // 2, 16, 16)
        self.detail = nn.Conv2d(detail, WIDTH, 1)
        self.meaning = nn.Conv2d(SCALES[2] + SCALES[3], WIDTH, 1)
        self.join = nn.Conv2d(WIDTH * 2 + WIDTH // 2, WIDTH, 1)
        self.blocks = nn.Sequential(ResBlock(WIDTH), ResBlock(WIDTH), ResBlock(WIDTH))
        self.out = nn.Conv2d(WIDTH, dim, 1)
        # Unit variance in each dimension, times a gain that turns a normal variable into one that
        # falls evenly on FSQ's levels: without it a few codes took everything (docs/LOG.md).
        self.norm = nn.BatchNorm2d(dim, affine=False, momentum=0.02)

    def forward(self, pixels_B3HW: Tensor, maps: list[Tensor]) -> Tensor:
        """Pixels in 0..1 and the trunk's four maps → latents ``[B, D, h, w]``."""
        s4, s8, s16, s32 = maps
        grid = s16.shape[-2:]
        up = F.interpolate(s32, size=grid, mode="bilinear", align_corners=False)
        detail = torch.cat([F.pixel_unshuffle(s4, 4), F.pixel_unshuffle(s8, 2)], 1)
        parts = [
            self.patch(pixels_B3HW * 2 - 1),
            self.detail(detail),
            self.meaning(torch.cat([s16, up], 1)),
        ]
        x = self.blocks(self.join(F.silu(torch.cat(parts, 1))))
        latents: Tensor = self.norm(self.out(x).float())
        return latents * EVEN


class ImageDecoder(nn.Module):
    """Quantised vectors to pixels."""

    def __init__(self, dim: int, widths: tuple[int, ...] = DECODER) -> None:
        super().__init__()
        c16, c8, c4, c2 = widths
        self.stem = nn.Conv2d(dim, c16, 3, padding=1)
        self.mid = nn.Sequential(ResBlock(c16), ResBlock(c16), ResBlock(c16))
        self.up8 = nn.Conv2d(c16, c8 * 4, 1)
        self.at8 = nn.Sequential(ResBlock(c8), ResBlock(c8))
        self.up4 = nn.Conv2d(c8, c4 * 4, 1)
        self.at4 = ResBlock(c4)
        self.up2 = nn.Conv2d(c4, c2 * 4, 1)
        self.at2 = ResBlock(c2)
        self.out = nn.Conv2d(c2, 12, 3, padding=1)

    def forward(self, q_BDhw: Tensor) -> Tensor:
        """``[B, D, h, w]`` in [-1, 1] → pixels ``[B, 3, 16h, 16w]``, about 0..1, not clamped."""
        x = self.mid(self.stem(q_BDhw))
        x = self.at8(F.pixel_shuffle(self.up8(x), 2))
        x = self.at4(F.pixel_shuffle(self.up4(x), 2))
        x = self.at2(F.pixel_shuffle(self.up2(x), 2))
        return F.pixel_shuffle(self.out(F.silu(x)), 2) * 0.5 + 0.5


class ImageCodec(nn.Module):
    """Encoder, quantiser and decoder. ``stride`` pixels a code, ``codebook_size`` codes."""

    stride = 16
    max_side = 512

    def __init__(self, levels: tuple[int, ...] = LEVELS, widths: tuple[int, ...] = DECODER) -> None:
        super().__init__()
        self.levels, self.widths = tuple(levels), tuple(widths)
        self.trunk = Trunk()
        self.fsq = FSQ(self.levels)
        self.neck = Neck(self.fsq.dim)
        self.decoder = ImageDecoder(self.fsq.dim, self.widths)
        self.revision = "untrained"
        self._stored: dict[str, Tensor] = {}

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return self.fsq.size

    @property
    def codes_revision(self) -> str:
        """12 hex digits that change when anything that determines codes does, as shipped; the
        decoder does not."""
        state = {  # bytes are hashed, whatever layout the weights have in memory
            name: value.detach().clone(memory_format=torch.contiguous_format)
            for name, value in self.state_dict().items()
            if value.is_floating_point() and not name.startswith("decoder.")
        }
        state["levels"] = torch.tensor(self.levels, dtype=torch.float32)
        return packing.revision(packing.pack(state))

    def quantize(
        self, pixels_B3HW: Tensor, noise: float = 0.0
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Pixels in 0..1 → quantised vectors ``[B, D, h, w]``, codes ``[B, h, w]``, the trunk's
        maps."""
        with torch.no_grad():
            maps = self.trunk(pixels_B3HW)
        z = self.neck(pixels_B3HW, maps)
        q, codes = self.fsq(z.permute(0, 2, 3, 1), noise)
        return q.permute(0, 3, 1, 2), codes, maps

    @torch.no_grad()
    def encode(self, pixels_B3HW: Tensor) -> Tensor:
        """Pixels ``[B, 3, H, W]`` in 0..1 → codes ``[B, H/16, W/16]`` (int64).

        Raises:
            CodecError: if the shape is not that, or a side is not a multiple of 16 in 16..512.
        """
        shape = tuple(pixels_B3HW.shape)
        if len(shape) != 4 or shape[1] != 3:
            raise CodecError(f"pixels must be [B, 3, H, W], not {list(shape)}")
        if any(side % self.stride or not 0 < side <= self.max_side for side in shape[2:]):
            raise CodecError(
                f"height and width must be multiples of {self.stride} up to {self.max_side},"
                f" not {shape[2]}×{shape[3]}"
            )
        return self.quantize(pixels_B3HW)[1]

    @torch.no_grad()
    def decode(self, codes_Bhw: Tensor) -> Tensor:
        """Codes ``[B, h, w]`` → pixels ``[B, 3, 16h, 16w]`` in 0..1 (float32).

        Raises:
            CodecError: if the shape is not that, or a code is outside the codebook.
        """
        if codes_Bhw.dim() != 3 or 0 in codes_Bhw.shape:
            raise CodecError(f"codes must be [B, h, w], not {list(codes_Bhw.shape)}")
        low, high = int(codes_Bhw.min()), int(codes_Bhw.max())
        if low < 0 or high >= self.codebook_size:
            wrong = low if low < 0 else high
            raise CodecError(f"image code {wrong} is outside 0..{self.codebook_size - 1}")
        vectors = self.fsq.vectors(codes_Bhw).permute(0, 3, 1, 2)
        weight = self.decoder.stem.weight
        pixels: Tensor = self.decoder(vectors.to(weight)).float().clamp(0, 1)
        return pixels

    def save(self, folder: str | Path, extra: dict[str, Any] | None = None) -> Path:
        """Write ``image_codec.safetensors`` (large matrices int8, the rest float16) into ``folder``.

        Returns its path. What `load` gives back differs from this module by the rounding; codes are
        always those of the loaded one. Atomic.
        """
        # A clone in the plain layout: channels-last 1×1 weights have strides that bytes cannot have.
        state = {
            k: v.detach().clone(memory_format=torch.contiguous_format)
            for k, v in self.state_dict().items()
            if v.is_floating_point()
        }
        packed = packing.pack(state) | self._as_stored(state)
        self.revision = packing.revision(packed)
        config = {"levels": self.levels, "revision": self.revision, **(extra or {})}
        if self.widths != DECODER:  # files of the first width do not name it
            config["widths"] = self.widths
        return packing.write(Path(folder) / FILE, packed, {"config": json.dumps(config)})

    def take(self, other: ImageCodec) -> None:
        """Take all weights of a codec that was loaded, and how its file spells them; those of a decoder of
        another width stay as they are here."""
        state = other.state_dict()
        if other.widths != self.widths:
            state = {k: v for k, v in state.items() if not k.startswith("decoder.")}
        self.load_state_dict(state, strict=other.widths == self.widths)
        self._stored = {
            k: v for k, v in other._stored.items() if k.removesuffix("::scale") in state
        }

    def _as_stored(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """What was read from a file and has not changed since, as it was there: rounding a rounded
        weight again can move it, and codes must not depend on how often a codec was saved."""
        read = packing.unpack(self._stored)
        same = {
            n for n in state.keys() & read.keys() if torch.equal(state[n].float().cpu(), read[n])
        }
        return {k: v for k, v in self._stored.items() if k.removesuffix("::scale") in same}

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> ImageCodec:
        """Read what `save` wrote (a folder, or the file itself), in float32 and evaluation mode.

        Raises:
            CodecError: naming the file, if it is missing, broken or not a whole image codec.
        """
        path = Path(folder)
        path = path / FILE if path.is_dir() else path
        if not path.is_file():
            raise CodecError(f"{path}: no image codec there")
        packed, metadata = packing.read(path)
        try:
            config = json.loads(metadata["config"])
            codec = cls(tuple(config["levels"]), tuple(config.get("widths", DECODER)))
            codec.revision = str(config["revision"])
            codec._stored = packed
            absent, surplus = codec.load_state_dict(packing.unpack(packed), strict=False)
        except (KeyError, TypeError, ValueError, RuntimeError):
            raise CodecError(f"{path}: not an image codec of this version") from None
        # Counters of batches are whole numbers, which `save` leaves out; nothing reads them.
        absent = [name for name in absent if not name.endswith("num_batches_tracked")]
        if absent or surplus:
            raise CodecError(f"{path}: {[*absent, *surplus][0]} is missing or has no place")
        return codec.to(device).eval().requires_grad_(False)
