"""tensor_parallel.py and processes.py: shares make up the whole, two processes answer as one, and end as one."""

import os
import signal
import subprocess
import sys
import weakref
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed import TCPStore

from m27.infer.processes import from_numbers, to_numbers
from m27.infer.request import RequestError
from m27.infer.runner import Batch
from m27.infer.store import store
from m27.infer.tensor_parallel import check, pack, read_share, unpack
from m27.model import checkpoint
from m27.model.config import SIZES
from m27.model.files import CheckpointError
from tests import tiny

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in the shipped layout, without codecs."""
    return tiny.write_words(tmp_path_factory.mktemp("packed"))


@pytest.fixture(scope="module")
def folders(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same in every layout."""
    stock, blocks = tmp_path_factory.mktemp("stock"), tmp_path_factory.mktemp("blocks")
    checkpoint.save(checkpoint.load(packed), stock)
    store(packed, blocks, "int8")
    return {"packed": packed, "stock": stock, "int8": blocks}


@pytest.mark.parametrize("layout", ["packed", "stock", "int8"])
def test_shares_make_up_the_whole_and_hold_no_more(layout: str, folders: dict[str, Path]) -> None:
    whole = checkpoint.load(folders[layout]).state_dict()
    shares = [
        read_share(folders[layout], rank, 2, torch.float32, CPU).state_dict() for rank in (0, 1)
    ]
    for name, tensor in whole.items():
        first, second = (share[name] for share in shares)
        assert first.untyped_storage().nbytes() == first.numel() * 4, name
        part = name.split(".")[-2]
        if part in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"):
            assert torch.equal(torch.cat((first, second)), tensor)
        elif part in ("o_proj", "down_proj"):
            assert torch.equal(torch.cat((first, second), 1), tensor)
        else:
            assert torch.equal(first, tensor) and torch.equal(second, tensor)


def test_one_whole_matrix_at_a_time_is_in_memory(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, state = checkpoint.open_state(packed)
    given: list[weakref.ref[torch.Tensor]] = []

    class Watched(dict):  # type: ignore[type-arg]
        def __getitem__(self, name: str) -> torch.Tensor:
            assert [at for at, ref in enumerate(given) if ref() is not None] == []
            tensor = state[name]
            if name.split(".")[-2].endswith("_proj"):  # what is not cut is kept
                given.append(weakref.ref(tensor))
            return tensor

    monkeypatch.setattr(checkpoint, "open_state", lambda folder: (config, Watched.fromkeys(state)))
    read_share(packed, 1, 2, torch.float32, CPU)
    assert len(given) == 7


def test_what_cannot_be_cut_is_refused(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"^n_heads 4 cannot be shared by 3 processes$"):
        read_share(packed, 0, 3, torch.float32, CPU)
    with pytest.raises(RequestError, match=r"^n_kv_heads 2 cannot be shared by 4 processes$"):
        check(tiny.CONFIG, 4)
    with pytest.raises(RequestError, match=r"^ffn_dim 47 cannot be shared by 2 processes$"):
        check(replace(tiny.CONFIG, ffn_dim=47), 2)
    with pytest.raises(RequestError, match="experts"):
        check(SIZES["moe"], 2)
    checkpoint.save(tiny.decoder(), tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(
        config.replace('"intermediate_size": 48', '"intermediate_size": 50')
    )
    with pytest.raises(CheckpointError, match=r"gate_proj.*config\.json asks for \[50, 32\]"):
        read_share(tmp_path, 0, 2, torch.float32, CPU)


@pytest.mark.parametrize("length", [1, 3, 40])
def test_a_step_comes_out_as_it_went_in(length: int) -> None:
    rng = np.random.default_rng(length)
    some = [rng.integers(0, 1 << 30, length, dtype=np.int32) for _ in range(3)]
    starts = np.array([0, length - 1, length], dtype=np.int32)
    tables = np.array([[4, 2, -1], [0, -1, -1]], dtype=np.int32)
    there = Batch(*some, starts, tables, np.array([-1, -1], dtype=np.int32))
    back = unpack(pack(there))
    for name in ("ids", "positions", "slots", "starts", "tables", "adapters"):
        assert np.array_equal(getattr(there, name), getattr(back, name)), name
        assert getattr(back, name).dtype == np.int32
    spec = {"folder": "/a ü", "blocks": None, "n": length}
    assert from_numbers(to_numbers(spec)) == spec


@dataclass
class Done:
    """What a process left behind."""

    status: int
    out: str
    err: str


def together(code: str, *arguments: str, world: int = 2) -> list[Done]:
    """Run Python code in processes that find each other as those of `torchrun` do."""
    # As `torchrun` does, whose agent has the store that the processes find each other in.
    agent = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "WORLD_SIZE": str(world)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(agent.port)}
    shared |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, *arguments], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(world)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=180) for process in running]
    finally:
        for process in running:
            process.kill()
    return [Done(p.returncode, *pair) for p, pair in zip(running, said, strict=True)]


EQUAL = """
import sys, torch
from m27 import runtime
from m27.infer.engine import Engine
from m27.infer.respond import EngineError
from m27.infer.runner import RunnerError
from m27.infer.scheduler import Limits
from m27.infer.torch_runner import TorchRunner
from m27.language.processor import Processor
from m27.model import checkpoint
from tests import tiny
from tests.infer import mixed
torch.set_num_threads(1)
Processor.load = lambda folder: tiny.processor()
folder = sys.argv[1]
media = {"media": None, "make_rules": None, "draft": None}
engine = Engine.load(folder, precision="float32", limits=Limits(blocks=60), **media)
print("rank", runtime.ranks()[0])  # the others never come here
alone = Engine(TorchRunner(checkpoint.load(folder), 60), tiny.processor())
asked = mixed.requests(8)
expected = alone.answer(asked)
got = mixed.arriving(engine, asked, seed=2)
assert all(mixed.differences(a, b) == [] for a, b in zip(expected, got, strict=True))
# One of several is cancelled on its way; the others do not mind, and its blocks are free.
numbers = [engine.add(request) for request in asked[:3]]
for _ in range(4):
    engine.step()
engine.cancel(numbers[1])
ends = []
while engine.busy():
    done = [(number, event) for number, event in engine.step() if event["type"] == "done"]
    ends += [(number, event["ids"]) for number, event in done if "index" not in event]
assert numbers[1] not in [number for number, _ in ends] and ends
assert all(list(ids) == list(expected[numbers.index(number)].ids) for number, ids in ends)
assert engine.blocks.used == 0
# What was computed before is found again.
assert engine.chat(asked[0]).usage.cached_tokens > 0
assert mixed.differences(alone.chat(asked[0]), engine.chat(asked[0])) == []
facts, whole = engine.runner.facts(), alone.runner.facts()
assert facts["processes"] == 2 and facts["weight_bytes"] < whole["weight_bytes"]
assert facts["cache_bytes"] * 2 == whole["cache_bytes"]
assert engine.runner.fused is None and engine.runner._graphs is None
# Refused before anybody begins, and the runner stays usable.
try:
    engine.add_adapter("x", mixed.adapter(tiny.CONFIG, "x", 1))
    sys.exit("an adapter was taken")
except RunnerError as error:
    assert "merge" in str(error)
# Another model takes the place of the first.
second = Engine.load(folder, precision="float32", limits=Limits(blocks=60), **media)
assert mixed.differences(expected[1], second.answer(asked[1:2])[0]) == []
try:
    engine.chat(asked[2])
    sys.exit("the first model still runs")
except EngineError as error:
    assert "another model" in str(error)
print("equal")
"""


def test_two_processes_answer_as_one(packed: Path) -> None:
    first, second = together(EQUAL, str(packed))
    assert (first.status, first.out, first.err[-1500:]) == (0, "rank 0\nequal\n", "")
    assert (second.status, second.out, second.err) == (0, "", "")


CHAT = """
import os, signal, sys
from m27.cli import main
from m27.infer import tensor_parallel
from m27.infer.torch_runner import TorchRunner
from m27.model.files import CheckpointError
rank, what = os.environ["RANK"], sys.argv[2]
hidden, read, steps = TorchRunner.hidden, tensor_parallel.read_share, []
def broken(self, step):
    steps.append(step)
    if len(steps) == 3 and what == "fails in " + rank:
        raise ArithmeticError("out of luck")
    if len(steps) == 3 and what == "dies in " + rank:
        os.kill(os.getpid(), signal.SIGKILL)
    if len(steps) == 3 and what == "is told to end":
        os.kill(os.getpid(), signal.SIGTERM)
    return hidden(self, step)
def unread(*arguments):
    if what == "reads nothing in " + rank:
        raise CheckpointError("model.safetensors: not there")
    return read(*arguments)
TorchRunner.hidden, tensor_parallel.read_share = broken, unread
main(["chat", "hello", "--model", sys.argv[1], "--modalities", "text", "--max-tokens", "20",
      "--temperature", "0", "--json", *sys.argv[3:]])
"""


@pytest.mark.parametrize(
    ("what", "lines", "statuses"),
    [
        ("fails in 1", ["m27: process 1 of 2: ArithmeticError: out of luck\n"], (2, 1)),
        ("fails in 0", ["m27: process 0 of 2: ArithmeticError: out of luck\n"], (2, 1)),
        ("dies in 1", ["m27: another process has ended or does not answer\n"], (2, -signal.SIGKILL)),
        ("reads nothing in 1", ["m27: process 1 of 2: model.safetensors: not there\n"], (2, 0)),
        ("reads nothing in 0", ["m27: model.safetensors: not there\n"], (2, 0)),
        ("is told to end", [], (-signal.SIGTERM, 0)),
    ],
)
def test_all_end_with_one_clear_line(
    what: str, lines: list[str], statuses: tuple[int, int], packed: Path
) -> None:
    both = together(CHAT, str(packed), what)
    assert sorted(done.err for done in both if done.err) == lines
    assert tuple(done.status for done in both) == statuses
    assert [done.out for done in both] == ["", ""]


def test_what_one_process_alone_can_do_is_refused(packed: Path) -> None:
    first, second = together(CHAT, str(packed), "", "--precision", "int8")
    assert first.err == "m27: precision int8 needs the CPU backend, which runs in one process\n"
    assert (first.status, second.status, second.err) == (2, 0, "")
    *first, last = together(CHAT, str(packed), "", world=3)
    assert first[0].err == "m27: n_heads 4 cannot be shared by 3 processes\n"
    assert [done.status for done in (*first, last)] == [2, 0, 0]
