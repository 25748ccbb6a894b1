"""Scoring whole solutions with any process reward, for files, evaluations and the scoring service."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from trl_prl.rewards.scoring import check_initial_values, check_step_scores, score_values, takes, wait_for
from trl_prl.steps.plain_text import split_text
from trl_prl.steps.split import get_splitter
from trl_prl.verifier.loading import text_splitter


def score_prefixes(
    process_reward: Any,
    prompts: Sequence[Any],
    steps: Sequence[Sequence[str]],
    finished: Sequence[bool] | None = None,
) -> tuple[list[float], list[list[float]]]:
    """Values of prompts and steps by any process reward, for files and evaluations.

    Args:
        process_reward ([`ProcessReward`]):
            The scorer. Of one that only knows advantages, a value is their sum so far, and 0 for the prompt.
        prompts (`Sequence`):
            One prompt per solution.
        steps (`Sequence[Sequence[str]]`):
            Texts of the steps of each solution.
        finished (`Sequence[bool]`, *optional*):
            Whether each solution ends with its last step, for scorers that ask; all do by default.

    Returns:
        `tuple[list[float], list[list[float]]]`: The values of the prompts, and those of the steps, NaN where there is
        none.

    Raises:
        `ValueError`: If the scorer does not return one number per step.
    """
    name = getattr(process_reward, "__name__", type(process_reward).__name__)
    whole = getattr(process_reward, "score_solutions", None)
    asks = finished is not None and takes(process_reward if whole is None else whole, "finished")
    columns = {"finished": list(finished or ())} if asks else {}
    if whole is not None:
        found = wait_for(whole(prompts=list(prompts), steps=[list(row) for row in steps], **columns))
        initial, scores = check_initial_values(found[0], len(prompts), name), check_step_scores(found[1], steps, name)
    else:
        scores, starts = score_values(process_reward, prompts, steps, columns)
        initial = torch.zeros(len(prompts)) if starts is None else starts
        scores = scores.cumsum(1) if starts is None else scores
    return initial.tolist(), [row[: len(texts)].tolist() for row, texts in zip(scores, steps, strict=True)]


def splitter_for(process_reward: Any, name: str | None = None) -> Callable[[str], list[str]]:
    """A function that cuts plain text into the steps that a process reward scores.

    Args:
        process_reward ([`ProcessReward`]):
            The scorer.
        name (`str`, *optional*):
            Name of the splitter; by default the one that is stored with the scorer, or `"newline"`.

    Returns:
        `Callable[[str], list[str]]`: The steps of a text; joined, they are the text.

    Raises:
        `ValueError`: If there is no such splitter.
    """
    if hasattr(process_reward, "settings") and hasattr(process_reward, "tokenizer"):
        return text_splitter(process_reward, name)
    settings = getattr(process_reward, "settings", None)
    stored, step_length = getattr(settings, "step_splitter", None), getattr(settings, "step_length", 256)
    splitter = get_splitter(name or stored or "newline", step_length=step_length)
    return lambda text: split_text(splitter, text)
