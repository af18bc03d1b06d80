"""Training of the image codec: reconstruct, and stay predictable of what a picture means.

Four kinds of supervision act on the quantised vectors: pixels and the colours of patches (with the
frozen trunk's early maps as a cheap perceptual loss), the ImageNet teacher's late features, the
captions (contrastive, against a bag of words), and the colour that each single code stands for.

Shape suffixes: B batch, C channels, H/W pixels, h/w code grid, D latent dimensions.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from m27.codec.image import LEVELS, ImageCodec
from m27.train.image_data import Pictures, draw_batch
from m27.train.image_losses import (
    Heads,
    colour_loss,
    correlation_loss,
    feature_loss,
    pixel_loss,
)


def narrow_is_fast(device: torch.device) -> bool:
    """Whether bfloat16 saves time on a device. A processor without such instructions emulates
    them, a hundred times slower than float32."""
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported())
    return device.type == "cuda"


@dataclass(frozen=True)
class ImageCodecOptions:
    """What a run is made of. A run ends at ``steps``, after ``minutes`` of work, or when the clock
    shows ``until`` (seconds since 1970), whichever is first; 0 is no limit.

    Heads warm up over ``warmup`` steps, the codec itself over ``codec_warmup``: a run that begins
    from a trained codec must not be torn by heads that know nothing yet.
    """

    steps: int = 20_000
    minutes: float = 0.0
    until: float = 0.0
    batch: int = 32
    lr: float = 1.5e-3
    warmup: int = 100
    codec_warmup: int = 100
    weight_decay: float = 0.01
    size: int = 128
    pixel: float = 3.5
    colour: float = 2.0
    code_colour: float = 0.5
    perceptual: float = 0.25
    teacher: float = 1.0
    captions: float = 0.2
    apart: float = 0.05
    seed: int = 0
    checkpoint_minutes: float = 3.0


class ImageCodecTrainer:
    """One run: model, heads, optimiser, step count; saved and resumed whole."""

    def __init__(
        self, trunk: dict[str, Tensor] | None, options: ImageCodecOptions, folder: Path
    ) -> None:
        torch.manual_seed(options.seed)
        self.options, self.folder = options, folder
        self.codec = ImageCodec(LEVELS)
        if trunk is not None:
            self.codec.trunk.load_state_dict(trunk)
        self.codec.trunk.requires_grad_(False)
        self.heads = Heads(self.codec.fsq.dim)
        self.codec.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.narrow = narrow_is_fast(torch.device("cpu"))
        self.parameters = {
            n: p
            for module, name in ((self.codec, "codec"), (self.heads, "heads"))
            for n, p in ((f"{name}.{k}", v) for k, v in module.named_parameters())
            if p.requires_grad
        }
        of_codec = [p for n, p in self.parameters.items() if n.startswith("codec.")]
        of_heads = [p for n, p in self.parameters.items() if n.startswith("heads.")]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": of_codec, "warmup": options.codec_warmup},
                {"params": of_heads, "warmup": options.warmup},
            ],
            lr=options.lr,
            betas=(0.9, 0.95),
            weight_decay=options.weight_decay,
        )
        self.step, self.seconds = 0, 0.0
        self.begun = time.time()

    def begin_from(self, path: Path) -> None:
        """Take trunk, neck and decoder of a codec that was saved; heads and optimiser stay new."""
        self.codec.load_state_dict(ImageCodec.load(path).state_dict())

    def progress(self) -> float:
        """Share of the run that is over, 0..1, by steps, minutes or the clock, whichever is
        furthest."""
        options = self.options
        by_time = self.seconds / 60 / options.minutes if options.minutes else 0.0
        by_clock = (time.time() - self.begun) / (options.until - self.begun) if options.until else 0
        return min(max(self.step / options.steps, by_time, by_clock), 1.0)

    def losses(self, pixels: Tensor, captions: Sequence[str]) -> dict[str, Tensor]:
        """Scalar losses of one batch, by name; "total" is what is minimised."""
        options = self.options
        x = pixels.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.narrow):
            q, codes, maps = self.codec.quantize(x)
            y = self.codec.decoder(q)
            near = self.codec.trunk(y, 5)
            with torch.no_grad():
                pooled = self.codec.trunk.pooled(maps[3])
            teacher, contrast, code_colour = self.heads.losses(q, x, maps[3], pooled, captions)
        y = y.float()
        pixel, colour = pixel_loss(y, x), colour_loss(y, x)
        feature, apart = feature_loss(near, maps), correlation_loss(q)
        total = (
            options.pixel * pixel
            + options.colour * colour
            + options.code_colour * code_colour
            + options.apart * apart
            + options.perceptual * feature
            + options.teacher * teacher
            + options.captions * contrast
        )
        used = torch.tensor(float(torch.unique(codes).numel()) / codes.numel())
        return {
            "total": total,
            "pixel": pixel,
            "colour": colour,
            "code_colour": code_colour,
            "feature": feature,
            "teacher": teacher,
            "captions": contrast,
            "apart": apart,
            "unique": used,
        }

    def train_step(self, groups: Sequence[Pictures]) -> dict[str, float]:
        """Draw the next batch, take one step, return the losses."""
        begun = time.perf_counter()
        options = self.options
        pixels, captions = draw_batch(groups, options.batch, options.size, options.seed, self.step)
        lr = options.lr * (0.5 * (1 + np.cos(np.pi * self.progress())) * 0.98 + 0.02)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * min(1.0, (self.step + 1) / group["warmup"])
        losses = self.losses(pixels, captions)
        self.optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        self.optimizer.step()
        self.step += 1
        self.seconds += time.perf_counter() - begun
        return {k: float(v.detach()) for k, v in losses.items()} | {"lr": float(lr)}

    def save(self) -> None:
        """Write everything a resumed run needs to ``folder/state.safetensors``, and the codec
        beside it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"codec.{n}": p for n, p in self.codec.state_dict().items()}
        tensors |= {f"heads.{n}": p for n, p in self.heads.state_dict().items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"o.{key}.{name}"] = torch.as_tensor(value)
        meta = {
            "step": self.step,
            "seconds": self.seconds,
            "begun": self.begun,
            "options": asdict(self.options),
        }
        temporary = self.folder / "state.tmp"
        save_file(
            {k: v.contiguous() for k, v in tensors.items()},
            str(temporary),
            {"meta": json.dumps(meta)},
        )
        temporary.replace(self.folder / "state.safetensors")
        self.codec.save(self.folder, {"steps": self.step})

    def resume(self) -> bool:
        """Load what `save` wrote, if it is there; says whether it was."""
        path = self.folder / "state.safetensors"
        if not path.is_file():
            return False
        with safe_open(str(path), framework="pt") as file:
            meta: dict[str, Any] = json.loads((file.metadata() or {})["meta"])
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
        for prefix, module in (("codec.", self.codec), ("heads.", self.heads)):
            own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            module.load_state_dict(own)
        for name, parameter in self.parameters.items():
            keys = ("step", "exp_avg", "exp_avg_sq")
            state = {k: tensors[f"o.{k}.{name}"] for k in keys if f"o.{k}.{name}" in tensors}
            if state:
                self.optimizer.state[parameter] = state
        self.step, self.seconds = int(meta["step"]), float(meta["seconds"])
        self.begun = float(meta["begun"])
        return True

    def run(self, groups: Sequence[Pictures], log_every: int = 25) -> None:
        """Train to the end of the run, logging to ``folder/log.jsonl`` and saving on the way."""
        self.folder.mkdir(parents=True, exist_ok=True)
        saved = time.monotonic()
        sums: dict[str, float] = {}
        with open(self.folder / "log.jsonl", "a") as log:
            while self.progress() < 1.0:
                for key, value in self.train_step(groups).items():
                    sums[key] = sums.get(key, 0.0) + value / log_every
                if self.step % log_every == 0:
                    rate = self.step * self.options.batch / self.seconds
                    row = {"step": self.step, "seconds": round(self.seconds, 1), "pictures_s": rate}
                    log.write(json.dumps(row | {k: round(v, 5) for k, v in sums.items()}) + "\n")
                    log.flush()
                    sums = {}
                if time.monotonic() - saved > self.options.checkpoint_minutes * 60:
                    self.save()
                    saved = time.monotonic()
        self.save()
