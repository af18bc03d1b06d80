"""A small folder of each format that can be imported, for tests."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np

from m27.codec import media


def png(shade: int = 200) -> bytes:
    return media.png_bytes(np.full((8, 8, 3), shade, np.uint8))


def wav(samples: int = 1600) -> bytes:
    return media.wav_bytes(np.linspace(-0.5, 0.5, samples, dtype=np.float32))


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def write_lines(path: Path, values: list[Any]) -> Path:
    """JSONL; strings and bytes are lines as they are."""
    with path.open("wb") as file:
        for value in values:
            if not isinstance(value, bytes):
                value = (value if isinstance(value, str) else json.dumps(value)).encode()
            file.write(value + b"\n")
    return path


def exchange(question: Any, answer: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def write_all(folder: Path) -> dict[str, Path]:
    """One of each under `folder`, three records each; by name of the form."""
    folder.mkdir(parents=True, exist_ok=True)
    media_in(folder)
    found = {
        "ours": write_lines(
            folder / "ours.jsonl",
            [
                {"id": "a", "task": "vqa", "messages": exchange([{"type": "image", "path": "a.png"}], "grey")},
                {"messages": exchange("Say it", [{"type": "audio", "path": "a.wav"}])},
                exchange("hi", "hello"),
            ],
        ),
        "openai": write_lines(
            folder / "openai.jsonl",
            [
                {"messages": exchange([{"type": "image_url", "image_url": {"url": data_url(png())}}], "grey")},
                {"messages": exchange(
                    [{"type": "input_audio", "input_audio": {
                        "data": base64.b64encode(wav()).decode(), "format": "wav"}}], "a tone")},
                {"messages": exchange("hi", "hello")},
            ],
        ),
        "preferences": write_lines(
            folder / "better.jsonl",
            [
                {"input": {"messages": [{"role": "user", "content": f"{n}?"}]},
                 "preferred_output": [{"role": "assistant", "content": "yes"}],
                 "non_preferred_output": [{"role": "assistant", "content": "no"}]}
                for n in range(3)
            ],
        ),
    }  # fmt: skip
    llava = [
        {"id": n, "image": "a.png", "conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "grey"}]}
        for n in range(3)
    ]  # fmt: skip
    (folder / "llava.json").write_text(json.dumps(llava, indent=1))
    found["llava"] = folder / "llava.json"
    for name, suffix, make in (("pictures", "png", png), ("sounds", "wav", wav)):
        pairs = folder / name
        pairs.mkdir()
        for n in range(3):
            (pairs / f"{n}.{suffix}").write_bytes(make())
            (pairs / f"{n}.txt").write_text(f"A thing {n}.\n")
        found[name] = pairs
    for name, suffix, make, head in (
        ("imagefolder", "png", png, "file_name,text"), ("audiofolder", "wav", wav, "file_name,transcription"),
    ):  # fmt: skip
        table = folder / name
        (table / "data").mkdir(parents=True)
        for n in range(3):
            (table / "data" / f"{n}.{suffix}").write_bytes(make())
        rows = [f'data/{n}.{suffix},"One, two, {n}"' for n in range(3)]
        (table / "metadata.csv").write_text("\n".join([head, *rows]) + "\n")
        found[name] = table
    speech = folder / "ljspeech"
    (speech / "wavs").mkdir(parents=True)
    for n in range(3):
        (speech / "wavs" / f"LJ-{n}.wav").write_bytes(wav())
    lines = [f'LJ-{n}|No. {n} "quoted|Number {n} "quoted' for n in range(3)]
    (speech / "metadata.csv").write_text("\n".join(lines) + "\n")
    found["ljspeech"] = speech
    return found


def media_in(folder: Path) -> None:
    """Good and broken media to name in records."""
    (folder / "a.png").write_bytes(png())
    (folder / "a.wav").write_bytes(wav())
    (folder / "cut.png").write_bytes(png()[:40])
    (folder / "none.wav").write_bytes(wav(0))
    whole = bytearray(png())
    whole[16:24] = bytes(8)  # width and height of the header
    (folder / "nothing.png").write_bytes(bytes(whole))
