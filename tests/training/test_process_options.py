"""Options of both trainers through real runs: baselines, units, placements, forms of credit, numbers that are none."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer

from tests.tiny_models import make_grpo_args, prompt_dataset, token_reward
from tests.trainer_runs import KINDS, make_trainer, move_away_from_reference, text_values, train_logs, trainable
from tests.training.test_prl_trainer import ForwardCounter, assert_bit_equal, run_and_snapshot
from trl_prl.credit.advantages import pav_advantages
from trl_prl.credit.baselines import step_credit
from trl_prl.credit.groups import from_positions, group_normalise, leave_one_out, to_positions
from trl_prl.credit.kl import kl_to_go
from trl_prl.credit.step_tensors import pad_step_rewards, spread_to_tokens
from trl_prl.prompts.format import PromptFormat
from trl_prl.training.callback import ProcessRewardCallback
from trl_prl.training.hacking_radar import HackingRadar
from trl_prl.training.prl_config import PRLConfig
from trl_prl.training.prl_trainer import PRLTrainer
from trl_prl.verifier.settings import VerifierSettings


both = pytest.mark.parametrize("kind", KINDS)


def trained(kind: str, model: Any, folder: Path, arguments: dict[str, Any] | None = None, **fields: Any) -> Any:
    trainer = make_trainer(kind, model, folder, arguments or {}, **{"max_steps": 1, **fields})
    move_away_from_reference(trainer)
    trainer.train()
    return trainer


def baseline_of(values: torch.Tensor, step_ids: torch.Tensor) -> torch.Tensor:
    return from_positions(leave_one_out(to_positions(values, step_ids), 4), step_ids)


# ---- PRL: where the KL goes ----


@pytest.mark.parametrize("overrides", [{}, {"num_iterations": 2, "max_steps": 4}], ids=["on-policy", "two-iterations"])
def test_kl_in_the_loss_is_grpo_to_the_last_bit(
    overrides: dict[str, Any], tiny_model_path: str, tmp_path: Path
) -> None:
    fields = {"beta": 0.3, **overrides}
    args = make_grpo_args(GRPOConfig, tmp_path / "grpo", **fields)
    stock = GRPOTrainer(tiny_model_path, token_reward, args, prompt_dataset())
    move_away_from_reference(stock)
    expected = run_and_snapshot(stock)
    prl_args = make_grpo_args(PRLConfig, tmp_path / "prl", kl_placement="loss", **fields)
    prl = PRLTrainer(tiny_model_path, token_reward, prl_args, prompt_dataset())
    move_away_from_reference(prl)
    assert_bit_equal(expected, run_and_snapshot(prl))
    assert [log["kl"] for log in train_logs(stock)] == [log["kl"] for log in train_logs(prl)]


@pytest.mark.parametrize("scale_rewards", ["group", "none"])
def test_kl_in_the_reward_is_subtracted_before_normalisation(
    scale_rewards: str, tiny_model_path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fields: dict[str, Any] = {"kl_placement": "reward", "beta": 0.3, "scale_rewards": scale_rewards}
    with caplog.at_level(logging.WARNING, logger="trl_prl"):
        trainer = trained("prl", tiny_model_path, tmp_path, **fields)
    assert "runs with it collapsed" in caplog.text
    (record,) = trainer.losses
    mask = record["step_ids"] >= 0
    kl = torch.where(mask, record["logps"] - record["ref_per_token_logps"], 0.0).sum(1)
    ids = [row[m].tolist() for row, m in zip(record["completion_ids"], mask, strict=True)]
    # One loss holds the whole group, shuffled.
    expected = group_normalise(torch.tensor(token_reward(ids)) - 0.3 * kl, 4, scale_rewards)  # type: ignore[arg-type]
    torch.testing.assert_close(record["advantages"], expected, atol=2e-3, rtol=1e-3)
    assert train_logs(trainer)[0]["kl"] > 0


# ---- leave-one-out baselines ----


@pytest.mark.parametrize("level", ["token", "step", "step_end"])
@pytest.mark.parametrize("overrides", [{}, {"num_iterations": 2}], ids=["on-policy", "stale"])
def test_prl_subtracts_the_kl_of_the_others(
    level: str, overrides: dict[str, Any], tiny_model_path: str, tmp_path: Path
) -> None:
    fields = {"beta": 0.3, "step_splitter": "fixed", "step_length": 3, "step_level": level, **overrides}
    trainer = trained("prl", tiny_model_path, tmp_path, process_baseline="group", **fields)
    (record,) = trainer.losses
    kl = kl_to_go(record["logps"], record["ref_per_token_logps"], record["step_ids"], level)  # type: ignore[arg-type]
    baseline = baseline_of(kl, record["step_ids"])
    assert baseline.abs().max() > 0.01
    torch.testing.assert_close(record["kl_baseline"], baseline, atol=1e-5, rtol=1e-5)
    outcome = trainer.rollouts[0]["outcome_advantages"]
    assert sorted(outcome.tolist()) != [0.0] * 4
    mask = record["step_ids"] >= 0
    found = (record["advantages"] + 0.3 * (kl - baseline)).masked_fill(~mask, 0.0)
    for row, on in zip(found, mask, strict=True):
        assert min(abs(float(row[on][0]) - value) for value in outcome.tolist()) < 1e-5
        torch.testing.assert_close(row[on], row[on][:1].expand(int(on.sum())), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("overrides", "num_more"), [({}, 2), ({"num_iterations": 2}, 0)], ids=["on-policy", "stale"])
def test_a_baseline_of_prl_costs_a_forward_where_trl_has_none(
    overrides: dict[str, Any], num_more: int, tiny_model_path: str, tmp_path: Path
) -> None:
    counts = []
    for baseline in ("none", "group"):
        args = make_grpo_args(PRLConfig, tmp_path / baseline, beta=0.1, process_baseline=baseline, **overrides)
        trainer = PRLTrainer(tiny_model_path, token_reward, args, prompt_dataset())
        counter = ForwardCounter(trainer)
        trainer.train()
        counts.append(counter.counts)
    assert counts[1]["policy"] == counts[0]["policy"] + num_more
    assert {**counts[1], "policy": 0} == {**counts[0], "policy": 0}


def test_pav_subtracts_the_progress_of_the_others(tiny_model_path: str, tmp_path: Path) -> None:
    runs = [
        trained("pav", tiny_model_path, tmp_path / baseline, alpha=2.0, process_baseline=baseline)
        for baseline in ("none", "group")
    ]
    plain, centred = (run.rollouts[0] for run in runs)
    assert torch.equal(plain["completion_ids"], centred["completion_ids"])
    step_ids = plain["step_ids"]
    process = (plain["advantages"] - plain["outcome_advantages"].unsqueeze(1)).masked_fill(step_ids < 0, 0.0)
    expected = plain["advantages"] - baseline_of(process, step_ids)
    torch.testing.assert_close(centred["advantages"], expected, atol=1e-5, rtol=1e-5)
    assert not torch.equal(plain["advantages"], centred["advantages"])


def test_an_unscored_step_keeps_the_outcome_under_a_baseline(tiny_model_path: str, tmp_path: Path) -> None:
    def first_step_unscorable(prompts: Any, steps: list[list[str]], **columns: Any) -> list[list[float | None]]:
        return [[None if h == 0 else 0.4 for h in range(len(row))] for row in steps]

    fields: dict[str, Any] = {"process_reward_type": "advantages", "initial_value": None, "process_baseline": "group"}
    arguments = {"process_reward": first_step_unscorable}
    rollout = trained("pav", tiny_model_path, tmp_path, arguments, **fields).rollouts[0]
    first = rollout["step_ids"] == 0
    expected = rollout["outcome_advantages"].unsqueeze(1).expand_as(first)[first]
    assert torch.equal(rollout["advantages"][first], expected)


# ---- PAV: units ----


def right_or_wrong(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    return [float(row == 1) for row in range(len(completion_ids))]


@pytest.mark.parametrize("scale_rewards", ["group", "batch", "none"])
def test_progress_is_divided_as_the_outcome_is(scale_rewards: str, tiny_model_path: str, tmp_path: Path) -> None:
    """`alpha` in the paper's units: the weight of progress next to a reward, before both are divided alike."""
    fields: dict[str, Any] = {"alpha": 2.0, "scale_rewards": scale_rewards}
    arguments = {"reward_funcs": right_or_wrong}
    plain, scaled = (
        trained("pav", tiny_model_path, tmp_path / scale, arguments, progress_scale=scale, **fields).rollouts[0]
        for scale in ("none", "outcome")
    )
    # One of four is right: sample variance 1/4. A batch is one group here.
    divisor = 1.0 if scale_rewards == "none" else 0.5 + 1e-4
    mask = plain["step_ids"] >= 0
    outcome = plain["outcome_advantages"].unsqueeze(1)
    expected = torch.where(mask, outcome + (plain["advantages"] - outcome) / divisor, 0.0)
    torch.testing.assert_close(scaled["advantages"], expected, atol=1e-5, rtol=1e-5)


def all_right(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    return [1.0] * len(completion_ids)


@pytest.mark.parametrize("progress_scale", ["none", "outcome"])
def test_groups_of_equal_outcomes(progress_scale: str, tiny_model_path: str, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"alpha": 2.0, "progress_scale": progress_scale}
    arguments = {"reward_funcs": all_right}
    alone, skipped = (
        trained("pav", tiny_model_path, tmp_path / choice, arguments, equal_outcomes=choice, **fields).rollouts[0]
        for choice in ("process", "skip")
    )
    # Progress in its own units, not divided by a standard deviation of 0.
    assert 0.1 < alone["advantages"].abs().max() < 2.1
    assert not skipped["advantages"].any()


def second_is_unscorable(completion_ids: list[list[int]], **columns: Any) -> list[float | None]:
    return [None if row == 1 else float(row) for row in range(len(completion_ids))]


@both
def test_completions_without_outcome(kind: str, tiny_model_path: str, tmp_path: Path) -> None:
    arguments = {"reward_funcs": second_is_unscorable}
    rows = []
    for choice in ("process", "skip"):
        trainer = trained(kind, tiny_model_path, tmp_path / choice, arguments, unscorable_outcomes=choice)
        (record,), (rollout,) = trainer.losses, trainer.rollouts
        unscored = (record["completion_ids"] == rollout["completion_ids"][1]).all(1)
        assert int(unscored.sum()) == 1
        rows.append((record["advantages"][unscored], record["advantages"][~unscored]))
    assert rows[0][0].any()
    assert not rows[1][0].any()
    torch.testing.assert_close(rows[0][1], rows[1][1])


# ---- PAV: forms of credit ----


@pytest.mark.parametrize("credit", ["min_form", "return_to_go", "clip_delta"])
def test_forms_of_credit_need_no_value_of_the_prompt(credit: Any, tiny_model_path: str, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"alpha": 0.5, "credit": credit, "initial_value": None}
    trainer = trained("pav", tiny_model_path, tmp_path, **fields)
    (rollout,) = trainer.rollouts
    scores = pad_step_rewards(text_values([], rollout["steps"]))
    earned = step_credit(scores, credit, 4)
    expected = pav_advantages(rollout["outcome_advantages"], earned, rollout["step_ids"], 0.5)
    assert not torch.equal(expected, spread_to_tokens(torch.zeros_like(scores), rollout["step_ids"]))
    torch.testing.assert_close(rollout["advantages"], expected, atol=1e-5, rtol=1e-5)


# ---- numbers that are none ----


@both
@pytest.mark.parametrize("number", [math.inf, 1e39])
def test_an_infinite_outcome_is_named(kind: str, number: float, tiny_model_path: str, tmp_path: Path) -> None:
    def too_large(completion_ids: list[list[int]], **columns: Any) -> list[float]:
        return [number, *([0.0] * (len(completion_ids) - 1))]

    with pytest.raises(ValueError, match=r"'too_large' gave completion 0 .* inf, or a number that float32"):
        trained(kind, tiny_model_path, tmp_path, {"reward_funcs": [token_reward, too_large]})


def test_a_score_beyond_float32_is_named(tiny_model_path: str, tmp_path: Path) -> None:
    def too_large(prompts: Any, steps: list[list[str]], **columns: Any) -> list[list[float]]:
        return [[1e39] * len(row) for row in steps]

    with pytest.raises(ValueError, match=r"'too_large' returned 1e\+39 .* infinite in float32"):
        trained("pav", tiny_model_path, tmp_path, {"process_reward": too_large})


def test_advantages_that_overflow_stop_the_step(tiny_model_path: str, tmp_path: Path) -> None:
    def large(prompts: Any, steps: list[list[str]], **columns: Any) -> list[list[float]]:
        return [[3e38 * (-1) ** h for h in range(len(row))] for row in steps]

    with pytest.raises(ValueError, match="advantages are not finite with the process reward 'large' at alpha=5"):
        trained("pav", tiny_model_path, tmp_path, {"process_reward": large}, alpha=5.0)


def test_a_policy_of_nan_stops_the_step_and_is_not_saved(tiny_model_path: str, tmp_path: Path) -> None:
    trainer = make_trainer("prl", tiny_model_path, tmp_path, {})

    def break_policy(*args: Any, **kwargs: Any) -> list[float]:
        with torch.no_grad():
            next(iter(trainer.model.parameters())).fill_(math.nan)
        return token_reward(kwargs["completion_ids"])

    trainer.reward_funcs = [break_policy]
    with pytest.raises(ValueError, match=r"advantages are not finite with PRL at beta=0.2 \(log-ratios"):
        trainer.train()
    with pytest.raises(ValueError, match=r"not finite \(model.embed_tokens.weight\), so it is not saved"):
        trainer.save_model(str(tmp_path / "saved"))
    assert not (tmp_path / "saved").exists()


def test_a_rollout_without_any_score_warns_once(
    tiny_model_path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken_verifier(prompts: Any, steps: list[list[str]], **columns: Any) -> list[list[float]]:
        return [[math.nan] * len(row) for row in steps]

    with caplog.at_level(logging.WARNING, logger="trl_prl"):
        trained("pav", tiny_model_path, tmp_path, {"process_reward": broken_verifier}, max_steps=3)
    warnings = [record for record in caplog.records if "No step of this rollout could be scored" in record.message]
    assert len(warnings) == 1
    assert "'broken_verifier'" in warnings[0].message


def test_a_rollout_without_steps_is_not_one_without_scores(
    tiny_model_path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="trl_prl"):
        trainer = make_trainer("pav", tiny_model_path, tmp_path, {}, max_steps=1)
        nothing = torch.full((4, 3), -1)
        metrics = trainer.log_process_metrics(torch.zeros(4, 3), torch.zeros(4, 3), torch.zeros(4), nothing)
        assert "process/unscorable_frac" not in metrics
        trainer._warn_if_nothing_is_scored(metrics)
    assert "No step of this rollout" not in caplog.text


# ---- what is said of a run ----


def test_the_model_card_names_the_settings(tiny_model_path: str, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"step_level": "token", "kl_estimator": "k3", "beta": 0.07}
    trained("prl", tiny_model_path, tmp_path / "prl", **fields).create_model_card(model_name="x")
    card = (tmp_path / "prl" / "README.md").read_text()
    for name, value in {**fields, "kl_placement": "advantage"}.items():
        assert card.count(f"| {name} | {value} |") == 1
    pav = trained("pav", tiny_model_path, tmp_path / "pav", alpha=1.5)
    for _ in range(2):
        pav.create_model_card(model_name="x")
    card = (tmp_path / "pav" / "README.md").read_text()
    assert "None" not in card
    for row in ("| process_reward | text_values |", "| alpha | 1.5 |", "| credit | progress |"):
        assert card.count(row) == 1


@both
def test_a_reward_that_is_never_a_number_ends_no_run(kind: str, tiny_model_path: str, tmp_path: Path) -> None:
    trainer = make_trainer(kind, tiny_model_path, tmp_path, {}, max_steps=1, logging_steps=1)
    trainer.reward_funcs[0] = lambda completions, **columns: [None] * len(completions)
    trainer.train()
    trainer.create_model_card(model_name="x")
    card = (tmp_path / "README.md").read_text()
    assert "| process/steps_per_completion |" in card
    assert "None" not in card.partition("## Last metrics")[2]


def test_a_run_says_where_it_comes_from_and_hears_of_other_prompts(
    tiny_model_path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A script knows how it made its prompts, which nothing in them shows to the trainer."""

    def scorer(prompts: list[str], steps: list[list[str]], **columns: Any) -> list[list[float]]:
        return text_values(prompts, steps)

    scorer.settings = VerifierSettings(prompts=PromptFormat(), prover="its owner")  # type: ignore[attr-defined]
    trainer = make_trainer("pav", tiny_model_path, tmp_path, {"process_reward": scorer}, max_steps=1)
    trainer.sources |= {"dataset": "mine.jsonl", "prompts": PromptFormat(prompt_template="Q: {prompt}")}
    with caplog.at_level(logging.WARNING, "trl_prl.rewards.checks"):
        trainer.train()
    (message,) = [m for m in caplog.messages if "trained on prompts made otherwise" in m]
    assert "`prompt_template` was None, and is 'Q: {prompt}' here" in message
    found = json.loads((tmp_path / "process" / "run.json").read_text())["sources"]
    assert (found["process_reward"], found["dataset"]) == ("scorer", "mine.jsonl")
    assert found["prompts"]["prompt_template"] == "Q: {prompt}"
    trainer.create_model_card(model_name="x")
    card = (tmp_path / "README.md").read_text()
    for row in ("| process_reward | scorer |", "| dataset | mine.jsonl |", "prompt_template='Q: {prompt}'"):
        assert card.count(row) == 1


@both
def test_how_far_the_policy_is(kind: str, tiny_model_path: str, tmp_path: Path) -> None:
    trainer = trained(kind, tiny_model_path, tmp_path, beta=0.1)
    (record,) = trainer.losses
    mask = record["step_ids"] >= 0
    kl = torch.where(mask, record["logps"] - record["ref_per_token_logps"], 0.0).sum(1)
    assert train_logs(trainer)[0]["process/kl_completion"] == pytest.approx(kl.mean().item(), rel=1e-4)


def test_the_radar_watches_prl_too(tiny_model_path: str, tmp_path: Path) -> None:
    trainer = make_trainer("prl", tiny_model_path, tmp_path, {})
    assert isinstance(trainer.hacking_radar, HackingRadar)
    assert make_trainer("prl", tiny_model_path, tmp_path, {}, radar_window=0).hacking_radar is None
    history = [
        {
            "step": i,
            "reward": 0.5 + i % 2 / 100,
            "process/repeated_steps": 0.1 + (i > 10) / 2,
            "process/reward/mean": 0,
        }
        for i in range(20)
    ]
    (message,) = trainer.hacking_radar.look(history)
    assert "process/repeated_steps rose" in message
    assert "raise `beta`" in message
    # Right answers are those that left the reference: no sign of anything.
    falling = [{"step": i, "process/outcome_correlation": 0.9 - 0.08 * i, "reward": 0.5} for i in range(20)]
    assert make_trainer("prl", tiny_model_path, tmp_path, {}).hacking_radar.look(falling) == []


# ---- trainers that the callback cannot serve ----


@pytest.mark.parametrize("level", ["step", "completion"])
@pytest.mark.parametrize(
    "path",
    [
        "a2po.A2POTrainer",
        "sdpo.SDPOTrainer",
        "online_dpo.OnlineDPOTrainer",
        "async_grpo.AsyncGRPOTrainer",
    ],
)
def test_other_trainers_are_refused(path: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    module, name = path.split(".")
    try:
        cls = getattr(importlib.import_module(f"trl.experimental.{module}"), name)
    except (ImportError, AttributeError) as error:
        pytest.skip(f"this TRL has no {path}: {error}")
    trainer = object.__new__(cls)
    trainer.reward_funcs, trainer.reward_weights = [token_reward], torch.ones(1)
    before = dict(vars(trainer))
    with pytest.raises(TypeError, match=f"`trainer` is a {name}"):
        ProcessRewardCallback(trainer, text_values, level=level)
    assert vars(trainer) == before


def gmpo_trainer(path: str, folder: Path) -> Any:
    gmpo = pytest.importorskip("trl.experimental.gmpo")
    args = make_grpo_args(gmpo.GMPOConfig, folder)
    return gmpo.GMPOTrainer(path, token_reward, args=args, train_dataset=prompt_dataset())


def test_a_loss_that_replaces_trls_is_refused_for_steps(tiny_model_path: str, tmp_path: Path) -> None:
    trainer = gmpo_trainer(tiny_model_path, tmp_path)
    with pytest.raises(TypeError, match=r"GMPOTrainer\._compute_loss replaces the loss.*level='completion'"):
        ProcessRewardCallback(trainer, text_values, initial_value=0.5)
    assert "train" not in vars(trainer)
    callback = ProcessRewardCallback(trainer, text_values, level="completion", alpha=0.5)
    trainer.add_callback(callback)
    before = trainable(trainer)
    trainer.train()
    assert all("rewards/text_values_mean/mean" in log for log in train_logs(trainer))
    assert any(not torch.equal(value, trainable(trainer)[name]) for name, value in before.items())


def test_a_loss_around_trls_is_served(tiny_model_path: str, tmp_path: Path) -> None:
    class Wrapping(GRPOTrainer):
        def _compute_loss(self, model: Any, inputs: Any) -> torch.Tensor:
            return 2 * super()._compute_loss(model, inputs)

    trainer = Wrapping(tiny_model_path, token_reward, make_grpo_args(GRPOConfig, tmp_path), prompt_dataset())
    trainer.add_callback(ProcessRewardCallback(trainer, text_values, initial_value=0.5))
    trainer.train()
    assert all("process/alpha" in log for log in train_logs(trainer))


def test_an_unknown_loss_type_is_refused_at_construction(tiny_model_path: str, tmp_path: Path) -> None:
    trainer = GRPOTrainer(tiny_model_path, token_reward, make_grpo_args(GRPOConfig, tmp_path), prompt_dataset())
    trainer.loss_type = "a loss type of tomorrow"
    with pytest.raises(ValueError, match="not known to use an advantage per token"):
        ProcessRewardCallback(trainer, text_values, initial_value=0.5)
    assert "train" not in vars(trainer)
