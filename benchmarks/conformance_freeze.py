"""Writes what the official scorers say of made-up answers, for tests that run without them.

    python -m benchmarks.conformance_freeze tests/eval/scorers/frozen.json NAME=CHECKOUT …

for the scorers of `benchmarks.conformance`. Only made-up answers are kept, none of a repository. What the file has of
other scorers stays as it is; `captions` is a name, too, and `frechet` goes into `frozen_frechet.json` beside the file.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

from benchmarks import conformance_cases, conformance_distance
from benchmarks.conformance import COMPARE

EACH = 60  # cases kept of a set
PICTURES = 25  # of the corpus of captions


def captions() -> dict[str, Any]:
    """A small corpus, and what pycocoevalcap says of it."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    rng = random.Random(99)
    said = [conformance_cases.caption(rng) for _ in range(PICTURES)]
    known = [
        [conformance_cases.caption(rng), one + " here", conformance_cases.caption(rng)]
        for one in said
    ]
    gold, candidates = dict(enumerate(known)), {k: [one] for k, one in enumerate(said)}
    whole, each = Bleu(4).compute_score(gold, candidates, verbose=0)
    return {
        "said": said,
        "known": known,
        "bleu": [float(x) for x in whole],
        "bleu_each": [[float(x) for x in order] for order in each],
        "rouge_l": [float(x) for x in Rouge().compute_score(gold, candidates)[1]],
        "cider": [float(x) for x in Cider().compute_score(gold, candidates)[1]],
    }


def main() -> int:
    """Write the file named first."""
    target, *told = sys.argv[1:]
    file = Path(target)
    frozen: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for one in told:
        name, _, path = one.partition("=")
        if name == "captions":
            frozen["captions"] = captions()
            continue
        if name == "frechet":
            text = json.dumps(conformance_distance.frozen())
            file.with_name("frozen_frechet.json").write_text(text + "\n", encoding="utf-8")
            continue
        fresh: set[str] = set()
        for group, sample, theirs, _ in COMPARE[name](Path(path), 2 * EACH):
            if group not in fresh:
                fresh.add(group)
                frozen[group] = []
            kept = frozen[group]
            if "made-up" in group and len(kept) < EACH:
                kept.append([sample, theirs])
    frozen = {group: kept for group, kept in frozen.items() if kept}
    text = ",\n".join(
        f" {json.dumps(key)}: "
        + (
            "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]"
            if isinstance(value, list)
            else json.dumps(value)
        )
        for key, value in frozen.items()
    )
    file.write_text("{\n" + text + "\n}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
