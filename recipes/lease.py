"""Train on a machine without network: carry everything in pieces, train in chunks that resume, carry back.

    python -m recipes.lease pack --out pieces weights/m27-nano .cache/shards/nano recipes m27
    python -m recipes.lease run --pieces pieces --work work --back back --stage joint --device cuda --minutes 9
    python -m recipes.lease unpack --pieces back --into runs-from-there

`pack` here, `run` there as often as it takes (each call goes on where the last one stopped, and first makes sure that
the device computes what the CPU does), `unpack` here again. Pieces carry checksums, and so do the files in them. A
call brings back a few pieces only; `run --send N` sends those from number N on, without training. What `pack` and
`unpack` do needs Python alone; wheels carried in a folder `wheels` are installed by `run`, from that folder only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

PIECE_THERE, PIECE_BACK = 45_000_000, 16_000_000  # bytes
BACK_FILES = 8  # a call, the manifest included
_READ = 1 << 20


class LeaseError(ValueError):
    """Pieces that are missing or damaged, or a device that computes wrongly; the message names which."""


@dataclass(frozen=True)
class Piece:
    """One piece of the stream of all files, by its file name, with its checksum."""

    name: str
    size: int
    sha256: str


def _files(paths: Sequence[Path], root: Path) -> list[Path]:
    """All files at or below `paths`, and links to a file beside them; other links and caches are left out.

    Raises LeaseError for a path not below `root`.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists() or not path.resolve().is_relative_to(root.resolve()):
            raise LeaseError(f"{path}: not there, or not below {root}")
        inside = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        found += [p for p in inside if "__pycache__" not in p.parts and (not p.is_symlink() or _beside(p))]
    return found


def _beside(link: Path) -> bool:
    """Whether a link names a file of its own folder, as those of shared libraries do."""
    return _plain(os.readlink(link))


def _plain(name: str) -> bool:
    """Whether a name leads nowhere else."""
    return name not in ("", ".", "..") and "/" not in name


def pack(paths: Sequence[Path], out: Path, size: int = PIECE_THERE, root: Path = Path()) -> list[Piece]:
    """Write the files at or below `paths` as pieces of at most `size` bytes and a `manifest.json` into `out`.

    Files keep their place relative to `root`. Raises LeaseError.
    """
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("piece-*"):
        old.unlink()
    listed: list[dict[str, Any]] = []
    pieces: list[Piece] = []
    waiting = bytearray()

    def close(data: bytes) -> None:
        name = f"piece-{len(pieces):03d}"
        (out / name).write_bytes(data)
        pieces.append(Piece(name, len(data), hashlib.sha256(data).hexdigest()))

    for path in _files(paths, root):
        if path.is_symlink():
            where = (path.parent.resolve() / path.name).relative_to(root.resolve()).as_posix()
            listed.append({"path": where, "link": os.readlink(path)})
            continue
        digest, length = hashlib.sha256(), 0
        with path.open("rb") as file:
            while data := file.read(_READ):
                digest.update(data)
                length += len(data)
                waiting += data
                while len(waiting) >= size:
                    close(bytes(waiting[:size]))
                    del waiting[:size]
        where = path.resolve().relative_to(root.resolve()).as_posix()
        listed.append({"path": where, "size": length, "sha256": digest.hexdigest()})
    if waiting:
        close(bytes(waiting))
    manifest = {"files": listed, "pieces": [vars(piece) for piece in pieces]}
    _put(out / "manifest.json", json.dumps(manifest, indent=1).encode())
    return pieces


def _stream(folder: Path, pieces: Sequence[dict[str, Any]]) -> Iterator[bytes]:
    for piece in pieces:
        try:
            data = (folder / piece["name"]).read_bytes()
        except OSError:
            raise LeaseError(f"{folder / piece['name']}: this piece is missing") from None
        if hashlib.sha256(data).hexdigest() != piece["sha256"]:
            raise LeaseError(f"{folder / piece['name']}: damaged on the way (its checksum is another)")
        yield data


def unpack(folder: Path, into: Path) -> list[Path]:
    """Put the files of the pieces in `folder` together below `into`, once: what has changed since then stays.

    Each file appears whole or not at all. Raises LeaseError naming a missing or damaged piece or file.
    """
    try:
        text = (folder / "manifest.json").read_text(encoding="utf-8")
        manifest = json.loads(text)
    except (OSError, ValueError) as error:
        raise LeaseError(f"{folder}/manifest.json: {error}") from None
    names = [str(entry["path"]) for entry in manifest["files"]]
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise LeaseError(f"{folder}/manifest.json: {name!r} would leave the folder")
    for entry in manifest["files"]:
        if not _plain(str(entry.get("link", "a"))):
            raise LeaseError(f"{folder}/manifest.json: {entry['path']!r} would link to {entry['link']!r}")
    paths = [into / name for name in names]
    stamp = into / f".unpacked-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    if stamp.exists():
        return paths
    source, held = _stream(folder, manifest["pieces"]), bytearray()
    for path, entry in zip(paths, manifest["files"], strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        if "link" in entry:
            os.symlink(entry["link"], partial)
            os.replace(partial, path)
            continue
        digest, left = hashlib.sha256(), int(entry["size"])
        with partial.open("wb") as file:
            while left:
                if not held:
                    held += next(source, b"")
                    if not held:
                        raise LeaseError(f"{folder}: the pieces end before {entry['path']} does")
                data = bytes(held[:left])
                del held[: len(data)]
                digest.update(data)
                left -= file.write(data)
        if digest.hexdigest() != entry["sha256"]:
            partial.unlink()
            raise LeaseError(f"{entry['path']}: its checksum is not that of the manifest")
        os.replace(partial, path)
    stamp.touch()
    return paths


def send(paths: Sequence[Path], back: Path, root: Path, begin: int = 0, size: int = PIECE_BACK) -> int:
    """Leave pieces of `paths` from number `begin` on in `back`, a few at most; how many there are in all."""
    whole = back.with_name(f".{back.name}.whole")
    pieces = pack(paths, whole, size, root)
    back.mkdir(parents=True, exist_ok=True)
    for old in back.glob("piece-*"):
        old.unlink()
    for piece in pieces[begin : begin + BACK_FILES - 1]:
        os.replace(whole / piece.name, back / piece.name)
    os.replace(whole / "manifest.json", back / "manifest.json")
    shutil.rmtree(whole)
    return len(pieces)


def check(weights: Path, device: str) -> dict[str, float]:
    """The relative errors of the device's states against the CPU's, in float32 and in its own dtype.

    A few packed documents through the base. Raises LeaseError where they are apart by more than rounding.
    """
    import torch

    from m27 import runtime
    from m27.infer.base import load_base
    from m27.model.attention import restarting_positions

    decoder = load_base(weights).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(20, decoder.config.vocab_size, (2, 96), generator=generator)
    documents_BT = torch.tensor([[0] * 40 + [1] * 56, [2] * 90 + [3] * 6])
    positions_BT = restarting_positions(documents_BT)
    there, errors = runtime.device(device), {}
    with torch.inference_mode():
        want = decoder.hidden(decoder.embed(ids_BT), positions_BT, documents_BT)
        # In the device's dtype last: a decoder cannot be widened again.
        for dtype in dict.fromkeys([torch.float32, runtime.dtype("auto", there)]):
            decoder = decoder.to(there, dtype)
            x_BTD = decoder.embed(ids_BT.to(there))
            got = decoder.hidden(x_BTD, positions_BT.to(there), documents_BT).cpu().float()
            name = str(dtype).removeprefix("torch.")
            errors[name] = float((got - want).norm() / want.norm())
    bounds = {"float32": 1e-3, "bfloat16": 5e-2}
    for name, error in errors.items():
        if not error <= bounds[name]:
            raise LeaseError(f"{device} in {name}: states are {error:.2g} from the CPU's; nothing was trained")
    return errors


def _wheels(work: Path) -> None:
    """Install carried wheels, and nothing from anywhere else."""
    wheels = sorted(str(path) for path in (work / "wheels").glob("*.whl"))
    if wheels and not (work / "wheels" / "installed").exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        subprocess.run([*pip, *wheels], check=True)
        (work / "wheels" / "installed").touch()


def train(work: Path, stage: str, device: str, minutes: float, settings: Sequence[str]) -> list[Path]:
    """Go on with a stage of `recipes.nano` for `minutes`; the files worth carrying back."""
    from m27.infer.base import load_base
    from m27.train.settings import change
    from recipes import nano
    from recipes.stages import STAGES, on_gpu

    recipe = STAGES[stage]()
    if device.startswith("cuda"):
        recipe = on_gpu(recipe)
    run = change(recipe.train, dict(part.partition("=")[::2] for part in settings))
    run = replace(run, device=device, sample_minutes=0.0)
    recipe = replace(
        recipe, train=run, out=work / recipe.out, shards=work / recipe.shards, runs=work / "runs"
    )
    trainer = nano.open_trainer(recipe, load_base(recipe.out).requires_grad_(False))
    result = trainer.run(call_minutes=minutes)
    nano.write(recipe)
    folder = recipe.runs / run.name
    print(f"{'done' if result.finished else 'to be gone on with'}: step {result.step}", file=sys.stderr)
    found = [recipe.out / "trained.safetensors", recipe.out / "m27.json"]
    return [*found, folder / "log.jsonl", folder / "watch.html"]


def command(work: Path, words: Sequence[str], minutes: float) -> int:
    """Run any other command in `work` (a codec's recipe) and ask it to stop after `minutes`; its status."""
    process = subprocess.Popen([sys.executable, *words], cwd=work)
    try:
        return process.wait(minutes * 60)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        return process.wait()


def _put(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def run(given: argparse.Namespace) -> None:
    """One call on the machine: unpack, check, train, and leave pieces to carry back."""
    unpack(given.pieces, given.work)
    _wheels(given.work)
    if given.send is None:
        print(json.dumps(check(given.work / "weights" / "m27-nano", given.device)), file=sys.stderr)
        if given.stage:
            made = train(given.work, given.stage, given.device, given.minutes, given.set)
        else:
            if command(given.work, given.words, given.minutes) not in (0, -signal.SIGTERM):
                raise LeaseError(f"{' '.join(given.words)}: it failed; nothing is sent back")
            made = [given.work / name for name in given.results]
        _put(given.work / "results.json", json.dumps([str(p) for p in made]).encode())
    listed = [Path(p) for p in json.loads((given.work / "results.json").read_text())]
    count = send([p for p in listed if p.exists()], given.back, given.work, given.send or 0)
    print(f"{count} pieces in all; those from number {given.send or 0} are in {given.back}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status comes back."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    packing = verbs.add_parser("pack", help="files to pieces")
    packing.add_argument("--out", type=Path, required=True)
    packing.add_argument("paths", type=Path, nargs="+")
    running = verbs.add_parser("run", help="on the machine: go on with training")
    running.add_argument("--pieces", type=Path, required=True)
    running.add_argument("--work", type=Path, default=Path("work"))
    running.add_argument("--back", type=Path, required=True)
    running.add_argument("--stage", help="of recipes.nano")
    running.add_argument("--device", default="cuda")
    running.add_argument("--minutes", type=float, default=8.5)
    running.add_argument("--send", type=int, help="only send results, from this piece on")
    running.add_argument("--results", nargs="*", default=[], help="files or folders to send, below --work")
    running.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    running.add_argument("words", nargs="*", help="instead of --stage: -- -m recipes.image_codec …")
    opening = verbs.add_parser("unpack", help="pieces to files")
    opening.add_argument("--pieces", type=Path, required=True)
    opening.add_argument("--into", type=Path, required=True)
    given = parser.parse_args(arguments)
    try:
        if given.verb == "pack":
            pieces = pack(given.paths, given.out)
            print(f"{len(pieces)} pieces, {sum(p.size for p in pieces):,} bytes", file=sys.stderr)
        elif given.verb == "unpack":
            print(f"{len(unpack(given.pieces, given.into))} files", file=sys.stderr)
        elif not given.stage and not given.words and given.send is None:
            raise LeaseError("run: --stage, --send or a command is needed")
        else:
            run(given)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
