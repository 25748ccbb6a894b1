"""A process reward by rollouts while a policy trains: the value of every prefix, measured by going on from it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, Literal

from torch.distributed.tensor import DTensor

from trl_prl.generation.local import TransformersGenerator
from trl_prl.generation.rollouts import Prefix, Problem, Roller, check_outcomes, ids_digest, measure
from trl_prl.generation.sampling import sampling_of_training
from trl_prl.generation.tallies import Spending, Tally, Unfinished
from trl_prl.generation.vllm_engine import VLLMGenerator, VLLMServerGenerator
from trl_prl.prompts.chat import prompt_token_ids
from trl_prl.steps.token_pieces import TokenPieces
from trl_prl.types import Generator, OutcomeReward, SamplingParams


# What a trainer passes that is no column of the data set.
_NO_COLUMNS = ("finished", "trainer_state", "log_metric", "log_extra", "environments")


class MonteCarloProcessReward:
    r"""
    Values every prefix of a solution by the share of right answers among rollouts from it.

    It is a [`ProcessReward`] that returns values. Without a generator the training's own draws the rollouts, and the
    values are those of the live policy, as in [VinePPO](https://huggingface.co/papers/2410.01679); with a generator
    those of another prover. The value behind the last step of a finished solution is its outcome, which costs no
    rollout. Equal prefixes of a prompt are measured once. Rollouts cannot call tools.

    Args:
        generator ([`Generator`] or `None`):
            Draws the rollouts. With `None` what the trainer samples with: its vLLM engine or server, which holds the
            policy as of the rollout; without vLLM the policy itself, in this process.
        outcome_reward ([`OutcomeReward`]):
            Says which rollouts are right. It is given the prompts, and the columns of the data set.
        n (`int`, *optional*, defaults to `9`):
            Rollouts per prefix, as in VinePPO. A value is off by `sqrt(Q * (1 - Q) / n)`, 0.17 at 0.5.
        sampling ([`SamplingParams`], *optional*):
            How to sample; `max_tokens` is the limit of a whole completion, so that of the training
            (`max_completion_length`). `n` is not read. By default as the trainer samples, where it draws the rollouts.
        reward_threshold (`float`, *optional*, defaults to `0.5`):
            Rewards above it are right.
        unfinished (`str`, *optional*, defaults to `"wrong"`):
            What rollouts are that reach the length limit, and solutions that were cut off there: `"wrong"`, or
            `"exclude"` for no value.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of the generator; by default its attribute `tokenizer`, or the trainer's.
        chat_template_kwargs (`dict`, *optional*):
            Arguments of the chat template, as in the training's; by default those, where the trainer draws the
            rollouts.

    Raises:
        `ValueError`: If `n` is not positive, or `unfinished` is neither of the two.

    Example:

    ```python
    values = MonteCarloProcessReward(None, accuracy_reward)
    args = PAVConfig(output_dir="out", max_completion_length=512, use_vllm=True, vllm_mode="colocate")
    PAVTrainer(model="Qwen/Qwen2.5-Math-1.5B", reward_funcs=accuracy_reward, process_reward=values, args=args, ...)
    ```
    """

    returns: Literal["values"] = "values"

    def __init__(
        self,
        generator: Generator | None,
        outcome_reward: OutcomeReward,
        n: int = 9,
        *,
        sampling: SamplingParams | None = None,
        reward_threshold: float = 0.5,
        unfinished: Unfinished = "wrong",
        tokenizer: Any = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if n < 1 or unfinished not in ("wrong", "exclude"):
            raise ValueError(
                f"Got n={n} and unfinished={unfinished!r}. A value is a share of rollouts, and those that are cut off "
                "are 'wrong' or left out. Use an `n` of 1 or more, and 'wrong' or 'exclude'."
            )
        self.generator, self.outcome_reward, self.n = generator, outcome_reward, n
        self.sampling, self.chat_template_kwargs = sampling, chat_template_kwargs
        self.reward_threshold: float = reward_threshold
        self.unfinished: Unfinished = unfinished
        self._takes_trainers = generator is None
        self._set_tokenizer(tokenizer or getattr(generator, "tokenizer", None))
        self.__name__ = "monte_carlo"

    def _set_tokenizer(self, tokenizer: Any) -> None:
        self.tokenizer: Any = tokenizer
        self._token_pieces = None if tokenizer is None else TokenPieces(tokenizer)

    def attach(self, trainer: Any) -> None:
        """Draw rollouts with what a trainer samples with, unless a generator was given. Trainers call it.

        Args:
            trainer ([`PAVTrainer`] or [`~trl.GRPOTrainer`] with [`ProcessRewardCallback`]):
                The trainer.

        Raises:
            `ValueError`: If its vLLM engine cannot be used by a process alone.
        """
        if not self._takes_trainers:
            return
        self._set_tokenizer(getattr(trainer.processing_class, "tokenizer", trainer.processing_class))
        self.generator = training_generator(trainer, self.tokenizer)
        if self.chat_template_kwargs is None:
            self.chat_template_kwargs = trainer.chat_template_kwargs
        if self.sampling is None:
            self.sampling = sampling_of_training(trainer.args, seed=trainer.args.seed)

    def __call__(self, prompts: Sequence[Any], steps: Sequence[Sequence[str]], **columns: Any) -> list[list[Any]]:
        """Values of the steps, as of [`~MonteCarloProcessReward.score_solutions`]."""
        return self.score_solutions(prompts, steps, **columns)[1]

    def score_solutions(
        self,
        prompts: Sequence[Any],
        steps: Sequence[Sequence[str]],
        step_token_ids: Sequence[Sequence[Sequence[int]]] | None = None,
        **columns: Any,
    ) -> tuple[list[float | None], list[list[float | None]]]:
        """Values of prompts and steps, in [0, 1].

        Args:
            prompts (`Sequence`):
                One prompt per solution, plain text or messages.
            steps (`Sequence[Sequence[str]]`):
                Texts of the steps of each solution; joined, they are the solution.
            step_token_ids (`Sequence[Sequence[Sequence[int]]]`, *optional*):
                Their sampled tokens, from which rollouts go on; by default texts are tokenised.
            **columns:
                Columns of the data set, for the outcome reward. `finished` says of each solution whether it ends with
                its last step (all do by default); of `trainer_state` the optimizer step makes the rollouts of each
                other ones; `log_metric` is told what they cost.

        Returns:
            `tuple[list[float | None], list[list[float | None]]]`: The values of the prompts, and those of the steps,
            `None` where no rollout could be counted.

        Raises:
            `ValueError`: If there is no generator yet, or the weights of its model are sharded.
        """
        if self.generator is None or self._token_pieces is None:
            raise ValueError(
                "There is no generator, or no tokenizer of it, so no rollout can be drawn. Pass both. Or use it in "
                "PAVTrainer, or in ProcessRewardCallback with `level='step'`, whose trainer then draws rollouts."
            )
        refuse_shards(getattr(self.generator, "model", None))
        problems, rows = self._problems(prompts, columns)
        sampling = self.sampling or SamplingParams()
        seed = sampling.seed + getattr(columns.get("trainer_state"), "global_step", 0)
        spending, sampling = Spending(), replace(sampling, seed=seed)
        arguments = problems, self.generator, self.outcome_reward, self._token_pieces, sampling
        roller = Roller(*arguments, self.reward_threshold, spending)
        finished = columns.get("finished") or [True] * len(steps)
        prefixes = self._prefixes(steps, step_token_ids)
        keys: list[list[Prefix]] = [
            [(row, ids) for ids in starts[: max(1, len(starts) - 1)]]
            for row, starts in zip(rows, prefixes, strict=True)
        ]
        tallies: dict[Prefix, Tally] = {}
        measure(roller, [key for row in keys for key in row], tallies, self.n, self.unfinished)
        last = self._last_values([problems[row] for row in rows], steps, [starts[-1] for starts in prefixes], finished)
        values = [[*(tallies[key].value for key in row), value] for row, value in zip(keys, last, strict=True)]
        _log_cost(spending, columns.get("log_metric"))
        return [row[0] for row in values], [row[1 : len(texts) + 1] for row, texts in zip(values, steps, strict=True)]

    def _problems(self, prompts: Sequence[Any], columns: Mapping[str, Any]) -> tuple[list[Problem], list[int]]:
        """Distinct rows of the data set, and which of them each solution belongs to."""
        names = [name for name in columns if name not in _NO_COLUMNS]
        numbers: dict[str, int] = {}
        problems: list[Problem] = []
        rows = []
        for i, prompt in enumerate(prompts):
            given = {name: columns[name][i] for name in names}
            key = repr((prompt, given))
            if key not in numbers:
                numbers[key] = len(problems)
                ids = prompt_token_ids(self.tokenizer, prompt, **(self.chat_template_kwargs or {}))
                # The same prompt has the same random numbers on every process, and every other one its own.
                problems.append(Problem(int(ids_digest(ids), 16), prompt, ids, given))
            rows.append(numbers[key])
        return problems, rows

    def _prefixes(self, steps: Any, step_token_ids: Any) -> list[list[tuple[int, ...]]]:
        """Tokens of each solution up to the prompt and up to every step."""
        if step_token_ids is not None:
            return [list(accumulate(map(tuple, row), initial=())) for row in step_token_ids]
        texts = [list(accumulate(row, initial="")) for row in steps]
        encode = functools.partial(self.tokenizer, add_special_tokens=False)
        return [[tuple(encode(text)["input_ids"]) if text else () for text in row] for row in texts]

    def _last_values(
        self,
        problems: Sequence[Problem],
        steps: Sequence[Sequence[str]],
        solutions: Sequence[tuple[int, ...]],
        finished: Sequence[bool],
    ) -> list[float | None]:
        """Outcomes of the finished solutions, and what the others count as."""
        ended = [i for i, is_finished in enumerate(finished) if is_finished]
        outcomes = check_outcomes(
            [problems[i] for i in ended],
            ["".join(steps[i]) for i in ended],
            [list(solutions[i]) for i in ended],
            self.outcome_reward,
            self.reward_threshold,
        )
        values: list[float | None] = [0.0 if self.unfinished == "wrong" else None] * len(steps)
        for i, outcome in zip(ended, outcomes, strict=True):
            values[i] = None if outcome is None else float(outcome)
        return values


def training_generator(trainer: Any, tokenizer: Any) -> Generator:
    """What a trainer samples with, as a generator: its vLLM engine or server, or the policy itself.

    Args:
        trainer ([`~trl.GRPOTrainer`]):
            The trainer. It gives vLLM the weights of the policy before it samples, and so before scoring.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's.

    Returns:
        [`Generator`]: The generator.

    Raises:
        `ValueError`: If a vLLM engine is shared by several processes, or asleep after the trainer has sampled.
    """
    if not trainer.use_vllm:
        return TransformersGenerator(trainer.model, tokenizer)
    vllm = trainer.vllm_generation
    if vllm.mode == "server":
        url = vllm.server_base_url or f"http://{vllm.server_host}:{vllm.server_port}"
        return VLLMServerGenerator([url], tokenizer)
    if vllm.tensor_parallel_size > 1 or vllm.enable_sleep_mode:
        raise ValueError(
            f"The trainer's vLLM engine has vllm_tensor_parallel_size={vllm.tensor_parallel_size} and "
            f"vllm_enable_sleep_mode={vllm.enable_sleep_mode}. Every process draws rollouts at its own pace, which an "
            "engine of several processes cannot serve, and one that sleeps has no weights. Set them to 1 and False, "
            "use `vllm_mode='server'`, or give the process reward a `generator`."
        )
    return VLLMGenerator(vllm.llm)


def refuse_shards(model: Any) -> None:
    """Refuse to sample from a model of which this process holds a part only.

    Raises:
        `ValueError`: If it is one.
    """
    parameters = [] if model is None else list(model.parameters())
    if any(isinstance(one, DTensor) or hasattr(one, "ds_id") for one in parameters):
        raise ValueError(
            "The weights of the generator's model are shared out over the processes, as by FSDP or DeepSpeed ZeRO-3, "
            "but every process draws rollouts of its own, at its own pace. Train with DDP, or draw the rollouts from "
            "a server (`VLLMServerGenerator`)."
        )


def _log_cost(spending: Spending, log_metric: Callable[[str, float], None] | None) -> None:
    if log_metric is not None:
        log_metric("process/monte_carlo/num_rollouts", spending.num_rollouts)
        log_metric("process/monte_carlo/num_tokens", spending.num_sampled_tokens)
