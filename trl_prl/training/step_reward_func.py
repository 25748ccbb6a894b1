"""Process rewards folded into one number per completion: a reward function for any TRL trainer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.state import GradientState, is_initialized
from accelerate.utils import GradientAccumulationPlugin

from trl_prl.metrics.aggregation import aggregate_step_values
from trl_prl.prms.load import load_process_reward
from trl_prl.prms.online import learns
from trl_prl.prompts.chat import end_token_ids
from trl_prl.rewards.checks import check_signature, takes, warn_of_other_prompts, warn_of_other_splitter
from trl_prl.rewards.scoring import callable_name, prepare_process_reward, score_steps
from trl_prl.rewards.transcript import add_transcript, message_transcript
from trl_prl.steps.plain_text import split_text
from trl_prl.steps.split import get_splitter
from trl_prl.steps.splitters import FixedLengthSplitter
from trl_prl.steps.token_pieces import TokenPieces
from trl_prl.types import ProcessReward, StepSplitter


AGGREGATIONS = ("mean", "min", "last", "sum", "product")


def aggregate_step_rewards(step_rewards: Sequence[float], aggregation: str) -> float | None:
    """Fold the rewards of one completion's steps into one number.

    Args:
        step_rewards (`Sequence[float]`):
            Rewards of the steps, without padding; NaN marks an unscorable step and is left out.
        aggregation (`str`):
            `"mean"`, `"min"`, `"last"`, `"sum"` or `"product"`.

    Returns:
        `float`, *optional*: The number, or `None` if there is nothing to fold or, for `"last"`, the last step could
        not be scored.
    """
    scored = [reward for reward in step_rewards if not math.isnan(reward)]
    if not scored or (aggregation == "last" and math.isnan(step_rewards[-1])):
        return None
    if aggregation == "sum":
        return math.fsum(scored)
    return aggregate_step_values(scored, aggregation)  # type: ignore[arg-type]


class StepRewardFunc:
    r"""
    A TRL reward function that scores the steps of a completion and folds the scores into one number.

    All tokens of a completion share that number, so this is outcome-level credit: it works with every TRL trainer
    that takes reward functions, RLOO included. For credit per step use [`PAVTrainer`] or [`ProcessRewardCallback`].

    Args:
        process_reward ([`ProcessReward`] or `str`):
            What scores the steps, as for [`PAVTrainer`].
        step_splitter ([`StepSplitter`] or `str`, *optional*, defaults to `"newline"`):
            Where steps end. It reads the completion's text, assistant messages only.
        aggregation (`str`, *optional*, defaults to `"mean"`):
            How scores are folded: `"mean"`, `"min"`, `"last"`, `"sum"` or `"product"`. Sums of positive scores reward
            more steps, not better ones.
        processing_class (`PreTrainedTokenizerBase`, *optional*):
            Tokenizer of the policy. A splitter that counts tokens needs it, and so does a process reward that is to be
            told which completions were cut off.
        eos_token_ids (`Sequence[int]`, *optional*):
            Tokens that end a completion, as of the trainer; by default the tokenizer's end of a text and of a turn.

    A verifier moves to the process's device at the first call in a training.

    Raises:
        `TypeError`: if the signature of `process_reward` does not fit.
        `ValueError`: if `aggregation` is none of these, the splitter counts tokens and there is no tokenizer, or the
        process reward learns, for which a reward function has no outcomes.

    Example:

    ```python
    GRPOTrainer(..., reward_funcs=[accuracy_reward, StepRewardFunc(my_step_values, aggregation="min")])
    ```
    """

    def __init__(
        self,
        process_reward: ProcessReward | str,
        step_splitter: StepSplitter | str = "newline",
        aggregation: str = "mean",
        processing_class: Any = None,
        eos_token_ids: Sequence[int] | None = None,
    ) -> None:
        if aggregation not in AGGREGATIONS:
            raise ValueError(
                f"`aggregation` was set to {aggregation!r}, which is no way of folding scores that is known here. Set "
                f"it to one of: {', '.join(AGGREGATIONS)}."
            )
        self.process_reward = load_process_reward(process_reward)
        check_signature(self.process_reward, callable_name(self.process_reward))
        if learns(self.process_reward):
            raise ValueError(
                f"The process reward '{callable_name(self.process_reward)}' learns from rollouts, but a reward "
                "function is never told outcomes, so it would not be updated. Use it in PAVTrainer, or in "
                "ProcessRewardCallback with `level='step'`; or use a process reward that does not learn."
            )
        self.step_splitter = get_splitter(step_splitter)
        if isinstance(self.step_splitter, FixedLengthSplitter) and processing_class is None:
            raise ValueError(
                f"The step splitter is {self.step_splitter!r}, which counts tokens, but a reward function gets text. "
                "Pass the policy's tokenizer as `processing_class`, or use a splitter that reads the text."
            )
        warn_of_other_splitter(self.process_reward, self.step_splitter)
        self._is_prepared = self._prompts_compared = False
        self.aggregation = aggregation
        self.tokenizer = getattr(processing_class, "tokenizer", processing_class)
        self._token_pieces = None if processing_class is None else TokenPieces(self.tokenizer)
        self._ends = {*(_end_token_ids(self.tokenizer) if eos_token_ids is None else eos_token_ids)}
        # TRL names the metric of a reward function after it.
        self.__name__ = f"{callable_name(self.process_reward)}_{aggregation}"

    def __call__(
        self, prompts: list[Any], completions: list[Any], completion_ids: Any = None, **columns: Any
    ) -> list[float | None]:
        """Score completions, in TRL's reward-function convention.

        Args:
            prompts (`list`):
                Prompts, text or messages.
            completions (`list`):
                Completions, text or messages.
            completion_ids (`list[list[int]]`, *optional*):
                Their tokens, of which only the last is read: these ids do not tell tool output from the policy's own.
            **columns:
                Passed through to the process reward.

        Returns:
            `list[float | None]`: One number per completion; `None` for a completion that cannot be scored.
        """
        if not self._is_prepared and is_initialized():
            # TRL hands no accelerator to reward functions. While a trainer exists, a new one shares its state; before,
            # it would decide for the trainer.
            plugin = GradientAccumulationPlugin(**GradientState().plugin_kwargs)
            prepare_process_reward(self.process_reward, Accelerator(gradient_accumulation_plugin=plugin))
            self._is_prepared = True
        if prompts and not self._prompts_compared:
            warn_of_other_prompts(self.process_reward, prompts[0])
            self._prompts_compared = True
        if completion_ids is not None and self._ends and takes(self.process_reward, "finished"):
            columns["finished"] = [bool(ids) and ids[-1] in self._ends for ids in completion_ids]
        transcripts = [message_transcript(completion, self._split_text) for completion in completions]
        add_transcript(self.process_reward, columns, lambda: transcripts)
        steps = [[segment.text for segment in row if segment.step is not None] for row in transcripts]
        scores = score_steps(self.process_reward, prompts, steps, **columns)
        return [
            aggregate_step_rewards(row[: len(row_steps)].tolist(), self.aggregation)
            for row, row_steps in zip(scores, steps, strict=True)
        ]

    def _split_text(self, text: str) -> list[str]:
        return split_text(self.step_splitter, text, self.tokenizer, self._token_pieces)


def _end_token_ids(tokenizer: Any) -> list[int]:
    """Ends of a text and of a turn, as far as a tokenizer knows any."""
    if getattr(tokenizer, "eos_token_id", None) is None:
        return []
    of_turns = end_token_ids(tokenizer, is_chat=True) if getattr(tokenizer, "chat_template", None) else []
    return [tokenizer.eos_token_id, *of_turns]
