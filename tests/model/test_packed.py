"""The shipped layout: the base kept to the last bit, the trained part merged by its definition."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from m27.model.checkpoint import CheckpointError, load, read_base, save, save_packed
from m27.model.code_map import CodeMap
from m27.model.files import TensorFile, write_tensors
from m27.model.gguf import Blocks, read_gguf
from m27.model.packed import open_packed, read_trained
from tests.model.conftest import TINY, random_decoder
from tests.model.gguf_writer import write_llama

IMAGE, AUDIO = (4, 2), (3, 2)
CONFIG = replace(TINY, vocab_size=97 + 5 + 8 + 6)
ADAPTED = ("model.layers.1.self_attn.q_proj", "model.layers.0.mlp.down_proj")


def trained_part() -> dict[str, torch.Tensor]:
    parts = {"control.weight": torch.randn(5, 64), "model.norm.weight": torch.rand(64)}
    for medium, levels in (("image", IMAGE), ("audio", AUDIO)):
        code_map = CodeMap(levels, 64, hidden=24)
        torch.nn.init.normal_(code_map.down.weight)
        parts |= {f"{medium}_map.{k}": v for k, v in code_map.state_dict().items()}
    for name, (rows, columns) in zip(ADAPTED, ((64, 64), (64, 96)), strict=True):
        parts[f"{name}.lora_A"] = torch.randn(4, columns)
        parts[f"{name}.lora_B"] = torch.randn(rows, 4)
    return {name: tensor.to(torch.bfloat16) for name, tensor in parts.items()}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> dict[str, torch.Tensor | Blocks]:
    state = {k: v.numpy() for k, v in random_decoder(TINY).state_dict().items()}
    path = tmp_path_factory.mktemp("base") / "base.gguf"
    write_llama(path, TINY, state)
    return read_gguf(path).tensors()


def write(directory: Path, base=None, **change) -> dict[str, torch.Tensor]:
    settings = {
        "config": CONFIG, "trained": trained_part(), "alpha": 6.0, "rank": 4,
        "image_levels": IMAGE, "audio_levels": AUDIO, "base": base, "stored": "bfloat16",
    } | change  # fmt: skip
    save_packed(directory, **settings)
    return settings["trained"]


def test_files_can_be_read_by_others_and_a_full_disk_is_told(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"x": torch.zeros(2)}, {})
    assert path.stat().st_mode & 0o777 == 0o644
    (tmp_path / "taken.safetensors").mkdir()  # stands for any place that takes no file
    with pytest.raises(CheckpointError, match=r"taken\.safetensors: cannot be written"):
        write_tensors(tmp_path / "taken.safetensors", {"x": torch.zeros(2)}, {})
    with pytest.raises(CheckpointError, match=r"/proc/x: cannot be written"):
        write_tensors(Path("/proc/x"), {"x": torch.zeros(2)}, {})
    assert len(list(tmp_path.iterdir())) == 2


def test_equal_content_is_equal_bytes(tmp_path):
    metadata = {f"key {n}": f'Ünicode, "{n}"' for n in range(12)}
    tensors = {"b": torch.ones(3), "a": torch.zeros(2, dtype=torch.int8)}
    for name in ("one", "two"):
        write_tensors(tmp_path / name, tensors, dict(reversed(metadata.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    found = TensorFile(tmp_path / "one")
    assert found.metadata == metadata
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_the_base_is_kept_to_the_last_bit(base, tmp_path):
    write(tmp_path / "packed", base)
    found = read_base(tmp_path / "packed")
    assert found.keys() == base.keys()
    for name, want in base.items():
        got = found[name]
        if isinstance(want, Blocks):
            assert torch.equal(got.q, want.q), name
            assert torch.equal(got.scale, want.scale), name
            assert (got.minimum is None) == (want.minimum is None)
            assert want.minimum is None or torch.equal(got.minimum, want.minimum)
        else:
            assert torch.equal(got, want), name


def test_loading_gives_the_merged_plain_model(base, tmp_path):
    trained = {k: v.float() for k, v in write(tmp_path / "packed", base).items()}
    state = {k: v.dequantize() if isinstance(v, Blocks) else v.float() for k, v in base.items()}
    for name in ADAPTED:
        a, b = trained[f"{name}.lora_A"], trained[f"{name}.lora_B"]
        state[f"{name}.weight"] = state[f"{name}.weight"] + 6.0 / 4 * b @ a
    rows = [state["model.embed_tokens.weight"], trained["control.weight"]]
    for medium, levels in (("image", IMAGE), ("audio", AUDIO)):
        code_map = CodeMap(levels, 64, hidden=24)
        prefix = f"{medium}_map."
        code_map.load_state_dict(
            {k.removeprefix(prefix): v for k, v in trained.items() if k.startswith(prefix)}
        )
        rows.append(code_map.rows().detach())
    state["model.embed_tokens.weight"] = torch.cat(rows)
    state["model.norm.weight"] = trained["model.norm.weight"]

    model = load(tmp_path / "packed")
    assert model.config == CONFIG
    assert model.state_dict().keys() == state.keys()
    for name, want in state.items():
        torch.testing.assert_close(model.state_dict()[name], want, rtol=0, atol=1e-6)
    # Written out again it is a stock checkpoint.
    save(model, tmp_path / "stock")
    ids = torch.arange(0, 116, 7)[None]
    assert torch.equal(load(tmp_path / "stock")(ids), model(ids))


def test_a_matrix_is_made_when_it_is_asked_for(base, tmp_path, monkeypatch):
    """And anew each time: nothing of the model stays, and a change to one is nobody else's."""
    write(tmp_path, base)
    want = load(tmp_path).state_dict()
    config, state = open_packed(tmp_path)
    assert config == CONFIG
    assert set(state) == set(want)
    name = f"{ADAPTED[0]}.weight"
    state[name].zero_()
    for key in (name, "model.embed_tokens.weight", "model.norm.weight"):
        assert torch.equal(state[key], want[key])
    widened = []
    dequantize = Blocks.dequantize
    monkeypatch.setattr(
        Blocks, "dequantize", lambda self, *out: widened.append(self) or dequantize(self, *out)
    )
    assert name in state
    assert widened == []
    state[name]
    assert len(widened) == 1


def test_a_later_release_keeps_the_base_file_and_other_rooms_keys(base, tmp_path):
    write(tmp_path, base, extra={"codecs": "x"})
    before = hashlib.sha256((tmp_path / "base.safetensors").read_bytes()).digest()
    write(tmp_path, extra={"vocabulary": 1})
    assert hashlib.sha256((tmp_path / "base.safetensors").read_bytes()).digest() == before
    header = json.loads((tmp_path / "m27.json").read_text())
    assert header == {"codecs": "x", "vocabulary": 1, "format": "m27-packed-1"}
    narrow = load_file(tmp_path / "trained.safetensors").values()
    assert {tensor.dtype for tensor in narrow} == {torch.bfloat16}


def test_a_free_residual_is_added_to_the_map(base, tmp_path):
    trained = trained_part()
    write(tmp_path / "a", base, trained=trained)
    residual = torch.randn(8, 64).to(torch.bfloat16)
    write(tmp_path / "b", base, trained=trained | {"image_residual.weight": residual})
    plain, moved = (load(tmp_path / side).output_weight for side in "ab")
    torch.testing.assert_close(moved[102:110] - plain[102:110], residual.float(), atol=1e-5, rtol=0)
    assert torch.equal(moved[:102], plain[:102])
    assert torch.equal(moved[110:], plain[110:])


def wide_factors(rank: int = 64) -> dict[str, torch.Tensor]:
    """A and B as they are after training: B from next to nothing to as large as A, and columns of zeros."""
    factors = {}
    for name, (rows, columns) in zip(ADAPTED, ((64, 64), (64, 96)), strict=True):
        factors[f"{name}.lora_A"] = (torch.rand(rank, columns) * 2 - 1) / columns**0.5
        b = torch.randn(rows, rank) * torch.logspace(-7, -1, rows)[:, None]
        b[:, 32:] *= 1e-3
        b[::5, 32:] = 0
        factors[f"{name}.lora_B"] = b
    return factors


def test_factors_are_stored_in_blocks_of_8_bits(base, tmp_path):
    trained = {k: v.float() for k, v in trained_part().items()} | wide_factors()
    write(tmp_path / "a", base, trained=trained, rank=64, stored="int8")
    flat = load_file(tmp_path / "a" / "trained.safetensors")
    for name, whole in trained.items():
        if ".lora_" in name:
            assert flat[f"{name}.q"].dtype == torch.int8
            assert flat[f"{name}.q"].shape == whole.shape
            assert flat[f"{name}.scale"].dtype == torch.float16
            assert name not in flat
        else:
            assert torch.equal(flat[name], whole.to(torch.bfloat16))
    found, metadata = read_trained(tmp_path / "a")
    assert metadata["rank"] == "64"
    for name in ADAPTED:
        want = trained[f"{name}.lora_B"] @ trained[f"{name}.lora_A"]
        got = found[f"{name}.lora_B"] @ found[f"{name}.lora_A"]
        assert 0 < (got - want).norm() < 0.01 * want.norm()
    # What is read is what is merged, and what is written again, bit by bit.
    state = {k: v.dequantize() if isinstance(v, Blocks) else v.float() for k, v in base.items()}
    merged = load(tmp_path / "a").state_dict()
    for name in ADAPTED:
        update = 6.0 / 64 * (found[f"{name}.lora_B"] @ found[f"{name}.lora_A"])
        assert torch.equal(merged[f"{name}.weight"], state[f"{name}.weight"] + update)
    write(tmp_path / "b", base, trained=found, rank=64, stored="int8")
    first, second = ((tmp_path / side / "trained.safetensors").read_bytes() for side in "ab")
    assert first == second


def test_factors_of_other_widths_stay_in_bfloat16(base, tmp_path):
    """Of rank 4, A has whole groups of 32 in its rows and B has not."""
    trained = write(tmp_path, base, stored="int8")
    flat = load_file(tmp_path / "trained.safetensors")
    for name in ADAPTED:
        assert torch.equal(flat[f"{name}.lora_B"], trained[f"{name}.lora_B"])
        assert f"{name}.lora_A.q" in flat
    load(tmp_path)


def test_factors_that_cannot_be_stored_are_named(base, tmp_path):
    broken = wide_factors()
    broken[f"{ADAPTED[1]}.lora_B"][3, 5] = torch.nan
    change = {"trained": trained_part() | broken, "rank": 64}
    with pytest.raises(CheckpointError, match=r"down_proj\.lora_B has values that are not finite"):
        write(tmp_path, base, stored="int8", **change)
    with pytest.raises(CheckpointError, match="stored: 'int5' is none of int8, bfloat16"):
        write(tmp_path, base, stored="int5")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda scale: None, "has blocks but no scales"),
        (lambda scale: scale[:, :1].contiguous(), r"the scales of .*q_proj\.lora_A do not fit"),
    ],
)
def test_blocks_without_their_scales_are_refused(base, tmp_path, change, message):
    write(tmp_path, base, trained=trained_part() | wide_factors(), rank=64, stored="int8")
    path = tmp_path / "trained.safetensors"
    flat, name = load_file(path), f"{ADAPTED[0]}.lora_A.scale"
    changed = change(flat.pop(name))
    write_tensors(path, flat if changed is None else flat | {name: changed}, {})
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def without(name: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in trained_part().items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": replace(CONFIG, vocab_size=128)}, "rows are 116, config.json says .* 128"),
        ({"trained": without("control.weight")}, r"control\.weight is missing"),
        ({"trained": without("image_map.up.weight")}, r"image_map\.up\.weight is missing"),
        ({"trained": without(f"{ADAPTED[0]}.lora_B")}, r"q_proj\.lora_B is missing"),
        ({"trained": trained_part() | {"x.lora_A": torch.ones(4, 4), "x.lora_B": torch.ones(4, 4)}},
         "x has an adapter but no matrix"),
        ({"trained": trained_part() | {"model.embed_tokens.lora_A": torch.ones(4, 64),
                                       "model.embed_tokens.lora_B": torch.ones(97, 4)}},
         "model.embed_tokens has an adapter but no matrix"),
        ({"trained": trained_part() | {"odd.weight": torch.ones(2)}}, r"odd\.weight \[2\] has no"),
        ({"image_levels": (4, 3)}, r"image_map\.\* does not fit its levels"),
        ({"config": replace(CONFIG, tied=False)}, "tied"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(base, tmp_path, change, message):
    write(tmp_path / "packed", base, **change)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "packed")


def test_a_missing_base_or_unknown_format_is_refused(base, tmp_path):
    with pytest.raises(CheckpointError, match=r"base\.safetensors: no such file, and no base"):
        write(tmp_path / "packed")
    write(tmp_path / "packed", base)
    (tmp_path / "packed" / "m27.json").write_text('{"format": "m27-packed-9"}')
    with pytest.raises(CheckpointError, match="'m27-packed-9' is not known"):
        load(tmp_path / "packed")
    (tmp_path / "packed" / "m27.json").write_text('{"format": "m27-packed-1"}')
    (tmp_path / "packed" / "trained.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"trained\.safetensors: not readable"):
        load(tmp_path / "packed")
