"""ScienceQA's `problems.json` with `pid_splits.json` and the folder `images` beside it → samples.

The prompt is the official `QCM` form without examples (models/base_prompt.py at 2cbf831).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from m27.eval.official.sample import FormatError, ask, lettered, need, picture, read_json, sample
from m27.eval.samples import Sample


def samples(path: str | Path, split: str = "test") -> Iterator[Sample]:
    """One a problem of the split, with its picture if it has one. The answer is a letter; `about`:
    `options` by letter, `subject`, `grade` and `topic`."""
    file = Path(path)
    problems, splits = read_json(file), read_json(file.with_name("pid_splits.json"))
    if split not in splits:
        raise FormatError(f"{file}: no split {split!r} (has {', '.join(splits)})")
    for name in splits[split]:
        where = f"{file}, problem {name}"
        (problem,) = need(problems, (name,), str(file)) if name in problems else ({},)
        question, choices, answer = need(problem, ("question", "choices", "answer"), where)
        options = lettered(choices)
        listed = " ".join(f"({letter}) {text}" for letter, text in options.items())
        context = (problem.get("hint") or "").strip() or "N/A"
        text = f"Question: {question}\nContext: {context}\nOptions: {listed}\nAnswer:"
        parts: list[dict[str, str] | str] = [text.replace("  ", " ").strip()]
        if problem.get("image"):
            place = file.parent / "images" / problem.get("split", split) / name / problem["image"]
            parts.insert(0, picture(place))
        about = {k: problem.get(k) for k in ("subject", "grade", "topic")} | {"options": options}
        yield sample(name, ask(*parts), list(options)[answer], about)
