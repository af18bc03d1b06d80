"""Messages to segments: order, loss flags, and errors that name message and part."""

from __future__ import annotations

from typing import Any

import pytest

from m27.language.template import MessageError, segments


def test_chatml_without_a_default_system_message() -> None:
    out = segments([{"role": "user", "content": "Hi"}], generate=True)
    assert [(s.kind, s.text) for s in out] == [
        ("control", "<|im_start|>"), ("text", "user\nHi"), ("control", "<|im_end|>"),
        ("text", "\n"), ("control", "<|im_start|>"), ("text", "assistant\n"),
    ]  # fmt: skip
    assert not any(s.loss for s in out)


def test_loss_is_on_what_the_assistant_says_and_its_end() -> None:
    image = {"type": "image", "codes": [[1]]}
    out = segments(
        [
            {"role": "user", "content": "Draw"},
            {"role": "assistant", "content": [{"type": "text", "text": "Here: "}, image]},
        ]
    )
    trained = [(s.kind, s.text) for s in out if s.loss]
    assert trained == [("text", "Here: "), ("image", ""), ("control", "<|im_end|>")]
    assert out[-1].text == "\n"
    assert not out[-1].loss


def test_loss_flags_of_parts() -> None:
    quiet = {"type": "text", "text": "a", "loss": False}
    loud = {"type": "text", "text": "b", "loss": True}
    out = segments([{"role": "assistant", "content": [quiet, loud]}])
    assert [(s.text, s.loss) for s in out[2:5]] == [("a", False), ("b", True), ("<|im_end|>", True)]
    out = segments([{"role": "assistant", "content": [quiet]}])
    assert not any(s.loss for s in out)
    out = segments([{"role": "user", "content": [quiet, loud]}])
    assert [s.text for s in out if s.loss] == ["b"]
    assert out[1].text == "user\na"


def test_an_empty_answer_still_learns_to_end() -> None:
    out = segments([{"role": "assistant", "content": []}])
    assert [s.text for s in out if s.loss] == ["<|im_end|>"]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hi", "list of messages"),
        ({"role": "user"}, "list of messages"),
        (["hi"], "message 0: must be an object"),
        ([{"role": "robot", "content": "x"}], "message 0: role"),
        ([{"role": "user"}], "message 0: content"),
        ([{"role": "user", "content": 5}], "message 0: content"),
        ([{"role": "user", "content": b"x"}], "message 0: content"),
        ([{"role": "user", "content": "x", "nmae": "y"}], "message 0: unknown key 'nmae'"),
        ([{"role": "user", "content": ["x"]}], "message 0, part 0: must be an object"),
        ([{"role": "user", "content": [{"type": "video"}]}], "message 0, part 0: type"),
        ([{"role": "user", "content": [{"type": ["text"]}]}], "message 0, part 0: type"),
        ([{"role": "user", "content": [{"type": "text"}]}], "message 0, part 0: needs text"),
        ([{"role": "user", "content": [{"type": "text", "text": 5}]}], "text must be a string"),
        (
            [
                {"role": "user", "content": "x"},
                {"role": "assistant", "content": [{"type": "image"}]},
            ],
            "message 1, part 0: needs image or codes or path or bytes",
        ),
        (
            [{"role": "user", "content": [{"type": "audio", "codes": [1], "size": (1, 1)}]}],
            "message 0, part 0: unknown key 'size'",
        ),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a", "loss": 1}]}],
            "loss must be true or false",
        ),
    ],
)
def test_malformed_messages_are_named(messages: Any, message: str) -> None:
    with pytest.raises(MessageError, match=message):
        segments(messages)
