"""A collection job: values of the steps of a data set's prompts, from units of problems."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from trl_prl.generation.tallies import Spending
from trl_prl.jobs.manifest import job_settings
from trl_prl.jobs.options import Tools, local_generator
from trl_prl.jobs.problems import fingerprint, make_problem, select_problems
from trl_prl.jobs.progress import OnProgress
from trl_prl.jobs.runner import Engine, Job, OnCounts, Worker, run_here
from trl_prl.rewards.outcomes import check_reward
from trl_prl.steps.split import get_splitter
from trl_prl.steps.token_pieces import TokenPieces
from trl_prl.storage.files import write_text
from trl_prl.types import Generator, StepSplitter
from trl_prl.verifier.settings import collected_splitter

from .config import CollectConfig
from .monte_carlo import estimate_step_values
from .output import DATA_FILE, best_of_k_row, dataset_card, push, table_schema, write_table


logger = logging.getLogger(__name__)


class CollectWorker:
    """Computes the rows of problems.

    Args:
        config ([`CollectConfig`]):
            Settings.
        dataset ([`~datasets.Dataset`]):
            Prompts and the columns that the reward reads.
        tools ([`Tools`], *optional*):
            Tokenizer, prover and outcome reward; made from the settings by default.
        seed_generator ([`Generator`], *optional*):
            Draws the seeds; made from the settings by default, where they name another model for it.
    """

    def __init__(
        self,
        config: CollectConfig,
        dataset: Any,
        tools: Tools | None = None,
        seed_generator: Generator | None = None,
    ) -> None:
        self.config, self.dataset, self.tools = config, dataset, tools or Tools(config)
        if seed_generator is None and config.seed_model is not None:
            seed_generator = local_generator(config, config.seed_model)
            _refuse_other_ids(seed_generator, self.tools.tokenizer, config.seed_model)
        self.seed_generator = seed_generator
        self.splitter = get_splitter(config.splitter, step_length=config.step_length)
        self.token_pieces = TokenPieces(self.tools.tokenizer)

    def compute(self, rows: range, on_counts: OnCounts) -> dict[str, Any]:
        """Compute a unit: its rows, and what they cost."""
        config, tools, spending = self.config, self.tools, Spending()
        tools.count_samples(on_counts, self.seed_generator)
        found = estimate_step_values(
            [make_problem(self.dataset, row, config, tools.tokenizer) for row in rows],
            tools.generator,
            tools.reward,
            self.splitter,
            self.token_pieces,
            config.monte_carlo(),
            config.sampling(),
            seed_generator=self.seed_generator,
            seed_sampling=config.seed_sampling(),
            threshold=config.reward_threshold,
            confidence=config.confidence,
            spending=spending,
        )
        on_counts({name: getattr(spending, name) for name in ("num_unfinished", "num_failed")})
        return {"spending": asdict(spending), "rows": found}

    def close(self) -> None:
        """Give back memory and processes."""
        self.tools.close()


def _refuse_other_ids(seed_generator: Any, tokenizer: Any, model: str) -> None:
    """Seeds come as ids, which the prover continues; only what is added for chats may differ."""
    theirs, ours = (
        dict(one.get_vocab().items() - one.get_added_vocab().items()) for one in (seed_generator.tokenizer, tokenizer)
    )
    shared = theirs.keys() & ours.keys()
    moved = [token for token in shared if theirs[token] != ours[token]]
    if moved or not shared:
        raise ValueError(
            f"Got the seed model {model!r}, whose tokenizer has another vocabulary than that of the job: of "
            f"{len(shared)} tokens that both have {len(moved)} have other ids, so the prover would read its seeds as "
            "other texts. Use a seed model of the same family, or the right `--tokenizer`."
        )


@dataclass(frozen=True)
class Collected:
    """A finished collection.

    Attributes:
        path (`Path`):
            The Parquet file.
        num_rows (`int`):
            Its rows.
        spending ([`Spending`]):
            What it cost, in all runs and processes.
    """

    path: Path
    num_rows: int
    spending: Spending


def collect(
    config: CollectConfig,
    dataset: Any,
    make_worker: Callable[[], Worker] | None = None,
    *,
    engine: Engine = run_here,
    on_progress: OnProgress | None = None,
) -> Collected | None:
    """Collect step values of a data set of prompts, or go on with it, as a [`Job`].

    Args:
        config ([`CollectConfig`]):
            Settings.
        dataset ([`~datasets.Dataset`]):
            Prompts and the columns that the reward reads.
        make_worker (`Callable`, *optional*):
            Makes what computes a unit; by default a [`CollectWorker`] of these settings.
        engine ([`Engine`], *optional*):
            Who computes; this process by default.
        on_progress (`Callable`, *optional*):
            As in [`Job.run`].

    Returns:
        [`Collected`], *optional*: What was collected; `None` if units of other processes are still to come.

    Raises:
        `ValueError`: When the folder holds a job with other settings or the data set does not fit.
    """
    dataset = select_problems(dataset, config)
    settings = job_settings(config, num_problems=len(dataset), fingerprint=fingerprint(dataset))
    metadata = {"prover": prover_name(config), "best_of_k": config.best_of_k, **settings}
    schema = table_schema(dataset, config.prompt_column, metadata)
    # What cannot be made is said before anything is begun.
    _warn_of_other_splitter(config.dataset, get_splitter(config.splitter, step_length=config.step_length))
    if make_worker is None:
        check_reward(config.reward, dataset.column_names)
        make_worker = partial(CollectWorker, config, dataset)
    folder = Path(config.output_dir)
    job = Job(folder, settings, len(dataset), config.problems_per_unit, config.process(), config.defaults())
    if not job.run(make_worker, engine=engine, on_progress=on_progress):
        return None
    spending, num_rows = Spending(), 0
    for unit in job.results():
        spending.add(unit["spending"])
        num_rows += len(unit["rows"])
    card = dataset_card(metadata, prover_name(config), asdict(spending), num_rows)
    write_text(folder / "README.md", card)
    # Written last, so that whoever finds the data finds its card.
    k = config.best_of_k
    write_table(
        folder,
        schema,
        ([best_of_k_row(row, k) if k > 1 else row for row in unit["rows"]] for unit in job.results()),
    )
    if config.push_to_hub is not None:
        push(folder, config.push_to_hub)
    return Collected(folder / DATA_FILE, num_rows, spending)


def _warn_of_other_splitter(dataset: str, splitter: StepSplitter) -> None:
    """Warn about prompts from a local collection whose solutions were cut otherwise."""
    cut_by = collected_splitter(dataset) if Path(dataset).exists() else None
    if cut_by is not None and cut_by != splitter:
        logger.warning(
            "The solutions of '%s' were cut into steps by %r, and those collected here are cut by %r: a verifier of "
            "both would learn two kinds of steps. Give the same --splitter, unless that is meant.",
            dataset,
            cut_by,
            splitter,
        )


def prover_name(config: CollectConfig) -> str:
    """The prover in words."""
    name = f"{config.model} with {config.adapter}" if config.adapter else config.model
    if config.seed_temperature not in (None, config.temperature):
        name = f"{name} at temperature {config.temperature:g}"
    return f"Best-of-{config.best_of_k} of {name}" if config.best_of_k > 1 else name
