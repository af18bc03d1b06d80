"""OpenTelemetry traces, where they are asked for: one span a request. Off by default.

The packages are no requirement of the server's; who wants traces installs them. Knows ASGI alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from m27.serve.settings import SettingsError

Wrap = Callable[[ASGIApp], ASGIApp]
_ADVICE = "traces need pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http"


def plain(app: ASGIApp) -> ASGIApp:
    """Without traces: the application as it is."""
    return app


def traced(address: str | None) -> Wrap:
    """What gives each request a span that is sent to an OTLP/HTTP address; nothing for None.

    Raises SettingsError where the packages are not installed.
    """
    if address is None:
        return plain
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise SettingsError(_ADVICE) from None
    provider = TracerProvider(resource=Resource.create({"service.name": "m27"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=address)))
    return spans(provider.get_tracer("m27.serve"))


def spans(tracer: Any) -> Wrap:
    """What gives each request a span of a tracer."""

    def wrap(app: ASGIApp) -> ASGIApp:
        async def call(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            with tracer.start_as_current_span(f"{scope['method']} {scope['path'][:100]}") as span:
                span.set_attribute("http.request.method", scope["method"])
                span.set_attribute("url.path", scope["path"][:200])

                async def told(message: Any) -> None:
                    if message["type"] == "http.response.start":
                        span.set_attribute("http.response.status_code", message["status"])
                    elif message["type"] == "http.response.body":
                        span.add_event("body", {"bytes": len(message.get("body", b""))})
                    await send(message)

                await app(scope, receive, told)

        return call

    return wrap
