"""The command `trl-prl`.

A subcommand is a module with `add_arguments(parser)` and `run(args) -> int`. Only the module of the subcommand that is
called is imported, so that `--help` and `--version` answer at once.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Protocol, cast

from . import __version__


class Command(Protocol):
    """What the module of a subcommand offers."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments of the subcommand to its parser."""
        ...

    def run(self, args: argparse.Namespace) -> int:
        """Run the subcommand and return the exit code."""
        ...


# Name of the subcommand: its module, and what `trl-prl --help` says about it.
COMMANDS = {
    "collect": ("collect", "estimate the value of each step by rollouts, as data for a verifier"),
    "diagnose": ("diagnose", "say which prover, which K and which alpha suit a policy, from collected values"),
    "evaluate": ("evaluate", "measure how often models are right: avg@n, pass@k, votes and best-of-n with intervals"),
    "evaluate-verifier": (
        "evaluate_verifier",
        "compare the step values of a verifier with labels: F1, AUROC, calibration",
    ),
    "quickstart": ("quickstart", "train small policies with process rewards on the CPU and compare them with GRPO"),
    "report": ("report", "write one HTML file that shows training runs and results"),
    "score": ("score", "score the steps of solutions in a file with a trained verifier"),
    "search": ("search_command", "search answers at test time, and draw accuracy against compute"),
    "split-report": ("split_report", "show how a splitter cuts the completions in a file into steps"),
}


def load_command(name: str) -> Command:
    """Import the module of a subcommand.

    Args:
        name (`str`):
            A key of `COMMANDS`.

    Returns:
        `Command`: The module.
    """
    return cast(Command, import_module(f".{COMMANDS[name][0]}", __package__))


def build_parser(command: Command | None = None, name: str | None = None) -> argparse.ArgumentParser:
    """Build the parser, with the arguments of one subcommand.

    Args:
        command (`Command`, *optional*):
            The subcommand that is called, if any.
        name (`str`, *optional*):
            Its name.

    Returns:
        `argparse.ArgumentParser`: The parser. All subcommands are listed; only the one called knows its arguments.
    """
    debug = argparse.ArgumentParser(add_help=False)
    # Suppressed, so that the parser of the subcommand does not reset what was given before its name.
    debug.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
    )
    parser = argparse.ArgumentParser(
        prog="trl-prl", description="Process rewards for LLM fine-tuning on TRL.", parents=[debug]
    )
    parser.add_argument("--version", action="version", version=f"trl-prl {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="command", required=True)
    for command_name, (_, summary) in COMMANDS.items():
        subparser = subparsers.add_parser(
            command_name, help=summary, description=summary[0].upper() + summary[1:] + ".", parents=[debug]
        )
        if command is not None and command_name == name:
            command.add_arguments(subparser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv (`Sequence[str]`, *optional*):
            Arguments without the program's name; those of the process by default.

    Returns:
        `int`: Exit code: what the subcommand returns, or 2 for input it cannot work with. As everywhere in `argparse`,
        `--help`, `--version` and wrong arguments raise `SystemExit`.
    """
    argv = with_dashes(sys.argv[1:] if argv is None else argv)
    name = next((word for word in argv if not word.startswith("-")), None)
    try:
        # Without a valid name, the parser answers --help and --version, or lists the subcommands.
        command = load_command(name) if name in COMMANDS else None
        args = build_parser(command, name).parse_args(argv)
        return load_command(args.command).run(args)
    except (ValueError, OSError, ImportError) as error:
        if "--debug" in argv:
            traceback.print_exc()
        else:
            print(f"trl-prl {name}: error: {describe(error)} (--debug shows the traceback)", file=sys.stderr)
        return 2


def with_dashes(argv: Sequence[str]) -> list[str]:
    """Write the names of options with dashes, as the parsers know them; TRL's own commands use underscores.

    Args:
        argv (`Sequence[str]`):
            Arguments.

    Returns:
        `list[str]`: The arguments, values untouched.
    """
    words = []
    for word in argv:
        name, equals, value = word.partition("=")
        words.append(name.replace("_", "-") + equals + value if name.startswith("--") else word)
    return words


def describe(error: Exception) -> str:
    """Say what went wrong in one line, also for exceptions whose message is bare or empty.

    Args:
        error (`Exception`):
            What a subcommand raised.

    Returns:
        `str`: The message.
    """
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.strerror}: {error.filename}"
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
