"""Published weights are read without running them; anything but tensors is refused by name."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from m27.train.published import PublishedError, read_arrays, read_pth


def test_reads_what_torch_wrote(tmp_path: Path) -> None:
    state = {"a.weight": torch.randn(3, 4), "b": torch.arange(5), "c": torch.randn(4, 6).half().T}
    path = tmp_path / "old.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    read = read_pth(path)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[k], state[k]) and read[k].dtype == state[k].dtype for k in state)


class Malicious:
    """Runs a command when unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("touch /tmp/m27-was-here",)


def test_code_is_refused_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "bad.pth"
    torch.save({"a": Malicious()}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(PublishedError, match=r"bad\.pth.*refuses"):
        read_pth(path)
    path.write_bytes(pickle.dumps({"a": Malicious()}, protocol=3))
    with pytest.raises(PublishedError, match="refuses"):
        read_arrays(path)
    assert not Path("/tmp/m27-was-here").exists()


def test_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "cut.pth"
    torch.save({"a": torch.randn(100)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(PublishedError, match=r"cut\.pth"):
        read_pth(path)


def test_arrays_of_an_old_numpy(tmp_path: Path) -> None:
    """Pickles of numpy 1 name ``numpy.core``, numpy 2 writes ``numpy._core``: renamed to the
    old."""
    data = pickle.dumps({"x": {"y": np.arange(6, dtype=np.float32).reshape(2, 3)}}, protocol=3)
    path = tmp_path / "a.ckpt"
    path.write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert torch.equal(read_arrays(path)["x/y"], torch.arange(6.0).reshape(2, 3))
