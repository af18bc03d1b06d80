"""docs/serve.md: each example runs against a live server, and the table of limits is what the code has."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from m27.serve.engine_process import RESTARTS, WITHIN
from m27.serve.gate import GateLimits
from m27.serve.settings import Settings
from tests.serve import live
from tests.serve.live import Live

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
CURLS = re.findall(r"^(curl .*)$", TEXT, re.MULTILINE)
SLOW = {"langchain_openai", "litellm"}  # seconds to import


@pytest.fixture(scope="module")
def nano() -> Iterator[Live]:
    """The tiny model under the name that the documents use."""
    with live.running(settings=Settings(name="m27-nano", drain_seconds=1)) as server:
        yield server


def package(snippet: str) -> str:
    return next(name for name in ("openai", *SLOW) if re.search(rf"^(import|from) {name}\b", snippet, re.MULTILINE))


@pytest.mark.parametrize(
    "snippet",
    [pytest.param(s, id=package(s), marks=[pytest.mark.slow] if package(s) in SLOW else []) for s in SNIPPETS],
)
def test_the_python_examples_run(nano: Live, snippet: str, tmp_path: Path) -> None:
    name = package(snippet)
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"needs {name}: pip install -e '.[clients]'")
    code = snippet.replace("http://127.0.0.1:8000", nano.url)
    assert code != snippet
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "no_proxy": "*"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip()


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("line", CURLS)
def test_the_curl_examples_run(nano: Live, line: str, tmp_path: Path) -> None:
    words = shlex.split(line.replace("http://127.0.0.1:8000", nano.url))
    done = subprocess.run([*words, "-sSf"], cwd=tmp_path, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    made = (tmp_path / "speech.wav").read_bytes() if "--output" in words else done.stdout
    assert made[:1] == b"{" or made[:4] == b"RIFF"


def test_all_three_clients_have_an_example() -> None:
    assert {package(s) for s in SNIPPETS} == {"openai", *SLOW}
    assert len(CURLS) >= 3


def test_the_table_of_limits_says_what_the_code_has() -> None:
    rows = dict(re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|", TEXT.split("## Limits")[1], re.MULTILINE))
    settings, gate = Settings(), GateLimits()
    said = {
        "a request's body": f"{settings.body_bytes >> 20} MiB, in {settings.body_seconds:g} s",
        "all bodies held at once": f"{settings.buffered_bytes >> 20} MiB",
        "JSON nested; values in it": f"{settings.json_depth} deep; {settings.json_values:,}",
        "text of all messages": f"{settings.text_bytes >> 10} KiB",
        "messages; pictures and sounds": f"{settings.messages}; {settings.media}",
        "a picture": f"{gate.file_bytes // 1_000_000} MB, {gate.pixels // 1_000_000} million pixels",
        "a sound": f"{gate.file_bytes // 1_000_000} MB, {gate.seconds:g} s",
        "decoders; media that wait for one": f"{gate.workers}; {gate.queue}",
        "tokens of an answer": f"{settings.default_tokens}, at most {settings.answer_tokens:,}",
        "`n`": str(settings.answers),
        "a picture made": f"{settings.image_side}×{settings.image_side}",
        "a sound made": f"{settings.sound_seconds:g} s; 10 s in chat",
        "an answer, waiting included": f"{settings.seconds:g} s",
        "`priority`": str(settings.priority),
        "connections": f"{settings.connections:,}",
        "a step of the engine until it counts as stuck": f"{settings.stuck_seconds:g} s",
        "starts anew of an engine's process that died": f"{RESTARTS} in {WITHIN:g} s",
        "answers under way when stopped": f"{settings.drain_seconds:g} s",
    }
    assert {name: rows.get(name) for name in said} == said
    assert gate.media == settings.media
