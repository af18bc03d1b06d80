"""The scorer of speech: its features, its word error rate, and (where it can run) its ears."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from m27.codec.mel import whisper_log_mel
from m27.eval.whisper import log_mel, normalise, transcribe, word_error_rate, word_errors


def test_log_mel_is_what_the_codec_hears() -> None:
    wave = np.random.default_rng(0).normal(0, 0.1, 480_000).astype(np.float32)
    other = whisper_log_mel(torch.from_numpy(wave)[None])[0].numpy()
    assert log_mel(wave).shape == (80, 3000)
    assert float(np.abs(log_mel(wave) - other).max()) < 1e-3


def test_log_mel_pads_and_cuts_to_30_seconds() -> None:
    short = log_mel(np.full(1_600, 0.1, np.float32))
    long = log_mel(np.zeros(500_000, np.float32))
    assert short.shape == long.shape == (80, 3000)
    assert np.allclose(long, -1.5)


def test_log_mel_of_a_short_sound_need_not_be_padded() -> None:
    wave = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    assert log_mel(wave, 100).shape == (80, 100)
    assert np.allclose(log_mel(wave, 100)[:, :95], log_mel(wave)[:, :95], atol=1e-4)


def test_normalise() -> None:
    assert normalise("It’s 42, OK?") == ["it's", "four", "two", "ok"]


@pytest.mark.parametrize(
    ("hypothesis", "errors"), [("a b c", 0), ("a c", 1), ("a x c", 1), ("a b b c d", 2), ("", 3)]
)
def test_word_errors(hypothesis: str, errors: int) -> None:
    assert word_errors("A, b. C!", hypothesis) == (errors, 3)


def test_word_error_rate_weighs_by_words() -> None:
    assert math.isclose(word_error_rate([("a b c", "a b c"), ("d", "e")]), 0.25)
    assert word_error_rate([]) == 0


def test_transcribe_wants_samples() -> None:
    with pytest.raises(ValueError, match="expected samples"):
        transcribe(np.zeros(0, np.float32))
