"""A public load client against the server: GuideLLM, 200 requests, 16 at once, a third with a picture.

    python -m benchmarks.load_client --guidellm /somewhere/guidellm/bin/guidellm
    python -m benchmarks.load_client --guidellm … --requests 12 --concurrent 4      # a trial

GuideLLM (https://pypi.org/project/guidellm) wants an environment of its own: `pip install guidellm pillow`.
The requests, those of `benchmarks/serve.py`, are written to a file in its own form; it asks for tokens by
`ignore_eos`, so that every answer is as long, and streams. Its figures go into the results as it gives them.
None may fail, and none may be lost: exit status 1 where one does.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # found from any folder

from benchmarks import machine
from benchmarks.serve import RESULTS, asked
from benchmarks.serving import ROOT, record, serving

TIMES = ("request_latency", "time_to_first_token_ms", "inter_token_latency_ms")


def rows(count: int, tokens: int) -> str:
    """The requests as GuideLLM's data, one JSON object a line; no picture is an empty one."""
    out = []
    for request in asked(count, seed=1000):
        url = ""
        if request.picture is not None:
            url = "data:image/png;base64," + base64.b64encode(request.picture).decode("ascii")
        row = {"prompt": request.text, "image": url, "output_tokens_count": tokens}
        out.append(json.dumps(row) + "\n")
    return "".join(out)


def run(program: str, url: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """GuideLLM's report of one benchmark."""
    data = folder / "requests.jsonl"
    data.write_text(rows(options.requests, options.tokens), "utf-8")
    backend = {"kind": "openai_http", "target": url, "http2": False,
               "extras": {"body": {"modalities": ["text"], "seed": 1}}}  # fmt: skip
    profile = {"kind": "concurrent", "streams": [options.concurrent]}
    command = [
        program, "run", "--backend", json.dumps(backend), "--profile", json.dumps(profile),
        "--constraint", f"kind=max_requests,count={options.requests}",
        "--data", f"kind=json_file,path={data}",
        "--tokenizer", f"kind=huggingface_auto,model={options.model.resolve()}",
        "--output", f"kind=json,path={folder / 'report.json'}", "--disable-console-interactive",
    ]  # fmt: skip
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    subprocess.run(command, check=True, cwd=folder, env={**os.environ, **offline})
    report: dict[str, Any] = json.loads((folder / "report.json").read_text("utf-8"))
    return report


def summary(report: dict[str, Any]) -> dict[str, Any]:
    """Of its report: requests by what came of them, and the medians of its times."""
    (found,) = report["benchmarks"]
    metrics = found["metrics"]
    out: dict[str, Any] = {"requests": metrics["request_totals"]}
    for name in TIMES:
        told = metrics[name]["successful"]
        out[name] = {"p50": told["median"], "p95": told["percentiles"]["p95"]}
    return out


def main() -> None:
    """Start a server, have it asked, write what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--guidellm", default="guidellm", help="its program")
    parser.add_argument("--model", type=Path, default=ROOT / "weights" / "m27-nano")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--concurrent", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--out", type=Path, default=RESULTS / "serve.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, serving(options.model) as url:
        found = summary(run(options.guidellm, url, Path(folder), options))
    version = subprocess.run([options.guidellm, "--version"], capture_output=True, text=True)
    print(json.dumps(found, indent=1))
    record(options.out, "GuideLLM", {
        "when": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine.describe(0),
        "version": version.stdout.strip(), "tokens": options.tokens, "concurrent": options.concurrent,
        "with_pictures": sum(r.picture is not None for r in asked(options.requests)), **found,
    })  # fmt: skip
    sys.exit(found["requests"]["successful"] != options.requests)


if __name__ == "__main__":
    main()
