"""`trl-prl score`: values of the steps of solutions in a file, by a trained verifier.

trl-prl score --verifier my-org/my-pav --file solutions.jsonl --output scored.jsonl
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from trl_prl.jobs.config import EngineOptions, PromptOptions, VerifierOptions, option, require
from trl_prl.jobs.progress import Meter, OnCounts, ProgressBar
from trl_prl.jobs.ray_engine import make_engine
from trl_prl.jobs.runner import in_order
from trl_prl.prompts.chat import content_text
from trl_prl.steps.splitters import SPLITTER_HELP
from trl_prl.storage.row_files import ROWS_PER_CHUNK, Rows, check_suffix, write_rows
from trl_prl.storage.row_sources import open_rows
from trl_prl.storage.row_values import check_text, missing_as_none, read_steps, read_text, row_place


@dataclass(frozen=True)
class Options(VerifierOptions, EngineOptions, PromptOptions):
    """What to score, with which verifier, and where to write it.

    Every field is an option of `trl-prl score` and a key of its YAML file.

    Raises:
        `ValueError`: When a required field is missing.
    """

    file: str = option("", "solutions: a file, a folder or a hub id")
    output: str = option("", "where to write: .jsonl, .jsonl.gz or .parquet")
    overwrite: bool = option(False, "replace the output if it exists")
    column: str | None = option(
        None,
        "column of the solutions: texts, or lists of steps; by default completions of rows with labels, which are "
        "steps, else completion",
    )
    splitter: str | None = option(
        None, f"splitter for texts, by default the one stored with the verifier: {SPLITTER_HELP}"
    )
    max_rows: int | None = option(None, "score only the first rows")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_engine()
        require(self, "verifier", "file", "output")

    def rows(self) -> Rows:
        """The rows to score."""
        return open_rows(self.file).head(self.max_rows)


class ScoreWorker:
    """Scores rows of the file.

    Args:
        options ([`Options`]):
            Verifier, file and columns.
    """

    def __init__(self, options: Options) -> None:
        from trl_prl.prms.load import load_verifier
        from trl_prl.prms.scoring import splitter_for
        from trl_prl.rewards.checks import warn_of_other_splitter
        from trl_prl.steps.split import get_splitter
        from trl_prl.verifier.settings import collected_splitter

        self.options = options
        self.verifier = load_verifier(options)
        self.split = splitter_for(self.verifier, options.splitter)
        self.prompts = options.prompts()
        if options.splitter is not None:
            step_length = getattr(getattr(self.verifier, "settings", None), "step_length", 256)
            warn_of_other_splitter(self.verifier, get_splitter(options.splitter, step_length=step_length))
        elif options.column in (None, "completions") and (cut_by := collected_splitter(options.file)) is not None:
            warn_of_other_splitter(self.verifier, cut_by)
        self._rows, self._next, self._compared = iter(options.rows()), 0, False

    def compute(self, rows: range, on_counts: OnCounts) -> dict[str, Any]:
        """Score a unit of rows; the file is read once where units come in its order."""
        from trl_prl.prms.scoring import score_prefixes
        from trl_prl.rewards.checks import warn_of_other_prompts
        from trl_prl.verifier.rows import is_finished

        if rows.start < self._next:
            self._rows, self._next = iter(self.options.rows()), 0
        chunk = list(islice(self._rows, rows.start - self._next, rows.stop - self._next))
        self._next = rows.stop
        pairs = [
            prompt_and_solution(row, row_place(index, self.options.file), self.options)
            for index, row in zip(rows, chunk, strict=True)
        ]
        solutions = [self.split(solution) if isinstance(solution, str) else solution for _, solution in pairs]
        num_before = self._num_truncated
        prompts = [self.prompts.apply(prompt) for prompt, _ in pairs]
        if not self._compared:
            warn_of_other_prompts(self.verifier, prompts[0], self.prompts)
            self._compared = True
        initial, values = score_prefixes(self.verifier, prompts, solutions, [is_finished(row) for row in chunk])
        scored = [
            {**row, **({"steps": steps} if isinstance(solution, str) else {}), **_scores(start, row_values)}
            for row, (_, solution), steps, start, row_values in zip(
                chunk, pairs, solutions, initial, values, strict=True
            )
        ]
        return {
            "rows": scored,
            "num_steps": sum(map(len, solutions)),
            "num_left_out": self._num_truncated - num_before,
            "num_unscored": sum(value is None for row in scored for value in row["step_values"]),
            "window": getattr(getattr(self.verifier, "settings", None), "max_length", None),
        }

    @property
    def _num_truncated(self) -> int:
        """Steps beyond the context so far; only a model in this process knows."""
        return getattr(self.verifier, "num_truncated_steps", 0)

    def close(self) -> None:
        """Nothing is kept."""


def prompt_and_solution(row: Mapping[str, Any], where: str, options: Options) -> tuple[Any, str | list[str]]:
    """Prompt of a row, and its solution as a text or as steps.

    Args:
        row (`Mapping`):
            The row.
        where (`str`):
            Where it stands, for messages.
        options ([`Options`]):
            Names of the columns.

    Returns:
        `tuple`: The prompt, and the solution.

    Raises:
        `ValueError`: If the row lacks a column, or it holds something else.
    """
    name = options.column or ("completions" if row.get("completions") is not None else "completion")
    missing = next((wanted for wanted in (options.prompt_column, name) if row.get(wanted) is None), None)
    if missing is not None:
        raise ValueError(
            f"{where} has no {missing!r}; its columns are {sorted(row)}. Prompt and solution are both needed. Name "
            "them with --prompt_column and --column, or drop the row."
        )
    prompt, solution = read_text(row[options.prompt_column], f"{where} has a prompt that"), row[name]
    for text in [prompt] if isinstance(prompt, str) else [str(message.get("content")) for message in prompt]:
        check_text(text, f"{where} has a prompt that")
    if options.column is None and name == "completions" and row.get("labels") is None:
        raise ValueError(
            f"{where} has `completions` without labels. They may be the steps of one solution, as in stepwise rows, "
            "or several whole solutions. Give --column completions for steps, or a row with a `completion` for each."
        )
    if isinstance(solution, list) and solution and isinstance(solution[0], Mapping):
        # A conversational completion: one message of the assistant.
        messages = read_text(solution, f"{where} has a {name!r} that")
        solution = "".join(content_text(message.get("content")) for message in messages)
    if isinstance(solution, str):
        check_text(solution, f"{where} has a {name!r} that")
        return prompt, solution
    return prompt, read_steps(solution, f"{where} has a {name!r} that")


def run(options: Options) -> int:
    """Score the file. The output appears when it is whole.

    Args:
        options ([`Options`]):
            What to score.

    Returns:
        `int`: 0.

    Raises:
        `ValueError`: If a file has another format than its name says, a row cannot be scored or written, or another
            process writes the same output, be it another one of a launcher, or it exists.
        `OSError`: If a file is missing.
    """
    if (number := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise ValueError(
            f"A launcher has started {number} processes of `trl-prl score`, which writes one output: each would do it "
            "all. Start it without a launcher, and with `--engine ray` to share it among workers."
        )
    output = Path(options.output)
    _check_output(output, options.overwrite, Path(options.file))
    rows = options.rows()
    num_rows = sum(1 for _ in rows) if rows.num_rows is None else rows.num_rows
    if not num_rows:
        raise ValueError(f"'{options.file}' has no rows, so there is nothing to score. Give a file with solutions.")
    starts = range(0, num_rows, ROWS_PER_CHUNK)
    units = {k: range(start, min(num_rows, start + ROWS_PER_CHUNK)) for k, start in enumerate(starts)}
    num_steps = num_left_out = num_unscored = window = 0
    # Columns that the output cannot hold are found before the verifier is loaded.
    with (
        ProgressBar() as bar,
        write_rows(output, lambda: rows.schema(_added_columns()), overwrite=options.overwrite, alone=True) as write,
    ):
        meter = Meter(num_rows, bar.update)
        with closing(make_engine(options)(partial(ScoreWorker, options), units, meter.count)) as results:
            for result in in_order(results, units):
                write(result["rows"])
                num_steps += result["num_steps"]
                num_left_out, window = num_left_out + result["num_left_out"], result["window"]
                num_unscored += result["num_unscored"] - result["num_left_out"]
                meter.finish(len(result["rows"]))
    print(f"{num_rows} solutions, {num_steps} steps -> {output}", file=sys.stderr)
    if num_left_out:
        print(
            f"{num_left_out} steps lie beyond {window} tokens and have no value (null in the file).", file=sys.stderr
        )
    if num_unscored:
        print(
            f"{num_unscored} steps have no value, as the process reward gave None or NaN (null in the file). One "
            "whose weights are NaN does it always.",
            file=sys.stderr,
        )
    return 0


def _added_columns() -> dict[str, Any]:
    import pyarrow as pa

    numbers = pa.list_(pa.float64())
    return {
        "scored_initial_value": pa.float64(),
        "step_values": numbers,
        "step_advantages": numbers,
        "steps": pa.list_(pa.string()),
    }


def _scores(initial: float, values: list[float]) -> dict[str, Any]:
    # A column `initial_value` is a label, of rollouts for instance, and a prediction must not take its place.
    progress = [value - before for value, before in zip(values, [initial, *values[:-1]], strict=False)]
    return {
        "scored_initial_value": missing_as_none(initial),
        "step_values": [missing_as_none(value) for value in values],
        "step_advantages": [missing_as_none(value) for value in progress],
    }


def _check_output(path: Path, overwrite: bool, source: Path) -> None:
    check_suffix(path)
    if path.exists() and (not overwrite or (source.exists() and path.samefile(source))):
        raise ValueError(
            f"'{path}' exists, and would be lost. Give another --output, or --overwrite where it is not the input."
        )
