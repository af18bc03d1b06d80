"""GGUF files: blocks to the last bit, names and row order as in the stock form, refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from m27.model.checkpoint import assemble
from m27.model.gguf import Blocks, GGUFError, read_gguf
from tests.model.conftest import TINY, random_decoder
from tests.model.gguf_writer import quantize, write, write_llama

HEAD = {"general.architecture": "llama", "llama.embedding_length": 64, "llama.block_count": 1,
        "llama.attention.head_count": 4, "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.feed_forward_length": 96, "llama.context_length": 64}  # fmt: skip


def matrix(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("kind", ["F32", "F16", "Q4_0", "Q4_1", "Q8_0"])
def test_every_format_is_read_to_the_last_bit(tmp_path, kind):
    values = matrix(6, 64)
    write(tmp_path / "m.gguf", HEAD, {"token_embd.weight": (kind, values)})
    found = read_gguf(tmp_path / "m.gguf").state_dict()["model.embed_tokens.weight"]
    assert found.dtype == torch.float32
    assert np.array_equal(found.numpy(), quantize(values, kind)[1])


def test_a_llama_file_gives_the_stock_model(tmp_path):
    model = random_decoder(TINY)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    meant = write_llama(tmp_path / "m.gguf", TINY, state)
    gguf = read_gguf(tmp_path / "m.gguf")
    assert gguf.config() == replace(TINY, eos_id=2)
    assert gguf.tokenizer() == {
        "tokens": ["a", "ä", "<|end|>"], "add_bos_token": False, "eos_token_id": 2,
        "chat_template": "{{ x }}",
    }  # fmt: skip
    found = gguf.state_dict()
    assert found.keys() == meant.keys()
    for name, values in meant.items():
        assert np.array_equal(found[name].numpy(), values), name
    ids = torch.randint(0, TINY.vocab_size, (1, 8))
    near = assemble(gguf.config(), found)(ids) - model(ids)
    assert near.abs().mean() < 0.5 * model(ids).std()


def test_blocks_keep_their_meaning_in_any_order():
    blocks = Blocks(
        torch.randint(0, 256, (4, 32), dtype=torch.uint8), torch.rand(4, 2).half(),
        torch.rand(4, 2).half(),
    )  # fmt: skip
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(blocks.reorder(order).dequantize(), blocks.dequantize()[order])


def test_broken_files_are_refused_by_name(tmp_path):
    path = tmp_path / "m.gguf"
    write(path, HEAD, {"token_embd.weight": ("Q4_1", matrix(6, 64))})
    whole = path.read_bytes()
    path.write_bytes(b"PK" + whole)
    with pytest.raises(GGUFError, match=r"m\.gguf: not a GGUF file"):
        read_gguf(path)
    path.write_bytes(whole[:90])
    with pytest.raises(GGUFError, match=r"m\.gguf: broken or truncated"):
        read_gguf(path)
    path.write_bytes(whole[:-64])
    with pytest.raises(GGUFError, match="the file ends within the tensor"):
        read_gguf(path).tensors()
    path.write_bytes(whole[:4] + b"\x09" + whole[5:])
    with pytest.raises(GGUFError, match="version 9"):
        read_gguf(path)


@pytest.mark.parametrize("length", [8, 24, 40, 77])
def test_a_cut_header_never_reads_as_whole(tmp_path, length):
    path = tmp_path / "m.gguf"
    write(path, HEAD, {})
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(GGUFError):
        read_gguf(path)


def test_unknown_architectures_and_tensors_are_refused(tmp_path):
    path = tmp_path / "m.gguf"
    write(path, HEAD | {"general.architecture": "gpt2"}, {})
    with pytest.raises(GGUFError, match="gpt2"):
        read_gguf(path).config()
    tensors = {"token_embd.weight": ("F32", matrix(6, 64)), "odd.weight": ("F32", matrix(2, 32))}
    write(path, HEAD, tensors)
    with pytest.raises(GGUFError, match=r"odd\.weight"):
        read_gguf(path).tensors()
