"""The day a GPU is lent: what is packed here, and what each call does there. docs/train.md has the plan.

    python -m recipes.lease_day pack --out .lease            here, once everything is built
    python -m recipes.lease_day start --load .lease/a-0 …    there: unpack, run one of `JOBS` in the background
    python -m recipes.lease_day finish …                     there: wait, put codes in, train, send

What runs in the background has a process group of its own, so that it outlives the call that started it, and leaves
NAME.log and, at its end, NAME.done with its exit status below `--work`. Each call of `start` unpacks one load more.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from m27.data import registry
from m27.data.sources import sentences
from recipes import lease

# Voices and texts of the speech that is made there.
CARRIED = ("libflite1", "libasound2", "espeakng-loader", *sentences.TEXTS)
# What is carried in which order; a name that is not there yet is said, and left out.
LOADS: dict[str, tuple[str, ...]] = {
    "a": ("m27", "recipes", "weights/m27-nano/image_codec.safetensors", ".cache/lease/corpora/pictures"),
    "b": (
        "weights/m27-nano/audio_codec.safetensors", ".cache/lease/corpora/sounds",
        ".cache/lease/corpora/audio_teacher.safetensors",
    ),
    "c": (
        "weights/m27-nano/tokenizer.json", "weights/m27-nano/tokenizer_config.json",
        "weights/m27-nano/config.json", "weights/m27-nano/m27.json",
        *(f".cache/m27/{registry.pinned(name).folder}" for name in CARRIED),
        "weights/m27-nano/base.safetensors", "weights/m27-nano/trained.safetensors",
    ),
    **{
        load: tuple(f".cache/lease/templates/{name}" for name in names.split())
        for load, names in {
            "d": "cifar10 emoji fluent more_emoji openclipart easy_vqa replay texts",
            "e": "asked scenes",
            "f": "instruments environment kokoro spoken_words spoken_digits triples heard_pictures soundscapes",
            "g": "tiny_imagenet made_books books stamps grocery languages nlvr fashion quickdraw",
        }.items()
    },
}  # fmt: skip
# What runs in the background there: `python -m` and these words, in the folder of the work.
_CORPUS = ("--corpus", ".cache/lease/corpora", "--device", "cuda", "--threads", "4")
JOBS: dict[str, tuple[str, ...]] = {
    "image": (
        "recipes.image_codec", *_CORPUS, "--begin", "weights/m27-nano", "--minutes", "3.8", "--batch", "256",
        "--lr", "1e-3", "--widths", "272", "136", "72", "40", "--perceptual", "0.4", "--recognised", "0.5",
        "--adversarial", "0.4", "--adversary-from", "0.5", "--critic-alone", "200",
    ),
    "audio": (
        "recipes.audio_live", *_CORPUS, "--begin", "weights/m27-nano/audio_codec.safetensors",
        "--shape", "0", "--hearing", "1.5", "--minutes", "3.6",
    ),
    "voice": ("recipes.lease_day", "speech", "--work", ".", "--parts", "8"),
}  # fmt: skip
# How many more copies of a source are filled with altered media, of documents that say what they hear or see in
# one; a shard each, numbered from FIRST_COPY on. What is drawn or said is never altered.
ALTERED = {
    "openclipart": 4, "stamps": 4, "emoji": 3, "fluent": 3, "more_emoji": 3, "grocery": 2, "cifar10": 1,
    "tiny_imagenet": 1, "instruments": 2, "environment": 3, "spoken_words": 2, "spoken_digits": 2, "kokoro": 3,
}  # fmt: skip
MIRRORED = ("cifar10", "tiny_imagenet", "grocery")
TOLD = (
    "name_picture", "caption_picture", "name_sound", "name_word", "name_instrument", "name_family", "transcribe",
)  # fmt: skip
FIRST_COPY = 100
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
PIECE = 52_000_000  # bytes that one call can carry beside the checkout
CODECS = ("image_codec.safetensors", "audio_codec.safetensors")


def fetch_programs() -> None:
    """Have what speaks there, and what is read aloud, in the cache, also where this machine has a part of it
    installed and so never asked."""
    for name in CARRIED:
        registry.fetch(name)


def pack(out: Path, root: Path = Path(), size: int = PIECE) -> dict[str, list[int]]:
    """Write every load as folders of one piece each, `a-0`, `a-1`, …, below `out`; their sizes in bytes."""
    sizes: dict[str, list[int]] = {}
    for name, wanted in LOADS.items():
        there = [root / path for path in wanted if (root / path).exists()]
        for path in wanted:
            if root / path not in there:
                print(f"load {name}: {path} is not there and stays behind", file=sys.stderr)
        if not there:
            continue
        whole = out / f".{name}"
        pieces = lease.pack(there, whole, size, root)
        sizes[name] = [piece.size for piece in pieces]
        for number, piece in enumerate(pieces):
            folder = out / f"{name}-{number}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            os.replace(whole / piece.name, folder / piece.name)
            shutil.copyfile(whole / "manifest.json", folder / "manifest.json")
        shutil.rmtree(whole)
    return sizes


def unpack(load: Path, work: Path) -> bool:
    """Put a load's files below `work` if all of its pieces have come by now (folders LOAD-0, LOAD-1, …); whether
    they have. Pieces are kept below `work`, for the next call may take the folder away that the last one brought.
    Raises LeaseError for a damaged one."""
    name = load.name.partition("-")[0]
    together = work / f".{name}.together"
    if not (load / "manifest.json").is_file():
        raise lease.LeaseError(f"{load}: no such load")
    together.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(load / "manifest.json", together / "manifest.json")
    for piece in load.glob("piece-*"):
        shutil.copyfile(piece, together / f"{piece.name}.partial")
        os.replace(together / f"{piece.name}.partial", together / piece.name)
    manifest = json.loads((together / "manifest.json").read_text(encoding="utf-8"))
    if any(not (together / piece["name"]).exists() for piece in manifest["pieces"]):
        return False
    lease.unpack(together, work)
    return True


def background(work: Path, name: str, words: Sequence[str]) -> None:
    """Run `python WORDS…` in `work` in a session of its own, unless it was begun before; see the module."""
    log = work / f"{name}.log"
    if log.exists():
        return
    log.touch()
    command = " ".join(_quoted(word) for word in (sys.executable, *words))
    line = f"{command} >{name}.log 2>&1; echo $? >.{name}.status; mv .{name}.status {name}.done"
    nothing = subprocess.DEVNULL
    subprocess.run(
        ["setsid", "--fork", "bash", "-c", line],
        cwd=work, env=_environment(work), stdin=nothing, stdout=nothing, stderr=nothing, check=True,
    )  # fmt: skip


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"


def _environment(work: Path) -> dict[str, str]:
    """Code and cache are those that were carried; numpy's products, small and in many threads, get one thread each,
    or they stand in each other's way (minutes in place of seconds on sixteen cores)."""
    root = work.resolve()
    return os.environ | ONE_THREAD | {"PYTHONPATH": str(root), "M27_CACHE": str(root / ".cache" / "m27")}


def wait(work: Path, names: Sequence[str], seconds: float) -> dict[str, int | None]:
    """Exit statuses of what ran in the background, None for what is not done after so many seconds."""
    end = time.monotonic() + seconds
    while True:
        found = {
            n: int(p.read_text()) if (p := work / f"{n}.done").exists() else None for n in names
        }
        if None not in found.values() or time.monotonic() > end:
            return found
        time.sleep(0.2)


def speech(work: Path, parts: int, share: float = 1.0) -> None:
    """Templates of `speech`, and of `more_speech` in so many parts, all at once, made where they are used: carrying
    them would cost 6 MB a thousand. Raises LeaseError, when all have ended, if one failed."""
    calls = [(str(work), part, parts, share) for part in range(parts + 1)]
    with ProcessPoolExecutor(parts + 1, mp_context=get_context("spawn")) as pool:
        lines = list(pool.map(_speech_part, calls))
    print("\n".join(lines), file=sys.stderr, flush=True)
    if failed := [line for line in lines if "FAILED" in line]:
        raise lease.LeaseError(f"{len(failed)} of {len(lines)} parts of speech failed")


def _speech_part(given: tuple[str, int, int, float]) -> str:
    from dataclasses import replace

    from m27.language.processor import Processor
    from recipes import template_shards
    from recipes.stages import whole

    work, part, parts, share = given
    os.environ["M27_CACHE"] = str(Path(work).resolve() / ".cache" / "m27")
    recipe = whole()
    name = "more_speech" if part else "speech"
    count = max(1, int(recipe.sources[name] * share) // (parts if part else 1))
    folder = Path(work) / ".cache" / "lease" / "templates"
    recipe = replace(recipe, shards=folder, sources={name: count}, templates=True)
    processor = Processor.load(Path(work) / "weights" / "m27-nano")
    return template_shards.build(recipe, name, processor, packed=False, part=part)


def fill(work: Path, device: str, workers: int, processes: int = 1) -> int:
    """Put the codes of the codecs in the model's folder into every template, and into the altered copies of
    `ALTERED`; how many media were encoded. So many processes share the device. A source that fails is said and
    left out: it must not cost the others their day."""
    root = work / ".cache" / "lease" / "templates"
    found = [f for f in root.glob("[a-z]*") if (f / "media" / "media.json").is_file()]
    found.sort(key=lambda f: -(f / "media" / "media.bin").stat().st_size)
    calls = [(str(work), f.name, device, max(1, workers // processes)) for f in found]
    if processes == 1:
        return sum(map(_fill_or_say, calls))
    os.environ.update(ONE_THREAD)  # for the processes to come
    with ProcessPoolExecutor(
        processes, get_context("spawn"), _use_threads, (max(1, workers // processes),)
    ) as pool:
        return sum(pool.map(_fill_or_say, calls))


def _use_threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


def _fill_or_say(given: tuple[str, str, str, int]) -> int:
    try:
        return _fill_source(given)
    except Exception as error:
        print(f"{given[1]}: FAILED: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 0


@cache
def _processor(folder: str, device: str) -> Any:
    """The processor of a model's folder with its codecs on a device, loaded once a process."""
    import torch

    from m27.language.processor import Processor

    processor = Processor.load(folder)
    # Codes near the edge of a cell must fall as they do on a CPU.
    torch.backends.cudnn.allow_tf32 = False
    codecs: tuple[Any, ...] = (processor.image_codec, processor.audio_codec)
    for codec in codecs:
        if isinstance(codec, torch.nn.Module):
            codec.to(device)
    return processor


def _fill_source(given: tuple[str, str, str, int]) -> int:
    import torch

    from m27.data import altered, templates
    from m27.data.media_table import MediaTable

    work, name, device, workers = given
    processor = _processor(str(Path(work) / "weights" / "m27-nano"), device)
    template = Path(work) / ".cache" / "lease" / "templates" / name
    target = Path(work) / ".cache" / "shards" / "whole" / name
    told = json.loads((template / "meta.json").read_text(encoding="utf-8"))["tasks"]
    times = ALTERED.get(name, 0) if set(told) & set(TOLD) else 0
    table = MediaTable(template / templates.MEDIA, keep=times > 0)
    count = templates.fill(template, processor, target, workers, table=table)
    for copy in range(times):
        generator = torch.Generator().manual_seed(copy)

        def alter(x: torch.Tensor, g: torch.Generator = generator) -> torch.Tensor:
            return altered.pictures(x, g, name in MIRRORED) if x.dim() == 4 else altered.sounds(x, g)

        copied = target.with_name(f"{name}-{FIRST_COPY + copy}")
        count += templates.fill(template, processor, copied, workers, alter, TOLD, table)
    return count


def codecs(work: Path, wanted: Sequence[str]) -> list[Path]:
    """Put the codecs that were trained into the model's folder; those that were not stay as they were carried."""
    placed = []
    for name in CODECS:
        made = work / ".cache" / "codecs" / name
        if made.is_file():
            target = work / "weights" / "m27-nano" / name
            shutil.copyfile(made, target.with_suffix(".partial"))
            os.replace(target.with_suffix(".partial"), target)
            placed.append(target)
        elif name.partition("_")[0] in wanted:
            print(f"{made}: not trained to its end; the carried one is used", file=sys.stderr)
    return placed


def finish(given: argparse.Namespace) -> None:
    """Wait for what runs in the background, put codes in, train, and leave what is worth sending in `back`."""
    begun, work = time.monotonic(), given.work
    said = wait(work, given.wait, given.patience)
    print(f"{json.dumps(said)} after {time.monotonic() - begun:.0f} s", file=sys.stderr)
    made = codecs(work, [name.partition("_")[0] for name in given.wait])
    count = fill(work, given.device, given.workers, processes=given.processes)
    print(f"{count:,} media encoded, {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    lease.check(work / "weights" / "m27-nano", given.device)
    left = given.minutes - (time.monotonic() - begun) / 60
    settings = [f"minutes={left:.2f}", *given.set]
    made += lease.train(work, given.stage, given.device, left + 1, settings)
    made += sorted(work.glob("*.log")) + sorted(work.glob("runs/*/log.jsonl"))
    (work / "results.json").write_text(json.dumps([str(path) for path in dict.fromkeys(made)]))
    count = lease.send([p for p in dict.fromkeys(made) if p.exists()], given.back, work)
    print(f"{count} pieces; the first are in {given.back}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status comes back."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("pack")
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--root", type=Path, default=Path())
    one = verbs.add_parser("start")
    one.add_argument("--load", type=Path, required=True)
    one.add_argument("--job", choices=tuple(JOBS), help="what is to run then; nothing without")
    one.add_argument("words", nargs="*", help="-- further words of the job, or others of its own")
    one = verbs.add_parser("speech")
    one.add_argument("--parts", type=int, default=8)
    one.add_argument("--share", type=float, default=1.0)
    two = verbs.add_parser("finish")
    two.add_argument("--wait", nargs="*", default=[], help="names to wait for")
    two.add_argument("--patience", type=float, default=60.0, help="seconds")
    two.add_argument("--minutes", type=float, required=True, help="until the end of training")
    two.add_argument("--stage", default="whole")
    two.add_argument("--device", default="cuda")
    two.add_argument("--workers", type=int, default=14)
    two.add_argument("--processes", type=int, default=1, help="that share the device while encoding")
    two.add_argument("--back", type=Path, required=True)
    two.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    for verb in verbs.choices.values():
        if verb.prog.split()[-1] != "pack":
            verb.add_argument("--work", type=Path, default=Path("work"))
    given = parser.parse_args(arguments)
    try:
        if given.verb == "pack":
            fetch_programs()
            for name, sizes in pack(given.out, given.root).items():
                told = ", ".join(f"{size / 1e6:.1f}" for size in sizes)
                print(f"load {name}: {len(sizes)} calls, MB {told}", file=sys.stderr)
        elif given.verb == "start":
            given.work.mkdir(parents=True, exist_ok=True)
            whole = unpack(given.load, given.work)
            print(
                f"{given.load}: {'unpacked' if whole else 'more pieces to come'}", file=sys.stderr
            )
            if whole and given.job:
                background(given.work, given.job, ["-m", *JOBS[given.job], *given.words])
        elif given.verb == "speech":
            speech(given.work, given.parts, given.share)
        else:
            finish(given)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
