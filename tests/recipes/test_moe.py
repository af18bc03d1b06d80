"""The recipe runs whole on a tiny corpus, is read and not run again, and goes on where it was killed."""

import json
from dataclasses import replace

import numpy as np
import pytest

from m27.model.upcycle import Upcycling
from recipes import moe, moe_data

TINY = moe.MoeConfig(
    model=replace(moe.MODEL, dim=16, n_layers=2, head_dim=8, ffn_dim=16), upcycling=Upcycling(4, 2, split=2),
    share=(1, 1, 1), measured=4, parent_steps=3, branch_steps=4, distil_steps=2, warmup_steps=1,
    rates=(1e-3, 3e-3), seeds=(2, 3),
)  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    bounds = [
        (0, moe_data.IMAGE),
        (moe_data.IMAGE, moe_data.AUDIO),
        (moe_data.AUDIO, moe_data.SIZE),
    ]
    for side, count in (("train", 8), ("held", 12)):
        rows = [rng.integers(*bounds[kind], (count, 32)) for kind in range(3)]
        np.save(folder / f"{side}.npy", np.concatenate(rows).astype(np.uint16))
        kinds = np.repeat(range(3), count).tolist()
        origins = [f"{kind} {number // 2}" for number, kind in enumerate(kinds)]
        (folder / f"{side}.json").write_text(json.dumps({"kinds": kinds, "origins": origins}))
    return moe_data.Corpus(folder)


def test_the_whole_way_and_a_second_call_that_reads_it(corpus, tmp_path):
    found = moe.execute(TINY, tmp_path / "run", tmp_path / "out.json", corpus)
    models = ["parent", "dense-2", "moe-2", "dense-3", "moe-3", "merged", "longer", "distilled"]
    assert list(found["loss"]) == models
    # Equal active parameters but for the routers; the merged model has the dense one's shape.
    sizes = found["sizes"]
    assert sizes["moe-2"]["active"] - sizes["dense-2"]["active"] == 2 * 4 * 16
    assert sizes["merged"] == sizes["dense-2"] == sizes["distilled"]
    assert sizes["moe-2"]["parameters"] > sizes["dense-2"]["parameters"]
    for row in (*found["loss"].values(), *found["minus_dense"].values()):
        mean, low, high = row["all"]
        assert low <= mean <= high
    for branch in found["rates"].values():
        assert branch["tried"][f"{branch['rate']:g}"] == min(branch["tried"].values())
    assert len(found["load"]["moe-3"]["layers"]) == 2
    assert json.loads((tmp_path / "out.json").read_text())["loss"] == found["loss"]
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*.safetensors")}
    assert moe.execute(TINY, tmp_path / "run", tmp_path / "out.json", corpus) == found
    assert times == {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*.safetensors")}


def test_a_run_that_stopped_goes_on_with_the_batches_that_follow(corpus):
    whole = corpus.batches((1, 2, 1), 5, None)
    seen = [next(whole) for _ in range(12)]  # beyond an epoch of the pictures
    resumed = corpus.batches((1, 2, 1), 5, seen[6][1])
    for (wanted,), _ in seen[7:]:
        assert next(resumed)[0][0].ids_BT.equal(wanted.ids_BT)
    other = next(corpus.batches((1, 2, 1), 6, None))[0][0]
    assert not other.ids_BT.equal(seen[0][0][0].ids_BT)


def test_the_halves_of_what_is_held_out_share_no_origin(corpus):
    rows = [
        np.concatenate([b.ids_BT.numpy() for b, _ in corpus.held(half, (99, 99, 99))])
        for half in (0, 1)
    ]
    assert len(rows[0]) + len(rows[1]) == 36
    assert not {row.tobytes() for row in rows[0]} & {row.tobytes() for row in rows[1]}
    assert corpus.origins(0) + corpus.origins(1) == 18
    (batch, origins), *_ = corpus.held(1, (99, 0, 2), at_once=99)
    assert origins.shape == (len(batch.ids_BT),)
    assert (batch.ids_BT[:, 0] >= moe_data.AUDIO).sum() == 2
    assert not ((batch.ids_BT >= moe_data.IMAGE) & (batch.ids_BT < moe_data.AUDIO)).any()


def test_intervals_are_over_origins():
    rng = np.random.default_rng(1)
    counts = rng.integers(5, 50, 300).astype(float)
    easy = np.stack((2.0 * counts + rng.normal(0, 3, 300), counts), 1)
    hard = easy + np.stack((0.1 * counts, np.zeros(300)), 1)
    mean, low, high = moe.interval(easy)
    assert low < 2.0 < high
    assert mean == pytest.approx(easy[:, 0].sum() / easy[:, 1].sum(), abs=1e-4)
    assert moe.interval(hard, easy) == pytest.approx([0.1, 0.1, 0.1], abs=1e-3)  # paired: no noise
