"""A training step of a mixture of experts against a dense one of equal active parameters.

    python -m benchmarks.moe [--device cuda] [--dtype bfloat16] [--tokens 1024] [--size 1b7] [--compile] [--out FILE]

Both are Qwen3 bodies of nano's width, or of that of `--size`; the mixture has 8 experts of half the MLP's width, two a
token, so as many inner units are active. Forward, backward and AdamW, on the same ids, interleaved, medians;
the vocabulary is short, so that the head hides nothing. With `--compile` blocks of both are compiled as
`m27 train` compiles them: whole ones on a GPU. The bar: at most 1.5 times the dense step on a
CPU, 1.15 times on a GPU. Also told: the same without AdamW (which passes over all experts, whoever was
chosen), the experts alone through the plain loop (never compiled: whom it waits for depends on the choices), and how
far loop and grouped path lie apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m27 import runtime
from m27.codec.media import write_atomic
from m27.model.config import SIZES, Config
from m27.model.decoder import Decoder
from m27.model.moe import Experts, MoE
from m27.model.upcycle import Upcycling
from m27.train.routing import Balancer, RouterConfig
from m27.train.whole import compile_blocks

BARS = {"cpu": 1.5, "cuda": 1.15}
# Processor time is that of all threads of this process: for one thread on a machine that others use.
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def shapes(layers: int, size: str = "nano") -> dict[str, Config]:
    """The two bodies."""
    dense = replace(SIZES[size], family="qwen3", vocab_size=1024, n_layers=layers)
    return {"dense": dense, "moe": Upcycling(8, 2, split=2).config(dense)}


class Contender:
    """One model with its optimiser, and its step."""

    def __init__(
        self, config: Config, ids_BT: Tensor, dtype: torch.dtype, experts: str, compile: bool = False
    ) -> None:
        torch.manual_seed(0)
        self.ids_BT, self.dtype = ids_BT, dtype
        self.decoder = Decoder(config).to(ids_BT.device)
        if experts == "loop":
            for module in self.decoder.modules():
                if isinstance(module, Experts):
                    module.forward = module.loop  # type: ignore[method-assign]
        elif compile:
            compile_blocks(self.decoder)
        self.adamw = torch.optim.AdamW(self.decoder.parameters(), lr=1e-4, fused=True)
        self.balancer = Balancer(self.decoder, RouterConfig())

    def forward_backward(self) -> None:
        """Gradients of the mean state, and of the router's losses."""
        self.adamw.zero_grad(set_to_none=False)
        routing: list[Tensor] = []
        with torch.autocast(
            self.ids_BT.device.type, self.dtype, enabled=self.dtype != torch.float32
        ):
            h_BTD = self.decoder.hidden(self.decoder.embed(self.ids_BT), routing=routing)
            loss = h_BTD.float().square().mean()
        picked = self.balancer.picks(routing)
        for extra in self.balancer.losses(routing, picked=picked).values():
            loss = loss + extra
        self.balancer.observe(routing, picked=picked)
        loss.backward()

    def step(self) -> None:
        """The whole step."""
        self.forward_backward()
        self.adamw.step()
        self.balancer.update()


def race(
    runs: Mapping[str, Callable[[], None]], rounds: int, device: str, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of each run in each round, one after the other in every round; the first is not counted."""
    out: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            if device == "cuda":
                torch.cuda.synchronize()
            begun = clock()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            if number:
                out[name].append(clock() - begun)
    return out


@torch.no_grad()
def apart(decoder: Decoder, ids_BT: Tensor) -> float:
    """The largest difference between loop and grouped path in the first layer, over the largest output."""
    moe = next(module for module in decoder.modules() if isinstance(module, MoE))
    x_MD = decoder.embed(ids_BT).flatten(0, 1) * 50
    _, chosen, weights = moe.route(x_MD)
    slow, fast = moe.experts.loop(x_MD, chosen, weights), moe.experts.grouped(x_MD, chosen, weights)
    return float((slow - fast).abs().max() / slow.abs().max())


def measure(
    device: str, dtype: torch.dtype, tokens: int, layers: int, rounds: int, clock: str = "wall", size: str = "nano",
    compile: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """All figures, in milliseconds, and the ratios of medians."""
    generator = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(0, 1024, (max(tokens // 512, 1), min(tokens, 512)), generator=generator)
    ids_BT = ids_BT.to(device)
    config = shapes(layers, size)
    dense = Contender(config["dense"], ids_BT, dtype, "grouped", compile)
    moe = Contender(config["moe"], ids_BT, dtype, "grouped", compile)
    loop = Contender(config["moe"], ids_BT, dtype, "loop")
    seconds = race(
        {
            "dense": dense.step, "moe": moe.step,
            "dense without AdamW": dense.forward_backward, "moe without AdamW": moe.forward_backward,
            "moe, plain loop, without AdamW": loop.forward_backward,
        },
        rounds, device, CLOCKS[clock],
    )  # fmt: skip
    medians = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    ratio = medians["moe"] / medians["dense"]
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(), "dtype": str(dtype).removeprefix("torch."),
        "size": size, "tokens": ids_BT.numel(), "layers": layers, "rounds": rounds, "clock": clock,
        "compiled": compile,
        "milliseconds": {name: round(value, 2) for name, value in medians.items()},
        "ratio": round(ratio, 3), "bar": BARS[device], "met": ratio <= BARS[device],
        "ratio without AdamW": round(
            medians["moe without AdamW"] / medians["dense without AdamW"], 3
        ),
        "loop and grouped apart": apart(moe.decoder, ids_BT),
        "load": moe.balancer.load().record()["layers"],
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=list(BARS))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--size", default="nano", choices=[n for n, c in SIZES.items() if not c.n_experts])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    runtime.set_threads(args.threads)
    found = measure(
        args.device, getattr(torch, args.dtype), args.tokens, args.layers, args.rounds, args.clock, args.size,
        args.compile,
    )
    text = json.dumps(found, indent=2)
    print(text)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(args.out, (text + "\n").encode())


if __name__ == "__main__":
    main()
