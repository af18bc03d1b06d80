"""Writes `examples/data`: the same few pictures and sounds in every format that `m27 data check` knows.

    python -m examples.make_data [FOLDER]

Shapes of one colour and tones of one pitch, a few kilobytes in all; `bad.jsonl` has a record of every kind that
cannot be used. docs/data.md explains them.
"""

import base64
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from m27.codec import media

COLORS = {"red": (214, 40, 40), "green": (42, 157, 92), "blue": (38, 84, 204), "yellow": (240, 200, 40)}
SHAPES = ("circle", "square")
TONES = {"low": 220, "middle": 440, "high": 880}


def picture(color: str, shape: str) -> bytes:
    """A PNG of 32 x 32 pixels with one shape on white."""
    image = Image.new("RGB", (32, 32), "white")
    draw = ImageDraw.Draw(image)
    (draw.ellipse if shape == "circle" else draw.rectangle)((6, 6, 25, 25), fill=COLORS[color])
    return media.png_bytes(np.asarray(image))


def tone(hertz: int) -> bytes:
    """A WAV of a twentieth of a second."""
    time = np.arange(800) / 16_000
    return media.wav_bytes((0.4 * np.sin(2 * np.pi * hertz * time)).astype(np.float32))


def lines(path: Path, records: list[Any]) -> None:
    """JSONL; bytes are lines as they are."""
    data = [r if isinstance(r, bytes) else json.dumps(r, ensure_ascii=False).encode() for r in records]
    media.write_atomic(path, b"\n".join(data) + b"\n")


def exchange(question: Any, answer: Any) -> list[dict[str, Any]]:
    """One question and its answer."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def text(words: str) -> dict[str, str]:
    """A part of words."""
    return {"type": "text", "text": words}


def url(address: str) -> dict[str, Any]:
    """A picture as OpenAI's API takes it."""
    return {"type": "image_url", "image_url": {"url": address}}


def write(folder: Path) -> None:
    """Everything, below `folder`."""
    shapes = [(color, shape) for color in COLORS for shape in SHAPES]
    named = {f"{color}-{shape}": f"a {color} {shape}" for color, shape in shapes}
    pictures = {f"{color}-{shape}": picture(color, shape) for color, shape in shapes}
    sounds = {name: tone(hertz) for name, hertz in TONES.items()}
    for name, data in pictures.items():
        media.write_atomic(folder / "pictures" / f"{name}.png", data)
        media.write_atomic(folder / "pictures" / f"{name}.txt", f"{named[name]}\n".encode())
        media.write_atomic(folder / "imagefolder" / "files" / f"{name}.png", data)
    rows = "".join(f'files/{name}.png,"{words}, drawn"\n' for name, words in named.items())
    media.write_atomic(folder / "imagefolder" / "metadata.csv", b"file_name,text\n" + rows.encode())
    for name, data in sounds.items():
        media.write_atomic(folder / "speech" / "wavs" / f"{name}.wav", data)
        media.write_atomic(folder / "words" / name / "1.wav", data)
    rows = "".join(f"{name}|A {name} tone.|A {name} tone.\n" for name in sounds)
    media.write_atomic(folder / "speech" / "metadata.csv", rows.encode())
    red, low = {"type": "image", "path": "pictures/red-circle.png"}, {"type": "audio", "path": "speech/wavs/low.wav"}
    lines(
        folder / "messages.jsonl",
        [
            {"id": "colour-1", "task": "colour", "messages": exchange([red, text("Which colour is it?")], "red")},
            {"messages": exchange("Draw a red circle.", [text("Here it is: "), red])},
            {"messages": exchange("Make a low tone.", [low])},
            exchange("What can you do?", "I answer in words, pictures and sounds."),
        ],
    )
    data_url = "data:image/png;base64," + base64.b64encode(pictures["blue-square"]).decode()
    heard = {"data": base64.b64encode(sounds["high"]).decode(), "format": "wav"}
    lines(
        folder / "openai.jsonl",
        [
            {"messages": exchange([text("What is this?"), url("pictures/green-square.png")], "a green square")},
            {"messages": exchange([text("And this?"), url(data_url)], "a blue square")},
            {"messages": exchange([{"type": "input_audio", "input_audio": heard}], "a high tone")},
        ],
    )
    lines(
        folder / "preferences.jsonl",
        [
            {
                "input": {"messages": [{"role": "user", "content": [url(f"pictures/{name}.png"), text("Shape?")]}]},
                "preferred_output": [{"role": "assistant", "content": name.split("-")[1]}],
                "non_preferred_output": [{"role": "assistant", "content": "It is hard to say."}],
            }
            for name in named
        ],
    )
    llava = [
        {
            "id": number,
            "image": f"pictures/{name}.png",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": words},
            ],
        }
        for number, (name, words) in enumerate(named.items())
    ]  # fmt: skip
    media.write_atomic(folder / "llava.json", (json.dumps(llava, indent=1) + "\n").encode())
    media.write_atomic(folder / "broken" / "cut.png", pictures["red-circle"][:60])
    empty = bytearray(pictures["red-circle"])
    empty[16:24] = bytes(8)  # width and height
    media.write_atomic(folder / "broken" / "no-pixels.png", bytes(empty))
    media.write_atomic(folder / "broken" / "silent.wav", media.wav_bytes(np.zeros(0, np.float32)))
    shown = {"type": "audio", "path": "broken/silent.wav"}
    lines(
        folder / "bad.jsonl",
        [
            {"messages": exchange([red, text("Which colour is it?")], "red")},
            {"messages": exchange([url("pictures/gone.png")], "a picture that is not there")},
            {"messages": exchange([url("https://example.org/cat.png")], "an address of the network")},
            {"messages": exchange([url("../secret.png")], "out of the folder")},
            {"messages": exchange([url("broken/cut.png")], "a picture that is cut short")},
            {"messages": exchange([url("broken/no-pixels.png")], "a picture of 0 pixels")},
            {"messages": exchange([shown], "a sound of no length")},
            {"messages": [{"role": "bot", "content": "a role that nobody knows"}]},
            {"messages": [{"role": "user", "content": "nobody answers"}]},
            {"messages": exchange("What do you say?", "")},
            {"messages": exchange("hello", "hello"), "label": 3},
            {"messages": exchange("hello", "hello")[:1] + [{"role": "assistant", "tool_calls": [{"id": "1"}]}]},
            b'{"messages": [{"role": "user", "content": "caf\xe9"}]}',
            b'{"messages": [',
            {"messages": exchange("Count.", " ".join(map(str, range(400))))},
        ],
    )


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "examples/data"))
