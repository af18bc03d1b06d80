"""/v1/images and /v1/audio over HTTP: what is asked of the model, and the forms of what comes back."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from m27.codec import media
from m27.data.prompts import PROMPTS
from m27.serve import phrases
from tests import tiny
from tests.serve import live
from tests.serve.live import Live


def picture(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def test_pictures_from_words(server: Live) -> None:
    body = {"prompt": "a red apple", "n": 2, "size": "32x64", "seed": 3}
    answer = server.ask("POST", "/v1/images/generations", body)
    assert answer.status == 200, answer.body
    assert answer.json["size"] == "32x64"
    one, two = (picture(item["b64_json"]) for item in answer.json["data"])
    assert one.shape == two.shape == (64, 32, 3)
    assert not np.array_equal(one, two)
    assert answer.json["usage"]["output_tokens"] == 2 * (8 + 5)
    again = server.ask("POST", "/v1/images/generations", body)
    assert again.json["data"] == answer.json["data"]


def test_forms_of_a_picture(server: Live) -> None:
    body = {"prompt": "x", "response_format": "url", "output_format": "jpeg", "quality": "high"}
    (item,) = server.ask("POST", "/v1/images/generations", body).json["data"]
    assert item["url"].startswith("data:image/jpeg;base64,")
    assert picture(item["url"].partition(",")[2]).shape == (128, 128, 3)


@pytest.mark.parametrize(
    ("body", "param"),
    [({"size": "1024x1024"}, "size"), ({"size": "100x100"}, "size"), ({"size": "big"}, "size"),
     ({"n": 99}, "n"), ({"background": "transparent"}, "background"), ({"stream": True}, "stream"),
     ({"prompt": ""}, "prompt"), ({"promt": "x"}, "promt")],
)  # fmt: skip
def test_pictures_refused_by_name(server: Live, body: dict, param: str) -> None:
    answer = server.ask("POST", "/v1/images/generations", {"prompt": "x", **body})
    assert (answer.status, answer.error["param"]) == (400, param)


def test_a_picture_from_a_picture(server: Live) -> None:
    answer = server.form("/v1/images/edits", {"image": live.png()}, {"prompt": "make it blue", "n": "1"})
    assert answer.status == 200, answer.body
    assert picture(answer.json["data"][0]["b64_json"]).shape == (128, 128, 3)
    assert answer.json["usage"]["prompt_tokens"] > 68
    several = server.form("/v1/images/edits", {"image[]": live.png()}, {"prompt": "p"})
    assert several.status == 200
    masked = server.form("/v1/images/edits", {"image": live.png(), "mask": live.png()}, {"prompt": "p"})
    assert masked.error["param"] == "mask"
    assert server.form("/v1/images/edits", {}, {"prompt": "p"}).error["param"] == "image"
    broken = server.form("/v1/images/edits", {"image": b"GIF89a"}, {"prompt": "p"})
    assert broken.status == 400, broken.body


@pytest.mark.parametrize(
    ("path", "body"),
    [("speech", {"input": "hello", "voice": "alloy"}), ("sounds", {"prompt": "a dog"}),
     ("sounds", {"image": url(live.png())})],
)  # fmt: skip
def test_sounds_are_sent_as_they_are_made(server: Live, path: str, body: dict) -> None:
    body = {**body, "seed": 4, "temperature": 1}
    whole = server.ask("POST", f"/v1/audio/{path}", body)
    assert whole.status == 200, whole.body
    assert whole.headers["content-type"] == "audio/wav"
    assert whole.headers.get("transfer-encoding") == "chunked"
    samples = media.read_audio(whole.body)
    assert len(samples) and len(samples) % tiny.HOP == 0
    raw = server.ask("POST", f"/v1/audio/{path}", {**body, "response_format": "pcm"})
    assert raw.headers["content-type"] == "audio/pcm;rate=16000"
    assert raw.body == whole.body[44:]


def test_the_length_of_a_sound_is_bounded(server: Live) -> None:
    body = {"prompt": "x", "seconds": 0.1, "response_format": "pcm", "temperature": 1}
    for seed in range(4):
        answer = server.ask("POST", "/v1/audio/sounds", {**body, "seed": seed})
        assert 0 < len(answer.body) <= 2 * 1600


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [("speech", {"input": "x", "speed": 2}, "speed"), ("speech", {"input": ""}, "input"),
     ("speech", {"input": "x", "response_format": "mp3"}, "response_format"),
     ("speech", {"input": "x", "instructions": "whisper"}, "instructions"),
     ("sounds", {}, "prompt"), ("sounds", {"prompt": "x", "image": "y"}, "prompt"),
     ("sounds", {"image": "http://10.0.0.1/x.png"}, "image")],
)  # fmt: skip
def test_sounds_refused_by_name(server: Live, path: str, body: dict, param: str) -> None:
    answer = server.ask("POST", f"/v1/audio/{path}", body)
    assert (answer.status, answer.error["param"]) == (400, param)


def test_speech_to_text(server: Live) -> None:
    path = "/v1/audio/transcriptions"
    whole = server.form(path, {"file": live.wav()}, {"model": "tiny"})
    assert whole.status == 200, whole.body
    text = whole.json["text"]
    assert whole.json["usage"]["input_tokens"] > 20
    plain = server.form(path, {"file": live.wav()}, {"response_format": "text"})
    assert plain.headers["content-type"].startswith("text/plain") and plain.body.decode() == text + "\n"
    streamed = server.form(path, {"file": live.wav()}, {"stream": "true"}).body.decode()
    events = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: ")]
    assert events[-1] == {"type": "transcript.text.done", "text": text}
    assert "".join(e["delta"] for e in events[:-1]) == text


def test_transcriptions_refused_by_name(server: Live) -> None:
    path = "/v1/audio/transcriptions"
    assert server.form(path, {}, {"model": "tiny"}).error["param"] == "file"
    assert server.form(path, {"file": live.wav()}, {"response_format": "srt"}).error["param"] == "response_format"
    assert server.form(path, {"file": live.wav()}, {"prompt": "hint"}).error["param"] == "prompt"
    assert server.form(path, {"file": b"RIFF" + bytes(40)}).status == 400
    assert server.ask("POST", path, {"file": "x"}).status == 415
    assert server.ask("POST", path, b"x", {"Content-Type": "multipart/form-data"}).status == 400


def test_the_words_are_those_of_training() -> None:
    assert {task: PROMPTS[task][0] for task in phrases.ASKS} == phrases.ASKS
    assert phrases.draw("a red apple.") == "Draw a red apple."
    assert phrases.draw("Draw me a cat") == "Draw me a cat"
    assert phrases.draw(" ") == "Draw ."
