"""engine.py: valid answers from any weights, the same as the naive loop, cut where they must be."""

import random
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from m27.infer.engine import Engine
from m27.infer.request import Request, RequestError
from m27.infer.respond import collect
from m27.infer.torch_runner import TorchRunner
from m27.language.grammar import GrammarError
from m27.language.template import MessageError
from tests import tiny

MEDIA = ("text", "image", "audio")
SETTINGS = [c for n in (1, 2, 3) for c in combinations(MEDIA, n)]


@pytest.fixture(scope="module")
def engine() -> Engine:
    torch.set_num_threads(1)  # a model this small only loses time to a second thread
    return tiny.engine()


def ask(text: str, **options: Any) -> Request:
    return Request([{"role": "user", "content": text}], seed=3, **options)


def test_500_random_prompts_over_all_modalities_give_valid_answers(engine: Engine) -> None:
    """The bar: temperature 1, random weights; every output parses with exact code counts."""
    rng = random.Random(0)
    seen: set[str] = set()
    requests = []
    for number in range(500):
        modalities = SETTINGS[number % len(SETTINGS)]
        grid = (rng.randint(1, 3), rng.randint(1, 3)) if rng.random() < 0.8 else None
        plan = tuple(rng.choice(modalities) for _ in range(2)) if number % 3 == 0 else None
        request = Request(
            tiny.random_messages(rng),
            modalities=modalities,
            plan=plan,
            max_tokens=rng.randint(28, 40),
            max_text=rng.choice((3, None)),
            max_audio_codes=8,
            image_grid=grid,
            guidance=rng.choice((1.0, None)),
            temperature=1.0,
            top_p=1.0,
            seed=number,
        )
        requests.append(request)
    for request, response in zip(requests, engine.answer(requests), strict=True):
        modalities, grid, plan = request.modalities, request.image_grid, request.plan
        assert {part["type"] for part in response.content} <= set(modalities)
        assert response.usage.completion_tokens <= request.max_tokens
        image_codes = audio_codes = 0
        for part in response.content:
            seen.add(part["type"])
            if part["type"] == "image":
                h, w = part["codes"].shape
                assert grid is None or (h, w) == grid
                assert part["image"].shape == (16 * h, 16 * w, 3)
                image_codes += h * w
            elif part["type"] == "audio":
                assert 1 <= len(part["codes"]) <= 8
                assert len(part["audio"]) == tiny.HOP * len(part["codes"])
                audio_codes += len(part["codes"])
            else:
                assert part["text"]
        assert response.usage.image_codes == image_codes
        assert response.usage.audio_codes == audio_codes
        if plan is not None:
            media = [part["type"] for part in response.content]
            wanted = [m for k, m in enumerate(plan) if not (k and m == plan[k - 1] == "text")]
            # A text of random bytes may decode to nothing but must leave the media as planned.
            assert [m for m in media if m != "text"] == [m for m in wanted if m != "text"]
        if modalities == ("image",):
            assert response.content
    assert seen == set(MEDIA)


def test_greedy_text_equals_the_loop_written_out(engine: Engine) -> None:
    """No cache, no grammar, no sampler: argmax over the text ids and the end of the turn."""
    request = ask("hello", modalities=("text",), temperature=0.0, repetition_penalty=1.0)
    request = replace(request, max_tokens=12)
    ids = engine.processor.encode(request.messages, generate=True).ids
    text, model = tiny.VOCABULARY, tiny.decoder()
    allowed = [i for start, stop in text.text_spans for i in range(start, stop)] + [text.turn_end]
    expected: list[int] = []
    with torch.inference_mode():
        for _ in range(11):
            logits = model(torch.tensor([ids + expected]))[0, -1]
            best = max(allowed, key=lambda i: float(logits[i]))
            expected.append(best)
            if best == text.turn_end:
                break
    if expected[-1] != text.turn_end:
        expected.append(text.turn_end)  # the budget ends the turn
    parts = engine.processor.decode(expected)
    response = engine.chat(request)
    assert response.text == "".join(p["text"] for p in parts)
    assert response.usage.completion_tokens == len(expected)
    assert response.usage.prompt_tokens == len(ids)


def test_same_seed_same_answer(engine: Engine) -> None:
    def content(seed: int) -> list[str]:
        request = Request(ask("a").messages, plan=("text", "image", "audio"), seed=seed)
        response = engine.chat(replace(request, max_tokens=150, temperature=1.0))
        return [str(part.get("codes", part.get("text"))) for part in response.content]

    assert content(1) == content(1)
    assert content(1) != content(2)


def test_a_seed_is_drawn_and_told(engine: Engine) -> None:
    seeds = {engine.chat(Request(ask("a").messages, max_tokens=2)).usage.seed for _ in range(4)}
    assert len(seeds) > 1


def test_plan_places_each_medium_and_texts_end_for_it(engine: Engine) -> None:
    plan = ("text", "image", "text", "audio")
    request = ask("story", plan=plan, max_tokens=400, max_text=10, max_audio_codes=5)
    response = engine.chat(request)
    assert [part["type"] for part in response.content] == list(plan)
    assert response.content[1]["codes"].shape == (8, 8)
    assert len(response.content[3]["codes"]) <= 5


def test_end_of_turn_in_a_planned_text_opens_the_next_medium() -> None:
    """Weights that always want to end the turn still write one id of each planned text."""
    model = tiny.decoder()
    with torch.no_grad():
        model.model.embed_tokens.weight[tiny.VOCABULARY.turn_end] *= 100
    engine = Engine(TorchRunner(model, 100), tiny.processor())
    for seed in range(8):  # half of them: the row may also point away
        request = ask("x", plan=("text", "image"), temperature=0.0, max_tokens=200)
        content = engine.chat(replace(request, seed=seed)).content
        assert [p["type"] for p in content][-1] == "image"


def test_cut_by_the_budget_is_told(engine: Engine) -> None:
    cut = engine.chat(ask("x", modalities=("text",), max_tokens=3, temperature=0.0))
    assert (cut.usage.finish_reason, cut.usage.completion_tokens) == ("length", 3)
    short = ask("x", plan=("audio",), min_audio_codes=4, max_audio_codes=4, max_tokens=7)
    response = engine.chat(short)
    assert len(response.content[0]["codes"]) == 4
    assert response.usage.finish_reason == "stop"
    with pytest.raises(GrammarError, match="at least"):
        engine.chat(ask("x", modalities=("image",), max_tokens=20))


def test_guidance_changes_codes_but_not_text(engine: Engine) -> None:
    def answer(guidance: float) -> tuple[str, list[int]]:
        request = ask("y", plan=("text", "image"), max_text=8, guidance=guidance, temperature=0.0)
        text, image = engine.chat(request).content
        return text["text"], image["codes"].flatten().tolist()

    plain, guided = answer(1.0), answer(4.0)
    assert plain[0] == guided[0]
    assert plain[1] != guided[1]


def test_stream_gives_text_before_the_picture_is_whole(engine: Engine) -> None:
    request = ask("z", plan=("text", "image", "audio"), max_tokens=300, max_text=9)
    events = list(engine.stream(replace(request, min_audio_codes=3, max_audio_codes=9)))
    kinds = [event["type"] for event in events]
    assert kinds[0] == "text"
    assert kinds.index("image_begin") < kinds.index("image") < kinds.index("audio_begin")
    assert kinds[-2:] == ["audio", "done"]
    deltas = [e["audio"] for e in events if e["type"] == "audio_delta"]
    assert np.array_equal(np.concatenate(deltas), events[-2]["audio"])
    assert len(deltas) > 1


def test_a_conversation_that_is_too_long_is_refused(engine: Engine) -> None:
    with pytest.raises(RequestError, match="tokens long"):
        engine.chat(ask("a" * tiny.CONFIG.max_len))


def test_malformed_messages_are_refused_before_anything_is_produced(engine: Engine) -> None:
    with pytest.raises(MessageError, match="message 0"):
        engine.chat(Request([{"role": "user", "content": [{"type": "video"}]}]))


def test_load_reads_the_shipped_layout(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m27.codec.image.ImageCodec", tiny.TinyImageCodec)
    monkeypatch.setattr("m27.codec.audio.AudioCodec", tiny.TinyAudioCodec)
    tiny.write_model(tmp_path)
    content = (
        Engine.load(tmp_path, precision="float32")
        .chat(ask("hi", plan=("image", "audio"), max_tokens=200))
        .content
    )
    assert [p["type"] for p in content] == ["image", "audio"]
    with pytest.raises(RequestError, match="no model"):
        Engine.load(tmp_path / "nowhere")


def test_codecs_are_loaded_beside_the_engine(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, loaded = threading.Event(), threading.Semaphore(0)

    class Slow(tiny.TinyImageCodec):
        @classmethod
        def load(cls, folder: str | Path, device: str = "cpu") -> "Slow":
            assert go.wait(60)
            loaded.release()
            return cls()

    monkeypatch.setattr("m27.codec.image.ImageCodec", Slow)
    monkeypatch.setattr("m27.codec.audio.AudioCodec", tiny.TinyAudioCodec)
    tiny.write_model(tmp_path)
    engine = Engine.load(tmp_path, precision="float32")
    codecs = engine.processor.codecs
    words = engine.chat(ask("hi", modalities=("text",), max_tokens=5))  # waits for no codec
    assert words.usage.completion_tokens > 0 and codecs._image is None
    go.set()
    assert loaded.acquire(timeout=60)
    ends = time.monotonic() + 60
    while codecs._audio is None and time.monotonic() < ends:
        time.sleep(0.01)
    assert codecs._image is not None and codecs._audio is not None  # nobody has asked for them
    picture = engine.chat(ask("hi", plan=("image",), max_tokens=100)).content[0]
    assert picture["type"] == "image" and not loaded.acquire(blocking=False)  # once
    engine.close()


def test_a_model_without_codecs_loads_none(tmp_path) -> None:
    tiny.write_model(tmp_path)
    for name in ("image_codec.safetensors", "audio_codec.safetensors"):
        (tmp_path / name).unlink()
    engine = Engine.load(tmp_path, precision="float32")
    parts = engine.chat(ask("hi", plan=("image", "audio"), max_tokens=200)).content
    assert [sorted(part) for part in parts] == [["codes", "type"]] * 2
    engine.close()


def test_events_without_an_end_are_an_error() -> None:
    def broken() -> Iterator[dict[str, Any]]:
        yield {"type": "text", "text": "a"}

    with pytest.raises(ValueError, match="done"):
        collect(broken())
