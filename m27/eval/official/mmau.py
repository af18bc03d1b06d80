"""MMAU's JSON files (Sakshi113/MMAU, mmau-test-mini.json) with the folder of clips beside → samples.

There is no official prompt; ours asks for a choice's text without a letter, as the official rule looks at words and
would take the letter "A" for one. Choices that already carry a letter are shown as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from m27.eval.official.sample import FormatError, ask, need, read_json, sample, sound
from m27.eval.samples import Sample

PROMPT = "{question}\nChoose one of:\n{choices}\nAnswer with the text of your choice alone."


def samples(path: str | Path, prompt: str = PROMPT) -> Iterator[Sample]:
    """One a question. `about`: `choices`, `task` (sound, music or speech), `difficulty` and `sub-category`. The answer
    is None where the split keeps it back; a clip lies where its `audio_id` says, beside the file."""
    file = Path(path)
    whole = read_json(file)
    if not isinstance(whole, list):
        raise FormatError(f"{file}: is no list of questions")
    for number, row in enumerate(whole):
        where = f"{file}, question {number}"
        name, audio, question, choices = need(row, ("id", "audio_id", "question", "choices"), where)
        clip = file.parent / audio
        if not clip.is_file():
            raise FormatError(f"{where}: no clip {audio} in {file.parent}")
        asked = prompt.format(question=question, choices="\n".join(choices))
        about = {key: row.get(key) for key in ("task", "difficulty", "sub-category")} | {"choices": list(choices)}
        yield sample(str(name), ask(sound(clip), asked), row.get("answer") or None, about)
