"""`trl-prl score`: values of the steps of solutions in a file, by a trained verifier.

trl-prl score --verifier my-org/my-pav --file solutions.jsonl --output scored.jsonl
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trl_prl.row_files import ROWS_PER_CHUNK, check_suffix, read_rows, write_rows
from trl_prl.verifier import ProcessAdvantageVerifier
from trl_prl.verifier_loading import text_splitter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument("--verifier", required=True, help="folder or hub id of the verifier")
    parser.add_argument("--file", required=True, type=Path, help="solutions: .jsonl, .jsonl.gz or .parquet")
    parser.add_argument("--output", required=True, type=Path, help="where to write: .jsonl, .jsonl.gz or .parquet")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    parser.add_argument("--prompt-column", default="prompt", help="column of the prompts (default: prompt)")
    parser.add_argument(
        "--column", help="column of the solutions: texts, or lists of steps (default: completions, else completion)"
    )
    parser.add_argument("--splitter", help="splitter for texts (default: the one stored with the verifier)")
    parser.add_argument("--batch-tokens", type=int, default=16384, help="most tokens of a batch (default: 16384)")
    parser.add_argument("--device", help="device of the model (default: the accelerator if there is one)")
    parser.add_argument("--dtype", default="auto", help="precision, such as bfloat16 (default: that of the weights)")
    parser.add_argument("--limit", type=int, help="score only the first rows")


def run(args: argparse.Namespace) -> int:
    """Run the subcommand.

    Args:
        args (`argparse.Namespace`):
            Parsed arguments.

    Returns:
        `int`: 0.

    Raises:
        `ValueError`: If a file has another format than its name says, or a row cannot be scored.
        `OSError`: If a file is missing, or the output exists.
    """
    _check_output(args.output, args.overwrite, args.file)
    rows, total = read_rows(args.file)
    rows = islice(rows, args.limit)
    total = total if args.limit is None or total is None else min(total, args.limit)
    verifier = ProcessAdvantageVerifier.from_pretrained(
        args.verifier, device=args.device or _default_device(), dtype=args.dtype, max_batch_tokens=args.batch_tokens
    )
    split = text_splitter(verifier, args.splitter)
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("scoring"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    num_rows = 0
    # Written under another name until it is complete, so that an interrupted run leaves no file that looks whole.
    unfinished = args.output.with_name(f".unfinished-{args.output.name}")
    with bar, write_rows(unfinished) as write:
        task = bar.add_task("rows", total=total)
        while chunk := list(islice(rows, ROWS_PER_CHUNK)):
            write(score_rows(chunk, num_rows, verifier, args.prompt_column, args.column, split))
            num_rows += len(chunk)
            bar.update(task, completed=num_rows)
    if not num_rows:
        unfinished.unlink()
        raise ValueError(f"'{args.file}' has no rows, so there is nothing to score. Give a file with solutions.")
    unfinished.replace(args.output)
    left_out = verifier.num_truncated_steps
    console.print(f"{num_rows} solutions, {verifier.num_steps} steps -> {args.output}")
    if left_out:
        console.print(
            f"{left_out} steps lie beyond {verifier.settings.max_length} tokens and have no value (null in the file)."
        )
    return 0


def score_rows(
    rows: list[dict[str, Any]],
    first: int,
    verifier: ProcessAdvantageVerifier,
    prompt_column: str = "prompt",
    column: str | None = None,
    split: Callable[[str], list[str]] | None = None,
) -> list[dict[str, Any]]:
    """Score some rows.

    Args:
        rows (`list[dict]`):
            Rows with a prompt and a solution.
        first (`int`):
            Index of the first of them in the file, for messages.
        verifier ([`ProcessAdvantageVerifier`]):
            The verifier.
        prompt_column (`str`, *optional*, defaults to `"prompt"`):
            Column of the prompts.
        column (`str`, *optional*):
            Column of the solutions; by default `completions`, else `completion`.
        split (`Callable`, *optional*):
            Splits a text into steps.

    Returns:
        `list[dict]`: The rows with `initial_value`, `step_values` and `step_advantages` (`None` where a step is not
        scored), and `steps` where a text was split.

    Raises:
        `ValueError`: If a row lacks a column, or it holds something else.
    """
    prompts, solutions, split_here = [], [], []
    for index, row in enumerate(rows, first):
        name = column or ("completions" if row.get("completions") is not None else "completion")
        prompt, solution = row.get(prompt_column), row.get(name)
        if prompt is None or solution is None:
            missing = prompt_column if prompt is None else name
            raise ValueError(
                f"Row {index} has no {missing!r}; its columns are {sorted(row)}. Prompt and solution are both needed. "
                "Name them with --prompt-column and --column, or drop the row."
            )
        if isinstance(solution, list) and solution and isinstance(solution[0], dict):
            # A conversational completion: one message of the assistant.
            solution = "".join(str(message.get("content") or "") for message in solution)
        split_here.append(isinstance(solution, str))
        steps = (split(solution) if split else [solution]) if isinstance(solution, str) else solution
        if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
            raise ValueError(
                f"Row {index} has {solution!r:.80} in {name!r}, which is neither a text nor a list of steps. Give one "
                "of the two."
            )
        prompts.append(prompt)
        solutions.append(steps)
    initial, values = verifier.score_solutions(prompts, solutions)
    scored = []
    for row, steps, was_text, start, row_values in zip(rows, solutions, split_here, initial, values, strict=True):
        before = [start, *row_values[:-1]]
        progress = [value - previous for value, previous in zip(row_values, before, strict=False)]
        scores = {
            "initial_value": _or_none(start),
            "step_values": [_or_none(value) for value in row_values],
            "step_advantages": [_or_none(value) for value in progress],
        }
        scored.append({**row, **({"steps": steps} if was_text else {}), **scores})
    return scored


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _check_output(path: Path, overwrite: bool, source: Path) -> None:
    check_suffix(path)
    if path.exists() and (not overwrite or path.samefile(source)):
        raise ValueError(
            f"'{path}' exists, and would be lost. Give another --output, or --overwrite where it is not the input."
        )


def _default_device() -> str:
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if accelerator is None else accelerator.type
