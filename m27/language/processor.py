"""Messages → ids and ids → parts, the two ways side by side.

Training, evaluation, the engine and the server all go through this one class. It joins tokenizer,
vocabulary and codecs; it knows nothing of models, of batches or of sampling.

Shapes: T samples at 16 kHz, N audio codes, H W pixels, h w grid of image codes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from m27.codec.media import MediaError, fit_image, read_audio, read_image
from m27.language.bytelevel import Speller, token_bytes
from m27.language.codecs import AudioCodec, Codecs, CodecsError, ImageCodec, Pixels, Samples
from m27.language.stream import StreamDecoder
from m27.language.template import Message, MessageError, Part, Segment, segments
from m27.language.vocabulary import MAX_GRID, Vocabulary, VocabularyError

STRIDE = 16  # pixels a code, along each side
DEFAULT_SIZE = (128, 128)


@dataclass(frozen=True)
class Encoded:
    """Ids of a conversation; `loss[i]` says whether `ids[i]` is to be predicted in training."""

    ids: list[int]
    loss: list[bool]


class Processor:
    """Encodes messages for the model and decodes its ids."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocabulary: Vocabulary,
        image_codec: ImageCodec | None = None,
        audio_codec: AudioCodec | None = None,
        folder: Path | None = None,
    ) -> None:
        """Without a codec, pictures or sounds can only be given, and are only returned, as codes.

        A codec that is not given is loaded from `folder` when it is first needed. The tokenizer is
        set to read control tokens as ordinary text from here on (`encode_special_tokens`).
        """
        tokenizer.encode_special_tokens = True
        self.vocabulary = vocabulary
        self._tokenizer = tokenizer
        names = [tokenizer.id_to_token(i) for i in range(vocabulary.text_size)]
        self._spelling = token_bytes(names)
        self._speller = Speller(data[0] for data in self._spelling if len(data) == 1)
        self._codecs = Codecs(
            (vocabulary.image_size, vocabulary.audio_size), image_codec, audio_codec, folder
        )

    @classmethod
    def load(cls, directory: str | Path) -> Processor:
        """Open a checkpoint's folder: `tokenizer.json`, the vocabulary, and the codecs when needed.

        The vocabulary is read from "vocabulary" in `m27.json` where there is one, else from the
        tokenizer. Raises VocabularyError where the files are missing or disagree.
        """
        folder = Path(directory)
        try:
            text = (folder / "tokenizer.json").read_text(encoding="utf-8")
            vocabulary = Vocabulary.from_tokenizer_json(json.loads(text))
            settings = folder / "m27.json"
            if settings.is_file():
                stated = json.loads(settings.read_text(encoding="utf-8")).get("vocabulary")
                if stated is not None and Vocabulary.from_json(stated) != vocabulary:
                    raise VocabularyError("m27.json and tokenizer.json describe two vocabularies")
            tokenizer = Tokenizer.from_str(text)
        except FileNotFoundError as error:
            raise VocabularyError(f"{folder}: no tokenizer.json there") from error
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise VocabularyError(f"{folder}: {error}") from error
        return cls(tokenizer, vocabulary, folder=folder)

    @property
    def codecs(self) -> Codecs:
        """Codes ↔ arrays, for whoever decodes on its own."""
        return self._codecs

    @property
    def spelling(self) -> Sequence[bytes]:
        """The bytes of each text id; a control id's are its name's."""
        return self._spelling

    @property
    def image_codec(self) -> ImageCodec | None:
        """The image codec, loaded on first use; None where there is none."""
        return self._codecs.image

    @property
    def audio_codec(self) -> AudioCodec | None:
        """The audio codec, loaded on first use; None where there is none."""
        return self._codecs.audio

    # Messages → ids

    def encode(self, messages: Sequence[Message], *, generate: bool = False) -> Encoded:
        """The ids of a conversation, and which of them carry loss (see `template.segments`).

        `generate` appends the opening of an assistant turn. Raises MessageError.
        """
        ids: list[int] = []
        loss: list[bool] = []
        for segment in segments(messages, generate):
            ids += self._encode_segment(segment)
            loss += [segment.loss] * (len(ids) - len(loss))
        return Encoded(ids, loss)

    def encode_text(self, text: str) -> list[int]:
        """The ids of a text; never a control id or a code, whatever the text spells.

        Characters that the base tokenizer has no bytes for become U+FFFD.
        """
        spellable = self._speller.spellable(text)
        ids: list[int] = self._tokenizer.encode(spellable, add_special_tokens=False).ids
        return ids

    def unconditional(self) -> list[int]:
        """The prompt that asks for nothing, for classifier-free guidance."""
        return self.encode([{"role": "user", "content": ""}], generate=True).ids

    def _encode_segment(self, segment: Segment) -> list[int]:
        if segment.kind == "control":
            return [self.vocabulary.control[segment.text]]
        if segment.kind == "text":
            return self.encode_text(segment.text)
        try:
            if segment.kind == "image":
                return self._encode_image(segment.part)
            return self._encode_audio(segment.part)
        except (MediaError, CodecsError, PartError) as error:
            raise MessageError(f"{segment.where}: {error}") from error

    def _encode_image(self, part: Message) -> list[int]:
        vocabulary = self.vocabulary
        codes = part.get("codes")
        if codes is None:
            codes = self._codecs.encode_image(pixels(part))
        codes_hw = _codes(codes, 2, vocabulary.image_size)
        height, width = codes_hw.shape
        if max(height, width) > MAX_GRID:
            raise PartError(f"a picture has at most {MAX_GRID} x {MAX_GRID} codes")
        start = vocabulary.image.start
        return [
            vocabulary.image_begin, vocabulary.heights[height - 1], vocabulary.widths[width - 1],
            *(codes_hw.reshape(-1) + start).tolist(), vocabulary.image_end,
        ]  # fmt: skip

    def _encode_audio(self, part: Message) -> list[int]:
        vocabulary = self.vocabulary
        codes = part.get("codes")
        if codes is None:
            codes = self._codecs.encode_audio(samples(part))
        codes_N = _codes(codes, 1, vocabulary.audio_size)
        spelled = (codes_N + vocabulary.audio.start).tolist()
        return [vocabulary.audio_begin, *spelled, vocabulary.audio_end]

    # Ids → parts

    def stream(self, decode: bool = True) -> StreamDecoder:
        """A decoder for the ids of one answer as they arrive, from after `assistant\\n`.

        With `decode` off no codec runs: pictures and sounds are given as codes alone.
        """
        codecs = self._codecs
        if not decode:
            codecs = Codecs((self.vocabulary.image_size, self.vocabulary.audio_size))
        return StreamDecoder(self.vocabulary, self._spelling, codecs)

    def decode(self, ids: Iterable[int]) -> list[Part]:
        """The parts of one answer: ids from after `assistant\\n`, with or without `<|im_end|>`.

        Pictures come with "image" (uint8 [H, W, 3]) and "codes", sounds with "audio" (float32 [T])
        and "codes"; without a codec with "codes" alone. Raises DecodeError where the ids are not a
        valid answer.
        """
        decoder = StreamDecoder(self.vocabulary, self._spelling, self._codecs, live_audio=False)
        events = [event for token in ids for event in decoder.push(int(token))]
        parts: list[Part] = []
        for event in [*events, *decoder.finish()]:
            if event["type"] == "text" and parts and parts[-1]["type"] == "text":
                parts[-1]["text"] += event["text"]
            elif event["type"] in ("text", "image", "audio"):
                parts.append(event)
        return parts


class PartError(ValueError):
    """What is wrong with a part, before message and part are named."""


def pixels(part: Message) -> Pixels:
    """What the codec reads of an image part: uint8 [H, W, 3], fitted to the part's size.

    Raises MediaError and PartError.
    """
    height, width = _size(part.get("size") or DEFAULT_SIZE)
    rgb = part.get("image")
    if rgb is None:
        rgb = read_image(_source(part))
    elif not isinstance(rgb, np.ndarray):
        raise PartError("image must be a uint8 array [H, W, 3]")
    letterbox = bool(part.get("letterbox", False))
    return fit_image(rgb, height, width, letterbox=letterbox, crop=True)


def samples(part: Message) -> Samples:
    """What the codec reads of an audio part: float32 [T] at 16 kHz in -1..1, not empty.

    Raises MediaError and PartError.
    """
    found = part.get("audio")
    if found is None:
        found = read_audio(_source(part))
    elif not (isinstance(found, np.ndarray) and found.ndim == 1 and found.size):
        raise PartError("audio must be a float32 array [T] at 16 kHz, not empty")
    clipped: Samples = np.clip(np.nan_to_num(found.astype(np.float32)), -1.0, 1.0)
    return clipped


def _size(size: Any) -> tuple[int, int]:
    side = MAX_GRID * STRIDE
    message = f"size must be (height, width), multiples of {STRIDE} up to {side}, not {size!r}"
    if not isinstance(size, Sequence) or len(size) != 2:
        raise PartError(message)
    for value in size:
        if not isinstance(value, int) or not 0 < value <= side or value % STRIDE:
            raise PartError(message)
    return size[0], size[1]


def _source(part: Message) -> bytes | str | Path:
    source = part.get("path")
    if source is not None:
        if not isinstance(source, (str, Path)):
            raise PartError("path must be a string")
        return source
    source = part.get("bytes")
    if not isinstance(source, (bytes, bytearray)):
        raise PartError("bytes must be bytes")
    return bytes(source)


def _codes(codes: Any, dimensions: int, size: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    form = "[N]" if dimensions == 1 else "[h, w]"
    try:
        array = np.asarray(codes)
    except ValueError as error:
        raise PartError(f"codes must be integers {form}") from error
    if array.ndim != dimensions or not array.size or array.dtype.kind not in "iu":
        raise PartError(f"codes must be integers {form}, not empty")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= size:
        raise PartError(f"code {low if low < 0 else high} is outside 0..{size - 1}")
    return array.astype(np.int64)
