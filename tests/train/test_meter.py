"""meter.py, sinks.py, events.py and flops.py: what a run says of itself, and that others can read it."""

import csv
import json
import sys
import types

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from m27.train.events import EventWriter, _masked
from m27.train.flops import Flops, peak
from m27.train.meter import Meter
from m27.train.settings import SettingError
from m27.train.sinks import flat, open_sinks
from tests.train import fixtures


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return fixtures.corpus(tmp_path_factory.mktemp("shards"))


def read(folder):
    """All scalars that TensorBoard shows of a folder: tag -> [(step, value)]."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]
    }


def test_the_checksum_is_crc_32c():
    # "123456789" -> 0xE3069283 (the check value of CRC-32C), then masked as TFRecord does.
    crc = 0xE3069283
    masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    assert _masked(b"123456789") == masked.to_bytes(4, "little")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_what_is_written_and_what_was_redone_once(tmp_path):
    first = EventWriter(tmp_path)
    for step in (1, 2, 3, 300):
        first.add(step, {"loss": 1 / step, "media/text": float(step)})
    first.close()
    with open(next(iter(tmp_path.iterdir())), "ab") as file:
        file.write(b"\x19\x00\x00")  # torn by a kill
    again = EventWriter(tmp_path, 3)  # a run that goes on after step 2
    again.add(3, {"loss": 0.25})
    again.close()
    found = read(tmp_path)
    assert found["loss"] == [(1, 1.0), (2, 0.5), (3, 0.25)]
    assert found["media/text"] == [(1, 1.0), (2, 2.0)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_run_goes_to_every_sink_and_goes_on_in_it(shards, tmp_path, monkeypatch):
    sent = []
    opened = []

    class Run:
        def log(self, values, step):
            sent.append((step, values))

        def finish(self):
            sent.append("finished")

    package = types.ModuleType("wandb")
    package.init = lambda **given: opened.append(given) or Run()
    monkeypatch.setitem(sys.modules, "wandb", package)
    settings = fixtures.config(log=("tensorboard", "csv", "wandb"))
    fixtures.trainer(tmp_path / "run", shards, settings).run(until=2)
    with open(tmp_path / "run" / "log.csv", "a") as file:
        file.write("3,loss,9.0\n4,lo")
    fixtures.trainer(tmp_path / "run", shards, settings).run()
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [(record["step"], record["loss"]) for record in records]
    with open(tmp_path / "run" / "log.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [(int(r["step"]), float(r["value"])) for r in table if r["name"] == "loss"] == losses
    assert {r["name"] for r in table} >= {"media/text", "tasks/draw", "tokens_per_second"}
    assert [(step, values["loss"]) for step, values in (s for s in sent if s != "finished")] == losses
    assert sent.count("finished") == 2
    assert opened[0]["id"] == opened[1]["id"]
    shown = read(tmp_path / "run" / "tensorboard")["loss"]
    assert shown == [(step, pytest.approx(loss)) for step, loss in losses]


def test_an_unknown_sink_and_an_absent_package_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(SettingError, match="tensorbord"):
        open_sinks(["tensorbord"], tmp_path, "x", 0)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SettingError, match="pip install wandb"):
        open_sinks(["wandb"], tmp_path, "x", 0)
    assert open_sinks(["none"], tmp_path, "x", 0) == []


def test_what_is_nested_is_named_by_its_path():
    record = {"step": 3, "loss": 1, "media": {"text": 2.0}, "name": "x"}
    assert dict(flat(record)) == {"loss": 1.0, "media/text": 2.0}


def test_the_line_tells_speed_share_and_rest(tmp_path, capsys):
    meter = Meter(tmp_path)
    record = {"step": 1, "loss": 2.0, "media": {"text": 2.0}, "tokens_per_second": 1234.0, "mfu": 0.421}
    meter.log(record, 0.25, 3723.0)
    assert "25% loss 2.000 (text 2.000) 1,234 tokens/s MFU 42.1% ETA 1:02:03" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes",
    [{}, {"tied": False}, {"family": "qwen3_moe", "n_experts": 4, "top_k": 4, "expert_dim": 32}],
)
def test_operations_are_those_that_torch_counts(shards, tmp_path, changes, monkeypatch):
    """One document a row, so that attention is what torch counts too but for its causal half."""
    monkeypatch.setattr("m27.model.moe._has_grouped", lambda x, down: False)  # which torch does not count
    trainer = fixtures.trainer(tmp_path, shards, fixtures.config(body="full", rows="free"))
    batches, _ = next(iter(trainer.loader))
    batch, plan = batches[0], trainer.scoring.plan(batches[0])
    model = fixtures.decoder(fixtures.AUDIO[1], **changes).requires_grad_(True)
    with FlopCounterMode(display=False) as counted:
        h = model.hidden(model.embed(batch.ids_BT), batch.positions_BT, batch.documents_BT)
        (h.flatten(0, 1)[batch.places_M] @ model.output_weight.T).sum().backward()
    c = model.config
    own = Flops(c, True, True)
    products = own.of(batch, plan) - own._pair * int((batch.positions_BT + 1).sum())
    wanted = counted.get_flop_counts()["Global"]
    matmuls = sum(n for op, n in wanted.items() if "attention" not in str(op))
    gains = 6 * batch.ids_BT.numel() * (model.config.n_layers * 2 + 1) * c.dim  # counted as parameters
    assert products == pytest.approx(matmuls, rel=0.02, abs=gains)


def test_adapters_cost_two_thirds_and_pairs_what_they_see(shards, tmp_path):
    trainer = fixtures.trainer(tmp_path, shards, fixtures.config())
    batches, _ = next(iter(trainer.loader))
    batch, plan = batches[0], trainer.scoring.plan(batches[0])
    full, part = (Flops(trainer.decoder.config, whole, whole) for whole in (True, False))
    pairs = full._pair * int((batch.positions_BT + 1).sum())
    assert (part.of(batch, plan) - pairs) / (full.of(batch, plan) - pairs) == pytest.approx(2 / 3)


def test_the_peak_of_a_processor_is_measured_once():
    here = torch.device("cpu")
    found = peak(here, torch.float32)
    assert found > 1e8
    assert peak(here, torch.float32) == found
