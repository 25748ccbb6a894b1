"""A search job: answers of a data set of problems, and accuracy against compute."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from trl_prl.jobs.manifest import job_settings
from trl_prl.jobs.options import Tools
from trl_prl.jobs.problems import fingerprint, make_problem, select_problems
from trl_prl.jobs.progress import OnProgress
from trl_prl.jobs.runner import Engine, Job, OnCounts, Worker, run_here
from trl_prl.rewards.outcomes import check_reward
from trl_prl.steps.split import get_splitter
from trl_prl.verifier.settings import warn_of_training_prompts

from .config import SearchConfig
from .output import write_results
from .runs import Searcher, load_answer_function


class SearchWorker:
    """Searches the answers of problems.

    Args:
        config ([`SearchConfig`]):
            Settings.
        dataset ([`~datasets.Dataset`]):
            Prompts and the columns that the rewards read.
        tools ([`Tools`], *optional*):
            Tokenizer, policy and outcome reward; made from the settings by default.
    """

    def __init__(self, config: SearchConfig, dataset: Any, tools: Tools | None = None) -> None:
        self.config, self.dataset, self.tools = config, dataset, tools or Tools(config)
        self.searcher = Searcher(config, self.tools.tokenizer, self.tools.generator, self.tools.reward)
        for process_reward in self.searcher.process_rewards():
            warn_of_training_prompts(process_reward, fingerprint(dataset), config.dataset)

    def compute(self, rows: range, on_counts: OnCounts) -> dict[str, Any]:
        """Search a unit of problems at every n."""
        self.tools.count_samples(on_counts)
        tokenizer = self.tools.tokenizer
        found = self.searcher.rows([make_problem(self.dataset, row, self.config, tokenizer) for row in rows])
        largest = [row["runs"][-1] for row in found]
        on_counts(
            {
                "num_correct": sum(run["correct"] is True for run in largest),
                # A problem without an answer is wrong.
                "num_checked": sum(run["correct"] is not None or run["chosen"] is None for run in largest),
            }
        )
        return {"rows": found}

    def close(self) -> None:
        """Give back memory and processes."""
        self.tools.close()


def run_search(
    config: SearchConfig,
    dataset: Any,
    make_worker: Callable[[], Worker] | None = None,
    *,
    engine: Engine = run_here,
    on_progress: OnProgress | None = None,
) -> Path | None:
    """Search the answers of a data set of problems, or go on with it, as a [`Job`]. Rows are equal but for seconds.

    Args:
        config ([`SearchConfig`]):
            Settings.
        dataset ([`~datasets.Dataset`]):
            Prompts and the columns that the rewards read.
        make_worker (`Callable`, *optional*):
            Makes what computes a unit; by default a [`SearchWorker`] of these settings.
        engine ([`Engine`], *optional*):
            Who computes; this process by default.
        on_progress (`Callable`, *optional*):
            As in [`Job.run`].

    Returns:
        `Path`, *optional*: The JSON file with the results; `None` if units of other processes are still to come.

    Raises:
        `ValueError`: When the folder holds a job with other settings or the data set does not fit.
    """
    dataset = select_problems(dataset, config)
    # What cannot be made is said before anything is begun.
    get_splitter(config.splitter, step_length=config.step_length)
    load_answer_function(config.answer)
    if make_worker is None:
        check_reward(config.reward, dataset.column_names)
        make_worker = partial(SearchWorker, config, dataset)
    settings = job_settings(config, num_problems=len(dataset), fingerprint=fingerprint(dataset))
    job = Job(
        Path(config.output_dir),
        settings,
        len(dataset),
        config.problems_per_unit,
        config.process(),
        config.defaults(),
        samples_per_row=None if config.over_steps else max(config.n),
    )
    if not job.run(make_worker, engine=engine, on_progress=on_progress):
        return None
    return write_results(config, settings, (unit["rows"] for unit in job.results()))
