"""What can be said about a process reward before it is used: whether it can be called, and whether settings fit."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch

from .pav_config import PAVArguments
from .process_scoring import callable_name, returned_type
from .steps import get_splitter
from .types import ProcessReward, StepSplitter


logger = logging.getLogger(__name__)

# What a trainer always passes, besides the columns of the data set.
PASSED = ("prompts", "steps", "trainer_state", "log_metric", "log_extra")
# Names of TRL's reward functions and slips that are never passed.
NEVER_PASSED = ("prompt", "completion", "completion_ids", "step")


def check_signature(function: Callable[..., Any], name: str) -> None:
    """Refuse a function that cannot be called as a process reward is, before a model generates anything.

    Args:
        function (`Callable`):
            What will be called.
        name (`str`):
            Its name, for the message.

    Raises:
        `TypeError`: if it lacks a parameter that is passed, or needs one that is not.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some builtins and compiled functions have none
        return
    parameters = signature.parameters.values()
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    unknown = [] if takes_any else [passed for passed in PASSED if passed not in named]
    # A data set may have a column `completions`; who asks for it instead of the steps means TRL's argument.
    never = {*NEVER_PASSED, "completions"} if "steps" not in named else set(NEVER_PASSED)
    lacking = [parameter for parameter in required if parameter in never or parameter not in named]
    if unknown or lacking:
        problems = [f"does not take {', '.join(unknown)}"] if unknown else []
        problems += [f"asks for {', '.join(lacking)}, which it is not given"] if lacking else []
        raise TypeError(
            f"The process reward '{name}' has the signature {signature}: it {' and '.join(problems)}. It is called "
            "with `prompts`, `steps`, every column of the data set, `trainer_state`, `log_metric` and `log_extra`, "
            f"all by name, so the first call would fail. Write it as `def {name}(prompts, steps, **columns)`."
        )


def check_process_reward(process_reward: ProcessReward, settings: PAVArguments) -> None:
    """Refuse a process reward that cannot be called, or from which no progress can be computed with these settings.

    Args:
        process_reward (`ProcessReward`):
            The scorer.
        settings ([`PAVArguments`]):
            How its scores become part of the advantages.

    Raises:
        `TypeError`: if its signature does not fit.
        `ValueError`: if values come without a value of the prompt, or advantages meet a setting that needs values.
    """
    name = callable_name(process_reward)
    is_values = returned_type(process_reward, settings.process_reward_type) != "advantages"
    whole = getattr(process_reward, "score_solutions", None) if is_values else None
    check_signature(process_reward if whole is None else whole, name)
    if not is_values:
        if settings.best_of_k != 1:
            raise ValueError(
                f"`best_of_k={settings.best_of_k}` was set, but the process reward '{name}' returns advantages. The "
                "transform 1 - (1 - Q)^K needs values. Return values from the process reward, or set `best_of_k=1`."
            )
        if settings.calibration_steps:
            raise ValueError(
                f"`calibration_steps={settings.calibration_steps}` was set, but the process reward '{name}' returns "
                "advantages, which are no probabilities that outcomes could be compared with. Return values from the "
                "process reward, or set `calibration_steps=0`."
            )
    elif not has_initial_values(process_reward):
        if settings.initial_value is None:
            raise ValueError(
                f"The process reward '{name}' returns values and says nothing about the prompt's own value. The "
                "progress of the first step, its value minus the prompt's, cannot be computed. Give the process "
                "reward a method `initial_values(prompts, **columns) -> list[float]`, or set `initial_value` in the "
                "config to a constant such as the prover's average accuracy, or, if it returns differences already, "
                "set `process_reward_type='advantages'`."
            )
    elif settings.initial_value is not None:
        logger.warning(
            "`initial_value=%s` was set, but the process reward '%s' values prompts itself. Its own values are used "
            "and the setting is not. Leave it out; to use the constant, pass a function that only returns the values "
            "of steps.",
            settings.initial_value,
            name,
        )


def has_initial_values(process_reward: ProcessReward) -> bool:
    """Whether a process reward values prompts itself."""
    return any(hasattr(process_reward, method) for method in ("initial_values", "score_solutions"))


def warn_of_other_splitter(process_reward: ProcessReward, step_splitter: StepSplitter) -> None:
    """Warn about a verifier that learned the ends of other steps than those it will be asked about.

    Args:
        process_reward (`ProcessReward`):
            The scorer; one that stores no splitter is fine.
        step_splitter ([`StepSplitter`]):
            What cuts completions into steps.
    """
    settings = getattr(process_reward, "settings", None)
    stored = getattr(settings, "step_splitter", None)
    if not isinstance(stored, str):
        return
    try:
        same = get_splitter(stored, step_length=getattr(settings, "step_length", 256)) == step_splitter
    except ValueError:  # a name of the user's own
        same = False
    if not same:
        logger.warning(
            "The verifier '%s' was trained on steps cut by '%s', but completions are cut by %r. It never learned what "
            "a prefix is worth that ends anywhere else, so its values may mislead. Set `step_splitter=%r` here, or, "
            "if its data were cut as they are here, store that in `verifier.settings` and save it again.",
            callable_name(process_reward),
            stored,
            step_splitter,
            stored,
        )


def describe_range(name: str, scores: torch.Tensor, initial_values: torch.Tensor | None) -> str | None:
    """Say that values are no probabilities, if they are not.

    Args:
        name (`str`):
            Name of the process reward.
        scores (`torch.Tensor`):
            Scores of shape (B, S), NaN where there is none.
        initial_values (`torch.Tensor`, *optional*):
            Values of the prompts of shape (B,); `None` where the scores are advantages, of which nothing is said.

    Returns:
        `str`, *optional*: The message; `None` if all values lie in [0, 1].
    """
    if initial_values is None:
        return None
    values = torch.cat([scores.flatten(), initial_values])
    values = values[~values.isnan()]
    if not len(values) or (values.min() >= 0 and values.max() <= 1):
        return None
    return (
        f"The process reward '{name}' returns values between {values.min():.4g} and {values.max():.4g}, which are no "
        "probabilities of success. Their differences are still taken as progress, but `alpha` has another meaning, "
        "and a prompt's value on another scale than the steps' makes the first step of every completion count most. "
        "Return probabilities (a sigmoid of a logit), or, if these are differences already, set "
        "`process_reward_type='advantages'`."
    )
