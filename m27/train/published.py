"""Reads tensors out of published ``.pth`` and pickled-array files without unpickling them.

A pickle is a program; running one from elsewhere runs its author's code. This reader walks the
opcodes (`pickletools.genops`, which only parses) with a small stack machine that knows the few
shapes a state dict is made of, and refuses every global but the builders of tensors and arrays.
Of torch's two layouts only the old, un-zipped one is read, which is what the published vision
weights use.
"""

from __future__ import annotations

import io
import pickletools
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

STORAGES = {
    "torch FloatStorage": np.dtype("<f4"),
    "torch DoubleStorage": np.dtype("<f8"),
    "torch HalfStorage": np.dtype("<f2"),
    "torch LongStorage": np.dtype("<i8"),
    "torch IntStorage": np.dtype("<i4"),
}
TENSOR, ORDERED = "torch._utils _rebuild_tensor_v2", "collections OrderedDict"
ARRAY, NDARRAY, DTYPE = "numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"
BUILDERS = (TENSOR, ORDERED, ARRAY, NDARRAY, DTYPE)
LITERALS = frozenset(
    "BINUNICODE BINBYTES SHORT_BINBYTES BINFLOAT BININT BININT1 BININT2 LONG1 INT LONG".split()
)
MARK = object()


class PublishedError(ValueError):
    """A file that is not a plain state dict; the message says what was met."""


def _parse(file: io.BufferedReader) -> Any:
    """One pickled value as plain data: tensors become tuples ("tensor", storage, offset, shape,
    stride)."""
    stack: list[Any] = []
    memo: dict[Any, Any] = {}

    def to_mark() -> list[Any]:
        at = len(stack) - 1 - next(i for i, v in enumerate(reversed(stack)) if v is MARK)
        items = stack[at + 1 :]
        del stack[at:]
        return items

    for op, arg, _ in pickletools.genops(file):
        name = op.name
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            return stack.pop()
        if name == "MARK":
            stack.append(MARK)
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[arg] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[arg])
        elif name in (
            "BINUNICODE",
            "BINBYTES",
            "SHORT_BINBYTES",
            "BININT",
            "BININT1",
            "BININT2",
        ) or name in ("LONG1", "INT", "LONG", "BINFLOAT"):
            stack.append(arg)
        elif name in ("NONE", "NEWTRUE", "NEWFALSE"):
            stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "EMPTY_TUPLE":
            stack.append(())
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "TUPLE":
            stack.append(tuple(to_mark()))
        elif name in ("SETITEM", "SETITEMS"):
            items = to_mark() if name == "SETITEMS" else [stack.pop() for _ in range(2)][::-1]
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name in ("APPEND", "APPENDS"):
            items = to_mark() if name == "APPENDS" else [stack.pop()]
            stack[-1].extend(items)
        elif name == "GLOBAL":
            if arg not in BUILDERS and arg not in STORAGES:
                raise PublishedError(f"refuses the global {arg!r}")
            stack.append(("global", arg))
        elif name == "BINPERSID":
            kind, (_, storage), key, _, size, *_ = stack.pop()
            if kind != "storage" or storage not in STORAGES:
                raise PublishedError(f"unknown storage {storage!r}")
            stack.append((STORAGES[storage], str(key), int(size)))
        elif name == "REDUCE":
            args, (_, builder) = stack.pop(), stack.pop()
            if builder == ORDERED:
                stack.append(OrderedDict())
            elif builder == TENSOR:
                stack.append(("tensor", *args[:4]))
            elif builder == DTYPE:
                stack.append(np.dtype(str(args[0])))
            elif builder == ARRAY:
                stack.append(("array",))
            else:
                raise PublishedError(f"refuses to call {builder!r}")
        elif name == "BUILD":
            state = stack.pop()  # of an ordered dict or a dtype: not needed
            if stack[-1] == ("array",):
                _, shape, dtype, fortran, data = state
                # The memo may hold the empty array; nothing refers to an array twice in these
                # files.
                stack[-1] = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
        else:
            raise PublishedError(f"unexpected opcode {name}")
    raise PublishedError("ends before its STOP")


def read_pth(path: str | Path) -> dict[str, Tensor]:
    """A state dict's tensors by name, copied, in the types they were stored in.

    Raises:
        PublishedError: if the file holds anything but tensors, or is cut short; it names the file.
    """
    try:
        with open(path, "rb") as file:
            for _ in range(3):  # magic number, protocol version, system information
                _parse(file)
            state = _parse(file)
            keys = _parse(file)
            used = {str(v[1][1]): v[1][0] for v in state.values()}
            storages: dict[str, np.ndarray[Any, Any]] = {}
            for key in keys:
                dtype = used[str(key)]
                (count,) = struct.unpack("<q", file.read(8))
                data = file.read(count * dtype.itemsize)
                if len(data) != count * dtype.itemsize:
                    raise PublishedError("ends inside a tensor")
                storages[str(key)] = np.frombuffer(data, dtype)
    except (PublishedError, ValueError, KeyError, IndexError, StopIteration, struct.error) as error:
        raise PublishedError(f"{path}: not a plain state dict: {error}") from None
    out: dict[str, Tensor] = {}
    for name, (_, (_, key, _), offset, shape, stride) in state.items():
        flat = torch.from_numpy(storages[key].copy())
        out[str(name)] = torch.as_strided(flat, shape, stride, offset).clone()
    return out


def read_arrays(path: str | Path) -> dict[str, Tensor]:
    """Nested dicts of pickled numpy arrays → tensors by slash-joined name, copied.

    Raises:
        PublishedError: if the file holds anything but arrays, or is cut short; it names the file.
    """

    def flatten(value: Any, prefix: str) -> dict[str, Tensor]:
        if isinstance(value, np.ndarray):
            return {prefix: torch.from_numpy(value.copy())}
        if not isinstance(value, dict):
            raise PublishedError(f"{prefix or 'the file'} is neither a dict nor an array")
        out: dict[str, Tensor] = {}
        for key, item in value.items():
            out |= flatten(item, f"{prefix}/{key}" if prefix else str(key))
        return out

    try:
        with open(path, "rb") as file:
            return flatten(_parse(file), "")
    except (PublishedError, ValueError, KeyError, IndexError, StopIteration) as error:
        raise PublishedError(f"{path}: not plain arrays: {error}") from None
