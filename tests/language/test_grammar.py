"""The grammar: whatever is picked among the allowed ids, the answer parses and keeps its limits."""

from __future__ import annotations

import random
from typing import Any

import pytest

from m27.language.grammar import MEDIA, Grammar, GrammarError
from m27.language.processor import Processor
from m27.language.vocabulary import Vocabulary


def random_settings(rng: random.Random) -> dict[str, Any]:
    """Settings of every kind: modalities, plans, quotas, grids, lengths."""
    media = rng.sample(MEDIA, rng.randint(1, 3))
    least = rng.randint(1, 6)
    settings: dict[str, Any] = {
        "modalities": media,
        "max_images": rng.randint(1, 4),
        "max_sounds": rng.randint(1, 4),
        "image_grid": rng.choice([None, (rng.randint(1, 4), rng.randint(1, 4)), (8, 8)]),
        "min_audio_codes": least,
        "max_audio_codes": least + rng.choice([0, 1, 5, 30]),
        "max_text": rng.choice([None, None, 1, 7]),
    }
    if rng.random() < 0.5:
        plan = [rng.choice(media) for _ in range(rng.randint(1, 6))]
        settings |= {"plan": plan, "max_images": 6, "max_sounds": 6}
    return settings


def pick(spans: list[tuple[int, int]], rng: random.Random, greedy_for: str) -> int:
    """An allowed id: mostly the widest span, the narrowest, or any, by the sampler's temper."""
    if greedy_for == "wide":
        start, stop = max(spans, key=lambda s: s[1] - s[0])
    elif greedy_for == "narrow":
        start, stop = min(spans, key=lambda s: s[1] - s[0])
    else:
        start, stop = rng.choice(spans)
    return rng.randrange(start, stop)


def run(grammar: Grammar, rng: random.Random, temper: str, limit: int) -> list[int]:
    """The ids of one answer, at most `limit` of them."""
    ids: list[int] = []
    while not grammar.done() and len(ids) < limit:
        spans = grammar.allowed()
        assert spans
        assert all(start < stop for start, stop in spans)
        assert grammar.needed() <= limit - len(ids)
        ids.append(pick(spans, rng, temper))
        grammar.advance(ids[-1])
    return ids


@pytest.mark.parametrize("seed", range(500))
def test_any_choice_parses_with_exact_counts_within_budget(
    seed: int, vocabulary: Vocabulary, codes_only: Processor
) -> None:
    rng = random.Random(seed)
    settings = random_settings(rng)
    grammar = Grammar(vocabulary, **settings)
    budget = grammar.needed() + rng.choice([0, 0, 1, 2, 5, 60, 300])
    grammar.budget(budget)
    ids = run(grammar, rng, rng.choice(["wide", "narrow", "any", "any"]), budget)

    assert grammar.done()
    assert ids[-1] == vocabulary.turn_end
    assert ids.count(vocabulary.turn_end) == 1
    assert len(ids) <= budget
    parts = codes_only.decode(ids)  # strict: raises on any span that is not whole
    made = [part["type"] for part in parts]
    assert set(made) <= set(settings["modalities"])
    assert made.count("image") <= settings["max_images"]
    assert made.count("audio") <= settings["max_sounds"]
    for part in parts:
        if part["type"] == "image":
            height, width = part["codes"].shape
            assert settings["image_grid"] in (None, (height, width))
        if part["type"] == "audio":
            length = len(part["codes"])
            assert settings["min_audio_codes"] <= length <= settings["max_audio_codes"]
    if "plan" in settings:
        merged = [
            m
            for k, m in enumerate(settings["plan"])
            if not (k and m == "text" == settings["plan"][k - 1])
        ]
        assert spoken(ids, vocabulary) == merged
    elif "text" not in settings["modalities"]:
        assert made
    if settings["max_text"]:
        assert longest_text(ids, vocabulary) <= settings["max_text"]


def spoken(ids: list[int], vocabulary: Vocabulary) -> list[str]:
    """The media in the order of the ids, runs of text as one."""
    out: list[str] = []
    for token in ids:
        kind = vocabulary.kind(token)
        if token in (vocabulary.image_begin, vocabulary.audio_begin):
            out.append("image" if token == vocabulary.image_begin else "audio")
        elif kind == "text" and out[-1:] != ["text"]:
            out.append("text")
    return out


def longest_text(ids: list[int], vocabulary: Vocabulary) -> int:
    """The longest run of text ids."""
    longest = run_length = 0
    for token in ids:
        run_length = run_length + 1 if vocabulary.kind(token) == "text" else 0
        longest = max(longest, run_length)
    return longest


def test_the_fuzz_can_fail(vocabulary: Vocabulary, codes_only: Processor) -> None:
    """A picture that lacks one code does not parse: the oracle above is not blind."""
    grammar = Grammar(vocabulary, plan=["image"], image_grid=(2, 2))
    ids = run(grammar, random.Random(0), "any", 50)
    assert len(ids) == 4 + 4 + 1
    with pytest.raises(ValueError, match="position 6"):
        codes_only.decode(ids[:6] + ids[7:])


def test_free_answer_without_budget(vocabulary: Vocabulary) -> None:
    g, v = Grammar(vocabulary, image_grid=(1, 2)), vocabulary
    opening = [(v.image_begin,) * 2, (v.audio_begin,) * 2, (v.turn_end,) * 2]
    expected = [*v.text_spans, *((a, b + 1) for a, b in opening)]
    assert g.allowed() == expected
    assert g.medium() == "text"
    media = []
    for token in [v.image_begin, v.heights[0], v.widths[1], v.image[3], v.image[4], v.image_end]:
        g.advance(token)
        media.append(g.medium())
    assert media == ["image"] * 5 + ["text"]
    g.advance(v.audio_begin)
    assert g.medium() == "audio"
    assert g.allowed() == [(v.audio.start, v.audio.stop)]  # at least one code
    g.advance(v.audio[0])
    assert g.allowed() == [(v.audio.start, v.audio.stop), (v.audio_end, v.audio_end + 1)]
    g.advance(v.audio_end)
    g.advance(v.turn_end)
    assert g.done()
    assert g.allowed() == []
    assert g.needed() == 0
    assert not g.truncated


def test_control_ids_are_never_offered_but_for_the_span_marks(vocabulary: Vocabulary) -> None:
    offered = {i for start, stop in Grammar(vocabulary).allowed() for i in range(start, stop)}
    marks = {vocabulary.image_begin, vocabulary.audio_begin, vocabulary.turn_end}
    assert {i for i in offered if vocabulary.is_control(i)} == marks


def test_forbidden_media(vocabulary: Vocabulary) -> None:
    v = vocabulary
    assert Grammar(v, ["text"]).allowed() == [*v.text_spans, (v.turn_end, v.turn_end + 1)]
    assert Grammar(v, ["audio"]).allowed() == [(v.audio_begin, v.audio_begin + 1)]
    with pytest.raises(GrammarError, match="not allowed"):
        Grammar(v, ["text"]).advance(v.image_begin)
    no_sounds = Grammar(v, ["text", "audio"], max_sounds=0)
    assert no_sounds.allowed() == Grammar(v, ["text"]).allowed()


def test_plan_orders_the_media(vocabulary: Vocabulary) -> None:
    v = vocabulary
    g = Grammar(v, plan=["text", "image", "text"], image_grid=(1, 1))
    assert g.allowed() == list(v.text_spans)  # a text has at least one id
    assert g.redirects() == []
    g.advance(v.text_spans[0][0])
    assert g.allowed() == [*v.text_spans, (v.image_begin, v.image_begin + 1)]
    assert g.redirects() == [(v.turn_end, v.image_begin)]
    for token in [v.image_begin, v.heights[0], v.widths[0], v.image[0], v.image_end]:
        g.advance(token)
    assert g.allowed() == list(v.text_spans)
    g.advance(v.text_spans[0][0])
    assert g.allowed() == [*v.text_spans, (v.turn_end, v.turn_end + 1)]
    assert g.redirects() == []


def test_budget_keeps_a_picture_from_beginning(vocabulary: Vocabulary) -> None:
    v = vocabulary
    g = Grammar(v, image_grid=(2, 2))
    g.budget(9)  # 4 codes, 4 marks, the end of the turn
    assert (v.image_begin, v.image_begin + 1) in g.allowed()
    g.advance(v.text_spans[0][0])
    assert (v.image_begin, v.image_begin + 1) not in g.allowed()
    assert (v.audio_begin, v.audio_begin + 1) in g.allowed()


def test_truncated_tells_that_the_budget_closed_the_answer(vocabulary: Vocabulary) -> None:
    v = vocabulary
    letter = v.text_spans[0][0]
    cut, free = Grammar(v), Grammar(v)
    cut.budget(3)
    free.budget(4)
    for g in (cut, free):
        for token in (letter, letter, v.turn_end):
            g.advance(token)
    assert cut.truncated
    assert not free.truncated
    sound = Grammar(v, plan=["audio"])
    sound.budget(5)
    for token in (v.audio_begin, v.audio[0], v.audio[0]):
        sound.advance(token)
    assert sound.allowed() == [(v.audio_end, v.audio_end + 1)]
    sound.advance(v.audio_end)
    sound.advance(v.turn_end)
    assert sound.truncated


def test_clone_is_independent(vocabulary: Vocabulary) -> None:
    v = vocabulary
    g = Grammar(v, ["text", "image"], max_images=1, image_grid=(1, 1))
    other = g.clone()
    for token in [v.image_begin, v.heights[0], v.widths[0], v.image[0], v.image_end]:
        other.advance(token)
    assert (v.image_begin, v.image_begin + 1) not in other.allowed()
    assert (v.image_begin, v.image_begin + 1) in g.allowed()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modalities": []}, "modalities"),
        ({"modalities": ["video"]}, "modalities"),
        ({"modalities": "text"}, "modalities"),
        ({"modalities": ["image"], "max_images": 0}, "no medium"),
        ({"plan": []}, "at least one"),
        ({"plan": "text"}, "at least one"),
        ({"modalities": ["text"], "plan": ["image"]}, "'image'"),
        ({"plan": ["image"] * 3, "max_images": 2}, "more than 2"),
        ({"image_grid": (0, 8)}, "image_grid"),
        ({"image_grid": (8, 33)}, "image_grid"),
        ({"min_audio_codes": 0}, "audio codes"),
        ({"min_audio_codes": 9, "max_audio_codes": 8}, "audio codes"),
        ({"max_text": 0}, "max_text"),
    ],
)
def test_contradictory_settings(
    settings: dict[str, Any], message: str, vocabulary: Vocabulary
) -> None:
    with pytest.raises(GrammarError, match=message):
        Grammar(vocabulary, **settings)


def test_budget_too_small(vocabulary: Vocabulary) -> None:
    with pytest.raises(GrammarError, match="at least 69"):
        Grammar(vocabulary, ["image"]).budget(68)
    Grammar(vocabulary, ["image"]).budget(69)
    with pytest.raises(GrammarError):
        Grammar(vocabulary).budget(0)


def test_a_least_length_of_text_puts_off_the_end_as_far_as_the_budget_goes():
    vocabulary = Vocabulary()
    grammar = Grammar(vocabulary, modalities=("text",), min_text=3)
    grammar.budget(10)
    for left in (3, 2, 1):
        assert (vocabulary.turn_end, vocabulary.turn_end + 1) not in grammar.allowed(), left
        grammar.advance(100)
    assert (vocabulary.turn_end, vocabulary.turn_end + 1) in grammar.allowed()
    short = Grammar(vocabulary, modalities=("text",), min_text=9)
    short.budget(2)
    short.advance(100)
    assert short.allowed() == [(vocabulary.turn_end, vocabulary.turn_end + 1)]
    with pytest.raises(GrammarError, match="min_text 5 is more than max_text 4"):
        Grammar(vocabulary, min_text=5, max_text=4)
