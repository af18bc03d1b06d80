"""What each target is scored among, and what the base is asked about."""

import pytest
import torch

from m27.data.loader import MEDIA, Loader
from m27.data.mixture import Mixture
from m27.data.pack import Packer
from m27.train.scoring import Scoring
from tests.train import fixtures


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return fixtures.corpus(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def batch(corpus):
    packer = Packer(Mixture(corpus, {"draw": 1, "text": 1, "speak": 1}), 256, 32)
    (batch,), _ = next(iter(Loader(packer, rows=4)))
    return batch


def scoring(corpus, **settings):
    return Scoring(corpus.meta["vocabulary"], corpus.tasks, **settings)


def test_each_target_is_in_one_group_that_holds_its_id(corpus, batch):
    plan = scoring(corpus, full_share=0.1, full_tasks=["text"]).plan(batch)
    index = torch.cat([group.index_m for group in plan.groups])
    assert sorted(index.tolist()) == list(range(len(batch.targets_M)))
    assert len(plan.groups) == 4
    for group in plan.groups:
        targets = batch.targets_M[group.index_m]
        spans = group.spans or ((0, 10**9),)
        assert all(any(a <= t < b for a, b in spans) for t in targets.tolist())
    (full,) = (group for group in plan.groups if group.spans is None)
    text = set((batch.tasks_M == corpus.tasks.index("text")).nonzero().flatten().tolist())
    others = set(full.index_m.tolist()) - text
    assert text <= set(full.index_m.tolist())
    assert 0 < len(others) < 0.25 * (len(batch.targets_M) - len(text))


def test_the_end_of_a_sound_is_scored_among_sounds(corpus, batch):
    made = scoring(corpus, full_share=0.0)
    targets = batch.targets_M.clone()
    targets[0] = fixtures.TEXT + 3  # <|/audio|>
    media = batch.media_M.clone()
    media[0] = MEDIA.index("control")
    plan = made.plan(type(batch)(**{**vars(batch), "targets_M": targets, "media_M": media}))
    (group,) = (g for g in plan.groups if 0 in g.index_m.tolist())
    assert group.spans == ((fixtures.TEXT + 3, fixtures.TEXT + 4), fixtures.AUDIO)


def test_shares_of_one_and_none(corpus, batch):
    (only,) = scoring(corpus).plan(batch).groups
    assert only.spans is None
    assert all(group.spans for group in scoring(corpus, full_share=0.0).plan(batch).groups)
    with pytest.raises(ValueError, match="full_share"):
        scoring(corpus, full_share=1.5)
    with pytest.raises(ValueError, match=r"kl_tasks\.text"):
        scoring(corpus, kl_tasks={"text": -1})


def plain_text(batch, corpus):
    """The batch with text ids only in the documents of the task "text"."""
    documents = batch.documents_BT.flatten()
    mine = documents[batch.places_M[batch.tasks_M == corpus.tasks.index("text")]].unique()
    ids = batch.ids_BT.flatten().clone()
    inside = torch.isin(documents, mine)
    ids[inside] %= fixtures.TEXT
    places = batch.places_M
    targets = torch.where(inside[places], ids[(places + 1) % len(ids)], batch.targets_M)
    return type(batch)(
        **{**vars(batch), "ids_BT": ids.view_as(batch.ids_BT), "targets_M": targets}
    ), mine


def test_the_base_is_asked_about_whole_documents_of_text_alone(corpus, batch):
    given, mine = plain_text(batch, corpus)
    plan = scoring(corpus, kl_tasks={"text": 0.5}).plan(given)
    teacher = plan.teacher
    flat = given.documents_BT.flatten()
    assert teacher.documents_1n[0].tolist() == flat[torch.isin(flat, mine)].tolist()
    assert torch.equal(teacher.ids_n, given.ids_BT.flatten()[torch.isin(flat, mine)])
    # The id after each place among the base's tokens is the target, as in the rows.
    inner = teacher.places_m + 1 < len(teacher.ids_n)
    targets = given.targets_M[teacher.index_m]
    assert torch.equal(teacher.ids_n[(teacher.places_m + 1)[inner]], targets[inner])
    assert (teacher.share_m == 0.5).all()
    index = torch.cat([teacher.index_m, *(group.index_m for group in plan.groups)])
    assert sorted(index.tolist()) == list(range(len(given.targets_M)))


def test_documents_with_ids_that_the_base_lacks_are_learned_as_others_are(corpus, batch):
    assert scoring(corpus, kl_tasks={"text": 0.5}).plan(batch).teacher is None
