"""Media in a table, and shards that are filled with codes later: equal to shards that were built with the codecs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m27.data import build, sound_bytes, templates
from m27.data.media_table import MediaTable, MediaTableError, MediaWriter
from m27.language.processor import Processor
from tests import tiny

LEVELS = (tiny.IMAGE_LEVELS, tiny.AUDIO_LEVELS)


def tone(seconds: float, hertz: float = 440.0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return (0.3 * np.sin(np.arange(int(seconds * 16_000)) * 2 * np.pi * hertz / 16_000)).astype(
        np.float32
    )


def test_a_sound_comes_back_nearly_and_in_few_bytes() -> None:
    rng = np.random.default_rng(0)
    for wave in (tone(1.0), tone(0.3, 2_000) + rng.normal(0, 0.01, 4_800).astype(np.float32)):
        data = sound_bytes.pack(wave)
        back = sound_bytes.unpack(data)
        assert back.shape == wave.shape and back.dtype == np.float32
        noise = float(((back - wave) ** 2).mean() / (wave**2).mean())
        assert noise < 0.1 and len(data) < 0.3 * 2 * len(wave)
    for count in (1, 319, 320, 321):
        assert len(sound_bytes.unpack(sound_bytes.pack(tone(1)[:count]))) == count
    assert not sound_bytes.unpack(sound_bytes.pack(np.zeros(999, np.float32))).any()
    with pytest.raises(sound_bytes.SoundBytesError):
        sound_bytes.unpack(b"no sound at all")


@pytest.mark.parametrize("packed", [True, False])
def test_a_table_keeps_each_medium_once(tmp_path: Path, packed: bool) -> None:
    rng = np.random.default_rng(0)
    flat = np.full((32, 48, 3), 200, np.uint8)
    soft = np.kron(rng.integers(60, 200, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    soft += rng.integers(0, 12, soft.shape, dtype=np.uint8)
    with MediaWriter(tmp_path / "t", packed) as writer:
        numbers = [writer.picture(flat), writer.sound(tone(0.5)), writer.picture(soft)]
        assert [writer.picture(flat), writer.sound(tone(0.5))] == numbers[:2] == [0, 1]
    table = MediaTable(tmp_path / "t")
    assert len(table) == 3 and table.kinds == ("psp" if packed else "rwr")
    assert np.array_equal(table.picture(0), flat)
    assert np.abs(table.picture(2).astype(int) - soft).mean() < (9 if packed else 1e-9)
    assert np.abs(table.sound(1) - tone(0.5)).max() < (0.2 if packed else 1e-4)
    read = list(table.read([2, 1, 0], 2))
    assert np.array_equal(read[0], table.picture(2)) and len(read[1]) == 8_000


def test_a_table_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def broken() -> None:
        with MediaWriter(tmp_path / "t") as writer:
            writer.sound(tone(0.1))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert not list(tmp_path.iterdir())
    with pytest.raises(MediaTableError, match="no table"):
        MediaTable(tmp_path / "t")


def documents() -> list[dict[str, Any]]:
    """Pictures and sounds asked about and asked for, shared, of several sizes, and one with branches."""
    rng = np.random.default_rng(3)
    made = []
    for i in range(9):
        picture = {"type": "image", "image": rng.integers(0, 255, (128, 128, 3), dtype=np.uint8)}
        sound = {"type": "audio", "audio": tone(0.21 + 0.1 * i, 300 + 40 * i)}
        made.append((picture, sound))

    def turn(user: list[Any], answer: list[Any]) -> list[dict[str, Any]]:
        return [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]

    def said(text: str) -> dict[str, Any]:
        return {"type": "text", "text": text}

    out = []
    for i, (picture, sound) in enumerate(made):
        out.append(
            {"id": f"a{i}", "task": "see", "messages": turn([picture, said("what")], [said("it")])}
        )
        out.append(
            {"id": f"b{i}", "task": "play", "messages": turn([dict(picture)], [sound, said("so")])}
        )
    small = {
        "type": "image",
        "image": rng.integers(0, 255, (40, 60, 3), dtype=np.uint8),
        "size": (32, 48),
    }
    first, *rest = (turn([dict(small), said(q)], [said("yes")]) for q in ("one", "two", "three"))
    out.append({"id": "c", "task": "asked", "messages": first, "branches": rest})
    return out


def test_filled_equals_built(tmp_path: Path) -> None:
    """Against the shard that is built from the same documents with the codecs at hand, id by id."""
    processor = tiny.processor()
    plain = Processor(tiny.TOKENIZER, tiny.VOCABULARY)
    meta = templates.build(documents(), plain, LEVELS, tmp_path / "t" / "one", packed=False)
    assert meta["image_codec"] == templates.PENDING and not build.is_current(
        tmp_path / "t/one", processor
    )
    assert templates.is_current(tmp_path / "t" / "one", processor)
    count = templates.fill(tmp_path / "t" / "one", processor, tmp_path / "filled")
    assert count == 9 + 9 + 1
    build.build(documents(), processor, tmp_path / "built")
    for name in ("tokens.bin", "loss.bin", "branches.bin", "index.npy", "tasks.npy"):
        assert (tmp_path / "filled" / name).read_bytes() == (
            tmp_path / "built" / name
        ).read_bytes(), name
    same = [json.loads((tmp_path / n / "meta.json").read_text()) for n in ("filled", "built")]
    assert same[0] == same[1] and build.is_current(tmp_path / "filled", processor)


def test_a_number_needs_room() -> None:
    assert templates.spell(9, 1, 16).tolist() == [9]
    assert templates.spell(70_000, 64, 16384)[:3].tolist() == [70_000 - 4 * 16384, 4, 0]
    with pytest.raises(ValueError, match="medium 8 "):
        templates.spell(8, 1, 8)
