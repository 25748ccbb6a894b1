"""`trl-prl report`: one HTML file that shows training runs and results of the other commands."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from .report_data import ReportData
from .report_page import render_page


FORMATS = ("html", "png", "svg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "run",
        nargs="+",
        type=Path,
        help="output folder of a training run, or a folder or file that another command of trl-prl wrote",
    )
    parser.add_argument("--output", "-o", type=Path, default=Path("report.html"), help="the HTML file")
    parser.add_argument("--title", default=None, help="title of the page")
    parser.add_argument(
        "--format",
        nargs="+",
        choices=FORMATS,
        default=["html"],
        help="what to write; png and svg are figures for papers, in a folder beside the HTML file",
    )
    parser.add_argument("--max-completions", type=int, default=5000, help="completions to show, evenly spaced of more")


def run(args: argparse.Namespace) -> int:
    """Read the results and write the report."""
    written = write_report(
        args.run, args.output, title=args.title, formats=args.format, max_completions=args.max_completions
    )
    for path in written:
        print(path)
    if "html" in args.format:
        print(how_to_open(args.output), file=sys.stderr)
    return 0


def how_to_open(path: Path) -> str:
    """A line that says how to open the report."""
    return f"Open it in any browser: file://{path.resolve()}"


def write_report(
    paths: Iterable[Path | str],
    output: Path | str,
    *,
    title: str | None = None,
    formats: Sequence[str] = ("html",),
    max_completions: int = 5000,
) -> list[Path]:
    """Write a report of training runs and results.

    Args:
        paths (`Iterable[Path]`):
            Output folders of training runs, and folders or files that the commands of this package wrote.
        output (`Path`):
            The HTML file. Figures go to the folder of the same name without `.html`.
        title (`str`, *optional*):
            Title of the page; by default the names of what was passed.
        formats (`Sequence[str]`, *optional*, defaults to `("html",)`):
            Some of `"html"`, `"png"` and `"svg"`.
        max_completions (`int`, *optional*, defaults to `5000`):
            Completions to show; of more, evenly spaced ones are taken.

    Returns:
        `list[Path]`: The files that were written.

    Raises:
        `ValueError`: if a path holds nothing a report can show, or an option is out of range.
        `ImportError`: if figures are asked for and matplotlib is not installed.
    """
    inputs, output = [Path(path) for path in paths], Path(output)
    check_options(inputs, formats, max_completions)
    data = ReportData(max_completions)
    for path in inputs:
        data.add(path)
    payload = data.payload()
    written = []
    if "html" in formats:
        page = render_page(payload, title or ", ".join(dict.fromkeys(path.resolve().name for path in inputs)))
        write_whole(output, page)
        written.append(output)
    images = [name for name in formats if name != "html"]
    if images:
        from .report_figures import write_figures

        written += write_figures(payload, output.with_suffix(""), images)
    return written


def check_options(paths: Sequence[Path], formats: Sequence[str], max_completions: int) -> None:
    """Refuse options that leave nothing to write.

    Raises:
        `ValueError`: if they do.
    """
    missing = [str(path) for path in paths if not path.exists()]
    if missing or not paths:
        raise ValueError(
            f"{', '.join(missing) or 'Nothing'} was passed to report on, which is not there. Pass folders or files "
            "that exist."
        )
    if max_completions < 1 or not formats or set(formats) - set(FORMATS):
        raise ValueError(
            f"formats={list(formats)} and max_completions={max_completions} leave nothing to write. Use formats out "
            f"of {', '.join(FORMATS)}, and at least one completion."
        )


def write_whole(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
