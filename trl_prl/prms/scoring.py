"""Scoring whole solutions with any process reward, for files, evaluations and the scoring service."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from trl_prl.rewards.checks import scoring_function, takes
from trl_prl.rewards.scoring import score_values
from trl_prl.steps.plain_text import split_text
from trl_prl.steps.split import get_splitter
from trl_prl.steps.token_pieces import TokenPieces


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
    # Who scores prompts and steps at once gives values, whatever it returns when it is called.
    kind = "values" if hasattr(process_reward, "score_solutions") else None
    asks = finished is not None and takes(scoring_function(process_reward, kind), "finished")
    columns = {"finished": list(finished or ())} if asks else {}
    scores, initial = score_values(process_reward, prompts, steps, columns, process_reward_type=kind)
    if initial is None:
        scores, initial = scores.cumsum(1), torch.zeros(len(prompts))
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
    settings = getattr(process_reward, "settings", None)
    name = name or getattr(settings, "step_splitter", None) or "newline"
    splitter = get_splitter(name, step_length=getattr(settings, "step_length", 256))
    tokenizer = getattr(process_reward, "tokenizer", None) if name == "fixed" else None
    token_pieces = tokenizer and TokenPieces(tokenizer)
    return lambda text: split_text(splitter, text, tokenizer, token_pieces)
