"""Calls a process reward and checks what it returns."""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import reprlib
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import torch

from trl_prl.credit.advantages import best_of_k_values, step_advantages
from trl_prl.credit.step_tensors import pad_step_rewards
from trl_prl.types import ProcessReward


def prepare_process_reward(process_reward: ProcessReward, accelerator: Any) -> None:
    """Let a process reward get ready for training: a verifier moves to its process's device.

    Args:
        process_reward (`ProcessReward`):
            The scorer; one without a method `prepare`, such as a function, is left alone.
        accelerator (`accelerate.Accelerator`):
            The trainer's.
    """
    prepare = getattr(process_reward, "prepare", None)
    if prepare is not None:
        prepare(accelerator)


def wait_for(result: Any) -> Any:
    """Run an awaitable to its end; anything else is returned as it is.

    One event loop in a thread of its own serves all calls: it works where a loop is already running, as in a notebook,
    and clients that a process reward keeps between calls stay on the loop that their connections belong to.
    """
    if not inspect.isawaitable(result):
        return result

    async def await_result(awaitable: Awaitable[Any]) -> Any:
        return await awaitable

    return asyncio.run_coroutine_threadsafe(await_result(result), event_loop()).result()


@functools.cache
def event_loop() -> asyncio.AbstractEventLoop:
    """The loop of asynchronous process rewards, started on first use and running as long as the process."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="process-reward", daemon=True).start()
    return loop


def callable_name(function: Callable[..., Any]) -> str:
    """Name of a function, or of the class of a callable object, for messages and columns."""
    return getattr(function, "__name__", type(function).__name__)


def has_rows(scores: Any) -> bool:
    """Whether a process reward returned a sequence of sequences: lists, tuples, arrays or tensors of rank 2."""
    try:
        return all(len(row) >= 0 and not isinstance(row, str | bytes) for row in scores)
    except TypeError:  # `None`, a number, numbers for rows
        return False


def check_number(value: Any, name: str, position: str) -> float:
    """Read one returned score: `None` and NaN mean that it could not be scored.

    Raises:
        `ValueError`: if the score is infinite or not a number.
    """
    if value is None:
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The process reward '{name}' returned {value!r} for {position}, which is not a number. Return one float "
            "per step, or None for a step that cannot be scored."
        ) from error
    if abs(number) > torch.finfo(torch.float32).max:
        raise ValueError(
            f"The process reward '{name}' returned {number} for {position}, which is infinite in float32 and would "
            "make every advantage of the completion infinite. Return a finite number, or None for a step that cannot "
            "be scored."
        )
    return number


def check_columns(columns: Mapping[str, Any], name: str) -> None:
    """Refuse a column that a process reward cannot be given, as it gets the sampled steps under its name.

    Raises:
        `ValueError`: if a column is called `steps`.
    """
    if "steps" in columns:
        raise ValueError(
            f"The data set has a column 'steps'. The process reward '{name}' gets the sampled steps under that name, "
            "so it cannot get the column too. Rename it with `dataset.rename_column('steps', ...)`, or remove it."
        )


def score_steps(
    process_reward: ProcessReward, prompts: Sequence[Any], steps: Sequence[Sequence[str]], /, **columns: Any
) -> torch.Tensor:
    """Score every step of every completion.

    Args:
        process_reward (`ProcessReward`):
            The scorer, plain or async.
        prompts (`Sequence`):
            One prompt per completion.
        steps (`Sequence[Sequence[str]]`):
            Step texts of each completion; for a completion without steps an empty list is expected back.
        **columns:
            Passed through to the scorer.

    Returns:
        `torch.Tensor`: Scores of shape (B, S), float32, NaN where there is no step or the step cannot be scored.

    Raises:
        `ValueError`: if the number of rows or of scores in a row is not that of the steps, or a score is not a finite
        number, `None` or NaN, or if a column is called `steps`.
    """
    check_columns(columns, callable_name(process_reward))
    scores = wait_for(process_reward(prompts=list(prompts), steps=[list(row) for row in steps], **columns))
    return check_step_scores(scores, steps, callable_name(process_reward))


def check_step_scores(scores: Any, steps: Sequence[Sequence[str]], name: str) -> torch.Tensor:
    """Check what a process reward returned for steps, and pad it.

    Args:
        scores (`Any`):
            What it returned.
        steps (`Sequence[Sequence[str]]`):
            Step texts of each completion.
        name (`str`):
            Name of the process reward, for messages.

    Returns:
        `torch.Tensor`: Scores of shape (B, S), float32, NaN where there is no step or the step cannot be scored.

    Raises:
        `ValueError`: as for [`score_steps`].
    """
    if not has_rows(scores):
        raise ValueError(
            f"The process reward '{name}' returned {reprlib.repr(scores)}, which is not one list per completion. A "
            "single number cannot be shared out over steps. Return one list of floats per completion, one float per "
            "step; for one reward per completion use `reward_funcs`."
        )
    if len(scores) != len(steps):
        raise ValueError(
            f"The process reward '{name}' returned scores for {len(scores)} completions, but {len(steps)} were given. "
            "Steps and scores would be paired wrongly. Return one list of floats per completion, in the same order."
        )
    rows = []
    for index, (row, row_steps) in enumerate(zip(scores, steps, strict=True)):
        values = list(row)
        if len(values) != len(row_steps):
            raise ValueError(
                f"The process reward '{name}' returned {len(values)} scores for completion {index}, which has "
                f"{len(row_steps)} steps: {list(row_steps)!r}. Credit would reach the wrong tokens. Return exactly "
                "one float per step, and None for a step that cannot be scored; do not split the text again."
            )
        rows.append([check_number(value, name, f"step {i} of completion {index}") for i, value in enumerate(values)])
    return pad_step_rewards(rows)


def check_initial_values(values: Any, num_prompts: int, name: str) -> torch.Tensor:
    """Check what a process reward returned for prompts.

    Args:
        values (`Any`):
            What it returned.
        num_prompts (`int`):
            How many prompts it was given.
        name (`str`):
            Name of the method, for messages.

    Returns:
        `torch.Tensor`: Values of shape (B,), float32, NaN where a prompt cannot be scored.

    Raises:
        `ValueError`: if it is not one finite number, `None` or NaN per prompt.
    """
    if len(values) != num_prompts:
        raise ValueError(
            f"'{name}' returned {len(values)} values for {num_prompts} prompts. Values and prompts would be paired "
            "wrongly. Return exactly one float per prompt, in the same order."
        )
    return torch.tensor([check_number(value, name, f"prompt {i}") for i, value in enumerate(values)])


def returned_type(process_reward: ProcessReward, process_reward_type: str | None) -> str:
    """Whether a process reward returns `"values"` or `"advantages"`: as configured, or as the object itself says."""
    return process_reward_type or str(getattr(process_reward, "returns", "values"))


def score_values(
    process_reward: ProcessReward,
    prompts: Sequence[Any],
    steps: Sequence[Sequence[str]],
    columns: Mapping[str, Any] | None = None,
    *,
    process_reward_type: str | None = None,
    initial_value: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What a process reward says of every step, and of the prompts.

    Args:
        process_reward (`ProcessReward`):
            The scorer.
        prompts (`Sequence`):
            One prompt per completion.
        steps (`Sequence[Sequence[str]]`):
            Step texts of each completion.
        columns (`Mapping`, *optional*):
            Passed through to the scorer.
        process_reward_type (`str`, *optional*):
            `"values"` or `"advantages"`; by default what the scorer says of itself.
        initial_value (`float`, *optional*):
            Value of every prompt, in [0, 1], where the scorer has no `initial_values`.

    Returns:
        `tuple[torch.Tensor, torch.Tensor | None]`: Scores of shape (B, S) and values of the prompts of shape (B,),
        float32, NaN where there is no step or no score; `None` for the prompts where the scores are advantages.

    Raises:
        `ValueError`: as [`score_steps`] and [`check_initial_values`] do.
    """
    columns = columns or {}
    is_values = returned_type(process_reward, process_reward_type) != "advantages"
    if is_values and hasattr(process_reward, "score_solutions"):
        # Prompts and steps in one pass over the solutions.
        check_columns(columns, callable_name(process_reward))
        found = process_reward.score_solutions(prompts=list(prompts), steps=[list(row) for row in steps], **columns)
        initial_values, scores = wait_for(found)
        name = f"{callable_name(process_reward)}.score_solutions"
        return check_step_scores(scores, steps, name), check_initial_values(initial_values, len(prompts), name)
    scores = score_steps(process_reward, prompts, steps, **columns)
    if not is_values:
        return scores, None
    if hasattr(process_reward, "initial_values"):
        values = wait_for(process_reward.initial_values(prompts=list(prompts), **columns))
        name = f"{callable_name(process_reward)}.initial_values"
        return scores, check_initial_values(values, len(prompts), name)
    return scores, torch.full((len(prompts),), math.nan if initial_value is None else initial_value)


def progress_of(scores: torch.Tensor, initial_values: torch.Tensor | None, best_of_k: int = 1) -> torch.Tensor:
    """Progress of every step under the prover that a process reward stands for.

    Source: [PAV](https://huggingface.co/papers/2410.08146), eq. 2 and 30.

    Args:
        scores (`torch.Tensor`):
            What [`score_values`] found, of shape (B, S).
        initial_values (`torch.Tensor`, *optional*):
            Values of the prompts of shape (B,); `None` where the scores are advantages already.
        best_of_k (`int`, *optional*, defaults to `1`):
            Best-of-K transform of the values.

    Returns:
        `torch.Tensor`: Step advantages of shape (B, S), float32, NaN where there is no step or no score.

    Raises:
        `ValueError`: if `best_of_k` meets a value outside [0, 1].
    """
    if initial_values is None:
        return scores
    if best_of_k != 1:  # 1 changes nothing, and values of other ranges than [0, 1] are fine without the transform
        scores, initial_values = best_of_k_values(scores, best_of_k), best_of_k_values(initial_values, best_of_k)
    return step_advantages(scores, initial_values)
