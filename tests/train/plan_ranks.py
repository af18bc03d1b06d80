"""What tests/train/test_plan_ranks.py runs in each of two ranks: a cut decoder's steps, their tensors counted."""

import gc
import json
import os
import sys
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import plan as check
from benchmarks.live import Live
from benchmarks.plan import Case
from m27.model.config import Config
from m27.model.decoder import Decoder
from m27.train import parallel
from m27.train.optim import OptimConfig, Optimiser
from m27.train.rows import FreeRows
from m27.train.settings import ParallelConfig

MODEL = Config(
    "llama", vocab_size=512, dim=128, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=32, ffn_dim=384
)
CASE = Case("cut over two", MODEL, "whole", recompute=True, batch=2, length=128)


def steps(case: Case, shard: int) -> dict[str, int]:
    """Bytes of this rank's parts, and of all live tensors at the second step's peak."""
    torch.manual_seed(0)
    made = parallel.Parallel(ParallelConfig(shard=shard, replicate=2 // shard), torch.device("cpu"), True)
    decoder = Decoder(case.model, case.recompute)
    way = made.whole_pass(decoder, FreeRows(decoder, torch.float32))
    assert way is not None
    parameters = made.local(dict(decoder.named_parameters()))
    optimiser = Optimiser(parameters, OptimConfig(), made)
    batch, plan = check.batch(case)

    def step() -> None:
        made.last(True)
        way.run(batch, plan, 2 * float(batch.weights_M.sum()))
        made.collect(parameters)
        optimiser.step(0.5)

    held = [x for x in gc.get_objects() if type(x) in (Tensor, torch.nn.Parameter)]
    with Live([*held, *parameters.values()], resized=True) as live:
        del held
        step()
        live.restart()
        step()
    return {
        "weights": sum(p.nbytes for p in parameters.values()),
        "gradients": sum(p.grad.nbytes for p in parameters.values() if p.grad is not None),
        "optimiser": sum(t.nbytes for t in optimiser.state().values()),
        "peak": live.peak,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = {str(shard): steps(CASE, shard) for shard in (2, 1)}
    Path(sys.argv[1], f"{os.environ['RANK']}.json").write_text(json.dumps(found))
    parallel.leave()
