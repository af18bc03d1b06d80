"""The contenders of `benchmarks.train`, each in a process of its own that does steps when it is told to.

A child gets its name and the task, makes its model from the same seed, goes through two steps (compilers compile
then), and says so in a line of JSON. Each further line it reads is a number of steps; it answers with their
seconds and losses. At the end of its input it says how much memory it ever held.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# name -> how Trainer is set; "m27" and "peak" are ours.
TRAINERS: dict[str, dict[str, Any]] = {
    "Trainer": {},
    "Trainer compiled": {"torch_compile": True, "max_grad_norm": 0.0},
    "Trainer compiled bf16": {"torch_compile": True, "bf16": True, "max_grad_norm": 0.0},
}
ON_GPU: dict[str, dict[str, Any]] = {
    "Trainer bf16": {"bf16": True},  # what nearly everybody sets there
    "Trainer compiled bf16": TRAINERS["Trainer compiled bf16"],
}
WARM = 2
RATE = 5e-5


@dataclass(frozen=True)
class Task:
    """What all train: `kind` "full" or "lora", `size` of model, `rows` of `row` tokens a step."""

    kind: str
    size: str = "nano"
    rows: int = 2
    row: int = 512
    threads: int = 2
    compile: bool = True  # ours
    device: str = "cpu"


def ids_of(task: Task, step: int) -> Tensor:
    """The ids [rows, row] of a step, the same for all."""
    draw = torch.Generator().manual_seed(step)
    from m27.model.config import SIZES

    most = min(49_152, SIZES[task.size].vocab_size)
    return torch.randint(0, most, (task.rows, task.row), generator=draw)


def decoder(task: Task) -> Any:
    """The model that all begin from, on the task's device."""
    from m27.model.config import SIZES
    from m27.model.decoder import Decoder

    torch.manual_seed(0)
    with torch.device(task.device):
        return Decoder(SIZES[task.size])


def ours(task: Task) -> Iterator[tuple[float, float]]:
    """Seconds and loss of each step of our loop, batch and plan included."""
    from m27.data.loader import Batch
    from m27.data.mixture import Corpus
    from m27.train.loop import Trainer, prepare_machine
    from m27.train.lora import LoraConfig
    from m27.train.optim import OptimConfig
    from m27.train.rows import FreeRows, FrozenRows
    from m27.train.settings import DataConfig, TrainConfig

    full = task.kind == "full"
    config = TrainConfig(
        "benchmark", steps=10**6, threads=task.threads, compile=task.compile, device=task.device,
        body="full" if full else "adapters", rows="free" if full else "frozen", lora=LoraConfig(rank=16, alpha=16.0),
        optim=OptimConfig(lr=RATE, beta2=0.999, schedule="constant", warmup=0.0, clip=1.0),
        data=DataConfig(row=task.row, rows=task.rows, accumulate=1, pool=2),
    )  # fmt: skip
    model = decoder(task)
    _, dtype = prepare_machine(config)
    rows = FreeRows(model, dtype) if full else FrozenRows(model.output_weight, dtype)
    with tempfile.TemporaryDirectory() as folder:
        corpus = Corpus([_shard(Path(folder) / "shard", task, len(model.output_weight))])
        trainer = Trainer(config, model, rows, corpus, Path(folder) / "run", quiet=True)
        step = 0
        while True:
            begin = time.perf_counter()
            ids = ids_of(task, step)
            count = ids.numel()
            at = torch.arange(count).view(ids.shape)
            places, targets = at[:, :-1].flatten(), ids[:, 1:].flatten()
            none = torch.zeros_like(targets)
            batch = Batch(
                ids, at // task.row, at % task.row, places, targets, torch.ones(len(targets)), none, none
            )
            record = trainer._train_step([(batch, trainer.scoring.plan(batch), trainer.way.prepare(batch))])
            yield time.perf_counter() - begin, float(str(record["loss"]))
            step += 1


def _shard(folder: Path, task: Task, vocabulary: int) -> Path:
    """A shard for form's sake: the loop opens one, steps here bring their own ids."""
    import numpy as np

    folder.mkdir()
    length = 2 * task.row
    np.zeros(length, np.uint32).tofile(folder / "tokens.bin")
    np.ones(length, np.uint8).tofile(folder / "loss.bin")
    np.save(folder / "index.npy", np.array([0, length], np.int64))
    np.save(folder / "tasks.npy", np.zeros(1, np.uint16))
    end = [vocabulary - 1, vocabulary]
    meta = {
        "format": "m27-shard-1", "tasks": ["text"], "documents": 1, "tokens": length,
        "vocabulary": {"size": vocabulary, "text": vocabulary - 8, "image": end, "audio": end, "turn_end": 2},
        "vocabulary_hash": "0", "unconditional": [1], "image_codec": "a", "audio_codec": "b",
    }  # fmt: skip
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def trainer(task: Task, settings: dict[str, Any], turn: Any) -> None:
    """`transformers.Trainer`, which calls `turn` with seconds and loss after each step, and waits in it."""
    import transformers
    from torch.utils.data import Dataset

    source = decoder(task)
    stock = source.config.to_hf()
    config = transformers.AutoConfig.for_model(stock.pop("model_type"), **stock)
    with torch.device(task.device):
        model: Any = transformers.AutoModelForCausalLM.from_config(config)
    model.load_state_dict(source.state_dict(), strict=False)
    model.tie_weights()
    del source
    if task.kind == "lora":
        import peft

        if settings.get("bf16"):
            model = model.to(torch.bfloat16)  # as adapters are usually trained
        model = peft.get_peft_model(
            model, peft.LoraConfig(r=16, lora_alpha=16, target_modules="all-linear")
        )

    class Rows(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 10**6

        def __getitem__(self, index: int) -> dict[str, Tensor]:
            row = ids_of(task, index // task.rows)[index % task.rows]
            return {"input_ids": row, "labels": row, "position_ids": torch.arange(task.row)}

    class Ordered(transformers.Trainer):
        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            self.last = super().training_step(*args, **kwargs)
            return self.last

    class Turns(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.begin = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            turn(time.perf_counter() - self.begin, float(loop.last))

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder, per_device_train_batch_size=task.rows, max_steps=10**6, use_cpu=task.device == "cpu",
            report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, learning_rate=RATE,
            lr_scheduler_type="constant", **settings,
        )  # fmt: skip
        loop = Ordered(model=model, args=arguments, train_dataset=Rows(), callbacks=[Turns()])
        loop.train()


def peak(device: str = "cpu", rounds: int = 3) -> dict[str, float]:
    """GFLOP/s of products of 2048 x 2048 by torch in bfloat16 and float32, and by our own where they are used; on a
    GPU of 8192 x 8192 by torch in bfloat16, and what its maker states."""
    from m27.train import flops
    from m27.train.products import HalfProducts, choose

    found = {}
    if device != "cpu":
        size, where = 8192, torch.device(device)
        a, b = (torch.randn(size, size, device=where, dtype=torch.bfloat16) for _ in range(2))

        def product() -> None:
            torch.mm(a, b.t())
            torch.cuda.synchronize(where)

        found["bfloat16"] = _rate(product, size, 4 * rounds)
        if (stated := flops.peak(where, torch.bfloat16)) is not None:
            found["stated"] = stated / 1e9
        return found
    size = 2048
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
        found[name] = _rate(lambda a=a, b=b: a @ b.t(), size, rounds)
    products = choose(torch.bfloat16, torch.device("cpu"), True)
    if isinstance(products, HalfProducts):
        x, w = torch.randn(size, size).bfloat16(), torch.randn(size, size)
        found[f"{products.half.kind}, our own"] = _rate(lambda: products.linear(x, w), size, rounds)
    return found


def _rate(run: Any, size: int, rounds: int) -> float:
    seconds = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return 2 * size**3 / min(seconds) / 1e9


def main() -> None:
    """One contender: `python -m benchmarks.train_sides NAME TASK`, the task as JSON."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print is no answer
    name, task = sys.argv[1], Task(**json.loads(sys.argv[2]))
    torch.set_num_threads(task.threads)

    def say(**answer: Any) -> None:
        out.write(json.dumps(answer) + "\n")
        out.flush()

    if name == "peak":
        say(ready=True)
        for _ in sys.stdin:
            say(**peak(task.device))
        return
    state: dict[str, Any] = {"left": WARM, "seconds": [], "losses": [], "warm": True}

    def turn(seconds: float, loss: float) -> None:
        state["seconds"].append(seconds)
        state["losses"].append(loss)
        state["left"] -= 1
        if state["left"]:
            return
        say(seconds=state["seconds"], losses=state["losses"], ready=state["warm"])
        line = sys.stdin.readline()
        if not line.strip():
            say(peak_mb=round(_peak_bytes(task.device) / 1e6))
            out.close()
            os._exit(0)
        state.update(left=int(line), seconds=[], losses=[], warm=False)

    if name == "m27":
        for seconds, loss in ours(task):
            turn(seconds, loss)
    else:
        trainer(task, {**TRAINERS, **ON_GPU}[name], turn)


def _peak_bytes(device: str) -> int:
    """The most that this process ever held: resident, or of the GPU's memory as torch set it aside."""
    if device != "cpu":
        return int(torch.cuda.max_memory_reserved(device))
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1000
    return 0


if __name__ == "__main__":
    main()
