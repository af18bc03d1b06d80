"""Training of the image codec: reconstruct, and stay predictable of what a picture means.

Three kinds of supervision act on the quantised vectors: pixels (with the frozen trunk's early
maps as a cheap perceptual loss), the ImageNet teacher's late features, and the captions
(contrastive, against a bag of words). The semantic heads see one code at a time and average: what
a code means must be in the code itself, since the language model will read it through a small map
of exactly that code.

Shape suffixes: B batch, C channels, H/W pixels, h/w code grid, D latent dimensions, E joint space.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from m27.codec.image import LEVELS, ImageCodec
from m27.codec.trunk import POOLED, SCALES

BUCKETS = 8192  # of the hashed bag of words


@dataclass(frozen=True)
class ImageCodecOptions:
    """What a run is made of. A run ends at ``steps`` or after ``minutes``, whichever is first."""

    steps: int = 20_000
    minutes: float = 0.0  # 0: no limit
    batch: int = 32
    lr: float = 1.5e-3
    warmup: int = 100
    weight_decay: float = 0.01
    size: int = 128
    perceptual: float = 0.15
    teacher: float = 1.0
    captions: float = 0.2
    apart: float = 0.05
    seed: int = 0
    checkpoint_minutes: float = 3.0


@dataclass(frozen=True)
class Pictures:
    """A group of training pictures of one kind: uint8 ``[N, S, S, 3]``, a caption each, a
    sampling weight."""

    kind: str
    pixels: NDArray[np.uint8]
    captions: Sequence[str]
    weight: float


class Heads(nn.Module):
    """The heads that only training needs: teacher features and captions from single codes."""

    def __init__(self, dim: int, wide: int = 512, joint: int = 256) -> None:
        super().__init__()
        self.code = nn.Sequential(nn.Linear(dim, wide), nn.SiLU(), nn.Linear(wide, wide), nn.SiLU())
        self.local = nn.Linear(wide, SCALES[3])
        self.pooled = nn.Linear(wide, POOLED)
        self.caption = nn.Linear(wide, joint)
        self.words = nn.EmbeddingBag(BUCKETS, joint, mode="mean")
        self.scale = nn.Parameter(torch.tensor(2.5))

    def losses(
        self, q_BDhw: Tensor, last_BChw: Tensor, pooled_BC: Tensor, captions: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """(teacher loss, caption loss), both scalars, of the quantised vectors.

        ``last_BChw`` is the teacher's map at stride 32, ``pooled_BC`` its pooled features.
        """
        f_BNE = self.code(q_BDhw.flatten(2).transpose(1, 2))
        grid = q_BDhw.shape[-2:]
        up = F.interpolate(last_BChw, size=grid, mode="bilinear", align_corners=False)
        target = up.flatten(2).transpose(1, 2).float()
        local = 1 - F.cosine_similarity(self.local(f_BNE).float(), target, dim=-1).mean()
        mean_BE = f_BNE.mean(1)
        pooled = (
            1 - F.cosine_similarity(self.pooled(mean_BE).float(), pooled_BC.float(), dim=-1).mean()
        )
        ids, offsets, hashes = _bags(captions, q_BDhw.device)
        text = F.normalize(self.words(ids, offsets).float(), dim=-1)
        image = F.normalize(self.caption(mean_BE).float(), dim=-1)
        logits = image @ text.T * self.scale.clamp(max=4.6).exp()
        # Pictures that share a caption are no negatives of one another.
        same = hashes[:, None] == hashes[None, :]
        eye = torch.eye(len(captions), dtype=torch.bool, device=same.device)
        logits = logits.masked_fill(same & ~eye, float("-inf"))
        labels = torch.arange(len(captions), device=logits.device)
        contrast = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        return local + pooled, contrast


def _bags(captions: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    ids: list[int] = []
    offsets: list[int] = []
    hashes: list[int] = []
    for caption in captions:
        words = re.findall(r"[a-z0-9]+", caption.lower()) or [""]
        offsets.append(len(ids))
        codes = [
            int(hashlib.md5(w.encode(), usedforsecurity=False).hexdigest()[:12], 16) for w in words
        ]
        ids += [c % BUCKETS for c in codes]
        hashes.append(sum(codes) % (1 << 62))
    return tuple(torch.tensor(v, device=device) for v in (ids, offsets, hashes))  # type: ignore[return-value]


def draw_batch(
    groups: Sequence[Pictures], options: ImageCodecOptions, step: int
) -> tuple[Tensor, list[str]]:
    """The batch of a step: pixels ``[B, 3, S, S]`` in 0..1 and captions. A function of (seed,
    step) alone.

    Half of the pictures are mirrored; a quarter are zoomed into by up to 1.5.
    """
    rng = np.random.default_rng([options.seed, step])
    weights = np.array([g.weight for g in groups])
    pixels, captions, size = [], [], options.size
    for g in rng.choice(len(groups), options.batch, p=weights / weights.sum()):
        group = groups[g]
        i = int(rng.integers(len(group.pixels)))
        x = torch.from_numpy(group.pixels[i]).permute(2, 0, 1)[None].float() / 255
        if rng.random() < 0.5:
            x = x.flip(-1)
        if rng.random() < 0.25:
            side = int(x.shape[-1] / rng.uniform(1.0, 1.5))
            top, left = rng.integers(0, x.shape[-1] - side + 1, 2)
            x = x[..., top : top + side, left : left + side]
        if x.shape[-1] != size:
            x = F.interpolate(x, (size, size), mode="bicubic", align_corners=False).clamp(0, 1)
        pixels.append(x)
        captions.append(group.captions[i])
    return torch.cat(pixels), captions


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
        self.parameters = {
            n: p
            for module, name in ((self.codec, "codec"), (self.heads, "heads"))
            for n, p in ((f"{name}.{k}", v) for k, v in module.named_parameters())
            if p.requires_grad
        }
        self.optimizer = torch.optim.AdamW(
            list(self.parameters.values()),
            lr=options.lr,
            betas=(0.9, 0.95),
            weight_decay=options.weight_decay,
        )
        self.step, self.seconds = 0, 0.0

    def progress(self) -> float:
        """Share of the run that is over, 0..1, by steps or by minutes, whichever is further."""
        options = self.options
        by_time = self.seconds / 60 / options.minutes if options.minutes else 0.0
        return min(max(self.step / options.steps, by_time), 1.0)

    def losses(self, pixels: Tensor, captions: Sequence[str]) -> dict[str, Tensor]:
        """Scalar losses of one batch, by name; "total" is what is minimised."""
        options = self.options
        x = pixels.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16):
            q, codes, maps = self.codec.quantize(x)
            y = self.codec.decoder(q)
            near = self.codec.trunk(y, 5)
            with torch.no_grad():
                pooled = self.codec.trunk.pooled(maps[3])
            teacher, contrast = self.heads.losses(q, maps[3], pooled, captions)
        y = y.float()
        pixel = (y - x).abs().mean() + ((y - x) ** 2).mean() * 2
        feature = sum(
            ((a.float() - b.float()).abs().mean() / b.float().abs().mean().clamp_min(1e-3))
            for a, b in zip(near, maps, strict=False)
        )
        # Dimensions that say the same thing waste codes: off-diagonal correlation is a loss.
        flat = q.permute(0, 2, 3, 1).reshape(-1, q.shape[1]).float()
        flat = (flat - flat.mean(0)) / flat.std(0).clamp_min(1e-3)
        correlation = flat.T @ flat / flat.shape[0] - torch.eye(q.shape[1], device=q.device)
        apart = (correlation**2).sum() / q.shape[1]
        total = (
            pixel
            + options.apart * apart
            + options.perceptual * feature
            + options.teacher * teacher
            + options.captions * contrast
        )
        used = torch.tensor(float(torch.unique(codes).numel()) / codes.numel())
        return {
            "total": total,
            "pixel": pixel,
            "feature": torch.as_tensor(feature),
            "teacher": teacher,
            "captions": contrast,
            "apart": apart,
            "unique": used,
        }

    def train_step(self, groups: Sequence[Pictures]) -> dict[str, float]:
        """Draw the next batch, take one step, return the losses."""
        begun = time.perf_counter()
        pixels, captions = draw_batch(groups, self.options, self.step)
        done = self.progress()
        lr = self.options.lr * min(1.0, (self.step + 1) / self.options.warmup)
        lr *= 0.5 * (1 + np.cos(np.pi * done)) * 0.98 + 0.02
        for group in self.optimizer.param_groups:
            group["lr"] = lr
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
        meta = {"step": self.step, "seconds": self.seconds, "options": asdict(self.options)}
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
