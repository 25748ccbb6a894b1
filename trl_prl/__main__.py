"""The command `trl-prl`, also `python -m trl_prl`.

A subcommand is a module with `run(options) -> int`, and either `Options`, a dataclass whose fields are its options, or
`add_arguments(parser)`, for those with arguments of another kind. Options may have a method `kept()`, which says what
is left when the subcommand is stopped. Only the module of the subcommand that is called is imported, and what is heavy
only when it runs, so that `--help` and `--version` answer at once.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import Any

from trl_prl import __version__
from trl_prl.jobs.arguments import check_words, describe, parse_options


# What `trl-prl --help` says about each subcommand, whose module has its name.
COMMANDS = {
    "collect": "estimate the value of each step by rollouts, as data for a verifier",
    "diagnose": "say which prover, which K and which alpha suit a policy, from collected values",
    "evaluate": "measure how often models are right: avg@n, pass@k, votes and best-of-n with intervals",
    "evaluate-verifier": "compare the step values of a verifier with labels: F1, AUROC, calibration",
    "export": "write collected siblings as preferences between steps, for TRL's DPOTrainer",
    "plan": "say what collection, verifier and RL will cost: tokens, GPU hours, memory and price",
    "quickstart": "train small policies on the CPU, judge a learned verifier and search with it",
    "report": "write one HTML file that shows training runs and results",
    "score": "score the steps of solutions in a file with a verifier or a public process reward model",
    "search": "search answers at test time, and draw accuracy against compute",
    "serve": "score steps for trainers and searches on other machines, over HTTP",
    "split-report": "show how a splitter cuts the completions in a file into steps",
}


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Terminated(BaseException):
    """The process was asked to end, as Ctrl-C asks."""


def load_command(name: str) -> Any:
    """Import the module of a subcommand.

    Args:
        name (`str`):
            A key of `COMMANDS`.

    Returns:
        `module`: The module.
    """
    return import_module(f"trl_prl.commands.{name.replace('-', '_')}")


def root_parser() -> argparse.ArgumentParser:
    """The parser of what stands before the subcommand."""
    parser = argparse.ArgumentParser(prog="trl-prl", description="Process rewards for LLM fine-tuning on TRL.")
    parser.add_argument("--version", action="version", version=f"trl-prl {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    subparsers = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name, summary in COMMANDS.items():
        subparsers.add_parser(name, help=summary, add_help=False)
    return parser


def parse_command(command: Any, name: str, words: Sequence[str]) -> Any:
    """Options of a subcommand.

    Args:
        command (`module`):
            Its module.
        name (`str`):
            Its name.
        words (`Sequence[str]`):
            What stands behind the name.

    Returns:
        `Any`: An `Options` of the module, or the namespace of its arguments.
    """
    summary = COMMANDS[name]
    prog, description = f"trl-prl {name}", f"{summary[0].upper()}{summary[1:]}."
    if hasattr(command, "Options"):
        return parse_options(command.Options, words, prog, description)
    parser = argparse.ArgumentParser(prog, description=description, allow_abbrev=False)
    command.add_arguments(parser)
    return check_words(parser, words)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv (`Sequence[str]`, *optional*):
            Arguments without the program's name; those of the process by default.

    Returns:
        `int`: Exit code: what the subcommand returns, 2 for input it cannot work with, and 130 or 143 when it was
        stopped by Ctrl-C or SIGTERM. As everywhere in `argparse`, `--help`, `--version` and wrong arguments raise
        `SystemExit`.
    """
    words = with_underscores(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    place = next((place for place, word in enumerate(words) if not word.startswith("-")), len(words))
    # Whatever is wrong or wanted before the subcommand ends here.
    parser = root_parser()
    if unknown := [word for word in words[place : place + 1] if word not in COMMANDS]:
        near = difflib.get_close_matches(unknown[0], COMMANDS, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        parser.error(f"Got {unknown[0]!r}, which is no command. {hint}--help lists all.")
    name = parser.parse_args(words[: place + 1]).command
    options: Any = None
    try:
        with _stopped_by_sigterm():
            command = load_command(name)
            options = parse_command(command, name, words[place + 1 :])
            return int(command.run(options))
    except (ValueError, OSError, ImportError) as error:
        if debug:
            traceback.print_exc()
        else:
            print(f"trl-prl {name}: error: {describe(error)} (--debug shows the traceback)", file=sys.stderr)
        if isinstance(error, OSError) and error.errno in _NO_ROOM and hasattr(options, "kept"):
            print(f"Make room on the disk. {options.kept()}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, _Terminated) as stop:
        kept = options.kept() if hasattr(options, "kept") else "Nothing was written."
        print(f"\ntrl-prl {name}: stopped.\n{kept}", file=sys.stderr)
        return 130 if isinstance(stop, KeyboardInterrupt) else 143


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that processes are ended and files closed."""

    def handler(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def with_underscores(argv: Sequence[str]) -> list[str]:
    """Write the names of options with underscores, as TRL's own commands have them; dashes are an alias.

    Args:
        argv (`Sequence[str]`):
            Arguments.

    Returns:
        `list[str]`: The arguments, values untouched.
    """
    words = []
    for word in argv:
        name, equals, value = word.partition("=")
        is_option = name.startswith("--")
        words.append(f"--{name[2:].replace('-', '_')}{equals}{value}" if is_option else word)
    return words


if __name__ == "__main__":
    sys.exit(main())
