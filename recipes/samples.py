"""Samples of the model card: what the model draws, says, plays and answers on held-out inputs, chosen by seed.

    python -m recipes.samples --out out/samples

Writes contact sheets and sounds below `out`, and `samples.json` that names them with what was asked; then puts
the media beside the card, in the model's folder. The first answer is kept, whatever it is.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from m27.codec.media import write_atomic, write_png, write_wav
from m27.data import messages as say
from m27.data.prompts import ask
from m27.data.sources import emoji, environment, instruments, openclipart, sentences
from m27.data.sources.base import Item, with_article
from m27.eval.tasks.sample import picked, rank
from m27.eval.whisper import transcribe
from m27.infer.engine import Engine
from m27.infer.request import Request

Pixels = NDArray[np.uint8]
Record = dict[str, Any]
RATE_OF_CODES = 40  # a second
GAP = 6  # pixels between the pictures of a sheet


@dataclass(frozen=True)
class SamplesRecipe:
    """How many of each, in which order, where to. `columns` of a sheet; `hear`: Whisper writes down speech."""

    model: Path = Path("weights/m27-nano")
    out: Path = Path("out/samples")
    seed: int = 27
    drawings: int = 16
    pictures: int = 8
    sentences: int = 3
    sounds: int = 3
    columns: int = 8
    hear: bool = True


@dataclass(frozen=True)
class Inputs:
    """What is asked about: names to draw, pictures to pass and to describe, sentences and sounds to make.

    Only material whose licence lets it be shipped beside the card: emoji and public-domain clip art.
    """

    names: tuple[str, ...]
    pictures: tuple[Item, ...]
    sentences: tuple[str, ...]
    sounds: tuple[str, ...]


def choose(recipe: SamplesRecipe) -> Inputs:
    """The held-out inputs that come first in the order of the seed."""
    seed, half = recipe.seed, recipe.pictures // 2
    different: dict[str, None] = {}
    for item in picked(emoji.items(), 20 * recipe.drawings, seed):
        if item.meta["group"] in ("animals-nature", "food-drink", "objects", "travel-places"):
            different[item.text] = None
    drawn = picked(emoji.items(), recipe.pictures - half, seed + 1)
    spoken = [s for s, side in sentences.sides(sentences.everyday()).items() if side == "test"]
    rng = random.Random(seed)
    half_sounds = recipe.sounds // 2
    made = [phrase[0] for phrase in environment.PHRASES.values()]
    played = [instruments.with_name(name) for name in instruments.INSTRUMENTS]
    return Inputs(
        tuple(different)[: recipe.drawings],
        (*drawn, *picked(openclipart.items(), half, seed)),
        tuple(sorted(spoken, key=lambda s: rank(seed, s))[: recipe.sentences]),
        (*rng.sample(made, half_sounds), *rng.sample(played, recipe.sounds - half_sounds)),
    )


def sheet(pictures: Sequence[Pixels], columns: int) -> Pixels:
    """Pictures of one size in rows of `columns` on white, uint8 [H, W, 3]."""
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    shape = (rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3)
    canvas = np.full(shape, 255, np.uint8)
    for place, rgb in enumerate(pictures):
        top, left = place // columns * (height + GAP), place % columns * (width + GAP)
        canvas[top : top + height, left : left + width] = rgb
    return canvas


def make(
    engine: Engine, recipe: SamplesRecipe, given: Inputs, hear: Callable[[Any], str] | None = None
) -> Record:
    """Everything, written below `recipe.out`; the record that the card reads."""
    out = recipe.out
    drawn = [first(engine, recipe, [ask("draw", text=with_article(name))], "image")["image"]
             for name in given.names]  # fmt: skip
    write_png(out / "drawn.png", sheet(drawn, recipe.columns))
    shown = [say.picture(item)["image"] for item in given.pictures]
    passed = [through(engine, rgb) for rgb in shown]
    write_png(out / "codec.png", sheet([*shown, *passed], len(shown)))
    sheets = [
        {"file": "drawn.png", "title": "drawings of held-out concepts",
         "about": "Asked for, row by row: " + ", ".join(given.names) + "."},
        {"file": "codec.png", "title": "held-out pictures before and after the picture codec",
         "about": "Above held-out emoji and clip art, below the same through the codec's 64 codes."},
    ]  # fmt: skip
    answers = [
        {"given": f"{place}. picture above", "asked": ask("caption_picture"), "right": item.text,
         "answered": said(engine, recipe, rgb, ask("caption_picture"))}
        for place, (item, rgb) in enumerate(zip(given.pictures, shown, strict=True), 1)
    ]  # fmt: skip
    sounds = []
    asked = [("speak", text) for text in given.sentences]
    asked += [("sound_for_text", text) for text in given.sounds]
    for number, (task, text) in enumerate(asked, 1):
        words = ask(task, text=text)
        wave = first(engine, recipe, [words], "audio")["audio"]
        name = f"sound-{number}.wav"
        write_wav(out / name, wave)
        heard = hear(wave) if hear is not None and task == "speak" and len(wave) else "–"
        sounds.append({"file": name, "asked": words, "heard": heard or "(nothing)"})
    record = {"seed": recipe.seed, "sheets": sheets, "sounds": sounds, "answers": answers}
    text = json.dumps(record, indent=1, ensure_ascii=False)
    write_atomic(out / "samples.json", f"{text}\n".encode())
    return record


def first(engine: Engine, recipe: SamplesRecipe, asked: Iterable[str], kind: str) -> Record:
    """The first medium of a kind that the model makes when asked so."""
    content = [say.words(text) for text in asked]
    request = Request(
        [{"role": "user", "content": content}], plan=(kind,), seed=recipe.seed,
        min_audio_codes=RATE_OF_CODES // 2, max_audio_codes=3 * RATE_OF_CODES,
    )  # fmt: skip
    return next(part for part in engine.chat(request).content if part["type"] == kind)


def said(engine: Engine, recipe: SamplesRecipe, rgb: Pixels, words: str) -> str:
    """The greedy answer to a question about a picture."""
    content = [say.image(rgb), say.words(words)]
    request = Request(
        [{"role": "user", "content": content}], modalities=("text",), max_tokens=32,
        temperature=0.0, seed=recipe.seed,
    )  # fmt: skip
    return engine.chat(request).text.strip() or "(nothing)"


@torch.inference_mode()
def through(engine: Engine, rgb: Pixels) -> Pixels:
    """A picture through the engine's codec and back."""
    codec = engine.processor.image_codec
    if codec is None:
        raise ValueError("the model has no picture codec")
    pixels = torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None].float() / 255
    back = codec.decode(codec.encode(pixels))[0].permute(1, 2, 0)
    return (back * 255).round().clamp(0, 255).byte().numpy()


def put_beside(recipe: SamplesRecipe, made: Record) -> None:
    """Copy the media of a record into the model's folder, where the card shows them."""
    folder = recipe.model / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    for name in [x["file"] for x in (*made["sheets"], *made["sounds"])]:
        shutil.copyfile(recipe.out / name, folder / f".{name}.partial")
        (folder / f".{name}.partial").replace(folder / name)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status comes back."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    defaults = SamplesRecipe()
    parser.add_argument("--model", type=Path, default=defaults.model)
    parser.add_argument("--out", type=Path, default=defaults.out)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--drawings", type=int, default=defaults.drawings)
    parser.add_argument("--no-hearing", action="store_true", help="without Whisper's reading")
    given = parser.parse_args(arguments)
    recipe = SamplesRecipe(
        given.model, given.out, given.seed, given.drawings, hear=not given.no_hearing
    )
    made = make(
        Engine.load(recipe.model), recipe, choose(recipe), transcribe if recipe.hear else None
    )
    put_beside(recipe, made)
    print(f"wrote {recipe.out} and {recipe.model / 'samples'}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
