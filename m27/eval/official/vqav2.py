"""VQAv2's questions file (visualqa.org) with its annotations file and pictures beside it → samples.

There is no official prompt; the question is followed by the line that LLaVA-1.5 made usual.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from m27.eval.official.sample import FormatError, ask, need, picture, read_json, sample
from m27.eval.samples import Sample

SHORT = "Answer the question using a single word or phrase."


def samples(path: str | Path, images: str | Path | None = None) -> Iterator[Sample]:
    """One a question; `path` is `v2_OpenEnded_mscoco_val2014_questions.json` or the like, `images`
    the folder of pictures (beside it, named as the split). The answer is the list of ten people's
    answers, None where no annotations file lies there."""
    file = Path(path)
    whole = read_json(file)
    questions, subset = need(whole, ("questions", "data_subtype"), str(file))
    folder = Path(images) if images else file.parent / subset
    name = file.name.replace("OpenEnded_", "").replace("questions", "annotations")
    known = {}
    if name != file.name and file.with_name(name).is_file():
        (annotations,) = need(read_json(file.with_name(name)), ("annotations",), name)
        known = {row["question_id"]: row for row in annotations}
    for number, row in enumerate(questions):
        where = f"{file}, question {number}"
        key, image, question = need(row, ("question_id", "image_id", "question"), where)
        if known and key not in known:
            raise FormatError(f"{where}: no annotation of question_id {key} in {name}")
        gold = known.get(key)
        people = [one["answer"] for one in gold["answers"]] if gold else None
        about = {k: gold[k] for k in ("question_type", "answer_type") if k in gold} if gold else {}
        shown = picture(folder / f"COCO_{subset}_{image:012d}.jpg")
        yield sample(str(key), ask(shown, f"{question}\n{SHORT}"), people, about)
