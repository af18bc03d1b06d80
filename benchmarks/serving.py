"""A server of ours as a process of its own, for what asks it over HTTP."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from m27.codec.media import write_atomic

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def serving(model: Path, arguments: Sequence[str] = ()) -> Iterator[str]:
    """`m27 serve` on a free port while the block lasts; its URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "m27.cli", "serve", "--model", str(model), "--port", "0",
         "--log-level", "warning", *arguments],
        cwd=ROOT, text=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        found = re.search(r"answers at (http://\S+)", process.stdout.readline())
        if found is None:
            raise SystemExit("the server did not start; what it says is above")
        yield found[1]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def record(out: Path, name: str, result: dict[str, Any]) -> None:
    """Put a result under its name into a file of results; the others there stay."""
    found = json.loads(out.read_text("utf-8")) if out.is_file() else {}
    write_atomic(out, json.dumps({**found, name: result}, indent=1).encode())
