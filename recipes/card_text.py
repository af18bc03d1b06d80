"""What the model card says in words and in its YAML head: fixed prose, and sentences that figures choose.

Knows the names of evaluation's tasks, and no file; `recipes.card` reads the figures and puts the page together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Record = Mapping[str, Any]

BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
TAGS = ("multimodal", "interleaved", "image-generation", "audio-generation", "llama", "fsq")


@dataclass(frozen=True)
class Bench:
    """What a task of evaluation is in the Hub's terms, and what it is called on the card."""

    title: str
    kind: str  # the Hub's task type
    data: str  # type of the data set, the Hub's id where it has one
    dataset: str
    metric: str = "accuracy"


# By task name. A task that is not here still gets its row and its entry, under its own name.
BENCHES: dict[str, Bench] = {
    "cifar10": Bench(
        "recognise photographs", "image-classification", "uoft-cs/cifar10", "CIFAR-10 test"
    ),
    "easy-vqa": Bench("visual questions", "visual-question-answering", "easy-vqa", "easy-VQA test"),
    "scenes": Bench(
        "scene analysis", "visual-question-answering", "scenes", "made scenes of held-out cut-outs"
    ),
    "grounding": Bench(
        "grounding", "object-detection", "scenes", "made scenes of held-out cut-outs", "iou-50"
    ),
    "grounding-photos": Bench(
        "grounding on photographs", "object-detection", "zh-plus/tiny-imagenet",
        "Tiny ImageNet val", "iou-50",
    ),
    "captions": Bench(
        "captions", "image-to-text", "clip-art-and-stamps", "held-out clip art and stamps",
        "cider-d-ratio",
    ),
    "emoji-captions": Bench("name drawings", "image-to-text", "emoji", "held-out emoji"),
    "draw-emoji": Bench("draw a concept", "text-to-image", "emoji", "held-out emoji concepts"),
    "draw-cifar": Bench("draw a class", "text-to-image", "uoft-cs/cifar10", "CIFAR-10 classes"),
    "hear-speech": Bench(
        "hear speech", "automatic-speech-recognition", "kokoro", "held-out Kokoro voices", "wer"
    ),
    "hear-speech-real": Bench(
        "hear a real voice", "automatic-speech-recognition", "asterisk", "Asterisk's voice", "wer"
    ),
    "spoken-words": Bench(
        "hear single words", "audio-classification", "spoken-words", "held-out speakers"
    ),
    "speak": Bench("speak", "text-to-speech", "sentences", "held-out sentences", "wer"),
    "instrument-family": Bench(
        "hear families of instruments", "audio-classification", "notes", "held-out notes"
    ),
    "instruments": Bench("hear instruments", "audio-classification", "notes", "held-out notes"),
    "sounds-r20": Bench("hear sounds", "audio-classification", "sounds", "held-out sounds"),
    "make-sounds": Bench("make sounds", "text-to-audio", "notes", "instruments by name"),
    "sound-for-picture": Bench("sound for a picture", "any-to-any", "triples", "held-out pictures"),
    "interleave-structure": Bench("interleave: whole", "any-to-any", "made-books", "made books"),
    "interleave-placement": Bench(
        "interleave: placement", "any-to-any", "made-books", "made books", "f1"
    ),
    "interleave-count": Bench("interleave: count", "any-to-any", "made-books", "made books"),
    "interleave-coherence": Bench(
        "interleave: coherence", "any-to-any", "made-books", "made books", "cosine"
    ),
    "perplexity": Bench(
        "stay a language model", "text-generation", "chapters", "held-out chapters",
        "perplexity-ratio",
    ),
    "perplexity-manual": Bench(
        "stay a language model: manual", "text-generation", "python-manual",
        "Python's manual", "perplexity-ratio",
    ),
    "perplexity-stories": Bench(
        "stay a language model: stories", "text-generation", "storybooks",
        "held-out picture books", "perplexity-ratio",
    ),
    "capital": Bench("one plain question", "text-generation", "capital", "one question"),
    "structure": Bench("valid by construction", "any-to-any", "structure", "random prompts"),
}  # fmt: skip


def bench(task: str, unit: str = "share") -> Bench:
    """The entry of a task, or one made of its name."""
    metric = "accuracy" if unit == "share" else unit
    return BENCHES.get(task) or Bench(
        task.replace("-", " "), "any-to-any", task, f"{task}, held out", metric
    )


@dataclass(frozen=True)
class Level:
    """A sentence that is true of a task whose score is at least (or at most) `bound`."""

    bound: float
    words: str


# What a user will see of a capability: task -> (whether more is better, levels from best to worst).
SAYS: dict[str, tuple[bool, tuple[Level, ...]]] = {
    "cifar10": (
        True,
        (
            Level(0.8, "Everyday photographs of its ten kinds are mostly named right ({figure})."),
            Level(0.5, "It names more than half of photographs of ten kinds right ({figure})."),
            Level(0.0, "It names most photographs wrong (right: {figure})."),
        ),
    ),
    "speak": (
        False,
        (
            Level(0.2, "What it says aloud is mostly understood (word error rate {figure})."),
            Level(0.6, "What it says aloud is understood in part (word error rate {figure})."),
            Level(9e9, "What it says aloud is mostly unintelligible (word error rate {figure})."),
        ),
    ),
    "hear-speech": (
        False,
        (
            Level(0.15, "Clear short speech is written down mostly right (WER {figure})."),
            Level(0.5, "Short speech is written down with many errors (WER {figure})."),
            Level(9e9, "Most of what it writes down of speech is wrong (WER {figure})."),
        ),
    ),
    "draw-emoji": (
        True,
        (
            Level(0.4, "Drawings can mostly be recognised ({figure} among fifty)."),
            Level(0.1, "Some drawings can be recognised ({figure} among fifty); most are rough."),
            Level(0.0, "Drawings are rough shapes in the right colours at best ({figure})."),
        ),
    ),
    "grounding": (
        True,
        (
            Level(0.6, "Boxes that it gives are mostly right ({figure} at IoU 0.5)."),
            Level(0.3, "A third or more of its boxes are right ({figure} at IoU 0.5)."),
            Level(0.0, "Its boxes are mostly wrong (right at IoU 0.5: {figure})."),
        ),
    ),
    "perplexity": (
        False,
        (
            Level(1.02, "Its English is as good as its base's (perplexity ratio {figure})."),
            Level(1.05, "Its English is a little worse than its base's (ratio {figure})."),
            Level(9e9, "Its English is worse than its base's (perplexity ratio {figure})."),
        ),
    ),
}


def verdict(rows: Sequence[Record]) -> str:
    """What the whole is fit for, by how many of the bars are met."""
    failed = sum(fails(row) for row in rows)
    if failed == 0:
        return f"all {len(rows)} bars below are met; it is a demonstration, not an assistant."
    return (
        f"{len(rows) - failed} of the {len(rows)} bars below are met, {failed} failed; "
        "it is a demonstration, not a useful assistant."
    )


def sentence(row: Record) -> str | None:
    """What a user will see of a row's capability, or None for a task that has no such sentence."""
    if row["task"] not in SAYS or not row["n"]:
        return None
    more, levels = SAYS[row["task"]]
    score = row["score"]
    said = next((x for x in levels if (score >= x.bound if more else score <= x.bound)), levels[-1])
    return said.words.format(figure=figure(score, row.get("unit", "share")))


def figure(value: float | None, unit: str) -> str:
    """A score as it is written: shares (error rates too) in per cent, others with three decimals."""
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" if unit == "share" else f"{value:.3f}"


def reached(row: Record) -> str:
    """ "goal" or "floor" where a task has both and reaches them, else "yes"; "no" where it fails its bar;
    "unmeasured" for a row that has no sample, as a task that failed leaves."""
    if not row["n"]:
        return "unmeasured"
    if not row.get("passed"):
        return "no"
    if "goal" not in str(row.get("bar", "")):
        return "yes"
    return "goal" if row.get("goal") else "floor"


def fails(row: Record) -> bool:
    """Whether a row does not reach what it must."""
    return reached(row) in ("no", "unmeasured")


def index(name: str, rows: Sequence[Record]) -> dict[str, Any]:
    """The Hub's `model-index` of one model: a result a row, with its interval in the metric's arguments."""
    results = []
    for row in (row for row in rows if row["n"]):
        unit = row.get("unit", "share")
        of = bench(row["task"], unit)
        percent = 100 if unit == "share" else 1
        value = round(percent * row["score"], 3)
        between = [round(percent * row[key], 3) for key in ("low", "high")]
        results.append(
            {
                "task": {"type": of.kind, "name": of.title},
                "dataset": {"type": of.data, "name": of.dataset, "revision": row.get("data", "")},
                "metrics": [
                    {
                        "type": of.metric, "value": value,
                        "name": f"{of.title}, {'per cent' if percent == 100 else unit}",
                        "args": {"n": row["n"], "low": between[0], "high": between[1]},
                    }
                ],
            }
        )  # fmt: skip
    return {"name": name, "results": results}


def head(name: str, rows: Sequence[Record], languages: Sequence[str]) -> str:
    """The YAML head between its two rules."""
    entries = {
        "license": "apache-2.0",
        "language": list(languages),
        "base_model": BASE,
        "pipeline_tag": "any-to-any",
        "library_name": "m27",
        "tags": list(TAGS),
        "model-index": [index(name, rows)],
    }
    return "---\n" + "\n".join(yaml(entries, 0)) + "\n---\n"


def yaml(value: Mapping[str, Any], depth: int) -> list[str]:
    """The lines of a mapping in YAML: plain keys, JSON scalars (which are YAML), lists of scalars inline."""
    lines, space = [], "  " * depth
    for key, item in value.items():
        if isinstance(item, Mapping):
            lines += [f"{space}{key}:", *yaml(item, depth + 1)]
        elif isinstance(item, list) and any(isinstance(x, Mapping) for x in item):
            lines.append(f"{space}{key}:")
            for part in item:
                first, *rest = yaml(part, depth + 1)
                lines += [f"{space}- {first.strip()}", *rest]
        else:
            lines.append(f"{space}{key}: {json.dumps(item, ensure_ascii=False)}")
    return lines


INTRODUCTION = """\
A small any-to-any model for [m27](../../README.md): SmolLM2-135M-Instruct whose vocabulary also
spells pictures ({image_codes:,} codes, 8×8 a picture of 128×128) and sounds ({audio_codes:,} codes,
40 a second). One stock Llama decoder reads and writes all three. It is small and was trained with
little: **{verdict}** It is not affiliated with, nor a reproduction of, any other model of a similar
name. Every figure and table below was written by `recipes/card.py` from the files in
[results](results), nothing by hand.
"""

INTENDED = """\
For reading, testing, teaching and extending the code: every path of a natively multimodal model, on
a laptop. Fine-tune it on kinds of picture and sound of your own. Not for any decision about people
or things, not for identifying anyone, and not as a source of facts.
"""

ALWAYS = """\
- Pictures are seen and drawn at 128×128 through 64 codes: small print, faces and fine texture are
  not carried.
- Sound is mono at 16 kHz through 40 codes a second, a few seconds at a time; voices are not kept.
- Answers about pictures and sounds are short names and sentences in the style of the data below;
  outside its kinds they are mostly wrong.
- The base has 135 M parameters in 4 bits and makes things up. English; captions in German, French,
  Spanish, Italian and Dutch were trained on a little and are not measured.
- Parts come from ImageNet-trained and web-trained models and carry their biases; a part of the data
  (Tiny ImageNet) is under research terms.
- Nothing filters what is asked or what comes out.
"""

USE = """\
```sh
.venv/bin/m27 chat "Describe the picture." --image examples/samples/caption.png
.venv/bin/m27 export --to hf --out out/hf
```

The folder holds the base once, in the blocks it was published in (`base.safetensors`, Q4_1 and
Q8_0), and what was trained apart (`trained.safetensors`: adapters in 8-bit blocks or bfloat16, control
rows and the two code maps in bfloat16). `m27` merges them when it loads; `m27 export` writes the merged
stock bfloat16 checkpoint that plain transformers opens.
"""

READING = """\
Held-out inputs only, greedy answers in the first phrasing of each question; 95 % intervals. Chance,
the best constant answer (*most frequent*) and the best constant answer to each kind of question
(*by kind*) stand beside each score. Bars were set before training: a *floor* that must hold and a
*goal* that a GPU hour should reach; what fails its bar is said so, here and under Limits. What is
asked, and how to read it: [docs/evaluate.md](../../docs/evaluate.md).
"""

HOLDOUT = """\
Held out before anything was built, by concept (in every style of a drawing), by speaker, by voice
or by the official test file, and by content hash and likeness across sources:
`m27/data/holdout.py`; a test holds the two sides apart. Data files are not in
the repository.
"""
