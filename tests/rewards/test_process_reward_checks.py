"""What is said about a process reward before a run is spent on it: errors and warnings that tell what to do."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer_runs import make_trainer, text_values
from trl_prl.rewards.checks import (
    check_process_reward,
    check_signature,
    describe_range,
    warn_of_other_splitter,
)
from trl_prl.steps.sentences import SentenceSplitter
from trl_prl.steps.splitters import DelimiterSplitter, FixedLengthSplitter
from trl_prl.verifier.settings import VerifierSettings


def scorer(**attributes: Any) -> Any:
    def my_scorer(prompts: list[Any], steps: list[list[str]], **columns: Any) -> Any:
        return [[0.5] * len(row) for row in steps]

    for name, value in attributes.items():
        setattr(my_scorer, name, value)
    return my_scorer


# ---- settings ----


def test_what_cannot_give_progress_is_refused() -> None:
    with pytest.raises(ValueError, match=r"set `initial_value` .* `process_reward_type='advantages'`"):
        check_process_reward(scorer())
    with pytest.raises(ValueError, match=r"`best_of_k=4` was set, but .* returns advantages"):
        check_process_reward(scorer(returns="advantages"), best_of_k=4)
    with pytest.raises(ValueError, match=r"`calibration_steps=5` was set, but .* returns advantages"):
        check_process_reward(scorer(), process_reward_type="advantages", calibration_steps=5)
    check_process_reward(scorer(), initial_value=0.5, best_of_k=4, calibration_steps=5)
    check_process_reward(scorer(), process_reward_type="advantages")
    check_process_reward(scorer(initial_values=len), best_of_k=4)


def test_a_constant_next_to_initial_values_is_not_used_and_said(caplog: pytest.LogCaptureFixture) -> None:
    check_process_reward(scorer(initial_values=len))
    assert not caplog.records
    check_process_reward(scorer(initial_values=len), initial_value=0.25)
    assert "`initial_value=0.25` was set" in caplog.text
    assert "Its own values are used" in caplog.text


def test_settings_that_contradict_a_process_reward_are_said(caplog: pytest.LogCaptureFixture) -> None:
    check_process_reward(scorer(returns="advantages"))
    check_process_reward(scorer(returns="values"), process_reward_type="advantages", credit="min_form")
    assert not caplog.records
    check_process_reward(scorer(returns="advantages"), initial_value=0.25)
    assert "taken as they are, without a value of the prompt" in caplog.text
    check_process_reward(scorer(returns="values"), process_reward_type="advantages")
    assert "says that it returns values. The setting decides" in caplog.text


# ---- signatures ----


def without_columns(prompts: Any, steps: Any) -> Any: ...
def outcome_reward(prompts: Any, completions: Any, **columns: Any) -> Any: ...
def of_a_row(prompt: Any, step: Any, **columns: Any) -> Any: ...
def by_position(prompts: Any, steps: Any, /, **columns: Any) -> Any: ...
def no_steps(prompts: Any, trainer_state: Any, log_metric: Any, log_extra: Any) -> Any: ...
def plain(prompts: Any, steps: Any, **columns: Any) -> Any: ...
def with_columns(prompts: Any, steps: Any, answer: Any, completions: Any, **columns: Any) -> Any: ...
def swallows_all(**columns: Any) -> Any: ...
def names_all(prompts: Any, steps: Any, trainer_state: Any, log_metric: Any, log_extra: Any, k: int = 3) -> Any: ...
def keywords_only(*, prompts: Any, steps: Any, **columns: Any) -> Any: ...
async def later(prompts: Any, steps: Any, **columns: Any) -> Any: ...


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (without_columns, "does not take trainer_state, log_metric, log_extra"),
        (outcome_reward, "asks for completions, which it is not given"),
        (of_a_row, "asks for prompt, step, which it is not given"),
        (by_position, "asks for prompts, steps, which it is not given"),
        (no_steps, "does not take steps"),
    ],
)
def test_a_signature_that_fails_at_the_first_call_is_refused(function: Any, problem: str) -> None:
    with pytest.raises(TypeError, match=problem) as error:
        check_signature(function, function.__name__)
    assert f"def {function.__name__}(prompts, steps, **columns)" in str(error.value)


@pytest.mark.parametrize("function", [plain, with_columns, swallows_all, names_all, keywords_only, later])
def test_signatures_that_work_are_accepted(function: Any) -> None:
    check_signature(function, function.__name__)


def test_objects_are_checked_where_they_are_called() -> None:
    class Scorer:
        def __call__(self, prompts: Any, steps: Any) -> Any: ...

        def initial_values(self, prompts: Any, **columns: Any) -> Any: ...

    class WholeScorer(Scorer):
        def score_solutions(self, prompts: Any, steps: Any, **columns: Any) -> Any: ...

    with pytest.raises(TypeError, match="'Scorer' has the signature"):
        check_process_reward(Scorer())
    check_process_reward(WholeScorer())


def test_a_bad_signature_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="'without_columns' has the signature"):
        make_trainer("pav", "no/such-model", tmp_path, {"process_reward": without_columns})


# ---- splitters ----


@dataclass
class LikeAVerifier:
    settings: VerifierSettings
    __name__ = "my-pav"

    def __call__(self, prompts: Any, steps: Any, **columns: Any) -> Any: ...


@pytest.mark.parametrize(
    ("stored", "used", "warns"),
    [
        (VerifierSettings(step_splitter="newline"), DelimiterSplitter("\n"), False),
        (VerifierSettings(step_splitter="fixed", step_length=8), FixedLengthSplitter(8), False),
        (VerifierSettings(step_splitter=None), SentenceSplitter(), False),
        (VerifierSettings(step_splitter="blank_line"), DelimiterSplitter("\n"), True),
        (VerifierSettings(step_splitter="fixed", step_length=8), FixedLengthSplitter(16), True),
        (VerifierSettings(step_splitter="by hand"), DelimiterSplitter("\n"), True),
    ],
)
def test_another_splitter_than_the_verifiers_is_named(
    stored: VerifierSettings, used: Any, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_other_splitter(LikeAVerifier(stored), used)
    assert len(caplog.records) == warns
    if warns:
        for part in ("'my-pav'", f"'{stored.step_splitter}'", repr(used), "verifier.settings"):
            assert part in caplog.text


def test_functions_store_no_splitter(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_other_splitter(scorer(), SentenceSplitter())
    assert not caplog.records


# ---- ranges ----


def test_values_that_are_no_probabilities_are_described() -> None:
    scores, initial = torch.tensor([[0.0, 1.0], [0.5, math.nan]]), torch.tensor([0.25, math.nan])
    assert describe_range("it", scores, initial) is None
    assert describe_range("it", scores * math.nan, initial * math.nan) is None
    assert describe_range("it", scores - 3, None) is None  # advantages have any range
    message = describe_range("it", scores * 2 - 0.5, initial)
    assert message is not None
    assert "'it' returns values between -0.5 and 1.5" in message
    assert "between 0 and 2" in str(describe_range("it", scores, initial * 8))


def test_a_run_warns_once_of_values_that_are_no_probabilities(
    tiny_model_path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def logits(prompts: Any, steps: list[list[str]], **columns: Any) -> Any:
        return [[10 * value - 5 for value in row] for row in text_values(prompts, steps)]

    trainer = make_trainer("pav", tiny_model_path, tmp_path, {"process_reward": logits})
    with caplog.at_level(logging.WARNING, logger="trl_prl"):
        trainer.train()
    assert caplog.text.count("which are no probabilities of success") == 1


def test_prl_has_no_process_reward(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"PRL has none.*Use PAVTrainer"):
        make_trainer("prl", "no/such-model", tmp_path, {"process_reward": text_values})
