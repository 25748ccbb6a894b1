"""Training with rollouts by vLLM in the trainer's process: ratios, log-probs, forwards, and new weights in the engine.

`make test-vllm` runs them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer

from tests.benchmarks.arithmetic.task import arithmetic_policy_path, sample_problems
from tests.tiny_models import make_grpo_args, token_reward
from tests.trainer_runs import assert_process_metrics, make_trainer, text_values, train_logs, trainable
from tests.training.test_prl_trainer import ForwardCounter
from tests.vllm_runs import require_vllm
from trl_prl.credit.advantages import prl_advantages
from trl_prl.training.callback import ProcessRewardCallback


require_vllm()
pytestmark = pytest.mark.vllm

FIELDS: dict[str, Any] = {
    "use_vllm": True,
    "vllm_mode": "colocate",
    "vllm_gpu_memory_utilization": 0.1,
    "vllm_max_model_length": 64,
    "max_completion_length": 24,
    "max_steps": 3,
    "learning_rate": 3e-3,
}
DATASET = Dataset.from_list([{"prompt": problem.prompt} for problem in sample_problems("train", 8, seed=0)])
LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
RATIO = "sampling/importance_sampling_ratio/"
# An engine that goes takes the process group of the others with it.
KEPT: list[Any] = []


@pytest.fixture(autouse=True)
def weights_can_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, vLLM packs weights away once they are loaded, and new ones have no place to go; on a GPU they stay."""

    def keep(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    monkeypatch.setattr("vllm.model_executor.layers.utils.dispatch_cpu_unquantized_gemm", keep)


@pytest.fixture(autouse=True)
def engine_of_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL leaves the dtype to vLLM, which makes bfloat16 of a float32 model: ratios would show its rounding."""
    from trl.generation import vllm_generation

    monkeypatch.setattr(vllm_generation, "LLM", functools.partial(vllm_generation.LLM, dtype="float32"))


def build(kind: str, folder: Path, trainer: dict[str, Any] | None = None, **overrides: Any) -> Any:
    """A trainer with vLLM in its process, over the arithmetic policy."""
    fields = {**FIELDS, **overrides}
    arguments = {"train_dataset": DATASET, **(trainer or {})}
    if kind in ("prl", "pav"):
        made = make_trainer(kind, arithmetic_policy_path(), folder, arguments, **fields)
    else:
        args = make_grpo_args(GRPOConfig, folder, **fields)
        made = GRPOTrainer(arithmetic_policy_path(), token_reward, args, **arguments)
        if kind == "callback":
            made.add_callback(ProcessRewardCallback(made, process_reward=text_values, initial_value=0.5))
    KEPT.append(made)
    return made


@pytest.mark.parametrize(("kind", "peft_config"), [("prl", None), ("pav", None), ("callback", None), ("prl", LORA)])
def test_ratios_stay_near_1_while_the_policy_moves(kind: str, peft_config: Any, tmp_path: Path) -> None:
    """The engine gets the new weights, those of adapters too: else its log-probs would be those of an old policy."""
    trainer = build(kind, tmp_path, {"peft_config": peft_config})
    before = trainable(trainer)
    trainer.train()
    after = trainable(trainer)
    assert any((value - before[name]).abs().max() > 1e-3 for name, value in after.items())
    assert len(train_logs(trainer)) == 3
    for log in train_logs(trainer):
        assert_process_metrics(log)
        # By default, ratios are of whole completions.
        for statistic in ("min", "mean", "max"):
            assert log[RATIO + statistic] == pytest.approx(1.0, abs=1e-3)
    # Before its first step, a policy is the reference, and PRL has nothing to say.
    assert train_logs(trainer)[-1]["process/reward/frac_zero"] < 1


def shift_log_probs(trainer: Any, by: float) -> None:
    """Make the engine's log-probs differ from the trainer's, as those of another precision do."""
    generate: Callable[..., Any] = trainer.vllm_generation.generate

    def shifted(*args: Any, **kwargs: Any) -> Any:
        prompt_ids, completion_ids, logprobs, *rest = generate(*args, **kwargs)
        return prompt_ids, completion_ids, [[[x + by for x in top] for top in row] for row in logprobs], *rest

    trainer.vllm_generation.generate = shifted


@pytest.mark.parametrize("source", ["current", "rollout"])
def test_prl_never_reads_the_log_probs_of_the_engine(source: str, tmp_path: Path) -> None:
    """The ratios follow an engine that is off by 0.3; the credit is that of the trainer's own log-probs."""
    fields = {"vllm_importance_sampling_mode": "token_truncate", "beta": 0.2}
    trainer = build("prl", tmp_path, step_splitter="newline", logps_source=source, **fields)
    shift_log_probs(trainer, 0.3)
    trainer.train()
    for log in train_logs(trainer):
        assert log[RATIO + "mean"] == pytest.approx(math.exp(-0.3), abs=1e-3)
    for record in trainer.losses:
        own, theirs = record["logps"], record["sampling_per_token_logps"]
        mask = record["step_ids"] >= 0
        torch.testing.assert_close((theirs - own)[mask], torch.full_like(own, 0.3)[mask], atol=1e-3, rtol=0)
        # TRL has shuffled the rows of the rollout.
        ids = record["completion_ids"].tolist()
        rollout = next(r for r in trainer.rollouts if sorted(r["completion_ids"].tolist()) == sorted(ids))
        outcome = rollout["outcome_advantages"][[rollout["completion_ids"].tolist().index(row) for row in ids]]
        expected = prl_advantages(outcome, own, record["ref_per_token_logps"], record["step_ids"], 0.2)
        torch.testing.assert_close(record["advantages"][mask], expected[mask], atol=1e-4, rtol=1e-4)


def test_ratios_weigh_the_loss(tmp_path: Path) -> None:
    """Half the ratio, half the first update: by plain gradient descent on the same samples."""
    moves, samples = [], []
    for ratio in (1.0, 0.5):
        # As good as one number: TRL wants the lower bound to be lower.
        bounds = {"vllm_importance_sampling_clip_min": ratio - 1e-6, "vllm_importance_sampling_clip_max": ratio}
        fields = {"vllm_importance_sampling_mode": "token_truncate", "optim": "sgd", "max_grad_norm": 0.0, **bounds}
        trainer = build("prl", tmp_path / str(ratio), max_steps=1, **fields)
        before = trainable(trainer)
        trainer.train()
        moves.append({name: value - before[name] for name, value in trainable(trainer).items()})
        samples.append(trainer.rollouts[0]["completion_ids"].tolist())
    assert samples[0] == samples[1]
    assert any(move.abs().max() > 1e-5 for move in moves[0].values())
    for name, move in moves[0].items():
        torch.testing.assert_close(moves[1][name], 0.5 * move, atol=1e-6, rtol=1e-3)


def test_no_forward_beyond_grpo(tmp_path: Path) -> None:
    """TRL computes the policy's log-probs for the ratios; PRL and the callback add nothing to that."""
    counts = []
    for kind in ("grpo", "prl", "callback"):
        trainer = build(kind, tmp_path / kind, beta=0.1)
        counter = ForwardCounter(trainer)
        trainer.train()
        counts.append(counter.counts)
    assert counts[0] == {"policy": 3, "policy_grad": 3, "reference": 3}
    assert counts[0] == counts[1] == counts[2]
