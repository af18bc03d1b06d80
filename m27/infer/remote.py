"""The engine's interface over vLLM servers: the model runs there, grammar and codecs run here.

vLLM does not know our grammar, but it keeps to a set of ids (`allowed_token_ids`) for as long as that
set stays the same. So an answer is fetched in segments: text until an id that opens or ends something,
then what is forced without asking anybody, then exactly the codes of a picture, or those of a sound
until it ends. Every id that comes is checked by the grammar all the same. All state is the ids, so a
segment that breaks off goes on at another server where it was.

What differs from the engine of this process: draws are vLLM's own (the same seed gives the same answer
there, not the one that is given here), its repetition penalty counts the prompt too, and there is no
guidance, no schema and no logprobs; requests that ask for those are refused. An adapter's name is that
of a LoRA module which the server knows.
"""

from __future__ import annotations

import http.client
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from m27.infer.inline import Inline
from m27.infer.replicas import DeclinedError, ReplicaError, Replicas
from m27.infer.request import Event, Refused, Request, RequestError, Response
from m27.infer.respond import collect
from m27.infer.sampler import Spans, place_of
from m27.infer.turn import Answer, prepare
from m27.language.processor import Processor
from m27.runtime import lone_thread


class RemoteEngine:
    """Requests answered by servers; as `Engine`, for one thread. Each answer has a thread of its own.

    `most`: answers under way at once; more are refused. `max_len`: tokens of a request,
    by default as many as the servers say. Raises RequestError for a wrong address.
    """

    def __init__(
        self,
        processor: Processor,
        urls: Sequence[str],
        max_len: int | None = None,
        most: int = 256,
        timeout: float = 60.0,
    ) -> None:
        self.processor, self.replicas = processor, Replicas(urls, timeout)
        self._max_len, self._most = max_len, most
        self._events: queue.Queue[tuple[int, int, Event]] = queue.Queue()
        self._fetches: dict[tuple[int, int], _Fetch] = {}
        self._numbers = 0
        self._count = {"finished": 0, "failed": 0, "cancelled": 0, "retried": 0}

    @classmethod
    def load(cls, folder: str | Path, urls: Sequence[str], **options: Any) -> RemoteEngine:
        """Tokenizer and codecs from a checkpoint folder (its weights are not read), and servers that
        serve its export. Options are those of the class. Raises as `Processor.load` does."""
        return cls(Processor.load(folder), urls, **options)

    def add(self, request: Request, live: bool = True) -> int:
        """Take on a request; its number. Raises RequestError where it is wrong or asks for what only
        the engine of this process can do, and Refused where too many are under way."""
        for name, wanted in (("schema", request.schema), ("logprobs", request.logprobs)):
            if wanted is not None:
                raise RequestError(f"{name} is not to be had through vLLM")
        if any(request.guided[medium] != 1.0 for medium in request.modalities):
            raise RequestError("vLLM cannot guide pictures and sounds; ask with guidance 1")
        if self._max_len is None:
            self._max_len = self.replicas.max_len()
        turn = prepare(self.processor, request, self._max_len)
        if len(self._fetches) + request.n > self._most:
            raise Refused(f"{len(self._fetches)} answers are under way already", "queue", 1.0)
        self._numbers += 1
        for index in range(request.n):
            fetch = _Fetch(self, self._numbers, Answer(turn, index))
            self._fetches[self._numbers, index] = fetch
            fetch.start()
        return self._numbers

    def step(self) -> list[tuple[int, Event]]:
        """The events that have come, waited for a moment where there are none; see `Engine.step`."""
        events: list[tuple[int, Event]] = []
        with suppress(queue.Empty):
            came = self._events.get(timeout=0.05)
            while True:
                events += self._tell(*came)
                came = self._events.get_nowait()
        return events

    def _tell(self, number: int, index: int, event: Event) -> list[tuple[int, Event]]:
        fetch = self._fetches.get((number, index))
        if fetch is None:
            return []
        if event["type"] == "error":
            self.cancel(number)
            self._count["cancelled"] -= 1
            self._count["failed"] += 1
        elif event["type"] == "done":
            del self._fetches[number, index]
            self._count["finished"] += 1
        if fetch.answer.turn.request.n > 1 and event["type"] != "error":
            event["index"] = index
        return [(number, event)]

    def cancel(self, number: int) -> None:
        """Let go of a request: its connections are closed, on which vLLM frees what it holds."""
        mine = [key for key in self._fetches if key[0] == number]
        for key in mine:
            self._fetches.pop(key).cancel()
        self._count["cancelled"] += bool(mine)

    def busy(self) -> bool:
        """Whether some request still has events to come."""
        return bool(self._fetches)

    def stream(self, request: Request) -> Iterator[Event]:
        """Answer one request; other requests must not be under way. As `Engine.stream`."""
        number = self.add(request)
        try:
            while self.busy():
                yield from (event for other, event in self.step() if other == number)
        finally:
            self.cancel(number)

    def chat(self, request: Request) -> Response:
        """Answer as a whole; raises as `add` does, and EngineError for a request that failed."""
        return collect(self.stream(request))

    def answer(
        self, requests: Sequence[Request], progress: Callable[[int], None] | None = None
    ) -> list[Response]:
        """The answers to many requests, in their order. As `Engine.answer`."""
        waiting, made = list(enumerate(requests))[::-1], dict[int, Response]()
        open_: dict[int, tuple[int, list[Event], int]] = {}  # number -> place, events, answers left
        try:
            while waiting or open_:
                while waiting and len(self._fetches) + waiting[-1][1].n <= self._most:
                    place, request = waiting.pop()
                    open_[self.add(request, live=False)] = (place, [], request.n)
                for number, event in self.step():
                    place, events, left = open_[number]
                    events.append(event)
                    left -= event["type"] == "done"
                    open_[number] = (place, events, left)
                    if not left or event["type"] == "error":
                        made[place] = collect(events)
                        del open_[number]
                        if progress is not None:
                            progress(1)
        finally:
            for number in open_:
                self.cancel(number)
        return [made[place] for place in range(len(requests))]

    def metrics(self) -> dict[str, Any]:
        """Counts since the start, and what each server is doing."""
        now = time.monotonic()
        servers = [
            {"url": r.url, "busy": r.busy, "resting": r.resting > now} for r in self.replicas.all
        ]
        return {"running": len(self._fetches), **self._count, "servers": servers}

    def retried(self) -> None:
        """Count a segment that went on at another server."""
        self._count["retried"] += 1

    def told(self, number: int, index: int, event: Event) -> None:
        """An event of an answer, from its thread."""
        self._events.put((number, index, event))


class _Fetch(threading.Thread):
    """One answer, fetched segment by segment."""

    def __init__(self, engine: RemoteEngine, number: int, answer: Answer) -> None:
        super().__init__(name=f"fetch-{number}-{answer.index}", daemon=True)
        self.answer = answer
        self._engine, self._number = engine, number
        self._media = Inline(engine.processor)
        self._connection: http.client.HTTPConnection | None = None
        self._cancelled = self._stopped = False

    def cancel(self) -> None:
        """Close the connection, whatever the thread is doing."""
        self._cancelled = True
        connection = self._connection
        if connection is not None and connection.sock is not None:
            with suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    def run(self) -> None:
        """Fetch until the answer is done; then its last event, or one that says what went wrong."""
        lone_thread()
        started, answer = time.perf_counter(), self.answer
        self._media.open(0, answer.turn.stops())
        try:
            while not self._over():
                if answer.forced is not None:
                    self._take(answer.forced)
                else:
                    self._segment()
            self._media.finish(0)
            self._pass()
            done = answer.last_event()
            self._tell(done | {"seconds": time.perf_counter() - started})
        except Exception as error:
            words = str(error) if isinstance(error, DeclinedError | ReplicaError) else repr(error)
            self._tell({"type": "error", "message": " ".join(words.split())})

    def _over(self) -> bool:
        return self.answer.done or self._stopped or self._cancelled

    def _tell(self, event: Event) -> None:
        if not self._cancelled:
            self._engine.told(self._number, self.answer.index, event)

    def _pass(self) -> None:
        for _, event in self._media.poll():
            self._tell(event)

    def _take(self, id: int) -> None:
        self.answer.take(id)
        self._stopped = not self._media.push(0, (id,))
        self._pass()

    def _segment(self) -> None:
        """Ids for as long as the same ones are allowed, from whichever server answers."""
        answer, replicas = self.answer, self._engine.replicas
        prompt, spans = answer.turn.prompt, answer.spans
        failed: list[Any] = []
        fault: ReplicaError | None = None
        while not self._over() and answer.spans == spans and answer.forced is None:
            if len(failed) >= 2 * len(replicas.all):
                raise fault or ReplicaError("no server answers")
            replica = replicas.take(prompt, failed[-len(replicas.all) + 1 :] if failed else ())
            self._connection = replica.connect()
            broken, before = False, len(answer.ids)
            try:
                body = self._body(answer.turn.request.adapter or replica.name(), spans)
                for ids in replica.complete(self._connection, body):
                    for id in ids:
                        if self._over() or answer.spans != spans or answer.forced is not None:
                            break
                        self._take(self._meant(id))
                    else:
                        continue
                    break
                if len(answer.ids) == before and not self._over():
                    raise ReplicaError(f"{replica.url}: gives no ids")
            except ReplicaError as error:
                broken, fault = True, error
                failed.append(replica)
                if not self._cancelled:
                    self._engine.retried()
            finally:
                self._connection.close()
                replicas.give(replica, broken and not self._cancelled)

    def _meant(self, id: int) -> int:
        """The id that is taken where a server gives `id`. Raises ReplicaError for one not allowed."""
        if place_of(self.answer.spans, id) < 0:
            raise ReplicaError(f"id {id} came, which was not among those allowed")
        return dict(self.answer.redirects).get(id, id)

    def _body(self, model: str, spans: Spans) -> dict[str, Any]:
        """A completion from the ids so far, of ids in `spans`, up to one that changes them."""
        answer, turn = self.answer, self.answer.turn
        settings = turn.request.sampling[answer.medium]
        vocabulary = turn.grammar.vocabulary
        most = turn.max_tokens - len(answer.ids)
        if answer.medium == "image":
            most = min(most, _codes_left(answer))
        allowed = [id for start, end in spans for id in range(start, end)]
        body = {
            "model": model, "prompt": [*turn.prompt, *answer.ids], "stream": True,
            "max_tokens": most, "return_token_ids": True, "allowed_token_ids": allowed,
            "ignore_eos": True, "skip_special_tokens": False,
            "stop_token_ids": [id for id in vocabulary.control.values() if place_of(spans, id) >= 0],
            "temperature": settings.temperature, "top_p": settings.top_p, "top_k": settings.top_k,
            "min_p": settings.min_p, "repetition_penalty": settings.repetition_penalty,
            "seed": (turn.seed * 1_000_003 + answer.index * 10_007 + len(answer.ids)) % 2**63,
        }  # fmt: skip
        if turn.request.tenant:
            body["cache_salt"] = turn.request.tenant
        return body


def _codes_left(answer: Answer) -> int:
    """How many codes the open picture still lacks."""
    vocabulary, ids = answer.turn.grammar.vocabulary, answer.ids
    begin = max(at for at, id in enumerate(ids) if id == vocabulary.image_begin)
    head = ids[begin + 1 : begin + 3]
    if len(head) < 2:
        return 1  # its height or width is still to come
    height, width = vocabulary.heights.index(head[0]) + 1, vocabulary.widths.index(head[1]) + 1
    return height * width - (len(ids) - begin - 3)
