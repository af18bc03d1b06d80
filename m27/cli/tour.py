"""`m27 tour`: fifteen exchanges that show what the model does, in the terminal and as a page.

What is asked is spelled as in training (`m27.data.prompts`); the sample inputs ship with the
project and were not trained on. Where there is a right answer it stands beside the model's. Sounds
and texts are bounded so that the whole takes under three minutes on two cores, where a second of
sound takes 80 steps and a picture 130.
"""

import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from m27.cli.chat import load, read_part
from m27.cli.console import CHECKOUT, ModelOption, Outputs, PrecisionOption, check_model
from m27.cli.page import Card, write_page
from m27.cli.show import show

SAMPLES = CHECKOUT / "examples" / "samples"


@dataclass(frozen=True)
class Stop:
    """One exchange: its title, the task whose first phrasing asks it with the fields `text` and
    `more`, and the sample given with it (media stand before the words of a question, as in
    training). `right` is the right answer where there is one; `options` go to the request."""

    title: str
    task: str
    text: str = ""
    sample: str = ""
    right: str = ""
    more: str = ""
    options: dict[str, Any] = field(default_factory=dict)


def seconds_of_sound(least: float, most: float) -> dict[str, Any]:
    """Request options for one sound that lasts between `least` and `most` seconds."""
    return {
        "plan": ("audio",),
        "min_audio_codes": round(40 * least),
        "max_audio_codes": round(40 * most),
    }


SENTENCE = "the farmer buys two cows"  # held out (`m27.data.sources.sentences`)
WORDS = {"modalities": ("text",), "max_tokens": 48, "temperature": 0.0}
SHORT = {**WORDS, "max_tokens": 24}
GRID = 8  # a box counts the lines between the 8 x 8 codes of a picture (`m27.data.makers.canvas`)
STOPS = (
    Stop("A question", "text", "What is the capital of France?", right="Paris", options=WORDS),
    Stop("A photograph", "name_picture", sample="photo.png", right="cat", options=SHORT),
    Stop("A drawing", "caption_picture", "", "caption.png", "christmas tree", options=SHORT),
    Stop("A shape", "vqa", "what color is the shape?", "vqa.png", "red", options=SHORT),
    Stop("Counting", "scene_count", "tumbler glasses", "count.png", "four", options=SHORT),
    Stop("Side by side", "scene_relation", "turtle", "side.png", "right", "hatching chick", SHORT),
    Stop("Where a thing is", "scene_box", "bell", "box.png", "3 2 6 5", options=SHORT),
    Stop("A picture from words", "draw", "a red apple", options={"plan": ("image",)}),
    Stop(
        "A story with pictures",
        "story",
        "The little elephant",
        # Pictures of one story become alike with the guidance of single drawings (docs/LOG.md, 2026-11-27).
        options={"plan": ("text", "image") * 3, "max_text": 48, "guidance": 1.5},
    ),
    Stop("What a sound is", "name_sound", sample="sound.wav", right="helicopter", options=SHORT),
    Stop("An instrument", "name_instrument", sample="note.wav", right="trumpet", options=SHORT),
    Stop("Speech to text", "transcribe", "", "speech.wav", "the bird is yellow", options=SHORT),
    Stop("Text to speech", "speak", SENTENCE, options=seconds_of_sound(0.6, 2.5)),
    Stop(
        "A sound for a word", "sound_for_text", "a dog barking", options=seconds_of_sound(0.5, 2.0)
    ),
    Stop(
        "A sound for a picture",
        "sound_for_picture",
        sample="sound_for.png",
        options=seconds_of_sound(0.5, 2.0),
    ),
)


def tour(
    model: ModelOption,
    out: Annotated[Path, typer.Option(help="Folder of the page.")] = Path("out/tour"),
    samples: Annotated[Path, typer.Option(help="Folder of the sample inputs.")] = SAMPLES,
    seed: Annotated[int, typer.Option(help="Another seed, other pictures and sounds.")] = 27,
    precision: PrecisionOption = "auto",
) -> None:
    """Show what the model does: fifteen exchanges, printed as they happen and kept as a page."""
    given = [read_sample(stop, samples) for stop in STOPS]
    check_model(model)
    started = time.perf_counter()
    engine = load(model, precision)
    from m27.infer.request import Request

    page = out / "index.html"
    cards: list[Card] = []
    for number, (stop, parts) in enumerate(zip(STOPS, given, strict=True), 1):
        # Media are kept in one folder beside the page, which can so be moved with it.
        media = out / "media"
        asked = [Outputs(media, f"{number:02}-given-").save(part) for part in parts]
        announce(number, stop.title, parts)
        request = Request([{"role": "user", "content": parts}], seed=seed, **stop.options)
        shown = show(engine.stream(request), Outputs(media, f"{number:02}-"), piped="blocks")
        answered = list(shown.saved)
        if stop.task == "scene_box":
            answered += draw_box(stop, parts, shown.saved, Outputs(media, f"{number:02}-box-"))
        right = f"  (right answer: {stop.right})" if stop.right else ""
        print(f"  {shown.seconds:.1f} s{right}\n", flush=True)
        tokens = shown.usage.completion_tokens if shown.usage else 0
        cards.append(Card(stop.title, asked, answered, shown.seconds, tokens, stop.right))
        write_page(page, cards, len(STOPS), time.perf_counter() - started, model.name)
    print(f"{len(STOPS)} exchanges in {time.perf_counter() - started:.0f} s; look at {page}")


def read_sample(stop: Stop, samples: Path) -> list[dict[str, Any]]:
    """The user's parts of one stop; raises MediaError for a sample that cannot be read."""
    from m27.data.prompts import ask

    words = {"type": "text", "text": ask(stop.task, text=stop.text, more=stop.more)}
    if not stop.sample:
        return [words]
    kind = "audio" if stop.sample.endswith(".wav") else "image"
    return [read_part(kind, samples / stop.sample), words]


def box_of(answer: str) -> tuple[int, int, int, int] | None:
    """The box that an answer gives (left, top, right, bottom in units of the grid), or None."""
    found = [int(word) for word in re.findall(r"\b\d+\b", answer)[:4]]
    if len(found) < 4 or max(found) > GRID or found[0] >= found[2] or found[1] >= found[3]:
        return None
    return found[0], found[1], found[2], found[3]


def draw_box(
    stop: Stop, given: list[dict[str, Any]], answered: list[dict[str, Any]], outputs: Outputs
) -> list[dict[str, Any]]:
    """The given picture with the answer's box in it, saved and shown; [] where there is no box.

    The right box is dashed, so that the two can be told apart.
    """
    from m27.cli import terminal
    from m27.codec import media

    box = box_of(" ".join(part["text"] for part in answered if part["type"] == "text"))
    if box is None:
        return []
    large = media.fit_image(given[0]["image"], 48 * GRID, 48 * GRID)
    right = box_of(stop.right)
    if right is not None:
        outline(large, right, (255, 255, 255), 2, dashed=True)
    outline(large, box, (255, 0, 110), 5)
    how = terminal.protocol(sys.stdout, piped="blocks")
    sys.stdout.write(terminal.render(large, how, 24))
    saved = outputs.save({"type": "image", "image": large})
    return [saved | {"alt": "the picture with the box that was given, and dashed the right one"}]


def outline(
    rgb: Any,
    box: tuple[int, int, int, int],
    color: tuple[int, int, int],
    wide: int,
    dashed: bool = False,
) -> None:
    """Draw a box of the grid into uint8 [S, S, 3], its lines `wide` pixels, in place."""
    unit = len(rgb) // GRID
    x0, y0, x1, y1 = (value * unit for value in box)
    step = 16 if dashed else max(len(rgb), 1)
    for at in range(0, len(rgb), step):
        end = at + (step // 2 if dashed else step)
        for line in (y0, y1 - wide):
            rgb[line : line + wide, max(x0, at) : min(x1, end)] = color
        for line in (x0, x1 - wide):
            rgb[max(y0, at) : min(y1, end), line : line + wide] = color


def announce(number: int, title: str, parts: list[dict[str, Any]]) -> None:
    """Print the heading of an exchange, and what is said and shown in it."""
    from m27.cli import terminal

    how = terminal.protocol(sys.stdout, piped="blocks")  # a log of a tour has pictures too
    bold, dim, plain = ("\x1b[1m", "\x1b[2m", "\x1b[0m") if how != "off" else ("", "", "")
    print(f"{bold}{number:2}/{len(STOPS)}  {title}{plain}")
    for part in parts:
        if part["type"] == "text":
            print(f"{dim}you>{plain} {part['text']}")
        elif part["type"] == "image":
            sys.stdout.write(terminal.render(part["image"], how, 24))
            print(f"{dim}you>{plain} [a picture]")
        else:
            print(f"{dim}you>{plain} [a sound of {len(part['audio']) / 16_000:.1f} s]")
    print(f"{dim}m27>{plain} ", end="", flush=True)
