"""Questions a second of `m27 eval` beside loops of transformers' generate, the same model and the same answers.

    .venv/bin/python -m benchmarks.evaluate
    .venv/bin/python -m benchmarks.evaluate --only "m27 bfloat16" "loop bfloat16" --samples 8      # a trial

Half the questions are held-out photographs (as codes, for both sides), half are words; at most 24 tokens an answer.
"m27": the whole of `m27 eval`, with answerer, engine, scorer and every answer written to the disk. "loop": generate of
transformers on the exported checkpoint, one question after another; "batches": 16 at a time, padded on the left, sorted
by length. Both sides start with the model in memory and have asked a few other questions. A run adds its seconds to
those that the file has of the same samples; ratios are of medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from benchmarks.comparison import CAPITALS
from benchmarks.peers.install import MODEL, export
from m27.codec.media import read_image, write_atomic
from m27.data.sources import cifar10
from m27.data.sources.base import of_split
from m27.eval.answerers.base import Settings
from m27.eval.answerers.checkpoint import Checkpoint
from m27.eval.ask import Plan, ask
from m27.eval.metrics import METRICS
from m27.eval.samples import Sample, data_hash, prompt_hash
from m27.language.processor import Processor

ROOT = Path(__file__).resolve().parent.parent
TOKENS, BATCH, WARM = 24, 16, 4
FORMS = ("What is the capital of {}?", "Where is {}, and what is its capital?", "Name the largest city of {}.")
WAYS = (
    "m27 int8", "m27 bfloat16", "m27 float32", "loop bfloat16", "loop float32", "batches bfloat16", "batches float32",
)  # fmt: skip


def samples(processor: Processor, count: int) -> list[Sample]:
    """`count` questions, pictures and words by turns, and WARM of each that are not measured at the end."""
    pairs = [pair.split() for pair in CAPITALS.split(";")]
    texts = [(form.format(country), city) for form in FORMS for country, city in pairs]
    half = count // 2
    pictures = islice(of_split(iter(cifar10.items()), "test"), half + WARM)
    out: list[Sample] = []
    for number, item in enumerate(pictures):
        picture = {"type": "image", "image": read_image(item.image or b"")}
        ids = processor.encode([{"role": "user", "content": [picture]}]).ids
        codes = [id - processor.vocabulary.image.start for id in ids if id in processor.vocabulary.image]
        grid = [codes[row * 8 : row * 8 + 8] for row in range(8)]
        asked = [{"type": "image", "codes": grid}, {"type": "text", "text": "What is this?"}]
        out.append(Sample(item.key, [{"role": "user", "content": asked}], (item.concept,)))
        text, answer = texts[number % len(texts)]
        out.append(Sample(f"words/{number}", [{"role": "user", "content": text}], (answer,)))
    return out


Answered = tuple[dict[str, str], float, float]  # answers by id, seconds, score


def ours(folder: Path, asked: Sequence[Sample], warm: Sequence[Sample], precision: str, threads: int) -> Answered:
    """Through `m27 eval`: its answerer, its scorer, its files."""
    model = Checkpoint(folder, Settings(TOKENS + 1, at_once=BATCH, precision=precision, threads=threads))
    # The id that ends a turn counts for us and not for transformers.
    first, plan = (Plan("speed", some, METRICS["contains"], "", max_tokens=TOKENS + 1) for some in (warm, asked))
    try:
        with tempfile.TemporaryDirectory() as out:
            ask(first, model, Path(out) / "warm", say=len)
            began = time.perf_counter()
            done = ask(plan, model, Path(out) / "asked", say=len)
            seconds = time.perf_counter() - began
    finally:
        model.close()
    return {r["id"]: r["answer"] for r in done.records}, seconds, float(done.row["score"])


def theirs(
    folder: Path, asked: Sequence[Sample], warm: Sequence[Sample], precision: str, threads: int, batch: int
) -> Answered:
    """Through transformers: prompts as ids of our processor, greedy, scored by the same rule."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    processor = Processor.load(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, precision)).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pad = tokenizer.pad_token_id
    vocabulary = processor.vocabulary
    opens = [vocabulary.image_begin, vocabulary.audio_begin]  # we are asked for words alone, and so are they

    def answer(some: Sequence[Sample]) -> Iterator[tuple[str, str]]:
        rows = [(s.id, processor.encode(s.messages, generate=True).ids) for s in some]
        if batch > 1:
            rows.sort(key=lambda row: len(row[1]))
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            longest = max(len(ids) for _, ids in part)
            ids = torch.tensor([[pad] * (longest - len(ids)) + ids for _, ids in part])
            mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for _, ids in part])
            made = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=TOKENS, do_sample=False, temperature=None,
                top_p=None, repetition_penalty=1.0, suppress_tokens=opens, pad_token_id=pad,
            )  # fmt: skip
            for (name, _), row in zip(part, made[:, longest:].tolist(), strict=True):
                yield name, tokenizer.decode(row, skip_special_tokens=True).strip()

    with torch.inference_mode():
        list(answer(warm))
        began = time.perf_counter()
        found = dict(answer(asked))
        scorer = METRICS["contains"].scorer
        assert scorer is not None
        marks = [scorer(asked)(sample, found[sample.id]).score for sample in asked]
        return found, time.perf_counter() - began, sum(marks) / len(marks)


def measured(way: str, folder: Path, asked: Sequence[Sample], warm: Sequence[Sample], threads: int) -> Answered:
    """One of WAYS."""
    side, precision = way.split()
    if side == "m27":
        return ours(folder, asked, warm, precision, threads)
    return theirs(folder, asked, warm, precision, threads, BATCH if side == "batches" else 1)


def told(ways: dict[str, Any]) -> dict[str, Any]:
    """Ratios of questions a second, of what was measured."""
    rate = {way: found["samples"] / statistics.median(found["seconds"]) for way, found in ways.items()}
    out: dict[str, Any] = {}
    for mine in (way for way in rate if way.startswith("m27")):
        for other in (way for way in rate if not way.startswith("m27")):
            out[f"{mine} / {other}"] = round(rate[mine] / rate[other], 2)
    for kind in ("loop", "batches"):
        best = max((r for way, r in rate.items() if way.startswith(kind)), default=None)
        if best is not None:
            out.update({f"{w} / best {kind}": round(r / best, 2) for w, r in rate.items() if w.startswith("m27")})
    return out


def run() -> None:
    """Parse, ask, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "evaluate.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder = export()
    every = samples(Processor.load(MODEL), arguments.samples)
    asked, warm = every[: arguments.samples], every[-WARM:]
    base = {"prompts": prompt_hash(asked), "data": data_hash(asked), "tokens": TOKENS, "batch": BATCH}
    kept = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    if any(kept.get(name) != value for name, value in base.items()):
        kept = {**base, "ways": {}}
    for way in arguments.only:
        answers, seconds, score = measured(way, folder, asked, warm, arguments.threads)
        found = kept["ways"].setdefault(way, {"samples": len(asked), "seconds": [], "score": score})
        found["seconds"].append(round(seconds, 2))
        found |= {"score": score, "answers": answers}
        print(f"{way}: {len(asked) / seconds:.2f} questions a second, {100 * score:.1f} % right", flush=True)
        same(kept["ways"])
        kept |= {"date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": machine.describe(arguments.threads)}
        kept["ratios"] = told(kept["ways"])
        write_atomic(arguments.out, (json.dumps(kept, indent=1, ensure_ascii=False) + "\n").encode())
    for name, ratio in kept["ratios"].items():
        print(f"{name}: {ratio}")


def same(ways: dict[str, Any]) -> None:
    """Note in each way how many of its answers are those of the float32 loop, and of the loop of its own precision."""
    pick: Callable[[str], Any] = lambda way: ways.get(way, {}).get("answers")  # noqa: E731
    for way, found in ways.items():
        for other in dict.fromkeys(("loop float32", f"loop {way.split()[1]}")):
            if other != way and (truth := pick(other)) is not None:
                found[f"same as {other}"] = sum(found["answers"][id] == text for id, text in truth.items())


if __name__ == "__main__":
    run()
