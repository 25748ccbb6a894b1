"""From rows of collected values to states with several actions each: what a diagnosis of provers is computed from."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trl_prl.storage.row_values import row_place

from .moments import Candidate, SampledState


Key = tuple[tuple[str, ...], bool]
"""Texts of the steps of a prefix, and whether it is a whole solution; a prefix may have the same text and go on."""
Counts = tuple[int, int]
"""Rollouts and correct ones; (0, outcome) where the value is known."""

_NEEDED = (
    "row", "prompt", "completions", "labels", "num_rollouts", "num_correct", "initial_num_rollouts",
    "initial_num_correct", "num_seeds",
)  # fmt: skip


@dataclass
class ProblemValues:
    """Everything one file says about one problem.

    Attributes:
        prompt (`Any`):
            The prompt.
        counts (`dict[Key, Counts]`):
            Counted rollouts of every measured prefix, the prompt included.
        visits (`Counter`):
            How often seeds came to each prefix they went on from.
        draws (`dict`):
            For each such prefix, how often each next step was sampled there: by seeds and by branches.
    """

    prompt: Any
    counts: dict[Key, Counts] = field(default_factory=dict)
    visits: Counter[tuple[str, ...]] = field(default_factory=Counter)
    draws: dict[tuple[str, ...], Counter[Key]] = field(default_factory=lambda: defaultdict(Counter))


@dataclass(frozen=True)
class Coverage:
    """What part of the visited states can be used.

    Attributes:
        num_visits (`int`):
            Visits of the seeds to states.
        num_used (`int`):
            Those to states with at least two measured next steps.
        num_unmatched (`int`):
            Measured next steps of the base policy that another prover's file has not.
        num_unmeasured (`int`):
            The other sampled next steps without enough counted rollouts.
        num_draws (`int`):
            All sampled next steps.
    """

    num_visits: int
    num_used: int
    num_unmatched: int
    num_unmeasured: int
    num_draws: int


def read_problems(rows: Iterable[Mapping[str, Any]], source: Any = "the rows") -> dict[int, ProblemValues]:
    """Gather the rows of a collection by problem.

    Args:
        rows (`Iterable[Mapping]`):
            Rows as `trl-prl collect` writes them.
        source (`Any`, *optional*, defaults to `"the rows"`):
            Where they are from, for messages.

    Returns:
        `dict[int, ProblemValues]`: By the number of the row in the prompts' data set.

    Raises:
        `ValueError`: If a column is missing, or a step without rollouts has a value that is no outcome.
    """
    problems: dict[int, ProblemValues] = {}
    for number, row in enumerate(rows):
        if missing := [name for name in _NEEDED if row.get(name) is None]:
            raise ValueError(
                f"{row_place(number, source)} has no {' and no '.join(missing)}, so its values cannot be counted. "
                "Give a file as `trl-prl collect` writes it."
            )
        problem = problems.setdefault(row["row"], ProblemValues(row["prompt"]))
        problem.counts.setdefault(((), False), (row["initial_num_rollouts"], row["initial_num_correct"]))
        steps, branch_at = tuple(row["completions"]), row.get("branch_at")
        keys = []
        for h in range(len(steps)):
            total, label = row["num_rollouts"][h], row["labels"][h]
            known = total == 0 and label is not None
            if known and label not in (0, 1):
                raise ValueError(
                    f"{row_place(number, source)} has the label {label!r} for step {h} without any rollouts, but only "
                    "the outcome of a whole solution, 0 or 1, is known without. Give values with their rollouts."
                )
            keys.append((steps[: h + 1], known))
            if total or known:
                problem.counts.setdefault(keys[h], (total, int(label) if known else row["num_correct"][h]))
        for h in range(len(steps)) if branch_at is None else (branch_at,):
            problem.draws[steps[:h]][keys[h]] += row["num_seeds"]
            if branch_at is None:
                problem.visits[steps[:h]] += row["num_seeds"]
    return problems


def sampled_states(
    files: Sequence[Mapping[int, ProblemValues]], candidates: Sequence[Candidate]
) -> tuple[list[SampledState], Coverage]:
    """Join the files of several provers on the prefixes of the base policy.

    A next step is used if every file has enough rollouts of it for every candidate, so that all candidates are
    compared on the same states and actions.

    Args:
        files (`Sequence[Mapping[int, ProblemValues]]`):
            As [`read_problems`] returns them; the first is that of the base policy with its own values.
        candidates (`Sequence[Candidate]`):
            The provers; their numbers are positions in `files`.

    Returns:
        `tuple[list[SampledState], Coverage]`: States with at least two draws, and what was left out.
    """
    needed = [max([2, *(2 * c.k for c in candidates if c.prover == p)]) for p in range(len(files))]
    states: list[SampledState] = []
    numbers = Counter[str]()
    for row, problem in files[0].items():
        others = [file.get(row) for file in files[1:]]
        for prefix, draws in problem.draws.items():
            visits = problem.visits[prefix]
            numbers.update(visits=visits, draws=draws.total())
            measured = []
            for action in draws:
                counts = [p.counts.get(action) if p is not None else None for p in (problem, *others)]
                found = [c for c in counts if c is not None]
                if counts[0] is not None and len(found) < len(counts):
                    numbers["unmatched"] += draws[action]
                elif len(found) == len(counts) and all(
                    c[0] == 0 or c[0] >= least for c, least in zip(found, needed, strict=True)
                ):
                    measured.append((draws[action], found))
                else:
                    numbers["unmeasured"] += draws[action]
            total, correct = problem.counts.get((prefix, False), (0, 0))
            if sum(number for number, _ in measured) < 2 or total < 2:
                continue
            numbers["used"] += visits
            counted = np.array([found for _, found in measured], dtype=np.int64)  # (A, P, 2)
            states.append(
                SampledState(
                    row,
                    len(prefix),
                    visits,
                    np.array([number for number, _ in measured], dtype=np.int64),
                    counted[:, :, 0].T,
                    counted[:, :, 1].T,
                    correct * (total - correct) / (total * (total - 1)),
                )
            )
    coverage = Coverage(
        numbers["visits"], numbers["used"], numbers["unmatched"], numbers["unmeasured"], numbers["draws"]
    )
    return states, coverage
