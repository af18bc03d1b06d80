"""The example report of `docs/evaluate.md`: nano, its own base in our engine, and that base in transformers.

    .venv/bin/python -m benchmarks.comparison --out out/comparison

Writes two sets of questions (capitals; test pictures of easy-VQA), the base as a stock folder, and asks all three. What
it leaves is in `benchmarks/results/comparison`.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch

from m27.cli import main
from m27.data.sources import easy_vqa
from m27.data.sources.base import of_split
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
    """`capitals.jsonl` and `pictures.jsonl` of `count` questions each, in the working folder."""
    pairs = [pair.split() for pair in CAPITALS.split(";")][:count]
    asked = [record(c, [{"type": "text", "text": f"What is the capital of {c}?"}], a) for c, a in pairs]
    Path("capitals.jsonl").write_text("".join(asked), encoding="utf-8")
    Path("pictures").mkdir(exist_ok=True)
    lines: list[str] = []
    for item in of_split(iter(easy_vqa.items()), "test"):
        if len(lines) == count:
            break
        name = item.key.replace("/", "-") + ".png"
        (Path("pictures") / name).write_bytes(item.image or b"")
        text, answer = item.meta["questions"][len(lines) % len(item.meta["questions"])]
        question = [{"type": "image", "path": f"pictures/{name}"}, {"type": "text", "text": text}]
        lines.append(record(item.key, question, answer))
    Path("pictures.jsonl").write_text("".join(lines), encoding="utf-8")


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
    parser.add_argument("--count", type=int, default=40)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    os.chdir(arguments.out)
    if not Path("m27-nano").exists():
        Path("m27-nano").symlink_to(ROOT / "weights" / "m27-nano")
    sets(arguments.count)
    base(Path("smollm2-135m"), Path("m27-nano"))
    main([
        "compare", "m27-nano", "smollm2-135m", "hf:smollm2-135m",
        "--data", "capitals.jsonl", "--data", "pictures.jsonl",
        "--metric", "contains", "--max-tokens", "24", "--at-once", "8", "--precision", "float32", "--out", "report",
        "--title", "m27-nano, its base, and its base in transformers",
    ])  # fmt: skip


if __name__ == "__main__":
    run()
