"""Configuration of [`PAVRewardTrainer`]."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from trl import RewardConfig

from .stepwise_data import VerifierSettings


PromptFormat = Literal["text", "chat"]


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
        prompt_format (`str`, *optional*, defaults to `"text"`):
            `"text"` or `"chat"`, see [`VerifierSettings`].
        prompt_suffix (`str`, *optional*, defaults to `""`):
            Text between prompt and solution.
        prover (`str`, *optional*):
            Whose probability of success the labels are; stored with the verifier.
        best_of_k (`int`, *optional*, defaults to `1`):
            Values of the verifier are those of the best of K samples of the prover (eq. 30). Training is not affected.
        balance_classes (`bool`, *optional*, defaults to `True`):
            Whether labels below 0.5 and labels from 0.5 on count equally in total (App. D). Labels are weighted by the
            inverse frequency of their class, which has the same expected gradient as sampling them in equal shares
            and drops none.
        cut_at_first_error (`bool`, *optional*, defaults to `False`):
            Whether solutions end, in training, after the first step with a label of 0.
        error_threshold (`float`, *optional*, defaults to `0.5`):
            Values below it predict an error, in the metric of first-error detection.
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
        metadata={
            "help": "Splitter that cut the solutions, stored with the verifier: 'fixed', 'newline', 'blank_line', "
            "'sentence', 'markdown', 'delimiter:...' or 'regex:...'."
        },
    )
    step_length: int = field(default=256, metadata={"help": "Tokens per step of the 'fixed' splitter."})
    step_separator: str = field(
        default="", metadata={"help": "Text put at the end of every step but the last, where it is missing."}
    )
    prompt_format: PromptFormat = field(
        default="text",
        metadata={"help": "'text' for plain text, or 'chat' for the tokenizer's chat template."},
    )
    prompt_suffix: str = field(default="", metadata={"help": "Text between prompt and solution."})
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
        self.verifier_settings()

    def verifier_settings(self) -> VerifierSettings:
        """Settings that are stored with the verifier.

        Returns:
            [`VerifierSettings`]: The settings.

        Raises:
            `ValueError`: If one is out of its range.
        """
        return VerifierSettings(
            step_splitter=self.step_splitter,
            step_length=self.step_length,
            prompt_format=self.prompt_format,
            prompt_suffix=self.prompt_suffix,
            max_length=self.max_length,
            prover=self.prover,
            best_of_k=self.best_of_k,
        )
