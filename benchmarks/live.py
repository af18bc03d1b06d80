"""Bytes of tensors alive, counted as torch makes and frees them: exact, and the same on every machine.

A mode of the dispatcher sees every operation, those of autograd's backward and of a recomputed block too, and
counts each storage once from its birth to its end. It does not see what a kernel takes for itself while it
runs, nor what the allocator keeps.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Within it `now` is the bytes of tensors alive and `peak` the most there were; see `restart`.

    `held` are tensors made before. With `where`, `at_peak` says what was alive at the peak: bytes by what
    `where()` gave when each storage was made. With `resized` storages are asked for their size after every
    operation, since FSDP2 empties and refills them: slow, and `at_peak` does not follow it.
    """

    def __init__(
        self,
        held: Iterable[Tensor] = (),
        where: Callable[[str], str] | None = None,
        resized: bool = False,
    ) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._resized = resized
        self._where = where
        self._alive: dict[int, weakref.ref[Any]] = {}
        self._by: Counter[str] = Counter()
        self.at_peak: Counter[str] = Counter()
        for tensor in held:
            self._see(tensor, "held")

    def restart(self) -> None:
        """Forget the peak: it is what is alive now."""
        self.peak, self.at_peak = self.now, Counter(self._by)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf, str(func))
        if self._resized:
            alive = (reference() for reference in list(self._alive.values()))
            self.now = sum(storage.nbytes() for storage in alive if storage is not None)
            self.peak = max(self.peak, self.now)
        return out

    def _see(self, tensor: Tensor, made_by: str) -> None:
        tensor = getattr(tensor, "_local_tensor", tensor)  # a DTensor's own part
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive or storage.device.type == "meta":
            return
        size = storage.nbytes()
        label = made_by if self._where is None else self._where(made_by)

        def gone(_: Any) -> None:
            self._alive.pop(key, None)
            self.now -= size
            self._by[label] -= size

        self._alive[key] = weakref.ref(storage, gone)
        self.now += size
        self._by[label] += size
        if self.now > self.peak:
            self.peak = self.now
            if self._where is not None:
                self.at_peak = Counter(self._by)


def saved_bytes(run: Callable[[], Any], known: Iterable[Tensor] = ()) -> tuple[int, Counter[tuple[Any, ...]]]:
    """Bytes that autograd keeps for the backward pass of `run()`, each storage once, `known` ones not
    counted; and the number of saved tensors by shape and dtype."""
    seen = {t.untyped_storage()._cdata for t in known}
    kept: list[Tensor] = []
    shapes: Counter[tuple[Any, ...]] = Counter()
    total = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal total
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            kept.append(tensor.detach())
            total += storage.nbytes()
            shapes[(*tensor.shape, str(tensor.dtype).removeprefix("torch."))] += 1
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = run()
    del out
    return total, shapes
