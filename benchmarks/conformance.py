"""Do our scorers say what the official ones say, of every sample?

    python -m benchmarks.conformance mmmu=/path/to/MMMU mathvista=/path/to/MathVista --cases 10000

takes a checkout of the official repository per benchmark (or its name alone, for a scorer that is
an installed package), runs both scorers on the outputs stored there and on made-up answers, and
prints for each set how many samples agree, and the first that do not. Exit status 1 if any does
not. The official code is read from the checkout and run in this process: only give checkouts that
you trust. It wants what that code imports, in an environment of its own; ours needs numpy alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import conformance_choice, conformance_distance, conformance_text
from benchmarks.conformance_choice import GUESSED, Compared

COMPARE = conformance_choice.COMPARE | conformance_text.COMPARE | conformance_distance.COMPARE


def report(compared: Compared, shown: int) -> int:
    """Print a line a set, and the first disagreements; how many disagree."""
    counts: dict[str, list[int]] = {}
    wrong: list[str] = []
    for name, sample, theirs, ours in compared:
        count = counts.setdefault(name, [0, 0, 0])
        count[0] += 1
        count[1] += theirs == ours
        count[2] += GUESSED in (theirs if isinstance(theirs, tuple) else (theirs,))
        if theirs != ours:
            wrong.append(f"{name}: {sample!r}: official {theirs!r}, ours {ours!r}")
    for name, (total, same, guessed) in counts.items():
        print(f"{name}: {same} of {total} agree" + (f", {guessed} guessed" if guessed else ""))
    for line in wrong[:shown]:
        print("  ", line[:600])
    return len(wrong)


def main() -> int:
    """Run what was asked for; 1 if anything disagrees."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("scorer", nargs="+", help=f"NAME=CHECKOUT or NAME; of {', '.join(COMPARE)}")
    parser.add_argument("--cases", type=int, default=10_000, help="made-up answers per scorer")
    parser.add_argument("--show", type=int, default=10, help="disagreements printed per scorer")
    told = parser.parse_args()
    wrong = 0
    for one in told.scorer:
        name, _, path = one.partition("=")
        if name not in COMPARE:
            parser.error(f"no scorer {name!r}; there are {', '.join(COMPARE)}")
        if path and not Path(path).is_dir():
            parser.error(f"{name}: no folder {path}")
        wrong += report(COMPARE[name](Path(path), told.cases), told.show)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
