"""Agents: process rewards that read the transcript, tool output included, and credit that the policy's tokens get."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trl import GRPOConfig, GRPOTrainer, TrlParser

from tests.tiny_agent import save_tiny_agent
from tests.tiny_models import (
    EOS_TOKEN,
    build_tokenizer,
    make_grpo_args,
    needs_response_templates,
    prompt_dataset,
    token_reward,
)
from tests.trainer_runs import make_trainer, run, text_values, train_logs
from tests.training.test_trainer_features import (
    CountingEnvironment,
    add,
    first_turn_calls_a_tool,
    several_turns,
)
from trl_prl import ProcessRewardCallback, TranscriptSegment, get_splitter, split_completions
from trl_prl.report.run_files import read_run
from trl_prl.rewards.transcript import token_transcripts
from trl_prl.steps.token_pieces import TokenPieces


CALL = '<call>{"name": "add", "arguments": {"a": 1, "b": 2}}</call>'
PARSED = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}


class KnowsTheSum:
    """Values 0.9 once a tool has said 3, and 0.2 before; keeps what it was given."""

    def __init__(self) -> None:
        self.seen: list[tuple[list[str], list[TranscriptSegment]]] = []

    def __call__(
        self, prompts: list[Any], steps: list[list[str]], transcript: list[list[TranscriptSegment]], **columns: Any
    ) -> list[list[float]]:
        self.seen.extend(zip(steps, transcript, strict=True))
        return [self.values(len(row), segments) for row, segments in zip(steps, transcript, strict=True)]

    def values(self, num_steps: int, segments: list[TranscriptSegment]) -> list[float]:
        values, value, step = [0.2] * num_steps, 0.2, 0
        for segment in segments:
            step = step if segment.step is None else segment.step
            value = 0.9 if segment.role == "tool" and "3" in segment.text else value
            values[step] = value
        return values


def with_tools(**arguments: Any) -> dict[str, Any]:
    dataset = prompt_dataset(conversational=True)
    return {"rollout_func": first_turn_calls_a_tool, "train_dataset": dataset, **arguments}


def check_calls(seen: list[tuple[list[str], list[TranscriptSegment]]], answer: str, name: str) -> None:
    """What every other completion of `first_turn_calls_a_tool` looks like."""
    for steps, segments in seen[::2]:
        first, tool, *rest = segments
        assert first == TranscriptSegment("assistant", "We add.\n" + CALL, 0, tool_calls=(PARSED,))
        assert tool == TranscriptSegment("tool", answer, name=name)
        assert "".join(segment.text for segment in rest) == "".join(steps[1:])
        assert all(segment.role == "assistant" and segment.step in (0, 1) for segment in rest)
    for steps, segments in seen[1::2]:
        assert segments == [TranscriptSegment("assistant", "It is 3.\nDone.", 0)]
        assert steps == ["It is 3.\nDone."]


def check_progress_per_turn(rollout: dict[str, Any]) -> None:
    """The turn that called the tool gets all the progress, every other token of the policy what it should."""
    process = rollout["advantages"] - rollout["outcome_advantages"].unsqueeze(1)
    for row, step_ids in enumerate(rollout["step_ids"]):
        called = row % 2 == 0
        expected = torch.zeros(len(step_ids))
        # From the prompt's 0.5 to 0.9 in the turn that called the tool, and to 0.2 in the turn that did not.
        expected[step_ids == 0] = 0.4 if called else -0.3
        outside = step_ids < 0
        assert process[row][~outside].tolist() == pytest.approx(expected[~outside].tolist())
        assert (rollout["advantages"][row][outside] == 0).all()


@needs_response_templates
@pytest.mark.parametrize("kind", ["tools", "environments"])
def test_progress_per_turn_from_what_tools_said(kind: str, tiny_model_path: str, tmp_path: Path) -> None:
    reward = KnowsTheSum()
    own = {"tools": [add]} if kind == "tools" else {"environment_factory": CountingEnvironment}
    arguments = with_tools(process_reward=reward, step_splitter="turn", **own)
    trainer = run(make_trainer("pav", tiny_model_path, tmp_path, arguments, max_completion_length=128, max_steps=1))
    check_calls(reward.seen, "sum\n3\n\nend" if kind == "tools" else "count\n3", "add")
    check_progress_per_turn(trainer.rollouts[0])


def test_segments_end_where_steps_do(tiny_model_path: str, tmp_path: Path) -> None:
    """An environment of a rollout function has no messages: its text is that of its tokens."""
    reward = KnowsTheSum()
    arguments = {"rollout_func": several_turns, "process_reward": reward}
    run(make_trainer("pav", tiny_model_path, tmp_path, arguments, max_steps=1))
    assert [[(s.role, s.text, s.step) for s in segments] for _, segments in reward.seen] == [
        [
            ("assistant", "Let us add.\n", 0),
            ("assistant", "First 1", 1),
            ("tool", "\n\nObs:\n1\n2\n", None),
            ("assistant", "So 3.\n", 2),
            ("assistant", "Done.", 3),
            ("tool", "\n\n", None),
            ("assistant", "Yes", 4),
        ],
        [("assistant", "Take 7\n\n", 0), ("assistant", "from 9.", 1), ("tool", "Obs:\n2\n", None)],
        [("assistant", "The answer is 3.\n", 0)],
        [
            ("assistant", "We\n", 0), ("assistant", "know\n", 1), ("assistant", "it.\n", 2), ("tool", "a\nb\n", None),
            ("assistant", "c\n", 3), ("assistant", "d", 4),
        ],
    ]  # fmt: skip


@needs_response_templates
@pytest.mark.parametrize("level", ["step", "completion"])
def test_callback_gives_the_transcript(level: str, tiny_model_path: str, tmp_path: Path) -> None:
    reward = KnowsTheSum()
    args = make_grpo_args(GRPOConfig, tmp_path, max_completion_length=128, max_steps=1)
    trainer = GRPOTrainer(tiny_model_path, token_reward, args, **with_tools(tools=[add]))
    settings = {"initial_value": 0.5, "progress_scale": "none"} if level == "step" else {}
    callback = ProcessRewardCallback(trainer, reward, level=level, step_splitter="turn", alpha=1.0, **settings)
    trainer.add_callback(callback)
    trainer.train()
    assert len(reward.seen) == 4
    if level == "step":
        check_calls(reward.seen, "sum\n3\n\nend", "add")
    else:  # a reward function gets messages, which TRL strips and whose calls are no text
        first, tool, *_ = reward.seen[0][1]
        assert first == TranscriptSegment("assistant", "We add.", 0, tool_calls=(PARSED,))
        assert tool == TranscriptSegment("tool", "sum\n3\n\nend", name="add")


def test_only_who_names_it_gets_the_transcript(tiny_model_path: str, tmp_path: Path) -> None:
    seen: set[str] = set()

    def keep_names(prompts: list[Any], steps: list[list[str]], **columns: Any) -> list[list[float]]:
        seen.update(columns)
        return text_values(prompts, steps)

    dataset = prompt_dataset().add_column("transcript", ["mine"] * 16)
    arguments = {"train_dataset": dataset, "process_reward": keep_names}
    make_trainer("pav", tiny_model_path, tmp_path, arguments, max_steps=1).train()
    assert "transcript" in seen  # the column of the data set, as any other

    trainer = make_trainer("pav", tiny_model_path, tmp_path, {**arguments, "process_reward": KnowsTheSum()})
    with pytest.raises(ValueError, match=r"has a column 'transcript'.*'KnowsTheSum'"):
        trainer.train()


TOKENIZER = build_tokenizer()
IDS = [*TOKENIZER("a\nb c.\n\n1", add_special_tokens=False).input_ids, TOKENIZER.eos_token_id]


@given(st.lists(st.tuples(st.sampled_from(IDS), st.booleans()), max_size=24), st.integers(0, 3))
def test_segments_join_to_the_steps_and_to_the_whole(tokens: list[tuple[int, bool]], padding: int) -> None:
    ids = torch.tensor([[token for token, _ in tokens] + [TOKENIZER.pad_token_id] * padding], dtype=torch.long)
    there = torch.tensor([[1] * len(tokens) + [0] * padding])
    own = torch.tensor([[own for _, own in tokens] + [False] * padding], dtype=torch.bool)
    pieces = TokenPieces(TOKENIZER)
    split = split_completions(get_splitter("newline"), pieces, ids, own)
    rollout = {"completion_ids": ids, "completion_mask": there, "step_ids": split.step_ids}
    (segments,) = token_transcripts(pieces, rollout, ["ignored text"])
    own_segments = [segment for segment in segments if segment.role == "assistant"]
    found = ["".join(s.text for s in own_segments if s.step == i) for i in range(len(split.steps[0]))]
    assert found == split.steps[0]
    whole = TOKENIZER.decode([token for token, _ in tokens], skip_special_tokens=True)
    assert "".join(segment.text for segment in segments) == whole


def test_two_answers_to_one_turn_are_two_segments() -> None:
    texts = [("Both.", True), ("[markup]1 2[markup]", False), ("3", True), (EOS_TOKEN, True), ("[markup]4", False)]
    tokens = [(token, own) for text, own in texts for token in TOKENIZER(text, add_special_tokens=False).input_ids]
    ids = torch.tensor([[token for token, _ in tokens]])
    own = torch.tensor([[own for _, own in tokens]])
    split = split_completions(get_splitter("turn"), TokenPieces(TOKENIZER), ids, own)
    rollout = {"completion_ids": ids, "completion_mask": torch.ones_like(ids), "step_ids": split.step_ids}
    calls = [{"type": "function", "function": {"name": name, "arguments": {}}} for name in ("one", "two")]
    messages = [
        {"role": "assistant", "content": "Both.", "tool_calls": calls},
        {"role": "tool", "name": "one", "content": "1"},
        {"role": "tool", "name": "two", "content": [{"type": "text", "text": "2"}, {"type": "image"}]},
        {"role": "assistant", "content": "3"},
        {"role": "tool", "name": "one", "content": "4"},
    ]
    expected = [
        TranscriptSegment("assistant", "Both.", 0, tool_calls=tuple(calls)),
        TranscriptSegment("tool", "1", name="one"),
        TranscriptSegment("tool", "2[image]", name="two"),
        TranscriptSegment("assistant", "3", 1),
        TranscriptSegment("tool", "4", name="one"),
    ]
    assert token_transcripts(TokenPieces(TOKENIZER), rollout, [messages]) == [expected]


# ---- the example ----


@pytest.fixture(scope="module")
def example(repo_root: Path) -> Any:
    name = "train_agent"
    spec = importlib.util.spec_from_file_location(name, repo_root / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for the types of their fields
    spec.loader.exec_module(module)
    yield module
    del sys.modules[name]


def test_values_of_the_game_by_hand(example: Any) -> None:
    def turns(*texts: str) -> list[TranscriptSegment]:
        return [
            segment
            for step, text in enumerate(texts)
            for segment in (
                TranscriptSegment("assistant", "I say 4 is right.", step),
                *([TranscriptSegment("tool", text, name="guess")] if text else []),
            )
        ]

    values = example.ChanceOfNextGuess(7).values
    # 5, 6 and 7 are left after the first guess, 5 and 6 after the second; a repeated guess tells nothing.
    game = turns("4 is too low.", "7 is too high.", "4 is too low.", "6 is right.", "")
    assert values(5, game) == pytest.approx([1 / 3, 1 / 2, 1 / 2, 1.0, 1.0])
    assert values(1, turns("{'error': 'number is missing'}")) == pytest.approx([1 / 7])
    assert values(0, []) == []


@pytest.mark.slow
@needs_response_templates
def test_the_example_trains_an_agent(example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy that guesses at random learns the number that is always right."""
    question = "Find the whole number between 1 and 7 that I think of. Call the tool `guess`."
    model = save_tiny_agent(tmp_path / "agent", example.GuessGame().guess, question, highest=7)
    monkeypatch.setattr(example.random.Random, "randint", lambda self, low, high: 6)
    trainers: list[Any] = []

    class Kept(example.PAVTrainer):  # type: ignore[misc,name-defined]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            trainers.append(self)

    monkeypatch.setattr(example, "PAVTrainer", Kept)
    fields = {
        "model_name_or_path": model, "dtype": "float32", "highest": 7, "num_games": 16, "output_dir": tmp_path / "out",
        "max_tool_calling_iterations": 2, "max_completion_length": 96, "num_generations": 32, "max_steps": 10,
        "per_device_train_batch_size": 32, "learning_rate": 2e-3, "lr_scheduler_type": "constant", "seed": 7,
        "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none", "save_strategy": "no",
        "logging_steps": 1, "chat_template_kwargs": '{"enable_thinking": false}',
    }  # fmt: skip
    parser = TrlParser((example.GameArguments, example.PAVConfig, example.ModelConfig))
    words = [word for name, value in fields.items() for word in (f"--{name}", str(value))]
    example.main(*parser.parse_args_and_config(words))
    logs = train_logs(trainers[0])
    assert logs[0]["tools/call_frequency"] > 1
    assert sum(log["reward"] for log in logs[-3:]) / 3 > sum(log["reward"] for log in logs[:3]) / 3 + 0.2
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert logs[0]["process/steps_per_completion"] > 2


class TellsTheTask(CountingEnvironment):
    """Another task for every rollout, which the data set does not know."""

    def reset(self, **kwargs: Any) -> str:
        super().reset()
        return " Count to seven."


@needs_response_templates
def test_scores_and_records_are_of_what_the_environment_told(tiny_model_path: str, tmp_path: Path) -> None:
    seen: dict[str, list[Any]] = {"score": [], "update": []}

    class Keeps:
        """Keeps the prompts that it is given."""

        returns = "advantages"

        def __call__(self, prompts: list[Any], steps: list[list[str]], **columns: Any) -> list[list[float]]:
            seen["score"] += prompts
            return [[0.0] * len(row) for row in steps]

        def update(self, prompts: list[Any], steps: list[list[str]], **columns: Any) -> dict[str, float]:
            seen["update"] += prompts
            return {}

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            """There is nothing to load."""

    arguments = with_tools(process_reward=Keeps(), environment_factory=TellsTheTask)
    trainer = make_trainer("pav", tiny_model_path, tmp_path, arguments, max_completion_length=128, max_steps=1)
    trainer.train()
    asked = trainer.train_dataset[0]["prompt"][-1]["content"]
    told = [row["prompt"] for row in read_run(tmp_path).completions]
    for prompt in (*seen["score"], *seen["update"]):
        assert prompt[-1]["content"].endswith(" Count to seven.")
    assert len(seen["score"]) == len(seen["update"]) == len(told) == 4
    assert all(" Count to seven." in text for text in told)
    assert "Count" not in asked
