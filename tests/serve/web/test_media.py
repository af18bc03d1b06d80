"""Pictures and sounds in the playground, on their way in and out."""

import base64
import io
import itertools
import re
import wave

import pytest

from tests.serve.web.conftest import file, parts_of, picture
from tests.serve.web.fake_chat import PACKET, PACKETS, RATE

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
