"""What the documents tell a reader to type can be typed, and the files they name exist.

Commands stand in ```sh blocks. The default suite checks that each parses (command, options, types);
`-m slow` also runs those of the README with the shipped weights.
"""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"),
     *(ROOT / "weights").glob("*/README.md"), ROOT / "benchmarks/README.md"]
)  # fmt: skip
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    """The command lines of all sh blocks, continued lines joined, comments left out."""
    lines = "\n".join(BLOCK.findall(text)).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def split(line: str) -> list[str]:
    """The words of a command without leading VARIABLE=value and the path of a program in .venv."""
    words = shlex.split(line, comments=True)
    while words and re.match(r"^[A-Z_0-9]+=", words[0]):
        words.pop(0)
    return [words[0].removeprefix(".venv/bin/"), *words[1:]]


COMMANDS = [
    pytest.param(line, id=f"{path.relative_to(ROOT)}: {line}")
    for path in DOCUMENTS
    for line in commands(path.read_text(encoding="utf-8"))
]


def parse(words: list[str]) -> None:
    """Parse the arguments of `m27` without running anything; a usage error is raised."""
    from m27.cli import app

    command, name = typer.main.get_command(app), "m27"
    while words and words[0] in getattr(command, "commands", {}):
        command, name, words = command.commands[words[0]], words[0], words[1:]
    assert not hasattr(command, "commands"), f"m27 has no command {words[:1]}"
    if "--help" in words:
        return
    context = command.make_context(name, list(words))
    if name == "train" and context.params["recipe"]:  # its settings hang on the recipe
        from m27.cli.train import settings
        from m27.train.settings import change
        from recipes import registry

        recipe = registry.recipe(context.params["recipe"])
        given = settings(context.args, recipe.switches())
        own = recipe.parameters
        change(recipe.make(), {name: value for name, value in given.items() if name not in own})


@pytest.mark.parametrize("line", COMMANDS)
def test_each_command_can_be_typed(line):
    program, *words = split(line)
    if program == "m27":
        parse(words)
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert [word for word in words if "=" not in word and word not in targets] == []
    elif program in ("python", "python3", "torchrun") and "-m" in words:
        words = words[words.index("-m") + 1 :]
        module, *arguments = words[words[0] == "--" :]  # after which torchrun reads no options of its own
        if module == "pytest":
            return
        if module == "m27.cli":
            parse(arguments)
            return
        file = ROOT / (module.replace(".", "/") + ".py")
        source = (
            file if file.is_file() else ROOT / module.replace(".", "/") / "__main__.py"
        ).read_text()
        missing = [
            a for a in arguments if a.startswith("--") and f'"{a.split("=")[0]}"' not in source
        ]
        assert missing == []
    else:
        assert program in {"git", "cd", "pip", "source", "curl", "guidellm"}, f"who checks {program!r}?"


def test_the_check_sees_a_wrong_command():
    for line in (
        "m27 chta hello", "m27 chat hello --immage x.png", "m27 eval nano --samples many",
        "torchrun --nproc-per-node 2 -m m27.cli chat hello --immage x.png", "m27 train pretrian",
        "m27 train pretrain --size nano --optim.lrr 1",
    ):  # fmt: skip
        with pytest.raises((AssertionError, Exception)) as caught:
            test_each_command_can_be_typed(line)
        assert type(caught.value).__name__ in {"AssertionError", "NoSuchOption", "BadParameter", "SettingError"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_that_a_document_names_exist(path):
    text = path.read_text(encoding="utf-8")
    named = re.findall(r"`((?:m27|recipes|tests|docs|weights|examples)/[\w./-]+)`", text)
    linked = [t for t in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", text) if t]
    missing = [name for name in named if not (ROOT / name).exists()]
    missing += [target for target in linked if not (path.parent / target).exists()]
    assert missing == []


@pytest.mark.slow
def test_the_first_run_that_the_training_document_shows_runs(tmp_path):
    """Shards of the examples, a tiny model on them, and a word of it, in a folder beside the examples."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    first = BLOCK.findall((ROOT / "docs" / "train.md").read_text(encoding="utf-8"))[0]
    for line in [*first.strip().splitlines(), "m27 chat hello --model out/tiny/model --max-tokens 4"]:
        done = subprocess.run(
            [sys.executable, "-m", "m27.cli", *split(line)[1:]],
            cwd=tmp_path, capture_output=True, text=True, timeout=300,
            env={"M27_MODEL": str(ROOT / "weights" / "m27-nano"), "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stderr[-2000:]}"
    assert list((tmp_path / "out" / "tiny" / "tensorboard").iterdir())


NOT_RUN = ("m27 chat", "m27 eval nano", "m27 tour", "m27 serve")  # they go on, or take minutes


@pytest.mark.slow
def test_the_commands_of_the_readme_run(tmp_path):
    """Each in turn, in a folder that holds a picture, with the shipped weights."""
    shutil.copy(ROOT / "examples" / "samples" / "photo.png", tmp_path / "dog.png")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for line in commands((ROOT / "README.md").read_text(encoding="utf-8")):
        program, *words = split(line)
        if program != "m27" or " ".join([program, *words]) in NOT_RUN:
            continue
        if words[0] == "chat":
            words += ["--max-tokens", "90"]
        done = subprocess.run(
            [sys.executable, "-m", "m27.cli", *words],
            cwd=tmp_path, capture_output=True, text=True, timeout=300,
            env={"M27_MODEL": str(ROOT / "weights" / "m27-nano"), "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stderr[-2000:]}"
