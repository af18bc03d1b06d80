"""`m27 eval FILE --form opening`, isg-bench or interleaved: answers of words and pictures in turn."""

from __future__ import annotations

from pathlib import Path

from m27.cli.console import InputError, default_model
from m27.cli.own_set import Wishes, named, slug

NAMES = ("opening", "isg-bench", "interleaved")
JUDGE_TOKENS = 32  # of a verdict


def evaluate(data: Path, wishes: Wishes, out: Path | None, rival: str | None, encoder: str | None, media: str) -> None:
    """Make the answers, measure them, have them judged, and print the rows and where everything is."""
    if wishes.metric not in (None, "judge") or (wishes.metric == "judge") > bool(wishes.judge):
        raise InputError(f"--form {wishes.form} has figures of its own: leave --metric out, and give --judge for more")
    if wishes.seeds > 1:
        raise InputError(f"--form {wishes.form}: one seed a run")
    kinds = tuple(media.split(","))
    if not {"text"} <= set(kinds) <= {"text", "image", "audio"}:
        raise InputError(f"--media is text,image or text,image,audio, not {media!r}")
    if not data.exists():
        raise InputError(f"{data}: no such file or folder")
    from itertools import islice

    from m27.eval.answerers import Settings, open_model
    from m27.eval.interleaved.encoders import open_encoder
    from m27.eval.interleaved.makers import open_maker
    from m27.eval.interleaved.run import FORMS, Plan, measure
    from m27.eval.report import files_hash

    samples = list(islice(FORMS[wishes.form].samples(data), wishes.samples))
    revision = files_hash([data] if data.is_file() else [p for p in data.rglob("*") if p.is_file()])
    plan = Plan(
        data.name, wishes.form, samples, revision, wishes.seed, wishes.max_tokens, wishes.temperature, kinds
    )
    settings = Settings(
        wishes.max_tokens, wishes.temperature, wishes.at_once, wishes.precision, wishes.threads, key=wishes.key
    )
    strict = Settings(JUDGE_TOKENS, 0.0, wishes.at_once, wishes.precision, wishes.threads, key=wishes.key)
    folder = out or Path("out/eval") / f"{slug(data.stem)}-{wishes.form}-{slug(wishes.model)}"
    looks = open_encoder(encoder, default_model()) if encoder else None
    judge = open_model(named(wishes.judge), strict) if wishes.judge else None
    other = open_maker(named(rival), settings, kinds) if rival else None
    maker = open_maker(named(wishes.model), settings, kinds)
    try:
        measure(plan, maker, folder, encoder=looks, judge=judge, rival=other, fresh=wishes.fresh)
    finally:
        for one in (maker, other, judge):
            if one is not None:
                one.close()
    print(f"every answer: {folder / 'answers.jsonl'}, pictures and sounds beside it")
