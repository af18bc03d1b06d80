"""`m27 eval GENERATED --against REFERENCE`: how far generated pictures or sounds are from real ones."""

from __future__ import annotations

from pathlib import Path

from m27.cli.console import InputError, default_model
from m27.cli.own_set import slug


def evaluate(
    generated: Path,
    reference: Path,
    metric: str | None,
    encoder: str | None,
    size: int | None,
    most: int | None,
    out: Path | None,
) -> None:
    """Run it, and print the row and where it stands."""
    from m27.eval.encoders import Encoder, open_encoder
    from m27.eval.fidelity import METRICS, fidelity

    if metric not in METRICS:
        raise InputError(f"--against goes with --metric {' or '.join(METRICS)}, not {metric or 'none'}")
    for path in (generated, reference):
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
    for name, value in (("--resize", size), ("--samples", most)):
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")
    folder = out or Path("out/eval") / f"{slug(generated.name)}-{metric}-{slug(reference.stem)}"

    def opened() -> Encoder:
        return open_encoder(metric, encoder, default_model(), size)

    fidelity(metric, generated, reference, opened, folder, most=most)
    print(f"the row and the features: {folder}")
