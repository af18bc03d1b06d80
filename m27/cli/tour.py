"""`m27 tour`: eleven exchanges that show what the model does, in the terminal and as a page.

What is asked is spelled as in training (`m27.data.prompts`); the sample inputs ship with the
project and were not trained on. Sounds and texts are bounded so that the whole takes under three
minutes on two cores, where a second of sound takes 80 steps and a picture 130.
"""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from m27.cli.chat import load, read_part
from m27.cli.console import CHECKOUT, ModelOption, Outputs, check_model
from m27.cli.page import Card, write_page
from m27.cli.show import show

SAMPLES = CHECKOUT / "examples" / "samples"


@dataclass(frozen=True)
class Stop:
    """One exchange: its title, the task whose first phrasing asks it, and the sample given with it
    (media stand before the words of a question, as in training). `options` go to the request."""

    title: str
    task: str
    text: str = ""
    sample: str = ""
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
STOPS = (
    Stop("A question", "text", "What is the capital of France?", options=WORDS),
    Stop("A caption", "caption_picture", sample="caption.png", options=WORDS),
    Stop("A question about a picture", "name_picture", sample="photo.png", options=WORDS),
    Stop("A question about a shape", "vqa", "what color is the shape?", "vqa.png", WORDS),
    Stop("A picture from words", "draw", "a red apple", options={"plan": ("image",)}),
    Stop(
        "A story with pictures",
        "story",
        "The little elephant",
        options={"plan": ("text", "image") * 3, "max_text": 48, "temperature": 0.7},
    ),
    Stop("What a sound is", "name_sound", sample="sound.wav", options=WORDS),
    Stop("Speech to text", "transcribe", sample="speech.wav", options=WORDS),
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
) -> None:
    """Show what the model does: eleven exchanges, printed as they happen and kept as a page."""
    given = [read_sample(stop, samples) for stop in STOPS]
    check_model(model)
    started = time.perf_counter()
    engine = load(model)
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
        print(f"  {shown.seconds:.1f} s\n", flush=True)
        tokens = shown.usage.completion_tokens if shown.usage else 0
        cards.append(Card(stop.title, asked, shown.saved, shown.seconds, tokens))
        write_page(page, cards, len(STOPS), time.perf_counter() - started, model.name)
    print(f"{len(STOPS)} exchanges in {time.perf_counter() - started:.0f} s; look at {page}")


def read_sample(stop: Stop, samples: Path) -> list[dict[str, Any]]:
    """The user's parts of one stop; raises MediaError for a sample that cannot be read."""
    from m27.data.prompts import ask

    words = {"type": "text", "text": ask(stop.task, text=stop.text)}
    if not stop.sample:
        return [words]
    kind = "audio" if stop.sample.endswith(".wav") else "image"
    return [read_part(kind, samples / stop.sample), words]


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
