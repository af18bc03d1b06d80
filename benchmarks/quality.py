"""What each format of each engine costs in likelihood: perplexity, divergence, agreement.

The truth is the naive decoder in float32. Passages are the held-out English of `m27 eval`; all of the
vocabulary shares the probability, for every engine alike.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import texts
from benchmarks.peers.contenders import CONTENDERS, Contender
from benchmarks.peers.process import PeerFailedError, Process
from m27.codec.media import write_atomic

PASSAGES, LENGTH = 12, 512
TRUTHS, PLACES = 8, 128  # passages and places in each whose whole distribution is compared
Start = Callable[[Sequence[Contender], Path, int, dict[str, str]], dict[str, Process]]


def measure(
    wanted: Sequence[Contender], checkpoint: Path, threads: int, path: Path, start: Start
) -> None:
    """Score each contender that can be scored and write `path`; formats already there for the same
    checkpoint and passages are kept, those measured now replace them."""
    rows = texts.passages(texts.load(checkpoint), PASSAGES, LENGTH)
    known: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    base = {"checkpoint": checkpoint.name, "passages": texts.digest(rows), "tokens": _count(rows)}
    if any(known.get(key) != value for key, value in base.items()):
        known = {**base, "formats": {}, "failed": {}}
    oracle = next(c for c in CONTENDERS if c.family == "naive")
    with tempfile.TemporaryDirectory() as folder:
        truths = [Path(folder) / f"{i}.npy" for i in range(TRUTHS)]
        for contender in (oracle, *(c for c in wanted if c is not oracle and "score" in c.does)):
            failed: dict[str, str] = {}
            peer = start([contender], checkpoint, threads, failed).get(contender.name)
            if peer is None:
                known["failed"][contender.name] = failed[contender.name]
                continue
            try:
                if contender is oracle:
                    for ids, truth in zip(rows, truths, strict=False):
                        peer.ask({"do": "save", "ids": ids, "count": PLACES, "path": str(truth)})
                known["formats"][contender.name] = score(peer, rows, truths)
                known["failed"].pop(contender.name, None)
            except PeerFailedError as error:
                known["failed"][contender.name] = str(error)
            finally:
                peer.close()
            print(contender.name, known["formats"].get(contender.name), file=sys.stderr, flush=True)
            write_atomic(path, (json.dumps(known, indent=1) + "\n").encode())


def score(peer: Any, rows: Sequence[list[int]], truths: Sequence[Path]) -> dict[str, float]:
    """`perplexity` over all rows; `kl` (mean, nats) and `same` (share of places at which the
    likeliest id is the truth's) over those that have one. Raises PeerFailedError."""
    nll: list[float] = []
    kl: list[float] = []
    same: list[float] = []
    for i, ids in enumerate(rows):
        question = {"do": "score", "ids": ids}
        if i < len(truths):
            question["oracle"] = str(truths[i])
        answer = peer.ask(question, 600.0)
        nll, kl, same = nll + answer["nll"], kl + answer["kl"], same + answer["same"]
    return {
        "perplexity": math.exp(statistics.fmean(nll)), "kl": statistics.fmean(kl),
        "same": statistics.fmean(same),
    }  # fmt: skip


def _count(rows: Sequence[list[int]]) -> int:
    return sum(len(row) - 1 for row in rows)
