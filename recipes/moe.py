"""Experts in training, a dense model released: a small run that shows each step and what it is worth.

    python -m recipes.moe --run runs/moe --out out/moe.json

A small Qwen3 decoder is trained on text, pictures and sounds (`parent`), then continued for the same
tokens as it is (`dense`) and upcycled, with as many active parameters (`moe`). The mixture goes back to
a dense model by merging (`merged`) and by distillation from there (`distilled`); beside it `dense` is
trained on for the tokens that distillation took (`longer`). All are measured on documents that no run
saw, with intervals from a bootstrap over documents. On one core it takes some forty minutes; killed, it
goes on where it stood. It is a demonstration of the mechanism, not a recipe for a good model.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m27.data.loader import MEDIA, Batch, Loader
from m27.data.mixture import Corpus, Draw, Mixture, State
from m27.data.pack import Packer
from m27.model.config import NANO_VOCAB, Config, size_row
from m27.model.decoder import Decoder
from m27.model.files import write_json
from m27.model.upcycle import Upcycling, merge, upcycle
from m27.train.distil import FitConfig, Stream, fit, target_losses
from m27.train.optim import OptimConfig
from m27.train.routing import Balancer, RouterConfig, token_media

SHARDS = Path(".cache/shards/whole")
MODEL = Config(
    "qwen3", vocab_size=NANO_VOCAB, dim=128, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=32,
    ffn_dim=512, norm_eps=1e-6, tied=True, max_len=2048,
)  # fmt: skip


UPCYCLINGS = {
    "shared": Upcycling(8, 1, shared_dim=MODEL.ffn_dim // 2),
    "pieces": Upcycling(8, 2, split=2),
}


@dataclass(frozen=True)
class MoeConfig:
    """The run. Steps are of `rows` rows of `row` tokens. `upcycling` is one of `UPCYCLINGS`, which keep the
    number of an MLP's active inner units: half of them a shared expert and one of 8 copies of the other half
    ("shared"), or two of 8 experts of half the width ("pieces"). The last `held` documents of each task
    are not trained on, and the last `measured` of them are measured on."""

    model: Config = MODEL
    upcycling: Upcycling = UPCYCLINGS["shared"]
    router: RouterConfig = field(default_factory=lambda: RouterConfig(bias_step=0.03, balance_decay=0.05))
    tasks: Mapping[str, float] = field(
        default_factory=lambda: {
            "story": 0.2, "story_count": 0.2, "place_pictures": 0.15, "draw": 0.15,
            "sound_for_text": 0.15, "speak": 0.15,
        }
    )  # fmt: skip
    held: int = 150
    measured: int = 100
    rows: int = 4
    row: int = 1024
    parent_steps: int = 350
    branch_steps: int = 220
    distil_steps: int = 40
    warmup_steps: int = 18
    lr: float = 3e-3
    seed: int = 0


class Unseen(Mixture):
    """A mixture that passes over documents that are held out."""

    def __init__(self, corpus: Corpus, held: Sequence[int], *args: Any, **kwargs: Any) -> None:
        self.held = frozenset(held)
        super().__init__(corpus, *args, **kwargs)

    def draw(self) -> Draw:
        """The next document that is not held out."""
        while (found := super().draw()).document in self.held:
            pass
        return found


def held_out(corpus: Corpus, tasks: Sequence[str], count: int) -> list[int]:
    """The last `count` documents of each task, but at most a tenth: of a source's end, so that what
    was made from one picture or one page does not stand on both sides."""
    out: list[int] = []
    for task in tasks:
        members = np.flatnonzero(corpus.task_of == corpus.tasks.index(task))
        out += members[-min(count, max(1, len(members) // 10)) :].tolist()
    return out


def occurring(corpus: Corpus, tasks: Sequence[str]) -> list[Tensor]:
    """By medium, the ids that occur as targets in these tasks: what a target is scored among. Text and
    control ids are scored together."""
    seen = torch.zeros(corpus.meta["vocabulary"]["size"], dtype=torch.bool)
    for task in tasks:
        for number in np.flatnonzero(corpus.task_of == corpus.tasks.index(task)):
            document, loss = corpus.document(int(number))
            seen[torch.from_numpy(document[1:][loss[1:]])] = True
    ids = seen.nonzero().flatten()
    media = token_media(ids, corpus.meta["vocabulary"])
    words = ids[media < MEDIA.index("image")]
    return [words, words, *(ids[media == MEDIA.index(m)] for m in ("image", "audio"))]


def report_losses(
    models: Mapping[str, Decoder], corpus: Corpus, held: Sequence[int], config: MoeConfig,
    candidates: Sequence[Tensor],
) -> tuple[dict[str, NDArray[np.float64]], dict[str, Any]]:  # fmt: skip
    """Sums of losses and counts of targets of each held-out document, [documents, media, 2] a model, and
    the load of the experts over them, a record a model that has any."""
    loader = Loader(Packer(Mixture(corpus, dict(config.tasks)), config.row))
    rows: list[list[Draw]] = [[]]
    for number in held:
        draw = Draw(number, int(corpus.lengths[number]))
        if sum(d.length for d in rows[-1]) + draw.length > config.row:
            rows.append([])
        rows[-1].append(draw)
    sums, loads = {}, {}
    for name, model in models.items():
        table = np.zeros((len(held), len(MEDIA), 2))
        counter = counting(model, corpus) if model.config.n_experts else None
        first = 0
        for row in rows:
            batch = loader.collate([row])
            losses = target_losses(model, batch, candidates)
            document = batch.documents_BT.flatten()[batch.places_M] + first
            values = torch.stack((losses, torch.ones_like(losses)), 1).numpy()
            np.add.at(table, (document.numpy(), batch.media_M.numpy()), values)
            if counter is not None:
                _count(model, batch, counter)
            first += len(row)
        sums[name] = table
        if counter is not None:
            loads[name] = counter.load().record()
    return sums, loads


def counting(model: Decoder, corpus: Corpus) -> Balancer:
    """Who counts the choices of `model` and moves nothing."""
    return Balancer(model, RouterConfig(bias_step=0), corpus.meta["vocabulary"])


@torch.no_grad()
def _count(model: Decoder, batch: Batch, counter: Balancer) -> None:
    routing: list[Tensor] = []
    model.hidden(model.embed(batch.ids_BT), batch.positions_BT, batch.documents_BT, routing=routing)
    counter(routing, batch)
    counter.update()


def interval(
    sums: NDArray[np.float64], other: NDArray[np.float64] | None = None, draws: int = 2000
) -> list[float]:
    """Mean loss a target of [documents, 2] sums, or how far it lies above `other`'s on the same
    documents, with a 95 % interval from a bootstrap over documents."""
    rng = np.random.default_rng(0)
    counts = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=draws)
    counts = np.vstack((np.ones(len(sums), dtype=counts.dtype), counts))

    def mean(table: NDArray[np.float64]) -> NDArray[np.float64]:
        drawn: NDArray[np.float64] = counts @ table
        return drawn[:, 0] / np.maximum(drawn[:, 1], 1)

    values = mean(sums) if other is None else mean(sums) - mean(other)
    low, high = np.quantile(values[1:], (0.025, 0.975))
    return [round(float(v), 4) for v in (values[0], low, high)]


def table(sums: Mapping[str, NDArray[np.float64]], against: str) -> dict[str, Any]:
    """Each model's held-out loss, in all and by medium, and its difference to `against`."""
    out: dict[str, Any] = {}
    for name, part in sums.items():
        out[name] = {}
        picks = {"all": slice(None), **{m: slice(i, i + 1) for i, m in enumerate(MEDIA)}}
        for medium, pick in picks.items():
            mine, theirs = (x[:, pick].sum(1) for x in (part, sums[against]))
            kept = mine[:, 1] > 0
            if kept.any():
                row = {"loss": interval(mine[kept])}
                if name != against:
                    row["minus_" + against] = interval(mine[kept], theirs[kept])
                out[name][medium] = row
    return out


def execute(config: MoeConfig, run: Path, out: Path, shards: Path = SHARDS) -> dict[str, Any]:
    """All stages; what is finished under `run` is read and not run again. Returns what `out` gets."""
    corpus = Corpus(sorted(path for path in shards.iterdir() if path.is_dir()))
    held = held_out(corpus, list(config.tasks), config.held)
    candidates = occurring(corpus, list(config.tasks))
    vocabulary = corpus.meta["vocabulary"]

    def stream(seed: int) -> Any:
        def begin(state: State | None) -> Stream:
            kept = None if state is None else state["mixture"]
            mixture = Unseen(corpus, held, dict(config.tasks), seed=seed, state=kept)
            return iter(Loader(Packer(mixture, config.row, state=state), rows=config.rows))

        return begin

    def trained(
        name: str, model: Decoder, steps: int, seed: int, decay: float, teacher: Any = None
    ) -> Decoder:
        warmup = min(1.0, config.warmup_steps / steps)
        optim = OptimConfig(lr=config.lr, beta2=0.95, weight_decay=0.1, decay=decay, warmup=warmup)
        settings = FitConfig(steps=steps, optim=optim, router=config.router)
        fit(
            model, stream(seed), settings, run / name, vocabulary, teacher, candidates,
            say=lambda line: print(name, line, flush=True),
        )  # fmt: skip
        return model

    torch.manual_seed(config.seed)
    parent = trained("parent", Decoder(config.model), config.parent_steps, 1, 0.0)
    # The same documents in the same order for both: what differs is the model alone.
    dense = trained("dense", copy.deepcopy(parent), config.branch_steps, 2, 0.3)
    begun = copy.deepcopy(upcycle(parent, config.upcycling))
    experts = trained("moe", begun, config.branch_steps, 2, 0.3)
    load_LE = _training_load(experts, stream(3)(None), corpus, 8)
    merged = merge(experts, config.upcycling.split, load_LE)
    measured = held_out(corpus, list(config.tasks), config.measured)
    sums: dict[str, NDArray[np.float64]] = {}
    result: dict[str, Any] = {
        "config": asdict(config), "held_documents": len(measured), "sizes": {}, "load_held_out": {},
    }  # fmt: skip

    def measure(models: Mapping[str, Decoder]) -> None:
        """Measure some more models, and write what is known by now."""
        found, loads = report_losses(models, corpus, measured, config, candidates)
        sums.update(found)
        result["load_held_out"] |= loads
        for name, model in models.items():
            row = size_row(name, model.config)
            result["sizes"][name] = {"parameters": row.parameters, "active": row.active_parameters}
        result["against_dense"] = table(sums, "dense")
        if "longer" in sums:
            pair = {name: sums[name] for name in ("distilled", "longer")}
            result["distilled_against_longer"] = table(pair, "longer")
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, result)

    measure({"parent": parent, "dense": dense, "moe": experts, "merged": merged})
    distilled = trained("distilled", copy.deepcopy(merged), config.distil_steps, 4, 0.5, experts)
    longer = trained("longer", copy.deepcopy(dense), config.distil_steps, 4, 0.5)
    measure({"distilled": distilled, "longer": longer})
    return result


def _training_load(
    model: Decoder, batches: Iterator[tuple[list[Batch], State]], corpus: Corpus, steps: int
) -> Tensor:
    """How often each expert is chosen, [L, E], over some steps of the training stream."""
    counter = counting(model, corpus)
    for _ in range(steps):
        for batch in next(batches)[0]:
            _count(model, batch, counter)
    return counter.load().counts_LEC.sum(-1)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/moe"))
    parser.add_argument("--out", type=Path, default=Path("out/moe.json"))
    parser.add_argument("--shards", type=Path, default=SHARDS)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on all steps")
    parser.add_argument("--upcycling", choices=sorted(UPCYCLINGS), default="shared")
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
    result = execute(config, args.run, args.out, args.shards)
    print(json.dumps({k: v for k, v in result.items() if k != "config"}, indent=1))


if __name__ == "__main__":
    main()
