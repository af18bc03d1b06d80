"""objective.py against torch.nn.functional over the full logits."""

import pytest
import torch
import torch.nn.functional as F

from m27.train.objective import Tally, cross_entropy, divergence


def test_pieces_equal_the_full_logits():
    h = torch.randn(23, 8, requires_grad=True)
    table = torch.randn(50, 8, requires_grad=True)
    targets, weights = torch.randint(0, 50, (23,)), torch.rand(23)
    first = 30
    grad = torch.ones(20, 8)
    losses, g = cross_entropy(h.detach(), table.detach(), targets, weights, first, grad, piece=5)
    want = F.cross_entropy(h @ table.T, targets, reduction="none")
    (want * weights).sum().backward()
    torch.testing.assert_close(losses, want)
    torch.testing.assert_close(g, h.grad)
    torch.testing.assert_close(grad - 1, table.grad[first:])


def test_tally_means_by_medium_and_task():
    tally = Tally(("text", "image"), ("draw", "speak"))
    tally.add(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]), torch.tensor([0, 0, 0]))
    tally.add(torch.tensor([2.0]), torch.tensor([0]), torch.tensor([0]))
    assert tally.means() == ({"text": 2.0, "image": 5.0}, {"draw": 2.75}, 4)
    tally.clear()
    assert tally.means() == ({}, {}, 0)


def test_scored_among_spans_equals_cross_entropy_over_their_columns():
    h = torch.randn(23, 8, requires_grad=True)
    table = torch.randn(50, 8, requires_grad=True)
    spans, first = ((20, 22), (27, 40)), 30  # the second begins among frozen rows
    columns = torch.tensor([*range(20, 22), *range(27, 40)])
    place, weights = torch.randint(0, len(columns), (23,)), torch.rand(23)
    grad = torch.ones(20, 8)
    losses, g = cross_entropy(
        h.detach(), table.detach(), columns[place], weights, first, grad, piece=5, spans=spans
    )
    want = F.cross_entropy((h @ table.T)[:, columns], place, reduction="none")
    (want * weights).sum().backward()
    torch.testing.assert_close(losses, want)
    torch.testing.assert_close(g, h.grad)
    torch.testing.assert_close(grad - 1, table.grad[first:])
    assert (grad[10:] == 1).all()  # ids outside the spans learn nothing


@pytest.mark.parametrize("spans", [None, ((20, 22), (27, 40))])
def test_z_loss_is_in_the_gradients_and_not_in_the_losses(spans):
    h = torch.randn(23, 8, requires_grad=True)
    table = torch.randn(50, 8, requires_grad=True)
    columns = torch.tensor([i for begin, end in spans or ((0, 50),) for i in range(begin, end)])
    place, weights, first = torch.randint(0, len(columns), (23,)), torch.rand(23), 30
    grad = torch.zeros(20, 8)
    losses, g = cross_entropy(
        h.detach(), table.detach(), columns[place], weights, first, grad, piece=5, spans=spans, z_loss=0.3
    )
    logits = (h @ table.T)[:, columns]
    plain = F.cross_entropy(logits, place, reduction="none")
    ((plain + 0.3 * logits.logsumexp(1) ** 2) * weights).sum().backward()
    torch.testing.assert_close(losses, plain)
    torch.testing.assert_close(g, h.grad)
    torch.testing.assert_close(grad, table.grad[first:])


def test_divergence_from_the_base_equals_autograd():
    h = torch.randn(17, 8, requires_grad=True)
    table = torch.randn(50, 8, requires_grad=True)
    first, base = 30, torch.randn(17, 8)
    targets = torch.randint(0, 50, (17,))
    weights, share = torch.rand(17), torch.rand(17)
    grad = torch.zeros(20, 8)
    losses, apart, g = divergence(
        h.detach(), table.detach(), base, targets, weights, share, first, grad, piece=5
    )
    log_q = F.log_softmax(h @ table.T, dim=1)
    log_p = F.log_softmax(base @ table.detach()[:first].T, dim=1)
    want_apart = F.kl_div(log_q[:, :first], log_p, log_target=True, reduction="none").sum(1)
    want = F.nll_loss(log_q, targets, reduction="none")
    (weights * ((1 - share) * want + share * want_apart)).sum().backward()
    torch.testing.assert_close(losses, want)
    torch.testing.assert_close(apart, want_apart)
    torch.testing.assert_close(g, h.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(grad, table.grad[first:], rtol=1e-4, atol=1e-6)


def test_mass_on_ids_that_the_base_lacks_is_divergence():
    h, table = torch.randn(4, 8), torch.randn(50, 8)
    some = torch.zeros(4, dtype=torch.long), torch.ones(4), torch.ones(4)
    _, apart, _ = divergence(h, table, h, *some, 30, torch.zeros(20, 8))
    outside = torch.softmax(h @ table.T, 1)[:, 30:].sum(1)
    torch.testing.assert_close(apart, -torch.log1p(-outside))


def test_tally_of_divergences():
    tally = Tally(("text",), ("text",))
    assert tally.mean_divergence() is None
    tally.add_divergence(torch.tensor([1.0, 2.0]))
    tally.add_divergence(torch.tensor([6.0]))
    assert tally.mean_divergence() == 3.0
