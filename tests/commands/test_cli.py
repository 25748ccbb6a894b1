"""The command line: quick help, clear errors, tracebacks only on demand."""

from __future__ import annotations

import argparse
import errno
import re
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest

from trl_prl import __main__ as cli
from trl_prl import __version__


def install_command(monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
    """Replace the subcommand `split-report` by one that echoes `--number` or raises `error`."""

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--number", type=int, default=1)

    def run(args: argparse.Namespace) -> int:
        if error is not None:
            raise error
        print(f"number {args.number}")
        return 3

    module = types.ModuleType("trl_prl.commands.split_report")
    module.add_arguments = add_arguments  # type: ignore[attr-defined]
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_runs_the_subcommand_and_returns_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install_command(monkeypatch)
    assert cli.main(["split-report", "--number", "5"]) == 3
    assert capsys.readouterr().out == "number 5\n"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("`n` is 0.\n    Give a positive number."), "`n` is 0. Give a positive number."),
        (FileNotFoundError(2, "No such file or directory", "a.jsonl"), "No such file or directory: a.jsonl"),
        (ImportError("Plots need matplotlib: pip install trl-prl[plot]"), "pip install trl-prl[plot]"),
        (ValueError(), "ValueError"),
    ],
)
def test_user_errors_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, message: str
) -> None:
    install_command(monkeypatch, error)
    assert cli.main(["split-report"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("trl-prl split-report: error: ")
    assert message in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize("argv", [["--debug", "split-report"], ["split-report", "--debug"]])
def test_debug_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    install_command(monkeypatch, ValueError("bad"))
    assert cli.main(argv) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_is_not_presented_as_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    install_command(monkeypatch, KeyError("bug"))
    with pytest.raises(KeyError):
        cli.main(["split-report"])


@pytest.mark.parametrize("argv", [[], ["no-such-command"], ["--no-such-option"], ["split-report", "--number", "x"]])
def test_wrong_arguments_exit_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    install_command(monkeypatch)
    with pytest.raises(SystemExit) as exit_info:
        cli.main(argv)
    assert exit_info.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--step-length", "--step_length", "--step_length=3"])
def test_options_may_be_written_with_dashes(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--step_length")
        parser.add_argument("--column")

    module = types.ModuleType("trl_prl.commands.split_report")
    module.add_arguments = add_arguments  # type: ignore[attr-defined]
    module.run = lambda args: print(args.step_length, args.column) or 0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    words = [option] if "=" in option else [option, "3"]
    assert cli.main(["split-report", *words, "--column=my-column"]) == 0
    assert capsys.readouterr().out == "3 my-column\n"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_is_light_and_options_are_declared_with_underscores(name: str) -> None:
    """Dashes are rewritten before options are parsed, so one declared with dashes alone would not be found."""
    code = (
        "import sys, trl_prl.__main__ as main\n"
        f"try: main.main([{name!r}, '--help'])\n"
        "except SystemExit as error: print(error.code, [m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # No warning of a library, and nothing that takes seconds to import.
    assert result.stderr == ""
    assert result.stdout.endswith("0 []\n")
    assert f"trl-prl {name}" in result.stdout
    words = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", result.stdout.split("options:")[1]))
    assert {word[2:].replace("-", "_") for word in words} <= {word[2:] for word in words}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_in_two_lines_without_a_traceback(number: int, code: int, tmp_path: Path) -> None:
    program = (
        "import signal, sys, time, types\n"
        # What was started in the background of a shell ignores it.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "module = types.ModuleType('trl_prl.commands.split_report')\n"
        "class Options(types.SimpleNamespace):\n"
        "    def kept(self): return 'All is kept.'\n"
        "def run(options):\n"
        "    print('running', flush=True)\n"
        "    time.sleep(60)\n"
        "module.add_arguments = lambda parser: None\n"
        "module.run = run\n"
        "sys.modules[module.__name__] = module\n"
        "import trl_prl.__main__ as main\n"
        "main.parse_command = lambda *args: Options()\n"
        "sys.exit(main.main(['split-report']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert errors.split("\n") == ["", "trl-prl split-report: stopped.", "All is kept.", ""]


def test_a_full_disk_says_what_is_kept(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    install_command(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr(cli, "parse_command", lambda *words: types.SimpleNamespace(kept=lambda: "All is kept."))
    assert cli.main(["split-report"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "No space left on device" in first
    assert second == "Make room on the disk. All is kept."


def test_secrets_in_messages_are_masked() -> None:
    error = ValueError("http://me:secret@host/v1 refused the key sk-abcdefghijkl.")
    assert cli.describe(error) == "http://***@host/v1 refused the key sk-***."


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["--version"])
    assert exit_info.value.code == 0
    assert capsys.readouterr().out == f"trl-prl {__version__}\n"


def test_help_lists_every_subcommand_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, trl_prl.__main__\n"
        "try: trl_prl.__main__.main(['--help'])\n"
        "except SystemExit as error: print(error.code, [m for m in ('torch', 'numpy', 'trl') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(name in result.stdout for name in cli.COMMANDS)
    assert result.stdout.endswith("0 []\n")
