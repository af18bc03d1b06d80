"""The models inside lm-evaluation-harness and lmms-eval; skipped where those are not installed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from m27.cli import main
from tests import tiny

ROOT = Path(__file__).resolve().parents[3]
CHOICES = """task: choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/docs.json}}}}
test_split: test
output_type: {kind}
doc_to_text: "Q: {{{{question}}}}\\nA:"
doc_to_choice: ["yes", "no"]
doc_to_target: "{{{{label}}}}"
metric_list: [{{metric: acc}}]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    tiny.write_model(tmp_path / "model")
    docs = [{"question": f"is {n} even?", "label": n % 2} for n in range(6)]
    (tmp_path / "docs.json").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (tmp_path / "choices.yaml").write_text(CHOICES.format(folder=tmp_path, kind="multiple_choice"))
    return tmp_path


def test_a_task_of_the_harness_leaves_our_rows_and_goes_on_where_it_was_ended(folder, capsys):
    pytest.importorskip("lm_eval")
    words = ["eval", "choices.yaml", "--harness", "lm-eval", "--model", "model", "--precision", "float32",
             "--threads", "1", "--out", "out"]  # fmt: skip

    def run():
        with pytest.raises(SystemExit) as left:
            main(words)
        assert not left.value.code
        return {name: (Path("out") / name).read_bytes() for name in ("rows.jsonl", "answers.jsonl")}

    whole = run()
    (row,) = (json.loads(line) for line in whole["rows.jsonl"].splitlines())
    assert (row["task"], row["metric"], row["n"], row["scorer"]) == (
        "choices", "acc", 6, "EleutherAI/lm-evaluation-harness"
    )  # fmt: skip
    assert row["low"] <= row["score"] <= row["high"]
    assert "choices acc: " in capsys.readouterr().out
    kept = Path("out/requests.jsonl").read_bytes().split(b"\n")
    assert len(kept) == 13
    Path("out/requests.jsonl").write_bytes(b"\n".join(kept[:5]) + b"\n" + kept[5][:9])
    assert run() == whole


def test_what_the_harness_cannot_be_asked_is_one_line(folder, capsys):
    pytest.importorskip("lm_eval")
    for words, says in (
        (["choices.yaml", "--model", "openai:x@http://localhost/v1"], "needs probabilities"),
        (["no_such_task", "--model", "model"], "has no task of that name"),
        (["gone.yaml"], "gone.yaml: no such file"),
        (["choices.yaml", "--metric", "exact"], "its tasks say themselves"),
    ):
        with pytest.raises(SystemExit) as left:
            main(["eval", *words, "--harness", "lm-eval", "--out", "other"])
        assert left.value.code == 2
        err = capsys.readouterr().err
        assert says in err and err.count("\n") == 1


def test_lmms_eval_finds_the_model_by_its_entry_point_and_is_answered(folder, monkeypatch):
    pytest.importorskip("lmms_eval")
    from lmms_eval.api.instance import Instance
    from lmms_eval.models import get_model
    from PIL import Image

    monkeypatch.setattr("m27.codec.image.ImageCodec", tiny.TinyImageCodec)
    monkeypatch.setattr("m27.codec.audio.AudioCodec", tiny.TinyAudioCodec)
    model = get_model("m27")("model", precision="float32", threads=1)
    picture = Image.fromarray(np.full((32, 32, 3), 99, np.uint8))

    def messages(doc):
        parts = [{"type": "image", "url": picture}, {"type": "text", "text": doc["question"]}]
        return [{"role": "user", "content": parts}]

    docs = [json.loads(line) for line in Path("docs.json").read_text().splitlines()]
    model.task_dict = {"t": {"test": docs}}
    meta = {"task": "t", "doc_id": 0, "repeats": 1}
    asked = [
        Instance("generate_until", ("", messages, {"max_new_tokens": 6}, n, "t", "test"), n, meta) for n in range(6)
    ]  # fmt: skip
    found = model.generate_until(asked)
    engine = tiny.Engine.load("model", precision="float32", threads=1)
    for doc, result in zip(docs, found, strict=True):
        parts = [{"type": "image", "image": np.asarray(picture)}, {"type": "text", "text": doc["question"]}]
        words = {"modalities": ("text",), "max_tokens": 6, "temperature": 0.0, "repetition_penalty": 1.0, "seed": 0}
        want = engine.chat(tiny_request([{"role": "user", "content": parts}], words))
        assert result.text == want.text.strip()
    engine.close()
    model.model.close()


def tiny_request(messages, words):
    from m27.infer.request import Request

    return Request(messages, **words)


def test_nothing_of_ours_needs_a_harness_to_be_imported():
    code = (
        "import sys\n"
        "sys.modules['lm_eval'] = sys.modules['lmms_eval'] = None\n"
        "import m27.cli.harness, m27.eval.plugins.lmms, m27.eval.plugins.prompted, m27.eval.ask\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-1000:]


def test_a_missing_harness_is_said_with_how_to_get_it(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "m27.eval.plugins.harness", raising=False)
    with pytest.raises(SystemExit) as left:
        main(["eval", "choices.yaml", "--harness", "lm-eval", "--model", "model"])
    assert left.value.code == 2
    assert "pip install -e '.[harness]'" in capsys.readouterr().err
