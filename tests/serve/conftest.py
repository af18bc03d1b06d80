"""One server over the tiny model for all tests that only ask it things."""

from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from tests.serve import live


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def server() -> Iterator[live.Live]:
    torch.set_num_threads(1)
    with live.running() as running:
        yield running
