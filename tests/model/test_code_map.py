"""Rows of codes: the digit order of the codec, the scale of text rows, gradients to every part."""

import pytest
import torch

from m27.model.code_map import CodeMap


def test_rows_follow_the_digits_least_significant_first():
    levels = (3, 2, 4)
    code_map = CodeMap(levels, dim=8, hidden=16)
    torch.nn.init.normal_(code_map.down.weight)
    rows = code_map.rows()
    assert rows.shape == (24, 8)
    for code in range(24):
        digits = (code % 3, code // 3 % 2, code // 6)
        one_hot = torch.zeros(9)
        for digit, start in zip(digits, (0, 3, 5), strict=True):
            one_hot[start + digit] = 1
        want = code_map.linear(one_hot) + code_map.down(
            torch.nn.functional.silu(code_map.up(one_hot))
        )
        torch.testing.assert_close(rows[code], want)


def test_digit_order_is_that_of_the_codec():
    from m27.codec.quantize import FSQ  # rooms may not import one another; their test may

    levels = (4, 4, 2)
    digits = FSQ(levels).digits(torch.arange(32))
    code_map = CodeMap(levels, dim=4)
    for column, start in zip(digits.T, (0, 4, 8), strict=True):
        assert (code_map.digits[torch.arange(32), start + column] == 1).all()


@pytest.mark.parametrize("std", [0.05, 0.14])
def test_rows_start_at_the_scale_asked_for(std):
    assert 0.9 * std < CodeMap((4,) * 5, 576, std=std).rows().std() < 1.1 * std


def test_every_parameter_learns_in_two_steps():
    code_map = CodeMap((4, 4), dim=8, hidden=4)
    optimizer = torch.optim.SGD(code_map.parameters(), lr=0.1)
    before = [p.detach().clone() for p in code_map.parameters()]
    for _ in range(2):
        optimizer.zero_grad()
        (code_map.rows() - torch.randn(16, 8)).square().sum().backward()
        optimizer.step()
    assert all((p != old).any() for p, old in zip(code_map.parameters(), before, strict=True))


def test_only_parameters_are_stored_and_bad_levels_are_refused():
    assert set(CodeMap((4, 4), 8).state_dict()) == {
        "linear.weight", "up.weight", "up.bias", "down.weight"
    }  # fmt: skip
    with pytest.raises(ValueError, match="levels"):
        CodeMap((4, 1), 8)
