"""The planner: its memory against counted tensors, its counts against the decoder, its sense against nonsense."""

import dataclasses

import pytest
import torch

from benchmarks import plan as check
from benchmarks.live import Live, saved_bytes
from benchmarks.plan import Case
from m27.model.config import SIZES, Config, size_row
from m27.model.decoder import Decoder
from m27.train.plan import (
    Ask,
    PlanError,
    Row,
    command,
    largest,
    layouts,
    memory,
    plan,
    recommended,
)
from m27.train.plan_cost import Layout, Machine, forward_flops, traffic
from m27.train.plan_memory import local, saved_per_token, seen
from m27.train.plan_shape import Arithmetic, Micro, adapter_numbers, counts

SMALL = Config(
    "llama", vocab_size=1024, dim=96, n_layers=3, n_heads=6, n_kv_heads=3, head_dim=16, ffn_dim=256, tied=True
)
QWEN = dataclasses.replace(SMALL, family="qwen3", tied=False)
CASES = [
    Case("full", SMALL, "whole", length=256),
    Case("full", SMALL, "whole", length=256, recompute=True),
    Case("full, Qwen3", QWEN, "whole", length=256, documents=1),
    Case("maps", SMALL, "plain", rows="maps", length=256),
    Case("LoRA", SMALL, "plain", "adapters", "frozen", length=256),
    Case("LoRA", SMALL, "plain", "adapters", "maps", length=256, recompute=True),
    Case("full, fused", SMALL, "fused", length=256),
    Case("full, fused, maps", SMALL, "fused", rows="maps", length=256),
    Case("LoRA, fused", SMALL, "fused", "adapters", "maps", length=256),
]
NARROW = [
    Case("full, fused", SMALL, "fused", length=256, dtype="bfloat16"),
    Case("full", SMALL, "whole", length=256, dtype="bfloat16"),
    Case("full", SMALL, "whole", length=256, dtype="bfloat16", recompute=True),
    Case("LoRA", SMALL, "plain", "adapters", "frozen", length=256, dtype="bfloat16"),
]


@pytest.mark.parametrize("case", CASES + NARROW, ids=lambda c: f"{c.name} {c.path} {c.dtype} {c.recompute}")
def test_memory_is_that_of_counted_tensors(case):
    torch.set_num_threads(1)
    counted, planned = check.count(case), check.planned(case)
    assert planned.total == pytest.approx(counted["peak"], rel=0.12)
    assert planned.optimiser == pytest.approx(counted["optimiser"], rel=0.01)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("trained", [False, True])
def test_what_a_block_keeps_is_what_autograd_saves(family, trained):
    """To the byte, but for the angles and the last norm, which blocks share: two depths, subtracted."""
    config = dataclasses.replace(SMALL, family=family)
    documents = (torch.arange(64) // 32).expand(2, 64)
    found = []
    for layers in (1, 2):
        decoder = Decoder(dataclasses.replace(config, n_layers=layers)).requires_grad_(trained)
        x = torch.randn(2, 64, config.dim, requires_grad=True)
        bytes_, _ = saved_bytes(
            lambda decoder=decoder, x=x: decoder.hidden(x, documents_BT=documents), decoder.parameters()
        )
        found.append(bytes_)
    a = Arithmetic("plain", "full" if trained else "frozen", "frozen", narrow=False, device="cpu")
    wanted = sum(saved_per_token(config, a, Micro(2, 64, 32)).values()) * 128
    assert found[1] - found[0] == wanted


def test_live_counts_each_storage_once_and_forgets_it():
    with Live() as live:
        a = torch.zeros(1000)
        b = a[10:]
        assert live.now == 4000
        del a
        assert live.now == 4000
        c = b + 1
        assert live.now == 4000 + 990 * 4
        del b, c
        assert live.now == 0
    assert live.peak == 4000 + 990 * 4


@pytest.mark.parametrize("name", SIZES)
def test_counts_are_those_of_the_sizes(name):
    assert counts(SIZES[name]).total == size_row(name, SIZES[name]).parameters


def test_adapters_are_counted_as_they_are_made():
    from m27.train.lora import Adapters, LoraConfig

    made = Adapters(Decoder(SMALL), LoraConfig(rank=8))
    numbers = sum(p.numel() for p in made.parameters().values())
    assert adapter_numbers(SMALL, Arithmetic(body="adapters", rank=8)) == numbers


def test_probabilities_are_kept_for_blocks_of_queries():
    assert seen(32) == 32
    assert seen(20) == 32 * 32 / 20  # padded
    assert seen(512) == (256 * 256 + 256 * 512) / 512


def ask(**changes) -> Ask:
    given = Ask(SIZES["7b"], Machine(gpus=8), step_tokens=1 << 19)
    machine = dataclasses.replace(
        given.machine, **{k: changes.pop(k) for k in ("gpus", "nodes", "memory", "network") if k in changes}
    )
    return dataclasses.replace(given, machine=machine, **changes)


def test_memory_grows_with_rows_and_length_and_falls_with_ranks():
    asked, layout = ask(), Layout(8)
    by_rows = [memory(asked, layout, True, rows).total for rows in (1, 2, 8)]
    by_length = [memory(ask(length=n), layout, True, 1).total for n in (1024, 4096, 16_384)]
    by_ranks = [memory(ask(gpus=n), Layout(n), True, 1).total for n in (2, 8, 64)]
    assert by_rows == sorted(by_rows) and by_length == sorted(by_length)
    assert by_ranks == sorted(by_ranks, reverse=True)
    assert memory(asked, layout, True, 1).total < memory(asked, layout, False, 1).total
    sizes = [local(SIZES[name], Arithmetic(), Micro(1, 512)).total for name in ("tiny", "nano", "1b7", "7b")]
    assert sizes == sorted(sizes)
    ways = [Arithmetic("plain", "adapters", "frozen", rank=r) for r in (1, 64)]
    rank = [local(SIZES["1b7"], way, Micro(1, 512)).total for way in ways]
    assert rank[0] < rank[1] < sizes[2]


def test_more_memory_never_fits_less():
    rows = [largest(ask(memory=g * 1e9), Layout(8), True) for g in (16, 40, 80, 160)]
    assert rows == sorted(rows) and rows[0] == 0 < rows[2]


def test_a_fixed_micro_batch_is_taken_as_it_is():
    assert {row.rows for row in plan(ask(rows=3))} == {3}


def test_what_sharding_sends_is_eight_bytes_a_weight():
    found = counts(SIZES["7b"])
    sent = traffic(SIZES["7b"], Arithmetic(), Micro(1, 4096), Layout(8), Machine(gpus=8), found.total)
    assert sent.bytes(1) == pytest.approx(7 / 8 * (8 * found.blocks + 6 * found.root))
    assert sent.bytes(4) == 4 * sent.bytes(1)
    replicas = traffic(SIZES["7b"], Arithmetic(), Micro(1, 4096), Layout(1, 8), Machine(gpus=8), found.total)
    assert replicas.bytes(4) == replicas.bytes(1) == pytest.approx(2 * 7 / 8 * 4 * found.total)
    alone = traffic(SIZES["7b"], Arithmetic(), Micro(1, 4096), Layout(), Machine(), found.total)
    assert alone.bytes(1) == alone.seconds(1) == 0


def test_experts_exchange_tokens_in_place_of_weights():
    c, machine = SIZES["moe"], Machine(gpus=16, nodes=2)
    far = [traffic(c, Arithmetic(), Micro(1, 4096), Layout(16, 1, e), machine, 0.0) for e in (1, 8)]
    assert far[1].gathered < far[0].gathered / 2 and far[0].exchanged == 0
    trips = 4 * c.n_layers * c.top_k * c.dim * 2 * 4096 * 7 / 8
    assert far[1].exchanged == pytest.approx(trips)
    again = traffic(c, Arithmetic(recompute=True), Micro(1, 4096), Layout(16, 1, 8), machine, 0.0)
    assert again.exchanged == pytest.approx(1.5 * trips)


def test_a_slower_network_is_never_faster():
    paces = [
        max(r.time.tokens_per_second for r in plan(ask(gpus=16, nodes=2, network=n * 1e9))) for n in (50, 10, 1.5)
    ]
    assert paces == sorted(paces, reverse=True)


def test_flops_are_six_a_weight_and_token():
    c = SIZES["7b"]
    blocks, head = forward_flops(c, Micro(1, 1))
    weights = counts(c)
    assert blocks + head == pytest.approx(2 * (weights.total - weights.embedding), rel=1e-3)
    c = SIZES["moe"]
    assert sum(forward_flops(c, Micro(1, 1))) < 2 * size_row("moe", c).active_parameters


def test_every_way_is_listed_and_the_fastest_that_fits_is_taken():
    names = [name for name, _ in layouts(Ask(SIZES["moe"], Machine(gpus=16, nodes=2)))]
    assert names[:3] == ["replicate", "full shard", "hybrid shard"] and len(names) == 7
    assert [name for name, _ in layouts(ask(kind="lora"))] == ["replicate"]
    assert [name for name, _ in layouts(ask(gpus=1))] == ["single"]
    rows = plan(ask())
    best = recommended(rows)
    assert best is not None and best.fits
    assert best.time.tokens_per_second >= 0.99 * max(r.time.tokens_per_second for r in rows if r.fits)
    assert all(0 < row.time.mfu <= 0.5 for row in rows)
    assert recommended(plan(ask(memory=2e9))) is None


def typed(asked: Ask, name: str) -> str:
    best = recommended(plan(asked))
    assert isinstance(best, Row)
    return command(asked, best, name)


def test_the_command_says_what_was_planned():
    line = typed(ask(), "7b")
    assert line.startswith("torchrun --standalone --nproc-per-node 8 -m -- m27.cli train pretrain --size 7b ")
    assert "--parallel.shard 8" in line and "--data.step_rows 128" in line
    line = typed(ask(gpus=16, nodes=2), "a/folder")
    assert "--nnodes 2" in line and "train sft --begin a/folder" in line
    line = typed(ask(gpus=1, kind="qlora", rank=8, preference=True), "7b")
    assert "train qlora --begin FOLDER" in line
    assert "--lora.rank 8" in line and "--objective preference" in line


def test_kinds_of_training_in_order_of_memory():
    single = {"gpus": 1, "memory": 400e9}
    totals = [
        memory(ask(kind=kind, **single), Layout(), True, 1).total for kind in ("qlora", "lora", "full")
    ]
    assert totals == sorted(totals)
    muon = memory(ask(muon=True), Layout(8), True, 1)
    assert muon.optimiser < memory(ask(), Layout(8), True, 1).optimiser
    pairs = memory(ask(kind="lora", preference=True, **single), Layout(), True, 1)
    assert pairs.activations == pytest.approx(2 * memory(ask(kind="lora", **single), Layout(), True, 1).activations)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpus": 0}, "gpus: 0 is not positive"),
        ({"memory": -80e9}, "memory: -80 GB is not positive"),
        ({"nodes": 3}, "nodes: 3 do not divide 8 GPUs"),
        ({"length": 1 << 20}, "length: 1048576 is more"),
        ({"document": 9000}, "document: 9000 tokens do not fit"),
        ({"rows": -1}, "rows: -1 is negative"),
        ({"kind": "lora", "muon": True}, "muon: "),
    ],
)
def test_nonsense_is_refused_by_name(changes, message):
    with pytest.raises(PlanError, match=message):
        ask(**changes)


@pytest.mark.parametrize("kind", ["full", "lora", "qlora"])
@pytest.mark.parametrize("preference", [False, True])
def test_the_command_can_be_typed(kind, preference, tmp_path):
    """Every setting in it is one of the recipe's, and the configuration says what was planned."""
    from m27.cli.train import configured
    from m27.model.files import write_json
    from recipes import registry

    write_json(tmp_path / "config.json", SIZES["nano"].to_hf())
    asked = dataclasses.replace(ask(gpus=1, kind=kind, preference=preference, length=512), model=SIZES["nano"])
    words = typed(asked, str(tmp_path)).split()
    recipe, *settings = words[words.index("train") + 1 :]
    config = configured(registry.recipe(recipe), settings)
    assert (config.data.row, config.body == "full") == (512, kind == "full")
    assert (config.base_bits == 4, config.objective == "preference") == (kind == "qlora", preference)
