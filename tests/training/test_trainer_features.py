"""What GRPO can do, the process-reward trainers can do: a short real run per feature, seen in logs and credit."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from packaging.version import Version
from trl import GRPOConfig, GRPOTrainer

from tests.tiny_models import EOS_TOKEN, make_grpo_args, needs_response_templates, prompt_dataset, token_reward
from tests.trainer_runs import (
    KINDS,
    PROCESS_METRICS,
    Recording,
    assert_process_metrics,
    assert_sound,
    eval_logs,
    make_trainer,
    move_away_from_reference,
    run,
    text_values,
    train_logs,
    trainable,
)
from trl_prl.credit.step_tensors import step_end_mask
from trl_prl.training.pav_config import PAVConfig
from trl_prl.training.pav_trainer import PAVTrainer
from trl_prl.training.setup import PER_TOKEN_LOSS_TYPES


both = pytest.mark.parametrize("kind", KINDS)


# ---- adapters ----


def lora_config() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


@both
def test_new_adapter_uses_the_base_model_as_reference(kind: str, tiny_model_path: str, tmp_path: Path) -> None:
    trainer = make_trainer(kind, tiny_model_path, tmp_path, {"peft_config": lora_config()}, beta=0.2)
    assert trainer.ref_model is None
    before = trainable(trainer)
    assert all("lora_" in name for name in before)
    move_away_from_reference(trainer, scale=0.3)
    run(trainer, move=False)
    assert train_logs(trainer)[0]["process/kl_to_go"] != 0.0
    assert all(log["kl"] > 0 for log in train_logs(trainer))


@both
def test_existing_adapter_is_its_own_reference(kind: str, tiny_model_path: str, tmp_path: Path) -> None:
    """TRL copies a pretrained adapter to the name "ref": the base model must not be taken for the reference."""
    from peft import PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_path), lora_config())
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tiny_model_path)
    model = PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True)
    trainer = make_trainer(kind, model, tmp_path, {}, beta=0.2, learning_rate=1e-2, max_steps=3)
    before = trainable(trainer)
    trainer.train()
    first, *later = train_logs(trainer)
    assert first["process/kl_to_go"] == pytest.approx(0.0, abs=1e-5)
    assert any(abs(log["process/kl_to_go"]) > 1e-4 for log in later)
    if kind == "pav":  # PRL's first step has no process part: the policy is the reference
        assert_sound(trainer, before)


# ---- rewards ----


def odd_rows_only(completion_ids: list[list[int]], **kwargs: Any) -> list[float | None]:
    return [len(ids) / 10 if i % 2 else None for i, ids in enumerate(completion_ids)]


def none_on_every_fourth(completion_ids: list[list[int]], **kwargs: Any) -> list[float | None]:
    return [None if i % 4 == 2 else sum(ids) % 5 / 4 for i, ids in enumerate(completion_ids)]


@both
@pytest.mark.parametrize("scale_rewards", ["group", "batch", "none"])
def test_several_rewards_with_weights_and_none(
    kind: str, scale_rewards: str, tiny_model_path: str, tmp_path: Path
) -> None:
    """Rewards and their normalisation stay TRL's: the same outcome advantages, rows no function can score included."""
    fields: dict[str, Any] = {"reward_weights": [0.5, 2.0], "scale_rewards": scale_rewards, "max_steps": 1}
    rewards = [odd_rows_only, none_on_every_fourth]
    stock_args = make_grpo_args(GRPOConfig, tmp_path / "stock", **fields)
    stock = GRPOTrainer(tiny_model_path, rewards, stock_args, prompt_dataset())
    stock.train()
    trainer = make_trainer(kind, tiny_model_path, tmp_path, {"reward_funcs": rewards}, **fields)
    trainer.train()
    outcome = trainer.rollouts[0]["outcome_advantages"]
    assert outcome[2] == 0.0  # scored by neither function
    assert outcome.unique().numel() > 2
    (log,), (stock_log,) = train_logs(trainer), train_logs(stock)
    for name in ("reward", "reward_std", "rewards/odd_rows_only/mean", "rewards/none_on_every_fourth/mean"):
        assert log[name] == stock_log[name]
    assert list(stock._logs["advantages"]) == outcome.tolist()


@both
def test_a_batch_no_function_can_score_still_trains(kind: str, tiny_model_path: str, tmp_path: Path) -> None:
    def nothing(prompts: list[Any], **kwargs: Any) -> list[None]:
        return [None] * len(prompts)

    trainer = run(make_trainer(kind, tiny_model_path, tmp_path, {"reward_funcs": nothing}))
    assert all((rollout["outcome_advantages"] == 0).all() for rollout in trainer.rollouts)
    assert all(log["process/advantage_share"] == 1.0 for log in train_logs(trainer))


# ---- prompts and data ----


@both
def test_conversational_prompts(kind: str, tiny_model_path: str, tmp_path: Path) -> None:
    seen: list[Any] = []

    def keep_prompts(prompts: list[Any], steps: list[list[str]], **columns: Any) -> list[list[float]]:
        seen.extend(prompts)
        return text_values(prompts, steps)

    arguments: dict[str, Any] = {"train_dataset": prompt_dataset(conversational=True)}
    if kind == "pav":
        arguments["process_reward"] = keep_prompts
    run(make_trainer(kind, tiny_model_path, tmp_path, arguments, chat_template_kwargs={}))
    if kind == "pav":
        assert all(prompt[0]["role"] == "user" for prompt in seen)


@both
def test_iterable_dataset(kind: str, tiny_model_path: str, tmp_path: Path) -> None:
    run(make_trainer(kind, tiny_model_path, tmp_path, {"train_dataset": prompt_dataset().to_iterable_dataset()}))


# ---- tools, several turns, environments ----


def encode(trainer: Any, text: str) -> list[int]:
    return trainer.processing_class(text, add_special_tokens=False)["input_ids"]


def render(trainer: Any, prompt: Any) -> list[int]:
    if isinstance(prompt, str):
        return encode(trainer, prompt)
    return trainer.processing_class.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]


TURNS = [
    # (policy, environment, policy, ...); the environment's text is full of delimiters
    ("Let us add.\nFirst 1", "\n\nObs:\n1\n2\n", "So 3.\nDone.", "\n\n", "Yes" + EOS_TOKEN),
    ("Take 7\n\nfrom 9.", "Obs:\n2\n", EOS_TOKEN),  # after the last observation only the end token
    ("The answer is 3.\n" + EOS_TOKEN,),
    ("We\nknow\nit.\n", "a\nb\n", "c\nd"),  # cut by the length limit
]


def several_turns(prompts: list[Any], trainer: Any) -> dict[str, Any]:
    """Rollout of fixed texts in turns: environment tokens are masked, as TRL's `env_mask` asks."""
    completion_ids, masks = [], []
    for row in range(len(prompts)):
        ids: list[int] = []
        mask: list[int] = []
        for turn, text in enumerate(TURNS[row % len(TURNS)]):
            tokens = encode(trainer, text)
            ids += tokens
            mask += [1 - turn % 2] * len(tokens)
        completion_ids.append(ids)
        masks.append(mask)
    return {
        "prompt_ids": [render(trainer, prompt) for prompt in prompts],
        "completion_ids": completion_ids,
        "logprobs": None,
        "env_mask": masks,
    }


@both
def test_environment_tokens_get_no_step_and_no_credit(kind: str, tiny_model_path: str, tmp_path: Path) -> None:
    arguments = {"rollout_func": several_turns}
    trainer = run(make_trainer(kind, tiny_model_path, tmp_path, arguments, log_completions=True))
    (rollout, _) = trainer.rollouts
    assert rollout["steps"] == [
        ["Let us add.\n", "First 1", "So 3.\n", "Done.", "Yes"],
        ["Take 7\n\n", "from 9."],
        ["The answer is 3.\n"],
        ["We\n", "know\n", "it.\n", "c\n", "d"],
    ]
    expected = [[flag for turn in mask for flag in turn] for mask in masks_of(trainer, TURNS)]
    for ids, flags in zip(rollout["step_ids"].tolist(), expected, strict=True):
        assert [step >= 0 for step in ids] == flags + [False] * (len(ids) - len(flags))
    assert train_logs(trainer)[0]["process/steps_per_completion"] == pytest.approx((5 + 2 + 1 + 5) / 4)


def masks_of(trainer: Any, rows: list[tuple[str, ...]]) -> list[list[list[bool]]]:
    return [[[turn % 2 == 0] * len(encode(trainer, text)) for turn, text in enumerate(row)] for row in rows]


def test_a_step_interrupted_by_tool_output_ends_once() -> None:
    """The end token after a last observation joins the step before it, which is then interrupted."""
    step_ids = torch.tensor([[0, 0, 1, -1, -1, 1, -1], [0, -1, 0, 1, 1, 2, 2], [-1, -1, -1, -1, -1, -1, -1]])
    assert step_end_mask(step_ids).int().tolist() == [[0, 1, 0, 0, 0, 1, 0], [0, 0, 1, 0, 1, 0, 1], [0] * 7]


def first_turn_calls_a_tool(prompts: list[Any], trainer: Any) -> dict[str, Any]:
    """Rollout whose first turn asks for a tool in every other row; TRL runs the tool and lets the policy go on."""
    call = 'We add.\n<call>{"name": "add", "arguments": {"a": 1, "b": 2}}</call>' + EOS_TOKEN
    texts = [call if row % 2 == 0 else "It is 3.\nDone." + EOS_TOKEN for row in range(len(prompts))]
    return {
        "prompt_ids": [render(trainer, prompt) for prompt in prompts],
        "completion_ids": [encode(trainer, text) for text in texts],
        "logprobs": None,
    }


def add(a: int, b: int) -> str:
    """
    Add two numbers.

    Args:
        a: First number.
        b: Second number.

    Returns:
        The sum.
    """
    return f"sum\n{a + b}\n\nend"


def assert_tool_output_is_masked(trainer: Any, tool_text: str) -> None:
    tokenizer = trainer.processing_class
    for rollout in trainer.rollouts:
        for row in (0, 2):
            ids, step_ids = rollout["completion_ids"][row], rollout["step_ids"][row]
            outside = tokenizer.decode(ids[(step_ids < 0) & rollout["completion_mask"][row].bool()])
            assert tool_text in outside
            inside = tokenizer.decode(ids[step_ids >= 0])
            assert tool_text not in inside
            assert "<call>" in inside
            assert "".join(rollout["steps"][row]) == tokenizer.decode(ids[step_ids >= 0], skip_special_tokens=True)
        for row in (1, 3):
            assert rollout["steps"][row] == ["It is 3.\n", "Done."]


@both
@needs_response_templates
def test_tools(kind: str, tiny_model_path: str, tmp_path: Path) -> None:
    arguments = {
        "rollout_func": first_turn_calls_a_tool,
        "tools": [add],
        "train_dataset": prompt_dataset(conversational=True),
    }
    trainer = run(
        make_trainer(kind, tiny_model_path, tmp_path, arguments, max_completion_length=128, log_completions=True)
    )
    assert_tool_output_is_masked(trainer, "sum\n3\n\nend")
    assert all(log["tools/call_frequency"] == 0.5 for log in train_logs(trainer))
    assert all(log["tools/failure_frequency"] == 0.0 for log in train_logs(trainer))


@both
@needs_response_templates
def test_turns_are_steps(kind: str, tiny_model_path: str, tmp_path: Path) -> None:
    arguments = {
        "rollout_func": first_turn_calls_a_tool,
        "tools": [add],
        "train_dataset": prompt_dataset(conversational=True),
        "step_splitter": "turn",
    }
    trainer = run(make_trainer(kind, tiny_model_path, tmp_path, arguments, max_completion_length=128, max_steps=1))
    for rollout in trainer.rollouts:
        for row in (1, 3):
            assert rollout["steps"][row] == ["It is 3.\nDone."]
        for row in (0, 2):
            first, _ = rollout["steps"][row]
            assert first.startswith("We add.\n<call>")
            is_second = rollout["step_ids"][row] == 1
            begin = int(is_second.nonzero()[0])
            assert rollout["step_ids"][row, begin - 1] == -1
            assert int(is_second.nonzero()[-1]) - begin + 1 == int(is_second.sum())


class CountingEnvironment:
    """Counts what it was asked to count; the reward is the count."""

    def __init__(self) -> None:
        self.count = 0

    def reset(self, **kwargs: Any) -> str:
        self.count = 0
        return "Count."

    def add(self, a: int, b: int) -> str:
        """
        Add to the count.

        Args:
            a: First number.
            b: Second number.

        Returns:
            The count.
        """
        self.count += a + b
        return f"count\n{self.count}"

    def get_reward(self) -> float:
        return float(self.count)


@both
@needs_response_templates
def test_environments(kind: str, tiny_model_path: str, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {
        "rollout_func": first_turn_calls_a_tool,
        "environment_factory": CountingEnvironment,
        "train_dataset": prompt_dataset(conversational=True),
        "reward_funcs": None,
    }
    counts: list[int] = []

    def keep_environments(
        prompts: list[Any], steps: list[list[str]], environments: list[CountingEnvironment], **columns: Any
    ) -> list[list[float]]:
        counts.extend(environment.count for environment in environments)
        return text_values(prompts, steps)

    if kind == "pav":
        arguments["process_reward"] = keep_environments
    trainer = run(make_trainer(kind, tiny_model_path, tmp_path, arguments, max_completion_length=128))
    assert_tool_output_is_masked(trainer, "count\n3")
    assert all(log["rewards/CountingEnvironment/mean"] == 1.5 for log in train_logs(trainer))
    if kind == "pav":  # as TRL's reward functions, a process reward sees the environments
        assert counts == [3, 0] * 4


@pytest.mark.parametrize("logps_source", ["current", "rollout"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_engines_log_probs_are_not_the_policys(
    logps_source: str, level: str, tiny_model_path: str, tmp_path: Path
) -> None:
    """What a generation engine says of its samples differs from the policy: no log-ratio to the reference has it."""

    def with_wrong_log_probs(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        rollout = several_turns(prompts, trainer)
        return {**rollout, "logprobs": [[-7.0] * len(ids) for ids in rollout["completion_ids"]]}

    fields: dict[str, Any] = {
        "logps_source": logps_source,
        "importance_sampling_level": level,
        "num_iterations": 2,
        "step_level": "token",
    }
    advantages = []
    for rollout_func in (several_turns, with_wrong_log_probs):
        arguments = {"rollout_func": rollout_func}
        trainer = run(make_trainer("prl", tiny_model_path, tmp_path / rollout_func.__name__, arguments, **fields))
        assert ("sampling_per_token_logps" in trainer.losses[0]) == (rollout_func is with_wrong_log_probs)
        advantages.append([record["advantages"] for record in trainer.losses])
    assert all(torch.equal(*pair) for pair in zip(*advantages, strict=True))


# ---- masks ----


@both
def test_truncated_completions_are_masked(kind: str, tiny_model_path: str, tmp_path: Path) -> None:
    arguments = {"rollout_func": several_turns}
    fields: dict[str, Any] = {"mask_truncated_completions": True, "log_completions": True}
    trainer = run(make_trainer(kind, tiny_model_path, tmp_path, arguments, **fields))
    for rollout in trainer.rollouts:
        assert [len(row) for row in rollout["steps"]] == [5, 2, 1, 0]
        assert (rollout["step_ids"][3] == -1).all()


@both
def test_a_batch_of_truncated_completions_changes_nothing(kind: str, tiny_model_path: str, tmp_path: Path) -> None:
    def never_ends(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        return {
            "prompt_ids": [render(trainer, prompt) for prompt in prompts],
            "completion_ids": [encode(trainer, "We\nadd\n" * (row + 1)) for row in range(len(prompts))],
            "logprobs": None,
        }

    arguments = {"rollout_func": never_ends}
    fields: dict[str, Any] = {"mask_truncated_completions": True, "log_completions": True, "weight_decay": 0.0}
    trainer = make_trainer(kind, tiny_model_path, tmp_path, arguments, **fields)
    before = trainable(trainer)
    trainer.train()
    for log in train_logs(trainer):
        assert log["loss"] == log["grad_norm"] == 0.0
        assert_process_metrics(log, empty=True)
        assert "process/steps_per_completion" not in log
    assert all(torch.equal(value, trainable(trainer)[name]) for name, value in before.items())


# ---- losses and schedules of rollouts ----


@both
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", PER_TOKEN_LOSS_TYPES)
def test_loss_types(kind: str, loss_type: str, level: str, tiny_model_path: str, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"loss_type": loss_type, "importance_sampling_level": level, "num_iterations": 2}
    trainer = run(make_trainer(kind, tiny_model_path, tmp_path, {}, **fields))
    assert trainer.importance_sampling_level == level
    assert trainer.beta == (0.2 if kind == "prl" else 0.0)


def zero_progress(prompts: list[Any], steps: list[list[str]], **columns: Any) -> list[list[float]]:
    return [[0.0] * len(row) for row in steps]


@pytest.mark.parametrize("level", [pytest.param("token", marks=pytest.mark.slow), "sequence"])
@pytest.mark.parametrize("loss_type", PER_TOKEN_LOSS_TYPES)
def test_equal_token_advantages_train_like_stock_grpo(
    loss_type: str, level: str, tiny_model_path: str, tmp_path: Path
) -> None:
    """No loss type may read advantages of shape (B, T) in another way than (B,), on-policy or not.

    Up to rounding: at the sequence level the ratio is a number times a gradient per token instead of one exponential.
    """
    fields: dict[str, Any] = {
        "loss_type": loss_type,
        "importance_sampling_level": level,
        "num_iterations": 2,
        "learning_rate": 3e-3,
        "optim": "sgd",  # Adam divides by the gradient's size and would blow up rounding
        "max_grad_norm": 0.0,
    }
    stock_args = make_grpo_args(GRPOConfig, tmp_path / "stock", **fields)
    stock = GRPOTrainer(tiny_model_path, token_reward, stock_args, prompt_dataset())
    stock.train()
    args = make_grpo_args(PAVConfig, tmp_path / "pav", alpha=1.0, process_reward_type="advantages", **fields)
    trainer = PAVTrainer(tiny_model_path, token_reward, args, prompt_dataset(), process_reward=zero_progress)
    start = trainable(trainer)
    trainer.train()
    for log, stock_log in zip(train_logs(trainer), train_logs(stock), strict=True):
        assert log["loss"] == pytest.approx(stock_log["loss"], rel=1e-5, abs=1e-5)
    end, stock_end = trainable(trainer), trainable(stock)
    moved = torch.cat([(stock_end[name] - value).flatten() for name, value in start.items()])
    apart = torch.cat([(stock_end[name] - value).flatten() for name, value in end.items()])
    assert moved.norm() > 0
    assert apart.norm() < 1e-4 * moved.norm()


class KeepLogps(Recording):
    """Keeps the log-probs of every loss, so that their gradient can be read after the backward pass."""

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._get_per_token_logps_and_entropies(*args, **kwargs)  # type: ignore[misc]
        if result[0].requires_grad:
            result[0].retain_grad()
            self.__dict__.setdefault("loss_logps", []).append(result[0])
        return result


def sequence_level_reference(record: dict[str, torch.Tensor], loss_type: str, max_length: int) -> torch.Tensor:
    """Gradient of GSPO-token (https://huggingface.co/papers/2507.18071, eq. 13 to 15) with respect to the log-probs.

    Written row by row, with the surrogate `sg[s_i] * pi_t / sg[pi_t]`; no clipping.
    """
    logps = record["logps"].clone().requires_grad_()
    old_logps = record.get("old_per_token_logps", record["logps"])
    mask = record["step_ids"] >= 0
    terms, totals = [], []
    for i in range(len(logps)):
        ratio = (logps[i].detach() - old_logps[i])[mask[i]].mean().exp()
        token_ratios = ratio * (logps[i] - logps[i].detach())[mask[i]].exp()
        terms.append((token_ratios * record["advantages"][i][mask[i]]).sum())
        totals.append(mask[i].sum())
    if loss_type == "grpo":
        objective = torch.stack([term / total for term, total in zip(terms, totals, strict=True)]).mean()
    elif loss_type == "bnpo":
        objective = torch.stack(terms).sum() / torch.stack(totals).sum()
    else:
        objective = torch.stack(terms).sum() / (len(terms) * max_length)
    (-objective).backward()
    assert logps.grad is not None
    return logps.grad


@both
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo"])
@pytest.mark.parametrize("num_iterations", [1, 2], ids=["on-policy", "stale"])
def test_sequence_level_gradient(
    kind: str, loss_type: str, num_iterations: int, tiny_model_path: str, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {
        "loss_type": loss_type,
        "importance_sampling_level": "sequence",
        "num_iterations": num_iterations,
        "learning_rate": 2e-2,
        "epsilon": 0.9,
        "epsilon_high": 100.0,
    }
    trainer = make_trainer(kind, tiny_model_path, tmp_path, {}, **fields)
    trainer.__class__ = type("GradientTrainer", (KeepLogps, type(trainer)), {})
    run(trainer)
    assert len(trainer.loss_logps) == len(trainer.losses) == 2
    for logps, record in zip(trainer.loss_logps, trainer.losses, strict=True):
        expected = sequence_level_reference(record, loss_type, max_length=12)
        assert expected.abs().max() > 0
        torch.testing.assert_close(logps.grad, expected, rtol=1e-4, atol=1e-7)
    assert ("old_per_token_logps" in trainer.losses[1]) == (num_iterations == 2)
    if num_iterations == 2:
        drift = (trainer.losses[1]["logps"] - trainer.losses[1]["old_per_token_logps"]).abs().max()
        assert drift > 1e-2  # else the ratio would be 1, and the test would say nothing


@both
@pytest.mark.parametrize(
    ("fields", "num_losses", "num_rollouts"),
    [
        ({"num_iterations": 2, "max_steps": 4}, 4, 2),
        ({"steps_per_generation": 4, "max_steps": 4}, 4, 1),
        ({"gradient_accumulation_steps": 2}, 4, 2),
        ({"gradient_accumulation_steps": 2, "steps_per_generation": 1}, 4, 4),
        ({"gradient_accumulation_steps": 2, "steps_per_generation": 4, "num_iterations": 2, "max_steps": 4}, 8, 1),
        ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}, 4, 2),  # half a group per loss
    ],
    ids=["iterations", "stale", "accumulation", "accumulated-rollouts", "all", "half-groups"],
)
def test_rollouts_and_losses(
    kind: str, fields: dict[str, Any], num_losses: int, num_rollouts: int, tiny_model_path: str, tmp_path: Path
) -> None:
    trainer = run(make_trainer(kind, tiny_model_path, tmp_path, {}, **fields))
    assert (len(trainer.losses), len(trainer.rollouts)) == (num_losses, num_rollouts)


# ---- evaluation ----


@both
@pytest.mark.parametrize("log_completions", [False, True])
def test_evaluation_during_training(kind: str, log_completions: bool, tiny_model_path: str, tmp_path: Path) -> None:
    arguments = {"eval_dataset": prompt_dataset(3)}
    fields: dict[str, Any] = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "num_generations_eval": 2,
        "steps_per_generation": 2,  # the first evaluation comes between a rollout and its second loss
        "log_completions": log_completions,
    }
    trainer = run(make_trainer(kind, tiny_model_path, tmp_path, arguments, **fields))
    assert len(eval_logs(trainer)) == 2
    for log in eval_logs(trainer):
        assert math.isfinite(log["eval_loss"])
        assert_process_metrics(log, prefix="eval_")
        assert not any(name in log for name in PROCESS_METRICS)
    assert not any(name.startswith("eval_") for log in train_logs(trainer) for name in log)


@both
def test_evaluation_alone(kind: str, tiny_model_path: str, tmp_path: Path) -> None:
    trainer = make_trainer(kind, tiny_model_path, tmp_path, {"eval_dataset": prompt_dataset(2)})
    move_away_from_reference(trainer)
    metrics = trainer.evaluate()
    assert math.isfinite(metrics["eval_loss"])
    assert_process_metrics(trainer.state.log_history[-1], prefix="eval_")


# ---- the rest of the options ----


@both
@pytest.mark.parametrize(
    "fields",
    [
        {"top_entropy_quantile": 0.5},
        {"off_policy_mask_threshold": 1e-4, "num_iterations": 2, "learning_rate": 1e-2},
        {"entropy_coef": 0.01},
        {"delta": 1.5},
        {"epsilon_high": 0.28, "num_iterations": 2},
        {"multi_objective_aggregation": "normalize_then_sum"},
        {"pad_to_multiple_of": 8},
        {"gradient_checkpointing": True},
        {"disable_dropout": True},
        {"num_generations": 2},
        {"beta": 0.1, "use_bias_correction_kl": False},
        {"temperature": 0.7, "top_p": 0.9, "top_k": 20},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_options(kind: str, fields: dict[str, Any], tiny_model_path: str, tmp_path: Path) -> None:
    run(make_trainer(kind, tiny_model_path, tmp_path, {}, **fields))


@both
def test_reference_is_synchronised(kind: str, tiny_model_path: str, tmp_path: Path) -> None:
    """With a copy of the policy as reference after every optimizer step, the log-ratio is 0 again."""
    fields: dict[str, Any] = {
        "beta": 0.2,
        "sync_ref_model": True,
        "ref_model_sync_steps": 1,
        "ref_model_mixup_alpha": 1.0,
        "max_steps": 3,
        "learning_rate": 1e-2,
    }
    trainer = make_trainer(kind, tiny_model_path, tmp_path, {}, **fields)
    move_away_from_reference(trainer)
    trainer.train()
    first, *later = (log["process/kl_to_go"] for log in train_logs(trainer))
    assert abs(first) > 1e-2
    assert later == pytest.approx([0.0, 0.0], abs=1e-6)


@both
@pytest.mark.skipif(Version(transformers.__version__) < Version("5.8"), reason="TRL asks for transformers 5.8")
def test_continuous_batching(kind: str, tiny_model_path: str, tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "use_transformers_continuous_batching": True,
        "transformers_continuous_batching_config": {"num_blocks": 16, "max_batch_tokens": 64},
        "max_completion_length": 6,
    }
    trainer = run(make_trainer(kind, tiny_model_path, tmp_path, {}, **fields))
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())


def test_a_scripts_arguments_are_left_alone(tiny_model_path: str, tmp_path: Path) -> None:
    args = make_grpo_args(GRPOConfig, tmp_path)
    before = copy.deepcopy(vars(args))
    trainer = PAVTrainer(
        tiny_model_path, token_reward, args, Dataset.from_dict({"prompt": ["a"]}), process_reward=AdvantageReward()
    )
    assert trainer.args is not args
    assert type(args) is GRPOConfig
    assert vars(args).keys() == before.keys()


class AdvantageReward:
    returns = "advantages"

    def __call__(self, prompts: list[Any], steps: list[list[str]], **columns: Any) -> list[list[float]]:
        return zero_progress(prompts, steps)
