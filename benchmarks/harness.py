"""The same questions through other people's evaluation programs and through `m27 eval`: are the answers the same?

    /somewhere/harness/bin/python -m benchmarks.harness         # where `pip install -e '.[harness,serve]'` was done
    /somewhere/harness/bin/python -m benchmarks.harness --only lm-eval --samples 40

"lmms-eval": held-out pictures with a question, asked by lmms-eval's OpenAI-compatible model (`async_openai`) at our
server, by lmms-eval's `m27` (our plug-in), and by `m27 eval` at the checkpoint and at the server. "lm-eval": multiple
choice, texts whose perplexity is taken, and prompts to go on from, by lm-evaluation-harness's `m27` and its own `hf`,
both on the exported checkpoint in float32. All data is written here, in each program's own form; nothing is fetched.
Answers are compared sample by sample. Writes `benchmarks/results/harness.json`; exit status 1 where something differs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks import texts
from benchmarks.comparison import CAPITALS
from benchmarks.peers.install import MODEL, export
from benchmarks.serving import ROOT, serving
from m27.codec.media import png_bytes, read_image, write_atomic
from m27.data.sources import cifar10
from m27.data.sources.base import of_split

RESULTS = ROOT / "benchmarks" / "results" / "harness.json"
QUESTION, TOKENS = "What is this?", 24
SERVER = ("--precision", "float32", "--name", "m27-nano")
CHOICES = """task: m27_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/choices.json}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: What is the capital of {{{{country}}}}?\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
metadata: {{version: 1.0}}
"""
TEXTS = """task: m27_texts
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/texts.json}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: byte_perplexity}}, {{metric: bits_per_byte}}]
metadata: {{version: 1.0}}
"""
GOES_ON = """task: m27_goes_on
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/choices.json}}}}
test_split: test
output_type: generate_until
doc_to_text: "Question: What is the capital of {{{{country}}}}?\\nAnswer:"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 16, do_sample: false, repetition_penalty: 1.0}}
metric_list: [{{metric: exact_match, ignore_case: true, ignore_punctuation: true}}]
metadata: {{version: 1.0}}
"""
PICTURES = """task: m27_pictures
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/pictures.json}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function m27_pictures.visual
doc_to_text: !function m27_pictures.text
doc_to_target: "answer"
process_results: !function m27_pictures.results
generation_kwargs: {{max_new_tokens: {tokens}, temperature: 0, do_sample: false}}
metric_list: [{{metric: right, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""
FUNCTIONS = '''"""What the task asks and how it is scored."""

import io

from m27.eval.metrics import contains
from m27.eval.samples import Sample
from PIL import Image


def visual(doc):
    with open(doc["picture"], "rb") as file:
        return [Image.open(io.BytesIO(file.read())).convert("RGB")]


def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def results(doc, found):
    return {"right": contains(Sample("", [], (doc["answer"],)), found[0]).score}
'''


def command(*words: str | Path, cwd: Path = ROOT, **more: str) -> None:
    """Run one; what it says is shown where it fails."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONPATH": str(ROOT), **more}
    done = subprocess.run([str(word) for word in words], cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")


def lines(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def samples_of(folder: Path, task: str) -> list[dict[str, Any]]:
    """What either harness logged of a task, by document."""
    (path,) = [p for p in folder.rglob("*.jsonl") if task in p.name]
    return sorted(lines(path), key=lambda one: int(one["doc_id"]))


# lm-evaluation-harness


def lm_eval(folder: Path, count: int) -> dict[str, Any]:
    """The three kinds of task by `m27` and by `hf`, document by document."""
    tasks = folder / "tasks"
    tasks.mkdir()
    pairs = [pair.split() for pair in CAPITALS.split(";")][:count]
    cities = [city for _, city in pairs]
    docs = [
        {"country": country, "answer": city, "label": n % 4, "choices": _among(cities, n)}
        for n, (country, city) in enumerate(pairs)
    ]
    passages = [text[:2000] for text in islice(texts.manual(), 16)]
    (folder / "choices.json").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (folder / "texts.json").write_text("".join(json.dumps({"text": text}) + "\n" for text in passages))
    for name, form in (("choices", CHOICES), ("texts", TEXTS), ("goes_on", GOES_ON)):
        (tasks / f"{name}.yaml").write_text(form.format(folder=folder))
    model, names = export(), "m27_choices,m27_texts,m27_goes_on"
    run = (sys.executable, "-m", "m27.eval.plugins", "run", "--tasks", names, "--include_path", tasks, "--log_samples")
    command(*run, "--model", "m27", "--model_args", f"pretrained={model},precision=float32,threads=1",
            "--output_path", folder / "m27")  # fmt: skip
    command(*run, "--model", "hf", "--model_args", f"pretrained={model},dtype=float32", "--device", "cpu",
            "--batch_size", "8", "--output_path", folder / "hf")  # fmt: skip
    out: dict[str, Any] = {"version": version("lm_eval"), "model": "m27-nano, exported, float32"}
    for task in names.split(","):
        mine, other = (samples_of(folder / side, task) for side in ("m27", "hf"))
        out[task] = compared(mine, other)
    command(sys.executable, "-m", "m27.cli", "eval", tasks, "--harness", "lm-eval", "--model", model,
            "--precision", "float32", "--threads", "1", "--out", folder / "eval")  # fmt: skip
    out["m27 eval"] = {f"{row['task']} {row['metric']}": row["score"] for row in lines(folder / "eval" / "rows.jsonl")}
    (results,) = (folder / "m27").rglob("results_*.json")
    found = json.loads(results.read_text())["results"]
    out["lm_eval"] = {
        f"{task} {name.partition(',')[0]}": value for task, metrics in found.items() for name, value in metrics.items()
        if "," in name and "stderr" not in name
    }  # fmt: skip
    out["equal"] = out["m27 eval"] == out["lm_eval"] and all(out[task]["equal"] for task in names.split(","))
    return out


def _among(cities: list[str], n: int) -> list[str]:
    """Four cities of which the (n mod 4)-th is the n-th."""
    others = [cities[(n + k) % len(cities)] for k in (3, 7, 11)]
    return [*others[: n % 4], cities[n], *others[n % 4 :]]


def compared(mine: list[dict[str, Any]], other: list[dict[str, Any]]) -> dict[str, Any]:
    """How far two runs of one task are apart: in log-likelihood at most, in words, and in scores. Equal is within 1e-3,
    or 1e-5 of the sum over a long text, which float32 holds no better."""
    far, words, unequal, near = 0.0, 0, 0, True
    for a, b in zip(mine, other, strict=True):
        for one, two in zip(_flat(a["resps"]), _flat(b["resps"]), strict=True):
            try:
                far = max(far, abs(float(one) - float(two)))
                near &= math.isclose(float(one), float(two), rel_tol=1e-5, abs_tol=1e-3)
            except ValueError:
                words += one != two
        scores = [name for name in a["metrics"] if isinstance(a[name], float | int)]
        unequal += any(a[name] != b[name] for name in scores)
    equal = near and words == 0 and unequal == 0
    return {"documents": len(mine), "most_apart": far, "other_words": words, "other_scores": unequal, "equal": equal}


def _flat(value: Any) -> list[str]:
    if isinstance(value, list):
        return [one for part in value for one in _flat(part)]
    return [] if str(value) in ("True", "False") else [str(value)]


# lmms-eval


def lmms_eval(folder: Path, count: int) -> dict[str, Any]:
    """The same pictures in four ways, sample by sample."""
    pictures, tasks = folder / "pictures", folder / "tasks"
    pictures.mkdir()
    tasks.mkdir()
    docs, records = [], []
    for number, item in enumerate(islice(of_split(iter(cifar10.items()), "test"), count)):
        path = pictures / f"{number:04d}.png"
        path.write_bytes(png_bytes(read_image(item.image or b"")))
        docs.append({"picture": str(path), "question": QUESTION, "answer": item.concept})
        asked = [{"type": "image", "path": str(path)}, {"type": "text", "text": QUESTION}]
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": item.concept}]
        records.append({"id": str(number), "messages": turns})
    (folder / "pictures.json").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (folder / "my.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tasks / "m27_pictures.yaml").write_text(PICTURES.format(folder=folder, tokens=TOKENS))
    (tasks / "m27_pictures.py").write_text(FUNCTIONS)
    run = (sys.executable, "-m", "lmms_eval", "--tasks", "m27_pictures", "--include_path", tasks, "--log_samples",
           "--batch_size", "1")  # fmt: skip
    ask = (sys.executable, "-m", "m27.cli", "eval", folder / "my.jsonl", "--metric", "contains", "--max-tokens", TOKENS)
    answers: dict[str, list[tuple[str, float]]] = {}
    with serving(MODEL, SERVER) as url:
        command(*run, "--model", "async_openai", "--model_args",
                f"model_version=m27-nano,base_url={url}/v1,api_key=none,num_cpus=4", "--output_path", folder / "openai",
                cwd=folder)  # fmt: skip
        command(*map(str, ask), "--model", f"openai:m27-nano@{url}/v1", "--out", folder / "server")
    command(*run, "--model", "m27", "--model_args", f"pretrained={MODEL},precision=float32", "--output_path",
            folder / "plugin", cwd=folder)  # fmt: skip
    command(*map(str, ask), "--model", MODEL, "--precision", "float32", "--out", folder / "checkpoint")
    for name, side in (("lmms-eval, async_openai, m27 serve", "openai"), ("lmms-eval, m27", "plugin")):
        found = samples_of(folder / side, "m27_pictures")
        answers[name] = [(_flat(s["filtered_resps"])[0].strip(), float(s["right"])) for s in found]
    for name, side in (("m27 eval, openai:, m27 serve", "server"), ("m27 eval, checkpoint", "checkpoint")):
        kept = sorted(lines(folder / side / "answers.jsonl"), key=lambda one: int(one["id"]))
        answers[name] = [(one["answer"], one["score"]) for one in kept]
    first = answers["m27 eval, checkpoint"]
    out: dict[str, Any] = {"version": version("lmms_eval"), "samples": count, "question": QUESTION, "ways": {}}
    for name, found in answers.items():
        other = [n for n, (a, b) in enumerate(zip(found, first, strict=True)) if a != b]
        score = sum(score for _, score in found) / count
        out["ways"][name] = {"score": score, "same_answers": count - len(other), "other": _shown(other, found, first)}
    out["equal"] = all(way["same_answers"] == count for way in out["ways"].values())
    return out


def _shown(places: Iterable[int], found: list[Any], first: list[Any]) -> list[dict[str, Any]]:
    return [{"sample": n, "answer": found[n][0], "m27 eval": first[n][0]} for n in list(places)[:10]]


def main() -> int:
    """Parse, run, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("lm-eval", "lmms-eval"))
    parser.add_argument("--samples", type=int, default=120)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--keep", type=Path, help="a folder for what the programs write, to look at")
    arguments = parser.parse_args()
    result = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    for name, way in (("lm-eval", lm_eval), ("lmms-eval", lmms_eval)):
        if arguments.only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                try:
                    result[name] = {"date": f"{datetime.now(UTC):%Y-%m-%d}", **way(Path(folder), arguments.samples)}
                finally:
                    if arguments.keep is not None:
                        shutil.copytree(folder, arguments.keep / name, dirs_exist_ok=True)
            print(json.dumps(result[name], indent=1, ensure_ascii=False))
    write_atomic(arguments.out, (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode())
    return 0 if all(one["equal"] for one in result.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
