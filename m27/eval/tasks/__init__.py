"""The tasks, in the order of the table."""

from __future__ import annotations

from m27.eval.bench import Task
from m27.eval.tasks.caption_quality import Captions
from m27.eval.tasks.captions import EmojiCaptions
from m27.eval.tasks.coherence import INTERLEAVE
from m27.eval.tasks.cycles import CYCLES
from m27.eval.tasks.draw import DrawCifar, DrawEmoji
from m27.eval.tasks.grounding import GROUNDING, GROUNDING_PHOTOS
from m27.eval.tasks.hearing import INSTRUMENT_FAMILY, SoundsAmong
from m27.eval.tasks.language import Capital, Perplexity, manual, passages, stories
from m27.eval.tasks.naming import CIFAR10, EASY_VQA, INSTRUMENTS, SPOKEN_WORDS
from m27.eval.tasks.scenes import Scenes
from m27.eval.tasks.sounding import MakeSounds, SoundForPicture
from m27.eval.tasks.speech import HEAR_SPEECH, HEAR_SPEECH_REAL, Speak
from m27.eval.tasks.structure import Structure

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        CIFAR10,
        EASY_VQA,
        Scenes(),
        GROUNDING,
        GROUNDING_PHOTOS,
        Captions(),
        EmojiCaptions(),
        DrawEmoji(),
        DrawCifar(),
        HEAR_SPEECH,
        HEAR_SPEECH_REAL,
        SPOKEN_WORDS,
        Speak(),
        INSTRUMENT_FAMILY,
        INSTRUMENTS,
        SoundsAmong(),
        MakeSounds(),
        SoundForPicture(),
        *INTERLEAVE,
        Perplexity("perplexity", passages),
        Perplexity("perplexity-manual", manual),
        Perplexity("perplexity-stories", stories),
        Capital(),
        Structure(),
    )
}

# Asked by name alone: they are no rows of the card's table.
MORE: dict[str, Task] = {task.name: task for task in CYCLES}
