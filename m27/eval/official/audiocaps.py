"""AudioCaps's CSV files (cdjkim/audiocaps: a row a caption) with the clips in a folder → samples.

There is no official prompt; `PROMPT` is ours. Clips are named by what the CSV says of them; those
that can no longer be had are left out only if `partly` is set, as that makes another benchmark.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from m27.eval.official.sample import FormatError, ask, need, sample, sound
from m27.eval.samples import Sample

PROMPT = "Describe the sound in one sentence."
ENDINGS = (".wav", ".flac", ".mp3", ".ogg")


def samples(
    path: str | Path, audio: str | Path | None = None, partly: bool = False, prompt: str = PROMPT
) -> Iterator[Sample]:
    """One a clip; the answer is the list of its captions, in order of the file. `audio`: the folder
    of clips (`audio` beside the file), named `YOUTUBEID.wav` or `YOUTUBEID_START.wav`."""
    file = Path(path)
    folder = Path(audio) if audio else file.parent / "audio"
    clips: dict[tuple[str, str], list[str]] = {}
    with file.open(encoding="utf-8", newline="") as lines:
        for number, row in enumerate(csv.DictReader(lines), 2):
            key, start, caption = need(
                row, ("youtube_id", "start_time", "caption"), f"{file}:{number}"
            )
            clips.setdefault((key, start), []).append(caption)
    for (key, start), captions in clips.items():
        names = [f"{stem}{end}" for stem in (f"{key}_{start}", key) for end in ENDINGS]
        found = next((folder / name for name in names if (folder / name).is_file()), None)
        if found is not None:
            yield sample(f"{key}_{start}", ask(sound(found), prompt), captions)
        elif not partly:
            raise FormatError(f"{file}: no clip {names[0]} or {key}.wav in {folder}")
