"""Samples of problems with their outcomes: drawn from a generator or given, checked, answered, scored.

The rows made here are what [`summarise`](summary.py) computes estimates from. A row is a dictionary of JSON
values with

- `row` and `prompt`: number of the problem and its prompt,
- `columns`: the other columns of the problem,
- `samples`: one dictionary per sample with `completion` (text), `finish_reason` and `num_tokens` (`None` where not
  known), `correct` (`None` where the sample is not counted), `why_not` (`None`, `"unfinished"` or `"unchecked"`),
  `answer` (`None` for none) and `scores` (by name: a number, or one per step).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

from trl_prl.generation.rollouts import Problem, check_outcomes
from trl_prl.generation.sampling import draw
from trl_prl.prms.scoring import score_prefixes
from trl_prl.rewards.extraction import final_answer, final_text
from trl_prl.types import Generator, OutcomeReward, Prompt, SamplingParams


Unfinished = Literal["wrong", "exclude", "check"]
"""What samples at the length limit are: wrong, not counted, or checked like all others."""

ExtractAnswer = Callable[[str], str | None]


def draw_samples(
    problems: Sequence[Problem], generator: Generator, params: SamplingParams
) -> list[list[dict[str, Any]]]:
    """Draw `params.n` samples of every problem.

    Sample `i` of a problem depends on the seed, the number of its row and `i` alone.

    Args:
        problems (`Sequence[Problem]`):
            The problems.
        generator ([`Generator`]):
            Any engine.
        params ([`SamplingParams`]):
            How to sample.

    Returns:
        `list[list[dict]]`: Samples of each problem, with `completion`, `completion_ids`, `finish_reason` and
        `num_tokens`.

    Raises:
        `ValueError`: When the generator returns another number than asked.
    """
    prompts = [Prompt(problem.prompt_ids, key=f"{problem.row}/evaluation") for problem in problems]
    drawn = draw(generator, prompts, params)
    return [
        [
            {
                "completion": completion.text,
                "completion_ids": list(completion.token_ids),
                "finish_reason": completion.finish_reason,
                "num_tokens": len(completion.token_ids),
            }
            for completion in row
        ]
        for row in drawn
    ]


def check_samples(
    problems: Sequence[Problem],
    samples: Sequence[Sequence[Mapping[str, Any]]],
    reward: OutcomeReward,
    *,
    unfinished: Unfinished = "wrong",
    threshold: float = 0.5,
    extract_answer: ExtractAnswer = final_answer,
) -> list[dict[str, Any]]:
    """Check samples and find their answers.

    Args:
        problems (`Sequence[Problem]`):
            The problems.
        samples (`Sequence[Sequence[Mapping]]`):
            Samples of each, as [`draw_samples`] returns them or read from a file. One that has `correct` already is
            not checked again, one that has `answer` keeps it, and `scores` are kept.
        reward ([`OutcomeReward`]):
            Outcome reward; `None` and NaN say that a sample could not be checked.
        unfinished (`str`, *optional*, defaults to `"wrong"`):
            What samples at the length limit are: `"wrong"`, `"exclude"` or `"check"`.
        threshold (`float`, *optional*, defaults to `0.5`):
            Rewards above it are correct.
        extract_answer (`Callable`, *optional*):
            Finds the answer in a text, for votes; [`final_answer`] by default.

    Returns:
        `list[dict]`: One row per problem, as the module describes them.

    Raises:
        `ValueError`: When the option is unknown or the reward returns another number than asked.
    """
    if unfinished not in get_args(Unfinished):
        raise ValueError(f"Got unfinished={unfinished!r}, which is no way to count. Use {get_args(Unfinished)}.")
    cut = [[s.get("finish_reason") == "length" and unfinished != "check" for s in row] for row in samples]
    places = [
        (i, j)
        for i, row in enumerate(samples)
        for j, sample in enumerate(row)
        if not cut[i][j] and sample.get("correct") is None
    ]
    texts = [samples[i][j]["completion"] for i, j in places]
    ids = [list(samples[i][j].get("completion_ids") or []) for i, j in places]
    outcomes = check_outcomes([problems[i] for i, _ in places], texts, ids, reward, threshold)
    checked = dict(zip(places, outcomes, strict=True))
    rows = []
    for i, (problem, row) in enumerate(zip(problems, samples, strict=True)):
        cut_is = False if unfinished == "wrong" else None
        finished = [
            _sample(sample, cut_is if is_cut else checked.get((i, j), sample.get("correct")), is_cut, extract_answer)
            for j, (sample, is_cut) in enumerate(zip(row, cut[i], strict=True))
        ]
        rows.append(
            {"row": problem.row, "prompt": problem.prompt, "columns": dict(problem.columns), "samples": finished}
        )
    return rows


def _sample(
    sample: Mapping[str, Any], correct: bool | None, is_cut: bool, extract_answer: ExtractAnswer
) -> dict[str, Any]:
    text = final_text(sample["completion"])
    # A file may say that there is no answer; looking for one in the text would follow another convention.
    answer = sample["answer"] if "answer" in sample else extract_answer(text)
    return {
        "completion": text,
        "finish_reason": sample.get("finish_reason"),
        "num_tokens": sample.get("num_tokens"),
        "correct": None if correct is None else bool(correct),
        "why_not": ("unfinished" if is_cut else "unchecked") if correct is None else None,
        "answer": None if answer is None else str(answer),
        "scores": dict(sample.get("scores") or {}),
    }


def evaluate_problems(
    problems: Sequence[Problem],
    generator: Generator,
    reward: OutcomeReward,
    params: SamplingParams,
    n: int,
    **check_args: Any,
) -> list[dict[str, Any]]:
    """Draw `n` samples of every problem and check them.

    Args:
        problems (`Sequence[Problem]`):
            The problems.
        generator ([`Generator`]):
            Any engine.
        reward ([`OutcomeReward`]):
            Outcome reward.
        params ([`SamplingParams`]):
            How to sample.
        n (`int`):
            Samples per problem.
        **check_args:
            Further arguments of [`check_samples`].

    Returns:
        `list[dict]`: One row per problem, as the module describes them.
    """
    samples = draw_samples(problems, generator, replace(params, n=n))
    return check_samples(problems, samples, reward, **check_args)


def add_step_scores(
    rows: Sequence[Mapping[str, Any]], name: str, verifier: Any, split: Callable[[str], list[str]]
) -> None:
    """Score the steps of every sample with a verifier, and add the values to its `scores`.

    Args:
        rows (`Sequence[Mapping]`):
            Rows as [`check_samples`] returns them; changed in place.
        name (`str`):
            Name of the scores.
        verifier ([`ProcessReward`]):
            Values of steps.
        split (`Callable`):
            Splits a text into steps.
    """
    flat = [(row["prompt"], sample) for row in rows for sample in row["samples"]]
    if not flat:
        return
    steps = [split(sample["completion"]) for _, sample in flat]
    # A solution is over unless it is known to have been cut off.
    finished = [sample["finish_reason"] != "length" for _, sample in flat]
    _, values = score_prefixes(verifier, [prompt for prompt, _ in flat], steps, finished)
    for (_, sample), scores in zip(flat, values, strict=True):
        sample["scores"][name] = [None if score != score else score for score in scores]


def answer_pattern(pattern: str) -> ExtractAnswer:
    """A function that finds answers by a regular expression.

    Args:
        pattern (`str`):
            Regular expression. Its last match counts, and of that the first group if it has one.

    Returns:
        `Callable[[str], str | None]`: The function; white space around an answer does not count.

    Raises:
        `ValueError`: When the expression is none.
    """
    try:
        compiled = re.compile(pattern, re.MULTILINE)
    except re.error as error:
        raise ValueError(
            f"Got the answer pattern {pattern!r}, which is no regular expression ({error}). Escape what is meant "
            "literally, for instance r'answer is (.*)'."
        ) from error

    def extract(text: str) -> str | None:
        matches = list(compiled.finditer(text))
        return (matches[-1][1 if compiled.groups else 0] or "").strip() or None if matches else None

    return extract
