"""Experts in training, a dense model released: a small run that shows each step and what it is worth.

    python -m recipes.moe --run runs/moe --out out/moe.json

A Qwen3 decoder so small that its size is what holds it back is trained on text, pictures and sounds
(`parent`), then continued for the same tokens as it is (`dense`) and upcycled, with as many active
parameters (`moe`). Both have the same rates to choose from, by half of what is held out; at the chosen
rate each is run with several seeds, the same batches in the same order for both. The mixture goes back to a dense model
by merging (`merged`) and by distillation from there (`distilled`); beside it `dense` is trained on for
the tokens that distillation took (`longer`). All are measured on the other half, with intervals from
a bootstrap over the texts, pictures and sounds it comes from. Killed, it goes on where it stood. It is
a demonstration of the mechanism, not a recipe for a good model.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m27.data.loader import MEDIA, Batch
from m27.data.mixture import State
from m27.model.config import Config, size_row
from m27.model.decoder import Decoder
from m27.model.files import write_json
from m27.model.upcycle import Upcycling, merge, upcycle
from m27.train.distil import FitConfig, fit, target_losses
from m27.train.optim import OptimConfig
from m27.train.routing import Balancer, RouterConfig
from recipes import moe_data
from recipes.moe_data import Corpus

MODEL = Config(
    "qwen3", vocab_size=moe_data.SIZE, dim=32, n_layers=2, n_heads=2, n_kv_heads=2, head_dim=16,
    ffn_dim=64, norm_eps=1e-6, tied=True, max_len=512,
)  # fmt: skip

UPCYCLINGS = {
    "copies": Upcycling(8, 1, router_std=0.2),
    "shared": Upcycling(8, 1, shared_dim=MODEL.ffn_dim // 2, router_std=0.2),
    "pieces": Upcycling(8, 2, split=2, router_std=0.2),
}


@dataclass(frozen=True)
class MoeConfig:
    """The run. Steps are of `share` rows of text, pictures and sounds, of 256 tokens each. `upcycling` is one
    of `UPCYCLINGS`, which keep the number of an MLP's active inner units: one of 8 copies of the whole
    ("copies"), half of them a shared expert and one of 8 copies of the other half ("shared"), or two of 8
    experts of half the width ("pieces"). `rates` are those that both branches may choose from, with the
    first of `seeds`. Of each half of what is held out at most `measured` rows a medium are measured on."""

    model: Config = MODEL
    upcycling: Upcycling = UPCYCLINGS["copies"]
    router: RouterConfig = field(
        default_factory=lambda: RouterConfig(balance=0.2, balance_decay=0.5, gone=0.3)
    )
    share: tuple[int, int, int] = (4, 3, 1)
    measured: int = 250
    parent_steps: int = 3000
    branch_steps: int = 1200
    distil_steps: int = 300
    warmup_steps: int = 50
    decay: float = 0.3
    lr: float = 3e-3
    rates: tuple[float, ...] = (1e-3, 3e-3)
    seeds: tuple[int, ...] = (2, 3)


Sums = NDArray[np.float64]


def scored_among() -> list[Tensor]:
    """By medium, the ids a target is scored among. Text and control ids are scored together."""
    words = torch.arange(moe_data.IMAGE)
    image, audio = (torch.arange(*moe_data.VOCABULARY[m]) for m in ("image", "audio"))
    return [words, words, image, audio]


def losses(model: Decoder, corpus: Corpus, half: int, measured: int) -> Sums:
    """Sums of losses and counts of targets by origin, [origins, media, 2], of one half of the held-out."""
    table = np.zeros((corpus.origins(half), len(MEDIA), 2))
    candidates = scored_among()
    for batch, origins in corpus.held(half, (measured,) * 3):
        found = target_losses(model, batch, candidates)
        origin = origins[(batch.places_M // batch.ids_BT.shape[1]).numpy()]
        values = torch.stack((found, torch.ones_like(found)), 1).numpy()
        np.add.at(table, (origin, batch.media_M.numpy()), values)
    return table


def counting(model: Decoder) -> Balancer:
    """Who counts the choices of `model` and moves nothing."""
    return Balancer(model, RouterConfig(bias_step=0), moe_data.VOCABULARY)


@torch.no_grad()
def chosen(model: Decoder, batches: Iterator[Batch]) -> Balancer:
    """The counts of how often each expert is chosen over these batches."""
    counter = counting(model)
    for batch in batches:
        routing: list[Tensor] = []
        model.hidden(
            model.embed(batch.ids_BT), batch.positions_BT, batch.documents_BT, routing=routing
        )
        counter(routing, batch)
        counter.update()
    return counter


def interval(sums: Sums, other: Sums | None = None, draws: int = 2000) -> list[float]:
    """Mean loss a target of [origins, 2] sums, or how far it lies above `other`'s on the same
    origins, with a 95 % interval from a bootstrap over origins."""
    rng = np.random.default_rng(0)
    counts = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=draws)
    counts = np.vstack((np.ones(len(sums), dtype=counts.dtype), counts))

    def mean(table: Sums) -> Sums:
        drawn: Sums = counts @ table
        return drawn[:, 0] / np.maximum(drawn[:, 1], 1)

    values = mean(sums) if other is None else mean(sums) - mean(other)
    low, high = np.quantile(values[1:], (0.025, 0.975))
    return [round(float(v), 4) for v in (values[0], low, high)]


def by_medium(sums: Sums, other: Sums | None = None) -> dict[str, list[float]]:
    """`interval` in all and by medium; media that do not occur are left out."""
    out = {}
    for name, pick in {
        "all": slice(None),
        **{m: slice(i, i + 1) for i, m in enumerate(MEDIA)},
    }.items():
        mine = sums[:, pick].sum(1)
        kept = mine[:, 1] > 0
        if kept.any():
            theirs = None if other is None else other[:, pick].sum(1)[kept]
            out[name] = interval(mine[kept], theirs)
    return out


@dataclass
class Experiment:
    """One run: its configuration, its folder `run`, its corpus, and what it found by now (`result`)."""

    config: MoeConfig
    run: Path
    corpus: Corpus

    def trained(
        self, name: str, model: Decoder, steps: int, seed: int, lr: float, decay: float,
        teacher: Decoder | None = None,
    ) -> Decoder:  # fmt: skip
        """`model`, trained in place; what stands under `run` is read and not run again."""
        c = self.config
        warmup = min(1.0, c.warmup_steps / steps)
        optim = OptimConfig(lr=lr, beta2=0.95, weight_decay=0.1, decay=decay, warmup=warmup)
        settings = FitConfig(steps, optim=optim, router=c.router, save_every=100, piece=2048)

        def stream(state: State | None) -> Iterator[tuple[list[Batch], State]]:
            return self.corpus.batches(c.share, seed, state)

        fit(
            model, stream, settings, self.run / name, moe_data.VOCABULARY, teacher, scored_among(),
            say=lambda line: print(name, line, flush=True),
        )  # fmt: skip
        return model

    def measured(self, model: Decoder, half: int = 1) -> Sums:
        """`losses` on one half: 0 chooses, 1 measures."""
        return losses(model, self.corpus, half, self.config.measured)

    def branch(
        self, name: str, begin: Callable[[int], Decoder]
    ) -> tuple[dict[int, Decoder], dict[str, Any]]:  # fmt: skip
        """A branch by seed, at the rate that does best with the first seed, and how each rate did.
        `begin(seed)` is what it starts from."""
        c = self.config

        def go(seed: int, rate: float) -> Decoder:
            label = f"{name}-{rate:g}-{seed}"
            return self.trained(label, begin(seed), c.branch_steps, seed, rate, c.decay)

        tried = {rate: go(c.seeds[0], rate) for rate in c.rates}
        scores = {
            rate: by_medium(self.measured(model, 0))["all"][0] for rate, model in tried.items()
        }
        best = min(scores, key=scores.__getitem__)
        found = {seed: tried[best] if seed == c.seeds[0] else go(seed, best) for seed in c.seeds}
        return found, {"rate": best, "tried": {f"{rate:g}": loss for rate, loss in scores.items()}}


def execute(
    config: MoeConfig, run: Path, out: Path, corpus: Corpus | None = None
) -> dict[str, Any]:
    """All stages; what is finished under `run` is read and not run again. Returns what `out` gets."""
    lab = Experiment(config, run, corpus or Corpus())
    torch.manual_seed(0)
    parent = lab.trained("parent", Decoder(config.model), config.parent_steps, 1, config.lr, 0.0)
    dense, dense_rates = lab.branch("dense", lambda _: copy.deepcopy(parent))
    # A copy: what lies outside the MLPs is shared with the parent.
    experts, experts_rates = lab.branch(
        "moe", lambda seed: copy.deepcopy(upcycle(parent, replace(config.upcycling, seed=seed)))
    )
    first = config.seeds[0]
    sums = {"parent": lab.measured(parent)}
    result: dict[str, Any] = {
        "config": asdict(config), "rates": {"dense": dense_rates, "moe": experts_rates},
        "tokens": {
            "parent": config.parent_steps * sum(config.share) * moe_data.ROW,
            "branch": config.branch_steps * sum(config.share) * moe_data.ROW,
            "distil": config.distil_steps * sum(config.share) * moe_data.ROW,
        },
        "sizes": {}, "loss": {}, "minus_dense": {}, "load": {},
    }  # fmt: skip

    def keep(name: str, model: Decoder, against: str = "") -> None:
        """Measure one more model, and write what is known by now."""
        sums[name] = lab.measured(model)
        row = size_row(name, model.config)
        result["sizes"][name] = {"parameters": row.parameters, "active": row.active_parameters}
        result["loss"][name] = by_medium(sums[name])
        if against:
            result["minus_dense"][name] = by_medium(sums[name], sums[against])
        if model.config.n_experts:
            # In the proportions that training keeps even.
            most = [config.measured * rows // max(config.share) for rows in config.share]
            held = (batch for batch, _ in lab.corpus.held(1, most))
            result["load"][name] = chosen(model, held).load().record()
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, result)

    keep("parent", parent, "")
    for seed in config.seeds:
        keep(f"dense-{seed}", dense[seed])
        keep(f"moe-{seed}", experts[seed], f"dense-{seed}")
    ours, theirs = (
        np.sum([sums[f"{kind}-{seed}"] for seed in config.seeds], axis=0)
        for kind in ("moe", "dense")
    )
    result["minus_dense"]["moe, seeds together"] = by_medium(ours, theirs)

    seen = (micro[0] for micro, _ in lab.corpus.batches(config.share, 99, None))
    load_LE = chosen(experts[first], (next(seen) for _ in range(20))).load().counts_LEC.sum(-1)
    merged = merge(experts[first], config.upcycling.split, load_LE)
    keep("merged", merged, f"dense-{first}")
    rate = dense_rates["rate"]
    distilled = lab.trained(
        "distilled", copy.deepcopy(merged), config.distil_steps, 4, rate, 0.5, experts[first]
    )
    longer = lab.trained("longer", copy.deepcopy(dense[first]), config.distil_steps, 4, rate, 0.5)
    keep("longer", longer, f"dense-{first}")
    keep("distilled", distilled, f"dense-{first}")
    result["distilled_minus_longer"] = by_medium(sums["distilled"], sums["longer"])
    write_json(out, result)
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/moe"))
    parser.add_argument("--out", type=Path, default=Path("out/moe.json"))
    parser.add_argument("--scale", type=float, default=1.0, help="factor on all steps")
    parser.add_argument("--upcycling", choices=sorted(UPCYCLINGS), default="copies")
    parser.add_argument("--drop", type=float, default=None, help="share of inner units drawn anew")
    args = parser.parse_args(argv)
    config = MoeConfig()
    steps = {
        name: max(1, round(args.scale * getattr(config, name)))
        for name in ("parent_steps", "branch_steps", "distil_steps")
    }
    config = replace(config, **steps, upcycling=UPCYCLINGS[args.upcycling])
    if args.drop is not None:
        config = replace(config, upcycling=replace(config.upcycling, drop=args.drop))
    result = execute(config, args.run, args.out)
    print(json.dumps({k: v for k, v in result.items() if k != "config"}, indent=1))


if __name__ == "__main__":
    main()
