"""The server's OpenAPI document taken at its word: schemathesis asks what it allows, and what it does not.

    python -m benchmarks.fuzz_server --cases 2000
    python -m benchmarks.fuzz_server --cases 60      # a trial

No answer may be a 5xx, none of a status or a type that is not documented, none of another form than
documented. Answers are kept short, for it is the door that is tried. Needs schemathesis
(pip install -e '.[clients]'); exit status 1 where it finds something.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # found from any folder

from benchmarks.serving import ROOT, serving

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
SHORT = ("--max-tokens", "4", "--sound-seconds", "0.2", "--cache-mb", "64")


def fuzz(url: str, cases: int, seed: int, program: str = sys.executable) -> int:
    """Ask a server `cases` times, its operations in equal measure; schemathesis' exit status."""
    with urllib.request.urlopen(f"{url}/openapi.json", timeout=30) as response:
        operations = sum(len(methods) for methods in json.load(response)["paths"].values())
    command = [
        program, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--checks", CHECKS,
        "--max-examples", str(max(1, -(-cases // operations))), "--seed", str(seed), "--phases",
        "examples,coverage,fuzzing", "--continue-on-failure", "--no-shrink", "--suppress-health-check", "all",
        "--warnings", "off", "--generation-database", "none", "--request-timeout", "120",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:  # it keeps a cache where it runs
        return subprocess.run(command, check=False, cwd=folder).returncode


def main() -> None:
    """Start a server, ask it, check that it still answers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", type=Path, default=ROOT / "weights" / "m27-nano")
    options = parser.parse_args()
    if importlib.util.find_spec("schemathesis") is None:
        raise SystemExit("needs schemathesis: pip install -e '.[clients]'")
    with serving(options.model, SHORT) as url:
        status = fuzz(url, options.cases, options.seed)
        with urllib.request.urlopen(f"{url}/health", timeout=30) as response:
            assert response.status == 200
    sys.exit(1 if status else 0)


if __name__ == "__main__":
    main()
