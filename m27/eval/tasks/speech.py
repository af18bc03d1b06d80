"""Speech: what the model hears, and what Whisper-base hears of what it says.

Both are word error rates over all words of all sentences, texts normalised, with an interval that
resamples sentences. The constant baseline is the one sentence that would do best as the answer to
all. Ceilings stand in the notes: Whisper on the same clips, and on what the codec makes of the
reference clips, which no speech through that codec can beat by much.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from m27.data.progress import Progress
from m27.data.prompts import ask
from m27.data.sources import asterisk, kokoro, speech
from m27.data.sources.base import Item
from m27.eval.bench import Bench, Records
from m27.eval.report import Row, bars
from m27.eval.score import ratio_of_means
from m27.eval.tasks.sample import Sample, data_hash
from m27.eval.tasks.sample import ask as asked
from m27.eval.whisper import transcribe, word_errors
from m27.infer.request import Request

CEILING = 60  # clips on which ceilings are measured
SAID = 100  # sentences that are said: each is generated, then heard by Whisper


@dataclass(frozen=True)
class HearSpeech:
    """Word error rate of transcribing `items()`; `levels` are a floor and a goal."""

    name: str
    items: Callable[[], Sequence[Item]]
    levels: tuple[float, float] | None = None

    def run(self, bench: Bench) -> tuple[Row, Records]:
        """Transcribe greedily, count errors, and let Whisper do the same."""
        items = list(self.items())[: bench.samples]
        samples = [Sample(i.key, asked(i, ask("transcribe")), i.text) for i in items]
        heard = bench.answers([s.messages for s in samples], 40, self.name)
        voices = [str(item.meta.get("voice", "")) for item in items]
        records = recorded(samples, heard, voices)
        clips = [i.audio for i in items[:CEILING] if i.audio is not None]
        ceiling = whispered(clips, [s.answer for s in samples], self.name)
        row = error_row(self.name, bench, samples, records, self.levels)
        note = f"corpus WER; {by_voice(records)}Whisper-base {100 * ceiling:.1f} % of {len(clips)}"
        return replace(row, note=note), records


class Speak:
    """Word error rate of Whisper-base on held-out sentences that the model says."""

    name = "speak"
    decodes = "audio"

    def run(self, bench: Bench) -> tuple[Row, Records]:
        """Say, let Whisper listen, and compare with the reference clips through the codec."""
        items = speech.say_tests(min(SAID, bench.samples))
        samples = [
            Sample(i.key, [{"role": "user", "content": ask("speak", text=i.text)}], i.text)
            for i in items
        ]
        requests = [
            Request(s.messages, modalities=("audio",), plan=("audio",), max_tokens=256,
                    max_audio_codes=200, seed=bench.seed * 1_000_003 + number)
            for number, s in enumerate(samples)
        ]  # fmt: skip
        said = [r.content[0]["audio"] for r in bench.generate(requests, label=self.name)]
        with Progress(f"{self.name}: Whisper listens", len(said)) as bar:
            heard = []
            for sound in said:
                heard.append(transcribe(sound))
                bar.add(1)
        records = recorded(samples, heard)
        texts = [s.answer for s in samples]
        clips = [i.audio for i in items[: CEILING // 2] if i.audio is not None]
        again = [coded(bench, clip) for clip in clips]
        ceilings = [whispered(some, texts, self.name) for some in (clips, again)]
        row = error_row(self.name, bench, samples, records, (0.50, 0.15))
        seconds = sum(len(sound) for sound in said) / 16_000
        note = (
            f"by Whisper-base, {seconds:.0f} s of speech; of {len(clips)} reference clips "
            f"{100 * ceilings[0]:.1f} %, through the codec {100 * ceilings[1]:.1f} %"
        )
        return replace(row, note=note), records


def coded(bench: Bench, samples_T: Any) -> Any:
    """A sound float32 [T] after the audio codec, there and back."""
    processor = bench.engine.processor
    spelled = processor.encode(
        [{"role": "user", "content": [{"type": "audio", "audio": samples_T}]}]
    ).ids
    vocabulary = processor.vocabulary
    start = spelled.index(vocabulary.audio_begin)
    end = spelled.index(vocabulary.audio_end)
    (part,) = processor.decode(spelled[start : end + 1])
    return part["audio"]


def whispered(clips: Sequence[Any], texts: Sequence[str], label: str) -> float:
    """Whisper's word error rate on the first of `texts`, as many as there are clips."""
    with Progress(f"{label}: Whisper listens", len(clips)) as bar:
        errors = []
        for clip, text in zip(clips, texts, strict=False):
            errors.append(word_errors(text, transcribe(clip)))
            bar.add(1)
    return sum(e for e, _ in errors) / max(1, sum(words for _, words in errors))


def recorded(samples: list[Sample], heard: Sequence[str], voices: Sequence[str] = ()) -> Records:
    """What was said and heard, with the errors and words of each."""
    records: Records = []
    for number, (sample, text) in enumerate(zip(samples, heard, strict=True)):
        errors, words = word_errors(sample.answer, text)
        record = {"id": sample.id, "answer": sample.answer, "prediction": text}
        voice = {"part": voices[number]} if voices else {}
        counted = {"errors": errors, "words": words, "right": errors == 0}
        records.append({**record, **voice, **counted})
    return records


def by_voice(records: Records) -> str:
    """The error rate of each voice, "af_kore 40.0 %, bm_lewis 50.0 %; ", where there are several."""
    parts = sorted({record["part"] for record in records})
    if len(parts) < 2:
        return ""
    said = []
    for part in parts:
        rows = [r for r in records if r["part"] == part]
        rate = sum(r["errors"] for r in rows) / max(1, sum(r["words"] for r in rows))
        said.append(f"{part} {100 * rate:.1f} %")
    return ", ".join(said) + "; "


def constant(texts: Sequence[str]) -> float:
    """The lowest word error rate that one answer to all gets, among the first 50 texts; silence is
    1."""
    words = max(1, sum(word_errors(text, "")[1] for text in texts))
    tried = sorted(set(texts[:50]))
    return min([1.0, *(sum(word_errors(t, one)[0] for t in texts) / words for one in tried)])


def error_row(
    name: str,
    bench: Bench,
    samples: list[Sample],
    records: Records,
    levels: tuple[float, float] | None,
) -> Row:
    """The row of a word error rate; without levels it is only to be better than a constant."""
    errors = [float(r["errors"]) for r in records]
    words = [float(r["words"]) for r in records]
    score, low, high = ratio_of_means(errors, words, bench.seed)
    frequent = constant([s.answer for s in samples])
    if levels is None:
        passed, goal, bar = high < frequent, False, "interval below the best constant"
    else:
        passed, goal, bar = bars(score, *levels, lower=True)
    if not np.isfinite(score):
        raise ValueError(f"{name}: there is nothing to hear")
    return Row(
        task=name, n=len(records), score=score, low=low, high=high, chance=None,
        frequent=frequent, by_kind=None, passed=passed, goal=goal, bar=bar,
        data=data_hash(samples), seconds=0.0, origin=bench.origin,
    )  # fmt: skip


HEAR_SPEECH = HearSpeech("hear-speech", kokoro.tests, (0.40, 0.12))
HEAR_SPEECH_REAL = HearSpeech("hear-speech-real", asterisk.tests)
