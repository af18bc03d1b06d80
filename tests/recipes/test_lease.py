"""Pieces there and back, the check of the device, and a training that goes on from call to call."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from m27.train.lora import LoraConfig
from m27.train.settings import DataConfig
from recipes import lease, stages
from tests import tiny


def write(root: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


FILES = {"a/one.bin": bytes(range(256)) * 5, "a/two.txt": b"two", "b/none": b"", "c.bin": b"x" * 999}


def test_packed_and_unpacked_is_the_same(tmp_path):
    write(tmp_path / "here", FILES)
    paths = [tmp_path / "here" / name for name in ("a", "b", "c.bin")]
    pieces = lease.pack(paths, tmp_path / "pieces", 400, tmp_path / "here")
    assert all(piece.size <= 400 for piece in pieces)
    assert sum(piece.size for piece in pieces) == sum(map(len, FILES.values()))
    lease.unpack(tmp_path / "pieces", tmp_path / "there")
    assert {n: (tmp_path / "there" / n).read_bytes() for n in FILES} == FILES
    (tmp_path / "there" / "c.bin").write_bytes(b"trained since")
    lease.unpack(tmp_path / "pieces", tmp_path / "there")
    assert (tmp_path / "there" / "c.bin").read_bytes() == b"trained since"


def test_links_beside_their_files_are_carried_and_no_others(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    write(here, {"lib/libone.so.2.2": b"a library", "other": b"x"})
    (here / "lib" / "libone.so.1").symlink_to("libone.so.2.2")  # as Debian's packages have them
    (here / "lib" / "away").symlink_to("../other")
    lease.pack([here], tmp_path / "pieces", 400, here)
    for _ in range(2):
        lease.unpack(tmp_path / "pieces", there)
        assert (there / "lib" / "libone.so.1").read_bytes() == b"a library"
        assert not (there / "lib" / "away").is_symlink()
        for stamp in there.glob(".unpacked-*"):
            stamp.unlink()  # so that it is unpacked over what is there
    manifest = tmp_path / "pieces" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"link": "libone.so.2.2"', '"link": "/etc/passwd"'))
    with pytest.raises(lease.LeaseError, match="would link to"):
        lease.unpack(tmp_path / "pieces", there)


def test_damage_is_named(tmp_path):
    write(tmp_path / "here", FILES)
    lease.pack([tmp_path / "here"], tmp_path / "pieces", 400, tmp_path / "here")
    piece = tmp_path / "pieces" / "piece-002"
    whole = piece.read_bytes()
    piece.write_bytes(whole[:-1] + b"!")
    with pytest.raises(lease.LeaseError, match=r"piece-002.*damaged"):
        lease.unpack(tmp_path / "pieces", tmp_path / "there")
    piece.unlink()
    with pytest.raises(lease.LeaseError, match=r"piece-002.*missing"):
        lease.unpack(tmp_path / "pieces", tmp_path / "there")
    piece.write_bytes(whole)
    manifest = tmp_path / "pieces" / "manifest.json"
    held = json.loads(manifest.read_text())
    held["files"][0]["path"] = "../out"
    manifest.write_text(json.dumps(held))
    with pytest.raises(lease.LeaseError, match="leave the folder"):
        lease.unpack(tmp_path / "pieces", tmp_path / "there")
    with pytest.raises(lease.LeaseError, match="not below"):
        lease.pack([tmp_path / "here"], tmp_path / "pieces", 400, tmp_path / "here" / "a")


def test_a_few_pieces_a_call_bring_everything_back(tmp_path):
    write(tmp_path / "there", {"results.bin": bytes(range(250)) * 10})
    count, begin = 99, 0
    while begin < count:
        count = lease.send([tmp_path / "there"], tmp_path / "back", tmp_path, begin, 150)
        sent = list((tmp_path / "back").iterdir())
        assert len(sent) <= lease.BACK_FILES
        for path in sent:
            (tmp_path / "home").mkdir(exist_ok=True)
            shutil.copy(path, tmp_path / "home")
        begin += lease.BACK_FILES - 1
    assert count == 17
    lease.unpack(tmp_path / "home", tmp_path / "open")
    name = "there/results.bin"
    assert (tmp_path / "open" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_a_device_that_computes_wrongly_trains_nothing(tmp_path, monkeypatch):
    tiny.write_model(tmp_path)
    errors = lease.check(tmp_path, "cpu")
    assert errors["float32"] < 1e-5
    hidden, calls = torch.nn.Module.__call__, []

    def wrong(self, *given, **named):
        out = hidden(self, *given, **named)
        calls.append(self)
        last = type(self).__name__ == "RMSNorm" and len(calls) > 20
        return out * 1.5 if last else out

    monkeypatch.setattr(torch.nn.Module, "__call__", wrong)
    with pytest.raises(lease.LeaseError, match="nothing was trained"):
        lease.check(tmp_path, "cpu")


def test_calls_go_on_and_their_results_come_back(tmp_path, monkeypatch):
    """Two calls of a stage on a carried tiny model: the second resumes the first."""
    from tests.train import fixtures

    here, work = tmp_path / "here", tmp_path / "work"
    tiny.write_model(here / "weights" / "m27-nano")
    v = tiny.VOCABULARY
    monkeypatch.setattr(fixtures, "TEXT", v.text_size)
    monkeypatch.setattr(fixtures, "IMAGE", (v.image.start, v.image.stop))
    monkeypatch.setattr(fixtures, "AUDIO", (v.audio.start, v.audio.stop))
    shard = fixtures.write_shard(here / ".cache" / "shards" / "nano" / "emoji", 60, 1)
    meta = json.loads((shard / "meta.json").read_text())
    meta["vocabulary"] |= {
        "size": v.size, "text": v.text_size, "image": [v.image.start, v.image.stop],
        "audio": [v.audio.start, v.audio.stop],
    }  # fmt: skip
    (shard / "meta.json").write_text(json.dumps(meta))
    pieces, back = tmp_path / "pieces", tmp_path / "back"
    lease.pack([here / "weights", here / ".cache"], pieces, 50_000, here)

    def small() -> stages.NanoRecipe:
        recipe = stages.joint()
        data = DataConfig(tasks={"draw": 1, "speak": 1}, row=256, pool=16)
        run = replace(
            recipe.train, minutes=None, steps=4, lora=LoraConfig(rank=2), data=data,
            compile=False, dtype="float32", threads=1,
        )  # fmt: skip
        return replace(recipe, train=run, warm_start=False)

    monkeypatch.setattr(stages, "STAGES", {"joint": small})
    monkeypatch.setattr("recipes.base.IMAGE_LEVELS", tiny.IMAGE_LEVELS)
    monkeypatch.setattr("recipes.base.AUDIO_LEVELS", tiny.AUDIO_LEVELS)
    monkeypatch.setattr("m27.runtime.set_threads", lambda count: count)
    call = [
        "run", "--pieces", str(pieces), "--work", str(work), "--back", str(back),
        "--stage", "joint", "--device", "cpu",
    ]  # fmt: skip
    assert lease.main([*call, "--minutes", "9", "--set", "steps=2"]) == 0
    first = json.loads((work / "weights" / "m27-nano" / "m27.json").read_text())["training"]
    assert first["steps"] == 2
    assert lease.main([*call, "--minutes", "9"]) == 0
    assert lease.main(["unpack", "--pieces", str(back), "--into", str(tmp_path / "home")]) == 0
    home = tmp_path / "home"
    assert (home / "weights" / "m27-nano" / "trained.safetensors").is_file()
    log = (home / "runs" / "m27-nano" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [1, 2, 3, 4]
    assert lease.main(["run", "--pieces", str(pieces), "--back", str(back)]) == 2
