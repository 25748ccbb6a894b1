"""Process rewards that learn while the policy learns: when they are told what, the optimizer steps that all processes
take together, and their state in checkpoints.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import broadcast, gather_object
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from trl_prl.rewards.scoring import callable_name, check_number, wait_for
from trl_prl.storage.files import replace_file
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


class JointTraining:
    """Optimizer steps (AdamW, no weight decay) of all processes on a model that each of them holds whole.

    Args:
        model (`torch.nn.Module`):
            Its parameters that require a gradient are trained.
        learning_rate (`float`):
            Learning rate.

    Raises:
        `ValueError`: If there is no parameter to train, one would be trained in half precision, or DeepSpeed ZeRO-3
            has partitioned the model.
    """

    def __init__(self, model: torch.nn.Module, learning_rate: float) -> None:
        if any(hasattr(one, "ds_id") for one in model.parameters()):
            raise ValueError(
                "DeepSpeed ZeRO-3 has partitioned a process reward that learns, which then could only score. Make its "
                "model before the training arguments, so that every process holds it whole."
            )
        self.parameters = {name: one for name, one in model.named_parameters() if one.requires_grad}
        if not self.parameters:
            raise ValueError(
                "The model of the process reward has no parameter that requires a gradient, so it cannot learn. Load "
                "its adapter with `is_trainable=True`, or use the process reward frozen."
            )
        half = next((name for name, one in self.parameters.items() if one.dtype.itemsize < 4), None)
        if half is not None:
            raise ValueError(
                f"The parameter '{half}' would be trained in {self.parameters[half].dtype}, in which small steps are "
                "rounded away. Load the model with `dtype='float32'`, or train an adapter (`lora_rank=16`)."
            )
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=learning_rate, weight_decay=0.0)
        self._accelerator: Any = None

    @property
    def device(self) -> torch.device:
        """Device of the trained parameters."""
        return next(iter(self.parameters.values())).device

    def prepare(self, accelerator: Any) -> None:
        """Give all processes the weights of the first."""
        self._accelerator = accelerator
        for parameter in self.parameters.values():
            parameter.data.copy_(broadcast(parameter.data))

    def gather(self, entries: list[Any]) -> list[Any]:
        """The entries of all processes, in their order."""
        return list(gather_object(entries)) if self._accelerator else entries

    def share(self, entries: Sequence[Any]) -> list[Any]:
        """The part of what all processes hold that this one works on."""
        accelerator = self._accelerator
        return list(entries[accelerator.process_index :: accelerator.num_processes] if accelerator else entries)

    def step(self, losses: Iterable[torch.Tensor]) -> float:
        """Take one optimizer step; all processes call it together.

        Args:
            losses (`Iterable[torch.Tensor]`):
                Scalars whose sum, over them and over all processes, is the loss; drawn one by one, each after the
                backward of the last. A process may have none.

        Returns:
            `float`: Norm of the gradient.
        """
        self.optimizer.zero_grad(set_to_none=False)
        with torch.enable_grad(), torch.autocast(self.device.type, enabled=False):
            for loss in losses:
                loss.backward()  # type: ignore[no-untyped-call]
        gradients = []
        for parameter in self.parameters.values():
            # A process without a loss has no gradient, and all take the same step.
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = self._accelerator.reduce(gradient, reduction="sum") if self._accelerator else gradient
            gradients.append(parameter.grad)
        grad_norm = torch.nn.utils.get_total_norm(gradients).item()
        self.optimizer.step()
        return grad_norm

    def state_dict(self) -> dict[str, Any]:
        """Trained parameters, and the state of the optimizer, on the CPU."""
        parameters = {name: one.detach().cpu() for name, one in self.parameters.items()}
        return {"parameters": parameters, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned.

        Raises:
            `ValueError`: If it has other parameters.
        """
        found = {name: tuple(one.shape) for name, one in state["parameters"].items()}
        expected = {name: tuple(one.shape) for name, one in self.parameters.items()}
        if found != expected:
            other = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
            raise ValueError(
                f"The state has other trained parameters than this process reward, '{other[0]}' for instance: shape "
                f"{found.get(other[0])} there, {expected.get(other[0])} here. Make it of the same model and with the "
                "same `lora_rank` as in the training that is resumed."
            )
        with torch.no_grad():
            for name, value in state["parameters"].items():
                self.parameters[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])


def known_outcomes(outcomes: Sequence[float | None]) -> list[tuple[int, float]]:
    """Rows that have an outcome, and their outcomes.

    Raises:
        `ValueError`: If an outcome is outside [0, 1].
    """
    known = [(i, float(one)) for i, one in enumerate(outcomes) if one is not None and not math.isnan(one)]
    if outside := [outcome for _, outcome in known if not 0 <= outcome <= 1]:
        raise ValueError(
            f"Got the outcome {outside[0]}, but cross-entropy needs probabilities of a right answer. Put a reward "
            "function in [0, 1], such as 0 for wrong and 1 for right, first among `reward_funcs`."
        )
    return known


class ProcessRewardState:
    """Saves what a process reward has learned in each checkpoint of the trainer, and puts it back.

    Args:
        process_reward (`ProcessReward`):
            One that learns has methods `state_dict()` and `load_state_dict(state)`. The state is made of tensors,
            numbers, texts, and lists and dictionaries of them: it is read back without unpickling anything else.
            There is nothing to save of one that does not learn.

    Raises:
        `TypeError`: if one that learns lacks one of the two methods.
    """

    def __init__(self, process_reward: Any) -> None:
        lacking = [name for name in ("state_dict", "load_state_dict") if not hasattr(process_reward, name)]
        self.learns = learns(process_reward)
        if self.learns and lacking:
            raise TypeError(
                f"The process reward '{callable_name(process_reward)}' has a method `update` but no `{lacking[0]}`, "
                "so what it learns would be missing from checkpoints and a resumed training would be another one. Add "
                "`state_dict()` and `load_state_dict(state)`; without a state of its own it returns and takes `{}`."
            )
        self.process_reward = process_reward

    def save(self, folder: str | Path | None, should_save: bool) -> None:
        """Save the state, if the folder is a checkpoint. All processes call it, before the checkpoint is complete.

        Args:
            folder (`str` or `Path`, *optional*):
                Where a model has been saved.
            should_save (`bool`):
                Whether this process writes.
        """
        if not self.learns or folder is None or not Path(folder).name.startswith(PREFIX_CHECKPOINT_DIR):
            return
        # On all processes, because a state that they share has to be gathered.
        learned = {"class": type(self.process_reward).__name__, "state": self.process_reward.state_dict()}
        if should_save:
            with replace_file(Path(folder) / STATE_FILE) as file:
                torch.save(learned, file)

    def restore(self, checkpoint: str | bool | None, output_dir: str | Path) -> None:
        """Put the process reward into the state of a checkpoint.

        Args:
            checkpoint (`str` or `bool`, *optional*):
                As for `Trainer.train`: a folder, `True` for the last one in `output_dir`, or none.
            output_dir (`str` or `Path`):
                Folder of the run.

        Raises:
            `ValueError`: if the checkpoint has no state of this process reward, or one and it does not learn.
        """
        folder = get_last_checkpoint(str(output_dir)) if checkpoint is True else checkpoint
        if not folder or not Path(folder).is_dir():  # the trainer says so itself
            return
        path, name = Path(folder) / STATE_FILE, type(self.process_reward).__name__
        advice = "Use the process reward of that run, or start a new training with the checkpoint as its `model`."
        if path.is_file() != self.learns:
            has, does = ("no", "learns") if self.learns else ("a", "does not learn")
            raise ValueError(
                f"The checkpoint '{folder}' has {has} '{STATE_FILE}', and '{name}' {does}: it comes from a run with "
                f"another process reward, and the training cannot go on from it as it was. {advice}"
            )
        if not self.learns:
            return
        if not zipfile.is_zipfile(path):
            raise ValueError(
                f"'{path}' is damaged, so what the process reward had learned cannot be read. Resume from another "
                "checkpoint, or start a new training with this one as its `model`."
            )
        found = torch.load(path, map_location="cpu", weights_only=True)
        if found["class"] != name:
            raise ValueError(
                f"'{path}' has the state of another process reward, {found['class']!r}, not {name!r}. {advice}"
            )
        self.process_reward.load_state_dict(found["state"])
