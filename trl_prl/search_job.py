"""A search job: units of problems, shared between processes, resumed where it stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_prl.collection import fingerprint, prompt_token_ids
from trl_prl.rollouts import Problem
from trl_prl.search_config import SearchConfig
from trl_prl.search_output import write_results
from trl_prl.search_runs import Searcher, load_answer_function
from trl_prl.shards import ShardWriter, find_units, open_manifest, read_units
from trl_prl.steps import get_splitter
from trl_prl.types import Generator, OutcomeReward


@dataclass(frozen=True)
class SearchProgress:
    """Where a job stands.

    Attributes:
        num_done (`int`):
            Finished problems of this process's share.
        num_total (`int`):
            All problems of its share.
        num_correct (`int`):
            Problems among those done by this run whose answer at the largest n is right.
        num_checked (`int`):
            Problems among them whose answer could be checked; one without an answer counts.
        num_tokens (`int`):
            Tokens this run has sampled.
    """

    num_done: int
    num_total: int
    num_correct: int = 0
    num_checked: int = 0
    num_tokens: int = 0


def run_search(
    config: SearchConfig,
    dataset: Any,
    tokenizer: Any,
    make_generator: Callable[[], Generator],
    reward: OutcomeReward,
    *,
    on_progress: Callable[[SearchProgress], None] | None = None,
) -> Path | None:
    """Search the answers of a data set of problems, or go on with it.

    Units and processes are those of [`collect`]: what is found for a problem depends on the settings alone, so that
    any number of interruptions and processes gives the same rows, but for the seconds in them.

    Args:
        config ([`SearchConfig`]):
            Settings.
        dataset ([`~datasets.Dataset`]):
            Prompts and the columns that the rewards read.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        make_generator (`Callable`):
            Makes the generator. Only called if there is work.
        reward ([`OutcomeReward`]):
            Outcome reward; it only says how good the search is.
        on_progress (`Callable`, *optional*):
            Called at the start and after every unit.

    Returns:
        `Path`, *optional*: The JSON file with the results; `None` if units of other processes are still to come.

    Raises:
        `ValueError`: When the folder holds a job with other settings or the data set does not fit.
    """
    if config.prompt_column not in dataset.column_names:
        raise ValueError(
            f"The dataset has the columns {', '.join(dataset.column_names)} and not {config.prompt_column!r}, so "
            "there are no prompts. Name their column with prompt_column."
        )
    if config.max_rows is not None:
        dataset = dataset.select(range(min(config.max_rows, len(dataset))))
    # What cannot be made must not leave a folder that no corrected job can use.
    get_splitter(config.splitter, step_length=config.step_length)
    load_answer_function(config.answer)
    folder = Path(config.output_dir)
    settings = {**config.settings(), "num_problems": len(dataset), "fingerprint": fingerprint(dataset)}
    open_manifest(folder, settings, config.defaults())
    size = config.problems_per_unit
    num_units = -(-len(dataset) // size)
    index, number = config.process()
    share, done = range(index, num_units, number), find_units(folder)
    pending = [unit for unit in share if unit not in done]
    sizes = {unit: min(size, len(dataset) - unit * size) for unit in share}
    report = on_progress or (lambda progress: None)
    num_done, num_total = sum(sizes.values()) - sum(sizes[unit] for unit in pending), sum(sizes.values())
    report(SearchProgress(num_done, num_total))
    if pending:
        searcher = Searcher(config, tokenizer, make_generator(), reward)
        with ShardWriter(folder, index) as writer:
            counts = [0, 0, 0]
            for unit in pending:
                rows = searcher.rows(
                    [_problem(dataset, unit * size + k, config, tokenizer) for k in range(sizes[unit])]
                )
                writer.write(unit, {"rows": rows})
                num_done += sizes[unit]
                for row in rows:
                    largest = row["runs"][-1]
                    counts[0] += largest["correct"] is True
                    counts[1] += largest["correct"] is not None or largest["chosen"] is None
                    counts[2] += row["num_drawn_tokens"]
                report(SearchProgress(num_done, num_total, *counts))
    places = find_units(folder)
    if len(places) < num_units:
        return None
    return write_results(config, settings, (unit["rows"] for unit in read_units(places, range(num_units))))


def _problem(dataset: Any, row: int, config: SearchConfig, tokenizer: Any) -> Problem:
    columns = dict(dataset[row])
    prompt = columns.pop(config.prompt_column)
    return Problem(row, prompt, prompt_token_ids(tokenizer, prompt), columns)
