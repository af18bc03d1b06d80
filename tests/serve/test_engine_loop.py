"""The turns of an engine: what is taken on between two steps, and what is let go of before one."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from m27.infer.request import Event, Request, RequestError
from m27.serve import engine_loop
from m27.serve.engine_loop import Command, Counts, EngineLoop
from m27.serve.errors import ApiError
from tests.serve.stands import Stand


class Script:
    """A port that asks what is written down, and notes what it is told."""

    def __init__(self, *commands: Command[int]) -> None:
        self.commands = deque(commands)
        self.answers: dict[int, ApiError | None] = {}
        self.told: list[tuple[int, Event]] = []

    def get(self, seconds: float) -> Command[int] | None:
        return self.commands.popleft() if self.commands else None

    def answer(self, key: int, error: ApiError | None) -> None:
        self.answers[key] = error

    def turn(self, told: Sequence[tuple[int, Event]], counts: Counts | None) -> None:
        self.told += told
        if counts is not None and not counts["running"]:
            self.commands.append(Command())


def ask(key: int, text: str = "word", tokens: int = 1) -> Command[int]:
    return Command(key, Request([{"role": "user", "content": text}], max_tokens=tokens))


def test_requests_that_take_long_do_not_hold_up_those_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step comes after so much work at most; who leaves meanwhile is let go of before it."""
    now = [0.0]
    monkeypatch.setattr(engine_loop, "time", SimpleNamespace(monotonic=lambda: now[0]))

    class Slow(Stand):
        def add(self, request: Request, live: bool = True) -> int:
            now[0] += engine_loop._TAKING / 1.5
            return super().add(request, live)

    engine, port = Slow(), Script(*map(ask, range(6)), Command(0), Command(5))
    loop: EngineLoop[int] = EngineLoop(engine, port)
    assert loop._commands(0)
    assert list(port.answers) == [0, 1] and list(engine.open) == [2] and engine.cancelled == 1
    assert loop._commands(0)
    assert list(port.answers) == [0, 1, 2, 3]
    loop.run()
    assert list(port.answers) == [0, 1, 2, 3, 4]  # the sixth never
    assert [key for key, event in port.told if event["type"] == "done"] == [1, 2, 3, 4]


def test_what_cannot_be_prepared_is_refused() -> None:
    def refuse(request: Request) -> None:
        raise RequestError("not so")

    port = Script(ask(1), ask(2))
    EngineLoop(Stand(), port, prepare=refuse).run()
    assert {key: error and error.status for key, error in port.answers.items()} == {1: 400, 2: 400}


def test_events_go_to_who_asked_and_end_with_the_last_answer() -> None:
    port = Script(ask(7, tokens=2), ask(9, "other"), Command(8))
    EngineLoop(Stand(), port).run()
    mine = [event.get("text") for key, event in port.told if key == 7]
    assert mine == ["word ", "word ", None]
    assert [event["type"] for key, event in port.told if key == 9] == ["text", "done"]
