import torch
import torch.nn.functional as F

from m27.train.objective import Tally, cross_entropy


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
