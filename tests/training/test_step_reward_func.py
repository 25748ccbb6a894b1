"""StepRewardFunc: step scores folded into one reward per completion."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import GradientAccumulationPlugin
from transformers import PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from tests.tiny_models import build_tokenizer, make_grpo_args, prompt_dataset, token_reward
from tests.trainer_runs import train_logs
from trl_prl.steps.token_pieces import TokenPieces
from trl_prl.training.step_reward_func import AGGREGATIONS, StepRewardFunc, aggregate_step_rewards
from trl_prl.verifier.settings import VerifierSettings


NAN = math.nan


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        # mean, min, last, sum, product
        ([0.5, -1.0, 2.0], (0.5, -1.0, 2.0, 1.5, -1.0)),
        ([0.25], (0.25, 0.25, 0.25, 0.25, 0.25)),
        ([0.0, 0.5], (0.25, 0.0, 0.5, 0.5, 0.0)),  # a step worth 0 counts
        ([0.5, NAN, 0.25], (0.375, 0.25, 0.25, 0.75, 0.125)),
        ([0.5, NAN], (0.5, 0.5, None, 0.5, 0.5)),  # the last step could not be scored
        ([NAN, NAN], (None, None, None, None, None)),
        ([], (None, None, None, None, None)),
    ],
)
def test_aggregations(rewards: list[float], expected: tuple[float | None, ...]) -> None:
    folded = tuple(aggregate_step_rewards(rewards, aggregation) for aggregation in AGGREGATIONS)
    assert AGGREGATIONS == ("mean", "min", "last", "sum", "product")
    assert folded == pytest.approx(expected)


class ScoreTable:
    """Looks scores up by step text, and keeps what it was asked."""

    def __init__(self, table: dict[str, float | None]) -> None:
        self.table = table
        self.steps: list[list[str]] = []
        self.columns: dict[str, Any] = {}

    def __call__(self, prompts: list[Any], steps: list[list[str]], **columns: Any) -> list[list[float | None]]:
        self.steps, self.columns = steps, columns
        return [[self.table[text] for text in row] for row in steps]


TABLE: dict[str, float | None] = {"a\n": 0.5, "b\n": 0.25, "c": 1.0, "?\n": None}


def test_text_completions() -> None:
    scorer = ScoreTable(TABLE)
    rewards = StepRewardFunc(scorer)(["p"] * 5, ["a\nb\nc", "c", "?\na\n", "?\n", ""], answer=["1"] * 5)
    assert scorer.steps == [["a\n", "b\n", "c"], ["c"], ["?\n", "a\n"], ["?\n"], []]
    assert rewards == [pytest.approx(1.75 / 3), 1.0, 0.5, None, None]
    assert scorer.columns == {"answer": ["1"] * 5}


def test_only_what_the_policy_said_is_scored() -> None:
    scorer = ScoreTable(TABLE)
    conversation = [
        {"role": "assistant", "content": "a\nb\n", "tool_calls": []},
        {"role": "tool", "name": "add", "content": "c\nc\n"},
        {"role": "assistant", "content": "c"},
    ]
    silent = [{"role": "assistant", "content": ""}, {"role": "assistant", "tool_calls": []}]
    rewards = StepRewardFunc(scorer, aggregation="sum")([[], []], [conversation, silent])
    assert scorer.steps == [["a\n", "b\n", "c"], []]
    assert rewards == [1.75, None]


def test_a_splitter_that_counts_tokens_needs_the_tokenizer(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    scorer = ScoreTable({"12": 1.0, "3": 0.0})
    from trl_prl.steps.splitters import FixedLengthSplitter

    with pytest.raises(ValueError, match=r"counts tokens.*Pass the policy's tokenizer"):
        StepRewardFunc(scorer, FixedLengthSplitter(2))
    reward = StepRewardFunc(scorer, FixedLengthSplitter(2), processing_class=tiny_tokenizer)
    assert reward(["p"], ["123"]) == [0.5]


def test_async_process_reward() -> None:
    async def half(prompts: list[Any], steps: list[list[str]], **columns: Any) -> list[list[float]]:
        return [[0.5] * len(row) for row in steps]

    assert StepRewardFunc(half, aggregation="product")(["p"], ["a\nb\n"]) == [0.25]


def test_names_and_refusals() -> None:
    assert StepRewardFunc(ScoreTable(TABLE), aggregation="min").__name__ == "ScoreTable_min"
    with pytest.raises(ValueError, match="Set it to one of: mean, min, last, sum, product"):
        StepRewardFunc(ScoreTable(TABLE), aggregation="median")
    with pytest.raises(TypeError, match="cannot score steps"):
        StepRewardFunc(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has 2 steps"):
        StepRewardFunc(lambda prompts, steps, **columns: [[1.0]])(["p"], ["a\nb"])


@pytest.mark.parametrize("conversational", [False, True])
def test_as_reward_function_of_grpo(conversational: bool, tiny_model_path: str, tmp_path: Path) -> None:
    """Next to another reward function, with a metric of its own; rows without a score do not count."""
    returned: list[float | None] = []

    def short_steps(prompts: list[Any], steps: list[list[str]], **columns: Any) -> list[list[float | None]]:
        assert columns["answer"]
        columns["log_metric"]("num_steps", sum(len(row) for row in steps))
        scores = [[None if i == 0 else 1 / len(text) for text in row] for i, row in enumerate(steps)]
        returned.extend(aggregate_step_rewards([NAN if x is None else x for x in row], "mean") for row in scores)
        return scores

    trainer = GRPOTrainer(
        tiny_model_path,
        [token_reward, StepRewardFunc(short_steps)],
        make_grpo_args(GRPOConfig, tmp_path, max_steps=1, reward_weights=[1.0, 0.5]),
        prompt_dataset(conversational=conversational),
    )
    trainer.train()
    (log,) = train_logs(trainer)
    scored = [reward for reward in returned if reward is not None]
    assert 0 < len(scored) <= len(returned) == 4
    assert log["rewards/short_steps_mean/mean"] == pytest.approx(sum(scored) / len(scored), rel=1e-5)
    assert log["num_steps"] >= 4


def test_what_does_not_fit_is_said_at_construction(caplog: pytest.LogCaptureFixture) -> None:
    def outcome_reward(prompts: Any, completions: Any, **columns: Any) -> Any: ...

    with pytest.raises(TypeError, match="'outcome_reward' has the signature"):
        StepRewardFunc(outcome_reward)

    class LikeAVerifier:
        settings = VerifierSettings(step_splitter="blank_line")

        def __call__(self, prompts: Any, steps: Any, **columns: Any) -> Any: ...

    StepRewardFunc(LikeAVerifier(), "blank_line")
    assert not caplog.records
    StepRewardFunc(LikeAVerifier(), "newline")
    assert "was trained on steps cut by `step_splitter='blank_line'`" in caplog.text


class SaysWhatFinished:
    """Keeps the marks that it was given."""

    def __init__(self) -> None:
        self.finished: list[bool] = []

    def __call__(
        self, prompts: list[Any], steps: list[list[str]], finished: list[bool], **columns: Any
    ) -> list[list[float]]:
        self.finished = finished
        return [[0.0] * len(row) for row in steps]


def test_every_token_that_ends_a_turn_ends_a_completion() -> None:
    """A chat ends its turns with another token than a text, as Gemma's does."""
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn|>"]})
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<turn|>{% endfor %}"
    turn = tokenizer.convert_tokens_to_ids("<turn|>")
    ids = [[5, turn], [5, tokenizer.eos_token_id], [5, 6], []]
    for given, expected in ((None, [True, True, False, False]), ([6], [False, False, True, False])):
        scorer = SaysWhatFinished()
        StepRewardFunc(scorer, processing_class=tokenizer, eos_token_ids=given)(["p"] * 4, ["a"] * 4, ids)
        assert scorer.finished == expected


def test_the_tokens_table_is_made_once(
    tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    monkeypatch.setattr(TokenPieces, "__init__", _counting(TokenPieces.__init__, made))
    reward = StepRewardFunc(ScoreTable(TABLE), processing_class=tiny_tokenizer)
    reward(["p"] * 3, ["a\nc", "b\nc", "c"])
    assert len(made) == 1


def _counting(function: Any, calls: list[Any]) -> Any:
    def counted(*args: Any) -> Any:
        calls.append(args)
        return function(*args)

    return counted


def test_the_trainers_gradient_accumulation_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment says of it is for who makes an accelerator, and the trainer has made one already."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    try:
        plugin = GradientAccumulationPlugin(num_steps=1, sync_each_batch=True)
        accelerator = Accelerator(gradient_accumulation_plugin=plugin)
        monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "8")
        StepRewardFunc(ScoreTable(TABLE))(["p"], ["a\nc"])
        assert accelerator.gradient_accumulation_steps == 1
        assert accelerator.gradient_state.plugin_kwargs["sync_each_batch"]
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
