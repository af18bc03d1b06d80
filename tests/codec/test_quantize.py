"""FSQ: indices, digits and vectors are three spellings of one thing; gradients pass; every code
can be reached."""

from __future__ import annotations

import pytest
import torch

from m27.codec.quantize import FSQ


@pytest.mark.parametrize("levels", [(4, 4, 4), (8, 5, 3, 2), (2,)])
def test_indices_and_vectors_agree(levels: tuple[int, ...]) -> None:
    fsq = FSQ(levels)
    z = torch.randn(3, 50, len(levels)) * 3
    q, idx = fsq(z)
    assert torch.allclose(fsq.vectors(idx), q, atol=1e-6)
    assert int(idx.min()) >= 0
    assert int(idx.max()) < fsq.size


def test_every_code_round_trips() -> None:
    fsq = FSQ((4, 3, 5))
    idx = torch.arange(fsq.size)
    weights = torch.tensor([1, 4, 12])
    assert torch.equal((fsq.digits(idx) * weights).sum(-1), idx)
    # A latent in the middle of a code's cell quantises to that code.
    unit = (fsq.digits(idx) + 0.5) / torch.tensor([4.0, 3.0, 5.0])
    z = torch.atanh((unit * 2 - 1).clamp(-0.999999, 0.999999))
    assert torch.equal(fsq(z)[1], idx)


def test_gradient_passes_straight_through() -> None:
    fsq = FSQ((4, 4))
    z = torch.zeros(1, 1, 2, requires_grad=True)
    fsq(z)[0].sum().backward()
    assert z.grad is not None
    assert bool((z.grad > 0).all())


def test_bad_levels_are_named() -> None:
    with pytest.raises(ValueError, match="levels"):
        FSQ((4, 1))
