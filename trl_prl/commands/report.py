"""`trl-prl report`: one HTML file that shows training runs and results of the other commands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from trl_prl.storage.files import write_text


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
    parser.add_argument("--max_completions", type=int, default=5000, help="completions to show, evenly spaced of more")
    parser.add_argument(
        "--max_megabytes",
        type=float,
        default=32.0,
        help="room for completions and searches on the page; beyond, fewer",
    )


def run(args: argparse.Namespace) -> int:
    """Read the results and write the report."""
    written = write_report(
        args.run,
        args.output,
        title=args.title,
        formats=args.format,
        max_completions=args.max_completions,
        max_megabytes=args.max_megabytes,
        say=lambda text: print(text, file=sys.stderr),
    )
    for path in written:
        print(path)
    if "html" in args.format:
        print(how_to_open(args.output), file=sys.stderr)
    return 0


def how_to_open(path: Path) -> str:
    """A line that says how to open the report."""
    return f"Open the report in any browser: file://{path.resolve()}"


def write_report(
    paths: Iterable[Path | str],
    output: Path | str,
    *,
    title: str | None = None,
    formats: Sequence[str] = ("html",),
    max_completions: int = 5000,
    max_megabytes: float = 32.0,
    say: Callable[[str], None] | None = None,
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
        max_megabytes (`float`, *optional*, defaults to `32.0`):
            Room for completions and searches on the page; of more, evenly spaced ones are taken.
        say (`Callable[[str], None]`, *optional*):
            Gets what the page says too: what was left out, and what could not be read.

    Returns:
        `list[Path]`: The files that were written.

    Raises:
        `ValueError`: if the paths hold nothing a report can show, or an option is out of range.
        `ImportError`: if figures are asked for and matplotlib is not installed.
    """
    from trl_prl.report.data import ReportData
    from trl_prl.report.page import render_page

    inputs, output = [Path(path) for path in paths], Path(output)
    check_options(inputs, formats, max_completions, max_megabytes)
    data = ReportData(max_completions, int(max_megabytes * 1e6))
    for path in inputs:
        data.add(path)
    payload = data.payload()
    if say is not None:
        for text in payload["warnings"]:
            say(text)
    written = []
    if "html" in formats:
        page = render_page(payload, title or ", ".join(dict.fromkeys(path.resolve().name for path in inputs)))
        write_text(output, page)
        written.append(output)
    images = [name for name in formats if name != "html"]
    if images:
        from trl_prl.report.figures import write_figures

        written += write_figures(payload, output.with_suffix(""), images)
    return written


def check_options(paths: Sequence[Path], formats: Sequence[str], max_completions: int, max_megabytes: float) -> None:
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
    if max_completions < 1 or not max_megabytes > 0 or not formats or set(formats) - set(FORMATS):
        raise ValueError(
            f"formats={list(formats)}, max_completions={max_completions} and max_megabytes={max_megabytes} leave "
            f"nothing to write. Use formats out of {', '.join(FORMATS)}, at least one completion, and some megabytes."
        )
