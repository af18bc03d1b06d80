"""Errors in OpenAI's form, and which error of the rooms below is which status. Knows no route.

No text of these shows an address, a path or a traceback: what is not a typed error of ours becomes
one sentence.
"""

from __future__ import annotations

import math
import re
from typing import Any

TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
    404: "invalid_request_error", 405: "invalid_request_error", 408: "timeout_error",
    413: "invalid_request_error", 415: "invalid_request_error", 429: "rate_limit_error",
    500: "server_error", 503: "server_error", 504: "timeout_error",
}  # fmt: skip
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{4,}|(?<![\w.])/(?:[\w.-]+/)+[\w.-]*")


class ApiError(Exception):
    """A request that is answered with `status` and an error object. `reason` is what it counts as
    among the refused ones in the metrics."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, clean(message), code, param
        self.retry_after = retry_after

    @property
    def reason(self) -> str:
        """One word or two for the metrics."""
        return self.code or TYPES.get(self.status, "error")

    def to_json(self) -> dict[str, Any]:
        """{"error": {"message", "type", "param", "code"}}."""
        kind = TYPES.get(self.status, "invalid_request_error")
        return {
            "error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        }

    def headers(self) -> dict[str, str]:
        """Retry-After in whole seconds, WWW-Authenticate; what else the status asks for."""
        if self.status == 401:
            return {"www-authenticate": "Bearer"}
        if self.retry_after is not None:
            return {"retry-after": str(max(1, math.ceil(self.retry_after)))}
        return {}


def clean(message: str) -> str:
    """A message in one line, without addresses of memory and paths of files."""
    line = " ".join(_ADDRESS.sub("…", message).split())
    return line if len(line) <= 500 else line[:499] + "…"


def bad(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """A 400 that names the parameter."""
    return ApiError(400, message, code=code, param=param)


def from_engine(error: BaseException) -> ApiError:
    """What a refusal of the rooms below is to the client; anything else is a 500 that says little."""
    # Not at the head of the file: a wrong option is to be told before torch is there.
    from m27.infer.request import Refused, RequestError
    from m27.language.codecs import CodecsError
    from m27.language.grammar import GrammarError
    from m27.language.template import MessageError

    if isinstance(error, ApiError):
        return error
    if isinstance(error, Refused):
        if error.reason == "queue":
            after = error.retry_after or 1.0
            return ApiError(429, str(error), code="queue_full", retry_after=after)
        return ApiError(400, str(error), code=f"too_long_{error.reason}")
    if isinstance(error, MessageError):
        return bad(str(error), "messages", "invalid_message")
    if isinstance(error, RequestError | GrammarError):
        message = str(error)
        if message.startswith("schema: "):
            return bad(message, "response_format", "invalid_schema")
        return bad(message)
    if isinstance(error, CodecsError):
        return bad(str(error), "messages", "no_codec")
    return ApiError(500, "the server failed to answer this request", code="internal_error")
