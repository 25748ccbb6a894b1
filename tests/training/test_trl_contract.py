"""What `trl_prl` relies on in TRL and TRL does not promise, checked against the installed version.

A failure here means that TRL changed under one of the hooks listed in docs/trl_compatibility.md, not that training is
merely different. Every message names the installed version.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from tests.tiny_models import make_grpo_args, needs_response_templates, prompt_dataset, token_reward
from trl_prl.training.setup import PER_TOKEN_LOSS_TYPES


VERSION = f"installed: TRL {trl.__version__}"
LEVELS = ("token", "sequence")
# At the sequence level, these loss types still weight each token's log-prob by its own advantage.
PER_TOKEN_AT_SEQUENCE_LEVEL = ("cispo", "vespo")


class ProbedTrainer(GRPOTrainer):
    """Stock GRPO that keeps the log-probs of the loss and lets a test act right after that forward."""

    loss_logps: torch.Tensor | None = None
    num_forwards = 0
    after_forward: Callable[[], None] | None = None

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self.num_forwards += 1
        if result[0].requires_grad:
            self.loss_logps = result[0]
            self.loss_logps.retain_grad()
        if self.after_forward is not None:
            self.after_forward()
        return result


def make_trainer(path: str, folder: Path, cls: type = ProbedTrainer, **overrides: Any) -> Any:
    """Build a trainer; extra arguments of the trainer itself go in `trainer_kwargs`."""
    trainer_kwargs = overrides.pop("trainer_kwargs", {})
    config = RLOOConfig if issubclass(cls, RLOOTrainer) else GRPOConfig
    dataset = prompt_dataset(conversational="tools" in trainer_kwargs)
    args = make_grpo_args(config, folder, **overrides)
    trainer = cls(path, token_reward, args, train_dataset=dataset, **trainer_kwargs)
    trainer.current_gradient_accumulation_steps = 1  # set by `train()`, which these tests do not call
    trainer.model.train()
    return trainer


def roll_out(trainer: Any, seed: int = 3) -> dict[str, Any]:
    """Sample one group of four completions for one prompt, with a fixed seed."""
    torch.manual_seed(seed)
    row = trainer.train_dataset[2]
    return trainer._generate_and_score_completions([dict(row) for _ in range(4)])


def loss_and_gradients(trainer: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Compute the loss and its gradients with respect to the parameters."""
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, dict(batch))
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None]


def token_advantages(batch: dict[str, Any]) -> torch.Tensor:
    """Make advantages of shape (B, T) with a different value, of either sign, for every token."""
    generator = torch.Generator().manual_seed(11)
    return torch.randn(batch["completion_ids"].shape, generator=generator)


def expanded(batch: dict[str, Any]) -> dict[str, Any]:
    """Give every token the advantage of its completion, as a tensor of shape (B, T)."""
    advantages = batch["advantages"].unsqueeze(1).expand(batch["completion_ids"].shape).contiguous()
    return {**batch, "advantages": advantages}


def compared_strings(function: Callable[..., Any], attribute: str) -> set[str]:
    """Collect the strings that a method compares `self.<attribute>` with."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.Attribute) and node.left.attr == attribute:
            constants = (leaf for side in node.comparators for leaf in ast.walk(side))
            found |= {leaf.value for leaf in constants if isinstance(leaf, ast.Constant)}
    return found


# ---- hooks and signatures ----


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("_generate_and_score_completions", ["self", "inputs"]),
        ("_compute_loss", ["self", "model", "inputs"]),
    ],
)
@pytest.mark.parametrize("cls", [GRPOTrainer, RLOOTrainer])
def test_hook_signatures(cls: type, method: str, parameters: list[str]) -> None:
    hook = getattr(cls, method, None)
    assert hook is not None, f"{cls.__name__}.{method} is gone ({VERSION})"
    assert list(inspect.signature(hook).parameters) == parameters, f"{cls.__name__}.{method} changed ({VERSION})"


def test_constructor_parameters() -> None:
    names = list(inspect.signature(GRPOTrainer.__init__).parameters)
    assert names[:4] == ["self", "model", "reward_funcs", "args"], f"the constructor changed ({VERSION})"
    ours = {"process_reward", "step_splitter"}
    assert not ours & set(names), f"TRL now has arguments of ours: {ours & set(names)} ({VERSION})"


def test_loss_types_are_the_known_ones() -> None:
    found = compared_strings(GRPOTrainer._compute_loss, "loss_type")
    assert found == set(PER_TOKEN_LOSS_TYPES), (
        f"TRL's loss types are {sorted(found)}, known are {sorted(PER_TOKEN_LOSS_TYPES)} ({VERSION}). Check how a new "
        "one uses advantages of shape (B, T), then add it to PER_TOKEN_LOSS_TYPES and docs/trl_compatibility.md."
    )
    levels = compared_strings(GRPOTrainer._compute_loss, "importance_sampling_level")
    assert levels == set(LEVELS), f"importance sampling levels are {sorted(levels)} ({VERSION})"


# ---- what a rollout returns ----


def multiply(a: int, b: int) -> int:
    """Multiply two numbers.

    Args:
        a: First number.
        b: Second number.

    Returns:
        The product.
    """
    return a * b


@pytest.mark.parametrize("with_tools", [False, pytest.param(True, marks=needs_response_templates)])
@pytest.mark.parametrize("num_iterations", [1, 2])
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_rollout_keys(
    tiny_model_path: str, tmp_path: Path, beta: float, num_iterations: int, with_tools: bool
) -> None:
    trainer = make_trainer(
        tiny_model_path,
        tmp_path,
        beta=beta,
        num_iterations=num_iterations,
        trainer_kwargs={"tools": [multiply]} if with_tools else {},
    )
    output = roll_out(trainer)
    shape = output["completion_ids"].shape
    assert output["advantages"].shape == shape[:1], VERSION
    assert output["advantages"].dtype == torch.float32, VERSION
    assert output["completion_mask"].shape == shape, VERSION
    assert ("ref_per_token_logps" in output) == (beta != 0), f"reference log-probs ({VERSION})"
    assert ("old_per_token_logps" in output) == (num_iterations > 1), f"old log-probs ({VERSION})"
    assert ("tool_mask" in output) == with_tools, f"tool mask ({VERSION})"
    for name in ("ref_per_token_logps", "old_per_token_logps", "tool_mask"):
        assert name not in output or output[name].shape == shape, f"{name} ({VERSION})"
    expected_forwards = (beta != 0) + (num_iterations > 1)
    assert trainer.num_forwards == expected_forwards, f"forwards per rollout ({VERSION})"


def test_metrics_and_completions_table(tiny_model_path: str, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_model_path, tmp_path)
    roll_out(trainer)
    for mode in ("train", "eval"):
        trainer._metrics[mode]["process/probe"].append(1.0)
    assert trainer._metrics["train"]["reward"], f"metrics have another form ({VERSION})"
    trainer._logs["extra"]["probe"].extend([1, 2])
    results = trainer._logs["rewards"][trainer.reward_func_names[0]]
    assert len(results) == 4, f"results of reward functions have another form ({VERSION})"
    assert all(isinstance(result, float) for result in results), VERSION
    assert trainer.processing_class.eos_token_id in trainer.eos_token_ids, VERSION
    assert len(trainer._logs["prompt"]) == 4, f"the completions table has another form ({VERSION})"


class RowTrainer(GRPOTrainer):
    """Stock GRPO that checks that a tensor added to a rollout stays with its rows."""

    num_checked = 0

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        output["step_ids"] = output["completion_ids"].clone()
        output["row_ids"] = torch.arange(len(inputs))
        return output

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        assert inputs["step_ids"].equal(inputs["completion_ids"]), f"added tensors lost their rows ({VERSION})"
        assert inputs["row_ids"].shape == inputs["completion_ids"].shape[:1], VERSION
        self.num_checked += 1
        return super()._compute_loss(model, inputs)


def test_added_tensors_stay_with_their_rows(tiny_model_path: str, tmp_path: Path) -> None:
    trainer = make_trainer(
        tiny_model_path, tmp_path, RowTrainer, steps_per_generation=2, num_iterations=2, max_steps=8
    )
    trainer.train()
    assert trainer.num_checked == 8


# ---- what the loss does with advantages ----


@pytest.fixture(scope="module")
def trainer(tiny_model_path: str, tmp_path_factory: pytest.TempPathFactory) -> ProbedTrainer:
    """One trainer for the tests of the loss, which set its loss type and level through its attributes."""
    return make_trainer(tiny_model_path, tmp_path_factory.mktemp("trainer"), beta=0.05)


@pytest.fixture(scope="module")
def batches(trainer: ProbedTrainer) -> dict[str, dict[str, Any]]:
    """A ragged batch, and one with as many completions as tokens; each also as if an older policy had sampled it."""
    # Which completions are sampled depends on the release of torch.
    rollouts = (roll_out(trainer, seed) for seed in range(3, 23))
    ragged = next(one for one in rollouts if len(set(one["completion_mask"].sum(1).tolist())) > 1)
    num_rows = len(ragged["completion_ids"])
    per_token = ("completion_ids", "completion_mask", "ref_per_token_logps")
    square = {k: v[:, :num_rows].contiguous() if k in per_token else v for k, v in ragged.items()}
    square["num_items_in_batch"] = square["completion_mask"].sum()
    found = {"ragged": ragged, "square": square}
    generator = torch.Generator().manual_seed(5)
    for name in ("ragged", "square"):
        # Noise on the log-probs of the reference, which is the initial policy: ratios around 1, some of them clipped.
        logps = found[name]["ref_per_token_logps"]
        old_logps = logps + 0.4 * torch.randn(logps.shape, generator=generator)
        found[f"stale {name}"] = {**found[name], "old_per_token_logps": old_logps}
    return found


def set_loss(trainer: Any, loss_type: str, level: str, beta: float = 0.0, threshold: float | None = None) -> None:
    """Choose what the next losses compute."""
    trainer.loss_type, trainer.importance_sampling_level = loss_type, level
    trainer.beta, trainer.off_policy_mask_threshold = beta, threshold
    # CISPO reads it as the upper bound of the ratio itself; TRL's default of 0.2 would scale every token down.
    trainer.epsilon_high = 5.0 if loss_type == "cispo" else 0.2


@pytest.mark.parametrize("kind", ["ragged", "square", "stale ragged", "stale square"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", PER_TOKEN_LOSS_TYPES)
def test_expanded_advantages_change_nothing(
    trainer: Any, batches: dict[str, dict[str, Any]], loss_type: str, level: str, kind: str
) -> None:
    batch = batches[kind]
    assert ("square" in kind) == (batch["completion_ids"].shape[0] == batch["completion_ids"].shape[1])
    for threshold in (None, 0.01):
        set_loss(trainer, loss_type, level, beta=0.05, threshold=threshold)
        loss, gradients = loss_and_gradients(trainer, batch)
        expanded_loss, expanded_gradients = loss_and_gradients(trainer, expanded(batch))
        assert loss.equal(expanded_loss), f"{loss} != {expanded_loss} ({VERSION})"
        for gradient, other in zip(gradients, expanded_gradients, strict=True):
            if level == "token":
                assert gradient.equal(other), f"gradients differ ({VERSION})"
            else:
                # One ratio per completion: autograd sums `mask * a` over tokens where it summed `mask` before.
                torch.testing.assert_close(other, gradient, rtol=1e-5, atol=1e-6, msg=lambda m: f"{m} ({VERSION})")


def loss_weight(trainer: Any, loss_type: str, mask: torch.Tensor) -> torch.Tensor:
    """Weight that each token of a completion has in the loss, of shape (B, 1), written out from the papers' sums."""
    num_rows, lengths = len(mask), mask.sum(1, keepdim=True)
    weights = {
        "grpo": 1 / (lengths * num_rows),
        "dr_grpo": torch.full_like(lengths, 1.0) / (num_rows * trainer.max_completion_length),
        "luspo": torch.full_like(lengths, 1.0) / num_rows,
    }
    weights["sapo"] = weights["grpo"]
    return weights.get(loss_type, torch.ones_like(lengths) / mask.sum())


@pytest.mark.parametrize("kind", ["ragged", "square"])
@pytest.mark.parametrize("loss_type", PER_TOKEN_LOSS_TYPES)
def test_each_token_gets_its_own_advantage(
    trainer: Any, batches: dict[str, dict[str, Any]], loss_type: str, kind: str
) -> None:
    batch = {**batches[kind], "advantages": token_advantages(batches[kind])}
    mask = batch["completion_mask"].float()
    set_loss(trainer, loss_type, "token")
    loss_and_gradients(trainer, batch)
    expected = -batch["advantages"] * mask * loss_weight(trainer, loss_type, mask)
    torch.testing.assert_close(trainer.loss_logps.grad, expected, msg=lambda m: f"{m} ({VERSION})")


@pytest.mark.parametrize("loss_type", PER_TOKEN_LOSS_TYPES)
def test_sequence_level_averages_advantages_over_the_completion(
    trainer: Any, batches: dict[str, dict[str, Any]], loss_type: str
) -> None:
    # Why `ProcessRewardHooks` does not leave the sequence level to TRL: only the mean of a completion's token
    # advantages would reach its tokens. Fails if TRL starts to differentiate the ratio per token.
    batch = {**batches["ragged"], "advantages": token_advantages(batches["ragged"])}
    mask = batch["completion_mask"].float()
    set_loss(trainer, loss_type, "sequence")
    loss_and_gradients(trainer, batch)
    used = batch["advantages"]
    if loss_type not in PER_TOKEN_AT_SEQUENCE_LEVEL:
        used = ((used * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)).expand_as(used)
    expected = -used * mask * loss_weight(trainer, loss_type, mask)
    torch.testing.assert_close(trainer.loss_logps.grad, expected, msg=lambda m: f"{m} ({VERSION})")


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo"])
def test_ratio_and_clipping_act_per_token(trainer: Any, batches: dict[str, dict[str, Any]], loss_type: str) -> None:
    batch = {**batches["stale ragged"], "advantages": token_advantages(batches["stale ragged"])}
    mask = batch["completion_mask"].float()
    set_loss(trainer, loss_type, "token")
    loss_and_gradients(trainer, batch)
    advantages, ratio = batch["advantages"], torch.exp(trainer.loss_logps.detach() - batch["old_per_token_logps"])
    if loss_type == "cispo":
        factor = ratio.clamp(max=trainer.epsilon_high)
    else:
        clipped = torch.where(advantages > 0, ratio > 1 + trainer.epsilon_high, ratio < 1 - trainer.epsilon_low)
        assert (clipped & mask.bool()).any()
        factor = ratio * ~clipped
    expected = -advantages * factor * mask * loss_weight(trainer, loss_type, mask)
    torch.testing.assert_close(trainer.loss_logps.grad, expected, msg=lambda m: f"{m} ({VERSION})")


def test_off_policy_mask_drops_single_tokens(trainer: Any) -> None:
    # With one advantage per completion it drops completions; with one per token, the negative tokens of those.
    advantages = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    old_logps, logps = torch.zeros(2, 2), torch.tensor([[0.0, 0.0], [-1.0, -1.0]])
    kept = trainer.get_off_policy_mask(advantages, logps, old_logps, torch.ones(2, 2), 0.5)
    assert kept.tolist() == [[1.0, 1.0], [1.0, 0.0]], VERSION


def test_vespo_gate_depends_on_the_sign_of_the_token(trainer: Any) -> None:
    advantages = torch.tensor([[1.0, -1.0]])
    gates = trainer.get_gamma_weights(advantages, torch.full((1, 2), 0.1), torch.ones(1, 2), None)
    ratio = torch.tensor(0.2).exp()
    expected = torch.stack([ratio**2 * (3 * (1 - ratio)).exp(), ratio**3 * (2 * (1 - ratio)).exp()])
    torch.testing.assert_close(gates[0], expected, msg=lambda m: f"{m} ({VERSION})")


# ---- when the loss reads what ----


def test_loss_does_one_forward_and_then_reads_its_inputs(trainer: Any, batches: dict[str, dict[str, Any]]) -> None:
    batch = batches["ragged"]
    logps = batch["ref_per_token_logps"]
    changed = {"advantages": token_advantages(batch), "old_per_token_logps": logps - 0.1}
    set_loss(trainer, "dapo", "token")
    expected = loss_and_gradients(trainer, {**batch, **changed})[0]

    inputs = dict(batch)
    set_loss(trainer, "dapo", "sequence")
    num_forwards = trainer.num_forwards

    def change_inputs() -> None:
        inputs.update(changed)
        trainer.importance_sampling_level = "token"

    trainer.after_forward = change_inputs
    try:
        loss = trainer._compute_loss(trainer.model, inputs)
    finally:
        trainer.after_forward = None
    assert trainer.num_forwards == num_forwards + 1, f"the loss does more than one forward ({VERSION})"
    assert loss.detach().equal(expected), f"the loss reads its inputs before its forward ({VERSION})"


def test_zero_beta_switches_the_loss_side_kl_off(trainer: Any, batches: dict[str, dict[str, Any]]) -> None:
    batch = {**batches["ragged"], "ref_per_token_logps": batches["ragged"]["ref_per_token_logps"] - 0.5}
    set_loss(trainer, "dapo", "token", beta=0.05)
    with_kl = loss_and_gradients(trainer, batch)[0]
    set_loss(trainer, "dapo", "token", beta=0.0)
    without_kl = loss_and_gradients(trainer, batch)[0]
    kl = torch.tensor(-0.5).exp() + 0.5 - 1
    torch.testing.assert_close(with_kl - without_kl, 0.05 * kl, rtol=1e-4, atol=1e-6, msg=lambda m: f"{m} ({VERSION})")


# ---- RLOO ----


def test_rloo_has_no_place_for_token_advantages(tiny_model_path: str, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_model_path, tmp_path, RLOOTrainer, max_completion_length=6)
    batch = roll_out(trainer)
    assert batch["advantages"].shape == (4,), VERSION
    assert "old_logps" in batch, VERSION
    assert batch["completion_ids"].shape[1] == 6
    with pytest.raises(RuntimeError, match="must match the size"):
        trainer._compute_loss(trainer.model, expanded(batch))

    # As many tokens as completions: no error, but row i of the ratios meets column i of the advantages.
    square = {
        **batch,
        "completion_ids": batch["completion_ids"][:, :4],
        "completion_mask": batch["completion_mask"][:, :4],
    }
    square["old_logps"] = square["old_logps"] + torch.tensor([0.1, -0.1, 0.2, -0.2])
    loss = trainer._compute_loss(trainer.model, dict(square))
    broadcast_loss = trainer._compute_loss(trainer.model, expanded(square))
    assert not torch.isclose(loss, broadcast_loss), VERSION
