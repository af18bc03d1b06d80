"""m27 finetune on the tiny model: an adapter with its figures; bad data stop it; it goes on where it was."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from m27.codec import media
from m27.data.build import build
from m27.data.regression import NAME, pack
from m27.infer.adapters import read_adapter
from m27.model import checkpoint
from tests import tiny

QUICK = ("--no-compile", "--threads", "1", "--max-tokens", "300")


def write_records(folder: Path, count: int = 12) -> Path:
    """Questions about pictures with short answers, and wishes for pictures and sounds."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        rgb = np.full((128, 128, 3), 20 * number, np.uint8)
        media.write_png(folder / f"{number}.png", rgb)
        shown = {"type": "image", "path": f"{number}.png"}
        asked = {"type": "text", "text": "how light?"}
        kinds = [
            ([shown, asked], [{"type": "text", "text": "it is light"}]),
            ([{"type": "text", "text": f"draw {number}"}], [shown]),
            ([{"type": "text", "text": f"play {number}"}], [{"type": "audio", "codes": [3] * 5}]),
        ]  # fmt: skip
        user, answer = kinds[number % 3]
        messages = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": messages}))
    path = folder / "records.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def base(model: Path, tmp_path: Path) -> Path:
    """The tiny model with a regression set of two kinds."""
    folder = tmp_path / "base"
    shutil.copytree(model, folder)
    documents = [
        {"id": str(n), "task": ("text", "picture out")[n % 2], "source": "s", "messages": [
            {"role": "user", "content": f"say {n}"},
            {"role": "assistant", "content": [
                {"type": "text", "text": f"number {n}"}, {"type": "image", "codes": np.full((2, 2), n)},
            ]},
        ]} for n in range(8)
    ]  # fmt: skip
    build(documents, tiny.processor(), tmp_path / "shard")
    pack(tmp_path / "shard", folder / NAME)
    return folder


def test_it_writes_an_adapter_with_figures_and_goes_on(run, base: Path, tmp_path: Path) -> None:
    data, held_out = (write_records(tmp_path / name, n) for name, n in (("data", 12), ("held", 6)))
    arguments = ("finetune", data, "--base", base, "--out", "mine", "--rank", "4", "--lr", "1e-2",
                 "--steps", "12", "--val", held_out, *QUICK)  # fmt: skip
    done = run(*arguments)
    assert done.status == 0, done.err
    assert "wrote mine" in done.out
    out = tmp_path / "mine"
    results = json.loads((out / "results.json").read_text())
    held = results["held_out"]["all"]
    assert held["loss_after"] < held["loss_before"]
    assert results["training"]["steps"] == 12
    assert set(results["regression"]) == {"text", "picture out"}
    assert (results["data"]["records"], results["data"]["held_out"]) == (12, 6)
    assert results["data"]["skipped"] == 0
    for kind, row in results["regression"].items():
        assert row["worse"] == any(w.startswith(kind) for w in results["warnings"])
        assert row["worse"] == (row["interval"][0] > 0)
    assert all(f"warning: {w}" in done.err for w in results["warnings"])
    card = (out / "README.md").read_text()
    for words in ("held-out", results["data"]["hash"], "m27 merge", "| all |"):
        assert words in card
    assert results["answers"]["after"]["exact"]["n"] == 2
    assert len((out / "answers.jsonl").read_text().splitlines()) == 2
    made = {path.name for path in (out / "samples").iterdir()}
    assert {"1-before.png", "1-after.png", "2-after.wav"} <= made
    assert read_adapter(out).matrices
    first = (out / "adapter_model.safetensors").read_bytes()
    again = run(*arguments)
    assert (again.status, again.out) == (0, done.out)
    assert (out / "adapter_model.safetensors").read_bytes() == first
    other = run(*arguments[:-1], "400")
    assert other.status == 2
    assert "another max_tokens" in other.err
    answered = run("chat", "hi", "--adapter", "mine", "--model", base, "--json", "--max-tokens", "8",
                   "--temperature", "0", "--modalities", "text")  # fmt: skip
    assert answered.status == 0, answered.err
    plain = run("chat", "hi", "--model", base, "--json", "--max-tokens", "8", "--temperature", "0",
                "--modalities", "text")  # fmt: skip
    assert json.loads(answered.out)["content"] != json.loads(plain.out)["content"]


def test_a_stopped_run_ends_where_the_uninterrupted_one_does(
    run, base: Path, tmp_path: Path, monkeypatch
) -> None:
    from m27.train.loop import Trainer

    data = write_records(tmp_path / "data")
    arguments = ("finetune", data, "--base", base, "--steps", "6", "--rank", "2", "--answers", "0",
                 "--samples", "0", *QUICK)  # fmt: skip
    assert run(*arguments, "--out", "whole").status == 0
    through = Trainer.run
    monkeypatch.setattr(Trainer, "run", lambda self: through(self, until=2))
    stopped = run(*arguments, "--out", "parts")
    assert stopped.status == 1
    assert not (tmp_path / "parts" / "results.json").exists()
    monkeypatch.setattr(Trainer, "run", through)
    other = run("finetune", data, "--base", base, "--steps", "7", *arguments[6:], "--out", "parts")
    assert other.status == 2
    assert "another steps" in other.err
    assert run(*arguments, "--out", "parts").status == 0
    whole, parts = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("whole", "parts"))
    assert all((whole[name] == parts[name]).all() for name in whole)


def test_every_weight_and_a_stock_checkpoint(run, base: Path, tmp_path: Path) -> None:
    data = write_records(tmp_path / "data")
    done = run("finetune", data, "--base", base, "--out", "mine", "--full", "--steps", "3", "--lr",
               "2e-2", "--answers", "2", "--samples", "1", *QUICK)  # fmt: skip
    assert done.status == 0, done.err
    tuned, before = (checkpoint.load(tmp_path / name) for name in ("mine/model", "base"))
    moved = [
        name for name, p in tuned.named_parameters() if not p.equal(before.get_parameter(name))
    ]
    assert len(moved) == len(list(tuned.parameters()))
    assert run("chat", "hi", "--model", tmp_path / "mine" / "model", "--json", "--max-tokens", "4",
               "--modalities", "text").status == 0  # fmt: skip
    assert not (tmp_path / "mine" / "adapter_config.json").exists()


def test_adapters_over_a_base_in_blocks(run, base: Path, tmp_path: Path) -> None:
    data, held_out = (write_records(tmp_path / name, n) for name, n in (("data", 12), ("held", 3)))
    done = run("finetune", data, "--base", base, "--out", "mine", "--qlora", "--steps", "6", "--lr",
               "1e-2", "--val", held_out, "--answers", "1", "--samples", "0", *QUICK)  # fmt: skip
    assert done.status == 0, done.err
    held = json.loads((tmp_path / "mine" / "results.json").read_text())["held_out"]["all"]
    assert held["loss_after"] < held["loss_before"]
    assert read_adapter(tmp_path / "mine").matrices


def test_bad_records_stop_it_and_can_be_skipped(run, base: Path, tmp_path: Path) -> None:
    data = write_records(tmp_path / "data")
    lines = data.read_bytes().splitlines()
    media.write_wav(data.parent / "empty.wav", np.zeros(0, np.float32))
    (data.parent / "none.png").write_bytes(b"")
    answer = {"role": "assistant", "content": "yes"}

    def record(*parts: dict[str, str], role: str = "user") -> bytes:
        return json.dumps({"messages": [{"role": role, "content": list(parts)}, answer]}).encode()

    bad = {
        "missing media": record({"type": "image", "path": "gone.png"}),
        "wrong role": record({"type": "text", "text": "x"}, role="wizard"),
        "broken UTF-8": b'{"messages": "\xff"}',
        "over-long": record({"type": "text", "text": "x" * 900}),
        "zero-length audio": record({"type": "audio", "path": "empty.wav"}),
        "no pixels": record({"type": "image", "path": "none.png"}),
    }
    data.write_bytes(b"\n".join([*lines, *bad.values()]) + b"\n")
    arguments = ("finetune", data, "--base", base, "--out", "mine", "--steps", "1", "--answers", "0",
                 "--samples", "0", *QUICK)  # fmt: skip
    done = run(*arguments)
    assert done.status == 2
    for number in range(len(lines) + 1, len(lines) + len(bad) + 1):
        assert f"records.jsonl:{number}: " in done.err
    assert "6 of 18 records are bad; nothing was trained" in done.err
    assert not (tmp_path / "mine" / "run").exists()
    skipped = run(*arguments, "--skip-bad")
    assert skipped.status == 0, skipped.err
    assert json.loads((tmp_path / "mine" / "results.json").read_text())["data"]["skipped"] == 6
    assert "6 left out" in skipped.err


def test_wrong_arguments_are_told_in_a_line(run, model: Path, tmp_path: Path) -> None:
    data = write_records(tmp_path / "data", 2)
    for arguments, words in (
        (("nowhere",), "no such file"),
        ((data, "--full", "--qlora"), "exclude each other"),
        ((data, "--steps", "1", "--minutes", "1"), "exclude each other"),
        ((data, "--rank", "0"), "--rank 0"),
        ((data, "--base", "nowhere"), "no model here"),
        ((data, "--val", "2"), "--val 2"),
        ((data, "--val", "none.jsonl"), "neither a share nor a file"),
        ((data, "--direction", "up"), "direction 'up'"),
        ((data, "--max-tokens", "9999"), "--max-tokens 9999"),
    ):
        done = run("finetune", *arguments, "--out", "mine")
        assert done.status == 2, (arguments, done.err)
        assert words in done.err
        assert done.err.count("\n") == 1
    assert not (tmp_path / "mine" / "results.json").exists()
