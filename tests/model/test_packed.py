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
from m27.model.gguf import Blocks, read_gguf
from m27.model.packed import write_tensors
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
        "image_levels": IMAGE, "audio_levels": AUDIO, "base": base,
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
