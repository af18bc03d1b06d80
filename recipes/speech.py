"""Makes Kokoro's speech in the background: `python -m recipes.speech --minutes 30 --jobs 2`.

Every utterance is a file of its own, so it can be stopped and started at any time, and whatever is there is
used (`m27.data.sources.kokoro`). About one clip in two seconds on one core; jobs share nothing but the folder.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from m27.data.sources import kokoro


def ready() -> dict[str, int]:
    """How many utterances of the plan have been made, by side."""
    counts = {"train": 0, "test": 0}
    for text, voice, side in kokoro.plan():
        counts[side] += kokoro.kept(text, voice).is_file()
    return counts


def main(arguments: Sequence[str] | None = None) -> None:
    """Render for so many minutes in so many processes, then say what is there."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args(arguments)
    if given.minutes <= 0 or given.jobs < 1:
        parser.error("--minutes must be above 0 and --jobs at least 1")
    seconds = given.minutes * 60
    if given.jobs == 1:
        made = kokoro.render(seconds=seconds)
    else:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(given.jobs, mp_context=spawn) as pool:
            waiting = [
                pool.submit(kokoro.render, part, given.jobs, seconds) for part in range(given.jobs)
            ]
            made = sum(job.result() for job in waiting)
    counts = ready()
    print(f"{made} utterances made; {counts['train']} for training, {counts['test']} for tests")


if __name__ == "__main__":
    main()
