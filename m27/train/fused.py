"""The training path of a Llama decoder, frozen with LoRA or whole: forward and backward written out by hand.

Same arithmetic as `Decoder.hidden` with adapters and autograd, which is its oracle. Adapters are merged into
the weights once a step, so the forward pass pays nothing for them, and no gradient is formed for a frozen
weight; or every weight is trained, and has its gradient. Position-wise work is fused by the compiler where
there is one; attention costs the squares of the documents, not of the row. It knows nothing of ids, losses or
the vocabulary.

Shapes: N tokens of a micro-batch (all rows, end to end), D width, I in, O out, R rank, H head width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from m27.model.decoder import Decoder
from m27.train import kernels as plain
from m27.train.kernels import Kernels
from m27.train.lora import Adapters
from m27.train.products import Plan, Products, Saved, choose

_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_OUT = ("self_attn.o_proj",)
_UP = ("mlp.gate_proj", "mlp.up_proj")
_DOWN = ("mlp.down_proj",)


class FusedError(ValueError):
    """A decoder that the fused path does not implement; train it with `path="plain"`."""


class _Linear:
    """Projections that share an input as one matrix; each one's adapter is merged into its rows.

    Parameters of the decoder in float32 become windows of the base, which is never written to: the same values,
    held once.
    """

    def __init__(
        self,
        decoder: Decoder,
        adapters: Adapters,
        prefix: str,
        names: tuple[str, ...],
        products: Products,
    ) -> None:
        self.products, dtype = products, products.dtype
        full = [f"{prefix}.{name}" for name in names]
        members = [decoder.get_parameter(f"{name}.weight") for name in full]
        weights = [parameter.detach() for parameter in members]
        # float32, so that an update smaller than half a step of bfloat16 still moves some entries.
        self.base = torch.cat(weights).float()
        for parameter, window in zip(members, self.base.split([len(w) for w in weights]), strict=True):
            if parameter.dtype == torch.float32:
                parameter.data = window
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
        self.refresh()

    def refresh(self) -> None:
        """Round base + scale * B @ A to the compute dtype; keep A and scale * B for the backward pass."""
        if not self.tuned:
            return
        self.a = self.products.weight(torch.cat([a.detach() for _, a, _ in self.tuned]))
        self.b = [self.products.weight(self.scale * b.detach()) for _, _, b in self.tuned]
        windows = self.a.split(self.rank)
        for (rows, _, _), a, b in zip(self.tuned, windows, self.b, strict=True):
            self.products.merge(self.weight[rows], self.base[rows], b, a)

    def forward(self, x_NI: Tensor) -> Tensor:
        """[N, I] to [N, O]."""
        return self.products.linear(x_NI, self.weight)

    def forward_base(self, x_NI: Tensor) -> Tensor:
        """`forward` as it was before any adapter but those that are part of the base."""
        if self.plain is None:  # rounded at the first use: few runs ask the base
            self.plain = self.base.to(self.weight.dtype, copy=True) if self.tuned else self.weight
            for name, rows in self.names:
                self.plain[rows] = self.adapters.base_of(name, self.base[rows])
        return self.products.linear(x_NI, self.plain)

    def backward(self, g_NO: Tensor) -> Tensor:
        """The gradient [N, I] of the input."""
        return self.products.back(g_NO, self.weight)

    def learn(self, g_NO: Tensor, x_NI: Tensor) -> None:
        """Add the gradients of the adapters to theirs."""
        if not self.tuned or not self.tuned[0][1].requires_grad:
            return
        products = self.products
        xa_NR = products.linear(x_NI, self.a)
        parts = [g_NO[:, rows] for rows, _, _ in self.tuned]
        gb_NR = [products.back(part, b) for part, b in zip(parts, self.b, strict=True)]
        ga_RI = torch.zeros(self.a.shape, device=x_NI.device)
        products.add_outer(ga_RI, torch.cat(gb_NR, dim=1) if len(gb_NR) > 1 else gb_NR[0], x_NI)
        for i, (_, a, b) in enumerate(self.tuned):
            window = slice(i * self.rank, (i + 1) * self.rank)
            _accumulate(a, ga_RI[window], 1.0)
            gb_OR = torch.zeros(b.shape, device=x_NI.device)
            products.add_outer(gb_OR, parts[i], xa_NR[:, window])
            _accumulate(b, gb_OR, self.scale)


class _Trained(_Linear):
    """Projections that share an input as one matrix, all of which is trained.

    The decoder's parameters become windows of it, and so their gradients: one product serves them all.
    """

    def __init__(
        self,
        decoder: Decoder,
        adapters: Adapters,
        prefix: str,
        names: tuple[str, ...],
        products: Products,
    ) -> None:
        self.products = products
        members = [decoder.get_parameter(f"{prefix}.{name}.weight") for name in names]
        for name, parameter in zip(names, members, strict=True):
            if parameter.dtype != torch.float32:
                raise FusedError(f"{prefix}.{name}: trained weights are float32, this is {parameter.dtype}")
        one = len(members) == 1
        self.base = members[0].detach() if one else torch.cat([p.detach() for p in members])
        self.grad = torch.zeros_like(self.base)
        sizes = [len(parameter) for parameter in members]
        windows = zip(self.base.split(sizes), self.grad.split(sizes), strict=True)
        self.members = [(p, *window) for p, window in zip(members, windows, strict=True)]
        for parameter, weight, grad in self.members:
            parameter.data, parameter.grad = weight, grad
        self.weight = products.weight(self.base)

    def refresh(self) -> None:
        """Take up the weights as the optimiser left them, and gradients that somebody dropped or replaced."""
        if self.weight is not self.base:
            self.weight.copy_(self.base)
        for parameter, _, grad in self.members:
            if parameter.grad is not grad:
                grad.zero_() if parameter.grad is None else grad.copy_(parameter.grad)
                parameter.grad = grad

    def forward_base(self, x_NI: Tensor) -> Tensor:
        """What it was before is gone."""
        raise FusedError("a decoder that is trained whole has no base to ask")

    def learn(self, g_NO: Tensor, x_NI: Tensor) -> None:
        """Add the gradient of the weights to theirs."""
        self.products.add_outer(self.grad, g_NO, x_NI)


class _Gain:
    """The gain [D] of a norm, trained where `trained` says so."""

    def __init__(self, decoder: Decoder, name: str, trained: bool) -> None:
        parameter = decoder.get_parameter(name)
        self.value_D = parameter.detach().float()  # of a trained one, which is float32, the same memory
        self.parameter = parameter if trained else None

    def learn(self, kernels: Kernels, g_ND: Tensor, x_ND: Tensor, eps: float) -> None:
        """Add its gradient, from that of the norm of `x`."""
        if self.parameter is not None:
            _accumulate(self.parameter, kernels.gain_backward(g_ND, x_ND, eps), 1.0)


def _accumulate(parameter: Tensor, grad: Tensor, scale: float) -> None:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    parameter.grad.add_(grad, alpha=scale)


@dataclass
class _Layer:
    """The matrices and the gains of one block."""

    qkv: _Linear
    out: _Linear
    up: _Linear
    down: _Linear
    gain1: _Gain
    gain2: _Gain


@dataclass
class Tape:
    """What a forward pass leaves for its backward pass, which uses it up."""

    plan: Plan
    angles: tuple[Tensor, Tensor]
    layers: list[tuple[Tensor, Tensor, Saved, Tensor, Tensor, Tensor, Tensor]] = field(
        default_factory=list
    )
    last_ND: Tensor | None = None


class Fused:
    """`forward` then `backward` of a `decoder` in `dtype` (bfloat16 or float32): frozen with `adapters`, or `full`.

    The residual stream and its gradient stay float32, as trained weights do. `refresh` must follow every change
    of what is trained. `compile` sends position-wise steps through `torch.compile` where the machine has a
    compiler, and products through C++ where that is faster. Raises `FusedError` for a family other than Llama,
    and with `full` for weights that are not float32.
    """

    def __init__(
        self,
        decoder: Decoder,
        adapters: Adapters,
        dtype: torch.dtype,
        compile: bool = False,
        full: bool = False,
    ) -> None:
        config = decoder.config
        if config.family != "llama":
            raise FusedError(f"family {config.family!r}: the fused path knows only 'llama'")
        self.config, self.dtype, self.eps = config, dtype, config.norm_eps
        self.rotary = decoder.model.rotary
        self.kernels = Kernels(compile)
        self.products = choose(dtype, decoder.model.norm.weight.device, compile)
        half = self.products.half
        if half is not None:
            self.kernels.swiglu, self.kernels.swiglu_backward = half.swiglu, half.swiglu_backward
        self.layers: list[_Layer] = []
        kind = _Trained if full else _Linear
        with torch.no_grad():
            self.final = _Gain(decoder, "model.norm.weight", full)
            for i in range(config.n_layers):
                at = f"model.layers.{i}"
                qkv, out, up, down = (
                    kind(decoder, adapters, at, names, self.products)
                    for names in (_QKV, _OUT, _UP, _DOWN)
                )
                gain1, gain2 = (
                    _Gain(decoder, f"{at}.{name}.weight", full)
                    for name in ("input_layernorm", "post_attention_layernorm")
                )
                self.layers.append(_Layer(qkv, out, up, down, gain1, gain2))

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring the matrices up to date with what is trained."""
        for layer in self.layers:
            for linear in (layer.qkv, layer.out, layer.up, layer.down):
                linear.refresh()

    def plan(self, documents_BT: Tensor, branches_BT: Tensor | None = None) -> Plan:
        """How attention goes within documents [B, T], for `forward`."""
        config = self.config
        return self.products.plan(
            documents_BT, config.n_kv_heads, config.n_heads, config.head_dim, branches_BT
        )

    def _gain_after(self, i: int) -> _Gain:
        """Of the norm that follows block `i`."""
        return self.final if i + 1 == len(self.layers) else self.layers[i + 1].gain1

    @torch.no_grad()
    def forward(self, x_ND: Tensor, positions_N: Tensor, plan: Plan) -> tuple[Tensor, Tape]:
        """States [N, D] after the final norm (in `dtype`) of float32 inputs [N, D], and the tape."""
        heads, kv_heads, width = self.config.n_heads, self.config.n_kv_heads, self.config.head_dim
        cos, sin = self.rotary(positions_N[None], torch.float32)
        angles = (cos.reshape(-1, 1, width), sin.reshape(-1, 1, width))
        tape, kernels = Tape(plan, angles), self.kernels
        n1 = kernels.norm(x_ND, self.layers[0].gain1.value_D, self.eps, self.dtype)
        for i, layer in enumerate(self.layers):
            q, k, v = kernels.rope(layer.qkv.forward(n1), *angles, heads, kv_heads)
            y_NO, saved = self.products.attend(q, k, v, plan)
            x1_ND, n2 = kernels.add_norm(x_ND, layer.out.forward(y_NO), layer.gain2.value_D, self.eps)
            gate_up = layer.up.forward(n2)
            d = layer.down.forward(kernels.swiglu(gate_up))
            tape.layers.append((x_ND, n1, saved, y_NO, x1_ND, n2, gate_up))
            gain_D = self._gain_after(i).value_D
            x_ND, n1 = kernels.add_norm(x1_ND, d, gain_D, self.eps)
        tape.last_ND = x_ND
        return n1, tape

    @torch.no_grad()
    def base_states(self, x_ND: Tensor, positions_N: Tensor, plan: Plan) -> Tensor:
        """States [N, D] that the decoder without its adapters gives; nothing is kept for a backward pass."""
        heads, kv_heads, width = self.config.n_heads, self.config.n_kv_heads, self.config.head_dim
        cos, sin = self.rotary(positions_N[None], torch.float32)
        angles = (cos.reshape(-1, 1, width), sin.reshape(-1, 1, width))
        # As written, not compiled: the number of these tokens changes with every batch.
        n1 = plain.norm(x_ND, self.layers[0].gain1.value_D, self.eps, self.dtype)
        for i, layer in enumerate(self.layers):
            q, k, v = plain.rope(layer.qkv.forward_base(n1), *angles, heads, kv_heads)
            y_NO, _ = self.products.attend(q, k, v, plan)
            x_ND, n2 = plain.add_norm(x_ND, layer.out.forward_base(y_NO), layer.gain2.value_D, self.eps)
            d = layer.down.forward_base(plain.swiglu(layer.up.forward_base(n2)))
            gain_D = self._gain_after(i).value_D
            x_ND, n1 = plain.add_norm(x_ND, d, gain_D, self.eps)
        return n1

    @torch.no_grad()
    def backward(self, g_ND: Tensor, tape: Tape) -> Tensor:
        """Gradient [N, D], float32, of the inputs from that of the states; adds up those of what is trained."""
        if tape.last_ND is None:
            raise FusedError("this tape has been used")
        kernels, eps = self.kernels, self.eps
        zero = torch.zeros_like(tape.last_ND)
        g_ND = g_ND.to(self.dtype)
        self.final.learn(kernels, g_ND, tape.last_ND, eps)
        gx, gd = kernels.norm_backward(zero, g_ND, tape.last_ND, self.final.value_D, eps)
        tape.last_ND = None
        for layer in reversed(self.layers):
            x_ND, n1, saved, y_NO, x1_ND, n2, gate_up = tape.layers.pop()
            g_up, act = kernels.swiglu_backward(layer.down.backward(gd), gate_up)
            layer.down.learn(gd, act)
            layer.up.learn(g_up, n2)
            gn = layer.up.backward(g_up)
            layer.gain2.learn(kernels, gn, x1_ND, eps)
            gx, go = kernels.norm_backward(gx, gn, x1_ND, layer.gain2.value_D, eps)
            layer.out.learn(go, y_NO)
            gq, gk, gv = self.products.attend_backward(layer.out.backward(go), saved, tape.plan)
            g_qkv = kernels.rope_backward(gq, gk, gv, *tape.angles)
            layer.qkv.learn(g_qkv, n1)
            gn = layer.qkv.backward(g_qkv)
            layer.gain1.learn(kernels, gn, x_ND, eps)
            gx, gd = kernels.norm_backward(gx, gn, x_ND, layer.gain1.value_D, eps)
        return gx
