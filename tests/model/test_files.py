"""Safetensors files read a tensor at a time: what comes, from which file, and what is refused."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from m27.model.files import CheckpointError, TensorFile, flatten_blocks, write_tensors
from m27.model.gguf import Blocks
from m27.model.rounding import round_int8

FOUR = Blocks(
    torch.arange(96, dtype=torch.uint8).view(3, 32),
    torch.rand(3, 2).half(),
    torch.rand(3, 2).half(),
)


def tensors() -> dict[str, torch.Tensor | Blocks]:
    return {
        "plain": torch.randn(2, 3),
        "narrow": torch.randn(5).to(torch.bfloat16),
        "byte": torch.tensor([True, False, True]),  # of odd length, so that others may lie askew
        "number": torch.tensor(7),
        "none": torch.zeros(0, 4),
        "eight": round_int8(torch.randn(4, 64)),
        "four": FOUR,
    }


def test_what_was_written_comes_back_in_memory_of_its_own(tmp_path):
    want = tensors()
    write_tensors(tmp_path / "x", flatten_blocks(want), {"a": "b"})
    file = TensorFile(tmp_path / "x")
    assert file.metadata == {"a": "b"}
    assert set(file) == set(want)
    assert len(file) == len(want)
    for name, value in want.items():
        found = file[name]
        assert file.shape(name) == tuple(value.shape)
        if isinstance(value, Blocks):
            assert isinstance(found, Blocks)
            pairs = [(found.q, value.q), (found.scale, value.scale)]
            assert (found.minimum is None) == (value.minimum is None)
            if value.minimum is not None:
                pairs.append((found.minimum, value.minimum))
        else:
            pairs = [(found, value)]
        for got, wanted in pairs:
            assert got.dtype == wanted.dtype
            assert torch.equal(got, wanted)
    file["plain"].zero_()
    assert torch.equal(file["plain"], want["plain"])
    for name in ("eight.q", "four.minimum", "absent"):
        assert name not in file
        with pytest.raises(KeyError):
            file[name]


def test_a_name_is_looked_up_without_reading(tmp_path, monkeypatch):
    write_tensors(tmp_path / "x", flatten_blocks(tensors()), {})
    file = TensorFile(tmp_path / "x")
    monkeypatch.setattr(TensorFile, "_read", lambda *_: pytest.fail("was read"))
    assert "plain" in file
    assert "four" in file
    assert file.shape("four") == (3, 64)


def test_a_file_put_in_its_place_is_not_mixed_in(tmp_path):
    write_tensors(tmp_path / "x", {"a": torch.zeros(3), "b": torch.zeros(3)}, {})
    file = TensorFile(tmp_path / "x")
    assert not file["a"].any()
    write_tensors(tmp_path / "x", {"b": torch.ones(4), "c": torch.ones(3)}, {})
    assert torch.equal(file["b"], torch.zeros(3))
    assert "c" not in file
    assert torch.equal(TensorFile(tmp_path / "x")["b"], torch.ones(4))


def test_a_dequantised_matrix_is_the_same_in_pieces_and_in_place(monkeypatch):
    whole = FOUR.dequantize()
    monkeypatch.setattr("m27.model.gguf._PIECE", 64)
    out = torch.full((5, 64), 9.0)
    assert torch.equal(FOUR.dequantize(out[1:4]), whole)
    assert torch.equal(out[1:4], whole)
    assert (out[[0, 4]] == 9).all()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def of_unknown_type(path: Path) -> None:
    about = {"x": {"dtype": "U16", "shape": [1], "data_offsets": [0, 2]}}
    header = json.dumps(about).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0")


def without_scales(path: Path) -> None:
    save_file({"w.q": torch.zeros(2, 32, dtype=torch.int8)}, path)


def with_other_scales(path: Path) -> None:
    save_file({"w.q": torch.zeros(2, 32, dtype=torch.int8), "w.scale": torch.ones(2, 2)}, path)


def with_other_minimum(path: Path) -> None:
    flat = {"w.q": torch.zeros(2, 16, dtype=torch.uint8), "w.scale": torch.ones(2, 1)}
    save_file(flat | {"w.minimum": torch.ones(2)}, path)


def with_floats_for_blocks(path: Path) -> None:
    save_file({"w.q": torch.zeros(2, 32), "w.scale": torch.ones(2, 1)}, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "x: not readable as safetensors"),
        (lambda path: path.write_bytes(b""), "x: not readable as safetensors"),
        (cut, "x: not readable as safetensors"),
        (of_unknown_type, "x: x is of an unknown type U16"),
        (without_scales, "x: w has blocks but no scales"),
        (with_other_scales, "x: the scales of w do not fit its blocks"),
        (with_other_minimum, "x: the scales of w do not fit its blocks"),
        (with_floats_for_blocks, "x: the scales of w do not fit its blocks"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, damage, message):
    write_tensors(tmp_path / "x", {"a": torch.ones(9)}, {})
    damage(tmp_path / "x")
    with pytest.raises(CheckpointError, match=message):
        TensorFile(tmp_path / "x")


def test_a_file_cut_while_it_is_read_is_told(tmp_path):
    write_tensors(tmp_path / "x", {"a": torch.ones(9)}, {})
    file = TensorFile(tmp_path / "x")
    cut(tmp_path / "x")
    with pytest.raises(CheckpointError, match="the file ends within a"):
        file["a"]
