"""Preferences: loss and gradient against plain autograd over the two answers apart, and whole small runs."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch

from m27.train import checkpoint, feed
from m27.train.judge import judge
from m27.train.lora import LoraConfig
from m27.train.objective import cross_entropy, target_losses
from m27.train.optim import OptimConfig
from m27.train.pairs import PreferenceConfig
from m27.train.passes import FusedPass, MergedPass, PlainPass, choose
from m27.train.rows import FrozenRows, Rows
from m27.train.settings import SettingError
from tests.train import fixtures, pairs
from tests.train.test_merged import random_adapters

CONFIGS = {
    "dpo": PreferenceConfig(beta=0.3),
    "smooth": PreferenceConfig(beta=0.3, label_smoothing=0.2),
    "ipo": PreferenceConfig(loss="ipo", beta=0.2, by_length=True),
    "rpo": PreferenceConfig(beta=0.3, sft=0.5),
}


def setting(preference, corpus, frozen=False):
    """A decoder whose adapters and rows have moved away from those the reference has; a batch and its plan."""
    decoder = fixtures.decoder()
    adapters = random_adapters(decoder)
    adapters.hold()  # what a run began with need not be nothing
    if frozen:
        rows = FrozenRows(torch.randn(192, decoder.config.dim), torch.float32)
    else:
        rows = Rows(
            decoder.model.embed_tokens.weight, fixtures.CONTROLS, (4, 4, 4), (4, 4, 2), torch.float32
        )
    rows.hold()
    with torch.no_grad():
        for parameter in [*adapters.parameters().values(), *rows.parameters().values()]:
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    rows.refresh()
    config = pairs.config(preference)
    batches = feed.loader(feed.packer(corpus, config, None), config)
    (batch, *_), _ = next(iter(batches))
    plan = feed.scoring(corpus, config).plan(batch)
    return SimpleNamespace(
        decoder=decoder, adapters=adapters, rows=rows, batch=batch, plan=plan, corpus=corpus
    )


def answers(batch):
    """Of every document of a batch the ids and loss flags of both conversations."""
    ids, documents, branches = (
        t.flatten() for t in (batch.ids_BT, batch.documents_BT, batch.branches_BT)
    )
    target = torch.zeros_like(ids, dtype=torch.bool)
    target[batch.places_M + 1] = True
    for number in range(int(documents.max()) + 1):
        own = documents == number
        yield [
            (ids[at], target[at])
            for at in (own & ((branches == 0) | (branches == n)) for n in (1, 2))
        ]


def oracle(found, preference):
    """The mean loss of all pairs by autograd in float64: each conversation alone, every logit at once."""
    decoder = fixtures.decoder().double()
    table = found.rows.table_VD.double().requires_grad_()
    base = found.rows.base_VD.double()
    adapters = found.adapters
    adapters.attach(decoder)

    def log_probability(rows_VD, ids, target):
        states = decoder.hidden(rows_VD[ids][None])[0]
        log_p = (states @ rows_VD.T).log_softmax(-1)[:-1].gather(1, ids[1:, None])[:, 0]
        kept = log_p[target[1:]]
        return kept.mean() if preference.by_length else kept.sum(), kept

    losses = []
    for both in answers(found.batch):
        policy = [log_probability(table, *one) for one in both]
        with torch.no_grad(), adapters.off():
            reference = [log_probability(base, *one)[0] for one in both]
        margin = (policy[0][0] - reference[0]) - (policy[1][0] - reference[1])
        beta, smooth = preference.beta, preference.label_smoothing
        if preference.loss == "ipo":
            loss = (margin - 1 / (2 * beta)) ** 2
        else:
            sure = torch.nn.functional.logsigmoid
            loss = -(1 - smooth) * sure(beta * margin) - smooth * sure(-beta * margin)
        losses.append(loss - preference.sft * policy[0][1].mean())
    loss = torch.stack(losses).mean()
    loss.backward()
    return loss.detach(), table.grad


@pytest.mark.parametrize("kind", ["fused", "merged", "plain"])
@pytest.mark.parametrize(
    ("preference", "codes", "frozen"),
    [("dpo", True, False), ("dpo", False, False), ("dpo", True, True), ("smooth", True, False),
     ("ipo", True, False), ("rpo", True, False)],
)  # fmt: skip
def test_loss_and_gradient_are_those_of_the_answers_apart(kind, preference, codes, frozen, tmp_path):
    given = CONFIGS[preference]
    found = setting(given, pairs.write(tmp_path / "pairs", 40, 1, codes), frozen)
    want, want_rows = oracle(found, given)
    wanted = {name: p.grad.clone() for name, p in found.adapters.parameters().items()}
    for parameter in found.adapters.parameters().values():
        parameter.grad = None
    way = choose(kind, found.decoder, found.adapters, found.rows, torch.float32, False)
    assert type(way) is {"fused": FusedPass, "merged": MergedPass, "plain": PlainPass}[kind]
    way.refresh()
    total = found.plan.weight(found.batch)
    assert total > 3
    losses = way.run(found.batch, found.plan, total, way.prepare(found.batch))
    way.collect()
    assert float(losses.whole(found.batch.weights_M)) / total == pytest.approx(float(want), rel=1e-4)
    for name, parameter in found.adapters.parameters().items():
        error = (parameter.grad - wanted[name]).norm() / wanted[name].norm()
        assert error < 1e-4, name
    if not frozen:
        mine, theirs = found.rows.grad_VD, want_rows[fixtures.TEXT :]
        assert (mine - theirs).norm() / theirs.norm() < 1e-4


def test_a_batch_made_by_another_process_is_the_same(tmp_path):
    corpus = pairs.write(tmp_path / "pairs", 40, 1)
    config = pairs.config(CONFIGS["smooth"])
    here = feed.loader(feed.packer(corpus, config, None), config)
    (batch, *_), _ = next(iter(here))
    plan = feed.scoring(corpus, config).plan(batch)
    there = feed.ahead(feed.Source(corpus.folders, config, None), runs=True)
    (_, other, _), *_ = next(there)[0]
    there.close()
    assert other.pairs.config == config.preference
    for name in ("halves_M", "weights_M", "weights_P"):
        assert torch.equal(getattr(plan.pairs, name), getattr(other.pairs, name))
    assert torch.equal(plan.teacher.branches_1n, other.teacher.branches_1n)


def test_media_weigh_within_an_answer_and_tasks_among_pairs(tmp_path):
    corpus = pairs.write(tmp_path / "pairs", 40, 1)
    config = pairs.config()
    data = dataclasses.replace(
        config.data, media_weights={"image": 0.25}, task_weights={"preference": 3.0}
    )
    (batch, *_), _ = next(iter(feed.loader(feed.packer(corpus, config, None), config)))
    plan = feed.scoring(corpus, dataclasses.replace(config, data=data)).plan(batch)
    assert set(plan.pairs.weights_P.tolist()) == {3.0}
    assert set(plan.pairs.weights_M[batch.media_M == 2].tolist()) == {0.25}
    assert set(plan.pairs.weights_M[batch.media_M == 0].tolist()) == {1.0}
    losses = torch.rand(len(batch.targets_M))
    outcome = plan.pairs.outcome(losses, losses)
    assert outcome.figures_P4[:, :2].abs().max() < 1e-6
    assert float(outcome.whole) == pytest.approx(3 * len(plan.pairs.weights_P) * 0.693147, rel=1e-5)


@pytest.mark.parametrize("spans", [None, ((3, 20), (30, 50))])
def test_losses_alone_equal_those_with_a_gradient(spans):
    torch.manual_seed(0)
    h, table = torch.randn(30, 16), torch.randn(60, 16)
    targets = torch.randint(5, 18, (30,))
    want, _ = cross_entropy(h, table, targets, torch.ones(30), 60, torch.zeros(0, 16), spans=spans)
    found = target_losses(h, table, targets, spans, piece=7)
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)


def run_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def learner(**changes):
    optim = OptimConfig(lr=3e-3, map_lr=3e-3, control_lr=3e-3, schedule="constant")
    return pairs.config(PreferenceConfig(beta=0.5), steps=25, optim=optim, **changes)


def test_a_run_learns_to_prefer_and_held_out_pairs_show_it(tmp_path):
    corpus = pairs.write(tmp_path / "train", 120, 1)
    held_out = pairs.write(tmp_path / "test", 40, 2)
    trainer = fixtures.trainer(tmp_path / "run", corpus, learner())
    before = judge(trainer, held_out)
    trainer.run()
    after = judge(trainer, held_out)
    assert before.shape == after.shape == (40, 4)
    assert before[:, :2].abs().max() < 1e-3  # the reference is the beginning
    assert ((before[:, 2] > before[:, 3]).double().mean()) < 0.8
    assert ((after[:, 0] > after[:, 1]).double().mean()) > 0.95
    odds = [(figures[:, 2] - figures[:, 3]).mean() for figures in (before, after)]
    assert odds[1] > odds[0] + 1
    records = run_of(tmp_path / "run")
    assert records[0]["preference"]["accuracy"] == pytest.approx(0.5, abs=0.5)
    last = records[-1]["preference"]
    assert last["accuracy"] > 0.9
    assert last["margin"] == pytest.approx(last["chosen"] - last["rejected"], abs=2e-4)
    assert records[-1]["loss"] < records[0]["loss"] - 0.2


@pytest.mark.parametrize("body", ["adapters", "full"])
def test_stopped_and_resumed_equals_uninterrupted_also_from_a_beginning(body, tmp_path):
    corpus = pairs.write(tmp_path / "shard", 60, 1)
    first = fixtures.trainer(tmp_path / "first", corpus, pairs.config(steps=2)).run()
    config = pairs.config(body=body, path="plain" if body == "full" else "auto")
    results = []
    for stops in ((None,), (1, 3, None)):
        run = tmp_path / f"run{len(stops)}"
        for stop in stops:
            trainer = fixtures.trainer(run, corpus, config)
            if not checkpoint.steps(run):
                trainer.begin_from(tmp_path / "first")
            result = trainer.run(until=stop)
        results.append(result)
    assert results[0].finished
    for name, tensor in results[0].trained.items():
        assert torch.equal(tensor, results[1].trained[name]), name
    if body == "adapters":
        # Measured against what the run began with, not against the base without adapters.
        held = trainer.adapters.held("model.layers.0.mlp.up_proj")
        assert torch.equal(held[1], first.trained["model.layers.0.mlp.up_proj.lora_B"])
    assert run_of(tmp_path / "run1")[0]["preference"]["margin"] == pytest.approx(0, abs=1e-3)
    (tmp_path / "run1" / "reference.safetensors").unlink()
    with pytest.raises(checkpoint.ResumeError, match=r"reference\.safetensors"):
        fixtures.trainer(tmp_path / "run1", corpus, config)


def test_frozen_rows_of_any_family_on_the_plain_way(tmp_path):
    corpus = pairs.write(tmp_path / "shard", 60, 1)
    config = learner(rows="frozen", path="plain", lora=LoraConfig(rank=4))
    model = fixtures.decoder(192, family="qwen3")
    from m27.train.loop import Trainer

    rows = FrozenRows(model.model.embed_tokens.weight, torch.float32)
    Trainer(config, model, rows, corpus, tmp_path / "run", quiet=True).run()
    assert run_of(tmp_path / "run")[-1]["preference"]["accuracy"] > 0.8


def test_what_holds_no_pairs_is_refused_and_pairs_are_not_learnt_as_text(tmp_path):
    good = pairs.write(tmp_path / "good", 10, 1)
    other = fixtures.corpus(tmp_path / "other")
    with pytest.raises(SettingError, match="task 'draw' holds no pairs"):
        feed.scoring(other, pairs.config())
    with pytest.raises(SettingError, match="task 'preference' holds pairs"):
        feed.scoring(good, dataclasses.replace(pairs.config(), objective="likelihood"))
    branches = torch.from_numpy(good._branches[0].copy())
    branches[int(good._index[0][3]) :] = 0
    branches.numpy().tofile(tmp_path / "good" / "branches.bin")
    from m27.data.mixture import Corpus

    with pytest.raises(SettingError, match="document 3 of task 'preference' has 0 answers"):
        feed.scoring(Corpus([tmp_path / "good"]), pairs.config())
    for data in ({"drop_prompt": ("preference",)}, {"kl_tasks": {"preference": 0.5}}):
        config = pairs.config()
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, **data))
        with pytest.raises(SettingError, match=r"no data\.drop_prompt, data\.kl_tasks and z_loss"):
            fixtures.trainer(tmp_path / "run", good, config)


@pytest.mark.parametrize(
    ("given", "message"),
    [({"beta": 0.0}, "beta"), ({"label_smoothing": 0.5}, "smoothing"), ({"sft": -1.0}, "sft"),
     ({"loss": "hinge"}, "hinge")],
)  # fmt: skip
def test_settings_out_of_range_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        PreferenceConfig(**given)
