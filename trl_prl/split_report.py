"""`trl-prl split-report`: what a step splitter does to a file of completions, before a training relies on it.

trl-prl split-report --tokenizer Qwen/Qwen3-0.6B --file completions.jsonl --splitter blank_line
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trl_prl.markdown_splitter import MarkdownSplitter
from trl_prl.splitters import DelimiterSplitter, TextSplitter, delimiter_pattern
from trl_prl.steps import TokenPieces, get_splitter
from trl_prl.types import StepSplitter


@dataclass
class DelimiterReport:
    """What became of every occurrence of the splitter's delimiter.

    An occurrence is a run of the delimiter, `"\\n\\n\\n"` is one. `num_ended_step + num_protected + num_merged` is
    `num_occurrences`.

    Attributes:
        delimiter (`str`):
            Delimiter of the splitter.
        num_occurrences (`int`):
            Occurrences in the completions.
        num_ended_step (`int`):
            Occurrences that end a step.
        num_protected (`int`):
            Occurrences inside a block that the splitter does not cut (code, tables, mathematics).
        num_merged (`int`):
            Occurrences that end no step because nothing but whitespace or tags is before or after them.
        naive_token (`str`):
            Token that a look-up by `encode(delimiter)[0]` would take for the delimiter.
        num_missed_by_id (`int`):
            Occurrences without that token, which such a look-up would miss.
        tokens (`dict[str, int]`):
            The most frequent tokens that complete an occurrence.
    """

    delimiter: str
    num_occurrences: int
    num_ended_step: int
    num_protected: int
    num_merged: int
    naive_token: str
    num_missed_by_id: int
    tokens: dict[str, int]


@dataclass
class SplitReport:
    """Steps of a set of completions.

    Attributes:
        splitter (`str`):
            The splitter.
        num_completions (`int`), num_skipped (`int`), num_tokens (`int`), num_steps (`int`):
            Counts; skipped rows had no completion or an empty one.
        num_single_step (`int`):
            Completions of one step: a process reward says no more about them than an outcome reward.
        steps_per_completion (`dict[str, float]`), tokens_per_step (`dict[str, float]`):
            `mean`, `median`, `p95`, `max`.
        histogram (`list[tuple[int, int, int]]`):
            Least tokens, most tokens, number of steps of that length.
        longest_step (`dict`):
            `row` and `step` (from 0), `tokens` and the start of its `text`.
        delimiter (`DelimiterReport`, *optional*):
            `None` for splitters that have no delimiter.
    """

    splitter: str
    num_completions: int
    num_skipped: int
    num_tokens: int
    num_steps: int
    num_single_step: int
    steps_per_completion: dict[str, float]
    tokens_per_step: dict[str, float]
    histogram: list[tuple[int, int, int]]
    longest_step: dict[str, Any]
    delimiter: DelimiterReport | None


def split_report(
    completions: Iterable[str | Sequence[int] | None], splitter: StepSplitter, tokenizer: Any
) -> SplitReport:
    """Split completions and count.

    Args:
        completions (`Iterable[str | Sequence[int] | None]`):
            Texts, which are tokenised without special tokens, or sampled ids, which are taken as they are. `None` and
            empty ones are skipped and counted.
        splitter (`StepSplitter`):
            Splitter to report on.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the policy.

    Returns:
        [`SplitReport`]: The counts.

    Raises:
        `ValueError`: When there is no completion to report on.
    """
    token_pieces = TokenPieces(tokenizer)
    delimiters = _DelimiterCounter(splitter, tokenizer)
    steps_per_completion: list[int] = []
    tokens_per_step: list[int] = []
    longest: dict[str, Any] = {"tokens": 0}
    num_skipped = 0
    for row, completion in enumerate(completions):
        if isinstance(completion, str):
            completion = tokenizer(completion, add_special_tokens=False, verbose=False)["input_ids"]
        if completion is None or len(completion) == 0:
            num_skipped += 1
            continue
        pieces = token_pieces.pieces(completion)
        ends = splitter.step_ends(pieces)
        lengths = np.diff(ends, prepend=0)
        steps_per_completion.append(len(ends))
        tokens_per_step.extend(lengths.tolist())
        step = int(lengths.argmax())
        if lengths[step] > longest["tokens"]:
            text = b"".join(pieces[ends[step] - lengths[step] : ends[step]]).decode("utf-8", "replace")
            longest = {"row": row, "step": step, "tokens": int(lengths[step]), "text": text[:200]}
        delimiters.add(completion, pieces, ends)
    if not steps_per_completion:
        raise ValueError(
            f"There are {num_skipped} rows, but none has a completion with text, so there is nothing to split. Give "
            "another file, or another column."
        )
    return SplitReport(
        splitter=repr(splitter),
        num_completions=len(steps_per_completion),
        num_skipped=num_skipped,
        num_tokens=sum(tokens_per_step),
        num_steps=len(tokens_per_step),
        num_single_step=steps_per_completion.count(1),
        steps_per_completion=_summary(steps_per_completion),
        tokens_per_step=_summary(tokens_per_step),
        histogram=_histogram(tokens_per_step),
        longest_step=longest,
        delimiter=delimiters.report(),
    )


class _DelimiterCounter:
    """Follows every occurrence of the delimiter from the text to the step ends."""

    def __init__(self, splitter: StepSplitter, tokenizer: Any) -> None:
        self._delimiter: str | None = None
        if isinstance(splitter, DelimiterSplitter):
            self._delimiter = splitter.delimiter
        elif isinstance(splitter, MarkdownSplitter):
            self._delimiter = "\n" if splitter.newline else "\n\n"
        if self._delimiter is None or not isinstance(splitter, TextSplitter):
            return
        self._splitter = splitter
        # With special tokens, because that is what the look-up by id does.
        self._naive_id = next(iter(tokenizer.encode(self._delimiter)), -1)
        self._naive_token = str(tokenizer.convert_ids_to_tokens([self._naive_id])[0]) if self._naive_id >= 0 else ""
        self._counts: Counter[str] = Counter()
        self._tokens: Counter[bytes] = Counter()

    def add(self, ids: Sequence[int], pieces: list[bytes], ends: list[int]) -> None:
        if self._delimiter is None:
            return
        text = b"".join(pieces)
        byte_ends = np.cumsum([len(piece) for piece in pieces])
        boundaries = set(self._splitter.boundaries(text))
        ended = set(ends)
        for match in delimiter_pattern(self._delimiter).finditer(text):
            first = int(np.searchsorted(byte_ends, match.start(), side="right"))
            last = int(np.searchsorted(byte_ends, match.end(), side="left"))
            self._counts["occurrences"] += 1
            self._tokens[pieces[last]] += 1
            if match.end() not in boundaries:
                self._counts["protected"] += 1
            elif last + 1 in ended or (last + 1 < len(pieces) and not text[byte_ends[last] :]):
                self._counts["ended_step"] += 1
            else:
                self._counts["merged"] += 1
            if self._naive_id not in ids[first : last + 1]:
                self._counts["missed_by_id"] += 1

    def report(self) -> DelimiterReport | None:
        if self._delimiter is None:
            return None
        return DelimiterReport(
            delimiter=self._delimiter,
            num_occurrences=self._counts["occurrences"],
            num_ended_step=self._counts["ended_step"],
            num_protected=self._counts["protected"],
            num_merged=self._counts["merged"],
            naive_token=self._naive_token,
            num_missed_by_id=self._counts["missed_by_id"],
            tokens={piece.decode("utf-8", "replace"): count for piece, count in self._tokens.most_common(8)},
        )


def _summary(values: list[int]) -> dict[str, float]:
    array = np.array(values)
    return {
        "mean": float(array.mean()),
        "median": float(np.median(array)),
        "p95": float(np.percentile(array, 95)),
        "max": float(array.max()),
    }


def _histogram(lengths: list[int]) -> list[tuple[int, int, int]]:
    """Count lengths in classes that double: 1, 2-3, 4-7, ..."""
    classes = Counter(length.bit_length() for length in lengths)
    return [(2 ** (bits - 1), 2**bits - 1, classes[bits]) for bits in range(min(classes), max(classes) + 1)]


def read_completions(path: str | Path, column: str) -> list[Any]:
    """Read one column of a file.

    Args:
        path (`str` or `Path`):
            `.jsonl`, `.jsonl.gz` or `.parquet` with one completion per row, or `.txt`, which is one completion.
        column (`str`):
            Column with the completion: text, messages (their contents are joined), or a list of token ids. Not used
            for text files.

    Returns:
        `list`: One text, list of ids or `None` per row.

    Raises:
        `FileNotFoundError`: When there is no such file.
        `ValueError`: When the file's kind is unknown, a line is not a JSON object, or a row has no such column.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"The file is {str(path)!r}, but there is no such file, so there are no completions to split. Give the "
            "path of a .jsonl, .jsonl.gz, .parquet or .txt file."
        )
    if path.name.endswith(".txt"):
        return [path.read_text(encoding="utf-8")]
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        rows = _json_rows(path)
    elif path.name.endswith(".parquet"):
        import pyarrow.parquet

        rows = pyarrow.parquet.read_table(path).to_pylist()
    else:
        raise ValueError(
            f"The file is {path.name!r}, but its ending does not say how to read it. Give a .jsonl, .jsonl.gz, "
            ".parquet or .txt file."
        )
    for number, row in enumerate(rows):
        if column not in row:
            raise ValueError(
                f"The column is {column!r}, but row {number} of {path.name!r} has no such column. Choose one of its "
                f"columns with --column: {', '.join(map(repr, row)) or 'it has none'}."
            )
    return [_completion(row[column], column, path.name) for row in rows]


def _json_rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    opener = gzip.open if path.name.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                row = error
            if not isinstance(row, dict):
                raise ValueError(
                    f"Line {number} of {path.name!r} is {line.strip()[:60]!r}, but it has to be a JSON object for a "
                    "column to be read from it. Give a file with one JSON object per line."
                )
            rows.append(row)
    return rows


def _completion(value: Any, column: str, name: str) -> Any:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, int) for item in value):
        return value
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return "".join(str(message.get("content") or "") for message in value)
    raise ValueError(
        f"Column {column!r} of {name!r} holds a {type(value).__name__}, but a completion is text, a list of messages "
        "or a list of token ids. Choose another column with --column."
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to a parser.

    Args:
        parser (`argparse.ArgumentParser`):
            Parser of the command.
    """
    parser.add_argument("--tokenizer", required=True, help="folder or hub name of the policy's tokenizer")
    parser.add_argument("--file", required=True, help=".jsonl, .jsonl.gz, .parquet or .txt file with completions")
    parser.add_argument("--column", default="completion", help="column with text, messages or token ids")
    parser.add_argument(
        "--splitter",
        default="blank_line",
        help="fixed, newline, blank_line, sentence, markdown, markdown_newline, regex:PATTERN or delimiter:TEXT",
    )
    parser.add_argument("--step-length", type=int, default=256, help="tokens per step of the fixed splitter")
    parser.add_argument("--output", choices=["table", "json"], default="table", help="how to print the report")


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Args:
        args (`argparse.Namespace`):
            Parsed options of `add_arguments`.

    Returns:
        `int`: Exit code 0.

    Raises:
        `FileNotFoundError`, `ValueError`: When the file, the column or the splitter cannot be used.
    """
    from transformers import AutoTokenizer

    # What can be wrong without loading anything is checked first.
    splitter = get_splitter(args.splitter, step_length=args.step_length)
    completions = read_completions(args.file, args.column)
    report = split_report(completions, splitter, AutoTokenizer.from_pretrained(args.tokenizer))
    if args.output == "json":
        print(json.dumps(asdict(report), indent=2, ensure_ascii=False))
    else:
        render(report, Console())
    return 0
