"""What a person does in the playground, in a real browser, against the stand-in server.

The everyday tests are the ways through the page that everything else goes; with `-m slow` the rest.
"""

import re

import pytest

from tests.serve.web.conftest import file, parts_of, picture
from tests.serve.web.fake_chat import KEY

# ---- text ----


def test_words_are_sent_and_the_answer_streams_in(playground):
    answer = playground.ask("Hello <b>there</b>")
    (body,) = playground.server.requests
    assert body["messages"] == [{"role": "user", "content": "Hello <b>there</b>"}]
    assert body["model"] == "m27-fake" and body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert body["modalities"] == ["text", "image", "audio"]
    assert set(body) == {"model", "messages", "stream", "stream_options", "seed", "modalities"}
    # What looks like HTML is text, in the question and in the answer.
    assert answer.locator("p").first.inner_text() == f"You said: Hello <b>there</b> (seed {body['seed']})"
    assert playground.page.locator("article.question b").count() == 0
    figures = answer.locator(".figures").inner_text()
    assert re.search(r"\d+ tokens/s", figures) and "120 tokens" in figures
    assert re.search(r"first token\s+\d+\.\d\d s", figures) and str(body["seed"]) in figures
    assert playground.page.title() == "Hello <b>there</b> – m27"
    assert playground.field.evaluate("node => node === document.activeElement")


@pytest.mark.slow
def test_history_is_sent_with_each_question(playground):
    playground.ask("Draw an apple")
    playground.ask("Thank you")
    roles = [message["role"] for message in playground.server.requests[1]["messages"]]
    assert roles == ["user", "assistant", "user"]
    said = playground.server.requests[1]["messages"][1]["content"]
    assert [part["type"] for part in said] == ["text", "image_url", "text"]
    assert said[1]["image_url"]["url"].startswith("data:image/png;base64,")
    assert said[0] == {"type": "text", "text": "Here it is. "}


@pytest.mark.slow
def test_markdown_is_shown_and_html_is_not(playground):
    answer = playground.ask("**bold** <img src=x onerror=alert(1)> `code` [a](http://example.com)")
    assert answer.locator("strong").inner_text() == "bold"
    assert answer.locator("code").inner_text() == "code"
    assert answer.locator("img, a").count() == 0


@pytest.mark.slow
def test_a_screen_reader_hears_sentences(playground):
    playground.ask("One. Two")
    playground.until(
        "document.getElementById('live').textContent.includes('End of the answer.')"
    )


# ---- stop, again, edit ----


def test_stop_ends_the_stream_and_what_is_unfinished_is_not_sent_again(playground):
    playground.send("Draw an apple, and hold")
    playground.page.get_by_label("Drawing the picture").wait_for()
    playground.button("Stop the answer").click()
    answer = playground.ended()
    assert playground.server.left.wait(5), "the server was not told"
    assert "Stopped at 16 of 64" in answer.inner_text()
    assert playground.button("Stop the answer").is_hidden() and playground.button("Send").is_visible()
    playground.ask("Go on")
    assert playground.server.requests[1]["messages"][1] == {
        "role": "assistant",
        "content": "Here it is. ",
    }


@pytest.mark.slow
def test_escape_stops(playground):
    playground.send("hold that")
    playground.answers.last.get_by_text("You said:").wait_for()
    playground.page.keyboard.press("Escape")
    assert "Stopped" in playground.ended().inner_text()


@pytest.mark.slow
def test_another_try_has_another_seed_and_the_first_is_kept(playground):
    first = playground.ask("Hello").locator("p").first.inner_text()
    playground.button("Try again with another seed").click()
    playground.page.get_by_text("2 of 2").wait_for()
    one, two = playground.server.requests
    assert one["messages"] == two["messages"] and one["seed"] != two["seed"]
    assert f"(seed {two['seed']})" in playground.answers.last.inner_text()
    playground.button("Earlier try").click()
    assert playground.answers.last.locator("p").first.inner_text() == first
    # The conversation goes on from the one that is shown.
    playground.ask("Go on")
    assert playground.server.requests[2]["messages"][1]["content"] == first


@pytest.mark.slow
def test_a_past_message_is_edited_and_sent_again(playground):
    playground.give(file("blue.png", picture()))
    playground.ask("What is this?")
    playground.ask("Thank you")
    playground.button("Edit and send again").first.click()
    edited = playground.page.get_by_label("Your message, to be sent again")
    assert edited.input_value() == "What is this?"
    assert edited.evaluate("node => node === document.activeElement")
    playground.shot("edit")
    edited.fill("Which color is it?")
    playground.button("Send again").click()
    playground.until("document.querySelectorAll('article').length === 2")
    playground.ended()
    body = playground.server.requests[2]
    assert len(body["messages"]) == 1
    picture_part, words = parts_of(body)
    assert picture_part == parts_of(playground.server.requests[0])[0]
    assert words["text"] == "Which color is it?"


@pytest.mark.slow
def test_an_edit_can_be_left(playground):
    playground.ask("Hello")
    playground.button("Edit and send again").click()
    playground.page.keyboard.press("Escape")
    assert playground.page.locator("article").count() == 2
    assert playground.button("Edit and send again").evaluate("n => n === document.activeElement")


# ---- settings, examples, errors ----


@pytest.mark.slow
def test_settings_are_sent_and_kept_but_the_key_only_for_the_tab(playground):
    playground.allowed = ("401",)
    answer = playground.page.locator("article.answer").last
    playground.send("secret")
    answer.get_by_text("The server asks for a key.").wait_for()
    playground.button("Open settings").click()
    key = playground.page.get_by_label("Key for the server")
    assert key.evaluate("node => node === document.activeElement")
    key.fill(KEY)
    fields = {"Temperature": "0.5", "Guidance": "3", "Seed": "7", "Tokens at most": "64"}
    for label, value in fields.items():
        playground.page.get_by_label(label, exact=True).fill(value)
    playground.page.get_by_label("Sounds", exact=True).first.uncheck()
    playground.page.keyboard.press("Escape")
    answer = playground.ask("secret again")
    body = playground.server.requests[-1]
    wanted = {"temperature": 0.5, "guidance": 3, "seed": 7, "max_completion_tokens": 64}
    assert {name: body[name] for name in wanted} == wanted
    assert body["modalities"] == ["text", "image"]
    # The refused turn holds no answer and is not sent again.
    assert len(body["messages"]) == 1
    kept = playground.page.evaluate("[JSON.stringify(localStorage), JSON.stringify(sessionStorage)]")
    assert KEY not in kept[0] and KEY in kept[1]
    playground.open()
    playground.button("Settings").click()
    assert playground.page.get_by_label("Seed", exact=True).input_value() == "7"


@pytest.mark.slow
def test_what_an_answer_may_hold_is_chosen_beside_the_message(playground):
    for name in ("Text", "Sounds", "Pictures"):  # the last one stays: an answer holds something
        playground.button(name).click()
    assert playground.button("Pictures").get_attribute("aria-pressed") == "true"
    playground.ask("Draw it")
    assert playground.server.requests[0]["modalities"] == ["image"]
    assert playground.page.get_by_text("Answer in pictures").is_visible()


EXAMPLES = {
    "Describe a picture": (["image_url", "text"], ["text"]),
    "Ask about a picture": (["image_url", "text"], ["text"]),
    "Draw": (["text"], ["image"]),
    "A story with pictures": (["text"], ["text", "image"]),
    "Write down speech": (["input_audio", "text"], ["text"]),
    "Name a sound": (["input_audio", "text"], ["text"]),
    "Say something": (["text"], ["audio"]),
    "A sound for a picture": (["image_url", "text"], ["audio"]),
}


@pytest.mark.slow
def test_every_capability_has_an_example(playground):
    titles = playground.page.locator(".example strong").all_inner_texts()
    assert titles == list(EXAMPLES)
    for number, (title, (types, modalities)) in enumerate(EXAMPLES.items()):
        playground.page.locator(".example", has=playground.page.get_by_text(title, exact=True)).click()
        playground.ended()
        body = playground.server.requests[number]
        assert [part["type"] for part in parts_of(body)] == types, title
        assert body["modalities"] == modalities, title
        playground.button("New conversation").click()


@pytest.mark.slow
def test_a_busy_server_and_a_broken_answer_are_told_in_a_line(playground):
    playground.allowed = ("429",)
    playground.send("busy?")
    playground.page.get_by_text("The server is busy. Try again in 7 s.").wait_for()
    playground.send("break it")
    playground.page.get_by_text("the engine broke off").wait_for()
    assert playground.answers.last.get_by_text("You said:").is_visible()
    playground.shot("faults")
    assert playground.button("Try again").count() == 1  # of the last answer alone


@pytest.mark.slow
def test_a_server_that_is_gone_is_told_in_a_line(playground):
    playground.allowed = ("ERR_CONNECTION_REFUSED",)
    playground.server.shutdown()
    playground.server.server_close()
    playground.send("Hello?")
    playground.page.get_by_text("The server cannot be reached. Is it still running?").wait_for()
