"""Configuration of [`PAVRewardTrainer`]."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from trl import RewardConfig

from trl_prl.jobs.config import refuse_unheeded
from trl_prl.prompts.format import PromptFormat
from trl_prl.steps.splitters import SPLITTER_HELP

from .settings import VerifierSettings


PromptReading = Literal["as_given", "text", "chat"]


@dataclass
class PAVRewardConfig(RewardConfig):
    r"""
    Configuration class for the [`PAVRewardTrainer`].

    All fields of [`~trl.RewardConfig`] keep their meaning. Defaults that differ follow the paper
    ([PAV](https://huggingface.co/papers/2410.08146), App. D): `learning_rate` 5e-7, `lr_scheduler_type` "cosine",
    `warmup_steps` 0.1 (a share). The paper trains a 9B model for 20,000 optimizer steps with batches of 32; a small
    model or an adapter needs a larger learning rate. `remove_unused_columns` must stay `False`.

    Args:
        step_splitter (`str`, *optional*, defaults to `"newline"`):
            Splitter that cut the solutions of the data set, see [`get_splitter`]. It is stored with the verifier; the
            steps of the data set are taken as they are.
        step_length (`int`, *optional*, defaults to `256`):
            Tokens per step of the `"fixed"` splitter.
        step_separator (`str`, *optional*, defaults to `""`):
            Text put at the end of every step but the last, for data whose steps lack it.
        prompt_column (`str`, *optional*, defaults to `"prompt"`), prompt_template (`str`, *optional*), \
        system_prompt (`str`, *optional*), as_user_message (`bool`, *optional*, defaults to `False`), \
        chat_template_kwargs (`dict` or `str`, *optional*):
            How rows become prompts, see [`PromptFormat`]. Prompts that `trl-prl collect` has stored are complete.
        prompt_format (`str`, *optional*, defaults to `"as_given"`):
            How the verifier reads a prompt: `"as_given"` (messages through the chat template, text as it stands),
            `"text"` or `"chat"`, see [`VerifierSettings`].
        prompt_suffix (`str`, *optional*, defaults to `""`):
            Text between prompt and solution.
        read_end (`bool`, *optional*, defaults to `True`):
            Whether the last step of a finished solution is read with the token that ends it. A row is unfinished if
            its `finished` is false, its `finish_reason` is `"length"`, or it has a `rest`.
        prover (`str`, *optional*):
            Whose probability of success the labels are; stored with the verifier.
        best_of_k (`int`, *optional*, defaults to `1`):
            Values of the verifier are those of the best of K samples of the prover (eq. 30). Training is not affected.
        balance_classes (`bool`, *optional*, defaults to `True`):
            Whether labels below 0.5 and labels from 0.5 on count equally in total (App. D). Labels are weighted by the
            inverse frequency of their class, which has the same expected gradient as sampling them in equal shares
            and drops none.
        cut_at_first_error (`bool`, *optional*, defaults to `False`):
            Whether solutions end, in training and evaluation, after the first step with a label of 0.
        error_threshold (`float`, *optional*, defaults to `0.5`):
            Values below it predict an error, in the metric of first-error detection.
        collected (`dict`, *optional*):
            How the rows were collected, as [`follow_collection`] finds it; stored with the verifier.
    """

    # Parameters whose default values are overridden from RewardConfig
    learning_rate: float = field(default=5e-7, metadata={"help": "The initial learning rate for AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "The scheduler type to use."})
    warmup_steps: float = field(
        default=0.1, metadata={"help": "Optimizer steps of warm-up; below 1 a share of the training run."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay False: step positions and labels are no arguments of the model."}
    )

    step_splitter: str = field(
        default="newline",
        metadata={"help": f"Splitter that cut the solutions, stored with the verifier: {SPLITTER_HELP}."},
    )
    step_length: int = field(default=256, metadata={"help": "Tokens per step of the 'fixed' splitter."})
    step_separator: str = field(
        default="", metadata={"help": "Text put at the end of every step but the last, where it is missing."}
    )
    prompt_column: str = field(default="prompt", metadata={"help": "Column of the prompts, text or messages."})
    prompt_template: str | None = field(
        default=None, metadata={"help": "Python format string with {prompt}, put around every prompt."}
    )
    system_prompt: str | None = field(
        default=None, metadata={"help": "Message of the system, before messages that have none."}
    )
    as_user_message: bool = field(
        default=False, metadata={"help": "Plain-text prompts become one message of the user, for chat models."}
    )
    chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Arguments of the chat template as JSON, such as '{\"enable_thinking\": false}'."},
    )
    prompt_format: PromptReading = field(
        default="as_given",
        metadata={"help": "'as_given' (messages through the chat template, text as it stands), 'text' or 'chat'."},
    )
    prompt_suffix: str = field(default="", metadata={"help": "Text between prompt and solution."})
    read_end: bool = field(
        default=True, metadata={"help": "Whether the token that ends a finished solution is read with its last step."}
    )
    prover: str | None = field(
        default=None, metadata={"help": "Whose probability of success the labels are, stored with the verifier."}
    )
    best_of_k: int = field(default=1, metadata={"help": "Best-of-K transform of the trained verifier's values."})
    balance_classes: bool = field(
        default=True, metadata={"help": "Whether labels below 0.5 and from 0.5 on have equal weight in total."}
    )
    cut_at_first_error: bool = field(
        default=False, metadata={"help": "Whether solutions end after the first step with a label of 0."}
    )
    error_threshold: float = field(
        default=0.5, metadata={"help": "Values below it predict an error, in first-error detection."}
    )
    collected: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "How the rows were collected; examples/train_verifier.py finds it in them."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.remove_unused_columns:
            raise ValueError(
                "`remove_unused_columns` is True, but positions and labels of the steps are no arguments of the "
                "model and would be removed. Leave it at False."
            )
        if self.center_rewards_coefficient is not None:
            raise ValueError(
                f"`center_rewards_coefficient` is {self.center_rewards_coefficient}, which centres the scores of "
                "pairs, but a verifier learns probabilities from single solutions. Leave it at None."
            )
        refuse_unheeded(self, ["step_length"], "step_splitter", unless=self.step_splitter == "fixed")
        self.verifier_settings()

    def prompts(self) -> PromptFormat:
        """How rows become prompts.

        Returns:
            [`PromptFormat`]: The options.

        Raises:
            `ValueError`: If one cannot be.
        """
        return PromptFormat.from_dict(vars(self))

    def verifier_settings(self) -> VerifierSettings:
        """Settings that are stored with the verifier.

        Returns:
            [`VerifierSettings`]: The settings.

        Raises:
            `ValueError`: If one is out of its range, or the labels have got the Best-of-K transform already.
        """
        own = {name: value for name, value in self.prompts().to_dict().items() if value}
        collected = json.loads(self.collected) if isinstance(self.collected, str) else self.collected
        labels_of = (collected or {}).get("best_of_k", 1)
        if self.best_of_k > 1 and labels_of > 1:
            raise ValueError(
                f"`best_of_k` is {self.best_of_k}, but the labels were collected with best_of_k={labels_of}, so they "
                f"are values of the best of {labels_of} already, and every score would be transformed a second time. "
                "Leave `best_of_k` at 1."
            )
        # What collection has put around prompts stays there.
        prompts = PromptFormat.from_dict({**(collected or {}), **own})
        return VerifierSettings.from_dict({**vars(self), "prompts": prompts, "collected": collected})


def as_pav_reward_config(args: RewardConfig | None, model: Any) -> PAVRewardConfig:
    """Make the configuration that a verifier's trainer needs out of what the user gave.

    Args:
        args ([`~trl.RewardConfig`], *optional*):
            What the user passed; a plain one, of a script that only swaps the trainer class, is kept field by field.
        model (`str` or `PreTrainedModel`):
            The model, after which the output folder is named if `args` is `None`.

    Returns:
        [`PAVRewardConfig`]: A configuration; `args` itself if it already is one.
    """
    if isinstance(args, PAVRewardConfig):
        return args
    if args is None:
        name = model if isinstance(model, str) else model.config._name_or_path
        return PAVRewardConfig(f"{Path(name).name}-PAV-verifier")
    # Building it again would check and derive again what has been derived.
    promoted: Any = copy.copy(args)
    promoted.__class__ = PAVRewardConfig
    for entry in {entry.name: entry for entry in fields(PAVRewardConfig)}.values():
        if entry.name not in vars(args):
            setattr(promoted, entry.name, entry.default)
    promoted.remove_unused_columns = False
    return promoted
