"""Sizes of the decoder: typed, read from and written as a Hugging Face `config.json`.

Knows three stock families (Llama, Qwen3, Qwen3-MoE) and refuses, by name, any setting it does not
implement; it knows nothing of tensors, media or the layout of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

Family = Literal["llama", "qwen3", "qwen3_moe"]

_ARCHITECTURES: dict[Family, str] = {
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}


class ConfigError(ValueError):
    """A configuration that this decoder does not implement; the message names the field."""


@dataclass(frozen=True)
class Config:
    """The shape of a decoder.

    `dim` is the width of the residual stream, `ffn_dim` the inner width of a dense MLP,
    `expert_dim` that of one expert; `max_len` counts tokens. `n_experts` 0 means dense. `bos_id`,
    `eos_id` and `pad_id` are carried through to `config.json` and not used by the arithmetic.
    `shared_dim` is the inner width of an expert that every token passes besides (0: none); the stock
    architecture has none, so this field is of training alone and `to_hf` writes `folded`.

    Raises `ConfigError` when fields contradict each other.
    """

    family: Family
    vocab_size: int
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tied: bool = False
    max_len: int = 8192
    n_experts: int = 0
    top_k: int = 0
    expert_dim: int = 0
    norm_topk: bool = True
    shared_dim: int = 0
    bos_id: int | None = None
    eos_id: int | None = None
    pad_id: int | None = None

    def __post_init__(self) -> None:
        if self.family not in _ARCHITECTURES:
            raise ConfigError(f"family: {self.family!r} is none of {', '.join(_ARCHITECTURES)}")
        for name in (
            "vocab_size",
            "dim",
            "n_layers",
            "n_heads",
            "n_kv_heads",
            "head_dim",
            "max_len",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is not positive")
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(
                f"n_kv_heads: {self.n_kv_heads} does not divide n_heads {self.n_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim: {self.head_dim} is odd, rotary embedding needs pairs")
        if (self.family == "qwen3_moe") != (self.n_experts > 0):
            raise ConfigError(f"n_experts: {self.n_experts} does not suit family {self.family!r}")
        if self.n_experts and not (0 < self.top_k <= self.n_experts and self.expert_dim > 0):
            raise ConfigError(
                f"top_k: {self.top_k} of {self.n_experts} experts of width {self.expert_dim}"
            )
        if self.shared_dim and not (self.shared_dim > 0 and self.n_experts and self.norm_topk):
            raise ConfigError(
                f"shared_dim: {self.shared_dim} needs experts whose weights sum to one (norm_topk)"
            )
        if not self.n_experts and self.ffn_dim < 1:
            raise ConfigError(f"ffn_dim: {self.ffn_dim} is not positive")

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normalised per head (the Qwen3 families)."""
        return self.family != "llama"

    @property
    def folded(self) -> Config:
        """The same function in the stock architecture: the shared expert's inner units in every expert.

        The weights of the chosen experts sum to one, so what stands in each of them counts once.
        """
        return replace(self, expert_dim=self.expert_dim + self.shared_dim, shared_dim=0)

    @classmethod
    def from_hf(cls, data: Mapping[str, Any]) -> Config:
        """Read the dictionary of a Hugging Face `config.json`.

        Raises `ConfigError` for another architecture, a missing field, or a setting that would
        change the arithmetic and is not implemented (biases, rope scaling, sliding windows, dense
        layers amid experts).
        """
        family = data.get("model_type")
        if family not in _ARCHITECTURES:
            raise ConfigError(f"model_type: {family!r} is none of {', '.join(_ARCHITECTURES)}")
        family = cast(Family, family)
        _refuse_unknown(data)

        def need(key: str) -> Any:
            if data.get(key) is None:
                raise ConfigError(f"{key}: missing from config.json")
            return data[key]

        moe = family == "qwen3_moe"
        heads = int(need("num_attention_heads"))
        rope = data.get("rope_parameters") or {}
        eos = data.get("eos_token_id")
        return cls(
            family=family,
            vocab_size=int(need("vocab_size")),
            dim=int(need("hidden_size")),
            n_layers=int(need("num_hidden_layers")),
            n_heads=heads,
            n_kv_heads=int(data.get("num_key_value_heads") or heads),
            head_dim=int(data.get("head_dim") or int(need("hidden_size")) // heads),
            ffn_dim=int(data.get("intermediate_size") or 0)
            if moe
            else int(need("intermediate_size")),
            rope_theta=float(rope.get("rope_theta") or data.get("rope_theta") or 10_000.0),
            norm_eps=float(data.get("rms_norm_eps", 1e-6)),
            tied=bool(data.get("tie_word_embeddings", False)),
            max_len=int(need("max_position_embeddings")),
            n_experts=int(data.get("num_experts") or need("num_local_experts")) if moe else 0,
            top_k=int(need("num_experts_per_tok")) if moe else 0,
            expert_dim=int(need("moe_intermediate_size")) if moe else 0,
            norm_topk=bool(data.get("norm_topk_prob", False)) if moe else True,
            bos_id=data.get("bos_token_id"),
            eos_id=eos[0] if isinstance(eos, list) else eos,
            pad_id=data.get("pad_token_id"),
        )

    def to_hf(self) -> dict[str, Any]:
        """The dictionary of a stock `config.json`, of `folded` (without the dtype, which `save` adds)."""
        out: dict[str, Any] = {
            "architectures": [_ARCHITECTURES[self.family]],
            "model_type": self.family,
            "vocab_size": self.vocab_size,
            "hidden_size": self.dim,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.ffn_dim,
            "hidden_act": "silu",
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.norm_eps,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": self.max_len,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": self.bos_id,
            "eos_token_id": self.eos_id,
            "pad_token_id": self.pad_id,
            "initializer_range": 0.02,
            "use_cache": True,
        }
        if self.family == "llama":
            out["mlp_bias"] = False
        if self.n_experts:
            out |= {
                "num_experts": self.n_experts,
                "num_experts_per_tok": self.top_k,
                "moe_intermediate_size": self.folded.expert_dim,
                "norm_topk_prob": self.norm_topk,
                "decoder_sparse_step": 1,
                "mlp_only_layers": [],
                "router_aux_loss_coef": 0.001,
            }
        return out


def _refuse_unknown(data: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for a setting of a stock config that would change the arithmetic."""
    if data.get("hidden_act", "silu") != "silu":
        raise ConfigError(f"hidden_act: {data['hidden_act']!r} is not implemented, only 'silu'")
    for key in ("attention_bias", "mlp_bias", "use_sliding_window", "mlp_only_layers"):
        if data.get(key):
            raise ConfigError(f"{key}: {data[key]!r} is not implemented")
    if data.get("decoder_sparse_step", 1) != 1:
        raise ConfigError(f"decoder_sparse_step: {data['decoder_sparse_step']} is not implemented")
    for key in ("rope_scaling", "rope_parameters"):
        rope = data.get(key) or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise ConfigError(f"{key}: rope type {kind!r} is not implemented, only 'default'")


# Text ids of SmolLM2 (49,152), 128 control ids, 16,384 image codes, 8,192 audio codes: 577 * 128.
NANO_VOCAB = 73_856
# Text ids of Qwen3 (151,643 and 26 specials, padded) and the same 24,704 ids behind them.
_QWEN_VOCAB = 151_936 + 24_704

# fmt: off
SIZES: dict[str, Config] = {
    # For tests: every mechanism, nothing to wait for.
    "tiny": Config(
        "llama", vocab_size=512, dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16,
        ffn_dim=128, tied=True, max_len=512,
    ),
    # SmolLM2-135M with the longer vocabulary: the shipped model.
    "nano": Config(
        "llama", vocab_size=NANO_VOCAB, dim=576, n_layers=30, n_heads=9, n_kv_heads=3, head_dim=64,
        ffn_dim=1536, rope_theta=100_000.0, tied=True, max_len=8192, bos_id=1, eos_id=2, pad_id=2,
    ),
    # SmolLM2-1.7B.
    "1b7": Config(
        "llama", vocab_size=NANO_VOCAB, dim=2048, n_layers=24, n_heads=32, n_kv_heads=32,
        head_dim=64, ffn_dim=8192, rope_theta=130_000.0, tied=True, max_len=8192, bos_id=1,
        eos_id=2, pad_id=2,
    ),
    # Qwen3-8B, a little shallower so that the longer vocabulary keeps it within 6.5 to 8 B.
    "7b": Config(
        "qwen3", vocab_size=_QWEN_VOCAB, dim=4096, n_layers=32, n_heads=32, n_kv_heads=8,
        head_dim=128, ffn_dim=12_288, rope_theta=1_000_000.0, norm_eps=1e-6, max_len=40_960,
        bos_id=151_643, eos_id=151_645, pad_id=151_643,
    ),
    # Qwen3-30B-A3B.
    "moe": Config(
        "qwen3_moe", vocab_size=_QWEN_VOCAB, dim=2048, n_layers=48, n_heads=32, n_kv_heads=4,
        head_dim=128, ffn_dim=6144, rope_theta=1_000_000.0, norm_eps=1e-6, max_len=40_960,
        n_experts=128, top_k=8, expert_dim=768, bos_id=151_643, eos_id=151_645, pad_id=151_643,
    ),
}
# fmt: on


@dataclass(frozen=True)
class SizeRow:
    """One row of `m27 sizes`: counts of parameters, and bytes.

    `int8` and `int4` are blocks of 32 values with a float16 scale, and for 4 bits a float16 minimum
    too (8.5 and 5 bits a value: Q8_0 and Q4_1 of ggml); norms stay in bfloat16. `cache_per_token`
    is keys and values in bfloat16. `training` is full training with AdamW in mixed precision,
    without activations: weights and gradients in bfloat16, master weights and two moments in
    float32.
    """

    name: str
    family: Family
    parameters: int
    active_parameters: int
    bf16: int
    int8: int
    int4: int
    cache_per_token: int
    training: int


def size_row(name: str, config: Config) -> SizeRow:
    """Count one configuration by its formula; a test holds this to the built decoder."""
    c = config
    heads = (2 * c.n_heads + 2 * c.n_kv_heads) * c.head_dim * c.dim
    norms = 2 * c.dim + (2 * c.head_dim if c.qk_norm else 0)
    router = c.n_experts * c.dim
    expert = 3 * c.dim * (c.expert_dim if c.n_experts else c.ffn_dim)
    rows = c.vocab_size * c.dim * (1 if c.tied else 2)
    shared = c.n_layers * (heads + router + 3 * c.dim * c.shared_dim) + rows
    matrices = shared + c.n_layers * expert * max(c.n_experts, 1)
    vectors = c.n_layers * norms + c.dim
    total = matrices + vectors
    return SizeRow(
        name=name,
        family=c.family,
        parameters=total,
        active_parameters=shared + c.n_layers * expert * max(c.top_k, 1) + vectors,
        bf16=2 * total,
        int8=matrices * 34 // 32 + 2 * vectors,
        int4=matrices * 20 // 32 + 2 * vectors,
        cache_per_token=c.n_layers * 2 * c.n_kv_heads * c.head_dim * 2,
        training=16 * total,
    )


def size_table() -> list[SizeRow]:
    """A row for each of `SIZES`, in that order."""
    return [size_row(name, config) for name, config in SIZES.items()]
