"""The rules of the house, read from the source: who imports whom, what is documented, how big."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "m27"
SOURCES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "recipes").rglob("*.py")])
TOP = {"cli", "recipes"}  # may import anything; nobody imports them

# DESIGN: room -> what of ours it may import (prefixes of dotted names below m27).
MAY_IMPORT = {
    "runtime": (),
    "model": (),
    "codec": (),
    "language": ("codec",),
    "data": ("language", "codec.media", "runtime"),
    "train": ("model", "codec", "language", "data", "runtime"),
    "infer": ("model", "language", "runtime"),
    "eval": ("infer", "data", "language"),
    "serve": ("infer", "language", "codec.media"),
}
EXTRAS = (
    "typer",
    "rich",
    "soundfile",
    "soxr",
    "pyarrow",
    "transformers",
    "peft",
    "pydantic",
    "huggingface_hub",
    "llguidance",
    "fastapi",
    "starlette",
    "uvicorn",
    "python_multipart",
    "h11",
)


def room_of(path: Path) -> str:
    """`m27/model/config.py` -> model; `m27/runtime.py` -> runtime; `recipes/nano.py` -> recipes."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    room = parts[0] if parts[0] != "m27" else parts[1]
    return "" if room == "__init__" else room


def imports(path: Path, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, full dotted name) of everything a file imports anywhere, relative ones resolved."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = [] if node.level == 0 else list(package[: len(package) - node.level + 1])
            base += [node.module] if node.module else []
            for alias in node.names:
                yield node.lineno, ".".join([*base, alias.name])


def import_faults(path: Path, tree: ast.AST) -> list[str]:
    """Every import of `path` that the table does not allow."""
    room, faults = room_of(path), []
    for line, name in imports(path, tree):
        parts = name.split(".")
        if parts[0] in {"recipes", "tests", "examples", "benchmarks"}:
            target = parts[0]
        elif parts[0] == "m27" and len(parts) > 1 and not parts[1].startswith("__"):
            target = ".".join(parts[1:])
        else:
            continue
        head = target.split(".")[0]
        if room in TOP or head == room:
            continue
        if head in TOP or not any(
            target == p or target.startswith(p + ".") for p in MAY_IMPORT[room]
        ):
            faults.append(f"{path.relative_to(ROOT)}:{line}: {room} imports {target}")
    return faults


def dotted(node: ast.AST) -> str:
    """`a.b.c` of an attribute chain, `?.c` if it starts in a call; "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        return f"{head or '?'}.{node.attr}"
    return ""


NEVER_IMPORT = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
NEVER_CALL = {"torch.load", "torch.save", "eval", "exec", "os.system", "yaml.load"}
ONLY_MEDIA_IMPORTS = {"imageio", "cv2", "torchaudio", "torchvision", "librosa", "av"}
ONLY_MEDIA = re.compile(
    r"(^|\.)(Image\.open|ImageFile\.Parser|soundfile\.(?!write)\w+|sf\.(read|SoundFile|info|blocks)|wave\.open|urlopen|requests\.\w+)$"
)


def safety_faults(path: Path, tree: ast.AST) -> list[str]:
    """Pickles, code from strings, media or addresses opened outside the one place for it."""
    where, faults = path.relative_to(ROOT), []
    media = where == Path("m27/codec/media.py")
    for line, name in imports(path, tree):
        head = name.split(".")[0]
        if head in NEVER_IMPORT or (head in ONLY_MEDIA_IMPORTS and not media):
            faults.append(f"{where}:{line}: imports {head}")
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        if name in NEVER_CALL:
            faults.append(f"{where}:{node.lineno}: calls {name}")
        if ONLY_MEDIA.search(name) and not media:
            faults.append(f"{where}:{node.lineno}: {name} outside codec/media.py")
        for keyword in node.keywords:
            value = keyword.value
            unsafe = isinstance(value, ast.Constant) and value.value is True
            if keyword.arg in {"allow_pickle", "shell", "trust_remote_code"} and unsafe:
                faults.append(f"{where}:{node.lineno}: {keyword.arg}=True")
    return faults


def undocumented(path: Path, tree: ast.Module) -> list[str]:
    """Public modules, classes, functions and methods without a docstring of a dozen characters."""
    faults = []

    def visit(node: ast.AST, name: str, nested: bool) -> None:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            public = not nested and not getattr(node, "name", "").startswith("_")
            overload = any(dotted(d) == "overload" for d in getattr(node, "decorator_list", []))
            empty = isinstance(node, ast.Module) and not node.body
            text = ast.get_docstring(node) or ""
            if public and not overload and not empty and len(text) < 12:
                line = getattr(node, "lineno", 1)
                faults.append(f"{path.relative_to(ROOT)}:{line}: {name or 'module'}")
            inner = nested or not public or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for child in node.body:
                visit(child, f"{name}.{getattr(child, 'name', '')}".strip("."), inner)

    visit(tree, "", False)
    return faults


def parsed() -> Iterator[tuple[Path, ast.Module]]:
    for path in SOURCES:
        yield path, ast.parse(path.read_text(encoding="utf-8"), str(path))


def test_rooms_import_only_what_the_design_allows():
    unknown = {room_of(p) for p in SOURCES} - set(MAY_IMPORT) - TOP - {""}
    assert not unknown, f"rooms without a rule: {unknown}"
    assert [f for path, tree in parsed() for f in import_faults(path, tree)] == []


def test_no_pickles_and_media_only_through_the_gate():
    assert [f for path, tree in parsed() for f in safety_faults(path, tree)] == []


def test_everything_public_is_documented():
    assert [f for path, tree in parsed() for f in undocumented(path, tree)] == []


@pytest.mark.parametrize(
    ("where", "source", "fault"),
    [
        ("m27/model/x.py", "from m27.codec import image", "model imports codec"),
        (
            "m27/model/x.py",
            "def f():\n    from ..language import vocabulary",
            "model imports language",
        ),
        ("m27/data/x.py", "from m27.codec.image import ImageCodec", "data imports codec.image"),
        ("m27/infer/x.py", "import m27.cli", "infer imports cli"),
        ("m27/train/x.py", "import recipes.nano", "train imports recipes"),
    ],
)
def test_the_import_rule_sees_a_breach(where, source, fault):
    (found,) = import_faults(ROOT / where, ast.parse(source))
    assert fault in found


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("m27/data/x.py", "from m27.codec.media import read_image"),
        ("m27/data/x.py", "from m27.codec import media"),
        ("m27/model/x.py", "from .config import Config"),
        ("m27/cli.py", "from m27.eval import run"),
        ("m27/eval/x.py", "from m27 import __version__"),
    ],
)
def test_the_import_rule_lets_the_design_through(where, source):
    assert import_faults(ROOT / where, ast.parse(source)) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "x = torch.load('a.pt')",
        "np.load(p, allow_pickle=True)",
        "Image.open(path)",
        "PIL.Image.open(path)",
        "soundfile.read(p)",
        "urllib.request.urlopen(u)",
        "subprocess.run(c, shell=True)",
    ],
)
def test_the_safety_rule_sees_a_breach(source):
    assert len(safety_faults(ROOT / "m27/data/x.py", ast.parse(source))) == 1


def test_the_docstring_rule_sees_a_breach():
    source = (
        '"""A module of things."""\ndef f(): pass\ndef _g(): pass\n'
        'class C:\n  "A class of C."\n  def m(self): pass\n'
    )
    assert [f.split(": ")[1] for f in undocumented(ROOT / "m27/x.py", ast.parse(source))] == [
        "f",
        "C.m",
    ]


def test_model_codec_and_train_run_on_a_bare_machine():
    """With every extra out of reach, the three rooms (and what they import) still import."""
    modules = [
        ".".join(p.relative_to(ROOT).with_suffix("").parts)
        for p in SOURCES
        if room_of(p) in {"runtime", "model", "codec", "train"} and p.name != "__init__.py"
    ]
    code = (
        "import sys, importlib\n"
        "class Bare:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {EXTRAS!r}:\n"
        "            raise ModuleNotFoundError(name + ' is not on a bare machine', name=name)\n"
        "sys.meta_path.insert(0, Bare())\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]


def tracked() -> list[Path]:
    """Files that git tracks; of an unpacked archive, everything not hidden."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    if listed.returncode == 0:
        return [p for n in listed.stdout.split("\0") if n and (p := ROOT / n).is_file()]
    return [
        p for p in ROOT.rglob("*") if p.is_file() and not any(x.startswith(".") for x in p.parts)
    ]


def test_files_keep_to_their_size():
    """Modules can be read at a sitting; only weights are large, and they take at most 160 MB."""
    long = [
        f"{p.relative_to(ROOT)}: {n}"
        for p in SOURCES
        if (n := len(p.read_text().splitlines())) > 400
    ]
    assert long == []
    weights = [p for p in tracked() if p.is_relative_to(ROOT / "weights")]
    large = [
        str(p.relative_to(ROOT))
        for p in tracked()
        if p not in weights and p.stat().st_size > 1_000_000
    ]
    assert large == []
    assert sum(p.stat().st_size for p in weights) <= 160_000_000


def test_no_drawer_for_odds_and_ends():
    assert [
        str(p) for p in SOURCES if p.stem in {"utils", "util", "helpers", "misc", "common"}
    ] == []


def test_nothing_is_left_to_do():
    marks = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError)\b")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in SOURCES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if marks.search(line)
    ]
    assert found == []
