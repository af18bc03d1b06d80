"""Messages → segments: the chat form, checked, in the order in which it will be spelled.

A message is `{"role", "content"}`; content is a string or a list of typed parts. The outcome is a
list of segments, each a control token, a run of text or one picture or sound, with a loss flag.
Knows nothing of ids, of tokenizers or of codecs. `CHAT_TEMPLATE` says the same to other engines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Message = Mapping[str, Any]
Part = dict[str, Any]

ROLES = ("system", "user", "assistant", "tool")
SOURCES = {
    "text": ("text",),
    "image": ("image", "codes", "path", "bytes"),
    "audio": ("audio", "codes", "path", "bytes"),
}
OPTIONS = {"text": ("loss",), "image": ("loss", "size", "letterbox"), "audio": ("loss",)}

# Jinja, for any engine that opens the checkpoint. It renders to one string, which the engine then
# parses: unlike `segments`, it cannot tell a typed control token from a real one.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'text' -%}
{{- part['text'] -}}
{%- elif part['type'] == 'image' and part['codes'] is defined -%}
{{- '<|image|><|h' ~ (part['codes'] | length) ~ '|><|w' ~ (part['codes'][0] | length) ~ '|>' -}}
{%- for row in part['codes'] -%}
{%- for code in row -%}
{{- '<|i' ~ code ~ '|>' -}}
{%- endfor -%}
{%- endfor -%}
{{- '<|/image|>' -}}
{%- elif part['type'] == 'audio' and part['codes'] is defined -%}
{{- '<|audio|>' -}}
{%- for code in part['codes'] -%}
{{- '<|a' ~ code ~ '|>' -}}
{%- endfor -%}
{{- '<|/audio|>' -}}
{%- else -%}
{{- raise_exception('a part must be text, or an image or audio part that carries its codes') -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


class MessageError(ValueError):
    """A malformed message; the text names the message and the part by index, from 0."""


@dataclass(frozen=True)
class Segment:
    """One step of the template.

    `kind` is "control" (`text` is the token's name), "text", "image" or "audio" (`part` holds the
    medium); `loss` says whether it is trained on; `where` names its origin for error messages.
    """

    kind: Literal["control", "text", "image", "audio"]
    text: str = ""
    part: Mapping[str, Any] = field(default_factory=dict)
    loss: bool = False
    where: str = ""


def segments(messages: Sequence[Message], generate: bool = False) -> list[Segment]:
    """The segments of a conversation in ChatML, without any default system message.

    Loss is set on what the assistant says and on the `<|im_end|>` after it, unless a part says
    `"loss": false`; parts of other roles carry none unless they say `"loss": true`. With `generate`
    the opening of an assistant turn follows. Runs of text with one loss flag become one segment, so
    that they are tokenised as one text. Raises MessageError.
    """
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise MessageError("messages must be a list of messages")
    out: list[Segment] = []
    for index, message in enumerate(messages):
        where = f"message {index}"
        role, parts = check_message(message, where)
        assistant = role == "assistant"
        _open_turn(out, role)
        losses = [bool(part.get("loss", assistant)) for part in parts]
        # What the assistant says starts a text of its own, as it does when it is generated.
        fresh = assistant
        for n, (part, loss) in enumerate(zip(parts, losses, strict=True)):
            if part["type"] == "text":
                _add_text(out, part["text"], loss, fresh)
            else:
                out.append(Segment(part["type"], part=part, loss=loss, where=f"{where}, part {n}"))
            fresh = False
        spoken = assistant and (any(losses) or not losses)
        out.append(Segment("control", "<|im_end|>", loss=spoken))
        _add_text(out, "\n", False, True)
    if generate:
        _open_turn(out, "assistant")
    return out


def check_message(message: Any, where: str) -> tuple[str, list[Part]]:
    """The role and the parts of one message, or MessageError that starts with `where`."""
    if not isinstance(message, Mapping):
        raise MessageError(f"{where}: must be an object with role and content")
    unknown = set(message) - {"role", "content"}
    if unknown:
        raise MessageError(f"{where}: unknown key {_names(unknown)}")
    role = message.get("role")
    if role not in ROLES:
        raise MessageError(f"{where}: role must be one of {', '.join(ROLES)}, not {role!r}")
    content = message.get("content")
    if isinstance(content, str):
        return role, [{"type": "text", "text": content}]
    if not isinstance(content, Sequence) or isinstance(content, (bytes, bytearray)):
        raise MessageError(f"{where}: content must be a string or a list of parts")
    return role, [check_part(part, f"{where}, part {n}") for n, part in enumerate(content)]


def check_part(part: Any, where: str) -> Part:
    """One part with its keys checked (not its media), or MessageError that starts with `where`."""
    if not isinstance(part, Mapping):
        raise MessageError(f"{where}: must be an object with a type")
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in SOURCES:
        raise MessageError(f"{where}: type must be text, image or audio, not {kind!r}")
    unknown = set(part) - {"type", *SOURCES[kind], *OPTIONS[kind]}
    if unknown:
        raise MessageError(f"{where}: unknown key {_names(unknown)} in a part of type {kind}")
    if not any(part.get(key) is not None for key in SOURCES[kind]):
        raise MessageError(f"{where}: needs {' or '.join(SOURCES[kind])}")
    if kind == "text" and not isinstance(part["text"], str):
        raise MessageError(f"{where}: text must be a string")
    if not isinstance(part.get("loss", False), bool):
        raise MessageError(f"{where}: loss must be true or false")
    return dict(part)


def _open_turn(out: list[Segment], role: str) -> None:
    out.append(Segment("control", "<|im_start|>"))
    _add_text(out, f"{role}\n", False, True)


def _add_text(out: list[Segment], text: str, loss: bool, fresh: bool) -> None:
    last = out[-1] if out else None
    if last is not None and last.kind == "text" and last.loss == loss and not fresh:
        out[-1] = Segment("text", last.text + text, loss=loss)
    elif text:
        out.append(Segment("text", text, loss=loss))


def _names(keys: set[Any]) -> str:
    return ", ".join(sorted(repr(key) for key in keys))
