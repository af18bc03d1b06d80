"""Tools: how functions are shown to the model, when a call is asked for, and how one is read.

A forced function, or "required" with one, constrains the answer to its arguments; "required" with
several to {"name", "arguments"} of one of them. With "auto" the answer is free, and one that is such
an object and nothing else counts as a call: a model this small decides badly, so nothing decides for
it. Knows text and JSON; no engine and no HTTP.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from m27.serve.errors import bad
from m27.serve.schema import ChatRequest, Function, NamedTool, ToolCall

NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class Calling:
    """What is asked of the tools. `schema` constrains the answer where it must be a call; `forced`
    is the function whose arguments alone are written."""

    functions: tuple[Function, ...] = ()
    schema: dict[str, Any] | None = None
    forced: str | None = None

    @property
    def watched(self) -> bool:
        """Whether an answer that is free may turn out to be a call."""
        return bool(self.functions) and self.schema is None


def calling(body: ChatRequest) -> Calling:
    """What `tools` and `tool_choice` ask for. Raises ApiError where they disagree."""
    functions = tuple(tool.function for tool in body.tools or ())
    names = [function.name for function in functions]
    if len(set(names)) != len(names):
        raise bad("two tools have the same name", "tools")
    choice = body.tool_choice or "auto"
    if isinstance(choice, NamedTool):
        if choice.function.name not in names:
            raise bad(f"tool_choice names no tool: {choice.function.name}", "tool_choice")
        functions = tuple(f for f in functions if f.name == choice.function.name)
        choice = "required"
    elif not functions and choice == "required":
        raise bad("tool_choice needs tools", "tool_choice")
    if choice == "none" or not functions:
        return Calling()
    if choice == "auto":
        return Calling(functions)
    if body.response_format is not None and body.response_format.type != "text":
        raise bad("a forced call and response_format cannot both be had", "response_format")
    if len(functions) == 1:
        return Calling(functions, functions[0].parameters or NOTHING, functions[0].name)
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": f.name}, "arguments": f.parameters or NOTHING},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for f in functions
    ]
    return Calling(functions, {"anyOf": calls})


def told(functions: Sequence[Function]) -> str:
    """The sentence of the system message that shows the functions to the model."""
    shown = [
        {"name": f.name, "description": f.description or "", "parameters": f.parameters or NOTHING}
        for f in functions
    ]
    return (
        "You can call these functions: "
        + json.dumps(shown, ensure_ascii=False)
        + '\nTo call one, answer with {"name": …, "arguments": {…}} and nothing else.'
    )


def spelled(calls: Sequence[ToolCall]) -> str:
    """Calls of an earlier turn as the model wrote them, one a line."""
    return "\n".join(
        f'{{"name": {json.dumps(c.function.name)}, "arguments": {c.function.arguments or "{}"}}}'
        for c in calls
    )


def read_call(text: str, functions: Sequence[Function]) -> tuple[str, str] | None:
    """Name and arguments (as JSON) where a text is a call of one of the functions, else None."""
    try:
        value = json.loads(text.strip())
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("arguments", {}), dict):
        return None
    if value.get("name") not in [f.name for f in functions] or set(value) - {"name", "arguments"}:
        return None
    return value["name"], json.dumps(value.get("arguments", {}), ensure_ascii=False)


def may_become_call(text: str) -> bool:
    """Whether a text that is still being written may end as a call."""
    return not text.strip() or text.lstrip().startswith("{")


def call_id() -> str:
    """A new id of a call."""
    return f"call_{secrets.token_hex(12)}"
