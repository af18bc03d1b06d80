"""Ids → events, one id at a time: the way out of the model.

A strict parser of what the grammar allows: text, whole pictures, whole sounds, then `<|im_end|>`.
Anything else is a DecodeError that names the position. Knows nothing of models or of sampling.
"""

from __future__ import annotations

import codecs as unicode_codecs
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from m27.language.codecs import AudioStream, Codecs, Samples
from m27.language.vocabulary import Vocabulary

Event = dict[str, Any]
State = Literal["text", "height", "width", "image", "image_end", "audio", "done"]


class DecodeError(ValueError):
    """Ids that are not a valid answer; the text names the position and the id."""


class StreamDecoder:
    """Turns the ids of one answer into events.

    Events: `{"type": "text", "text": delta}`, never half a character; `{"type": "image_begin",
    "grid": (h, w)}`; `{"type": "image", "image": uint8 [H, W, 3], "codes": int64 [h, w]}`;
    `{"type": "audio_begin"}`; `{"type": "audio_delta", "audio": float32 [T]}`;
    `{"type": "audio", "audio": float32 [T], "codes": int64 [N]}`, the deltas joined.
    Without a codec the arrays "image" and "audio", and the deltas, are absent and codes remain.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        spelling: Sequence[bytes],
        codecs: Codecs,
        live_audio: bool = True,
    ) -> None:
        """`spelling[id]` are the bytes of a text id; with `live_audio` off no deltas are made."""
        self._vocabulary = vocabulary
        self._spelling = spelling
        self._codecs = codecs
        self._live_audio = live_audio
        self._utf8 = unicode_codecs.getincrementaldecoder("utf-8")("replace")
        self._state: State = "text"
        self._position = 0
        self._grid = (0, 0)
        self._codes: list[int] = []
        self._stream: AudioStream | None = None
        self._deltas: list[Samples] = []

    @property
    def done(self) -> bool:
        """Whether `<|im_end|>` has been pushed."""
        return self._state == "done"

    def code(self, token: int) -> int | None:
        """The code that an id would be here, inside a picture or a sound; None for any other id."""
        codes = {"image": self._vocabulary.image, "audio": self._vocabulary.audio}.get(self._state)
        return token - codes.start if codes is not None and token in codes else None

    def push(self, token: int) -> list[Event]:
        """The events that one more id brings about. Raises DecodeError."""
        events = getattr(self, f"_in_{self._state}")(token)
        self._position += 1
        return list(events)

    def finish(self) -> list[Event]:
        """The events still due where the ids end; DecodeError inside a picture or a sound."""
        if self._state not in ("text", "done"):
            raise DecodeError(f"the answer ends inside a span, at position {self._position}")
        return self._flush_text()

    def _in_text(self, token: int) -> list[Event]:
        vocabulary = self._vocabulary
        if vocabulary.kind(token) == "text":
            return _text(self._utf8.decode(self._spelling[token]))
        events = self._flush_text()
        self._codes = []
        if token == vocabulary.image_begin:
            self._state = "height"
        elif token == vocabulary.audio_begin:
            self._state = "audio"
            codec = self._codecs.audio if self._live_audio else None
            self._stream, self._deltas = codec.stream() if codec else None, []
            events.append({"type": "audio_begin"})
        elif token == vocabulary.turn_end:
            self._state = "done"
        else:
            raise self._unexpected(token, "text")
        return events

    def _in_height(self, token: int) -> list[Event]:
        if token not in self._vocabulary.heights:
            raise self._unexpected(token, "a picture's height")
        self._grid = (self._vocabulary.heights.index(token) + 1, 0)
        self._state = "width"
        return []

    def _in_width(self, token: int) -> list[Event]:
        if token not in self._vocabulary.widths:
            raise self._unexpected(token, "a picture's width")
        self._grid = (self._grid[0], self._vocabulary.widths.index(token) + 1)
        self._state = "image"
        return [{"type": "image_begin", "grid": self._grid}]

    def _in_image(self, token: int) -> list[Event]:
        if token not in self._vocabulary.image:
            raise self._unexpected(token, "an image code")
        self._codes.append(token - self._vocabulary.image.start)
        if len(self._codes) == self._grid[0] * self._grid[1]:
            self._state = "image_end"
        return []

    def _in_image_end(self, token: int) -> list[Event]:
        if token != self._vocabulary.image_end:
            raise self._unexpected(token, "the end of a picture")
        self._state = "text"
        codes_hw = np.array(self._codes, dtype=np.int64).reshape(self._grid)
        rgb = self._codecs.decode_image(codes_hw)
        return [{"type": "image", **({} if rgb is None else {"image": rgb}), "codes": codes_hw}]

    def _in_audio(self, token: int) -> list[Event]:
        if token in self._vocabulary.audio:
            code = token - self._vocabulary.audio.start
            self._codes.append(code)
            return self._delta(self._stream.push(torch.tensor([code]))) if self._stream else []
        if token != self._vocabulary.audio_end or not self._codes:
            raise self._unexpected(token, "an audio code")
        self._state = "text"
        events = self._delta(self._stream.flush()) if self._stream else []
        codes_N = np.array(self._codes, dtype=np.int64)
        samples = self._codecs.decode_audio(codes_N) if not self._live_audio else None
        if self._stream is not None:
            samples = np.concatenate(self._deltas) if self._deltas else np.zeros(0, np.float32)
            self._stream = None
        sound = {} if samples is None else {"audio": samples}
        return [*events, {"type": "audio", **sound, "codes": codes_N}]

    def _in_done(self, token: int) -> list[Event]:
        raise self._unexpected(token, "nothing after the end of the turn")

    def _delta(self, samples: Samples) -> list[Event]:
        if not len(samples):
            return []
        self._deltas.append(np.asarray(samples, dtype=np.float32))
        return [{"type": "audio_delta", "audio": self._deltas[-1]}]

    def _flush_text(self) -> list[Event]:
        return _text(self._utf8.decode(b"", final=True))

    def _unexpected(self, token: int, wanted: str) -> DecodeError:
        return DecodeError(f"position {self._position}: expected {wanted}, not id {token}")


def _text(delta: str) -> list[Event]:
    return [{"type": "text", "text": delta}] if delta else []
