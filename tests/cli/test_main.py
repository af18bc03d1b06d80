"""The command as a whole: quick to answer, and no heavy import before it is needed."""

import subprocess
import sys

import pytest


def test_help_and_wrong_files_need_no_torch() -> None:
    code = (
        "import sys\n"
        "from m27.cli import main\n"
        "for arguments in (['--help'], ['chat', 'x', '--image', 'missing.png']):\n"
        "    try: main(arguments)\n"
        "    except SystemExit as left: print('left', left.code)\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "left 0" in done.stdout
    assert "left 2" in done.stdout
    assert done.stderr == "m27: missing.png: no such file\n"


@pytest.mark.parametrize(
    "command", ["chat", "encode", "decode", "export", "sizes", "serve", "tour", "eval", "data"]
)
def test_every_command_has_its_help(run, command: str) -> None:
    done = run(command, "--help")
    assert done.status == 0
    assert len(done.out) > 100


def test_unknown_commands_and_options_leave_with_2(run) -> None:
    for arguments in (("sing",), ("chat", "--loud"), ("encode",), ("chat", "x", "--seed", "one")):
        done = run(*arguments)
        assert done.status == 2
        assert done.out == ""


def test_eval_refuses_what_it_cannot_score(run) -> None:
    for arguments in (("nowhere",), ("nano", "--samples", "0"), ("nano", "--task", "unicorns"),
                      ("nano", "--jobs", "2", "--threads", "2")):  # fmt: skip
        done = run("eval", *arguments)
        assert done.status == 2
        assert done.err.count("\n") == 1
