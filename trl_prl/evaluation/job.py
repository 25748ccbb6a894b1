"""An evaluation job: samples of each model, from units of problems, and what they say."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from trl_prl.jobs.manifest import job_settings
from trl_prl.jobs.options import Tools, process_device
from trl_prl.jobs.problems import fingerprint, make_problem, select_problems
from trl_prl.jobs.progress import OnProgress
from trl_prl.jobs.runner import Engine, Job, OnCounts, run_here
from trl_prl.prms.load import load_process_reward
from trl_prl.prms.scoring import splitter_for
from trl_prl.rewards.checks import warn_of_other_prompts
from trl_prl.rewards.extraction import final_answer
from trl_prl.rewards.outcomes import check_reward, load_reward
from trl_prl.storage.row_sources import load_rows
from trl_prl.verifier.settings import warn_of_training_prompts

from .config import EvaluateConfig
from .output import write_results
from .samples import add_step_scores, answer_pattern, check_samples, draw_samples
from .sources import Samples, read_models


class Source:
    """Problems of one model, or of one file of samples.

    Args:
        config ([`EvaluateConfig`]):
            Settings.
        name (`str`):
            Name of the model, or of the file.
        path (`str`):
            Its path or Hub id.
        given (`tuple`, *optional*):
            What was read from the file, see [`read_models`]; `None` for a model.
    """

    def __init__(self, config: EvaluateConfig, name: str, path: str, given: Samples | None = None) -> None:
        self.config, self.name, self.path = config, name, path
        self.samples: list[list[dict[str, Any]]] | None = None
        if given is not None:
            self.problems, self.samples = given
            for problem, row in zip(self.problems, self.samples, strict=True):
                if any(sample.get("correct") is None for sample in row):
                    check_reward(config.reward, {config.prompt_column, *problem.columns})
            pairs = zip(self.problems, self.samples, strict=True)
            self.fingerprint = fingerprint([problem.prompt, problem.columns, row] for problem, row in pairs)
            self.num_problems = len(self.problems)
            return
        self.dataset = select_problems(load_rows(config.dataset, config.dataset_config, config.dataset_split), config)
        check_reward(config.reward, self.dataset.column_names)
        self.num_problems, self.fingerprint = len(self.dataset), fingerprint(self.dataset)

    def job(self) -> Job:
        """The job of this source, in a folder of its own."""
        config = self.config
        changes: dict[str, Any] = {} if config.samples else {"model": self.path}
        changes["verifiers"] = [f"{name}={path}" for name, path in config.verifier_paths()]
        return Job(
            Path(config.output_dir) / "models" / _slug(self.name),
            job_settings(config, **changes, num_problems=self.num_problems, fingerprint=self.fingerprint),
            self.num_problems,
            config.problems_per_unit,
            config.process(),
            config.defaults(),
            samples_per_row=None if config.samples else config.n,
            name=self.name,
        )


class EvaluationWorker:
    """Draws or takes samples of problems, checks and scores them.

    Args:
        config ([`EvaluateConfig`]):
            Settings.
        source ([`Source`]):
            The problems.
        tools ([`Tools`], *optional*):
            Tokenizer, model and outcome reward; made from the settings by default.
    """

    def __init__(self, config: EvaluateConfig, source: Source, tools: Tools | None = None) -> None:
        self.config, self.source = config, source
        self.tools = tools or Tools(config, source.path, config.num_checkers)
        self.verifiers, self._prompts_compared = list(_load_verifiers(config)), False
        for _, verifier, _ in self.verifiers:
            warn_of_training_prompts(verifier, source.fingerprint, config.dataset)
        pattern = config.answer_pattern
        self.extract_answer = final_answer if pattern is None else answer_pattern(pattern)

    def compute(self, rows: range, on_counts: OnCounts) -> dict[str, Any]:
        """Compute the rows of a unit."""
        config, source, tools = self.config, self.source, self.tools
        if source.samples is not None:
            problems, samples = [source.problems[row] for row in rows], [source.samples[row] for row in rows]
        else:
            tools.count_samples(on_counts)
            problems = [make_problem(source.dataset, row, config, tools.tokenizer) for row in rows]
            samples = draw_samples(problems, tools.generator, replace(config.sampling(), n=config.n))
        found = check_samples(
            problems,
            samples,
            tools.reward,
            unfinished=config.unfinished,
            threshold=config.reward_threshold,
            extract_answer=self.extract_answer,
        )
        for name, verifier, split in self.verifiers:
            if not self._prompts_compared:
                warn_of_other_prompts(verifier, problems[0].prompt, config.prompts())
            add_step_scores(found, name, verifier, split)
        self._prompts_compared = True
        outcomes = [sample["correct"] for row in found for sample in row["samples"]]
        marks = {"num_correct": True, "num_wrong": False, "num_left_out": None}
        on_counts({name: outcomes.count(mark) for name, mark in marks.items()})
        return {"rows": found}

    def close(self) -> None:
        """Give back memory, before the next model is loaded, and processes."""
        self.tools.close()
        self.verifiers.clear()
        gc.collect()


def evaluate(
    config: EvaluateConfig, *, engine: Engine = run_here, on_progress: OnProgress | None = None
) -> Path | None:
    """Evaluate models or files of samples, or go on with it.

    Every model has a [`Job`] of its own below `config.output_dir`, so that models can be added later. The process that
    finds all units finished writes the results.

    Args:
        config ([`EvaluateConfig`]):
            Settings.
        engine ([`Engine`], *optional*):
            Who computes; this process by default.
        on_progress (`Callable`, *optional*):
            As in [`Job.run`].

    Returns:
        `Path`, *optional*: The JSON file of results; `None` if units of other processes are still to come.

    Raises:
        `ValueError`: When a folder holds a job with other settings or a data set does not fit.
    """
    load_reward(config.reward)
    jobs: dict[str, Job] = {}
    paths: dict[str, str] = {}
    for source in _sources(config):
        paths[source.name], job = source.path, source.job()
        jobs[source.name] = job
        job.run(partial(EvaluationWorker, config, source), engine=engine, on_progress=on_progress)
    if any(len(job.places) < job.num_units for job in jobs.values()):
        return None
    rows = {name: [row for unit in job.results() for row in unit["rows"]] for name, job in jobs.items()}
    return write_results(config, rows, paths)


def _sources(config: EvaluateConfig) -> Iterator[Source]:
    """The models, or those whose samples are given; a file of several is that many."""
    for name, path in config.sources():
        if not config.samples:
            yield Source(config, name, path)
            continue
        for model, given in read_models(path, config).items():
            own = model if len(config.samples) == 1 else f"{name}/{model}"
            yield Source(config, own if model else name, path, given)


def _load_verifiers(config: EvaluateConfig) -> Iterator[tuple[str, Any, Any]]:
    for name, path in config.verifier_paths():
        verifier = load_process_reward(
            path,
            device=process_device(),
            dtype=config.dtype,
            max_batch_tokens=config.max_batch_tokens,
        )
        yield name, verifier, splitter_for(verifier)


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip(".") or "model"
