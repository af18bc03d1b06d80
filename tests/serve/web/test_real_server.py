"""The page and the server as they are: the shipped weights, a real Chromium, the policy in force.

What each does on its own is tested elsewhere; here it is that they understand each other.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from m27.infer.engine import Engine
from m27.serve.app import WEB
from m27.serve.auth import load_keys
from m27.serve.settings import Settings
from tests.serve import live
from tests.serve.live import Live
from tests.serve.web.conftest import file, picture

ROOT = Path(__file__).parents[3]
KEY = "sk-0123456789abcdef"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    """In place of the stand-in server: the real one."""
    engine = Engine.load(ROOT / "weights" / "m27-nano")
    with live.running(engine, Settings(name="m27-nano"), web=WEB) as running:
        yield running


def test_words_pictures_and_sounds_both_ways(playground):
    answer = playground.ask("What is the capital of France?")
    assert "Paris" in answer.inner_text()
    playground.page.locator("#new-chat").click()  # a small model goes on as a conversation began
    drawn = playground.ask("Draw a red apple.")
    size = drawn.locator("img").first.evaluate("img => [img.naturalWidth, img.naturalHeight]")
    assert size == [128, 128]
    told = playground.ask("What is this?")  # the picture that it drew goes back with the question
    assert told.inner_text().strip()
    playground.give(file("blue.png", picture()))
    playground.page.get_by_alt_text("Picture 1 to send").wait_for()
    assert playground.ask("What color is the picture?").inner_text().strip()
    playground.page.locator("#new-chat").click()
    heard = playground.ask("Say: the bird is yellow")
    assert heard.locator("audio").count() >= 1
    playground.shot("real-server")


def test_a_refused_picture_is_told(playground):
    playground.allowed = ("status of 400",)
    playground.give(file("broken.png", picture()[:60], "image/png"))
    playground.page.wait_for_timeout(500)
    playground.send("What is this?")
    playground.page.locator("[role=alert], .error").first.wait_for()
    assert playground.server.ask("GET", "/health").status == 200


def test_a_server_that_asks_for_a_key(open_playground, chromium, tmp_path):
    keys = load_keys(Settings(), None, KEY)
    with live.running(keys=keys, settings=Settings(name="tiny", drain_seconds=1), web=WEB) as locked:
        page = chromium.new_context().new_page()
        page.goto(locked.url)
        page.wait_for_selector("body[data-ready]")
        assert page.locator("#model").inner_text() == "A key is needed"
        said = page.evaluate(
            "key => fetch('v1/models', {headers: {Authorization: `Bearer ${key}`}}).then(r => r.text())", KEY
        )
        assert json.loads(said)["data"][0]["id"] == "tiny"
        page.context.close()
