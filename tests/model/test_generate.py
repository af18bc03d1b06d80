"""The naive generate against a generate with no cache at all, under guidance and constraints."""

from collections.abc import Sequence

import pytest
import torch

from m27.model.generate import generate

PROMPT, NOTHING = [3, 1, 4, 1, 5], [9, 2]


def greedy(logits: torch.Tensor, ids: list[int]) -> int:
    assert logits.dtype == torch.float32
    return int(logits.argmax())


class Pictures:
    """Two of text, then 90, four codes of 50..59 and 91, until three such spans are closed."""

    def __init__(self) -> None:
        self.step, self.asked = 0, 0

    def allowed(self) -> Sequence[tuple[int, int]]:
        self.asked += 1
        at = self.step % 8
        if at in (2, 7):
            return [(90 + (at == 7), 91 + (at == 7))]
        return [(0, 40), (45, 50)] if at < 2 else [(50, 60)]

    def advance(self, id: int) -> None:
        assert any(a <= id < b for a, b in self.allowed())
        self.step += 1

    def done(self) -> bool:
        return self.step == 24

    def medium(self) -> str:
        return "image" if self.step % 8 >= 3 else "text"


@torch.no_grad()
def whole(model, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids]))[0, -1]


def test_equals_decoding_without_a_cache(model):
    want = list(PROMPT)
    for _ in range(12):
        want.append(int(whole(model, want).argmax()))
    assert list(generate(model, PROMPT, choose=greedy, max_tokens=12)) == want[len(PROMPT) :]


@pytest.mark.parametrize("guidance", [1.0, 3.0, {"image": 3.0, "audio": 1.0}])
def test_constraint_and_guidance_equal_their_definition(tiny, guidance):
    grammar, want, span = Pictures(), list(PROMPT), 0
    seen = []
    while not grammar.done():
        logits = whole(tiny, want)
        if grammar.medium() == "image":
            if grammar.step % 8 == 3:
                span = len(want) - 1
            without = whole(tiny, NOTHING + want[span:])
            factor = guidance["image"] if isinstance(guidance, dict) else guidance
            logits = without + factor * (logits - without)
        allowed = [i for a, b in grammar.allowed() for i in range(a, b)]
        seen.append(logits[allowed])
        want.append(max(allowed, key=lambda i: float(logits[i])))
        grammar.advance(want[-1])

    def choose(logits: torch.Tensor, ids: list[int]) -> int:
        finite = logits[logits > -torch.inf]
        torch.testing.assert_close(finite, seen[len(ids) - len(PROMPT)], rtol=0, atol=1e-4)
        return int(logits.argmax())

    found = generate(
        tiny, PROMPT, choose=choose, constraint=Pictures(), unconditional=NOTHING, guidance=guidance
    )
    assert list(found) == want[len(PROMPT) :]
    assert len(want) == len(PROMPT) + 24


def test_guidance_changes_pictures_and_not_text(tiny):
    plain, guided = (
        list(generate(tiny, PROMPT, choose=greedy, constraint=Pictures(), unconditional=NOTHING,
                      guidance=g))
        for g in (1.0, 8.0)
    )  # fmt: skip
    assert plain[:3] == guided[:3]
    assert plain[3:7] != guided[3:7]


def test_ends_after_a_stop_id_or_the_limit(tiny):
    free = list(generate(tiny, PROMPT, choose=greedy, max_tokens=8))
    assert len(free) == 8
    stop = free[3]
    stopped = list(generate(tiny, PROMPT, choose=greedy, max_tokens=8, stop_ids={stop}))
    assert stopped == free[: free.index(stop) + 1]
    assert list(generate(tiny, PROMPT, choose=greedy, max_tokens=0)) == []


def test_the_caller_sees_ids_as_they_come(tiny):
    lengths = []

    def choose(logits: torch.Tensor, ids: list[int]) -> int:
        lengths.append(len(ids))
        return 7

    stream = generate(tiny, PROMPT, choose=choose, max_tokens=3)
    assert next(stream) == 7
    assert lengths == [5]
    assert list(stream) == [7, 7]
    assert lengths == [5, 6, 7]


def test_bad_input_is_refused(tiny):
    with pytest.raises(ValueError, match="the prompt is empty"):
        next(generate(tiny, [], choose=greedy))
    with pytest.raises(ValueError, match="id 96 was chosen"):
        next(generate(tiny, PROMPT, choose=lambda *_: 96, constraint=Pictures()))
