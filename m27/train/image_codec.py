"""Training of the image codec: reconstruct, and stay predictable of what a picture means.

Four kinds of supervision act on the quantised vectors: pixels and the colours of patches (with the
frozen trunk's early maps as a cheap perceptual loss), the ImageNet teacher's late features, the
captions (contrastive, against a bag of words), and the colour that each single code stands for.
A stage "decoder" leaves the codes bit for bit as they are and trains the decoder alone. Either
stage takes an adversary.

Shape suffixes: B batch, C channels, H/W pixels, h/w code grid, D latent dimensions.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from m27.codec.image import DECODER, LEVELS, ImageCodec
from m27.runtime import dtype
from m27.train.image_adversary import Critic, balanced, in_units
from m27.train.image_data import Bank, Batch, Pictures
from m27.train.image_losses import (
    Heads,
    colour_loss,
    correlation_loss,
    feature_loss,
    pixel_loss,
    recognised_loss,
)

Losses = dict[str, Tensor]


@dataclass(frozen=True)
class ImageCodecOptions:
    """What a run is made of. A run ends at ``steps``, after ``minutes`` of work, or when the clock
    shows ``until`` (seconds since 1970), whichever is first; 0 is no limit.

    Heads warm up over ``warmup`` steps, the codec itself over ``codec_warmup``: a run that begins
    from a trained codec must not be torn by heads that know nothing yet.

    ``adversarial`` is the length of the adversary's gradient in pixels as a share of that of the
    other losses there, 0 for none; the critic learns alone for ``critic_alone`` steps, and its
    share grows to the full one over as many again. ``teacher`` and ``captions`` of 0 leave those
    losses out. ``recognised`` weighs what the trunk sees in the decoded picture with all of its blocks.
    ``adversary_from`` is the share of the run before which there is no adversary at all, and ``widths``
    those of the decoder.
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
    stage: Literal["all", "decoder"] = "all"
    pixel: float = 3.5
    colour: float = 2.0
    code_colour: float = 0.5
    perceptual: float = 0.25
    recognised: float = 0.0
    teacher: float = 1.0
    captions: float = 0.2
    apart: float = 0.05
    adversarial: float = 0.0
    critic_lr: float = 4e-4
    critic_alone: int = 100
    adversary_from: float = 0.0
    widths: tuple[int, ...] = DECODER
    lecam: float = 0.01
    compile: bool = False
    seed: int = 0
    checkpoint_minutes: float = 3.0


class ImageCodecTrainer:
    """One run on one device: model, heads, critic, optimisers, step count; saved and resumed
    whole."""

    def __init__(
        self,
        trunk: dict[str, Tensor] | None,
        options: ImageCodecOptions,
        folder: Path,
        device: torch.device | str = "cpu",
    ) -> None:
        torch.manual_seed(options.seed)
        self.options, self.folder, self.device = options, folder, torch.device(device)
        self.codec = ImageCodec(LEVELS, options.widths)
        if trunk is not None:
            self.codec.trunk.load_state_dict(trunk)
        self.codec.trunk.requires_grad_(False)
        self.heads, self.critic = Heads(self.codec.fsq.dim), Critic()
        if options.stage == "decoder":
            self.codec.neck.requires_grad_(False).eval()
            self.heads.requires_grad_(False)
        # A processor without bfloat16 emulates it, a hundred times slower than float32.
        self.narrow = dtype("auto", self.device) == torch.bfloat16
        self.codec.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.heads.to(self.device)
        self.critic.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.modules = {"codec": self.codec, "heads": self.heads, "critic": self.critic}
        self.decode = torch.compile(self.codec.decoder) if options.compile else self.codec.decoder
        warmups = {
            "codec": options.codec_warmup,
            "heads": options.warmup,
            "critic": options.warmup,
        }
        self.optimizers = {
            "own": self._optimizer({n: warmups[n] for n in ("codec", "heads")}, options.lr, 0.9),
            "critic": self._optimizer({"critic": options.warmup}, options.critic_lr, 0.5),
        }
        self.step, self.seconds = 0, 0.0
        self._share_of_run, self._adverse_since = 0.0, 0
        self.begun = time.time()

    def _optimizer(self, warmups: dict[str, int], lr: float, beta: float) -> torch.optim.AdamW:
        groups = [
            {
                "params": [p for p in self.modules[name].parameters() if p.requires_grad],
                "warmup": warmup,
                "peak": lr,
            }
            for name, warmup in warmups.items()
        ]
        return torch.optim.AdamW(
            [g for g in groups if g["params"]],
            lr=lr,
            betas=(beta, 0.95),
            weight_decay=self.options.weight_decay,
            fused=self.device.type == "cuda",
        )

    def begin_from(self, path: Path) -> None:
        """Take trunk, neck and decoder of a codec that was saved; heads and optimiser stay new."""
        self.codec.take(ImageCodec.load(path))

    def progress(self) -> float:
        """Share of the run that is over, 0..1, by steps, minutes or the clock, whichever is
        furthest."""
        options = self.options
        by_time = self.seconds / 60 / options.minutes if options.minutes else 0.0
        by_clock = (time.time() - self.begun) / (options.until - self.begun) if options.until else 0
        return min(max(self.step / options.steps, by_time, by_clock), 1.0)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.narrow)

    def backward(self, batch: Batch) -> Losses:
        """Gradients of one batch in every parameter; the losses, and the critic's own with them.

        What is seen in the pixels meets in the decoded pixels as one gradient, where the
        adversary's can be weighed against the rest, and goes on from there in one pass.
        """
        options = self.options
        x = batch.pixels.contiguous(memory_format=torch.channels_last)
        with self._autocast(), torch.set_grad_enabled(options.stage == "all"):
            q, codes, maps = self.codec.quantize(x)
        with self._autocast():
            y = self.decode(q)
        made = y.detach().float().requires_grad_()
        deep = options.recognised > 0
        with self._autocast():
            near = self.codec.trunk(made, 16 if deep else 5)
        losses: Losses = {
            "pixel": pixel_loss(made, x),
            "colour": colour_loss(made, x),
            "feature": feature_loss(near, maps),
        }
        seen = (
            options.pixel * losses["pixel"]
            + options.colour * losses["colour"]
            + options.perceptual * losses["feature"]
        )
        if deep:
            with self._autocast():
                losses["recognised"] = recognised_loss(self.codec.trunk, near, maps)
            seen = seen + options.recognised * losses["recognised"]
        adverse = options.adversarial > 0 and self._share_of_run >= options.adversary_from
        (gradient,) = torch.autograd.grad(seen, made, retain_graph=adverse)
        if adverse:
            share = options.adversarial * self._critic_share()
            if share > 0:
                with self._autocast():
                    score = self.critic(made, in_units(near, maps))
                losses["fooled"] = score.mean()
                (pull,) = torch.autograd.grad(-losses["fooled"], made)
                gradient = balanced(gradient, pull, share)
            losses["critic"] = self._criticise(x, maps, made.detach(), near)
        meant = self._meaning(losses, q, batch, maps) if options.stage == "all" else None
        roots, pushes = [y], [gradient.to(y.dtype)]
        if meant is None:
            torch.autograd.backward(roots, pushes)
        else:
            torch.autograd.backward([*roots, meant], [*pushes, torch.ones_like(meant)])
        counts = torch.zeros(self.codec.codebook_size, device=codes.device)
        ones = torch.ones(codes.numel(), device=codes.device)
        used = counts.scatter_(0, codes.flatten(), ones).sum()
        return losses | {"unique": used / codes.numel()}

    def _critic_share(self) -> float:
        alone = self.options.critic_alone
        since = self.step - self._adverse_since
        return min(max((since - alone) / max(alone, 1), 0.0), 1.0)

    def _criticise(self, x: Tensor, maps: list[Tensor], made: Tensor, near: list[Tensor]) -> Tensor:
        """The critic's loss, its gradients taken."""
        near = [m.detach() for m in near]
        with self._autocast():
            given = self.critic(x, in_units(maps, maps))
            score = self.critic(made, in_units(near, maps))
        loss = self.critic.loss(given, score, self.options.lecam)
        loss.backward()
        return loss

    def _meaning(self, losses: Losses, q: Tensor, batch: Batch, maps: list[Tensor]) -> Tensor:
        """The weighted sum of the losses that act on codes alone; each is put into ``losses``."""
        options = self.options
        with self._autocast():
            with torch.no_grad():
                pooled = self.codec.trunk.pooled(maps[3])
            teacher, contrast, colour = self.heads.losses(
                q, batch.pixels, maps[3], pooled, batch.words, batch.captions
            )
        apart = correlation_loss(q)
        losses |= {"teacher": teacher, "captions": contrast, "code_colour": colour, "apart": apart}
        return (
            options.teacher * teacher
            + options.captions * contrast
            + options.code_colour * colour
            + options.apart * apart
        )

    def train_step(self, bank: Bank) -> Losses:
        """Draw the next batch, take one step, return the losses, still on the device."""
        begun = time.perf_counter()
        options = self.options
        batch = bank.draw(options.batch, options.size, options.seed, self.step)
        self._share_of_run = self.progress()
        if self._share_of_run < options.adversary_from:
            self._adverse_since = self.step + 1
        decay = 0.5 * (1 + np.cos(np.pi * self._share_of_run)) * 0.98 + 0.02
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * decay * min(1.0, (self.step + 1) / group["warmup"])
        losses = self.backward(batch)
        for optimizer in self.optimizers.values():
            own = [p for group in optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(own, 1.0)
            optimizer.step()
        self.step += 1
        self.seconds += time.perf_counter() - begun
        return {name: value.detach() for name, value in losses.items()}

    def _parameters(self) -> dict[str, tuple[torch.optim.AdamW, nn.Parameter]]:
        """Every trained parameter by name, with the optimiser that it belongs to."""
        return {
            f"{name}.{key}": (self.optimizers["critic" if name == "critic" else "own"], parameter)
            for name, module in self.modules.items()
            for key, parameter in module.named_parameters()
            if parameter.requires_grad
        }

    def save(self) -> None:
        """Write everything a resumed run needs to ``folder/state.safetensors``, and the codec
        beside it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{name}.{key}": value
            for name, module in self.modules.items()
            for key, value in module.state_dict().items()
        }
        for name, (optimizer, parameter) in self._parameters().items():
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"o.{key}.{name}"] = torch.as_tensor(value)
        meta = {
            "step": self.step,
            "seconds": self.seconds,
            "begun": self.begun,
            "adverse_since": self._adverse_since,
            "options": asdict(self.options),
        }
        temporary = self.folder / "state.tmp"
        save_file(
            {k: v.cpu().contiguous() for k, v in tensors.items()},
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
        # For how the codec's file spells what this run leaves alone; the state itself follows.
        self.codec.take(ImageCodec.load(self.folder))
        for name, module in self.modules.items():
            start = f"{name}."
            module.load_state_dict(
                {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
            )
        for name, (optimizer, parameter) in self._parameters().items():
            keys = ("step", "exp_avg", "exp_avg_sq")
            state = {k: tensors[f"o.{k}.{name}"] for k in keys if f"o.{k}.{name}" in tensors}
            if state:
                # The count of steps stays where the optimiser would have made it.
                counted = {"step": state.pop("step")}
                if self.device.type == "cuda":
                    counted = {k: v.to(self.device) for k, v in counted.items()}
                moments = {k: v.to(self.device) for k, v in state.items()}
                optimizer.state[parameter] = counted | moments
        self.step, self.seconds = int(meta["step"]), float(meta["seconds"])
        self.begun = float(meta["begun"])
        self._adverse_since = int(meta.get("adverse_since", 0))
        return True

    def run(self, groups: Sequence[Pictures], log_every: int = 25) -> None:
        """Train to the end of the run, logging to ``folder/log.jsonl`` and saving on the way."""
        self.folder.mkdir(parents=True, exist_ok=True)
        bank, saved = Bank(groups, self.device), time.monotonic()
        sums: Losses = {}
        with open(self.folder / "log.jsonl", "a") as log:
            while self.progress() < 1.0:
                for key, value in self.train_step(bank).items():
                    sums[key] = sums.get(key, torch.zeros_like(value)) + value / log_every
                if self.step % log_every == 0:
                    row = {"step": self.step, "seconds": round(self.seconds, 1)}
                    row |= {k: round(float(v), 5) for k, v in sums.items()}
                    log.write(json.dumps(row) + "\n")
                    log.flush()
                    sums = {}
                if time.monotonic() - saved > self.options.checkpoint_minutes * 60:
                    self.save()
                    saved = time.monotonic()
        self.save()
