"""`m27 eval PICTURES --form geneval`: pictures that any model drew, or ours draws first, looked at by a detector."""

from __future__ import annotations

from pathlib import Path

from m27.cli.console import InputError
from m27.cli.own_set import Wishes, named, slug


def evaluate(what: Path, detector: str | None, colours: str | None, wishes: Wishes, out: Path | None) -> None:
    """Run it, and print the row and where the results are. A file of prompts is drawn by the model of `wishes`."""
    from m27.eval.detectors import ClipColours, Detector, PixelColours
    from m27.eval.drawn import score

    if detector is None:
        raise InputError("--form geneval needs --detector, a model of transformers that finds COCO's objects")
    for name, value in (("--samples", wishes.samples), ("--seeds", wishes.seeds)):
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")
    out = out or Path("out/eval") / f"{slug(what.stem)}-geneval"
    finder, reader = Detector(detector), ClipColours(colours) if colours else PixelColours()
    folder = what
    if what.is_file():
        out = out.with_name(f"{out.name}-{slug(wishes.model)}")
        folder = out / "drawings"
        _draw(what, wishes, folder)
    score(folder, finder, reader, out, most=wishes.samples, fresh=wishes.fresh)
    print(f"every picture: {out / 'results.jsonl'}")


def _draw(prompts: Path, wishes: Wishes, folder: Path) -> None:
    from m27.eval.drawing import draw
    from m27.infer.engine import Engine

    engine = Engine.load(named(wishes.model), precision=wishes.precision, threads=wishes.threads)
    draw(prompts, engine, folder, wishes.seeds, wishes.seed, wishes.samples)
