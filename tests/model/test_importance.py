"""What inputs count: measured as it says, kept beside the weights, and used by every kind of rounding."""

from pathlib import Path

import pytest
import torch

from m27.infer.cpu import BuildError, binding
from m27.model import checkpoint, importance
from m27.model.files import CheckpointError, write_tensors
from m27.model.gguf import Blocks
from m27.model.quantized import open_quantized
from m27.model.rounding import group_weights, quantized, round_int4
from m27.train.qlora import BlockLinear, open_base
from tests import tiny

ROWS = ([3, 9, 4, 4, 60], [7], [], [1, 2, 3, 4, 5, 6, 7, 8, 9])
UP = "model.layers.0.mlp.up_proj.weight"


def uneven(rows: int = 48, columns: int = 70) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix, and inputs of which a few are large."""
    draw = torch.Generator().manual_seed(5)
    counts = torch.rand(columns, generator=draw).pow(8) * 100
    counts[3] = 0
    return torch.randn(rows, columns, generator=draw) * 0.05, counts


def lost(weight: torch.Tensor, blocks: Blocks, counts: torch.Tensor) -> float:
    error = blocks.dequantize()[:, : weight.shape[1]] - weight
    return float((error.square() * counts).sum())


def test_squares_are_those_of_what_each_matrix_reads() -> None:
    decoder = tiny.decoder()
    read: dict[str, list[torch.Tensor]] = {}
    hooks = [
        module.register_forward_hook(lambda m, args, out, name=name: read.setdefault(name, []).append(args[0][0]))
        for name, module in decoder.named_modules()
        if name.endswith("_proj")
    ]
    with torch.inference_mode():
        for ids in ROWS:
            if ids:
                decoder(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    squares, tokens = importance.measure(decoder, ROWS)
    assert tokens == 15
    for name, inputs in read.items():
        stem = name.replace("k_proj", "q_proj").replace("up_proj", "gate_proj")
        if name.endswith(("v_proj", "o_proj")):  # v reads what q reads
            continue
        want = torch.cat(inputs).square().mean(0)
        assert torch.allclose(squares[stem], want, rtol=1e-4, atol=1e-7)
    assert not any(module._forward_pre_hooks for module in decoder.modules())


def test_nothing_to_measure_with_is_said() -> None:
    with pytest.raises(ValueError, match="no token"):
        importance.measure(tiny.decoder(), [[]])


def test_a_file_gives_back_what_was_measured_under_every_name(tmp_path: Path) -> None:
    decoder = tiny.decoder()
    assert importance.read(tmp_path, decoder.config) == {}
    squares, _ = importance.measure(decoder, ROWS)
    importance.write(tmp_path, squares, "a test")
    found = importance.read(tmp_path, decoder.config)
    assert set(found) == {
        f"model.layers.{layer}.{part}.weight"
        for layer in range(decoder.config.n_layers)
        for part in ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    }
    assert torch.allclose(found[UP], squares["model.layers.0.mlp.gate_proj"], rtol=4e-3)


def test_files_of_another_model_or_of_nonsense_are_refused(tmp_path: Path) -> None:
    decoder = tiny.decoder()
    squares, _ = importance.measure(decoder, ROWS)
    down = "model.layers.0.mlp.down_proj"
    for change, said in (
        ({down: torch.ones(5)}, f"{down} is missing or not of {decoder.config.ffn_dim} inputs"),
        ({down: -squares[down]}, f"{down} holds what is no mean square"),
        ({down: squares[down] * torch.nan}, f"{down} holds what is no mean square"),
    ):
        importance.write(tmp_path, squares | change, "a test")
        with pytest.raises(CheckpointError, match=said):
            importance.read(tmp_path, decoder.config)
    write_tensors(tmp_path / importance.NAME, squares, {})
    with pytest.raises(CheckpointError, match="not of format"):
        importance.read(tmp_path, decoder.config)
    (tmp_path / importance.NAME).write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="not readable as safetensors"):
        importance.read(tmp_path, decoder.config)


def test_rounding_loses_less_where_inputs_are_large() -> None:
    weight, counts = uneven()
    even, weighted = round_int4(weight), round_int4(weight, counts)
    assert lost(weight, weighted, counts) < 0.7 * lost(weight, even, counts)
    assert lost(weight, weighted, torch.ones(70)) > lost(weight, even, torch.ones(70))
    same = round_int4(weight, torch.full((70,), 3.0))  # all alike, whatever their size
    assert lost(weight, same, torch.ones(70)) == pytest.approx(lost(weight, even, torch.ones(70)), rel=1e-3)
    assert group_weights(torch.zeros(40), 40).isfinite().all()


def test_rounding_in_cpp_is_as_good_as_the_definition() -> None:
    try:
        library = binding.library()
    except BuildError as error:
        pytest.skip(str(error))
    weight, counts = uneven()
    slow, fast = round_int4(weight, counts), library.rounded(weight, "int4", counts, threads=2)
    assert lost(weight, fast, counts) == pytest.approx(lost(weight, slow, counts), rel=2e-3)


def test_an_adapter_is_trained_over_what_is_served(tmp_path: Path) -> None:
    """QLoRA's base, read from a folder with the file, is rounded by it."""
    decoder = tiny.decoder()
    checkpoint.save(decoder, tmp_path)
    even, _ = open_base(tmp_path, 4)
    importance.write(tmp_path, importance.measure(decoder, ROWS)[0], "a test")
    weighted, _ = open_base(tmp_path, 4)
    _, state = checkpoint.open_state(tmp_path)
    counted = importance.read(tmp_path, decoder.config)
    want = dict(quantized(state, "int4", importance=counted))[UP]
    assert isinstance(want, Blocks)
    blocks = {}
    for side, base in (("even", even), ("weighted", weighted)):
        module = base.get_submodule(UP.removesuffix(".weight"))
        assert isinstance(module, BlockLinear)
        blocks[side] = module.matrices[0].blocks
    assert torch.equal(blocks["weighted"].q, want.q)
    assert not torch.equal(blocks["even"].q, want.q)


def test_a_folder_in_blocks_is_rounded_by_it(tmp_path: Path) -> None:
    from m27.infer.store import store

    decoder = tiny.decoder()
    checkpoint.save(decoder, tmp_path / "model")
    store(tmp_path / "model", tmp_path / "even", "int4")
    importance.write(tmp_path / "model", importance.measure(decoder, ROWS)[0], "a test")
    store(tmp_path / "model", tmp_path / "weighted", "int4")
    even, weighted = (open_quantized(tmp_path / side)[1][UP] for side in ("even", "weighted"))
    assert isinstance(even, Blocks) and isinstance(weighted, Blocks)
    assert not torch.equal(even.q, weighted.q)
