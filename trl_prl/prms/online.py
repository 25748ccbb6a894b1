"""Process rewards that learn while the policy learns: their updates, and their state in checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from trl_prl.rewards.scoring import callable_name, check_number, wait_for
from trl_prl.types import ProcessReward


# Its name in a checkpoint's folder.
STATE_FILE = "process_reward.pt"


def learns(process_reward: Any) -> bool:
    """Whether a process reward has an `update`, and does not say by `is_trainable` that it has nothing to do."""
    return callable(getattr(process_reward, "update", None)) and getattr(process_reward, "is_trainable", True)


def update_process_reward(
    process_reward: ProcessReward,
    prompts: Sequence[Any],
    steps: Sequence[Sequence[str]],
    outcomes: Sequence[float],
    columns: Mapping[str, Any],
) -> dict[str, float]:
    """Let a process reward learn from a rollout. All processes call it, each with its own rows.

    Args:
        process_reward (`ProcessReward`):
            One that learns.
        prompts (`Sequence`):
            One prompt per completion.
        steps (`Sequence[Sequence[str]]`):
            Step texts of each completion.
        outcomes (`Sequence[float]`):
            Outcome of each completion, NaN where unscorable, which it is told as `None`.
        columns (`Mapping`):
            Passed through to the process reward.

    Returns:
        `dict[str, float]`: The numbers it returned, averaged over the processes that have them.

    Raises:
        `TypeError`: if it returns no dictionary.
        `ValueError`: if a number of it is none, or a column is called `outcomes`.
    """
    name = f"{callable_name(process_reward)}.update"
    if "outcomes" in columns:
        raise ValueError(
            f"The data set has a column 'outcomes'. '{name}' gets the outcome of each completion under that name, so "
            "it cannot get the column too. Rename it with `dataset.rename_column('outcomes', ...)`, or remove it."
        )
    arguments: dict[str, Any] = {"prompts": list(prompts), "steps": [list(row) for row in steps]}
    arguments["outcomes"] = [None if math.isnan(outcome) else outcome for outcome in outcomes]
    found = wait_for(process_reward.update(**arguments, **columns))  # type: ignore[attr-defined]
    if not isinstance(found, Mapping):
        raise TypeError(
            f"'{name}' returned {type(found).__name__}, of which nothing can be logged by name. Return a dictionary "
            "of names and numbers, `{}` for none."
        )
    rows = gather_object([{key: check_number(value, name, key) for key, value in found.items()}])
    means = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        if values := [row[key] for row in rows if not math.isnan(row.get(key, math.nan))]:
            means[key] = fmean(values)
    return means


class ProcessRewardState(TrainerCallback):
    """Callback that saves what a process reward has learned beside each checkpoint of the trainer.

    Args:
        process_reward (`ProcessReward`):
            One that learns, with methods `state_dict()` and `load_state_dict(state)`. The state is made of tensors,
            numbers, texts, and lists and dictionaries of them: it is read back without unpickling anything else.

    Raises:
        `TypeError`: if it lacks one of the two methods.
    """

    def __init__(self, process_reward: Any) -> None:
        lacking = [name for name in ("state_dict", "load_state_dict") if not hasattr(process_reward, name)]
        if lacking:
            raise TypeError(
                f"The process reward '{callable_name(process_reward)}' has a method `update` but no `{lacking[0]}`, "
                "so what it learns would be missing from checkpoints and a resumed training would be another one. Add "
                "`state_dict()` and `load_state_dict(state)`; without a state of its own it returns and takes `{}`."
            )
        self.process_reward = process_reward

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # On all processes, because a state that they share has to be gathered.
        learned = self.process_reward.state_dict()
        if args.should_save:
            folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            torch.save(learned, folder / STATE_FILE)

    def restore(self, checkpoint: str | bool | None, output_dir: str | Path) -> None:
        """Put the process reward into the state of a checkpoint.

        Args:
            checkpoint (`str` or `bool`, *optional*):
                As for `Trainer.train`: a folder, `True` for the last one in `output_dir`, or none.
            output_dir (`str` or `Path`):
                Folder of the run.

        Raises:
            `ValueError`: if the checkpoint has no state of a process reward.
        """
        if not checkpoint:
            return
        folder = get_last_checkpoint(str(output_dir)) if checkpoint is True else checkpoint
        if folder is None:  # the trainer says so itself
            return
        path = Path(folder) / STATE_FILE
        if not path.is_file():
            raise ValueError(
                f"The checkpoint '{folder}' has no '{STATE_FILE}', so it comes from a run without a process reward "
                "that learns, and the training cannot go on from it as it was. Start a new training with the "
                "checkpoint as its `model`, or use the process reward of that run."
            )
        self.process_reward.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
