"""`/v1/models`, `/health` and `/metrics`: what there is, and how it fares."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from m27.serve import documents
from m27.serve.documents import JSON, of
from m27.serve.errors import ApiError
from m27.serve.metrics import CONTENT_TYPE
from m27.serve.server import Server


def router(server: Server, draining: Callable[[], bool]) -> APIRouter:
    """The routes. `draining`: whether the server was told to stop."""
    routes = APIRouter()

    def model(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": int(server.started), "owned_by": "m27"}

    @routes.get("/v1/models", **documents.route({JSON: {"schema": of(documents.Models)}}, more=(401, 429)))
    async def models() -> Response:
        """The model and its adapters."""
        names = [server.settings.name, *server.adapters]
        return JSONResponse({"object": "list", "data": [model(name) for name in names]})

    @routes.get(
        "/v1/models/{name:path}",
        **documents.route({JSON: {"schema": of(documents.Model)}}, more=(401, 404, 429)),
    )
    async def one_model(name: str) -> Response:
        """One of them."""
        server.model(name)
        return JSONResponse(model(name))

    @routes.get("/health", **documents.route({JSON: {"schema": of(documents.Health)}}))
    async def health() -> Response:
        """Whether requests are answered: 200, else 503."""
        state = server.engine.check()
        if state == "ok" and draining():
            state = "draining"
        counts = server.engine.metrics()
        body = {
            "status": state, "model": server.settings.name, "modalities": list(server.media),
            "uptime_seconds": round(time.time() - server.started, 1),
            "running": counts.get("running", 0), "waiting": counts.get("waiting", 0),
        }  # fmt: skip
        if state == "ok":
            return JSONResponse(body)
        told = ApiError(503, f"the engine is {state}", code="unhealthy").to_json()
        return JSONResponse({**body, **told}, 503)

    @routes.get(
        "/metrics", **documents.route({"text/plain": {"schema": {"type": "string"}}}, more=(401,))
    )
    async def metrics() -> Response:
        """Counts in Prometheus' text form."""
        text = server.metrics.render(
            server.engine.metrics(), server.state, server.intake.gate.metrics()
        )
        return Response(text, media_type=CONTENT_TYPE)

    return routes
