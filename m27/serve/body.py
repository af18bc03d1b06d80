"""Bodies of requests: read within a budget, looked at before they are parsed, checked by a type.

JSON is scanned for its depth before a parser recurses into it. All bodies that are held at once share
one budget of bytes. Knows no route.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from m27.serve.errors import ApiError, bad
from m27.serve.settings import Settings

M = TypeVar("M", bound=BaseModel)
_LARGE = 1 << 16  # bytes above which a body is parsed on another thread
_FIELD_BYTES = 1 << 16  # of a form's field that is no file
# A string, a bracket or a comma; nothing here backtracks.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{\]},]', re.DOTALL)


class Bodies:
    """Reads bodies; `held` bytes of them are in memory, of `settings.buffered_bytes` allowed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.held = 0

    @asynccontextmanager
    async def json(self, request: Request, model: type[M]) -> AsyncIterator[M]:
        """The JSON of a request as `model`, its bytes counted as held until the block is left.

        Raises ApiError: 415, 400, 413 and 408 (see `guard`), 429 where the budget is used up.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and not kind.endswith("+json"):
            raise ApiError(415, "send JSON as application/json", code="unsupported_media_type")
        taken = 0
        try:
            pieces: list[bytes] = []
            try:
                async for piece in request.stream():
                    taken += self._take(len(piece))
                    pieces.append(piece)
            except ClientDisconnect:
                raise bad("the body ended early", None, "incomplete_body") from None
            data = b"".join(pieces)
            del pieces
            depth, values = self._settings.json_depth, self._settings.json_values
            if len(data) > _LARGE:
                value = await asyncio.to_thread(parse, data, model, depth, values)
            else:
                value = parse(data, model, depth, values)
            del data
            yield value
        finally:
            self.held -= taken

    @asynccontextmanager
    async def form(self, request: Request) -> AsyncIterator[FormData]:
        """A multipart form, its files on disk above a megabyte and gone when the block is left."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "multipart/form-data":
            raise ApiError(415, "send a form as multipart/form-data", code="unsupported_media_type")
        taken = 0

        async def counted() -> AsyncGenerator[bytes, None]:
            nonlocal taken
            async for piece in request.stream():
                taken += self._take(len(piece))
                yield piece

        form: FormData | None = None
        try:
            parser = MultiPartParser(
                request.headers, counted(), max_files=8, max_fields=64, max_part_size=_FIELD_BYTES
            )
            try:
                form = await parser.parse()
            except MultiPartException as error:
                raise bad(f"the form is broken: {error.message}", None, "invalid_form") from None
            except ClientDisconnect:
                raise bad("the body ended early", None, "incomplete_body") from None
            except (KeyError, UnicodeDecodeError, AttributeError, LookupError):
                raise bad("the form is broken", None, "invalid_form") from None
            yield form
        finally:
            self.held -= taken
            if form is not None:
                await form.close()

    def _take(self, count: int) -> int:
        if self.held + count > self._settings.buffered_bytes:
            why = "too many large requests at once; try again later"
            raise ApiError(429, why, code="too_many_bytes", retry_after=2.0)
        self.held += count
        return count


def parse(data: bytes, model: type[M], depth: int, values: int) -> M:
    """JSON bytes as a model. Raises ApiError that names the field."""
    check_shape(data, depth, values)
    try:
        value = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError):  # UnicodeDecodeError and numbers of 5,000 digits too
        raise bad("the body is not valid JSON", None, "invalid_json") from None
    return checked(value, model)


def checked(value: Any, model: type[M]) -> M:
    """A value as a model. Raises ApiError that names the field, not what was in it."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        first = max(found, key=lambda e: len(e["loc"]))  # of a union's branches, the nearest
        where = _where(first["loc"])
        if first["type"] == "extra_forbidden":
            raise bad(f"unknown parameter: {where}", where, "unknown_parameter") from None
        code = "missing_parameter" if first["type"] == "missing" else "invalid_value"
        raise bad(f"{where or 'body'}: {first['msg']}", where or None, code) from None


def check_shape(data: bytes, depth: int, values: int) -> None:
    """Raise ApiError where JSON nests deeper than `depth`, or holds more than `values`: a list of
    nothing but lists takes twenty times its bytes once it is parsed."""
    level = count = 0
    for match in _TOKEN.finditer(data):
        first = data[match.start()]
        if first in b"[{":
            level += 1
            if level > depth:
                raise bad(f"the JSON is nested more than {depth} deep", None, "too_deep")
        elif first in b"]}":
            level -= 1
        elif first in b",":
            count += 1
            if count > values:
                raise bad(f"the JSON holds more than {values} values", None, "too_many_values")


def file_of(form: FormData, name: str) -> UploadFile:
    """The one file of that name in a form. Raises ApiError."""
    found = [value for key, value in form.multi_items() if key in (name, f"{name}[]")]
    if not found:
        raise bad(f"{name} is missing", name, "missing_parameter")
    if len(found) > 1 or not isinstance(found[0], UploadFile):
        raise bad(f"{name} must be one file", name)
    return found[0]


def fields_of(form: FormData, model: type[M], *, files: tuple[str, ...]) -> M:
    """The fields of a form that are no files, as a model. Raises ApiError."""
    values: dict[str, Any] = {}
    for key, value in form.multi_items():
        name = key.removesuffix("[]")
        if name in files:
            continue
        if isinstance(value, UploadFile):
            raise bad(f"{name} is no file", name)
        if key.endswith("[]"):
            values.setdefault(name, []).append(value)
        else:
            values[name] = value
    return checked(values, model)


def _where(loc: tuple[int | str, ...]) -> str:
    """("messages", 0, "content") → messages[0].content; names of a union's branches are left out."""
    out = ""
    for item in loc:
        if isinstance(item, int):
            out += f"[{item}]"
        elif re.fullmatch(r"[a-z_][a-z0-9_]{0,40}", item) and item not in _BRANCHES:
            out += f".{item}" if out else item
    return out[:200]


_BRANCHES = frozenset({"str", "list", "text", "image_url", "input_audio"})


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
