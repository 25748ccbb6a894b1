"""`trl-prl split-report`: what a step splitter does to a file of completions, before a training relies on it.

trl-prl split-report --tokenizer Qwen/Qwen3-0.6B --file completions.jsonl --splitter blank_line
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trl_prl.jobs.config import option, refuse_unheeded, require
from trl_prl.jobs.options import load_tokenizer
from trl_prl.prompts.chat import content_text
from trl_prl.steps.splitters import SPLITTER_HELP
from trl_prl.storage.row_files import existing
from trl_prl.storage.row_sources import open_rows
from trl_prl.storage.row_values import row_place


if TYPE_CHECKING:
    from trl_prl.steps.report import DelimiterReport, SplitReport


@dataclass(frozen=True)
class Options:
    """What to split. Every field is an option of `trl-prl split-report` and a key of its YAML file."""

    tokenizer: str = option("", "folder or hub name of the policy's tokenizer")
    file: str = option("", "rows with completions: a file, a folder or a hub id; or a .txt file")
    trust_remote_code: bool = option(False, "run Python code that comes with the tokenizer")
    column: str = option("completion", "column with text, messages or token ids")
    splitter: str = option("newline", f"where steps end: {SPLITTER_HELP}")
    step_length: int = option(256, "tokens per step of the fixed splitter")
    output: Literal["table", "json"] = option("table", "how to print the report")

    def __post_init__(self) -> None:
        require(self, "tokenizer", "file")
        refuse_unheeded(self, ["step_length"], "splitter", unless=self.splitter == "fixed")


def read_completions(path: str | Path, column: str) -> list[Any]:
    """Read one column of completions.

    Args:
        path (`str` or `Path`):
            Rows with a completion each: a file, a folder or a Hub id; or `.txt`, which is one completion.
        column (`str`):
            Column with the completion: text, messages (their contents are joined), or a list of token ids. Not used
            for text files.

    Returns:
        `list`: One text, list of ids or `None` per row.

    Raises:
        `OSError`: When there is no such file.
        `ValueError`: When a file cannot be read, no row has such a column, or it holds something else.
    """
    if str(path).endswith(".txt"):
        return [existing(Path(path)).read_text(encoding="utf-8-sig")]
    rows = list(open_rows(path))
    columns = dict.fromkeys(name for row in rows for name in row)
    if rows and column not in columns:
        raise ValueError(
            f"The column is {column!r}, but no row of '{path}' has such a column. Choose one of its columns with "
            f"--column: {', '.join(map(repr, columns)) or 'it has none'}."
        )
    return [_completion(row.get(column), f"{row_place(i, path)} has a {column!r} that") for i, row in enumerate(rows)]


def _completion(value: Any, where: str) -> Any:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and all(type(item) is int for item in value):
        return value
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return "".join(content_text(message.get("content")) for message in value)
    raise ValueError(
        f"{where} is {value!r:.80}, but a completion is text, a list of messages or a list of token ids, and a list "
        "of texts is split already. Choose another column with --column."
    )


def render(report: SplitReport, console: Console) -> None:
    """Print a report as tables.

    Args:
        report ([`SplitReport`]):
            Report to print.
        console (`rich.console.Console`):
            Where to print it.
    """
    table = Table(title=Text(report.splitter), title_justify="left")
    for column in ("", "mean", "median", "p95", "max"):
        table.add_column(column, justify="left" if not column else "right")
    for name, summary in (
        ("steps per completion", report.steps_per_completion),
        ("tokens per step", report.tokens_per_step),
    ):
        table.add_row(name, *(f"{summary[key]:.1f}" for key in ("mean", "median", "p95", "max")))
    console.print(table)
    share = report.num_single_step / report.num_completions
    console.print(
        f"{report.num_completions} completions ({report.num_skipped} empty rows skipped), {report.num_tokens} tokens, "
        f"{report.num_steps} steps; {report.num_single_step} completions ({share:.1%}) have a single step"
    )
    widest = max(count for _, _, count in report.histogram)
    histogram = Table("tokens", "steps", "", box=None)
    histogram.columns[0].justify = histogram.columns[1].justify = "right"
    for low, high, count in report.histogram:
        bar = "█" * round(40 * count / widest) or ("▏" if count else "")
        histogram.add_row(f"{low}" if low == high else f"{low}-{high}", str(count), bar)
    console.print(histogram)
    longest = report.longest_step
    # `Text`, because completions may contain what looks like console markup.
    console.print(
        Text(f"longest step: {longest['tokens']} tokens (row {longest['row']}, step {longest['step']}): ")
        + Text(repr(longest["text"][:100]), style="dim")
    )
    if report.delimiter is not None:
        _render_delimiter(report.delimiter, console)


def _render_delimiter(report: DelimiterReport, console: Console) -> None:
    def share(count: int) -> str:
        return f"{count / report.num_occurrences:.1%}" if report.num_occurrences else "-"

    table = Table("", "occurrences", "share")
    table.columns[1].justify = table.columns[2].justify = "right"
    for name, count in (
        (f"delimiter {report.delimiter!r} found", report.num_occurrences),
        ("  ends a step", report.num_ended_step),
        ("  inside a protected block", report.num_protected),
        ("  nothing to separate", report.num_merged),
        (f"missed by looking for the id of {report.naive_token!r}", report.num_missed_by_id),
    ):
        table.add_row(Text(name), str(count), share(count))
    console.print(table)
    tokens = ", ".join(f"{token!r} {count}" for token, count in report.tokens.items())
    console.print(Text(f"completed by the tokens: {tokens}"))


def run(options: Options) -> int:
    """Split the file and print the report.

    Args:
        options ([`Options`]):
            What to split.

    Returns:
        `int`: Exit code 0.

    Raises:
        `FileNotFoundError`, `ValueError`: When the file, the column or the splitter cannot be used.
    """
    from trl_prl.steps.report import split_report
    from trl_prl.steps.split import get_splitter

    # What can be wrong without loading anything is checked first.
    splitter = get_splitter(options.splitter, step_length=options.step_length)
    completions = read_completions(options.file, options.column)
    tokenizer = load_tokenizer(options.tokenizer, trust_remote_code=options.trust_remote_code)
    report = split_report(completions, splitter, tokenizer)
    if options.output == "json":
        print(json.dumps(asdict(report), indent=2, ensure_ascii=False))
    else:
        render(report, Console())
    return 0
