"""encode.py: the same codes as the processor's, and what the model made is known by what it looks like."""

import numpy as np
import pytest

from m27.codec import media
from m27.infer.encode import Encoder
from m27.infer.request import Request
from tests import tiny


@pytest.fixture
def encoder():
    encoder = Encoder(tiny.processor(), threads=2)
    yield encoder
    encoder.close()


def test_codes_are_the_processor_s(encoder: Encoder) -> None:
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (90, 150, 3), dtype=np.uint8)
    sound = rng.uniform(-1, 1, 2_000).astype(np.float32)
    parts = [{"type": "image", "image": rgb}, {"type": "audio", "audio": sound}]
    codes = [
        {"type": "image", "codes": encoder.image(rgb).result()},
        {"type": "audio", "codes": encoder.audio(sound).result()},
    ]
    processor = tiny.processor()
    first, second = (processor.encode([{"role": "user", "content": c}]).ids for c in (parts, codes))
    assert first == second


def test_what_was_made_comes_back_as_it_was(encoder: Encoder) -> None:
    """Through PNG and 16-bit WAV, as a client sends it."""
    request = Request(
        [{"role": "user", "content": "x"}], plan=("image", "audio"), seed=4, temperature=1.0, max_tokens=200
    )
    image, sound = tiny.engine().chat(request).content
    noise = np.random.default_rng(0)
    image["image"] = noise.integers(0, 256, (128, 128, 3), dtype=np.uint8)  # what no encoder would find again
    sound["audio"] = noise.uniform(-1.1, 1.1, 4_000).astype(np.float32)
    for part in (image, sound):
        encoder.remember(part, "ann")
    rgb = media.read_image(media.png_bytes(image["image"]))
    samples = media.read_audio(media.wav_bytes(sound["audio"]))
    assert np.array_equal(encoder.image(rgb, "ann").result(), image["codes"])
    assert np.array_equal(encoder.audio(samples, "ann").result(), sound["codes"])
    assert not np.array_equal(encoder.image(rgb, "bob").result(), image["codes"])


def test_shape_and_kind_tell_media_apart(encoder: Encoder) -> None:
    rng = np.random.default_rng(1)
    data = rng.integers(0, 256, 30 * 100 * 3, dtype=np.uint8)
    wide, high = data.reshape(30, 100, 3), data.reshape(100, 30, 3)
    assert not np.array_equal(encoder.image(wide).result(), encoder.image(high).result())
    assert len(encoder._known) == 2


def test_the_longest_unused_is_forgotten() -> None:
    encoder = Encoder(tiny.processor(), kept=2)
    pictures = [np.full((16, 16, 3), level, np.uint8) for level in (0, 100, 200)]
    for rgb in (pictures[0], pictures[1], pictures[0], pictures[2]):
        encoder.image(rgb).result()
    known = set(encoder._known)
    encoder.image(pictures[0]).result()
    assert set(encoder._known) == known and len(known) == 2
    encoder.close()


def test_what_cannot_be_shown_is_told(encoder: Encoder) -> None:
    with pytest.raises(ValueError, match="not empty"):
        encoder.audio(np.zeros(0, np.float32)).result()
