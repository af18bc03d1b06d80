"""What the playground keeps of conversations, and what can be taken away from it."""

import json
import re
from pathlib import Path

import pytest

from tests.serve.web.conftest import file, picture


def test_a_reload_keeps_the_conversation(playground):
    playground.give(file("blue.png", picture()))
    playground.ask("What is this?")
    playground.ask("Draw an apple")
    before = playground.page.locator("#messages").inner_text()
    playground.open()
    assert playground.page.locator("#messages").inner_text() == before
    assert playground.page.locator("#messages img").count() == 2
    playground.ask("And now?")
    assert len(playground.server.requests[-1]["messages"]) == 5


@pytest.mark.slow
def test_a_reload_in_the_middle_keeps_what_had_come(playground):
    playground.send("Draw an apple, and hold")
    playground.page.get_by_label("Drawing the picture").wait_for()
    playground.page.wait_for_timeout(100)
    playground.open()
    assert playground.page.get_by_text("Draw an apple, and hold").first.is_visible()
    assert "Stopped" in playground.ended().inner_text()


@pytest.mark.slow
def test_conversations_are_begun_opened_and_deleted(playground):
    playground.ask("The first")
    playground.button("New conversation").click()
    playground.ask("A title that is longer than the list is wide, and then some")
    (left, width) = playground.page.locator("#sidebar").evaluate("n => [n.offsetLeft, n.offsetWidth]")
    for remove in playground.page.locator("#chats .round").all():
        box = remove.bounding_box()
        assert box["x"] + box["width"] <= left + width
    playground.page.locator("#chats .round").first.click()
    playground.button("Delete").click()
    playground.until("document.querySelectorAll('#chats li').length === 1")
    assert playground.page.locator("#welcome").is_visible()
    playground.ask("The second")
    assert playground.page.locator("#chats .chat").all_inner_texts() == ["The second", "The first"]
    playground.button("The first").click()
    playground.answers.get_by_text("You said: The first").wait_for()
    playground.page.locator("#chats li", has_text="The first").hover()
    playground.button("Delete “The first”").click()
    playground.button("Delete").click()
    playground.until("document.querySelectorAll('#chats li').length === 1")
    playground.until("document.activeElement.id === 'new-chat'")
    assert playground.page.locator("#welcome").is_visible()
    playground.open()
    assert playground.page.locator("#chats .chat").all_inner_texts() == ["The second"]


def saved(playground, name):
    with playground.page.expect_download() as download:
        playground.button(name).click()
    return download.value


def test_export_as_json(playground):
    playground.ask("Draw an apple")
    playground.button("Try again with another seed").click()
    playground.page.get_by_text("2 of 2").wait_for()
    download = saved(playground, "JSON")
    assert download.suggested_filename == "m27-draw-an-apple.json"
    kept = json.loads(Path(download.path()).read_text(encoding="utf-8"))
    assert (kept["format"], kept["version"], kept["model"]) == ("m27.conversation", 1, "m27-fake")
    assert [part["type"] for part in kept["messages"][1]["content"]] == ["text", "image_url", "text"]
    first, second = kept["turns"][1]["tries"]
    assert [first["seed"], second["seed"]] == [body["seed"] for body in playground.server.requests]
    assert len(first["parts"]) == 3 and "parts" not in second and second["state"] == "done"
    # Sent as they are, they are a request that a server takes.
    playground.ask("Go on")
    assert playground.server.requests[-1]["messages"][:2] == kept["messages"]


@pytest.mark.slow
def test_export_as_a_page_that_needs_nothing(playground, open_playground):
    playground.ask("Tell a story about <script>alert(1)</script>")
    download = saved(playground, "Web page")
    assert download.suggested_filename == "m27-tell-a-story-about-script-alert-1-script.html"
    text = Path(download.path()).read_text(encoding="utf-8")
    assert "<script" not in text and not re.search(r'(src|href)="(?!data:)', text)
    other = playground.page.context.new_page()
    playground.page.context.set_offline(True)
    faults = []
    other.on("console", lambda message: faults.append(message.text))
    other.set_content(text)
    assert other.locator("h1").inner_text() == "Tell a story about <script>alert(1)</script>"
    shown = other.locator("img").evaluate_all("all => all.map((i) => [i.complete, i.naturalWidth])")
    assert shown == [[True, 128]] * 2
    assert other.locator("audio").count() == 1 and faults == []
    other.screenshot(path=Path(download.path()).parent / "page.png")
