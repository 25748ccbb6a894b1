"""An evaluation job: units of problems of each model, shared between processes, resumed where it stopped."""

from __future__ import annotations

import gc
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trl_prl.answers import final_answer
from trl_prl.collection import fingerprint
from trl_prl.command_options import load_rows, make_generator
from trl_prl.evaluate_config import EvaluateConfig
from trl_prl.evaluation import add_step_scores, answer_pattern, check_samples, draw_samples
from trl_prl.evaluation_output import write_results
from trl_prl.evaluation_sources import checksum, read_samples
from trl_prl.rollouts import Problem, prompt_token_ids
from trl_prl.shards import ShardWriter, find_units, open_manifest, read_units
from trl_prl.types import Generator, OutcomeReward
from trl_prl.verifier_loading import text_splitter


@dataclass(frozen=True)
class EvaluationProgress:
    """Where a job stands.

    Attributes:
        name (`str`):
            The model at hand.
        num_done (`int`):
            Finished problems of this process's share of it.
        num_total (`int`):
            All problems of its share.
        num_correct (`int`), num_counted (`int`), num_left_out (`int`):
            Samples of this run so far that are right, that count, and that do not.
    """

    name: str
    num_done: int
    num_total: int
    num_correct: int
    num_counted: int
    num_left_out: int


class _Source:
    """Problems of one model, and where its samples come from."""

    def __init__(self, config: EvaluateConfig, name: str, path: str) -> None:
        self.config, self.name, self.path = config, name, path
        self._generator: Generator | None = None
        self.tokenizer: Any = None
        self._samples: list[list[dict[str, Any]]] | None = None
        if config.samples:
            self._problems, self._samples = read_samples(path, config)
            self.num_problems, self.fingerprint = len(self._problems), checksum(self._problems, self._samples)
            return
        self._dataset = load_rows(config.dataset, config.dataset_config, config.dataset_split)
        if config.prompt_column not in self._dataset.column_names:
            raise ValueError(
                f"The dataset has the columns {', '.join(self._dataset.column_names)} and not "
                f"{config.prompt_column!r}, so there are no prompts. Name their column with prompt_column."
            )
        if config.max_rows is not None:
            self._dataset = self._dataset.select(range(min(config.max_rows, len(self._dataset))))
        self.num_problems, self.fingerprint = len(self._dataset), fingerprint(self._dataset)

    def settings(self) -> dict[str, Any]:
        """What the rows depend on."""
        model = {} if self.config.samples else {"model": self.path}
        verifiers = [f"{name}={path}" for name, path in self.config.verifier_paths()]
        numbers = {"num_problems": self.num_problems, "fingerprint": self.fingerprint}
        return {**self.config.settings(), **model, "verifiers": verifiers, **numbers}

    def draw(self, rows: range) -> tuple[list[Problem], list[list[dict[str, Any]]]]:
        """Problems and samples of some rows."""
        if self._samples is not None:
            return [self._problems[row] for row in rows], [self._samples[row] for row in rows]
        from transformers import AutoTokenizer

        if self._generator is None:
            self.tokenizer = AutoTokenizer.from_pretrained(self.config.tokenizer or self.path)
            self._generator = make_generator(self.config, self.tokenizer, self.path)
        problems = []
        for row in rows:
            columns = dict(self._dataset[row])
            prompt = columns.pop(self.config.prompt_column)
            problems.append(Problem(row, prompt, prompt_token_ids(self.tokenizer, prompt), columns))
        return problems, draw_samples(problems, self._generator, replace(self.config.sampling(), n=self.config.n))

    def close(self) -> None:
        """Give the model's memory back before the next one is loaded."""
        self._generator = None
        gc.collect()


def evaluate(
    config: EvaluateConfig,
    reward: OutcomeReward,
    *,
    on_progress: Callable[[EvaluationProgress], None] | None = None,
) -> Path | None:
    """Evaluate models or files of samples, or go on with it.

    Every model has a job of its own below `config.output_dir`, so that models can be added later. Problems are cut
    into units of `config.problems_per_unit`; unit `u` belongs to process `u` modulo their number. What a unit's rows
    are depends on the settings alone, so any number of interruptions and processes gives the same results. The process
    that finds all units finished writes them.

    Args:
        config ([`EvaluateConfig`]):
            Settings.
        reward ([`OutcomeReward`]):
            Outcome reward.
        on_progress (`Callable`, *optional*):
            Called at the start of each model and after every unit.

    Returns:
        `Path`, *optional*: The JSON file of results; `None` if units of other processes are still to come.

    Raises:
        `ValueError`: When a folder holds a job with other settings or a data set does not fit.
    """
    verifiers: list[tuple[str, Any, Any]] = []
    folders: dict[str, tuple[Path, int]] = {}
    for name, path in config.sources():
        source = _Source(config, name, path)
        folder = Path(config.output_dir) / "models" / _slug(name)
        open_manifest(folder, json.loads(json.dumps(source.settings(), default=str)), config.defaults())
        folders[name] = folder, -(-source.num_problems // config.problems_per_unit)
        _compute_units(config, source, folder, reward, verifiers, on_progress or (lambda progress: None))
        source.close()
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, (folder, num_units) in folders.items():
        places = find_units(folder)
        if len(places) < num_units:
            return None
        rows[name] = [row for unit in read_units(places, range(num_units)) for row in unit["rows"]]
    return write_results(config, rows)


def _compute_units(
    config: EvaluateConfig,
    source: _Source,
    folder: Path,
    reward: OutcomeReward,
    verifiers: list[tuple[str, Any, Any]],
    report: Callable[[EvaluationProgress], None],
) -> None:
    """Compute the units of this process that are not there yet."""
    size, total = config.problems_per_unit, source.num_problems
    index, number = config.process()
    done, share = find_units(folder), range(index, -(-total // size), number)
    blocks = {unit: range(unit * size, min(total, (unit + 1) * size)) for unit in share}
    pending = [unit for unit in share if unit not in done]
    num_share = sum(map(len, blocks.values()))
    num_done, counts = num_share - sum(len(blocks[unit]) for unit in pending), [0, 0, 0]
    report(EvaluationProgress(source.name, num_done, num_share, *counts))
    extract = final_answer if config.answer_pattern is None else answer_pattern(config.answer_pattern)
    with ShardWriter(folder, index) as writer:
        for unit in pending:
            if config.verifiers and not verifiers:
                verifiers += _load_verifiers(config)
            problems, samples = source.draw(blocks[unit])
            _check_columns(config, problems, samples)
            rows = check_samples(
                problems,
                samples,
                reward,
                unfinished=config.unfinished,
                threshold=config.reward_threshold,
                extract_answer=extract,
            )
            for name, verifier, split in verifiers:
                add_step_scores(rows, name, verifier, split)
            writer.write(unit, {"rows": rows})
            outcomes = [sample["correct"] for row in rows for sample in row["samples"]]
            for place, mark in enumerate((True, False, None)):
                counts[place] += outcomes.count(mark)
            num_done += len(rows)
            num_counted = counts[0] + counts[1]
            report(EvaluationProgress(source.name, num_done, num_share, counts[0], num_counted, counts[2]))


def _check_columns(config: EvaluateConfig, problems: list[Problem], samples: list[list[dict[str, Any]]]) -> None:
    needed = [p for p, row in zip(problems, samples, strict=True) if any(s.get("correct") is None for s in row)]
    if config.reward in ("accuracy", "exact_match") and any("answer" not in p.columns for p in needed):
        columns = ", ".join(sorted({name for problem in needed for name in problem.columns})) or "none"
        raise ValueError(
            f"The problems have the columns {columns} and no 'answer', which the reward {config.reward!r} compares "
            "with. Rename the column of right answers, or give another reward as 'module:function'."
        )


def _load_verifiers(config: EvaluateConfig) -> Iterator[tuple[str, Any, Any]]:
    import torch

    from trl_prl.verifier import ProcessAdvantageVerifier

    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    for name, path in config.verifier_paths():
        verifier = ProcessAdvantageVerifier.from_pretrained(
            path, device=device, dtype=config.dtype, max_batch_tokens=config.max_batch_tokens
        )
        yield name, verifier, text_splitter(verifier)


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip(".") or "model"
