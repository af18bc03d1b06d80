"""The plain loop: its head equals full logits under autograd, it learns from a teacher, it resumes exactly."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F

from m27.data.loader import Loader
from m27.data.mixture import Mixture
from m27.data.pack import Packer
from m27.model.upcycle import Upcycling, merge, upcycle
from m27.train.distil import FitConfig, fit, head, target_losses
from m27.train.optim import OptimConfig
from tests.train import fixtures


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return fixtures.corpus(tmp_path_factory.mktemp("shards"))


def stream(shards, seed=0, accumulate=2):
    def begin(state):
        mixture = Mixture(shards, seed=seed, state=None if state is None else state["mixture"])
        return iter(Loader(Packer(mixture, 256, pool=32, state=state), accumulate=accumulate))

    return begin


def dense():
    return fixtures.decoder(fixtures.AUDIO[1], family="qwen3").requires_grad_(True)


def by_medium(shards):
    """Text and control ids together, pictures, sounds."""
    image, audio = fixtures.IMAGE, fixtures.AUDIO
    words = torch.arange(image[0])
    return [words, words, torch.arange(*image), torch.arange(*audio)]


@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("restricted", [False, True])
def test_head_equals_full_logits_under_autograd(shards, share, restricted):
    batch = next(stream(shards)(None))[0][0]
    count, size = len(batch.targets_M), fixtures.AUDIO[1]
    torch.manual_seed(0)
    h, theirs = (torch.randn(count, 16) for _ in range(2))
    table, their_table = (torch.randn(size, 16) for _ in range(2))
    candidates = by_medium(shards) if restricted else None
    grad = torch.ones(size, 16)  # added to, not put over
    teacher = None if share == 0 else (theirs, their_table)
    losses, apart, g = head(h, table, batch, candidates, teacher, share, grad, piece=7)

    h.requires_grad_()
    table.requires_grad_()
    mask = torch.full((count, size), float("-inf")) if restricted else torch.zeros(count, size)
    if candidates is not None:
        for row, medium in enumerate(batch.media_M):
            mask[row, candidates[medium]] = 0
    log_q = (h @ table.t() + mask).log_softmax(-1)
    log_p = (theirs @ their_table.t() + mask).log_softmax(-1)
    plain = F.nll_loss(log_q, batch.targets_M, reduction="none")
    kl = F.kl_div(log_q.nan_to_num(neginf=-1e4), log_p.exp(), reduction="none").sum(-1)
    weights = batch.weights_M / batch.weights_M.sum()
    (((1 - share) * plain + share * kl) * weights).sum().backward()
    torch.testing.assert_close(losses, plain.detach(), rtol=1e-4, atol=1e-4)
    if share > 0:
        torch.testing.assert_close(apart, kl.detach(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(g, h.grad, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(grad - 1, table.grad, rtol=1e-3, atol=1e-5)


def test_experts_go_back_to_a_dense_model_that_nears_them(shards, tmp_path):
    torch.manual_seed(0)
    teacher = copy.deepcopy(upcycle(dense(), Upcycling(4, 2, split=2)))
    for block in teacher.model.layers:  # experts that training set apart
        down = block.mlp.experts.down_proj
        down.data += 3 * down.std() * torch.randn_like(down)
    student = copy.deepcopy(merge(teacher, 2))
    settings = FitConfig(steps=25, optim=OptimConfig(lr=2e-3, warmup=0.1, beta2=0.95))
    vocabulary = shards.meta["vocabulary"]
    said: list[str] = []
    fit(student, stream(shards), settings, tmp_path, vocabulary, teacher, say=said.append)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [20, 25]
    assert [json.loads(line) for line in said] == lines
    batch = next(stream(shards, seed=5)(None))[0][0]

    def apart(model):
        ours, theirs = (
            m(batch.ids_BT, batch.positions_BT, batch.documents_BT).detach().log_softmax(-1)
            for m in (model, teacher)
        )
        return float((theirs.exp() * (theirs - ours)).sum(-1)[batch.documents_BT >= 0].mean())

    assert apart(student) < 0.85 * apart(merge(teacher, 2))


def test_a_mixture_learns_without_a_teacher_and_resumes_bit_for_bit(shards, tmp_path):
    def train(folder, steps):
        model = copy.deepcopy(upcycle(dense(), Upcycling(4, 2, split=2)))
        settings = FitConfig(steps=6, optim=OptimConfig(lr=3e-3), save_every=3)
        given = stream(shards)

        def dying(state):
            for count, item in enumerate(given(state)):
                if count == steps:
                    raise KeyboardInterrupt
                yield item

        fit(model, dying, settings, folder, shards.meta["vocabulary"], say=lambda line: None)
        return model

    batch = next(stream(shards, seed=5)(None))[0][0]
    straight = train(tmp_path / "straight", 99)
    assert target_losses(straight, batch).mean() < target_losses(dense(), batch).mean()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", 4)
    resumed = train(tmp_path / "parts", 99)
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    load = json.loads((tmp_path / "parts/log.jsonl").read_text())["load"]
    assert load == json.loads((tmp_path / "straight/log.jsonl").read_text())["load"]
    assert set(load) == {"layers", "media", "idle"}
    # A finished run is read and not run again.
    again = train(tmp_path / "parts", 0)
    assert torch.equal(again.output_weight, straight.output_weight)
