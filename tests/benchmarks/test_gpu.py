"""benchmarks/gpu.py: the whole of it at small sizes on a CPU, where graphs are plain calls."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu_parts import leading, made_processor, made_requests, prompt_of

ROOT = Path(__file__).resolve().parents[2]


def measured(out: Path, parts: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--slack", "20"]
    done = subprocess.run(
        [*command, "--parts", parts, "--out", str(out)], cwd=ROOT, capture_output=True, text=True,
        timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_one_request(tmp_path: Path) -> None:
    found = measured(tmp_path / "gpu.json", "one")
    one = found["one"]
    assert found["one became"] == "done" and one["whole"]
    assert not [name for name in one if name.startswith("failed")]
    for name in ("runner", "step", "engine", "modules"):
        assert one[name]["tokens_per_second"] > 0 and one[name]["percent_of_limit"] >= 0, name
    assert max(one["difference_of_states"]) < 0.02
    check = one["against_float32"]
    assert check["its_best_is_ahead_of_them_by_at_most"] < 0.1 * check["spread_of_its_logits"]


def test_many_requests(tmp_path: Path) -> None:
    found = measured(tmp_path / "gpu.json", "many")
    many = found["many"]
    assert found["many became"] == "done" and many["whole"]
    assert many["m27"]["ids"] == 4 * 8 and many["m27"]["rounds"] == 2
    assert many["transformers"]["ids"] == 4 * 8, many.get("transformers_failed")
    assert many["transformers_same_ids_before_they_part"]["median"] > 0
    assert many["times_theirs"] > 0


def test_prompts_are_as_long_as_was_asked() -> None:
    processor = made_processor(tiny=True)
    asked = made_requests(processor, 3, 40, 5, seed=1)
    prompts = [prompt_of(processor, request) for request in asked]
    assert [len(prompt) for prompt in prompts] == [40, 40, 40]
    assert prompts[0] != prompts[1]
    assert leading([1, 2, 3], [1, 2, 4]) == 2 and leading([1], [1, 2]) == 1
