"""What can be said about a process reward before it is used: whether it can be called, and whether settings fit."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch

from trl_prl.prompts.chat import is_messages
from trl_prl.prompts.format import PromptFormat
from trl_prl.steps.split import get_splitter
from trl_prl.types import ProcessReward, StepSplitter

from .scoring import callable_name, returned_type


logger = logging.getLogger(__name__)

# What a trainer always passes, besides the columns of the data set.
PASSED = ("prompts", "steps", "trainer_state", "log_metric", "log_extra")
# Names of TRL's reward functions and slips that are never passed.
NEVER_PASSED = ("prompt", "completion", "completion_ids", "step")


def signature_of(function: Callable[..., Any]) -> inspect.Signature | None:
    """Signature of a function; `None` for builtins and compiled functions that have none."""
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a function can be called with an argument of some name."""
    signature = signature_of(function)
    parameters = () if signature is None else signature.parameters.values()
    return any(p.name == name or p.kind is p.VAR_KEYWORD for p in parameters)


def asks_for(function: Callable[..., Any], name: str) -> bool:
    """Whether a function names an argument that only those are given who name it; to take any is not to ask for it."""
    signature = signature_of(function)
    return signature is not None and name in signature.parameters


def scoring_function(process_reward: ProcessReward, process_reward_type: str | None = None) -> Callable[..., Any]:
    """What scores solutions: the method for values of prompts and steps at once, if any, or the process reward."""
    if returned_type(process_reward, process_reward_type) == "advantages":
        return process_reward
    return getattr(process_reward, "score_solutions", process_reward)


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
    signature = signature_of(function)
    if signature is None:
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


def check_process_reward(
    process_reward: ProcessReward,
    *,
    process_reward_type: str | None = None,
    best_of_k: int = 1,
    initial_value: float | None = None,
    calibration_steps: int = 0,
    credit: str = "progress",
) -> None:
    """Refuse a process reward that cannot be called, or from which no progress can be computed with these settings.

    Args:
        process_reward (`ProcessReward`):
            The scorer.
        process_reward_type (`str`, *optional*):
            `"values"` or `"advantages"`; what the process reward says of itself by default.
        best_of_k (`int`, *optional*, defaults to `1`):
            Best-of-K transform of the values.
        initial_value (`float`, *optional*):
            Value of every prompt.
        calibration_steps (`int`, *optional*, defaults to `0`):
            Optimizer steps between two looks at the calibration of the values.
        credit (`str`, *optional*, defaults to `"progress"`):
            What a step earns; all but its progress takes scores as they are.

    Raises:
        `TypeError`: if its signature does not fit.
        `ValueError`: if values come without a value of the prompt, or advantages meet a setting that needs values.
    """
    name, says = callable_name(process_reward), getattr(process_reward, "returns", None)
    is_values = returned_type(process_reward, process_reward_type) != "advantages"
    if credit == "progress" and None not in (says, process_reward_type) and says != process_reward_type:
        _warn_of_other_type(name, str(says), str(process_reward_type))
    check_signature(scoring_function(process_reward, process_reward_type), name)
    if not is_values:
        if initial_value is not None:
            _warn_of_initial_value(name, initial_value, values_prompts=False)
        if best_of_k != 1:
            raise ValueError(
                f"`best_of_k={best_of_k}` was set, but the process reward '{name}' returns advantages. The "
                "transform 1 - (1 - Q)^K needs values. Return values from the process reward, or set `best_of_k=1`."
            )
        if calibration_steps:
            raise ValueError(
                f"`calibration_steps={calibration_steps}` was set, but the process reward '{name}' returns "
                "advantages, which are no probabilities that outcomes could be compared with. Return values from the "
                "process reward, or set `calibration_steps=0`."
            )
    elif not has_initial_values(process_reward):
        if initial_value is None:
            raise ValueError(
                f"The process reward '{name}' returns values and says nothing about the prompt's own value. The "
                "progress of the first step, its value minus the prompt's, cannot be computed. Give the process "
                "reward a method `initial_values(prompts, **columns) -> list[float]`, or set `initial_value` in the "
                "config to a constant such as the prover's average accuracy, or, if it returns differences already, "
                "set `process_reward_type='advantages'`."
            )
    elif initial_value is not None:
        _warn_of_initial_value(name, initial_value, values_prompts=True)


def _warn_of_other_type(name: str, says: str, process_reward_type: str) -> None:
    logger.warning(
        "`process_reward_type=%r` was set, but the process reward '%s' says that it returns %s. The setting decides. "
        "Leave it out, unless that is meant.",
        process_reward_type,
        name,
        says,
    )


def _warn_of_initial_value(name: str, initial_value: float, values_prompts: bool) -> None:
    if values_prompts:
        reason = "values prompts itself. Its own values are used and the setting is not. Leave it out; to use the "
        reason += "constant, pass a function that only returns the values of steps."
    else:
        reason = (
            "gives scores that are taken as they are, without a value of the prompt, so it is not used. Leave it out."
        )
    logger.warning("`initial_value=%s` was set, but the process reward '%s' %s", initial_value, name, reason)


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
        wanted = f"step_splitter={stored!r}"
        if stored == "fixed":
            wanted += f", step_length={getattr(settings, 'step_length', 256)}"
        logger.warning(
            "The verifier '%s' was trained on steps cut by `%s`, but completions are cut by %r. It never learned what "
            "a prefix is worth that ends anywhere else, so its values may mislead. Set `%s` (commands: --splitter), "
            "or, if it is yours and its data were cut as here, store that in `verifier.settings` and save it again.",
            callable_name(process_reward),
            wanted,
            step_splitter,
            wanted,
        )


def warn_of_other_prompts(process_reward: ProcessReward, prompt: Any, used: PromptFormat | None = None) -> None:
    """Warn about a verifier that learned on prompts made in another way than those it will be asked about.

    Args:
        process_reward (`ProcessReward`):
            The scorer; one that stores nothing about its prompts is fine.
        prompt (`str` or `list[dict]`):
            A prompt as the scorer will be given it.
        used ([`PromptFormat`], *optional*):
            Options that made it, as far as they are known.
    """
    settings = getattr(process_reward, "settings", None)
    stored, prompt_type = getattr(settings, "prompts", None), getattr(settings, "prompt_type", None)
    if not isinstance(stored, PromptFormat):
        return
    found = "messages" if is_messages(prompt) else "text"
    differences = [] if prompt_type in (None, found) else [f"they were {prompt_type}, and are {found} here"]
    missing = stored.missing_in(prompt)
    for name in ("prompt_template", "system_prompt"):
        then, now = getattr(stored, name), getattr(used, name, None)
        if name in missing or (then is None and now is not None):
            differences.append(f"`{name}` was {then!r}, and is {now!r} here")
    then, now = stored.chat_template_kwargs, getattr(used, "chat_template_kwargs", stored.chat_template_kwargs)
    if then != now and found == "messages":
        differences.append(f"`chat_template_kwargs` was {then!r}, and is {now!r} here")
    if differences:
        logger.warning(
            "The verifier '%s' was trained on prompts made otherwise: %s. Its values may mislead; give the same "
            "options here as there.",
            callable_name(process_reward),
            "; ".join(differences),
        )


def collected_best_of_k(settings: Any) -> int:
    """K of the prover whose values the labels are that a verifier with these settings was trained on."""
    return int((getattr(settings, "collected", None) or {}).get("best_of_k", 1))


def warn_of_second_best_of_k(process_reward: ProcessReward, best_of_k: int) -> None:
    """Warn about a Best-of-K transform of values that are those of a Best-of-K prover already.

    Args:
        process_reward (`ProcessReward`):
            The scorer.
        best_of_k (`int`):
            K of the transform that will be applied.
    """
    settings = getattr(process_reward, "settings", None)
    # By its own transform, or by that of its data.
    stored = max(getattr(settings, "best_of_k", 1), collected_best_of_k(settings))
    if best_of_k != 1 and stored != 1:
        logger.warning(
            "The values of the verifier '%s' are those of the best of %d samples already, and `best_of_k=%d` makes "
            "them those of the best of %d. Leave `best_of_k` at 1 here, unless that is meant.",
            callable_name(process_reward),
            stored,
            best_of_k,
            stored * best_of_k,
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
