"""What a person does in the playground, in a real browser, against the stand-in server.

The everyday tests are the ways through the page that everything else goes; with `-m slow` the rest.
"""

import base64
import io
import itertools
import json
import re
import wave
from pathlib import Path

import pytest
from PIL import Image

from tests.serve.web.fake_chat import KEY, PACKET, PACKETS, RATE


def file(name, data, kind="application/octet-stream"):
    return {"name": name, "mimeType": kind, "buffer": data}


def picture(color="#2040c0", form="PNG"):
    out = io.BytesIO()
    Image.new("RGB", (40, 30), color).save(out, form)
    return out.getvalue()


def parts_of(body, number=-1):
    content = body["messages"][number]["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


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


# ---- pictures and sounds in ----


def test_a_picture_is_given_and_answered(playground):
    playground.give(file("blue.png", picture()))
    playground.page.get_by_alt_text("Picture 1 to send").wait_for()
    answer = playground.ask("What is this?")
    first, second = parts_of(playground.server.requests[0])
    assert first["image_url"]["url"] == f"data:image/png;base64,{base64.b64encode(picture()).decode()}"
    assert second == {"type": "text", "text": "What is this?"}
    assert "a picture of 40×30, rgb(32, 64, 192)" in answer.inner_text()
    assert playground.page.get_by_alt_text("Picture you gave").count() == 1


@pytest.mark.slow
@pytest.mark.parametrize("event", ["drop", "paste"])
def test_a_picture_is_dropped_or_pasted(playground, event):
    target = "#message" if event == "paste" else "body"
    playground.page.evaluate(
        """([event, target, base64]) => {
          const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
          const data = new DataTransfer();
          data.items.add(new File([bytes], "red.webp", { type: "image/webp" }));
          const given = { bubbles: true, cancelable: true };
          const made = event === "drop"
            ? new DragEvent("drop", { ...given, dataTransfer: data })
            : new ClipboardEvent("paste", { ...given, clipboardData: data });
          document.querySelector(target).dispatchEvent(made);
        }""",
        [event, target, base64.b64encode(picture("#ff0000", "BMP")).decode()],
    )
    playground.page.get_by_alt_text("Picture 1 to send").wait_for()
    playground.ask("And this?")
    # The bytes say what it is, whatever the name says.
    (first, _) = parts_of(playground.server.requests[0])
    assert first["image_url"]["url"].startswith("data:image/bmp;base64,")


@pytest.mark.slow
def test_added_media_can_be_taken_back(playground):
    playground.give(file("a.png", picture()), file("b.png", picture("#00ff00")))
    playground.button("Remove picture 1").click()
    playground.ask("Which is left?")
    first, _ = parts_of(playground.server.requests[0])
    assert base64.b64encode(picture("#00ff00")).decode() in first["image_url"]["url"]


@pytest.mark.slow
def test_a_recording_is_sent_as_wav_of_one_channel_at_16_khz(playground):
    playground.button("Record a sound").click()
    playground.until(
        "parseFloat(document.querySelector('.recording .count').textContent) >= 0.5"
    )
    playground.shot("recording")
    playground.button("Stop and add").click()
    playground.page.get_by_label("Sound 1 to send").wait_for()
    answer = playground.ask("What do you hear?")
    assert re.search(r"\d\.\d s of sound, 1 channel at 16000", answer.inner_text())
    sound = parts_of(playground.server.requests[0])[0]["input_audio"]
    assert sound["format"] == "wav"
    with wave.open(io.BytesIO(base64.b64decode(sound["data"]))) as heard:
        assert heard.getsampwidth() == 2 and heard.getnframes() > 0.4 * RATE
        assert max(heard.readframes(heard.getnframes())) > 0


def test_files_of_other_kinds_or_too_large_are_refused_in_a_line_each(playground, tmp_path):
    contents = {
        "notes.txt": b"these are words",
        "clip.mp4": b"\0\0\0\x18ftypmp42",
        "huge.png": picture() + bytes(10_000_001),
        "fine.png": picture(),
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    playground.give(*(tmp_path / name for name in contents))
    notice = playground.page.get_by_role("alert")
    notice.wait_for()
    lines = notice.inner_text().splitlines()
    assert len(lines) == 3
    kinds = "PNG, JPEG, WebP, GIF, BMP, WAV, FLAC, OGG and MP3"
    assert lines[0] == f"notes.txt was not added: it is none of {kinds}."
    assert lines[1].startswith("clip.mp4 was not added")
    assert lines[2] == "huge.png was not added: it has 10.0 MB, and 10 MB is the most."
    assert playground.page.get_by_alt_text("Picture 1 to send").count() == 1
    playground.shot("refused")
    assert playground.server.requests == []


# ---- pictures and sounds out ----


def test_a_picture_fills_in(playground):
    playground.send("Draw an apple, and hold")
    bar = playground.page.get_by_label("Drawing the picture")
    bar.wait_for()
    img = playground.answers.last.locator("img")
    img.wait_for()
    assert bar.evaluate("bar => [bar.value, bar.max]") == [16, 64]
    assert img.get_attribute("src").startswith("data:image/jpeg;base64,")
    assert img.get_attribute("alt") == "Picture, not finished"
    assert "Drawing, 16 of 64" in playground.answers.last.inner_text()
    playground.shot("drawing")
    playground.server.release.set()
    answer = playground.ended()
    assert img.get_attribute("src").startswith("data:image/png;base64,")
    assert bar.is_hidden() and img.get_attribute("alt") == "Picture drawn by the model"
    assert answer.locator("a[download]").get_attribute("download") == "m27-picture.png"
    answer.get_by_text("first picture").wait_for()
    order = answer.locator(".parts > *").evaluate_all("nodes => nodes.map((n) => n.tagName)")
    assert order == ["DIV", "FIGURE", "DIV"]


def test_a_sound_plays_as_it_comes_without_gaps(playground):
    playground.page.evaluate("held = true")
    answer = playground.ask("Say it")
    answer.get_by_text("Playing, 1.0 s").wait_for()
    playground.shot("playing")
    scheduled = playground.page.evaluate("scheduled")
    assert [(n, rate) for _, n, rate in scheduled] == [(PACKET, RATE)] * PACKETS
    starts = [when for when, _, _ in scheduled]
    steps = [b - a for a, b in itertools.pairwise(starts)]
    assert steps == pytest.approx([PACKET / RATE] * (PACKETS - 1), abs=1e-6)
    audio = answer.locator("audio")
    assert audio.is_hidden()
    playground.until("document.querySelector('.answer audio').readyState >= 1")
    assert audio.evaluate("node => node.duration") == pytest.approx(1.0, abs=0.01)
    assert "first sound" in answer.locator(".figures").inner_text()
    playground.button("Silence").click()
    playground.button("Silence").wait_for(state="hidden")
    assert audio.is_visible()


@pytest.mark.slow
def test_a_sound_is_not_played_where_a_person_wants_quiet(playground):
    playground.button("Settings").click()
    playground.page.get_by_label("Play sounds as they come").uncheck()
    playground.button("Done").click()
    playground.ask("Say it")
    assert playground.page.evaluate("scheduled") == []
    assert playground.answers.last.locator("audio").is_visible()


@pytest.mark.slow
def test_parts_come_in_the_order_they_were_made(playground):
    answer = playground.ask("Tell a story")
    kinds = answer.locator(".parts > *").evaluate_all("nodes => nodes.map((n) => n.className)")
    assert [kind.split()[0] for kind in kinds] == ["words", "picture", "words", "picture", "sound"]
    playground.until("!document.querySelector('.coming')")
    playground.shot("story")


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


# ---- what is kept, and what is taken away ----


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
