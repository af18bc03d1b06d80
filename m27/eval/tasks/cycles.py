"""There and back: words → picture or sound → words, and speech → words → speech, by one model.

A cycle asks the model itself what it made, so no other eye or ear has to know its style; what it measures is whether
the two directions agree, not whether a stranger would. A name counts where the caption's nearest of so many held-out
names (MiniLM) is its own; speech is heard by Whisper in the end. Beside the cycle stands what the way back alone gets
of the real picture or sound, which a cycle can hardly beat.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from m27.data.messages import words
from m27.data.progress import Progress
from m27.data.prompts import ask as prompt
from m27.data.sources import kokoro
from m27.data.sources.base import Item, with_article
from m27.eval.bench import Bench, Messages, Records
from m27.eval.report import Row
from m27.eval.score import wilson
from m27.eval.sentence import SentenceEncoder
from m27.eval.tasks.captions import EmojiCaptions, among, nearest
from m27.eval.tasks.draw import wish
from m27.eval.tasks.hearing import candidates, held_out
from m27.eval.tasks.naming import BAR
from m27.eval.tasks.sample import Sample, data_hash, question
from m27.eval.tasks.sample import ask as asked
from m27.eval.tasks.speech import error_row, recorded
from m27.eval.whisper import transcribe, word_errors
from m27.infer.request import Request

MOST = 100  # cycles: each makes a picture or a sound, then looks or listens
CODES = 80  # of a sound: two seconds
WORDS = 20  # tokens of a caption


@dataclass(frozen=True)
class Wish:
    """One cycle of words: the name, the request for its picture or sound, the real one with the same question as the
    way back, and the names that the caption is compared with."""

    sample: Sample
    real: Messages
    options: list[str]


@dataclass(frozen=True)
class WordsAndBack:
    """R@1 of the model's caption of what it made of a name. `wishes(n, seed)` are the names; `medium` is made and then
    described by the first phrasing of `task`."""

    name: str
    medium: str
    task: str
    wishes: Callable[[int, int], list[Wish]]

    @property
    def decodes(self) -> str:
        """The medium whose decoder the score hangs on."""
        return self.medium

    def run(self, bench: Bench) -> tuple[Row, Records]:
        """Make, describe, find; and describe the real ones."""
        wishes = self.wishes(min(MOST, bench.samples), bench.seed)
        samples = [w.sample for w in wishes]
        made = self._made(bench, samples)
        back = [[{"role": "user", "content": [part, words(question(self.task))]}] for part in made]
        captions = bench.answers(back, WORDS, f"{self.name}: back")
        real = bench.answers([w.real for w in wishes], WORDS, f"{self.name}: real ones")
        names = sorted({name for w in wishes for name in w.options})
        encoder = SentenceEncoder.load()
        vectors = dict(zip(names, encoder.encode(names), strict=True))
        options = [w.options for w in wishes]
        found = nearest(encoder.encode(captions), options, vectors)
        ceiling = nearest(encoder.encode(real), options, vectors)
        common = Counter(captions).most_common(1)[0][0] if captions else ""
        always = nearest(encoder.encode([common]).expand(len(samples), -1), options, vectors)
        records: Records = [
            {"id": s.id, "answer": s.answer, "prediction": said, "choice": choice, "of_real": of_real,
             "right": choice == s.answer}
            for s, said, choice, of_real in zip(samples, captions, found, real, strict=True)
        ]  # fmt: skip
        right, n = sum(bool(r["right"]) for r in records), len(records)
        low, high = wilson(right, n)
        chance = sum(1 / len(some) for some in options) / max(n, 1)
        frequent = _share(always, samples)
        top = _share(ceiling, samples)
        row = Row(
            task=self.name, n=n, score=right / max(n, 1), low=low, high=high, chance=chance, frequent=frequent,
            by_kind=None, passed=low > max(chance, frequent), bar=BAR, data=data_hash(samples), seconds=0.0,
            origin=bench.origin,
            note=f"R@1 among {round(1 / chance) if chance else 0} names; of the real {self.medium}s "
            f"{100 * top:.1f} %; says most: {common!r}",
        )  # fmt: skip
        return row, records

    def _made(self, bench: Bench, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        requests = [
            Request(s.messages, modalities=(self.medium,), plan=(self.medium,), max_tokens=160,
                    max_audio_codes=CODES, seed=bench.seed * 1_000_003 + number)
            for number, s in enumerate(samples)
        ]  # fmt: skip
        responses = bench.generate(requests, label=f"{self.name}: there")
        return [{"type": self.medium, self.medium: r.content[0][self.medium]} for r in responses]


def _share(found: Sequence[str], samples: Sequence[Sample]) -> float:
    return sum(choice == s.answer for choice, s in zip(found, samples, strict=True)) / max(len(samples), 1)


def pictures(n: int, seed: int) -> list[Wish]:
    """Held-out emoji, each concept once, by name."""
    concept: dict[str, str] = {}
    seen: dict[str, Sample] = {}
    every = EmojiCaptions().samples(10**6, seed)
    for sample in every:
        concept[sample.answer] = sample.kind
        seen.setdefault(sample.kind, sample)
    out = []
    for shown in list(seen.values())[:n]:
        sample = Sample(f"cycle/{shown.id}", wish(with_article(shown.answer)), shown.answer)
        out.append(Wish(sample, shown.messages, among(concept, shown.answer, f"{seed}:{sample.id}")))
    return out


def sounds(n: int, seed: int) -> list[Wish]:
    """Held-out sounds, each name once."""
    every = held_out(seed)
    names = sorted({s.answer for s in every})
    once: dict[str, Sample] = {}
    for heard in every:
        once.setdefault(heard.answer, heard)
    out = []
    for heard in list(once.values())[:n]:
        content = [words(prompt("sound_for_text", text=with_article(heard.answer)))]
        sample = Sample(f"cycle/{heard.id}", [{"role": "user", "content": content}], heard.answer)
        out.append(Wish(sample, heard.messages, candidates(names, heard.answer, f"{seed}:{sample.id}")))
    return out


@dataclass(frozen=True)
class SpeechAndBack:
    """Word error rate of what Whisper hears where the model says again what it heard of `items()`."""

    name: str
    decodes: ClassVar[str] = "audio"
    items: Callable[[], Sequence[Item]]

    def run(self, bench: Bench) -> tuple[Row, Records]:
        """Write down, say what was written, let Whisper listen."""
        items = list(self.items())[: min(MOST, bench.samples)]
        samples = [Sample(f"cycle/{i.key}", asked(i, prompt("transcribe")), i.text) for i in items]
        heard = bench.answers([s.messages for s in samples], 40, f"{self.name}: there")
        requests = [
            Request([{"role": "user", "content": prompt("speak", text=text or "…")}], modalities=("audio",),
                    plan=("audio",), max_tokens=256, max_audio_codes=200, seed=bench.seed * 1_000_003 + number)
            for number, text in enumerate(heard)
        ]  # fmt: skip
        said = [r.content[0]["audio"] for r in bench.generate(requests, label=f"{self.name}: back")]
        with Progress(f"{self.name}: Whisper listens", len(said)) as bar:
            again = []
            for wave in said:
                again.append(transcribe(wave))
                bar.add(1)
        records = recorded(samples, again)
        for record, text in zip(records, heard, strict=True):
            record["heard"] = text
        halves = [_rate(samples, heard), _rate([Sample("", [], text) for text in heard], again)]
        row = error_row(self.name, bench, samples, records, None)
        note = f"by Whisper-base; there alone {100 * halves[0]:.1f} %, back alone {100 * halves[1]:.1f} %"
        return replace(row, note=note), records


def _rate(samples: Sequence[Sample], texts: Sequence[str]) -> float:
    counts = [word_errors(s.answer, text) for s, text in zip(samples, texts, strict=True)]
    return sum(errors for errors, _ in counts) / max(1, sum(of for _, of in counts))


CYCLES = (
    WordsAndBack("cycle-picture", "image", "caption_picture", pictures),
    WordsAndBack("cycle-sound", "audio", "name_sound", sounds),
    SpeechAndBack("cycle-speech", kokoro.tests),
)
