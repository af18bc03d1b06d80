"""One answer by every road: packed, padded, cached, in chunks and ragged equal the plain row."""

import itertools

import pytest
import torch

from m27.model.attention import (
    Cache,
    CacheError,
    document_edges,
    packed_layout,
    restarting_positions,
    runs,
)
from m27.model.decoder import Decoder
from tests.model.conftest import TINY, random_decoder

CLOSE = {"rtol": 0, "atol": 2e-5}


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, 97, shape)


@torch.no_grad()
def test_packed_equals_unpacked(model):
    lengths = [[5, 1, 9], [15], [3, 12]]
    rows = [[ids(1, n) for n in row] for row in lengths]
    documents = torch.tensor([[d for d, n in enumerate(row) for _ in range(n)] for row in lengths])
    packed = model(torch.cat([torch.cat(row, 1) for row in rows]), documents_BT=documents)
    for row, parts in enumerate(rows):
        alone = torch.cat([model(part) for part in parts], 1)[0]
        torch.testing.assert_close(packed[row], alone, **CLOSE)


@torch.no_grad()
def test_spans_equal_the_mask(tiny, monkeypatch):
    documents = torch.tensor([[4, 4, 4, 2, 2, 7, 7, -1], [0, 1, 1, 1, 1, 1, -1, -1]])
    tokens = ids(2, 8)
    walked = tiny(tokens, documents_BT=documents)

    def masked(documents_BT, device):
        layout = packed_layout(documents_BT.to("meta"))
        assert layout.mask is not None
        assert layout.mask.shape == (2, 1, 8, 8)
        run = runs(documents_BT)
        mask = (run[:, :, None] == run[:, None, :]) & torch.ones(8, 8).tril().bool()
        return type(layout)(causal=False, mask=mask[:, None])

    monkeypatch.setattr("m27.model.decoder.packed_layout", masked)
    torch.testing.assert_close(tiny(tokens, documents_BT=documents), walked, **CLOSE)


def by_document(q, k, v, edges, longest):
    """Stands for the GPU's kernel: the same attention, document by document."""
    assert int(edges.diff().max()) == longest
    parts = [
        torch.nn.functional.scaled_dot_product_attention(
            *(x[a:b].transpose(0, 1) for x in (q, k, v)), is_causal=True
        ).transpose(0, 1)
        for a, b in itertools.pairwise(edges.tolist())
    ]
    return torch.cat(parts)


@torch.no_grad()
def test_edges_equal_spans(model, monkeypatch):
    """What a GPU's kernel for ragged rows is given describes the same documents."""
    documents = torch.tensor([[4, 4, 4, 2, 2, 7, 7, 7], [7, 1, 1, 1, 1, 1, -1, -1]])
    tokens = ids(2, 8)
    walked = model(tokens, documents_BT=documents)
    edges, longest = document_edges(documents)
    assert edges.tolist() == [0, 3, 5, 8, 9, 14, 16]
    monkeypatch.setattr("m27.model.attention.attend_packed", by_document)
    layout = type(packed_layout(None))(causal=False, edges=edges, longest=longest)
    monkeypatch.setattr("m27.model.decoder.packed_layout", lambda documents, device: layout)
    torch.testing.assert_close(model(tokens, documents_BT=documents), walked, **CLOSE)


def test_no_gradient_crosses_a_document(tiny):
    x = torch.randn(1, 6, TINY.dim, requires_grad=True)
    tiny.hidden(x, documents_BT=torch.tensor([[0, 0, 0, 1, 1, 1]]))[0, 3:].sum().backward()
    assert x.grad is not None
    assert (x.grad[0, :3] == 0).all()
    assert (x.grad[0, 3:] != 0).any(1).all()


def test_nothing_sees_the_future(model):
    x = torch.randn(1, 6, model.config.dim, requires_grad=True)
    model.hidden(x)[0, 2].sum().backward()
    assert (x.grad[0, 3:] == 0).all()
    assert (x.grad[0, :3] != 0).any(1).all()


def test_positions_restart_with_each_run():
    documents = torch.tensor([[3, 3, 1, 1, 1, 3, -1]])
    assert restarting_positions(documents).tolist() == [[0, 1, 0, 1, 2, 0, 0]]
    assert runs(documents).tolist() == [[0, 0, 1, 1, 1, 2, 3]]


@torch.no_grad()
def test_cached_equals_uncached(model):
    tokens = ids(2, 20)
    whole = model(tokens)
    cache = Cache(model.config, batch=2, capacity=4)
    # A prompt, single steps, and a chunk behind a filled cache.
    cuts = [0, 7, 8, 9, 14, 20]
    parts = [model(tokens[:, a:b], cache=cache) for a, b in itertools.pairwise(cuts)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, **CLOSE)
    assert cache.lengths == [20, 20]


@torch.no_grad()
def test_rows_of_unequal_length_share_a_cache(model):
    tokens, lengths = ids(3, 10), [4, 7, 1]
    cache = Cache(model.config, batch=3, capacity=2)
    prompt = torch.zeros(3, 7, dtype=torch.long)
    valid = torch.full((3, 7), -1)
    for row, n in enumerate(lengths):
        prompt[row, :n] = tokens[row, :n]
        valid[row, :n] = 0
    first = model(prompt, documents_BT=valid, cache=cache)
    assert cache.lengths == lengths
    steps = []
    for step in range(3):
        new = torch.stack([tokens[row, n + step] for row, n in enumerate(lengths)])[:, None]
        steps.append(model(new, cache=cache))
    for row, n in enumerate(lengths):
        alone = model(tokens[row : row + 1, : n + 3])[0]
        torch.testing.assert_close(first[row, :n], alone[:n], **CLOSE)
        torch.testing.assert_close(torch.cat(steps, 1)[row], alone[n:], **CLOSE)


@torch.no_grad()
def test_truncated_cache_forgets(tiny):
    tokens = ids(1, 9)
    cache = Cache(TINY)
    tiny(tokens[:, :5], cache=cache)
    tiny(ids(1, 3), cache=cache)
    cache.truncate([5])
    torch.testing.assert_close(tiny(tokens[:, 5:], cache=cache), tiny(tokens)[:, 5:], **CLOSE)


def test_cache_refuses_what_it_cannot_hold(tiny):
    with pytest.raises(CacheError, match="513 tokens: the model holds at most 512"):
        tiny(ids(1, 513), cache=Cache(TINY))
    for row in ([0, 0, 1], [-1, 0, 0], [0, -1, 0]):
        with pytest.raises(CacheError, match="row 0"):
            tiny(ids(1, 3), documents_BT=torch.tensor([row]), cache=Cache(TINY))


def test_recomputing_changes_neither_loss_nor_gradient(model):
    tokens, documents = ids(2, 12), torch.tensor([[0] * 5 + [1] * 7, [0] * 12])
    grads = []
    for recompute in (False, True):
        model.recompute = recompute
        model.zero_grad()
        model(tokens, documents_BT=documents).square().mean().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for plain, again in zip(*grads, strict=True):
        torch.testing.assert_close(plain, again)


@torch.no_grad()
def test_bfloat16_follows_float32(config):
    model = random_decoder(config)
    tokens, documents = ids(2, 16), torch.tensor([[0] * 5 + [1] * 11, [0] * 16])
    wide, packed = model(tokens), model(tokens, documents_BT=documents)
    model.to(torch.bfloat16)
    assert (wide - model(tokens)).abs().mean() < 0.05 * wide.std()
    narrow = model(tokens, documents_BT=documents)
    assert narrow.dtype == torch.bfloat16
    assert (packed - narrow).abs().mean() < 0.05 * packed.std()


def test_weights_are_drawn_at_the_stock_scale():
    weight = Decoder(TINY).model.layers[0].mlp.gate_proj.weight
    assert 0.017 < weight.std() < 0.023


def test_nothing_is_drawn_on_the_meta_device(monkeypatch):
    """To draw an embedding's values there, torch imports its compiler, which takes seconds."""
    monkeypatch.setattr(torch.nn.Embedding, "reset_parameters", lambda _: pytest.fail("drawn"))
    with torch.device("meta"):
        weight = Decoder(TINY).model.embed_tokens.weight
    assert weight.is_meta and weight.requires_grad
    assert weight.shape == (TINY.vocab_size, TINY.dim)
