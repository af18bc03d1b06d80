"""Folders in blocks: an engine of one is, to the last bit, an engine that rounds when it loads."""

from pathlib import Path

import numpy as np
import pytest
import torch

from m27.infer.cpu import BuildError, CpuRunner
from m27.infer.load import load_runner
from m27.infer.quantize import quantized
from m27.infer.request import RequestError
from m27.infer.runner import Runner, RunnerError
from m27.infer.scheduler import Limits
from m27.infer.store import store
from m27.infer.torch_runner import TorchRunner
from m27.model import checkpoint, importance
from m27.model.files import CheckpointError
from m27.model.gguf import Blocks
from m27.model.quantized import held_precision
from m27.model.rounding import round_int8
from tests import tiny
from tests.infer.cpu.steps import ids, model, naive, whole

WEIGHTS = Path(__file__).resolve().parents[3] / "weights" / "m27-nano"


def runner(folder: Path, precision: str = "auto", backend: str = "auto") -> Runner:
    return load_runner(folder, precision, "cpu", backend, 2, Limits(blocks=16), "auto")


@pytest.fixture(params=["packed", "qwen3", "calibrated"])
def folder(request, tmp_path) -> Path:
    """A model in the shipped layout, and one in the stock layout of which nothing is whole groups, also with what
    its inputs count beside it."""
    if request.param == "packed":
        tiny.write_model(tmp_path / "model")
    else:
        decoder = model("qwen3")
        checkpoint.save(decoder, tmp_path / "model")
        if request.param == "calibrated":
            importance.write(tmp_path / "model", importance.measure(decoder, [ids(decoder.config, 40)])[0], "a test")
    return tmp_path / "model"


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_the_same_logits_as_rounding_at_load(library, folder, precision, tmp_path, monkeypatch):
    out = tmp_path / "out"
    config = store(folder, out, precision)
    row = ids(config, 40)
    want = whole(runner(folder, precision, "cpu"), row)
    # Nothing is widened and nothing rounded: what the file holds goes to the step.
    monkeypatch.setattr(Blocks, "dequantize", lambda *_: pytest.fail("widened"))
    monkeypatch.setattr("m27.infer.quantize.rounded", lambda *_: pytest.fail("rounded"))
    monkeypatch.setattr(library, "rounded", lambda *_: pytest.fail("rounded"))
    for asked in ("auto", precision):
        stored = runner(out, asked, "cpu")
        assert stored.facts()["precision"] == precision
        assert np.array_equal(whole(stored, row), want)


def test_what_a_folder_does_not_hold_is_refused(library, folder, tmp_path):
    out = tmp_path / "out"
    store(folder, out, "int4")
    for asked in ("int8", "bfloat16", "float32"):
        for backend in ("auto", "torch"):
            with pytest.raises(RequestError, match=f"holds weights in int4; {asked} cannot be had"):
                runner(out, asked, backend)
    with pytest.raises(RequestError, match="int4 needs the CPU backend"):
        runner(out, "int4", "torch")
    with pytest.raises(CheckpointError, match="holds weights in int4 already"):
        store(out, tmp_path / "again", "int8")
    with pytest.raises(CheckpointError, match="no such folder"):
        store(tmp_path / "nowhere", tmp_path / "again", "int8")


def test_a_vector_in_blocks_is_refused(library):
    decoder = model("llama")
    state = dict(quantized(decoder.state_dict(), "int8"))
    name = "model.layers.0.input_layernorm.weight"
    state[name] = round_int8(torch.ones(1, decoder.config.dim))
    with pytest.raises(RunnerError, match=rf"{name} is \[1, {decoder.config.dim}\]"):
        CpuRunner.load(state, decoder.config, precision="int8", blocks=4)


def test_torch_widens_the_blocks(folder, tmp_path, monkeypatch, capsys):
    """Where it is asked for, and where the step cannot be compiled."""
    out = tmp_path / "out"
    config = store(folder, out, "int8")
    row = ids(config, 30)
    want = naive(checkpoint.load(out), row)
    monkeypatch.setattr("m27.runtime.dtype", lambda *_: torch.float32)

    def fails(*_, **__):
        raise BuildError("no compiler")

    monkeypatch.setattr(CpuRunner, "load", fails)
    monkeypatch.setattr("m27.infer.load._told", set())
    for backend in ("torch", "auto"):
        found = runner(out, "auto", backend)
        assert isinstance(found, TorchRunner)
        assert np.abs(whole(found, row) - want).max() < 1e-4 * np.abs(want).max()
    assert "no compiler" in capsys.readouterr().err


def test_without_a_compiler_the_definition_rounds(library, folder, tmp_path, monkeypatch):
    def fails():
        raise BuildError("no compiler")

    store(folder, tmp_path / "a", "int4")
    monkeypatch.setattr("m27.infer.cpu.binding.library", fails)
    store(folder, tmp_path / "b", "int4")
    monkeypatch.undo()
    one, other = (checkpoint.load(tmp_path / side).state_dict() for side in "ab")
    for name, weight in one.items():
        assert (weight - other[name]).norm() < 0.02 * weight.norm()
    assert held_precision(tmp_path / "b") == "int4"


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_the_shipped_weights_stored_and_rounded_at_load(library, precision, tmp_path):
    config = store(WEIGHTS, tmp_path, precision)
    row = ids(config, 64)
    first, second = (whole(runner(side, precision, "cpu"), row) for side in (WEIGHTS, tmp_path))
    assert np.array_equal(first, second)
