"""The application: routes, the guard before them, the playground's files, errors in one form.

Knows no address to listen at and no signal; `m27.serve.run` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from m27.serve import audio, chat, documents, images, status
from m27.serve.errors import ApiError, from_engine
from m27.serve.guard import Guard
from m27.serve.server import Server
from m27.serve.transport import Gone

WEB = Path(__file__).parent / "web"
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
PAGE_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml",
         ".png": "image/png", ".ico": "image/x-icon", ".json": "application/json"}  # fmt: skip


def create_app(server: Server, web: Path = WEB) -> Guard:
    """The ASGI application over a server. `web`: the folder of the playground."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await server.intake.gate.start()
        watching = asyncio.create_task(server.engine.watch())
        try:
            yield
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
            await server.intake.gate.aclose()
            await asyncio.to_thread(server.close)

    app = FastAPI(title="m27", docs_url=None, redoc_url=None, lifespan=lifespan, redirect_slashes=False)
    for kind in (ApiError, Exception):
        app.add_exception_handler(kind, _refused)
    app.add_exception_handler(Gone, _gone)
    app.add_exception_handler(HTTPException, _http)
    files = pages(web)
    guard = Guard(app, server.settings, server.keys, server.metrics, frozenset(files))
    for routes in (chat, images, audio):
        app.include_router(routes.router(server))
    app.include_router(status.router(server, lambda: guard.draining))
    documents.install(app)
    guard.routes = frozenset(app.openapi()["paths"]) | guard.open
    for path, file in files.items():
        app.router.routes.append(Route(path, _page(file), methods=["GET"]))
    return guard


def pages(web: Path) -> dict[str, Path]:
    """The playground's files by their path: nothing else of the disk can be asked for."""
    found = {
        f"/{file.relative_to(web).as_posix()}": file
        for file in sorted(web.rglob("*"))
        if file.is_file() and file.suffix in KINDS
    }
    return {"/": found["/index.html"], **found} if "/index.html" in found else found


def _page(file: Path) -> Callable[[Request], Awaitable[Response]]:
    async def page(request: Request) -> Response:
        return FileResponse(file, media_type=KINDS[file.suffix], headers=PAGE_HEADERS)

    return page


class _Refusal(Response):
    """Leaves the answer to the guard, which counts, and reads on where a body is still being sent."""

    def __init__(self, error: ApiError | None) -> None:
        super().__init__()
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse; to a client that has left, nothing is said."""
        if self._error is None:
            scope["state"]["call"].gone = True
        else:
            await scope["state"]["call"].refuse(self._error)


async def _refused(request: Request, error: Exception) -> Response:
    return _Refusal(error if isinstance(error, ApiError) else from_engine(error))


async def _gone(request: Request, error: Exception) -> Response:
    return _Refusal(None)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {404: "there is no such page", 405: "that method is not allowed here"}
    status = error.status_code
    told = ApiError(status, words.get(status, "the request cannot be read"), code=f"http_{status}")
    return JSONResponse(told.to_json(), status, headers=dict(error.headers or {}))
