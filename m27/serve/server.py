"""What the routes share: settings, the engine's thread, the way in for media, counts. Plain wiring."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import Request as HttpRequest

from m27.infer.encode import Encoder
from m27.infer.request import MEDIA, Request
from m27.language.processor import Processor
from m27.serve import transport
from m27.serve.answer import Asked
from m27.serve.auth import Keys
from m27.serve.body import Bodies
from m27.serve.errors import ApiError
from m27.serve.front import Front
from m27.serve.gate import Gate
from m27.serve.messages import Intake
from m27.serve.metrics import Metrics
from m27.serve.settings import Settings
from m27.serve.ticket import Ticket

T = TypeVar("T")


@dataclass
class Server:
    """The parts of one server. `media`: what its model can produce; `adapters` by name."""

    settings: Settings
    engine: Front
    processor: Processor
    keys: Keys
    metrics: Metrics
    bodies: Bodies
    intake: Intake
    encoder: Encoder
    media: tuple[str, ...] = MEDIA
    adapters: tuple[str, ...] = ()
    started: float = field(default_factory=time.time)

    @classmethod
    def of(
        cls,
        engine: Front,
        settings: Settings,
        keys: Keys,
        gate: Gate,
        adapters: tuple[str, ...] = (),
    ) -> Server:
        """A server over a running engine."""
        processor, metrics = engine.processor, Metrics()
        encoder = Encoder(processor, settings.media_threads)
        intake = Intake(gate, encoder, settings, metrics, engine.encodes)
        codecs = {"image": processor.image_codec, "audio": processor.audio_codec}
        media = tuple(m for m in MEDIA if m == "text" or codecs[m] is not None)
        bodies = Bodies(settings)
        return cls(
            settings, engine, processor, keys, metrics, bodies, intake, encoder, media, adapters
        )

    def asked(self, request: HttpRequest, **more: Any) -> Asked:
        """What the answer to a request depends on."""
        call = request.state.call
        return Asked(
            self.settings.name, self.processor, self.encoder, self.metrics, call.began, call.facts,
            tenant=self.tenant(request), **more,
        )  # fmt: skip

    def tenant(self, request: HttpRequest) -> str:
        """Whose request this is, to the engine's cache."""
        key = request.state.call.key
        return "" if key is None else str(key.tenant)

    def model(self, name: str | None) -> str | None:
        """The adapter that a model's name stands for, None for the model itself. Raises ApiError
        (404) for a name that is neither."""
        if name is None or name == self.settings.name:
            return None
        if name in self.adapters:
            return name
        why = f"no model is called {name!r}; this is {self.settings.name!r}"
        raise ApiError(404, why, code="model_not_found", param="model")

    def left_seconds(self, request: HttpRequest) -> float:
        """Until the answer to a request must be whole."""
        used = time.perf_counter() - request.state.call.began
        return max(0.01, self.settings.seconds - used)

    async def within(self, request: HttpRequest, work: Coroutine[Any, Any, T]) -> T:
        """See `transport.within`; the time is what is left of the request's."""
        return await transport.within(request, work, self.left_seconds(request))

    async def ask(self, request: Request, live: bool) -> Ticket:
        """Put a request to the engine; see `Front.ask`."""
        return await self.engine.ask(request, live)

    def stream(
        self, request: HttpRequest, ticket: Ticket, source: AsyncIterator[bytes], **more: Any
    ) -> transport.Stream:
        """A response that gives an answer as it is produced."""

        def gone() -> None:
            request.state.call.gone = True

        seconds = self.left_seconds(request)
        return transport.Stream(source, ticket.leave, gone, seconds, **more)

    @property
    def state(self) -> str:
        """What /health says: "ok", "stuck", "dead" or "closed"."""
        return self.engine.state

    def close(self) -> None:
        """End the engine and the threads."""
        self.engine.close()
        self.encoder.close()
