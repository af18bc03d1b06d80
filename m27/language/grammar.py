"""Which ids may come next in an answer: a finite-state machine that makes every answer valid.

Text may turn into a picture or a sound and back. A picture is `<|image|>`, height, width, exactly
height x width codes and `<|/image|>`; a sound is `<|audio|>`, codes and `<|/audio|>`; `<|im_end|>`
closes the answer. Whatever ids a sampler picks among the allowed ones, the answer parses, keeps to
the limits and closes within the budget. Knows nothing of logits, models or codecs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

from m27.language.vocabulary import MAX_GRID, Span, Vocabulary

Medium = Literal["text", "image", "audio"]
State = Literal["text", "height", "width", "image", "image_end", "audio", "done"]

MEDIA: tuple[Medium, ...] = ("text", "image", "audio")


class GrammarError(ValueError):
    """Settings that no answer can satisfy, or an id that was not allowed."""


class Grammar:
    """The state of one answer, from just after `<|im_start|>assistant\\n`.

    `modalities`: the media that may be produced. Without "text" at least one picture or sound is.
    `plan`: the forced order of media, each text of at least one id; a text in front of a medium
        ends when the sampler opens that medium (see `redirects`).
    `max_images`, `max_sounds`: how many of each; `max_text`: ids of text in a row (None: no bound).
    `min_text`: ids of text before an answer without a plan may end, as far as its budget goes.
    `image_grid`: the (height, width) in codes of every picture, or None for any up to 32 x 32.
    `min_audio_codes`, `max_audio_codes`: the bounds of one sound's length.

    Implements the `Constraint` protocol of `m27.model.generate`. Raises GrammarError for settings
    that contradict each other.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        modalities: Sequence[str] = MEDIA,
        plan: Sequence[str] | None = None,
        max_images: int = 8,
        max_sounds: int = 4,
        image_grid: tuple[int, int] | None = (8, 8),
        max_audio_codes: int = 400,
        min_audio_codes: int = 1,
        max_text: int | None = None,
        min_text: int = 0,
    ) -> None:
        if image_grid is not None and not all(1 <= side <= MAX_GRID for side in image_grid):
            raise GrammarError(f"image_grid must be within 1..{MAX_GRID}, not {image_grid}")
        if not 1 <= min_audio_codes <= max_audio_codes:
            raise GrammarError("audio codes must satisfy 1 <= min_audio_codes <= max_audio_codes")
        if max_text is not None and max_text < 1:
            raise GrammarError("max_text must be at least 1")
        if min_text > (min_text if max_text is None else max_text):
            raise GrammarError(f"min_text {min_text} is more than max_text {max_text}")
        self.vocabulary = vocabulary
        self._grid = image_grid
        self._audio_codes = (min_audio_codes, max_audio_codes)
        self._max_text, self._min_text = max_text, min_text
        # The fewest ids that each medium takes, its opening and closing included.
        area = image_grid[0] * image_grid[1] if image_grid else 1
        self._least = {"text": 1, "image": area + 4, "audio": min_audio_codes + 2}
        self._quota = {"image": max_images, "audio": max_sounds}
        self._media = _media(modalities, self._quota)
        self._plan = None if plan is None else self._checked_plan(plan)
        # _after[k]: the fewest ids that may follow item k of the plan, `<|im_end|>` included.
        rest = [self._least[item] for item in (self._plan or [])]
        self._after = [sum(rest[k + 1 :]) + 1 for k in range(len(rest))]

        self._state: State = "text"
        self._item = 0  # index into the plan
        self._run = 0  # ids of text since the last medium, or codes in the open span
        self._made = {"image": 0, "audio": 0}
        self._size = (0, 0)  # grid of the open picture
        self._left: int | None = None  # ids of the budget that are still to be spent
        self._withheld = False  # whether the budget kept a continuation from the last `allowed()`
        self._known: tuple[Span, ...] | None = (
            None  # what `allowed()` gave, until the state changes
        )
        self._openings = {"image": vocabulary.image_begin, "audio": vocabulary.audio_begin}
        self.truncated = False

    def clone(self) -> Grammar:
        """An independent copy in the same state."""
        other = copy.copy(self)
        other._made = dict(self._made)
        return other

    def budget(self, ids: int) -> None:
        """Allow at most `ids` more, `<|im_end|>` included.

        From here on a picture is begun only if it fits, and sounds and texts are closed in time;
        `truncated` tells afterwards whether one was. Raises GrammarError if `needed()` is more.
        """
        if ids < self.needed():
            raise GrammarError(f"this answer takes at least {self.needed()} ids, {ids} are allowed")
        self._left, self._known = ids, None

    def needed(self) -> int:
        """The fewest ids in which the answer can still be completed; 0 when it is."""
        tail = self._tail()
        match self._state:
            case "height":
                return self._least["image"] - 1 + tail
            case "width":
                return 2 + self._size[0] * (self._grid[1] if self._grid else 1) + tail
            case "image":
                return self._size[0] * self._size[1] - self._run + 1 + tail
            case "image_end":
                return 1 + tail
            case "audio":
                return max(0, self._audio_codes[0] - self._run) + 1 + tail
            case "done":
                return 0
        if self._plan is not None:
            begun = self._current() == "text" and self._run > 0
            return tail + (0 if begun or self._over() else self._least[self._current()])
        if self._may_stop():
            return 1
        return 1 + min(self._least[medium] for medium in self._media)

    # The Constraint protocol

    def medium(self) -> Medium:
        """The medium of the next id: "image" or "audio" inside an open span, else "text"."""
        if self._state in ("text", "done"):
            return "text"
        return "audio" if self._state == "audio" else "image"

    def done(self) -> bool:
        """Whether the answer is closed."""
        return self._state == "done"

    def picture(self) -> tuple[int, int, int] | None:
        """(height, width, codes so far) of the picture whose next code is due, or None."""
        return (*self._size, self._run) if self._state == "image" else None

    def allowed(self) -> list[Span]:
        """The ids that may come next, as half-open ranges; empty only when done."""
        if self._known is None:
            self._known = tuple(self._allowed())
        return list(self._known)

    def _allowed(self) -> list[Span]:
        self._withheld = False
        vocabulary, tail = self.vocabulary, self._tail()
        match self._state:
            case "height":
                if self._grid:
                    return [_one(vocabulary.heights[self._grid[0] - 1])]
                most = MAX_GRID if self._left is None else self._left - 3 - tail
                return [_first(vocabulary.heights, most)]
            case "width":
                if self._grid:
                    return [_one(vocabulary.widths[self._grid[1] - 1])]
                room = None if self._left is None else self._left - 2 - tail
                most = MAX_GRID if room is None else room // self._size[0]
                return [_first(vocabulary.widths, most)]
            case "image":
                return [(vocabulary.image.start, vocabulary.image.stop)]
            case "image_end":
                return [_one(vocabulary.image_end)]
            case "audio":
                return self._allowed_in_sound(tail)
            case "done":
                return []
        return self._allowed_in_plan(tail) if self._plan is not None else self._allowed_in_text()

    def redirects(self) -> list[Span]:
        """Pairs (from, to) of ids: what the model gives to `from` is meant for `to`.

        In a text in front of a forced medium the model may want to end its turn. That is not
        allowed there, and means that the text is complete: before it masks, a sampler does well to
        add the probability of `<|im_end|>` to that of the opening of the medium.
        """
        if self._state != "text" or self._plan is None or self._over() or not self._run:
            return []
        target = self._closing()
        return [] if target == self.vocabulary.turn_end else [(self.vocabulary.turn_end, target)]

    def advance(self, id: int) -> None:
        """Take note of the id that was chosen. Raises GrammarError if it is not allowed."""
        if not any(start <= id < stop for start, stop in self.allowed()):
            raise GrammarError(f"id {id} is not allowed {'when done' if self.done() else 'here'}")
        vocabulary, self._known = self.vocabulary, None
        if self._left is not None:
            self._left -= 1
        match self._state:
            case "text":
                self._advance_in_text(id)
            case "height":
                self._size = (vocabulary.heights.index(id) + 1, 0)
                self._state = "width"
            case "width":
                self._size = (self._size[0], vocabulary.widths.index(id) + 1)
                self._state = "image"
            case "image":
                self._run += 1
                if self._run == self._size[0] * self._size[1]:
                    self._state = "image_end"
            case "audio" if id != vocabulary.audio_end:
                self._run += 1
            case "image_end" | "audio":
                self.truncated |= self._withheld
                self._state, self._run = "text", 0
                self._item += 1

    def _advance_in_text(self, id: int) -> None:
        vocabulary = self.vocabulary
        if id == vocabulary.turn_end:
            self.truncated |= self._withheld
            self._state = "done"
        elif id in (vocabulary.image_begin, vocabulary.audio_begin):
            if self._plan is not None and self._current() == "text":
                self.truncated |= self._withheld
                self._item += 1
            medium: Medium = "image" if id == vocabulary.image_begin else "audio"
            self._made[medium] += 1
            self._run = 0
            self._state = "height" if medium == "image" else "audio"
        else:
            self._run += 1

    def _allowed_in_text(self) -> list[Span]:
        spans: list[Span] = []
        vocabulary = self.vocabulary
        if "text" in self._media and not self._text_full() and self._continues(2):
            spans += vocabulary.text_spans
        for medium, opening in self._openings.items():
            cost = self._least[medium] + 1
            left = self._made[medium] < self._quota[medium]
            if medium in self._media and left and (self._left is None or cost <= self._left):
                spans.append(_one(opening))
        return [*spans, _one(vocabulary.turn_end)] if self._may_stop() else spans

    def _allowed_in_plan(self, tail: int) -> list[Span]:
        if self._over():
            return [_one(self.vocabulary.turn_end)]
        if self._current() != "text":
            return [_one(self._openings[self._current()])]
        spans: list[Span] = []
        if not self._text_full() and self._continues(1 + tail):
            spans += self.vocabulary.text_spans
        return [*spans, _one(self._closing())] if self._run else spans

    def _allowed_in_sound(self, tail: int) -> list[Span]:
        least, most = self._audio_codes
        spans: list[Span] = []
        codes = self.vocabulary.audio
        if self._run < most and self._continues(max(0, least - self._run - 1) + 2 + tail):
            spans.append((codes.start, codes.stop))
        return [*spans, _one(self.vocabulary.audio_end)] if self._run >= least else spans

    def _checked_plan(self, plan: Sequence[str]) -> list[str]:
        if isinstance(plan, str) or not plan:
            raise GrammarError("a plan is a list of at least one medium")
        for item in plan:
            if item not in self._media:
                raise GrammarError(f"the plan asks for {item!r}, which is not among the modalities")
        for medium, quota in self._quota.items():
            if list(plan).count(medium) > quota:
                raise GrammarError(f"the plan asks for more than {quota} of {medium!r}")
        # Two texts in a row are one text: nothing would mark where the first ends.
        return [item for k, item in enumerate(plan) if not (k and item == plan[k - 1] == "text")]

    def _current(self) -> str:
        return "" if self._plan is None or self._over() else self._plan[self._item]

    def _over(self) -> bool:
        return self._plan is not None and self._item >= len(self._plan)

    def _closing(self) -> int:
        """What ends the current text of the plan: the next medium's opening, or the turn's end."""
        following = (self._plan or [])[self._item + 1 : self._item + 2]
        return self._openings[following[0]] if following else self.vocabulary.turn_end

    def _tail(self) -> int:
        """The fewest ids after the current item."""
        return 1 if self._plan is None or self._over() else self._after[self._item]

    def _may_stop(self) -> bool:
        if any(self._made.values()):
            return True
        enough = self._run >= self._min_text or (self._left is not None and self._left <= 1)
        return "text" in self._media and enough

    def _text_full(self) -> bool:
        return self._max_text is not None and self._run >= self._max_text

    def _continues(self, cost: int) -> bool:
        """Whether the budget allows a continuation that takes at least `cost` ids in all."""
        self._withheld = self._left is not None and cost > self._left
        return not self._withheld


def _media(modalities: Sequence[str], quota: dict[str, int]) -> frozenset[str]:
    if isinstance(modalities, str) or not set(modalities) <= set(MEDIA) or not modalities:
        raise GrammarError(f"modalities must be some of {', '.join(MEDIA)}, not {modalities!r}")
    media = frozenset(m for m in modalities if quota.get(m, 1) > 0)
    if not media:
        raise GrammarError("the limits leave no medium to produce")
    return media


def _one(id: int) -> Span:
    return (id, id + 1)


def _first(ids: range, count: int) -> Span:
    return (ids.start, ids.start + min(len(ids), count))
