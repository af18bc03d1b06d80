"""What every peer answers, and the loop in its own process that answers it.

    python -m benchmarks.peers.NAME '{"model": …, "threads": 2, …}'

One JSON object a line comes in on standard input, one goes out on standard output; whatever a
library prints meanwhile goes to standard error. Needs the standard library and numpy alone, since
it runs in the environment of the peer. Knows no engine.

T tokens, V vocabulary.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ids = list[int]


@dataclass(frozen=True)
class Timed:
    """What came out, greedily and past any end of text, and when, in seconds since the request."""

    ids: list[Ids]
    first: float  # the first id of the first answer
    seconds: float  # the last id of the last one


class Peer(Protocol):
    """One engine with one set of weights."""

    def facts(self) -> dict[str, Any]:
        """Versions, and what else a report should say; `bytes` are those of the weights read for
        each token."""
        ...

    def generate(self, prompt: Ids, count: int) -> Timed:
        """`count` ids after one prompt."""
        ...

    def batch(self, prompts: Sequence[Ids], count: int) -> Timed:
        """`count` ids after each of the prompts, which arrive together."""
        ...

    def logits(self, ids: Ids) -> Floats:
        """Logits [T, V] after each of the ids. NotImplementedError where it cannot tell."""
        ...


def log_softmax(logits_TV: Floats) -> Floats:
    """Natural-log probabilities, in float32."""
    shifted = logits_TV - logits_TV.max(-1, keepdims=True)
    out: Floats = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True, dtype=np.float64)).astype(
        np.float32
    )
    return out


def score(logits_TV: Floats, ids: Ids, oracle: Floats | None = None) -> dict[str, Any]:
    """Negative log-likelihoods of `ids` after their first; against the log-probabilities `oracle`
    [T, V] also the divergence KL(oracle ‖ these) and whether the likeliest id is the same.

    `oracle` may be shorter than T.
    """
    out: dict[str, list[float]] = {"nll": [], "kl": [], "same": []}
    for start in range(0, len(ids), 64):  # a few at a time: V is large
        part = log_softmax(np.asarray(logits_TV[start : start + 64], np.float32))
        targets = ids[start + 1 : start + 65]
        out["nll"] += (-part[np.arange(len(targets)), targets]).tolist()
        if oracle is not None and start < len(oracle):
            truth = np.asarray(oracle[start : start + 64])
            part = part[: len(truth)]
            out["kl"] += (np.exp(truth) * (truth - part)).sum(-1, dtype=np.float64).tolist()
            out["same"] += (truth.argmax(-1) == part.argmax(-1)).tolist()
    return out


def resident(process: int | str = "self") -> int:
    """Bytes of resident memory of a process and everything below it; 0 where that is not known."""
    total = 0
    try:
        with open(f"/proc/{process}/statm", encoding="ascii") as file:
            total += int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        for thread in Path(f"/proc/{process}/task").iterdir():
            for child in (thread / "children").read_text().split():
                total += resident(child)
    except OSError:
        pass
    return total


def answer(peer: Peer, question: dict[str, Any]) -> dict[str, Any]:
    """The answer to one line."""
    match question["do"]:
        case "generate":
            timed = peer.generate(question["prompts"][0], question["count"])
        case "batch":
            timed = peer.batch(question["prompts"], question["count"])
        case "score":
            path = question.get("oracle")
            oracle = np.load(path, mmap_mode="r") if path else None
            return score(peer.logits(question["ids"]), question["ids"], oracle)
        case "save":  # log-probabilities of the first `count` places, for others to be held to
            np.save(question["path"], log_softmax(peer.logits(question["ids"])[: question["count"]]))
            return {}
        case other:
            raise ValueError(f"{other}: not a question")
    return {**timed.__dict__, "resident": resident()}


def die_with_parent() -> None:
    """Have the kernel end this process when the one that started it ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def serve(make: Callable[[dict[str, Any]], Peer], arguments: Sequence[str] | None = None) -> None:
    """Answer until standard input ends. An error is an answer too: {"error": one line}."""
    die_with_parent()
    settings = json.loads((arguments or sys.argv[1:])[0])
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not come between

    def say(line: dict[str, Any]) -> None:
        replies.write(json.dumps(line) + "\n")
        replies.flush()

    began = time.perf_counter()
    peer: Peer | None = None
    try:
        peer = make(settings)
        say({"facts": peer.facts(), "seconds": time.perf_counter() - began, "resident": resident()})
    except BaseException as error:
        traceback.print_exc()
        say({"error": f"{type(error).__name__}: {error}".strip().split("\n", 1)[0]})
        raise SystemExit(1) from None
    for line in sys.stdin:
        try:
            say(answer(peer, json.loads(line)))
        except Exception as error:
            traceback.print_exc()
            say({"error": f"{type(error).__name__}: {error}".split("\n", 1)[0]})
    replies.close()
    getattr(peer, "close", lambda: None)()
    os._exit(0)  # some engines hang when they are taken apart
