"""A collection job: units of problems, shared between processes, resumed where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_prl.collect_config import CollectConfig
from trl_prl.collection_output import dataset_card, push, table_schema, write_table
from trl_prl.monte_carlo import best_of_k_row, estimate_step_values
from trl_prl.rollouts import Problem, Spending, prompt_token_ids
from trl_prl.shards import ShardWriter, find_units, open_manifest, read_units
from trl_prl.steps import get_splitter
from trl_prl.token_pieces import TokenPieces
from trl_prl.types import Generator, OutcomeReward


@dataclass(frozen=True)
class Progress:
    """Where a job stands.

    Attributes:
        num_done (`int`):
            Finished problems of this process's share.
        num_total (`int`):
            All problems of its share.
        spending ([`Spending`]):
            What this run has spent; earlier runs are not counted.
    """

    num_done: int
    num_total: int
    spending: Spending


def collect(
    config: CollectConfig,
    dataset: Any,
    tokenizer: Any,
    make_generators: Callable[[], tuple[Generator, Generator | None]],
    reward: OutcomeReward,
    *,
    on_progress: Callable[[Progress], None] | None = None,
) -> Path | None:
    """Collect step values of a data set of prompts, or go on with it.

    Problems are cut into units of `config.problems_per_unit`; unit `u` belongs to process `u` modulo their number.
    What a unit's rows are depends on the settings alone, so any number of interruptions and processes gives the same
    rows. Processes do not talk to each other; the one that finds all units finished writes the output.

    Args:
        config ([`CollectConfig`]):
            Settings.
        dataset ([`~datasets.Dataset`]):
            Prompts and the columns that the reward reads.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The prover's tokenizer.
        make_generators (`Callable`):
            Makes the prover, and the generator of the seeds or `None` for the prover. Only called if there is work.
        reward ([`OutcomeReward`]):
            Outcome reward.
        on_progress (`Callable`, *optional*):
            Called at the start and after every unit.

    Returns:
        `Path`, *optional*: The Parquet file; `None` if units of other processes are still to come.

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
    settings = {**config.settings(), "num_problems": len(dataset), "fingerprint": fingerprint(dataset)}
    schema = table_schema(dataset, config.prompt_column, {"prover": prover_name(config), **settings})
    folder = Path(config.output_dir)
    # A splitter that does not exist must not leave a folder that no corrected job can use.
    get_splitter(config.splitter, step_length=config.step_length)
    open_manifest(folder, settings, config.defaults())
    size = config.problems_per_unit
    num_units = -(-len(dataset) // size)
    _compute_units(config, dataset, tokenizer, make_generators, reward, folder, num_units, on_progress)

    places = find_units(folder)
    if len(places) < num_units:
        return None
    spending, num_rows = Spending(), 0
    for unit in read_units(places, range(num_units)):
        spending.add(unit["spending"])
        num_rows += len(unit["rows"])
    card = dataset_card(settings, prover_name(config), spending.as_dict(), num_rows)
    (folder / "README.md").write_text(card, encoding="utf-8")
    # Written last, so that whoever finds the data finds its card.
    transform = config.best_of_k
    write_table(
        folder,
        schema,
        (
            [best_of_k_row(row, transform) if transform > 1 else row for row in unit["rows"]]
            for unit in read_units(places, range(num_units))
        ),
    )
    if config.push_to_hub is not None:
        push(folder, config.push_to_hub)
    return folder / "data" / "train.parquet"


def _compute_units(
    config: CollectConfig,
    dataset: Any,
    tokenizer: Any,
    make_generators: Callable[[], tuple[Generator, Generator | None]],
    reward: OutcomeReward,
    folder: Path,
    num_units: int,
    on_progress: Callable[[Progress], None] | None,
) -> None:
    """Compute the units of this process that are not there yet."""
    size = config.problems_per_unit
    index, number = config.process()
    done, share = find_units(folder), range(index, num_units, number)
    pending = [unit for unit in share if unit not in done]
    sizes = {unit: min(size, len(dataset) - unit * size) for unit in share}
    spent, num_done = Spending(), sum(sizes.values()) - sum(sizes[unit] for unit in pending)
    report = on_progress or (lambda progress: None)
    report(Progress(num_done, sum(sizes.values()), spent))
    if not pending:
        return
    prover, seed_generator = make_generators()
    splitter, token_pieces = get_splitter(config.splitter, step_length=config.step_length), TokenPieces(tokenizer)
    with ShardWriter(folder, index) as writer:
        for unit in pending:
            spending = Spending()
            rows = estimate_step_values(
                [_problem(dataset, row, config, tokenizer) for row in range(unit * size, unit * size + sizes[unit])],
                prover,
                reward,
                splitter,
                token_pieces,
                config.monte_carlo(),
                config.sampling(),
                seed_generator=seed_generator,
                seed_sampling=config.seed_sampling(),
                threshold=config.reward_threshold,
                confidence=config.confidence,
                spending=spending,
            )
            writer.write(unit, {"spending": spending.as_dict(), "rows": rows})
            spent.add(spending.as_dict())
            num_done += sizes[unit]
            report(Progress(num_done, sum(sizes.values()), spent))


def _problem(dataset: Any, row: int, config: CollectConfig, tokenizer: Any) -> Problem:
    columns = dict(dataset[row])
    prompt = columns.pop(config.prompt_column)
    return Problem(row, prompt, prompt_token_ids(tokenizer, prompt), columns)


def prover_name(config: CollectConfig) -> str:
    """The prover in words."""
    name = f"{config.model} with {config.adapter}" if config.adapter else config.model
    if config.seed_temperature not in (None, config.temperature):
        name = f"{name} at temperature {config.temperature:g}"
    return f"Best-of-{config.best_of_k} of {name}" if config.best_of_k > 1 else name


def fingerprint(dataset: Any) -> str:
    """Checksum of everything in a data set, so that a job is not resumed with other prompts."""
    digest = hashlib.blake2b(digest_size=16)
    for row in dataset:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()
