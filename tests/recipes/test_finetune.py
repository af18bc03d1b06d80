"""recipes/finetune.py: the run that follows from the data and the wishes; what is warned of."""

from dataclasses import replace

import pytest

from recipes.finetune import FinetuneConfig, recipe, warnings
from recipes.finetune_answers import spread
from recipes.finetune_card import card
from tests.train import fixtures

CHOSEN = ("method", "rank", "alpha", "lr", "epochs", "steps", "minutes", "max_tokens", "val", "seed")
ASKED = FinetuneConfig(("data",), "base", "out")


def test_the_run_follows_from_the_data(tmp_path):
    corpus = fixtures.corpus(tmp_path)
    tokens = int(corpus.lengths.sum())
    run = recipe(ASKED, corpus)
    step = run.data.row * run.data.accumulate
    assert run.data.row >= corpus.lengths.max()
    assert tokens * 3 <= run.steps * step < tokens * 3 + step
    assert (run.body, run.rows, run.base_bits, run.lora.rank) == ("adapters", "frozen", None, 16)
    assert recipe(replace(ASKED, steps=7), corpus).steps == 7
    timed = recipe(replace(ASKED, minutes=2.0), corpus)
    assert (timed.steps, timed.minutes) == (None, 2.0)


@pytest.mark.parametrize(
    ("method", "body", "rows", "bits"),
    [("full", "full", "free", None), ("qlora", "adapters", "frozen", 4)],
)
def test_methods(tmp_path, method, body, rows, bits):
    run = recipe(replace(ASKED, method=method), fixtures.corpus(tmp_path))
    assert (run.body, run.rows, run.base_bits) == (body, rows, bits)


def test_a_few_are_taken_from_everywhere():
    assert spread(range(3), 5) == [0, 1, 2]
    assert spread(range(10), 4) == [0, 2, 5, 7]
    assert spread(range(10), 0) == []


def row(low: float, high: float) -> dict[str, object]:
    return {
        "documents": 3, "targets": 9, "loss_before": 1.0, "loss_after": 1.0 + (low + high) / 2,
        "perplexity_before": 2.7, "perplexity_after": 2.8, "change": 0.1, "interval": [low, high],
        "worse": low > 0,
    }  # fmt: skip


def test_what_fell_is_named_and_noise_is_not():
    results = {
        "base": "tiny", "base_revision": "abc", "method": "lora", "notes": [],
        "data": {"files": ["x.jsonl"], "hash": "0f", "records": 9, "held_out": 3, "skipped": 1,
                 "tokens": 99},
        "training": {"steps": 4, "tokens": 4096, "seconds": 61.0},
        "settings": dict.fromkeys(CHOSEN, 1) | {"out": "out/x"},
        "held_out": {"all": row(-0.3, -0.1)},
        "regression": {"text": row(0.05, 0.2), "sound in": row(-0.01, 0.2)},
        "answers": {},
        "cost": {"minutes": 2.5, "processor_minutes": 4.0, "threads": 2, "peak_mb": 2100},
    }  # fmt: skip
    (warning,) = warnings(results)
    assert warning.startswith("text got worse")
    results["warnings"] = [warning]
    written = card(results)
    assert "**Warning:** text got worse" in written
    assert "1 left out" in written
    assert "2.5 minutes (4.0 of a processor) and 2,100 MB" in written
    results["held_out"]["all"] = row(0.1, 0.2)
    assert any("held-out records got worse" in w for w in warnings(results))
