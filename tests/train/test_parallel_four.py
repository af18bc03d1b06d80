"""Four ranks (gloo): hybrid layouts, and runs that go on with another number of ranks than they began with."""

import pytest

from tests.train import fixtures
from tests.train import parallel_ranks as ranks
from tests.train.test_parallel import MOE, same

FEW = {"shape": {**ranks.MOE, "n_experts": 2}}
FOUR = {
    "dense": {"cut": {}, "hybrid": {"replicate": 2}},
    "moe": {"cut-and-dealt": {**MOE, "expert": 2}, "hybrid": {**MOE, "expert": 2, "replicate": 2},
            "dealt": {**MOE, "expert": 4}},
    "few": {"experts-cut": {**FEW, "expert": 2}},
}  # fmt: skip
LAYOUTS = [(of, f"{of}-{name}") for of, named in FOUR.items() for name in named]
MUON = {"kind": "muon", "average": 0.9}
LONG = {"steps": 4, **MOE, "optim": MUON}  # begun by some ranks, gone on with by others


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All runs, done: NAME by one process, NAME-LAYOUT by four, moved-A-B by A and then by B."""
    folder = tmp_path_factory.mktemp("runs")
    fixtures.corpus(folder / "shards")
    ranks.train(folder / "moved-1-4", **LONG, until=2)
    jobs = [(f"{of}-{name}", job) for of, named in FOUR.items() for name, job in named.items()]
    jobs += [(f"moved-4-{n}", {**LONG, "expert": 2, "until": 2}) for n in (2, 1)]
    ranks.start(4, folder, [*jobs, ("moved-1-4", {**LONG, "expert": 2})])
    ranks.start(2, folder, [("moved-4-2", {**LONG, "replicate": 2})])
    ranks.train(folder / "moved-4-1", **LONG)
    for name, job in {"dense": {}, "moe": MOE, "few": FEW, "long": LONG}.items():
        ranks.train(folder / name, **job)
    return folder


@pytest.mark.parametrize(("one", "other"), LAYOUTS)
def test_four_ranks_train_as_one(folder, one, other):
    same(folder, one, other)


@pytest.mark.slow
def test_four_ranks_train_as_one_over_twenty_steps(tmp_path):
    fixtures.corpus(tmp_path / "shards")
    jobs = {f"{of}-{name}": {**job, "steps": 20} for of, named in FOUR.items() for name, job in named.items()}
    ranks.start(4, tmp_path, list(jobs.items()))
    for of, named in FOUR.items():
        (any_job, *_) = named.values()
        ranks.train(tmp_path / of, **{**any_job, "steps": 20, "expert": 1, "replicate": 1})
        for name in named:
            same(tmp_path, of, f"{of}-{name}")


@pytest.mark.parametrize("name", ["moved-1-4", "moved-4-2", "moved-4-1"])
def test_a_run_goes_on_with_another_number_of_ranks(folder, name):
    same(folder, "long", name)
