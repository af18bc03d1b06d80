"""JSONL of preferences: a prompt with a better and a worse answer, for tuning by preference (DPO).

Two forms: OpenAI's (`input.messages`, `preferred_output`, `non_preferred_output`) and that of TRL
(`prompt`, `chosen`, `rejected`: strings, or lists of messages). A record becomes one document whose
`messages` are the prompt with the better answer and whose one branch is the prompt with the worse one;
`preference` marks it, so that nobody trains on both answers alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m27.data.importers import chat
from m27.data.importers.base import Options, Record, by_line, conversation
from m27.data.sources.base import Document
from m27.language.template import MessageError

TASK = "preference"
OPENAI = ("input", "preferred_output", "non_preferred_output")
TRL = ("prompt", "chosen", "rejected")


def records(path: Path, options: Options) -> Iterator[Record]:
    """The records of a file of preferences, in order. Raises OSError."""
    return by_line(path, lambda value, line: _document(value, path, line, options.root))


def _document(value: Any, path: Path, line: int, root: Path) -> Document:
    keys = TRL if isinstance(value, dict) and "chosen" in value else OPENAI
    record = chat.checked(value, (*keys, *chat.NAMES))
    missing = [key for key in keys if key not in record]
    if missing:
        raise MessageError(f"{missing[0]} is missing")
    prompt, role = record[keys[0]], "user"
    if keys is OPENAI:
        prompt = chat.checked(prompt, ("messages",)).get("messages")
    asked = _messages(prompt, role, keys[0], root)
    better, worse = (
        [*asked, *_messages(record[key], "assistant", key, root)] for key in keys[1:]
    )
    if better == worse:
        raise MessageError(f"{keys[1]} and {keys[2]} are the same")
    document = chat.named(record, path, line, TASK, better)
    document["branches"] = [worse]
    document["preference"] = True
    return document


def _messages(found: Any, role: str, key: str, root: Path) -> list[dict[str, Any]]:
    """The messages under a key, in our form, with no loss but on the answers. MessageError."""
    if isinstance(found, str):
        found = [{"role": role, "content": found}]
    try:
        messages = chat.ours(found, root)
        if role == "assistant":
            if any(isinstance(m, dict) and m.get("role") != "assistant" for m in messages):
                raise MessageError("every message of an answer must be the assistant's")
            return conversation(messages)
        return _silent(messages)
    except MessageError as error:
        raise MessageError(f"{key}: {error}") from None


def _silent(messages: list[Any]) -> list[dict[str, Any]]:
    """A prompt: checked, and what the assistant said earlier in it is not learned."""
    out = []
    # An answer that is only there so that `conversation` has one to check.
    for message in conversation([*messages, {"role": "assistant", "content": "…"}])[:-1]:
        if message["role"] == "assistant":
            parts = [{**part, "loss": False} for part in message["content"]]
            message = {**message, "content": parts}
        out.append(message)
    if not out or out[-1]["role"] == "assistant":
        raise MessageError("the last message of a prompt must not be the assistant's")
    return out
