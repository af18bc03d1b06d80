"""Who makes interleaved answers: our engine, a server of typed parts, any answerer of words alone, or saved answers.

`open_maker` finds which by the name that `open_model` takes. Pictures and sounds are drawn with the defaults of each;
a temperature above 0 holds for all media.
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from m27.eval.answerers import Answer, Answerer, AnswererError, Asked, Facts, Settings, open_model
from m27.eval.answerers.checkpoint import Checkpoint
from m27.eval.answerers.server import MOST, Server, wire
from m27.eval.interleaved.content import Part, opened
from m27.eval.official import isg_bench, opening
from m27.eval.official.sample import FormatError
from m27.eval.report import files_hash
from m27.infer.request import Request

MEDIA = ("text", "image")


@dataclass(frozen=True)
class Made:
    """One interleaved answer. `cut`: it ended because no more tokens were allowed; `error`: why there is none."""

    key: str
    content: list[Part]
    seconds: float = 0.0
    cut: bool = False
    error: str = ""


class Maker(Protocol):
    """A model under test, or its saved answers."""

    def facts(self) -> Facts:
        """What is known of it."""
        ...

    def make(self, asked: Sequence[Asked]) -> Iterator[Made]:
        """Each answer as it is done, in any order. Raises AnswererError where it cannot go on."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


def open_maker(name: str, settings: Settings, media: tuple[str, ...] = MEDIA) -> Maker:
    """The maker that `name` means: a folder of weights, "openai:NAME@BASE_URL", "stored:PATH" (a folder of OpenING's
    outputs, a file of ISG-Bench's, or a folder that this command left), or "hf:NAME" for words alone."""
    kind, colon, rest = name.partition(":")
    if colon and kind == "stored":
        return Stored(Path(rest))
    if colon and kind == "openai":
        model, at, base = rest.rpartition("@http")
        if not at or not model:
            raise AnswererError(f"{name}: a server is openai:NAME@BASE_URL, such as openai:nano@http://localhost:8000/v1")
        return Parts(model, f"http{base}", settings, media)
    found = open_model(name, settings)
    if isinstance(found, Checkpoint) and not found.stock:
        return Ours(found, settings, media)
    return Words(found)


class Words:
    """A model of words alone: its answers are one block."""

    def __init__(self, answerer: Answerer) -> None:
        self._answerer = answerer

    def facts(self) -> Facts:
        """The answerer's."""
        return self._answerer.facts()

    def make(self, asked: Sequence[Asked]) -> Iterator[Made]:
        """Each answer's text."""
        for answer in self._answerer.answer(asked):
            content = [{"type": "text", "text": answer.text}] if answer.text else []
            yield Made(answer.key, content, answer.seconds, error=answer.error)

    def close(self) -> None:
        """The answerer's."""
        self._answerer.close()


class Ours:
    """Our engine, free to write, draw and sound as it likes under the grammar."""

    def __init__(self, checkpoint: Checkpoint, settings: Settings, media: tuple[str, ...]) -> None:
        self._checkpoint, self._settings, self._media = checkpoint, settings, media

    def facts(self) -> Facts:
        """The checkpoint's."""
        return self._checkpoint.facts()

    def make(self, asked: Sequence[Asked]) -> Iterator[Made]:
        """Answers of `at_once` questions at a time; one that the engine refuses comes back with its error."""
        size = self._settings.at_once
        for start in range(0, len(asked), size):
            some = asked[start : start + size]
            try:
                yield from self._together(some)
            except ValueError:  # one of them is refused, and with it the batch: ask one by one
                for one in some:
                    try:
                        yield from self._together([one])
                    except ValueError as error:
                        yield Made(one.key, [], error=" ".join(str(error).split()))

    def _together(self, asked: Sequence[Asked]) -> Iterator[Made]:
        temperature = self._settings.temperature or None
        requests = [
            Request(one.messages, modalities=self._media, max_tokens=self._settings.max_tokens, seed=one.seed,
                    temperature=temperature)
            for one in asked
        ]  # fmt: skip
        for one, response in zip(asked, self._checkpoint.engine.answer(requests), strict=True):
            content = [{k: v for k, v in part.items() if k != "codes"} for part in response.content]
            yield Made(one.key, content, response.seconds, response.usage.finish_reason == "length")

    def close(self) -> None:
        """The checkpoint's."""
        self._checkpoint.close()


class Parts(Server):
    """An OpenAI-compatible server, asked for typed parts (`modalities`), whole and not streamed."""

    def __init__(self, name: str, base: str, settings: Settings, media: tuple[str, ...]) -> None:
        super().__init__(name, base, settings)
        self._media = media

    def make(self, asked: Sequence[Asked]) -> Iterator[Made]:
        """Each answer as it is done."""
        for answer in self.answer(asked):
            try:
                said = json.loads(answer.text) if not answer.error else {}
                content = read_parts(said.get("content") or "")
                yield Made(answer.key, content, answer.seconds, said.get("finish") == "length", answer.error)
            except ValueError as error:
                yield Made(answer.key, [], answer.seconds, error=" ".join(str(error).split()))

    def _ask(self, one: Asked) -> Answer:
        """As the streamed one, but for its body; the message's content comes as JSON in the answer's text."""
        try:
            messages = wire(one.messages)
        except (ValueError, OSError) as error:
            return Answer(one.key, "", error=" ".join(str(error).split()))
        settings = self._settings
        body: dict[str, Any] = {
            "model": self._name, "messages": messages, self._tokens_key: settings.max_tokens, "seed": one.seed,
            "modalities": list(self._media),
        }  # fmt: skip
        if settings.temperature > 0:
            body["temperature"] = settings.temperature
        headers = {"Content-Type": "application/json", "User-Agent": "m27-eval"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        connection, began = self._connection(), time.perf_counter()
        try:
            connection.request("POST", f"{self._url.path.rstrip('/')}/chat/completions", json.dumps(body), headers)
            with closing(connection.getresponse()) as response:
                if response.status != 200:
                    self._failed(response)
                data = response.read(MOST)
        finally:
            connection.close()
        try:
            said = json.loads(data)
            choice = said["choices"][0]
            self._says = str(said.get("model") or self._says)
            found = {"content": choice["message"].get("content"), "finish": choice.get("finish_reason")}
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            raise OSError(f"what came is no chat completion: {error}") from error  # tried again
        return Answer(one.key, json.dumps(found, ensure_ascii=False), time.perf_counter() - began)


def read_parts(content: str | Sequence[Mapping[str, Any]]) -> list[Part]:
    """The content of a message in OpenAI's form → parts with media as bytes. Raises ValueError for what is none; never
    fetches an address."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content.strip() else []
    out: list[Part] = []
    try:
        for part in content:
            if part["type"] == "text":
                out.append({"type": "text", "text": str(part["text"])})
            elif part["type"] == "image_url":
                head, comma, data = str(part["image_url"]["url"]).partition(";base64,")
                if not comma or not head.startswith("data:"):
                    raise ValueError("a picture of the answer is no data URL")
                out.append({"type": "image", "bytes": base64.b64decode(data, validate=True)})
            elif part["type"] == "input_audio":
                out.append({"type": "audio", "bytes": base64.b64decode(part["input_audio"]["data"], validate=True)})
            else:
                raise ValueError(f"a part of the answer is of type {part['type']!r}")
    except (LookupError, TypeError, binascii.Error) as error:
        raise ValueError(f"a part of the answer cannot be read: {error}") from error
    return out


class Stored:
    """Saved answers: a folder of OpenING's outputs, a file of ISG-Bench's, or a folder of this command."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, list[Part]] = {}
        if (path / "answers.jsonl").is_file():
            for line in (path / "answers.jsonl").read_text(encoding="utf-8").split("\n"):
                record = json.loads(line) if line else {"answer": []}
                self._known |= {record["key"]: opened(record["answer"], path)} if record["answer"] else {}
        elif path.is_file():
            try:
                self._known = isg_bench.outputs(path)
            except FormatError as error:
                raise AnswererError(str(error)) from None
        elif not path.is_dir():
            raise AnswererError(f"{path}: no such file or folder of answers")

    def facts(self) -> Facts:
        """The hash of the files is the revision."""
        files = [self._path] if self._path.is_file() else [f for f in self._path.iterdir() if f.is_file()]
        goes = "nowhere: saved answers"
        return Facts(f"stored:{self._path}", "stored", files_hash(files), "as stored", "none", data_goes=goes)

    def make(self, asked: Sequence[Asked]) -> Iterator[Made]:
        """The saved answer to each; a question that has none, or whose pictures are gone, is an error of that one."""
        for one in asked:
            try:
                found = self._known.get(one.key)
                if found is None and self._path.is_dir() and not self._known:
                    found = opening.answered(self._path, one.key)
            except FormatError as error:
                yield Made(one.key, [], error=str(error))
                continue
            made = Made(one.key, found or [], error="" if found is not None else "no answer was stored")
            gone = next((p["path"] for p in made.content if p["type"] != "text" and not Path(p["path"]).is_file()), "")
            yield replace(made, content=[], error=f"no file {gone}") if gone else made

    def close(self) -> None:
        """Nothing is held."""
