"""The vocabulary's rows in training: frozen text rows, trained control rows, code rows as learned maps.

The same rows are input embeddings and output rows. `table` is all of them in the compute dtype, rebuilt once a
step; gradients of the trained ones gather in one buffer and go through the maps once a step. `FrozenRows` are
all as they are, `FreeRows` the decoder's own. Also the warm start of a map from captions. It knows no ids but
the order text, control, image, audio.

Shapes: V vocabulary, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from m27.model.code_map import CodeMap
from m27.model.decoder import Decoder


class Rows:
    """Text rows [text, D] (frozen), `controls` rows and the rows of two maps, tied in and out.

    Begin of the new rows: the text rows' mean with their spread for controls, and the maps' own draw with
    the text rows' scale. `refresh` must follow every change of the parameters and precede any use.
    """

    _held: Tensor | None = None

    def __init__(
        self,
        text_VD: Tensor,
        controls: int,
        image_levels: Sequence[int],
        audio_levels: Sequence[int],
        dtype: torch.dtype,
        seed: int = 0,
    ) -> None:
        text_VD = text_VD.detach().float()
        self.first = len(text_VD)
        dim, std = text_VD.shape[1], float(text_VD.std())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.image_map = CodeMap(tuple(image_levels), dim, std=std).to(text_VD.device)
            self.audio_map = CodeMap(tuple(audio_levels), dim, std=std).to(text_VD.device)
            noise = torch.randn(controls, dim).to(text_VD.device)
        # A tenth of the spread: no control stands out before it has been learned.
        self.control = nn.Parameter(text_VD.mean(0) + 0.1 * std * noise)
        size = self.first + controls + self.image_map.size + self.audio_map.size
        self.table_VD = torch.empty(size, dim, dtype=dtype, device=text_VD.device)
        self.table_VD[: self.first] = text_VD
        self.grad_VD = torch.zeros(size - self.first, dim, device=text_VD.device)
        self._new: Tensor | None = None
        self.refresh()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of products."""
        return self.table_VD.dtype

    def parameters(self) -> dict[str, nn.Parameter]:
        """Everything trained here, by its name in the shipped checkpoint."""
        out = {"control.weight": self.control}
        for medium, code_map in (("image", self.image_map), ("audio", self.audio_map)):
            out |= {f"{medium}_map.{name}": p for name, p in code_map.named_parameters()}
        return out

    def trained_rows(self) -> Tensor:
        """The rows after the text's, [V - text, D], in float32 and differentiable."""
        narrow = self.table_VD.dtype == torch.bfloat16
        device = self.table_VD.device.type
        # The maps' products in bfloat16 too: the table is rounded to it anyway.
        with torch.autocast(device, torch.bfloat16) if narrow else nullcontext():
            parts = [self.control, self.image_map.rows(), self.audio_map.rows()]
        return torch.cat([part.float() for part in parts])

    @property
    def base_VD(self) -> Tensor:  # noqa: N802 - shape suffix
        """The table as the base has it: what `hold` kept, else the present one."""
        return self.table_VD if self._held is None else self._held

    def hold(self) -> None:
        """Keep the present table as the base's, where it will change."""
        self._held = self.table_VD.clone() if self.parameters() else None

    def refresh(self) -> None:
        """Bring the table up to date with the parameters and clear the gradient buffer."""
        self._new = self.trained_rows()
        self.table_VD[self.first :] = self._new.detach()
        self.grad_VD.zero_()

    @torch.no_grad()
    def embed(self, ids_N: Tensor) -> Tensor:
        """Float32 vectors [N, D] of ids [N]."""
        return self.table_VD.index_select(0, ids_N).float()

    @torch.no_grad()
    def embed_base(self, ids_N: Tensor) -> Tensor:
        """The same of the base's table."""
        return self.base_VD.index_select(0, ids_N).float()

    @torch.no_grad()
    def add_input_gradient(self, ids_N: Tensor, g_ND: Tensor) -> None:
        """Add the gradient of the inputs to the rows they were read from; text rows take none."""
        # Without asking which ids are trained, so that nothing waits for the device: zeros go anywhere.
        at = torch.remainder(ids_N - self.first, len(self.grad_VD))
        self.grad_VD.index_add_(0, at, torch.where((ids_N >= self.first)[:, None], g_ND, 0.0))

    def backward(self) -> None:
        """Send the gathered gradient through the maps to the parameters."""
        if self._new is None:
            raise RuntimeError("refresh() must come before each backward()")
        # A copy: where a gradient goes to a leaf unchanged, autograd would keep the buffer itself.
        self._new.backward(self.grad_VD.clone())
        self._new = None


class FrozenRows(Rows):
    """All rows [V, D] as they are: none is trained, so none has a gradient.

    `inputs_VD` are the rows read in at the bottom, where a model has others there.
    """

    def __init__(self, rows_VD: Tensor, dtype: torch.dtype, inputs_VD: Tensor | None = None) -> None:
        self.table_VD = rows_VD.detach().to(dtype)
        self.inputs_VD = self.table_VD if inputs_VD is None else inputs_VD.detach().to(dtype)
        self.first = len(rows_VD)
        self.grad_VD = torch.zeros(0, rows_VD.shape[1], device=rows_VD.device)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Nothing is trained here."""
        return {}

    @torch.no_grad()
    def embed(self, ids_N: Tensor) -> Tensor:
        """Float32 vectors [N, D] of ids [N]."""
        return self.inputs_VD.index_select(0, ids_N).float()

    def refresh(self) -> None:
        """Nothing changes."""

    def add_input_gradient(self, ids_N: Tensor, g_ND: Tensor) -> None:
        """Nobody asks for it."""

    def backward(self) -> None:
        """Nothing to send."""


class FreeRows(Rows):
    """The embedding and the head of `decoder`, trained as its other weights are; `dtype` is that of products.

    The decoder holds them. The whole pass leaves their gradients to autograd; the fused one brings them here.
    """

    def __init__(self, decoder: Decoder, dtype: torch.dtype) -> None:
        self.decoder, self._dtype = decoder, dtype
        self.first = 0

    @property
    def table_VD(self) -> Tensor:  # type: ignore[override]  # noqa: N802 - shape suffix
        """The output rows, in the dtype of the masters."""
        return self.decoder.output_weight

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of products."""
        return self._dtype

    def parameters(self) -> dict[str, nn.Parameter]:
        """None of its own: they are the decoder's."""
        return {}

    @property
    def grad_VD(self) -> Tensor:  # type: ignore[override]  # noqa: N802 - shape suffix
        """Where the gradient of the output rows gathers: their own."""
        return _gradient(self.decoder.output_weight)

    @torch.no_grad()
    def embed(self, ids_N: Tensor) -> Tensor:
        """Float32 vectors [N, D] of ids [N]."""
        return self.decoder.model.embed_tokens.weight.index_select(0, ids_N).float()

    @torch.no_grad()
    def add_input_gradient(self, ids_N: Tensor, g_ND: Tensor) -> None:
        """Add the gradient of the inputs to the rows they were read from."""
        _gradient(self.decoder.model.embed_tokens.weight).index_add_(0, ids_N, g_ND)

    def refresh(self) -> None:
        """Nothing to bring up to date."""

    def backward(self) -> None:
        """The gradients are where they belong."""


def _gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


@torch.no_grad()
def fit_code_map(
    code_map: CodeMap,
    codes: Sequence[Tensor],
    captions_ND: Tensor,
    scale: float,
    ridge: float = 1.0,
) -> float:
    """Begin a map near the words its codes go with; the share of variance explained comes back.

    Ridge regression from the mean one-hot digits of each medium's `codes` to its caption's mean text row
    [N, D]. The rows that result are brought to standard deviation `scale` about the captions' mean, and
    added to half of the map's own draw, so that codes that no caption tells apart stay distinct.
    """
    digits = code_map.digits.float()
    x = torch.stack([digits[c.flatten().long()].mean(0) for c in codes])
    mean_x, mean_y = x.mean(0), captions_ND.mean(0)
    x, y = x - mean_x, captions_ND - mean_y
    gram = x.T @ x + ridge * torch.eye(x.shape[1])
    weight = torch.linalg.solve(gram, x.T @ y)  # [digits, D]
    explained = 1 - float(((y - x @ weight) ** 2).sum() / (y**2).sum())
    rows = (digits - mean_x) @ weight
    weight = weight * (scale / max(float(rows.std()), 1e-8))
    # Each code has one entry in every digit's block, so a constant is shared out among the blocks.
    constant = (mean_y - mean_x @ weight) / len(code_map.levels)
    own = code_map.linear.weight.T
    code_map.linear.weight.copy_((0.5 * own + weight * 0.75**0.5 + constant).T)
    return explained
