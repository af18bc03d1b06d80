"""Plain chat in the base's own words, so that learning pictures and sounds does not unlearn language.

    python -m recipes.replay --threads 2

The base answers a few hundred questions; what it said is a training text that keeps its distribution
where it was. Written once, as JSON lines of messages, under the cache folder; delete the file to have
it written anew. Runs on the CPU, and needs `python -m recipes.nano --stage base` before.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

import torch

from m27 import runtime
from m27.codec.media import write_atomic
from m27.data import registry
from m27.data.progress import Progress
from m27.data.sources.base import Document, Side
from m27.infer.engine import Engine
from m27.infer.request import Request
from m27.infer.scheduler import Limits
from m27.infer.torch_runner import TorchRunner
from m27.language.processor import Processor
from recipes import base

COUNT, LONGEST, BATCH, SEED = 1_200, 96, 64, 27
THINGS = (
    "the sea, rivers, volcanoes, the moon, dogs, cats, horses, bees, whales, trees, bread, cheese, "
    "coffee, tea, rice, football, chess, music, the piano, painting, photography, cooking, reading, "
    "writing, sleep, friendship, school, money, trains, bicycles, airplanes, ships, computers, the "
    "internet, electricity, light, gravity, atoms, the heart, the brain, vaccines, winter, rain, "
    "deserts, mountains, castles, markets, gardens, clocks, maps, glass, paper, gold, salt, ice"
).split(", ")
PLACES = (
    "Italy, Japan, Brazil, Egypt, Canada, Spain, Germany, India, Kenya, Mexico, Norway, Peru, Poland, "
    "China, Greece, Turkey, Sweden, Argentina, Portugal, Vietnam"
).split(", ")
ASKS = (
    "What is the use of {thing}?",
    "Tell me something about {thing}.",
    "Explain {thing} to a child.",
    "Write a short poem about {thing}.",
    "Give me three facts about {thing}.",
    "Why do people like {thing}?",
    "Write two sentences about {thing}.",
    "What is the history of {thing}?",
    "How would you describe {thing}?",
    "Ask me a question about {thing}.",
    "What is the capital of {place}?",
    "What food is {place} known for?",
    "Where is {place}?",
    "What is {a} plus {b}?",
    "Is {a} greater than {b}?",
    "Hello! How are you today?",
    "Who are you?",
    "Write a short email to a colleague about {thing}.",
    "Translate into French: I like {thing}.",
    "Write a Python function that adds {a} to a number.",
)


def questions(count: int, seed: int) -> list[str]:
    """``count`` different questions, always the same for a seed."""
    rng = random.Random(seed)
    asked: dict[str, None] = {}
    for _ in range(count * 50):
        form = ASKS[len(asked) % len(ASKS)] if len(asked) < 8 * len(ASKS) else rng.choice(ASKS)
        fields = {"thing": rng.choice(THINGS), "place": rng.choice(PLACES)}
        numbers = {"a": rng.randint(2, 99), "b": rng.randint(2, 99)}
        question = form.format(**fields, **numbers)
        if question in asked:
            form = rng.choice(ASKS[:14])
            question = form.format(thing=rng.choice(THINGS), place=rng.choice(PLACES), **numbers)
        asked[question] = None
        if len(asked) == count:
            break
    return list(asked)


def write(path: Path, count: int = COUNT) -> None:
    """Let the base answer ``count`` questions (temperature 0.8, the likeliest 50) and write them."""
    gguf = base.open_gguf()
    decoder = base.text_decoder(gguf).to(runtime.dtype("auto", torch.device("cpu"))).eval()
    processor = Processor.load(base.WEIGHTS)
    asked = questions(count, SEED)
    requests = [
        Request(
            [{"role": "user", "content": question}], modalities=("text",), max_tokens=LONGEST,
            temperature=0.8, top_k=50, top_p=1.0, repetition_penalty=1.0, seed=SEED + number,
        )
        for number, question in enumerate(asked)
    ]  # fmt: skip
    engine = Engine(TorchRunner(decoder), processor, Limits(sequences=BATCH))
    with Progress("replay", count, "answers") as bar:
        answers = engine.answer(requests, bar.add)
    lines = []
    for question, answer in zip(asked, answers, strict=True):
        text = answer.text.strip()
        if answer.usage.finish_reason == "length":  # cut: end at the last whole sentence
            text = text[: max(text.rfind(mark) for mark in ".!?\n") + 1]
        if text:
            lines.append(json.dumps({"question": question, "answer": text}))
    write_atomic(path, ("\n".join(lines) + "\n").encode())


def kept() -> Path:
    """Where the answers are kept."""
    return registry.cache_folder() / "generated" / f"replay-{SEED}.jsonl"


def documents(split: Side, seed: int) -> Iterator[Document]:
    """The answers as documents of the task "text", written first if need be; all on the train side."""
    path = kept()
    if split != "train":
        return
    if not path.is_file():
        write(path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    random.Random(seed).shuffle(rows)
    for number, row in enumerate(rows):
        messages = [
            {"role": "user", "content": row["question"]},
            {"role": "assistant", "content": row["answer"]},
        ]
        yield Document(id=f"replay/{number}", task="text", source="replay", messages=messages)


def main() -> None:
    """Write the answers, unless they are there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--count", type=int, default=COUNT)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not kept().is_file():
        write(kept(), arguments.count)
    print(kept())


if __name__ == "__main__":
    main()
