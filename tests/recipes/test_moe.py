"""The recipe runs whole on tiny shards, is read and not run again, and keeps the held-out apart."""

from dataclasses import replace

import numpy as np
import pytest

from m27.model.upcycle import Upcycling
from recipes import moe
from tests.train import fixtures

TINY = moe.MoeConfig(
    model=replace(
        moe.MoeConfig().model, vocab_size=fixtures.AUDIO[1], dim=32, n_layers=2, head_dim=8, ffn_dim=32
    ),
    upcycling=Upcycling(4, 2, split=2), tasks={"draw": 1, "text": 1}, held=12, measured=8, rows=1,
    row=256, parent_steps=3, branch_steps=3, distil_steps=2, warmup_steps=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    for number in range(2):
        fixtures.write_shard(folder / f"shard{number}", 200, number)
    return folder


def test_the_whole_way_and_a_second_call_that_reads_it(shards, tmp_path):
    found = moe.execute(TINY, tmp_path / "run", tmp_path / "out.json", shards)
    models = ["parent", "dense", "moe", "merged", "distilled", "longer"]
    assert list(found["against_dense"]) == models
    # Equal active parameters but for the routers; the merged model has the dense one's shape.
    sizes = found["sizes"]
    assert sizes["moe"]["active"] - sizes["dense"]["active"] == 2 * 4 * 32
    assert sizes["merged"] == sizes["dense"] == sizes["longer"]
    assert sizes["moe"]["parameters"] > sizes["dense"]["parameters"]
    for row in found["against_dense"].values():
        loss, low, high = row["all"]["loss"]
        assert low <= loss <= high
    assert len(found["load_held_out"]["moe"]["layers"]) == 2
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*.safetensors")}
    assert moe.execute(TINY, tmp_path / "run", tmp_path / "out.json", shards) == found
    assert times == {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*.safetensors")}


def test_held_out_documents_are_never_drawn(shards):
    corpus = moe.Corpus(sorted(shards.iterdir()))
    held = moe.held_out(corpus, ["draw", "text"], 12)
    assert len(held) == 24
    assert {corpus.tasks[corpus.task_of[number]] for number in held} == {"draw", "text"}
    mixture = moe.Unseen(corpus, held, {"draw": 1, "text": 1})
    drawn = {mixture.draw().document for _ in range(2000)}
    assert not drawn & set(held)
    assert len(drawn) == int((corpus.task_of != corpus.tasks.index("speak")).sum()) - 24


def test_intervals_are_over_documents():
    rng = np.random.default_rng(1)
    counts = rng.integers(5, 50, 300).astype(float)
    easy = np.stack((2.0 * counts + rng.normal(0, 3, 300), counts), 1)
    hard = easy + np.stack((0.1 * counts, np.zeros(300)), 1)
    mean, low, high = moe.interval(easy)
    assert low < 2.0 < high
    assert mean == pytest.approx(easy[:, 0].sum() / easy[:, 1].sum(), abs=1e-4)
    assert moe.interval(hard, easy) == pytest.approx([0.1, 0.1, 0.1], abs=1e-3)  # paired: no noise
