"""A real Chromium with the page in it, and the stand-in server that it talks to.

Chromium is Debian's (`apt-get install -y chromium`), or the one that M27_CHROMIUM names; without it
the tests that need it are skipped. Whatever the page writes to the console as an error, throws, or
does against its policy, fails the test that saw it. Screenshots go to out/web.
"""

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.serve.web.fake_chat import FakeChat

ROOT = Path(__file__).resolve().parents[3]
SHOTS = ROOT / "out" / "web"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # A microphone that beeps, and a person who lets the page use it.
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
# Runs before the page's own scripts: notes every packet that is put into the future of the sound.
# `held` puts them so far into it that nothing ends by itself, however slow the machine.
WATCH = """
const clock = Object.getOwnPropertyDescriptor(BaseAudioContext.prototype, "currentTime");
Object.defineProperty(BaseAudioContext.prototype, "currentTime", {
  get() { return window.held ? 0 : clock.get.call(this); },
});
addEventListener("securitypolicyviolation", (e) => {
  console.error(`policy: ${e.violatedDirective} ${e.blockedURI}`);
});
window.scheduled = [];
const start = AudioBufferSourceNode.prototype.start;
AudioBufferSourceNode.prototype.start = function (when) {
  window.scheduled.push([when ?? 0, this.buffer.length, this.buffer.sampleRate]);
  return start.call(this, (when ?? 0) + (window.held ? 1e6 : 0));
};
"""


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser, started once; every page has storage of its own."""
    program = os.environ.get("M27_CHROMIUM") or shutil.which("chromium")
    if not program:
        pytest.skip("no chromium: `apt-get install -y chromium`, or name one in M27_CHROMIUM")
    reason = "no playwright: `pip install -e '.[dev]'`"
    api = pytest.importorskip("playwright.sync_api", reason=reason)
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=FLAGS, timeout=120_000
        )
        yield browser
        browser.close()


@pytest.fixture
def server() -> Iterator[FakeChat]:
    """A stand-in server; a stream that waits is let go at the end."""
    server = FakeChat()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()


def file(name: str, data: bytes, kind: str = "application/octet-stream") -> dict[str, Any]:
    """A file to be chosen."""
    return {"name": name, "mimeType": kind, "buffer": data}


def picture(color: str = "#2040c0", form: str = "PNG") -> bytes:
    """A picture of 40×30 in one color, as a file's bytes."""
    out = io.BytesIO()
    Image.new("RGB", (40, 30), color).save(out, form)
    return out.getvalue()


def parts_of(body: dict[str, Any], number: int = -1) -> list[dict[str, Any]]:
    """The parts of a message of a request, the last by default."""
    content = body["messages"][number]["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class Playground:
    """The page, with what a person does to it. `faults`: what went wrong that a test did not allow."""

    def __init__(self, page: Any, server: FakeChat) -> None:
        self.page, self.server = page, server
        self.faults: list[str] = []
        self.allowed: tuple[str, ...] = ()
        page.set_default_timeout(60_000)  # only a bound: machines are busy at times
        page.on("pageerror", lambda error: self.faults.append(f"threw: {error}"))
        page.on("console", lambda message: self.heard(message))
        page.add_init_script(WATCH)

    def heard(self, message: Any) -> None:
        allowed = any(words in message.text for words in self.allowed)
        if message.type in {"error", "warning"} and not allowed:
            self.faults.append(f"{message.type}: {message.text}")

    def open(self) -> None:
        """Load the page, or load it again, and wait until it can be used."""
        self.page.goto(self.server.url)
        self.page.wait_for_selector("body[data-ready]")

    @property
    def field(self) -> Any:
        return self.page.locator("#message")

    @property
    def answers(self) -> Any:
        return self.page.locator("article.answer")

    def send(self, words: str) -> None:
        self.field.fill(words)
        self.field.press("Enter")

    def ask(self, words: str) -> Any:
        """Send, wait until the answer has ended, and return it."""
        self.send(words)
        return self.ended()

    def ended(self) -> Any:
        last = self.answers.last
        last.locator(".figures").wait_for()
        return last

    def give(self, *files: Any) -> None:
        """Choose files as a person does; each is a path or {"name", "mimeType", "buffer"}."""
        self.page.locator("#composer input[type=file]").set_input_files(list(files))

    def until(self, expression: str) -> None:
        """Wait until the expression is true. (Playwright's own way is `eval`, against the policy.)"""
        for _ in range(2000):
            if self.page.evaluate(expression):
                return
            self.page.wait_for_timeout(20)
        raise AssertionError(f"never became true: {expression}")

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name, exact=True)

    def shot(self, name: str) -> None:
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SHOTS / f"{name}.png")


@pytest.fixture
def open_playground(chromium: Any, server: FakeChat) -> Iterator[Any]:
    """A function that opens the page in a window of its own; options as of `new_context`."""
    opened: list[tuple[Any, Playground]] = []

    def open_it(**options: Any) -> Playground:
        given = {"viewport": {"width": 1280, "height": 860}, "color_scheme": "light", **options}
        context = chromium.new_context(accept_downloads=True, **given)
        playground = Playground(context.new_page(), server)
        opened.append((context, playground))
        playground.open()
        return playground

    yield open_it
    for context, _ in opened:
        context.close()
    assert [fault for _, playground in opened for fault in playground.faults] == []


@pytest.fixture
def playground(open_playground: Any) -> Playground:
    """The page in a window of a desktop's size, in light."""
    return open_playground()
