"""PRLTrainer through real training runs: the formula, the forwards, and what does not change."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from trl import GRPOConfig, GRPOTrainer

from tests.tiny_models import make_grpo_args
from trl_prl.training.prl_config import PRLConfig
from trl_prl.training.prl_trainer import PRLTrainer


PROMPTS = ["Let us add 1 + 2.\n", "Say 3.\n", "Take 7 from 9.\n", "The answer is"]


@pytest.fixture
def dataset() -> Dataset:
    return Dataset.from_dict({"prompt": PROMPTS * 4})


def length_reward(completions: list[str], **kwargs: Any) -> list[float]:
    return [float(len(set(completion)) % 5) for completion in completions]


class RecordingPRLTrainer(PRLTrainer):
    """Keeps what went into and came out of the credit assignment of every loss."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.records: list[dict[str, torch.Tensor]] = []

    def on_loss_logps(self, logps: torch.Tensor, inputs: dict[str, Any]) -> None:
        before = {name: value.clone() for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        super().on_loss_logps(logps, inputs)
        self.records.append({**before, "logps": logps, "new_advantages": inputs["advantages"].clone()})


def move_away_from_reference(trainer: Any) -> None:
    """Change the policy, so that the log-ratio is not 0 from the start."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def step_logs(trainer: Any) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def loop_advantages(record: dict[str, torch.Tensor], beta: float, level: str, inclusive: bool = True) -> list[Any]:
    """PRL with the k1 estimator in plain loops (paper 2601.10201, Alg. 1; step_end as in its first version)."""
    rows = []
    for i, ids in enumerate(record["step_ids"].tolist()):
        row: list[float | None] = []
        for t, step in enumerate(ids):
            if step < 0:
                row.append(None)
                continue
            of_step = [j for j, other in enumerate(ids) if other == step]
            start = {"token": t, "step": of_step[0], "step_end": of_step[-1]}[level]
            tail = range(start if inclusive else start + 1, len(ids))
            kl = sum(
                float(record["logps"][i, j]) - float(record["ref_per_token_logps"][i, j]) for j in tail if ids[j] >= 0
            )
            row.append(float(record["advantages"][i]) - beta * kl)
        rows.append(row)
    return rows


def assert_rows_close(advantages: torch.Tensor, rows: list[Any]) -> None:
    num_compared = 0
    for row, expected in zip(advantages.tolist(), rows, strict=True):
        for value, expected_value in zip(row, expected, strict=True):
            if expected_value is None:
                assert value == 0.0
            else:
                assert value == pytest.approx(expected_value, abs=1e-5)
                num_compared += 1
    assert num_compared > 10


@pytest.mark.parametrize(
    ("level", "inclusive"), [("step", True), ("step_end", True), ("token", True), ("token", False)]
)
def test_advantages_are_outcome_minus_kl_to_go(
    tiny_model_path: str, dataset: Dataset, tmp_path: Path, level: str, inclusive: bool
) -> None:
    args = make_grpo_args(PRLConfig, tmp_path, beta=0.3, step_level=level, step_length=3, kl_inclusive=inclusive)
    trainer = RecordingPRLTrainer(tiny_model_path, length_reward, args, dataset)
    move_away_from_reference(trainer)
    trainer.train()
    assert len(trainer.records) == 2
    for record in trainer.records:
        assert (record["step_ids"].max(dim=1).values >= 1).any()  # several steps, else the levels would not differ
        assert (record["logps"] - record["ref_per_token_logps"]).abs().max() > 0.01
        assert_rows_close(record["new_advantages"], loop_advantages(record, 0.3, level, inclusive))


@pytest.mark.parametrize("estimator", ["k1", "k3"])
@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_estimators_reach_the_loss(
    tiny_model_path: str, dataset: Dataset, tmp_path: Path, estimator: str, direction: str
) -> None:
    from trl_prl.credit.advantages import prl_advantages

    args = make_grpo_args(
        PRLConfig, tmp_path, beta=0.3, max_steps=1, step_length=3, kl_estimator=estimator, kl_direction=direction
    )
    trainer = RecordingPRLTrainer(tiny_model_path, length_reward, args, dataset)
    move_away_from_reference(trainer)
    trainer.train()
    (record,) = trainer.records
    expected = prl_advantages(
        record["advantages"],
        record["logps"],
        record["ref_per_token_logps"],
        record["step_ids"],
        beta=0.3,
        estimator=estimator,  # type: ignore[arg-type]
        direction=direction,  # type: ignore[arg-type]
    )
    assert torch.equal(record["new_advantages"], expected)


def test_policy_equal_to_reference_gives_zero_correction(
    tiny_model_path: str, dataset: Dataset, tmp_path: Path
) -> None:
    args = make_grpo_args(PRLConfig, tmp_path, beta=0.3, max_steps=1, step_length=3)
    trainer = RecordingPRLTrainer(tiny_model_path, length_reward, args, dataset)
    trainer.train()
    (record,) = trainer.records
    on_mask = record["step_ids"] >= 0
    expected = record["advantages"].unsqueeze(1).expand_as(on_mask)
    assert torch.equal(record["new_advantages"][on_mask], expected[on_mask])
    (log,) = step_logs(trainer)
    assert log["kl"] == log["process/kl_to_go"] == log["process/advantage_share"] == 0.0


def test_loss_is_the_grpo_loss_without_kl_term_at_the_new_advantages(
    tiny_model_path: str, dataset: Dataset, tmp_path: Path
) -> None:
    """The KL is in the advantages and nowhere else: same gradient as GRPO with beta = 0 given these advantages."""
    args = make_grpo_args(PRLConfig, tmp_path / "prl", beta=0.3, max_steps=1, step_length=3, logging_steps=1)
    trainer = RecordingPRLTrainer(tiny_model_path, length_reward, args, dataset)
    move_away_from_reference(trainer)
    stock = GRPOTrainer(
        tiny_model_path, length_reward, make_grpo_args(GRPOConfig, tmp_path / "grpo", beta=0.0), dataset
    )
    stock.model.load_state_dict(trainer.model.state_dict())
    trainer.train()
    (record,) = trainer.records
    inputs = {name: value for name, value in record.items() if name not in ("logps", "new_advantages", "step_ids")}
    stock.current_gradient_accumulation_steps = 1
    stock.model.train()
    stock.compute_loss(stock.model, {**inputs, "advantages": record["new_advantages"]}).backward()
    grads = torch.cat([p.grad.flatten() for p in stock.model.parameters() if p.grad is not None])
    assert step_logs(trainer)[0]["grad_norm"] == pytest.approx(float(grads.norm()), rel=1e-5)


def rng_states() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]


def run_and_snapshot(trainer: Any) -> tuple[Any, ...]:
    trainer.train()
    losses = [(log["loss"], log["grad_norm"], log["entropy"]) for log in step_logs(trainer)]
    parameters = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    return losses, parameters, rng_states()


def assert_bit_equal(first: tuple[Any, ...], second: tuple[Any, ...]) -> None:
    assert first[0] == second[0]
    assert first[1].keys() == second[1].keys()
    for name, value in first[1].items():
        assert torch.equal(value, second[1][name]), name
    assert first[2] == second[2]


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"num_iterations": 2, "max_steps": 4},
        {"steps_per_generation": 2, "max_steps": 4, "loss_type": "grpo"},
        {"importance_sampling_level": "sequence", "loss_type": "grpo"},
    ],
    ids=["on-policy", "two-iterations", "stale", "sequence-level"],
)
def test_beta_zero_is_grpo_to_the_last_bit(
    tiny_model_path: str, dataset: Dataset, tmp_path: Path, overrides: dict[str, Any]
) -> None:
    stock_args = make_grpo_args(GRPOConfig, tmp_path / "grpo", beta=0.0, **overrides)
    stock = run_and_snapshot(GRPOTrainer(tiny_model_path, length_reward, stock_args, dataset))
    prl_args = make_grpo_args(PRLConfig, tmp_path / "prl", beta=0.0, **overrides)
    prl_trainer = PRLTrainer(tiny_model_path, length_reward, prl_args, dataset)
    assert prl_trainer.ref_model is None
    assert_bit_equal(stock, run_and_snapshot(prl_trainer))


def test_beta_changes_training(tiny_model_path: str, dataset: Dataset, tmp_path: Path) -> None:
    """The bit-equality above could also mean that nothing is ever changed."""
    runs = []
    for beta in (0.0, 0.5):
        args = make_grpo_args(PRLConfig, tmp_path / str(beta), beta=beta, max_steps=3)
        runs.append(run_and_snapshot(PRLTrainer(tiny_model_path, length_reward, args, dataset)))
    assert any(not torch.equal(value, runs[1][1][name]) for name, value in runs[0][1].items())


class ForwardCounter:
    """Counts forwards of the policy and of the reference, those of generation left out."""

    def __init__(self, trainer: Any) -> None:
        self.counts = {"policy": 0, "policy_grad": 0, "reference": 0}
        trainer.model.register_forward_pre_hook(self._policy, with_kwargs=True)
        if trainer.ref_model is not None:
            trainer.accelerator.unwrap_model(trainer.ref_model).register_forward_pre_hook(
                self._reference, with_kwargs=True
            )

    def _policy(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if "labels" in kwargs:  # generation has none
            self.counts["policy_grad" if torch.is_grad_enabled() else "policy"] += 1

    def _reference(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self.counts["reference"] += 1


@pytest.mark.parametrize(
    "overrides",
    [
        {"max_steps": 3},
        {"max_steps": 4, "num_iterations": 2},
        {"max_steps": 4, "steps_per_generation": 2},
        {"max_steps": 2, "gradient_accumulation_steps": 2},
        {"max_steps": 4, "num_iterations": 2, "logps_source": "rollout"},
    ],
    ids=["on-policy", "two-iterations", "stale", "accumulation", "rollout-logps"],
)
def test_no_forward_beyond_grpo(
    tiny_model_path: str, dataset: Dataset, tmp_path: Path, overrides: dict[str, Any]
) -> None:
    counts = []
    for trainer_class, config_class in ((GRPOTrainer, GRPOConfig), (PRLTrainer, PRLConfig)):
        fields = dict(overrides)
        if config_class is GRPOConfig:
            fields.pop("logps_source", None)
        args = make_grpo_args(config_class, tmp_path / trainer_class.__name__, beta=0.1, **fields)
        trainer = trainer_class(tiny_model_path, length_reward, args, dataset)
        counter = ForwardCounter(trainer)
        trainer.train()
        counts.append(counter.counts)
    assert counts[0]["policy_grad"] > 0
    assert counts[0]["reference"] > 0
    assert counts[0] == counts[1]


def test_rollout_logps_stay_while_current_ones_move(tiny_model_path: str, dataset: Dataset, tmp_path: Path) -> None:
    """With two iterations per rollout, the second loss of a batch sees a policy that has moved."""
    records = {}
    for source in ("rollout", "current"):
        args = make_grpo_args(
            PRLConfig, tmp_path / source, beta=0.3, num_iterations=2, max_steps=2, step_length=3, logps_source=source
        )
        trainer = RecordingPRLTrainer(tiny_model_path, length_reward, args, dataset)
        move_away_from_reference(trainer)
        trainer.train()
        records[source] = trainer.records
    first, second = records["rollout"]
    assert torch.equal(first["completion_ids"], second["completion_ids"])
    assert torch.equal(first["new_advantages"], second["new_advantages"])
    first, second = records["current"]
    assert torch.equal(first["completion_ids"], second["completion_ids"])
    assert not torch.equal(first["new_advantages"], second["new_advantages"])
    assert_rows_close(second["new_advantages"], loop_advantages(second, 0.3, "step"))


def test_logged_kl_is_that_of_grpo(tiny_model_path: str, dataset: Dataset, tmp_path: Path) -> None:
    kls = []
    for trainer_class, config_class in ((GRPOTrainer, GRPOConfig), (PRLTrainer, PRLConfig)):
        args = make_grpo_args(config_class, tmp_path / trainer_class.__name__, beta=0.1, max_steps=1)
        trainer = trainer_class(tiny_model_path, length_reward, args, dataset)
        move_away_from_reference(trainer)
        trainer.train()
        kls.append(step_logs(trainer)[0]["kl"])
    assert kls[0] > 0
    assert kls[1] == pytest.approx(kls[0], rel=1e-6)


def test_advantages_carry_no_gradient(tiny_model_path: str, dataset: Dataset, tmp_path: Path) -> None:
    args = make_grpo_args(PRLConfig, tmp_path, beta=0.3, max_steps=1)
    trainer = RecordingPRLTrainer(tiny_model_path, length_reward, args, dataset)
    trainer.train()
    (record,) = trainer.records
    assert not record["new_advantages"].requires_grad
    assert not record["logps"].requires_grad


def test_beta_changed_on_the_trainer_is_used(tiny_model_path: str, dataset: Dataset, tmp_path: Path) -> None:
    """TRL reads `trainer.beta` in every loss, so callbacks that schedule it must work here too."""
    args = make_grpo_args(PRLConfig, tmp_path, beta=0.3, max_steps=1, step_length=3)
    trainer = RecordingPRLTrainer(tiny_model_path, length_reward, args, dataset)
    move_away_from_reference(trainer)
    trainer.beta = 0.7
    trainer.train()
    assert trainer.beta == 0.7
    assert_rows_close(trainer.records[0]["new_advantages"], loop_advantages(trainer.records[0], 0.7, "step"))


def test_splitter_object_replaces_the_configured_one(tiny_model_path: str, dataset: Dataset, tmp_path: Path) -> None:
    class EveryToken:
        def step_ends(self, pieces: Any) -> list[int]:
            return list(range(1, len(pieces) + 1))

    args = make_grpo_args(PRLConfig, tmp_path, beta=0.3, max_steps=1)
    trainer = RecordingPRLTrainer(tiny_model_path, length_reward, args, dataset, step_splitter=EveryToken())
    trainer.train()
    ids = trainer.records[0]["step_ids"]
    lengths = (ids >= 0).sum(dim=1)
    assert ids.max(dim=1).values.tolist() == (lengths - 1).tolist()


def test_what_is_saved_is_what_grpo_saves(tiny_model_path: str, dataset: Dataset, tmp_path: Path) -> None:
    """So whatever serves or converts a policy of stock GRPO does so with ours."""
    for cls, config in ((GRPOTrainer, GRPOConfig), (PRLTrainer, PRLConfig)):
        args = make_grpo_args(config, tmp_path / cls.__name__, beta=0.1, max_steps=1)
        trainer = cls(tiny_model_path, length_reward, args, dataset)
        trainer.train()
        trainer.save_model()
    theirs, ours = (
        {path.name for path in (tmp_path / name).iterdir() if path.is_file()} for name in ("GRPOTrainer", "PRLTrainer")
    )
    assert ours == theirs
    for name in ours & {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}:
        assert (tmp_path / "PRLTrainer" / name).read_bytes() == (tmp_path / "GRPOTrainer" / name).read_bytes()
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("GRPOTrainer", "PRLTrainer"))
    assert {name: value.shape for name, value in first.items()} == {n: value.shape for n, value in second.items()}


def test_model_card_names_the_method(tiny_model_path: str, dataset: Dataset, tmp_path: Path) -> None:
    args = make_grpo_args(PRLConfig, tmp_path, beta=0.1, max_steps=1)
    trainer = PRLTrainer(tiny_model_path, length_reward, args, dataset)
    trainer.train()
    trainer.save_model(str(tmp_path))
    trainer.create_model_card(model_name="x")
    card = (tmp_path / "README.md").read_text()
    assert "None" not in card
    assert "2601.10201" in card
    assert "PRL" in card
