"""The regression set of a model: a few held-out documents of each medium, for `m27 finetune` to watch.

    python -m recipes.regression --out weights/m27-nano

Only sides that nothing was trained on, of sources whose licence lets the codes be shared (public domain,
Apache-2.0, MIT, our own voice). Writes `regression.safetensors` into the model's folder.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from m27.data import catalogue
from m27.data.build import build
from m27.data.regression import NAME, pack
from m27.data.sources.base import Document
from m27.language.processor import Processor
from recipes import base

KINDS = ("text", "picture in", "picture out", "sound in", "sound out")
# Kind → source → (tasks, documents).
TAKEN: Mapping[str, Mapping[str, tuple[Sequence[str], int]]] = {
    "text": {"texts": (("text",), 24)},
    "picture in": {
        "openclipart": (("caption_picture",), 10), "emoji": (("caption_picture",), 10),
        "easy_vqa": (("vqa",), 20),
    },
    "picture out": {"openclipart": (("draw",), 15), "emoji": (("draw",), 15)},
    "sound in": {
        "kokoro": (("transcribe",), 20), "instruments": (("name_instrument", "name_family"), 16),
    },
    "sound out": {"speech": (("speak",), 16), "instruments": (("sound_for_text",), 14)},
}  # fmt: skip
APART = {"easy_vqa": 9}  # of questions that stand side by side in a source, one in so many
NOT_SHARED = "timgm6mb"  # a bank under the GPL among the instruments; documents name theirs
LONGEST = 320  # tokens; the set is read twice at every fine-tuning


def documents(processor: Processor) -> Iterator[Document]:
    """The set's documents, each with its kind as its task."""
    for kind, sources in TAKEN.items():
        for source, (tasks, count) in sources.items():
            found = 0
            for number, document in enumerate(catalogue.documents(source)("test", 0)):
                if number % APART.get(source, 1) or NOT_SHARED in document["id"]:
                    continue
                if document["task"] not in tasks:
                    continue
                if len(processor.encode(document["messages"]).ids) > LONGEST:
                    continue
                yield {**document, "task": kind}
                found += 1
                if found == count:
                    break
            if found < count:
                print(f"{source}: {found} of {count} documents for {kind!r}")


def make(out: Path) -> dict[str, int]:
    """Write the set of the model in `out`; documents of each kind come back."""
    processor = Processor.load(out)
    with tempfile.TemporaryDirectory() as temporary:
        shard = Path(temporary) / "regression"
        meta = build(documents(processor), processor, shard, max_tokens=LONGEST)
        pack(shard, out / NAME)
        shutil.rmtree(shard)
    return {kind: meta["tokens_by_task"].get(kind, 0) for kind in KINDS}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=base.WEIGHTS)
    given = parser.parse_args(arguments)
    for kind, tokens in make(given.out).items():
        print(f"{kind}: {tokens:,} tokens")


if __name__ == "__main__":
    main()
