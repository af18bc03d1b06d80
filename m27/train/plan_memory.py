"""Where the memory of a training step goes on one device: by formula, without running anything.

Each formula follows what the pass in question really keeps, which `benchmarks/plan.py` and the tests count in
real steps. A step has its peak at one of four moments: when the head has scored a piece, when its gradient is
handed back, in the backward pass of the last block, or in the optimiser. It knows no ranks: see `plan`.

Shapes: N tokens of a micro-batch, M targets, D width, F inner width of the MLP (k times an expert's where a
token goes to k), Q all query heads together, K all key heads together, L layers, V vocabulary, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass

from m27.model.config import Config
from m27.train.lora import TARGETS
from m27.train.objective import piece_size
from m27.train.plan_shape import Arithmetic, Micro, Vocabulary, adapter_numbers, counts, sides

_BLOCK, _STEP, _SHORT = 256, 32, 256  # of `m27.train.attention` and `m27.model.attention`


def saved_per_token(c: Config, a: Arithmetic, micro: Micro) -> dict[str, float]:
    """Bytes a token that one block keeps for its backward pass, by what they are.

    Autograd keeps the input of what it must differentiate: a norm its input in float32 (and, for the gain's
    gradient, the normalised input), a trained matrix its input (under autocast one bfloat16 copy for each
    matrix that reads it), attention its q, k, v, output and the logarithm of its sums (FlashAttention, Dao
    et al. 2022: no scores), the gated MLP gate, silu(gate), up and their product. Frozen matrices keep
    nothing. The fused pass keeps both norms' inputs and outputs, q, k, v, attention's probabilities and
    output, and gate and up.
    """
    d, f = c.dim, c.ffn_dim
    q, k, w, n = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim, a.width, c.n_heads
    if a.path == "fused":
        return {
            "norms": 2 * 4 * d + 2 * w * d, "attention": w * (2 * q + 2 * k),
            "probabilities": w * n * seen(micro.reach), "mlp": 2 * w * f,
        }  # fmt: skip
    cpu, autocast = a.device == "cpu", a.full and a.narrow
    gain = a.full and cpu  # on a GPU the fused float32 norm finds the normalised input again
    out: dict[str, float] = {"norms": 2 * (4 * d + 4 + (4 * d if gain else 0))}
    if c.qk_norm:
        kept = 2 if autocast else (4 if gain else 0)
        out["norms of q and k"] = (q + k) * (4 + kept) + 4 * (n + c.n_kv_heads)
    wide = cpu and a.narrow and not a.full and micro.reach <= _SHORT
    s = 4 if wide else w
    heads = 3 * q if not cpu and micro.document else q + 2 * k  # the kernel for documents wants them all
    out["attention"] = s * (heads + q) + 4 * n
    needed = {name: a.full or (name in a.targets and a.rank > 0) for name in sides(c) | dict.fromkeys(TARGETS)}
    copied = cpu and (micro.document not in (0, micro.length))
    if needed["o_proj"] and (copied or wide):
        out["attention"] += w * q
    out["inputs"] = w * d * ((3 if autocast else 1) * any(needed[x] for x in ("q_proj", "k_proj", "v_proj")))
    if c.n_experts:
        out |= _experts(c, a)
    else:
        out["inputs"] += w * d * ((2 if autocast else 1) * (needed["gate_proj"] or needed["up_proj"]))
        out["mlp"] = w * f * (3 + needed["down_proj"])
    if not a.full:
        out["adapters"] = w * a.rank * sum(name in a.targets for name in sides(c))
    return out


def _experts(c: Config, a: Arithmetic) -> dict[str, float]:
    """The same of router and experts: what a token's k copies keep, and the sorting."""
    d, f, k, w = c.dim, c.expert_dim, c.top_k, a.width
    autocast = a.full and a.narrow
    router = (w * d if autocast else 0) + 4 * c.n_experts + k * (8 + 8 + 8 + 4 + 4) + 4
    return {
        "router": router + (0 if autocast else w * d * a.full),
        "experts": k * (w * 4 * f * 1.0 + w * 2 * d + (4 * d if autocast else 0)),
    }


def seen(document: int) -> float:
    """Keys that a query's probabilities are kept for, on average, by `m27.train.attention`: documents are
    padded to steps of 32, and queries taken in blocks of 256 that see the keys up to the block's end."""
    length = -(-document // _STEP) * _STEP
    ends = [min(i + _BLOCK, length) for i in range(0, length, _BLOCK)]
    return sum((end - i * _BLOCK) * end for i, end in enumerate(ends)) / document


@dataclass(frozen=True)
class Memory:
    """Bytes of one device at a step's peak, by part.

    `weights` with the copies that products read, `gradients` with the rows' buffer, `optimiser`,
    `activations` kept for the backward pass, `head`: the pieces of logits with what is made beside them,
    `work`: gradients under way in a block, and the block that is run again; `communication`: what is
    gathered or sent. `head` and `work` are not there at the same time.
    """

    weights: float
    gradients: float
    optimiser: float
    activations: float
    head: float
    work: float
    communication: float = 0.0

    @property
    def total(self) -> float:
        """Bytes at the peak."""
        rest = self.weights + self.gradients + self.optimiser + self.communication
        return rest + self.activations + max(self.head, self.work)


def kept(c: Config, a: Arithmetic, micro: Micro) -> float:
    """Bytes of everything kept from the forward pass for the backward pass, all blocks and the last norm.

    With `recompute` a block keeps its input alone. Angles are shared by all blocks.
    """
    n = micro.tokens
    block = sum(saved_per_token(c, a, micro).values())
    angles = 2 * c.head_dim * (a.stream if a.path != "fused" else 4)
    gain = a.full and a.device == "cpu" and a.path != "fused"
    last = 4 * c.dim + (4 * c.dim if gain else 0) + 4
    if a.recompute and a.path != "fused":
        return n * (c.n_layers * a.stream * c.dim + last + angles)
    return n * (c.n_layers * block + last + angles)


def weight_copies(c: Config, a: Arithmetic) -> float:
    """Bytes of the bfloat16 copies of one block's float32 matrices that autocast makes and keeps."""
    if a.sharded or not (a.full and a.narrow):
        return 0.0
    found = counts(c)
    return 2.0 * (found.dense + found.experts)


def head_bytes(c: Config, a: Arithmetic, micro: Micro, trained_rows: int) -> tuple[float, float]:
    """Bytes that the head takes beside what is kept: while a piece is scored, and when its gradient goes back.

    Of a piece's logits three copies exist (the last piece's, and this one's before and after the softmax; on
    a GPU in bfloat16 two in float32 and one narrow), or two and the gradient of the trained rows [S, D]. The
    whole pass has besides a float32 gradient of all rows, twice when it is handed on, and narrow copies.
    """
    d, v, w, m = c.dim, c.vocab_size, a.width, micro.learned
    piece = min(piece_size(a.device, v), m)
    scores = 10 if a.device == "cuda" and a.narrow else (3 if m > piece else 2) * w
    again = 8 if a.device == "cuda" and a.narrow else 2 * w
    scoring = piece * v * max(scores, again * 1.0)
    scoring = max(scoring, piece * v * again + w * trained_rows * d)
    states = w * m * d * (5 if trained_rows else 4) + 4 * micro.tokens * d
    if a.path != "whole":
        copy = w * v * d if a.path == "fused" and a.rows == "free" and a.narrow else 0.0  # of the rows, for the head
        return scoring + states + copy, 0.0
    rows = 4.0 * v * d
    narrow = 2.0 * v * d if a.narrow else 0.0
    return scoring + states + rows + narrow * (not a.sharded), 2 * rows + narrow + w * 2 * m * d


def work_bytes(c: Config, a: Arithmetic, micro: Micro) -> float:
    """Bytes of gradients under way at the most, in the last block's backward pass, less what is freed by then;
    with `recompute` that block's own tensors too.

    At the last norm five float32 gradients of its width; in the gated MLP those of the product, of silu and
    of up beside that of the stream, when the product itself and the last norm's input are gone.
    """
    d, w, n = c.dim, a.width, micro.tokens
    f = c.top_k * c.expert_dim if c.n_experts else c.ffn_dim
    gain = a.full and a.device == "cpu"
    last = 4 * d + (4 * d if gain else 0)
    block = sum(saved_per_token(c, a, micro).values())
    largest = d * (c.expert_dim if c.n_experts else c.ffn_dim) * (4 if not a.narrow else 6) * a.full
    if a.path == "fused":
        # Compiled, the MLP's gradients are g, those of gate and up, and the product; else each step's own.
        swiglu = n * f * (4 * w if a.compile else (32 if a.narrow else 24))
        documents, edge = n / micro.reach, min(_BLOCK, micro.reach)
        attention = 2 * documents * c.n_heads * edge * micro.reach * w + n * (3 * f * w + 6 * d * w)
        outer = 2.0 * w * d * c.ffn_dim if a.full and a.narrow else 0.0  # a gradient, before it is added in float32
        return n * 5 * 4 * d + max(swiglu, attention, n * (3 * f * w) + outer)
    norm = n * 5 * 4 * d
    mlp = float(n * (2 * f * w + a.stream * d + (d * w if a.narrow else 0) - last))
    if not a.full:
        mlp += n * f * w / 2  # each matrix's input gets one gradient from it and one from its adapter
    copies = 0.0
    if a.recompute:
        mlp += n * (block - (4 * d if a.stream == 4 else 0)) + weight_copies(c, a)
        # While autocast lasts, which is the whole forward pass, it keeps the copies of all blocks.
        copies = c.n_layers * weight_copies(c, a) + n * a.stream * d
    first = n * (f * w + a.stream * d - last) + largest
    states = 0
    if a.path == "plain":  # the states, and their gradient, live as long as the pass
        states = n * d * (2 * a.stream + 2 * w * (a.stream != w))
    return max(states + max(norm, mlp, first), copies)


def local(
    c: Config, a: Arithmetic, micro: Micro, muon: bool = False, vocabulary: Vocabulary | None = None
) -> Memory:
    """The memory of one device that holds everything: no ranks, nothing sharded.

    Weights of the passes: float32 masters where they are trained, and the narrow copies that autocast keeps;
    the fused pass holds the decoder, and merged matrices in the products' width;
    the merged one the base, merged matrices, their masters and their gradients. AdamW holds two float32
    moments of what is trained, Muon one of matrices. Gradients are float32 (a merged matrix's narrow).
    """
    found = counts(c)
    d, v, w = c.dim, c.vocab_size, a.width
    matrices = found.layers * found.dense
    new = vocabulary.new if vocabulary is not None and a.rows == "maps" else 0
    decoder = found.total - new * d  # the maps' rows are in the table, not in the embedding
    trained = adapter_numbers(c, a)
    weights = 4.0 * trained
    gradients = activations = 0.0
    if a.full:
        trained = found.total if a.rows == "free" else found.blocks + found.head + found.last
        weights = 4.0 * decoder + found.layers * weight_copies(c, a) * (not a.recompute)
    elif a.path == "fused":
        weights += 4.0 * decoder + w * matrices + w * trained
    elif a.path == "merged":
        weights += 2 * w * decoder + 4.0 * matrices
        gradients += w * matrices
    else:
        weights += w * decoder
    learned = 0 if a.body == "frozen" else trained
    if a.rows == "maps" or (a.rows == "frozen" and a.narrow):
        weights += w * v * d  # the table; of frozen rows in float32 it is the decoder's own
    if new and vocabulary is not None:
        maps = vocabulary.parameters(d)
        learned += maps
        weights += 4.0 * maps + sum(n * sum(x) for n, x in zip(vocabulary.sizes, vocabulary.levels, strict=True))
        gradients += 4.0 * new * d
        kept_maps = (
            n * (2 * vocabulary.hidden + sum(x)) * w
            for n, x in zip(vocabulary.sizes, vocabulary.levels, strict=True)
        )
        activations += 4.0 * new * d + sum(kept_maps)
    gradients += 4.0 * learned
    optimiser = 8.0 * learned
    if muon and a.full:
        optimiser -= 4.0 * (matrices + found.layers * found.experts)
    activations += kept(c, a, micro)
    if a.path == "fused":
        activations += w * c.n_heads / c.n_kv_heads * seen(micro.reach) * micro.reach  # the causal masks
    scoring, handing = head_bytes(c, a, micro, v if a.rows == "free" else new)
    work = work_bytes(c, a, micro)
    if a.path == "whole" and c.tied:
        work += 4.0 * v * d  # waits for the embedding's own gradient
    return Memory(weights, gradients, optimiser, activations, max(scoring, handing), work)
