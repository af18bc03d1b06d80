"""The training path of a frozen Llama decoder with LoRA: forward and backward written out by hand.

Same arithmetic as `Decoder.hidden` with adapters and autograd, which is its oracle. Adapters are merged into
the weights once a step, so the forward pass pays nothing for them; no gradient is formed for a frozen weight;
position-wise work is fused by the compiler where there is one; attention costs the squares of the documents,
not of the row. It knows nothing of ids, losses or the vocabulary.

Shapes: N tokens of a micro-batch (all rows, end to end), D width, I in, O out, R rank, H head width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from m27.model.decoder import Decoder
from m27.train import kernels as plain
from m27.train.attention import Layout, Saved, attend, attend_backward
from m27.train.kernels import Kernels
from m27.train.lora import Adapters

_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_OUT = ("self_attn.o_proj",)
_UP = ("mlp.gate_proj", "mlp.up_proj")
_DOWN = ("mlp.down_proj",)


class FusedError(ValueError):
    """A decoder that the fused path does not implement; train it with `path="plain"`."""


class _Linear:
    """Projections that share an input as one matrix; each one's adapter is merged into its rows."""

    def __init__(
        self,
        decoder: Decoder,
        adapters: Adapters,
        prefix: str,
        names: tuple[str, ...],
        dtype: torch.dtype,
    ) -> None:
        full = [f"{prefix}.{name}" for name in names]
        weights = [decoder.get_parameter(f"{name}.weight").detach() for name in full]
        # float32, so that an update smaller than half a step of bfloat16 still moves some entries.
        self.base = torch.cat(weights).float()
        self.weight = self.base.to(dtype, copy=True)
        self.plain: Tensor | None = None
        self.adapters = adapters
        self.scale, self.rank = adapters.scale, adapters.rank
        self.tuned: list[tuple[slice, Tensor, Tensor]] = []
        self.names: list[tuple[str, slice]] = []
        start = 0
        for name, weight in zip(full, weights, strict=True):
            if name in adapters:
                self.tuned.append((slice(start, start + len(weight)), *adapters[name]))
                self.names.append((name, slice(start, start + len(weight))))
            start += len(weight)
        self.merge()

    def merge(self) -> None:
        """Round base + scale * B @ A to the compute dtype; keep A and scale * B for the backward pass."""
        if not self.tuned:
            return
        dtype = self.weight.dtype
        self.a = torch.cat([a.detach() for _, a, _ in self.tuned]).to(dtype)
        self.b = [(self.scale * b.detach()).to(dtype) for _, _, b in self.tuned]
        windows = self.a.split(self.rank)
        for (rows, _, _), a, b in zip(self.tuned, windows, self.b, strict=True):
            self.weight[rows] = self.base[rows] + b @ a

    def forward(self, x_NI: Tensor) -> Tensor:
        """[N, I] to [N, O]."""
        return x_NI @ self.weight.t()

    def forward_base(self, x_NI: Tensor) -> Tensor:
        """`forward` as it was before any adapter but those that are part of the base."""
        if self.plain is None:  # rounded at the first use: few runs ask the base
            self.plain = self.base.to(self.weight.dtype, copy=True) if self.tuned else self.weight
            for name, rows in self.names:
                self.plain[rows] = self.adapters.base_of(name, self.base[rows])
        return x_NI @ self.plain.t()

    def backward(self, g_NO: Tensor) -> Tensor:
        """The gradient [N, I] of the input."""
        return g_NO @ self.weight

    def backward_adapters(self, g_NO: Tensor, x_NI: Tensor) -> None:
        """Add the gradients of the adapters to theirs."""
        if not self.tuned or not self.tuned[0][1].requires_grad:
            return
        xa_NR = x_NI @ self.a.t()
        parts = [g_NO[:, rows] for rows, _, _ in self.tuned]
        gb_NR = [part @ b for part, b in zip(parts, self.b, strict=True)]
        ga_RI = (torch.cat(gb_NR, dim=1) if len(gb_NR) > 1 else gb_NR[0]).t() @ x_NI
        for i, (_, a, b) in enumerate(self.tuned):
            window = slice(i * self.rank, (i + 1) * self.rank)
            _accumulate(a, ga_RI[window], 1.0)
            _accumulate(b, parts[i].t() @ xa_NR[:, window], self.scale)


def _accumulate(parameter: Tensor, grad: Tensor, scale: float) -> None:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    parameter.grad.add_(grad, alpha=scale)


@dataclass
class _Layer:
    """The merged matrices and the gains of one block."""

    qkv: _Linear
    out: _Linear
    up: _Linear
    down: _Linear
    gain1_D: Tensor
    gain2_D: Tensor


@dataclass
class Tape:
    """What a forward pass leaves for its backward pass, which uses it up."""

    layout: Layout
    angles: tuple[Tensor, Tensor]
    layers: list[tuple[Tensor, Tensor, Saved, Tensor, Tensor, Tensor, Tensor]] = field(
        default_factory=list
    )
    last_ND: Tensor | None = None


class Fused:
    """`forward` then `backward` of a frozen `decoder` with `adapters`, in `dtype` (bfloat16 or float32).

    The residual stream and its gradient stay float32. `merge` must follow every change of the adapters.
    `compile` sends position-wise steps through `torch.compile` where the machine has a compiler.
    Raises `FusedError` for a family other than Llama.
    """

    def __init__(
        self, decoder: Decoder, adapters: Adapters, dtype: torch.dtype, compile: bool = False
    ) -> None:
        config = decoder.config
        if config.family != "llama":
            raise FusedError(f"family {config.family!r}: the fused path knows only 'llama'")
        self.config, self.dtype, self.eps = config, dtype, config.norm_eps
        self.rotary = decoder.model.rotary
        self.kernels = Kernels(compile)
        self.layers: list[_Layer] = []
        with torch.no_grad():
            self.final_D = decoder.model.norm.weight.detach().float()
            for i in range(config.n_layers):
                at = f"model.layers.{i}"
                qkv, out, up, down = (
                    _Linear(decoder, adapters, at, names, dtype)
                    for names in (_QKV, _OUT, _UP, _DOWN)
                )
                gain1_D, gain2_D = (
                    decoder.get_parameter(f"{at}.{name}.weight").detach().float()
                    for name in ("input_layernorm", "post_attention_layernorm")
                )
                self.layers.append(_Layer(qkv, out, up, down, gain1_D, gain2_D))

    @torch.no_grad()
    def merge(self) -> None:
        """Bring the merged weights up to date with the adapters."""
        for layer in self.layers:
            for linear in (layer.qkv, layer.out, layer.up, layer.down):
                linear.merge()

    @torch.no_grad()
    def forward(self, x_ND: Tensor, positions_N: Tensor, layout: Layout) -> tuple[Tensor, Tape]:
        """States [N, D] after the final norm (in `dtype`) of float32 inputs [N, D], and the tape."""
        heads, kv_heads, width = self.config.n_heads, self.config.n_kv_heads, self.config.head_dim
        cos, sin = self.rotary(positions_N[None], torch.float32)
        angles = (cos.reshape(-1, 1, width), sin.reshape(-1, 1, width))
        tape, kernels = Tape(layout, angles), self.kernels
        n1 = kernels.norm(x_ND, self.layers[0].gain1_D, self.eps, self.dtype)
        for i, layer in enumerate(self.layers):
            q, k, v = kernels.rope(layer.qkv.forward(n1), *angles, heads, kv_heads)
            y_NO, saved = attend(q, k, v, layout)
            x1_ND, n2 = kernels.add_norm(x_ND, layer.out.forward(y_NO), layer.gain2_D, self.eps)
            gate_up = layer.up.forward(n2)
            d = layer.down.forward(kernels.swiglu(gate_up))
            tape.layers.append((x_ND, n1, saved, y_NO, x1_ND, n2, gate_up))
            last = i + 1 == len(self.layers)
            gain_D = self.final_D if last else self.layers[i + 1].gain1_D
            x_ND, n1 = kernels.add_norm(x1_ND, d, gain_D, self.eps)
        tape.last_ND = x_ND
        return n1, tape

    @torch.no_grad()
    def base_states(self, x_ND: Tensor, positions_N: Tensor, layout: Layout) -> Tensor:
        """States [N, D] that the decoder without its adapters gives; nothing is kept for a backward pass."""
        heads, kv_heads, width = self.config.n_heads, self.config.n_kv_heads, self.config.head_dim
        cos, sin = self.rotary(positions_N[None], torch.float32)
        angles = (cos.reshape(-1, 1, width), sin.reshape(-1, 1, width))
        # As written, not compiled: the number of these tokens changes with every batch.
        n1 = plain.norm(x_ND, self.layers[0].gain1_D, self.eps, self.dtype)
        for i, layer in enumerate(self.layers):
            q, k, v = plain.rope(layer.qkv.forward_base(n1), *angles, heads, kv_heads)
            y_NO, _ = attend(q, k, v, layout)
            x_ND, n2 = plain.add_norm(x_ND, layer.out.forward_base(y_NO), layer.gain2_D, self.eps)
            d = layer.down.forward_base(plain.swiglu(layer.up.forward_base(n2)))
            last = i + 1 == len(self.layers)
            gain_D = self.final_D if last else self.layers[i + 1].gain1_D
            x_ND, n1 = plain.add_norm(x_ND, d, gain_D, self.eps)
        return n1

    @torch.no_grad()
    def backward(self, g_ND: Tensor, tape: Tape) -> Tensor:
        """Gradient [N, D], float32, of the inputs from that of the states; adds up the adapters' own."""
        if tape.last_ND is None:
            raise FusedError("this tape has been used")
        kernels, eps = self.kernels, self.eps
        zero = torch.zeros_like(tape.last_ND)
        gx, gd = kernels.norm_backward(zero, g_ND.to(self.dtype), tape.last_ND, self.final_D, eps)
        tape.last_ND = None
        for layer in reversed(self.layers):
            x_ND, n1, saved, y_NO, x1_ND, n2, gate_up = tape.layers.pop()
            g_up, act = kernels.swiglu_backward(layer.down.backward(gd), gate_up)
            layer.down.backward_adapters(gd, act)
            layer.up.backward_adapters(g_up, n2)
            gx, go = kernels.norm_backward(gx, layer.up.backward(g_up), x1_ND, layer.gain2_D, eps)
            layer.out.backward_adapters(go, y_NO)
            gq, gk, gv = attend_backward(layer.out.backward(go), saved, tape.layout)
            g_qkv = kernels.rope_backward(gq, gk, gv, *tape.angles)
            layer.qkv.backward_adapters(g_qkv, n1)
            gx, gd = kernels.norm_backward(gx, layer.qkv.backward(g_qkv), x_ND, layer.gain1_D, eps)
        return gx
