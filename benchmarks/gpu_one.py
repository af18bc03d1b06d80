"""One request on a GPU: how near the decoding of the 1.7-billion shape comes to the memory's limit.

The limit: the bytes of the weights, each once, and of the cache at the middle of the answer, over the
bandwidth that a large copy (read and written) or a large sum reaches on the same device.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu_parts import (
    Ids,
    Report,
    answers,
    facts,
    leading,
    made_model,
    made_processor,
    made_requests,
    median,
    one_row,
    prompt_of,
    timed,
)
from m27.infer.cuda.graphs import FusedGraphs
from m27.infer.cuda.ops import Ops, PlainOps
from m27.infer.engine import Engine
from m27.infer.scheduler import Limits
from m27.infer.torch_runner import TorchRunner
from m27.model.decoder import Decoder

# Settings of the kernels that are tried, from the safest on: numbers of a matrix and warps for each
# program, parts of what is seen (0: by the rule), launched early.
TRIED = (
    (8192, 4, 0, False), (8192, 4, 0, True), (16384, 8, 0, True), (8192, 8, 0, True),
    (16384, 4, 0, True), (4096, 4, 0, True),
)  # fmt: skip
PARTS = (1, 8, 2)


@dataclass
class Lengths:
    """Ids of the prompt and of the answer, rounds, bytes that the bandwidth is measured on, and the
    seconds after which no further setting is tried."""

    prompt: int = 512
    out: int = 128
    rounds: int = 5
    copied: int = 2 << 30
    enough: float = 27.0


def bandwidth(device: torch.device, size: int) -> dict[str, float]:
    """Bytes a second: of a copy, read and written, and of a sum."""
    x = torch.randn(size // 4, device=device)
    y = torch.empty_like(x)
    out = {}
    works: dict[str, tuple[int, Callable[[], Any]]] = {
        "copy": (2, lambda: [y.copy_(x) for _ in range(4)]),
        "sum": (1, lambda: [x.sum() for _ in range(4)]),
    }  # fmt: skip
    for name, (times, work) in works.items():
        seconds = [timed(work, device) for _ in range(9)][2:]
        out[name] = 4 * times * x.numel() * 4 / median(seconds)
    return out


class One:
    """The part: a model, its runner, a prompt that is computed, and the ways to go on from it."""

    def __init__(self, device: torch.device, tiny: bool, report: Report, lengths: Lengths) -> None:
        self.device, self.report, self.lengths = device, report, lengths
        self.processor = made_processor(tiny)
        self.config, self.model = made_model("1b7", self.processor.vocabulary, device, tiny)
        size = 4 * (lengths.prompt + lengths.out) // 16 + 16
        self.runner = TorchRunner(self.model, blocks=size)
        if device.type != "cuda":
            self.runner.fused = FusedGraphs(self.runner, PlainOps(), capture=False)
        order = torch.randperm(size, generator=torch.Generator().manual_seed(1)).tolist()
        self.table = order[: (lengths.prompt + lengths.out) // 16 + 2]
        (request,) = made_requests(self.processor, 1, lengths.prompt, lengths.out, seed=3)
        self.prompt = prompt_of(self.processor, request)
        self.first = int(self.runner.run(self.row(self.prompt, 0))[0][0])
        self.bytes = 0
        self.limit = 0.0

    def row(self, ids: Ids, held: int) -> Any:
        """A step of the sequence."""
        size = self.runner.block_size
        return one_row(ids, held, self.table, size, self.config.vocab_size)

    def by_runner(self, count: int) -> Ids:
        """Ids by one call of the runner each."""
        ids = [self.first]
        for number in range(count):
            found = self.runner.run(self.row(ids[-1:], len(self.prompt) + number))
            ids.append(int(found[0][0]))
        return ids[1:]

    def by_chain(self, fused: FusedGraphs, count: int) -> Ids:
        """Ids by steps that feed themselves."""
        out = fused.chain(self.row([self.first], len(self.prompt)), count)
        if out is None:
            raise RuntimeError("the fused step is not trusted; see above")
        return [int(id) for id in out[:, 0].tolist()]

    def figure(self, name: str, work: Callable[[], Ids], count: int, rounds: int) -> Ids:
        """Measure a way to decode, and tell its rate and share of the limit."""
        ids = work()
        seconds = [timed(work, self.device) for _ in range(rounds)]
        token = median(seconds) / count
        self.report.tell(name, {
            "tokens_per_second": round(1 / token, 1), "ms_per_token": round(1e3 * token, 4),
            "percent_of_limit": round(100 * self.limit / token, 1), "rounds": rounds,
            "spread_ms": [round(1e3 * s / count, 4) for s in (min(seconds), max(seconds))],
        })  # fmt: skip
        return ids


def one(device: torch.device, tiny: bool, report: Report) -> None:
    """Measure everything, the surest first."""
    lengths = Lengths(24, 8, 2, 1 << 20) if tiny else Lengths()
    report.tell("where", facts(device))
    rates = bandwidth(device, lengths.copied)
    report.tell("bandwidth_GB_s", {name: round(rate / 1e9, 1) for name, rate in rates.items()})
    with torch.inference_mode():
        part = One(device, tiny, report, lengths)
        config = part.config
        weights = sum(p.numel() * p.element_size() for p in part.model.parameters())
        token = config.n_layers * 2 * config.n_kv_heads * config.head_dim * 2
        cache = token * (lengths.prompt + lengths.out // 2)
        part.bytes, part.limit = weights + cache, (weights + cache) / max(rates.values())
        report.tell("shape", {
            "size": "1b7", "prompt": len(part.prompt), "out": lengths.out, "dtype": "bfloat16",
            "weight_bytes": weights, "cache_bytes_read_at_the_middle": cache,
            "limit_ms_per_token": round(1e3 * part.limit, 4),
            "limit_tokens_per_second": round(1 / part.limit, 1),
        })  # fmt: skip
        for step in (_plain, _check, _settings, _engine, _others):
            try:
                step(part)
            except Exception as error:  # one figure must not take the others with it
                report.tell(f"failed{step.__name__}", f"{type(error).__name__}: {error}"[:500])
                traceback.print_exc()


def _plain(part: One) -> None:
    """The runner as it is, and its step when it feeds itself."""
    out, rounds, fused = part.lengths.out, part.lengths.rounds, part.runner.fused
    part.figure("runner", lambda: part.by_runner(out), out, rounds)
    if fused is None:
        raise RuntimeError("there is no fused step here")
    part.report.tell("difference_of_states", list(fused.differences.values()))
    part.figure("step", lambda: part.by_chain(fused, out), out, rounds)


def _settings(part: One) -> None:
    """The step with every setting of its kernels, and then the runner and the step with the best."""
    lengths, report, runner = part.lengths, part.report, part.runner
    out, rounds, best = lengths.out, lengths.rounds, runner.fused
    if part.device.type != "cuda" or best is None:
        return
    ids = part.by_chain(best, out)
    chosen, found = TRIED[0], _rate(part, best)
    tried: dict[str, Any] = {str(chosen): round(1e3 * found, 4)}
    for number in range(1, len(TRIED) + len(PARTS)):
        if report.elapsed > lengths.enough:
            break
        setting = TRIED[number] if number < len(TRIED) else None
        if setting is None:
            setting = (*chosen[:2], PARTS[number - len(TRIED)], chosen[3])
        try:
            graphs = FusedGraphs(runner, _ops(setting))
            same = part.by_chain(graphs, out)
            token = _rate(part, graphs)
        except Exception as error:
            tried[str(setting)] = f"{type(error).__name__}: {error}"[:200]
            traceback.print_exc()
            continue
        tried[str(setting)] = [round(1e3 * token, 4), leading(ids, same)]
        if setting[:3] == TRIED[0][:3] and same != ids:
            tried[str(setting)] += ["not the same ids: not taken"]
        elif token < found:
            found, best, chosen = token, graphs, setting
        report.tell("settings (tile, warps, parts, early): ms, ids as the first", tried)
    runner.fused = best
    report.tell("setting", chosen)
    taken = best
    part.figure("step_best", lambda: part.by_chain(taken, out), out, rounds)
    part.figure("runner_best", lambda: part.by_runner(out), out, rounds)


def _ops(setting: tuple[int, int, int, bool]) -> Ops:
    from m27.infer.cuda.kernels import TritonOps

    return TritonOps(*setting)


def _rate(part: One, graphs: FusedGraphs) -> float:
    """Seconds a token, in short."""
    count = part.lengths.out // 2
    return (
        median([timed(lambda: part.by_chain(graphs, count), part.device) for _ in range(3)]) / count
    )


def _check(part: One) -> None:
    """The answer, by the decoder itself in float32 over all of its ids at once."""
    if part.runner.fused is None:
        return
    out, start = part.lengths.out, len(part.prompt)
    ids = [part.first, *part.by_chain(part.runner.fused, out)]
    state = {name: tensor.float() for name, tensor in part.model.state_dict().items()}
    with torch.device(part.device):
        wide = Decoder(part.config).eval()
    wide.load_state_dict(state, assign=True)
    every = torch.tensor([[*part.prompt, *ids]], device=part.device)
    wanted = wide(every[:, :-1])[0, start - 1 :].float()
    near = part.model(every[:, :-1])[0, start - 1 :].float()
    chosen = wanted.gather(1, every[0, start:, None])[:, 0]
    top = wanted.max(-1).values
    part.report.tell("against_float32", {
        "ids_that_are_its_best": int((chosen == top).sum()), "of": len(ids),
        "its_best_is_ahead_of_them_by_at_most": round(float((top - chosen).max()), 4),
        "spread_of_its_logits": round(float(wanted[:, wanted[0] != 0].std()), 4),
        "error_of_logits_of_the_decoder_in_bfloat16":
            round(float((near - wanted).norm() / wanted.norm()), 5),
    })  # fmt: skip


def _engine(part: One) -> None:
    """A whole request through the engine: grammar, sampler and events, and the prompt apart."""
    lengths = part.lengths
    engine = Engine(part.runner, part.processor, Limits(reuse=False))
    (whole,) = made_requests(part.processor, 1, lengths.prompt, lengths.out, seed=3)
    (short,) = made_requests(part.processor, 1, lengths.prompt, 1, seed=3)
    answers(engine, [whole], lengths.out)
    pairs = [
        (answers(engine, [whole], lengths.out)[1], answers(engine, [short], 1)[1])
        for _ in range(lengths.rounds)
    ]
    token = median([a - b for a, b in pairs]) / (lengths.out - 1)
    part.report.tell("engine", {
        "tokens_per_second": round(1 / token, 1), "ms_per_token": round(1e3 * token, 4),
        "percent_of_limit": round(100 * part.limit / token, 1), "rounds": lengths.rounds,
        "ms_to_first_id": round(1e3 * median([b for _, b in pairs]), 2),
    })  # fmt: skip


def _others(part: One) -> None:
    """What the fused step is for: the decoder's own modules, in a graph and without one."""
    runner, few = part.runner, max(4, part.lengths.out // 8)
    kept = runner.fused, runner._graphs
    try:
        runner.fused = None
        if runner._graphs is not None:
            part.figure("modules_in_a_graph", lambda: part.by_runner(few), few, 3)
        runner._graphs = None
        part.figure("modules", lambda: part.by_runner(few), few, 2)
    finally:
        runner.fused, runner._graphs = kept
