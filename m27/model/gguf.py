"""Read a GGUF file: its metadata, and its tensors under Hugging Face names.

Blocks can be had as they are stored (`Blocks`: integers with a scale and a minimum for every 32
values) or widened to float32. It knows the formats F32, F16, BF16, Q4_0, Q4_1 and Q8_0, and the
Llama and Qwen3 layouts, which is what the published small models use. Source of the format: the
GGUF specification of ggml (version 2 and 3, little-endian).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m27.model.config import Config, Family

BLOCK = 32
_PIECE = 1 << 20  # values that are widened at a time
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
# Type number -> (name, values in a block, bytes in a block).
_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2),
    2: ("Q4_0", BLOCK, 18), 3: ("Q4_1", BLOCK, 20), 8: ("Q8_0", BLOCK, 34),
}  # fmt: skip


class GGUFError(ValueError):
    """A file that is not GGUF, is cut short, or holds what this reader does not know."""


@dataclass(frozen=True)
class Blocks:
    """A matrix [R, C] as quantised blocks of 32 values along C; value = q * scale + minimum.

    `q` is uint8 [R, C/2] for 4 bits (within a block byte i holds value i low and value i+16 high,
    as in the file) or int8 [R, C]; `scale` is float16 [R, C/32]; `minimum` the same, or None where
    it is zero. Q4_0 is held with minimum -8 * scale, which float16 holds exactly.
    """

    q: Tensor
    scale: Tensor
    minimum: Tensor | None

    @property
    def shape(self) -> tuple[int, int]:
        """[R, C], of the values."""
        rows, columns = self.q.shape
        return rows, columns * (2 if self.q.dtype == torch.uint8 else 1)

    def dequantize(self, out: Tensor | None = None) -> Tensor:
        """The matrix [R, C] in float32, exact to the last bit of q * scale + minimum.

        It is written into `out` where that is given. Rows are taken some at a time, so that what is
        needed besides is small.
        """
        rows, columns = self.shape
        out = torch.empty(rows, columns, device=self.q.device) if out is None else out
        step = max(1, _PIECE // max(columns, 1))
        for i in range(0, rows, step):
            part = slice(i, i + step)
            q = self.q[part]
            if q.dtype == torch.uint8:
                halves = q.view(len(q), -1, BLOCK // 2)
                q = torch.cat((halves & 15, halves >> 4), dim=-1)
            values = q.reshape(len(q), -1, BLOCK) * self.scale[part].float()[..., None]
            if self.minimum is not None:
                values += self.minimum[part].float()[..., None]
            out[part] = values.flatten(1)
        return out

    def to(self, device: torch.device) -> Blocks:
        """The same blocks on a device."""
        minimum = None if self.minimum is None else self.minimum.to(device)
        return Blocks(self.q.to(device), self.scale.to(device), minimum)

    @property
    def bytes(self) -> int:
        """What is held, in bytes."""
        return sum(t.nbytes for t in (self.q, self.scale, self.minimum) if t is not None)

    def reorder(self, order: Tensor) -> Blocks:
        """The same rows in another order [R]; blocks lie along the columns, so nothing is lost."""
        minimum = None if self.minimum is None else self.minimum[order]
        return Blocks(self.q[order], self.scale[order], minimum)


@dataclass(frozen=True)
class GGUF:
    """An opened file: `metadata` by key, and `entries` name -> (shape, type number, offset)."""

    path: Path
    metadata: dict[str, Any]
    entries: dict[str, tuple[tuple[int, ...], int, int]]

    def config(self) -> Config:
        """The decoder's shape. Raises `GGUFError` for an architecture other than llama or qwen3."""
        architecture = self.metadata.get("general.architecture")
        families: dict[str, Family] = {"llama": "llama", "qwen3": "qwen3"}
        if architecture not in families:
            raise GGUFError(
                f"{self.path}: architecture {architecture!r} is neither llama nor qwen3"
            )

        def get(key: str, default: Any = None) -> Any:
            value = self.metadata.get(f"{architecture}.{key}", default)
            if value is None:
                raise GGUFError(f"{self.path}: metadata {architecture}.{key} is missing")
            return value

        dim, heads = get("embedding_length"), get("attention.head_count")
        epsilon = float(get("attention.layer_norm_rms_epsilon"))
        return Config(
            family=families[architecture],
            vocab_size=self.entries["token_embd.weight"][0][0],
            dim=dim,
            n_layers=get("block_count"),
            n_heads=heads,
            n_kv_heads=get("attention.head_count_kv", heads),
            head_dim=get("attention.key_length", dim // heads),
            ffn_dim=get("feed_forward_length"),
            rope_theta=float(get("rope.freq_base", 10_000.0)),
            # Stored as float32; the shortest decimal that rounds to it is what was meant.
            norm_eps=float(str(np.float32(epsilon))),
            tied="output.weight" not in self.entries,
            max_len=get("context_length"),
            bos_id=self.metadata.get("tokenizer.ggml.bos_token_id"),
            eos_id=self.metadata.get("tokenizer.ggml.eos_token_id"),
            pad_id=self.metadata.get("tokenizer.ggml.padding_token_id"),
        )

    def tokenizer(self) -> dict[str, Any]:
        """The tokenizer's metadata without its prefix: `tokens`, `merges`, `token_type`, `pre`,
        `model`, `bos_token_id`, … and `chat_template`."""
        out = {}
        for key, value in self.metadata.items():
            if key.startswith("tokenizer."):
                out[key.removeprefix("tokenizer.").removeprefix("ggml.")] = value
        return out

    def tensors(self) -> dict[str, Tensor | Blocks]:
        """Every tensor under its Hugging Face name: float32 or float16 as stored, or `Blocks`."""
        config = self.config()
        data = np.memmap(self.path, dtype=np.uint8, mode="r")
        out: dict[str, Tensor | Blocks] = {}
        for name, (shape, kind, offset) in self.entries.items():
            if name.startswith("rope_freqs"):
                continue
            tensor = _read(data, shape, kind, offset, f"{self.path}: {name}")
            hf = _hf_name(name)
            if config.family == "llama" and ("q_proj" in hf or "k_proj" in hf):
                order = _unpermuted(shape[0], config.head_dim)
                tensor = tensor.reorder(order) if isinstance(tensor, Blocks) else tensor[order]
            out[hf] = tensor
        return out

    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor under its Hugging Face name, widened to float32."""
        return {
            name: value.dequantize() if isinstance(value, Blocks) else value.float()
            for name, value in self.tensors().items()
        }


def read_gguf(path: Path | str) -> GGUF:
    """Open a GGUF file and read its header. Raises `GGUFError` saying what is wrong."""
    path = Path(path)
    with path.open("rb") as file:
        try:
            return _header(path, file.read, file.tell, path.stat().st_size)
        except (struct.error, UnicodeDecodeError, KeyError) as error:
            raise GGUFError(f"{path}: broken or truncated header ({error})") from None


def _header(path: Path, read: Callable[[int], bytes], tell: Callable[[], int], size: int) -> GGUF:
    def number(code: str) -> Any:
        return struct.unpack("<" + code, read(struct.calcsize(code)))[0]

    def text() -> str:
        length = number("Q")
        if length > size:
            raise struct.error("a string longer than the file")
        return read(length).decode("utf-8")

    def value(kind: int) -> Any:
        if kind == _STRING:
            return text()
        if kind == _ARRAY:
            inner, count = number("I"), number("Q")
            if count > size:
                raise struct.error("an array longer than the file")
            return [value(inner) for _ in range(count)]
        return number(_SCALARS[kind])

    if read(4) != b"GGUF":
        raise GGUFError(f"{path}: not a GGUF file")
    version, n_tensors, n_keys = number("I"), number("Q"), number("Q")
    if version not in (2, 3):
        raise GGUFError(f"{path}: GGUF version {version} is not known")
    metadata: dict[str, Any] = {}
    for _ in range(n_keys):
        key = text()
        metadata[key] = value(number("I"))
    headers = []
    for _ in range(n_tensors):
        name = text()
        dims = [number("Q") for _ in range(number("I"))]
        headers.append((name, tuple(reversed(dims)), number("I"), number("Q")))
    align = metadata.get("general.alignment", 32)
    start = -(-tell() // align) * align
    entries = {name: (shape, kind, start + offset) for name, shape, kind, offset in headers}
    return GGUF(path, metadata, entries)


def _read(
    data: NDArray[np.uint8], shape: tuple[int, ...], kind: int, offset: int, where: str
) -> Tensor | Blocks:
    if kind not in _TYPES:
        raise GGUFError(f"{where}: tensor type {kind} is not known")
    name, values, width = _TYPES[kind]
    columns = shape[-1]
    if columns % values:
        raise GGUFError(f"{where}: {columns} columns are not whole blocks of {values}")
    count = int(np.prod(shape)) // values
    raw = np.array(data[offset : offset + count * width])
    if raw.size != count * width:
        raise GGUFError(f"{where}: the file ends within the tensor")
    if values == 1:
        dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[name]
        return torch.from_numpy(raw).view(dtype).view(shape)
    rows = shape[0]
    raw = raw.reshape(rows, columns // BLOCK, width)
    head = 4 if name == "Q4_1" else 2
    half = torch.from_numpy(raw[..., :head].copy()).view(torch.float16)
    q = torch.from_numpy(raw[..., head:].copy()).view(rows, -1)
    if name == "Q8_0":
        return Blocks(q.view(torch.int8), half[..., 0].contiguous(), None)
    scale = half[..., 0].contiguous()
    minimum = half[..., 1].contiguous() if name == "Q4_1" else scale * -8
    return Blocks(q, scale, minimum)


def _unpermuted(rows: int, head_dim: int) -> Tensor:
    """Row order that undoes the file's interleaving of rotary pairs."""
    order = torch.arange(rows).view(-1, head_dim // 2, 2)
    return order.transpose(1, 2).flatten()


_NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "token_embd": "model.embed_tokens", "output_norm": "model.norm",
    "output": "lm_head",
}  # fmt: skip


def _hf_name(name: str) -> str:
    stem, _, tail = name.rpartition(".")
    parts = stem.split(".")
    if parts[-1] not in _NAMES or tail != "weight":
        raise GGUFError(f"{name}: a tensor this reader does not know")
    prefix = f"model.layers.{parts[1]}." if parts[0] == "blk" else ""
    return f"{prefix}{_NAMES[parts[-1]]}.weight"
