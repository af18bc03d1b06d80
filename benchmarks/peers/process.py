"""A peer in a process of its own: started, asked, and stopped dead while others are measured.

Between questions the whole process group is stopped by a signal, so that threads that spin while they
wait cannot take cores from the one that is measured. Knows no engine.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any


class PeerFailedError(RuntimeError):
    """A peer that said it cannot, that took too long or that died; the message is one line."""


class Process:
    """Speaks the protocol of `worker.py`. `facts` is what the peer said when it was ready.

    Raises PeerFailedError where it does not come up within `timeout` seconds.
    """

    def __init__(
        self,
        command: Sequence[str],
        settings: Mapping[str, Any],
        environment: Mapping[str, str],
        log: Path,
        timeout: float = 600.0,
        cwd: Path | None = None,
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as file:
            self._process = subprocess.Popen(
                [*command, json.dumps(settings)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, cwd=cwd,
                env={**os.environ, **environment}, start_new_session=True,
            )  # fmt: skip
        self._waiting = b""
        self.log = log
        try:
            ready = self._read(timeout)
        except PeerFailedError:
            self.close()
            raise
        self.facts: dict[str, Any] = ready["facts"]
        self.seconds: float = ready["seconds"]
        self.pause()

    def ask(self, question: Mapping[str, Any], timeout: float = 300.0) -> dict[str, Any]:
        """One answer. Raises PeerFailedError; after a question that took too long the peer is ended."""
        if self._process.poll() is not None:
            raise PeerFailedError(f"ended with status {self._process.returncode} ({self.log})")
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise PeerFailedError(f"ended ({self.log})") from None
        answer = self._read(timeout)
        self.pause()
        return answer

    def _read(self, timeout: float) -> dict[str, Any]:
        stream = self._process.stdout
        assert stream is not None
        while b"\n" not in self._waiting:
            if not select.select([stream], [], [], timeout)[0]:
                self.close()
                raise PeerFailedError(f"gave no answer within {timeout:.0f} s ({self.log})")
            piece = os.read(stream.fileno(), 1 << 20)
            if not piece:
                raise PeerFailedError(f"ended with status {self._process.wait()} ({self.log})")
            self._waiting += piece
        line, _, self._waiting = self._waiting.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerFailedError(answer["error"])
        return answer

    def pause(self) -> None:
        """Stop every thread of it."""
        self._signal(signal.SIGSTOP)

    def close(self) -> None:
        """End it and everything that it started."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None and not stream.closed:
                with suppress(OSError):  # what was not read any more
                    stream.close()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)
