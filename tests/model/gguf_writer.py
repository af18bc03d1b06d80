"""A GGUF writer for tests, after ggml's specification and slow on purpose: one value at a time."""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from m27.model.config import Config

KINDS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8}


def quantize(values: np.ndarray, kind: str) -> tuple[bytes, np.ndarray]:
    """The bytes of a matrix in blocks of 32, and what they stand for in float32."""
    if kind == "F32":
        return values.astype("<f4").tobytes(), values.astype(np.float32)
    if kind == "F16":
        return values.astype("<f2").tobytes(), values.astype(np.float16).astype(np.float32)
    raw, meant = b"", []
    for block in values.reshape(-1, 32):
        low = float(block.min()) if kind == "Q4_1" else 0.0
        reach = float(block.max() - low) / 15 if kind == "Q4_1" else float(abs(block).max())
        scale = np.float16(reach if kind == "Q4_1" else reach / (127 if kind == "Q8_0" else 7))
        low16, zero = np.float16(low), 8 if kind == "Q4_0" else 0
        q = np.round((block - np.float32(low16)) / np.float32(scale)) + zero
        q = np.clip(q, *((-127, 127) if kind == "Q8_0" else (0, 15))).astype(int)
        raw += struct.pack("<e", scale)
        if kind == "Q4_1":
            raw += struct.pack("<e", low16)
        if kind == "Q8_0":
            raw += struct.pack("<32b", *q)
        else:
            raw += bytes(int(q[i]) | int(q[i + 16]) << 4 for i in range(16))
        meant += [np.float32(n - zero) * np.float32(scale) + np.float32(low16) for n in q]
    return raw, np.array(meant, dtype=np.float32).reshape(values.shape)


def permute(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows i and i + head_dim/2 of a head made neighbours, as llama files have them."""
    out = np.empty_like(rows)
    for row in range(len(rows)):
        head, within = divmod(row, head_dim)
        half, pair = divmod(within, head_dim // 2)
        out[head * head_dim + 2 * pair + half] = rows[row]
    return out


def write(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, tuple[str, Any]]) -> None:
    """Write a file of the given metadata and tensors (kind, matrix)."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    def value(item: Any) -> bytes:
        if isinstance(item, bool):
            return struct.pack("<I?", 7, item)
        if isinstance(item, int):
            return struct.pack("<II", 4, item)
        if isinstance(item, float):
            return struct.pack("<If", 6, item)
        if isinstance(item, str):
            return struct.pack("<I", 8) + text(item)
        return struct.pack("<IIQ", 9, 8, len(item)) + b"".join(text(part) for part in item)

    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(text(key) + value(item) for key, item in metadata.items())
    body = b""
    for name, (kind, matrix) in tensors.items():
        head += text(name) + struct.pack("<I", matrix.ndim)
        head += struct.pack(f"<{matrix.ndim}Q", *reversed(matrix.shape))
        head += struct.pack("<IQ", KINDS[kind], len(body))
        raw = quantize(matrix, kind)[0]
        body += raw + b"\0" * (-len(raw) % 32)
    path.write_bytes(head + b"\0" * (-len(head) % 32) + body)


def write_llama(
    path: Path, config: Config, state: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """A llama file of a state dict under HF names; what its tensors stand for comes back."""
    names = {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
        "o_proj": "attn_output", "norm": "output_norm",
        "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "gate_proj": "ffn_gate",
        "up_proj": "ffn_up", "down_proj": "ffn_down", "embed_tokens": "token_embd",
    }  # fmt: skip
    tensors, meant = {}, {}
    for name, matrix in state.items():
        parts = name.split(".")
        kind = "F32" if matrix.ndim == 1 else "Q8_0" if "embed" in name else "Q4_1"
        stored = names[parts[-2]] + ".weight"
        if "layers" in parts:
            stored = f"blk.{parts[2]}.{stored}"
        meant[name] = quantize(matrix, kind)[1]
        if parts[-2] in ("q_proj", "k_proj"):
            matrix = permute(matrix, config.head_dim)
        tensors[stored] = (kind, matrix)
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": config.n_layers,
        "llama.context_length": config.max_len,
        "llama.embedding_length": config.dim,
        "llama.feed_forward_length": config.ffn_dim,
        "llama.attention.head_count": config.n_heads,
        "llama.attention.head_count_kv": config.n_kv_heads,
        "llama.attention.layer_norm_rms_epsilon": config.norm_eps,
        "llama.rope.freq_base": config.rope_theta,
        "tokenizer.ggml.tokens": ["a", "ä", "<|end|>"],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": "{{ x }}",
    }
    write(path, metadata, tensors)
    return meant
