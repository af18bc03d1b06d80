"""A stock Llama checkpoint as a float32 GGUF file, from which llama.cpp makes its own formats.

    python -m benchmarks.peers.to_gguf CHECKPOINT OUT.gguf

Runs in llama.cpp's environment (numpy and gguf; no torch). llama.cpp's own script knows a
tokenizer by the hash of what it does to a test text, and does not know one with codes in it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip
WHOLE = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"
}  # fmt: skip


def tensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of a safetensors file, widened to float32."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    data = np.memmap(path, np.uint8, "r", offset=8 + size)
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        raw = np.array(data[start:end])
        if entry["dtype"] == "BF16":
            wide = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            wide = raw.view({"F32": np.float32, "F16": np.float16}[entry["dtype"]])
        yield name, wide.astype(np.float32).reshape(entry["shape"])


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection in the order of llama.cpp's rotary embedding."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def convert(folder: Path, out: Path) -> None:
    """Write `out`. Raises KeyError for a tensor of another family than Llama's."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(str(out), "llama")
    writer.add_name(folder.name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _vocabulary(writer, folder, config)
    for name, tensor in tensors(folder / "model.safetensors"):
        stem = name.removesuffix(".weight")
        if stem in WHOLE:
            writer.add_tensor(f"{WHOLE[stem]}.weight", tensor)
            continue
        _, _, layer, part = stem.split(".", 3)
        if part == "self_attn.q_proj":
            tensor = interleaved(tensor, heads)
        elif part == "self_attn.k_proj":
            tensor = interleaved(tensor, kv_heads)
        writer.add_tensor(f"blk.{layer}.{NAMES[part]}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _vocabulary(writer: gguf.GGUFWriter, folder: Path, config: dict[str, Any]) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    size = config["vocab_size"]
    names = [f"<|unused{i}|>" for i in range(size)]
    kinds = [int(gguf.TokenType.UNUSED)] * size
    for name, i in tokenizer["model"]["vocab"].items():
        names[i], kinds[i] = name, int(gguf.TokenType.NORMAL)
    for entry in tokenizer["added_tokens"]:
        names[entry["id"]] = entry["content"]
        kinds[entry["id"]] = int(gguf.TokenType.CONTROL)
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(names)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
