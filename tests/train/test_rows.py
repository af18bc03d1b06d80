import pytest
import torch

from m27.model.code_map import CodeMap
from m27.train.rows import Rows, fit_code_map
from tests.train.fixtures import CONTROLS, TEXT


def rows():
    return Rows(torch.randn(TEXT, 16), CONTROLS, (4, 4, 4), (4, 4, 2), torch.float32)


def test_gradients_reach_maps_and_controls_as_autograd_says():
    mine = rows()
    ids = torch.randint(0, len(mine.table_VD), (40,))
    g = torch.randn(40, 16)
    mine.add_input_gradient(ids, g)
    mine.backward()
    got = {name: p.grad.clone() for name, p in mine.parameters().items()}
    for parameter in mine.parameters().values():
        parameter.grad = None
    table = torch.cat([mine.table_VD[:TEXT], mine.trained_rows()])
    torch.testing.assert_close(table, mine.table_VD)
    table[ids].backward(g)
    for name, parameter in mine.parameters().items():
        torch.testing.assert_close(got[name], parameter.grad)


def test_no_gradient_shares_memory_with_the_buffer():
    """A leaf that kept the buffer as its gradient would change when the next step clears it."""
    mine = rows()
    mine.add_input_gradient(torch.arange(TEXT, TEXT + 8), torch.ones(8, 16))
    mine.backward()
    before = {name: p.grad.clone() for name, p in mine.parameters().items()}
    mine.refresh()
    assert all(torch.equal(before[n], p.grad) for n, p in mine.parameters().items())
    mine.backward()
    with pytest.raises(RuntimeError, match="refresh"):
        mine.backward()


def test_a_fitted_map_begins_near_its_captions():
    torch.manual_seed(0)
    words = torch.randn(4, 16)
    code_map = CodeMap((4, 4, 4), 16, std=0.1)
    # The first digit says which word; the others say nothing.
    codes = [torch.randint(0, 16, (6,)) * 4 + i % 4 for i in range(200)]
    captions = torch.stack([words[i % 4] for i in range(200)])
    share = fit_code_map(code_map, codes, captions, scale=0.1)
    assert share > 0.8
    made = code_map.rows().detach()
    centred = made - made.mean(0)
    likeness = torch.nn.functional.cosine_similarity(
        centred[:, None], (words - words.mean(0))[None], dim=-1
    )
    assert (likeness.argmax(1) == torch.arange(64) % 4).float().mean() > 0.9
