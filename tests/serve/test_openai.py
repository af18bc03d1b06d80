"""The official `openai` client: on the tiny model that everything can be asked, on the shipped weights
that what comes back is right."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from m27.codec import media
from m27.infer.engine import Engine
from m27.serve.settings import Settings
from tests.serve import live
from tests.serve.live import Live

openai = pytest.importorskip("openai")
ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "examples" / "samples"
USER: dict[str, Any] = {"role": "user"}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


class City(BaseModel):
    """What structured output is to be."""

    name: str
    country: str


def client_of(server: Live) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=300)


@pytest.fixture(scope="module")
def client(server: Live) -> Iterator[Any]:
    with client_of(server) as client:
        yield client


def file_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def seen(path: Path, text: str) -> list[Any]:
    parts = [{"type": "image_url", "image_url": {"url": file_url(path)}}, {"type": "text", "text": text}]
    return [USER | {"content": parts}]


def heard(path: Path, text: str) -> list[Any]:
    data = base64.b64encode(path.read_bytes()).decode()
    sound = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    return [USER | {"content": [sound, {"type": "text", "text": text}]}]


def test_chat(client: Any) -> None:
    messages = [USER | {"content": "hello"}]
    whole = client.chat.completions.create(
        model="tiny", messages=messages, modalities=["text"], max_completion_tokens=9, seed=1,
        logprobs=True, top_logprobs=3,
    )  # fmt: skip
    assert isinstance(whole.choices[0].message.content, str)
    assert whole.choices[0].logprobs.content[0].top_logprobs is not None
    assert whole.usage.prompt_tokens_details.cached_tokens >= 0
    stream = client.chat.completions.create(
        model="tiny", messages=messages, modalities=["text"], max_completion_tokens=9, seed=1,
        stream=True, stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_media_in_and_out(client: Any) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=heard(SAMPLES / "speech.wav", "x"), max_tokens=300,
        extra_body={"plan": ["text", "image", "audio"], "guidance": 1.0},
    )  # fmt: skip
    content = answer.choices[0].message.content
    assert [part["type"] for part in content][-2:] == ["image_url", "input_audio"]
    spoken = client.chat.completions.create(
        model="tiny", messages=seen(SAMPLES / "photo.png", "x"), max_tokens=80,
        modalities=["text", "audio"], audio={"voice": "alloy", "format": "wav"},
    )  # fmt: skip
    audio = spoken.choices[0].message.audio
    assert len(media.read_audio(base64.b64decode(audio.data))) > 0
    stream = client.chat.completions.create(
        model="tiny", messages=[USER | {"content": "x"}], stream=True, max_tokens=150,
        extra_body={"plan": ["image"]},
    )  # fmt: skip
    events = [part["event"] for c in stream if (part := getattr(c.choices[0].delta, "part", None))]
    assert (events[0], events[-1]) == ("begun", "done")


def test_the_other_routes(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    made = client.images.generate(prompt="a cat", n=1, model="tiny")
    assert base64.b64decode(made.data[0].b64_json)[1:4] == b"PNG"
    edited = client.images.edit(image=io.BytesIO(live.png()), prompt="blue", model="tiny")
    assert edited.data[0].b64_json
    pieces = []
    with client.audio.speech.with_streaming_response.create(
        model="tiny", voice="alloy", input="hi", response_format="pcm"
    ) as response:
        pieces += list(response.iter_bytes())
    assert sum(map(len, pieces)) % 800 == 0
    said = client.audio.transcriptions.create(model="tiny", file=("a.wav", live.wav()))
    assert isinstance(said.text, str)
    events = list(client.audio.transcriptions.create(model="tiny", file=("a.wav", live.wav()), stream=True))
    assert events[-1].type == "transcript.text.done" and events[-1].text == said.text


def test_structure_and_calls(client: Any) -> None:
    pytest.importorskip("llguidance")
    messages = [USER | {"content": "x"}]
    call = client.chat.completions.create(
        model="tiny", messages=messages, tools=[TOOL], tool_choice="required", max_tokens=200
    ).choices[0]
    assert call.finish_reason == "tool_calls"
    assert call.message.tool_calls[0].function.name == "get_weather"


def test_errors_are_the_client_s_own(client: Any) -> None:
    messages = [USER | {"content": "x"}]
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-9", messages=messages)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="tiny", messages=messages, presence_penalty=1)
    assert refused.value.param == "presence_penalty"


@pytest.fixture(scope="module")
def shipped() -> Iterator[Any]:
    engine = Engine.load(ROOT / "weights" / "m27-nano")
    with live.running(engine, Settings(name="m27-nano")) as server, client_of(server) as client:
        yield client


@pytest.mark.slow
def test_the_shipped_weights_through_the_client(shipped: Any) -> None:
    """The bar: chat plain and streamed, pictures and sounds both ways, images, speech, transcriptions,
    models, structured output, a call."""
    model = shipped.models.list().data[0].id
    base: dict[str, Any] = {"model": model, "temperature": 0, "modalities": ["text"], "max_tokens": 40}
    asked = [USER | {"content": "What is the capital of France?"}]
    said = shipped.chat.completions.create(messages=asked, **base).choices[0].message.content
    assert "Paris" in said
    stream = shipped.chat.completions.create(messages=asked, stream=True, **base)
    assert "".join(c.choices[0].delta.content or "" for c in stream) == said

    photo = seen(SAMPLES / "photo.png", "What is this?")
    first = shipped.chat.completions.create(messages=photo, **base)
    assert first.choices[0].message.content.strip()  # what it sees there is the model card's matter
    again = shipped.chat.completions.create(messages=photo, **base)
    assert again.usage.prompt_tokens_details.cached_tokens >= 64
    words = shipped.chat.completions.create(messages=heard(SAMPLES / "speech.wav", "Transcribe the speech."), **base)
    assert "yellow" in words.choices[0].message.content

    drawn = shipped.chat.completions.create(model=model, messages=[USER | {"content": "Draw a red apple."}], seed=1)
    picture = next(p for p in drawn.choices[0].message.content if p["type"] == "image_url")
    rgb = media.read_image(base64.b64decode(picture["image_url"]["url"].partition(",")[2])).reshape(-1, 3)
    assert rgb.shape == (128 * 128, 3)
    spoken = shipped.chat.completions.create(
        model=model, messages=[USER | {"content": "Say: the bird is yellow"}], max_tokens=160,
        modalities=["text", "audio"], audio={"voice": "alloy", "format": "wav"},
    )  # fmt: skip
    assert len(media.read_audio(base64.b64decode(spoken.choices[0].message.audio.data))) > 1600

    assert shipped.images.generate(prompt="a red apple").data[0].b64_json
    with shipped.audio.speech.with_streaming_response.create(
        model=model, voice="any", input="hello", extra_body={"seed": 3}
    ) as response:
        assert sum(len(piece) for piece in response.iter_bytes()) > 1600
    with open(SAMPLES / "speech.wav", "rb") as file:
        assert "yellow" in shipped.audio.transcriptions.create(model=model, file=file).text

    city = shipped.chat.completions.parse(
        model=model, messages=[USER | {"content": "Name a city and its country as JSON."}],
        response_format=City, max_tokens=80, temperature=0,
    )  # fmt: skip
    assert isinstance(city.choices[0].message.parsed, City)
    weather = [USER | {"content": "What is the weather in Paris?"}]
    call = shipped.chat.completions.create(messages=weather, tools=[TOOL], tool_choice="required", **base).choices[0]
    assert '"city"' in call.message.tool_calls[0].function.arguments
