"""A gate behind a loop of its own, so that tests can ask it in plain calls; and one server over the tiny
model for all tests that only ask it things."""

import asyncio
import base64
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from m27.serve.gate import Gate, GateLimits, MediaRefused

PATIENCE = 90.0  # seconds; the machine may be busy


class Door:
    """A gate, its loop, and calls that wait."""

    def __init__(self, limits: GateLimits, **options: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.gate = Gate(limits, **options)

    def begin(self, work: Coroutine[Any, Any, Any]) -> Any:
        """A future of what the loop will make of `work`."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def __call__(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.begin(work).result(PATIENCE)

    def picture(self, data: bytes | str, **options: Any) -> np.ndarray:
        """By its bytes, or by its address."""
        ask = self.gate.picture if isinstance(data, str) else self.gate.picture_bytes
        return self(ask(data, **options))

    def sound(self, data: bytes) -> np.ndarray:
        return self(self.gate.sound_bytes(data))

    def no(self, data: bytes | str, medium: str = "picture") -> MediaRefused:
        """The refusal of `data`, which must be one line that shows nothing of the process."""
        with pytest.raises(MediaRefused) as caught:
            getattr(self, medium)(data)
        plain(str(caught.value))
        return caught.value

    def workers(self) -> list[int]:
        return self.gate._pool.pids()

    def close(self) -> None:
        self(self.gate.aclose())
        self(self._end_tasks())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(PATIENCE)
        self.loop.close()

    async def _end_tasks(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


def plain(line: str) -> None:
    """What a client is told is one line, without paths, addresses of memory or names of libraries."""
    assert 0 < len(line) <= 300
    assert line.isprintable()
    for inside in ("0x", "/", "\\", "Traceback", ".py", "PIL", "libsnd", "soundfile", "numpy", "<_io"):
        assert inside not in line.replace("http(s)", "").replace("data:image/png;base64", ""), line


def data_url(data: bytes, claimed: str = "image/png") -> str:
    return f"data:{claimed};base64,{base64.b64encode(data).decode()}"


@contextmanager
def opened(limits: GateLimits, **options: Any) -> Iterator[Door]:
    door = Door(limits, **options)
    try:
        yield door
    finally:
        door.close()


@pytest.fixture(scope="session")
def door() -> Iterator[Door]:
    """A gate with every limit at its default."""
    with opened(GateLimits()) as door:
        door(door.gate.start())
        yield door


@pytest.fixture
def open_door() -> Iterator[Callable[..., Door]]:
    """Opens gates with limits of the test's own; they are closed after it."""
    with ExitStack() as stack:
        yield lambda limits=GateLimits(), **options: stack.enter_context(opened(limits, **options))  # noqa: B008


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A model this small only loses time to a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def server() -> Iterator[Any]:
    """A `live.Live`: a server over the tiny model, on a port of its own."""
    for name in ("fastapi", "uvicorn", "python_multipart"):
        pytest.importorskip(name)
    from tests.serve import live

    torch.set_num_threads(1)
    with live.running() as running:
        yield running
