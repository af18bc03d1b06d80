"""Mixture, packing and loader: proportions, fill, and that each goes on exactly from its state."""

import json
from itertools import islice

import numpy as np
import pytest

from m27.data.loader import MEDIA, Loader
from m27.data.mixture import Mixture, MixtureError, content
from m27.data.pack import Packer, PackError
from tests.train import fixtures

WEIGHTS = {"draw": 2.0, "text": 1.0, "speak": 1.0}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return fixtures.corpus(tmp_path_factory.mktemp("shards"))


def mixture(corpus, state=None, **options):
    given = {"drop": ("draw",), "drop_rate": 0.5, "seed": 1} | options
    return Mixture(corpus, WEIGHTS, state=state, **given)


def loader(corpus, state=None):
    packer = Packer(mixture(corpus, state and state["mixture"]), 256, 64, state)
    return Loader(packer, rows=2, accumulate=2, weights={"image": 0.25}, task_weights={"speak": 2})


def test_shares_hold_in_every_stretch(corpus):
    stream = mixture(corpus)
    for stretch in range(1, 6):
        list(islice(stream, 100))
        drawn = stream.state()["drawn"]
        total = sum(drawn.values())
        assert drawn["draw"] / total == pytest.approx(0.5, abs=0.03 / stretch)
        assert drawn["speak"] / total == pytest.approx(0.25, abs=0.03 / stretch)


def test_an_epoch_gives_each_document_once_then_anew_in_another_order(corpus):
    stream = mixture(corpus, drop=())
    task = corpus.tasks.index("draw")
    size = int((corpus.task_of == task).sum())
    numbers = [
        d.document for d, _ in islice(stream, 4 * size) if corpus.task_of[d.document] == task
    ]
    first, second = numbers[:size], numbers[size : 2 * size]
    assert sorted(first) == np.flatnonzero(corpus.task_of == task).tolist()
    assert first != second
    assert set(second) <= set(first)


def test_bare_documents_keep_the_answer_only(corpus):
    draws = [d for d, _ in islice(mixture(corpus), 400)]
    of_draw = [d for d in draws if corpus.tasks[corpus.task_of[d.document]] == "draw"]
    bare = [d for d in of_draw if d.bare]
    assert 0.35 < len(bare) / len(of_draw) < 0.65
    assert not any(d.bare for d in draws if d not in of_draw)
    prefix = corpus.meta["unconditional"]
    for draw in bare[:10]:
        ids, loss = content(corpus, draw)
        whole, flags = corpus.document(draw.document)
        assert len(ids) == draw.length
        assert ids[: len(prefix)].tolist() == prefix
        assert ids[len(prefix) :].tolist() == whole[flags.argmax() :].tolist()
        assert loss.sum() == flags.sum()
        assert not loss[: len(prefix)].any()


def test_an_unknown_task_is_named_with_the_nearest(corpus):
    with pytest.raises(MixtureError, match="did you mean 'speak'"):
        Mixture(corpus, {"speek": 1})
    with pytest.raises(MixtureError, match="weight 0"):
        Mixture(corpus, {"draw": 0})


def test_rows_are_full_and_hold_whole_documents(corpus):
    packer = Packer(mixture(corpus), 256, 64)
    for row, _ in islice(packer, 200):
        assert sum(draw.length for draw in row) <= 256
    assert packer.efficiency > 0.995


def test_no_document_waits_forever(corpus):
    packer = Packer(mixture(corpus), 256, 16)
    taken = [d for row, _ in islice(packer, 100) for d in row]
    drawn = [d for d, _ in islice(mixture(corpus), len(taken))]
    # Whatever was drawn early has been packed; only the newest may still be in the pool.
    early = {(d.document, d.bare) for d in drawn[: len(drawn) - 5 * 16]}
    assert early <= {(d.document, d.bare) for d in taken}


def test_a_document_longer_than_a_row_is_named(corpus):
    with pytest.raises(PackError, match="a row 64"):
        list(islice(Packer(mixture(corpus), 64), 50))


@pytest.mark.parametrize("stop", [1, 5])
def test_the_loader_goes_on_from_its_state(corpus, stop):
    want = [step for step, _ in islice(loader(corpus), stop + 4)]
    ((_, state),) = islice(loader(corpus), stop - 1, stop)
    state = json.loads(json.dumps(state))
    got = [step for step, _ in islice(loader(corpus, state), 4)]
    for left, right in zip(want[stop:], got, strict=True):
        for one, other in zip(left, right, strict=True):
            assert all(bool((vars(one)[n] == vars(other)[n]).all()) for n in vars(one) if n != "branches_BT")
            assert one.branches_BT is other.branches_BT is None


def test_a_batch_says_what_its_documents_say(corpus):
    stream = loader(corpus)
    row = stream.packer.row()
    batch = stream.collate([row])
    at, targets = 0, []
    for number, draw in enumerate(row):
        ids, loss = content(corpus, draw)
        span = slice(at, at + len(ids))
        assert batch.ids_BT[0, span].tolist() == ids.tolist()
        assert set(batch.documents_BT[0, span].tolist()) == {number}
        assert batch.positions_BT[0, span].tolist() == list(range(len(ids)))
        task = int(corpus.task_of[draw.document])
        targets += [(at + i - 1, int(ids[i]), task) for i in range(1, len(ids)) if loss[i]]
        at += len(ids)
    assert (batch.documents_BT[0, at:] == -1).all()
    found = zip(
        batch.places_M.tolist(), batch.targets_M.tolist(), batch.tasks_M.tolist(), strict=True
    )
    assert list(found) == targets
    for target, medium, weight, task in zip(
        batch.targets_M, batch.media_M, batch.weights_M, batch.tasks_M, strict=True
    ):
        name = MEDIA[medium]
        assert (name == "image") == (fixtures.IMAGE[0] <= target < fixtures.IMAGE[1])
        assert (name == "text") == (target < fixtures.TEXT and target != 2)
        factor = 2.0 if corpus.tasks[task] == "speak" else 1.0
        assert weight == (0.25 if name == "image" else 1.0) * factor


def test_an_unknown_medium_is_refused(corpus):
    with pytest.raises(ValueError, match="video"):
        Loader(Packer(mixture(corpus), 256), weights={"video": 1})
