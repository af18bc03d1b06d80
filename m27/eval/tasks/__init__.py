"""The tasks, in the order of the table."""

from __future__ import annotations

from m27.eval.bench import Task
from m27.eval.tasks.captions import EmojiCaptions
from m27.eval.tasks.language import Capital, Perplexity, manual, passages
from m27.eval.tasks.naming import CIFAR10, EASY_VQA, INSTRUMENTS, SPOKEN_WORDS
from m27.eval.tasks.structure import Structure

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        CIFAR10,
        EASY_VQA,
        EmojiCaptions(),
        INSTRUMENTS,
        SPOKEN_WORDS,
        Perplexity("perplexity", passages),
        Perplexity("perplexity-manual", manual),
        Capital(),
        Structure(),
    )
}
