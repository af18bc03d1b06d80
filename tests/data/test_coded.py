"""m27.data.coded: media coded in batches, once each, equal to the processor that codes them one by one."""

import numpy as np
import pytest

from m27.codec import media
from m27.data import build as shards
from m27.data.coded import CodeCache, Coder
from m27.data.mixture import Corpus
from m27.language.processor import Processor
from tests import tiny
from tests.test_weights import WEIGHTS

RNG = np.random.default_rng(0)


def documents(folder, count=9):
    """A picture from a file, one given, and a sound from a file or given, of few lengths; some twice."""
    folder.mkdir(exist_ok=True)
    out = []
    for n in range(count):
        rgb = RNG.integers(0, 255, (96, 128 + 16 * (n % 2), 3), dtype=np.uint8)
        wave = RNG.uniform(-0.5, 0.5, 4_000 + 333 * (n % 3)).astype(np.float32)
        media.write_png(folder / f"{n}.png", rgb)
        media.write_wav(folder / f"{n}.wav", wave)
        shown = [
            {"type": "image", "path": str(folder / f"{n}.png"), "letterbox": n % 2 == 0},
            {"type": "image", "image": rgb, "size": (64, 128), "loss": True},
            {"type": "audio", "path": str(folder / f"{n % 5}.wav")},
            {"type": "audio", "audio": wave},
        ]
        out.append({
            "id": f"d{n}", "task": "t", "source": "s",
            "messages": [{"role": "user", "content": shown}, {"role": "assistant", "content": f"number {n}"}],
        })  # fmt: skip
    return out


def counting(processor, calls):
    for kind, codec in (("image", processor.image_codec), ("audio", processor.audio_codec)):
        encode = codec.encode

        def counted(batch, encode=encode, kind=kind):
            calls.append((kind, len(batch)))
            return encode(batch)

        codec.encode = counted


@pytest.mark.parametrize("threads", [1, 2])
def test_batches_give_what_one_by_one_gives(tmp_path, threads):
    processor, given = tiny.processor(), documents(tmp_path / "media")
    before = [[dict(part) for part in d["messages"][0]["content"]] for d in given]
    coded = Coder(processor, threads=threads).spell(given)
    for one, other in zip(given, coded, strict=True):
        assert processor.encode(one["messages"]) == processor.encode(other["messages"])
        assert all("codes" in part for part in other["messages"][0]["content"])
    assert [[set(part) for part in parts] for parts in before] == [
        [set(part) for part in d["messages"][0]["content"]] for d in given
    ]


def test_media_of_one_shape_go_together_and_each_once(tmp_path):
    processor, calls = tiny.processor(), []
    counting(processor, calls)
    Coder(processor).spell(documents(tmp_path / "media"))
    pictures = [n for kind, n in calls if kind == "image"]
    sounds = [n for kind, n in calls if kind == "audio"]
    assert sum(pictures) == 18
    assert len(pictures) == 2
    # Five sounds in files (rounded to 16 bits, so others) and nine given, of two numbers of codes.
    assert sum(sounds) == 14
    assert len(sounds) == 3


def test_what_was_coded_is_not_coded_again(tmp_path):
    cache, calls = CodeCache(tmp_path / "codes"), []
    processor, given = tiny.processor(), documents(tmp_path / "media")
    counting(processor, calls)
    first = Coder(processor, cache).spell(given)
    coded = len(calls)
    (tmp_path / "media" / "0.png").rename(tmp_path / "media" / "other.png")
    given[0]["messages"][0]["content"][0]["path"] = str(tmp_path / "media" / "other.png")
    again = Coder(processor, cache, threads=2).spell(given)
    assert len(calls) == coded > 0
    for one, other in zip(first, again, strict=True):
        assert processor.encode(one["messages"]) == processor.encode(other["messages"])
    for path in cache.folder.rglob("*.npy"):
        path.write_bytes(path.read_bytes()[:40])  # cut off
    Coder(processor, cache).spell(given)
    assert len(calls) == 2 * coded


def test_a_medium_that_cannot_be_read_is_named_and_the_rest_is_built(tmp_path):
    given = documents(tmp_path / "media", 4)
    given[1]["messages"][0]["content"][2]["path"] = str(tmp_path / "none.wav")
    meta = shards.build(given, tiny.processor(), tmp_path / "shard", coder=Coder(tiny.processor(), threads=2))
    assert (meta["documents"], meta["broken"]) == (3, 1)
    assert meta["reasons"][0].startswith("d1: ")
    assert "none.wav" in meta["reasons"][0]
    assert len(Corpus([tmp_path / "shard"])) == 3


@pytest.mark.slow
def test_the_shipped_codecs_give_the_same_codes_in_batches():
    """Pictures and sounds of the shipped codecs: a code that differs from one by one is a tie of roundings."""
    processor = Processor.load(WEIGHTS)
    time = np.arange(24_000) / 16_000
    waves = [
        (0.3 * np.sin(2 * np.pi * (200 + 60 * n) * time[: 8_000 + 100 * n])).astype(np.float32)
        + RNG.normal(0, 0.02, 8_000 + 100 * n).astype(np.float32)
        for n in range(8)
    ]
    grid = np.mgrid[:128, :128].transpose(1, 2, 0)
    pictures = [
        np.concatenate([grid * (n + 1) % 256, grid[..., :1] * n % 256], 2).astype(np.uint8) for n in range(6)
    ]
    parts = [{"type": "audio", "audio": w} for w in waves] + [{"type": "image", "image": p} for p in pictures]
    document = {"id": "d", "task": "t", "source": "s", "messages": [{"role": "user", "content": parts}]}
    (coded,) = Coder(processor, threads=2).spell([document])
    alone = processor.encode(document["messages"]).ids
    together = processor.encode(coded["messages"]).ids
    assert len(alone) == len(together)
    differing = sum(a != b for a, b in zip(alone, together, strict=True))
    assert differing <= 0.002 * len(alone), f"{differing} of {len(alone)} codes differ"
