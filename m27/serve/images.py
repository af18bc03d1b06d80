"""`/v1/images/generations` and `/v1/images/edits`: pictures from words, and from pictures and words."""

from __future__ import annotations

import asyncio
import base64
import io
import time
from typing import Any

import numpy as np
from fastapi import APIRouter
from PIL import Image
from starlette.datastructures import UploadFile
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from m27.codec.media import Pixels, png_bytes
from m27.infer.request import Request
from m27.serve import documents, media_schema, parts, phrases
from m27.serve.answer import Meter, gather, usage_json
from m27.serve.body import fields_of
from m27.serve.errors import ApiError, bad, from_engine
from m27.serve.media_schema import Drawing, ImageEdit, ImageRequest
from m27.serve.messages import SIZE
from m27.serve.server import Server

_PICTURES = 4  # that one edit may start from
_QUALITY = 90


def router(server: Server) -> APIRouter:
    """The routes over a server."""
    routes = APIRouter()

    @routes.post(
        "/v1/images/generations", **documents.pictures({documents.JSON: media_schema.ImageRequest})
    )
    async def generations(request: HttpRequest) -> Response:
        """Draw what a prompt says."""
        async with server.bodies.json(request, ImageRequest) as body:
            pass
        content = [{"type": "text", "text": phrases.draw(body.prompt)}]
        return await server.within(request, draw(server, request, body, content))

    @routes.post(
        "/v1/images/edits", **documents.pictures({"multipart/form-data": media_schema.ImageEdit})
    )
    async def edits(request: HttpRequest) -> Response:
        """Draw what a prompt says of a picture."""
        async with server.bodies.form(request) as form:
            if "mask" in form:
                raise bad("mask is not supported", "mask", "unsupported_parameter")
            body = fields_of(form, ImageEdit, files=("image",))
            found = [v for k, v in form.multi_items() if k in ("image", "image[]")]
            files = [file for file in found if isinstance(file, UploadFile)]
            if not files or len(files) != len(found) or len(files) > _PICTURES:
                raise bad(f"image must be 1 to {_PICTURES} files", "image")
            content = await server.within(request, _shown(server, request, files))
        content.append({"type": "text", "text": body.prompt})
        return await server.within(request, draw(server, request, body, content))

    return routes


async def _shown(server: Server, request: HttpRequest, files: list[UploadFile]) -> list[Any]:
    """Files of a form as image parts."""
    gate, tenant = server.intake.gate, server.tenant(request)
    return [
        await server.intake.picture(gate.picture_bytes(await file.read(), SIZE), tenant, "image")
        for file in files
    ]


async def draw(
    server: Server, request: HttpRequest, body: Drawing, content: list[dict[str, Any]]
) -> Response:
    """`n` pictures for one message. Raises ApiError."""
    if "image" not in server.media:
        raise bad("this model produces no pictures", "model", "no_codec")
    settings = server.settings
    if (body.n or 1) > settings.answers:
        raise bad(f"n is {body.n}; {settings.answers} is the most", "n")
    grid = body.grid(settings.image_side)
    try:
        wanted = Request(
            [{"role": "user", "content": content}], modalities=("image",), plan=("image",),
            image_grid=grid, max_tokens=grid[0] * grid[1] + 8, n=body.n or 1,
            tenant=server.tenant(request), adapter=server.model(body.model), **body.options(),
        )  # fmt: skip
    except ValueError as error:
        raise from_engine(error) from None
    ticket = await server.ask(wanted, live=False)
    try:
        meter = Meter(server.asked(request))
        response = await gather(ticket, meter)
    finally:
        ticket.leave()
    made = [answer.content[0] for answer in (response, *response.others)]
    for part in made:
        if "image" not in part:
            raise ApiError(500, "the model has no image codec", code="no_codec")
        server.encoder.remember(part, server.tenant(request))
    kind = body.output_format or "png"
    encoded = await asyncio.to_thread(lambda: [_file(part["image"], kind) for part in made])
    usage = usage_json(meter.usages)
    return JSONResponse({
        "created": int(time.time()), "output_format": kind, "size": f"{16 * grid[1]}x{16 * grid[0]}",
        "data": [_data(data, kind, body.response_format) for data in encoded],
        "usage": {
            **usage, "input_tokens": usage["prompt_tokens"],
            "output_tokens": usage["completion_tokens"],
            "input_tokens_details": {"text_tokens": usage["prompt_tokens"], "image_tokens": 0},
        },
    })  # fmt: skip


def _file(rgb_HW3: Pixels, kind: str) -> bytes:
    if kind == "png":
        return png_bytes(rgb_HW3)
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgb_HW3)).save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()


def _data(data: bytes, kind: str, form: str | None) -> dict[str, str]:
    if form == "url":
        return {"url": parts.data_url(f"image/{kind}", data)}
    return {"b64_json": base64.b64encode(data).decode("ascii")}
