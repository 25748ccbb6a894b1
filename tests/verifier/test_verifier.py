"""ProcessAdvantageVerifier: one forward, equal scores in every batch, saving, and use in training."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer

from tests.tiny_models import build_model, build_tokenizer, make_grpo_args, token_reward
from tests.tokenizers_for_tests import sentencepiece_bpe_tokenizer
from tests.trainer_runs import score_progress
from tests.verifier_models import build_verifier, build_verifier_model
from trl_prl.credit.advantages import best_of_k_values
from trl_prl.training.callback import ProcessRewardCallback
from trl_prl.training.pav_config import PAVConfig
from trl_prl.training.pav_trainer import PAVTrainer
from trl_prl.types import ProcessReward
from trl_prl.verifier.model import ProcessAdvantageVerifier
from trl_prl.verifier.rows import tokenize_stepwise
from trl_prl.verifier.settings import VerifierSettings


# Rounding of float32 sums over other paddings.
TOLERANCE = 1e-5

PROMPTS = ["Add 12 + 7.\n\n", "Add 1.\n", "Take 4 from 19, then add 30.\n\n", "Add 2 + 2.\n"] * 2
STEPS = [
    ["First we take 12 + 7 = 19.\n\n", "So the answer is 19."],
    ["1"],
    ["Then 15.\n", "Then 45.\n", "\n", "The answer is \\boxed{45}."],
    [],
    ["Step 1: we know the sum.\n" * 6, "Step 2: 数学 😀.\n", "Hence 19."],
    ["", "0.\n"],
    ["- add the first\n", "- take the rest\n"],
    ["4"],
]


@pytest.fixture(scope="module")
def verifier() -> ProcessAdvantageVerifier:
    return build_verifier(build_tokenizer())


def flat(scores: tuple[list[float], list[list[float]]]) -> torch.Tensor:
    return torch.tensor([*scores[0], *(value for row in scores[1] for value in row)])


def count_forwards(model: Any) -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = []
    model.register_forward_hook(
        lambda module, args, kwargs, output: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    return shapes


# ---- scores ----


def test_it_is_a_process_reward(verifier: ProcessAdvantageVerifier) -> None:
    assert isinstance(verifier, ProcessReward)
    values = verifier(prompts=PROMPTS, steps=STEPS, answer=["x"] * 8)
    assert [len(row) for row in values] == [len(row) for row in STEPS]
    assert all(0 < value < 1 for row in values for value in row)
    assert len({round(value, 4) for row in values for value in row}) > 10
    assert verifier.returns == "values"


@pytest.mark.parametrize("max_batch_tokens", [1, 200, 100_000])
def test_scores_do_not_depend_on_the_batch(verifier: ProcessAdvantageVerifier, max_batch_tokens: int) -> None:
    together = build_verifier(verifier.tokenizer)
    together.max_batch_tokens = max_batch_tokens
    expected = [
        build_verifier(verifier.tokenizer).score_solutions([p], [s]) for p, s in zip(PROMPTS, STEPS, strict=True)
    ]
    one_by_one = ([row[0][0] for row in expected], [row[1][0] for row in expected])
    found = together.score_solutions(PROMPTS, STEPS)
    torch.testing.assert_close(flat(found), flat(one_by_one), atol=TOLERANCE, rtol=0)


def test_permuting_solutions_permutes_scores(verifier: ProcessAdvantageVerifier) -> None:
    order = [5, 2, 7, 0, 1, 6, 3, 4]
    initial, values = verifier.score_solutions(PROMPTS, STEPS)
    shuffled = verifier.score_solutions([PROMPTS[i] for i in order], [STEPS[i] for i in order])
    expected = ([initial[i] for i in order], [values[i] for i in order])
    torch.testing.assert_close(flat(shuffled), flat(expected), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_side_of_the_tokenizer_changes_nothing(verifier: ProcessAdvantageVerifier, side: str) -> None:
    tokenizer = build_tokenizer()
    tokenizer.padding_side = side
    other = build_verifier(tokenizer).score_solutions(PROMPTS, STEPS)
    torch.testing.assert_close(flat(other), flat(verifier.score_solutions(PROMPTS, STEPS)), atol=0, rtol=0)


def test_left_padded_by_hand_equals_right_padded(verifier: ProcessAdvantageVerifier) -> None:
    rows = [
        tokenize_stepwise(verifier.tokenizer, p, s, verifier.settings) for p, s in zip(PROMPTS, STEPS, strict=True)
    ]
    length = max(len(row.input_ids) for row in rows)
    expected = verifier.score_tokenized(rows)
    for row, logits in zip(rows, expected, strict=True):
        shift = length - len(row.input_ids)
        ids = torch.tensor([[0] * shift + row.input_ids])
        mask = torch.tensor([[0] * shift + [1] * len(row.input_ids)])
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            output = verifier.model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[0, :, 0]
        found = output[[shift + position for position in row.positions]]
        torch.testing.assert_close(found, logits[: len(row.positions)], atol=TOLERANCE, rtol=1e-5)


def test_a_pad_token_that_ends_text_too_hides_nothing() -> None:
    tokenizer = build_tokenizer()
    verifier = build_verifier(tokenizer)
    prompts, steps = ["Add<|end|> 1.\n", "Add 2 + 2 and more.\n"], [["2<|end|>", "3"], ["4\n", "5"]]
    expected = verifier.score_solutions(prompts, steps)
    tokenizer.pad_token = tokenizer.eos_token
    found = verifier.score_solutions(prompts, steps)
    torch.testing.assert_close(flat(found), flat(expected), atol=TOLERANCE, rtol=0)


def test_later_steps_do_not_change_earlier_values(verifier: ProcessAdvantageVerifier) -> None:
    # Where a step ends inside a token, the prefix alone has other tokens; here none does.
    steps = [step for step in STEPS[2] if step.strip()]
    [whole] = verifier([PROMPTS[2]], [steps])
    for end in range(1, len(steps)):
        [prefix] = verifier([PROMPTS[2]], [steps[:end]])
        assert prefix == pytest.approx(whole[:end], abs=TOLERANCE)


def test_one_forward_scores_the_prompt_and_all_steps() -> None:
    verifier = build_verifier(build_tokenizer())
    shapes = count_forwards(verifier.model)
    progress = score_progress(verifier, PROMPTS[:3], STEPS[:3])
    assert len(shapes) == 1
    assert shapes[0][0] == 3
    expected = verifier.advantages(PROMPTS[:3], STEPS[:3])
    assert progress[2].tolist() == pytest.approx(expected[2], abs=TOLERANCE)


def test_scoring_in_one_pass_equals_scoring_in_two(verifier: ProcessAdvantageVerifier) -> None:
    class TwoPasses:
        def __call__(self, prompts: Any, steps: Any, **columns: Any) -> Any:
            return verifier(prompts, steps)

        def initial_values(self, prompts: Any, **columns: Any) -> Any:
            return verifier.initial_values(prompts)

    for best_of_k in (1, 4):
        found = score_progress(verifier, PROMPTS, STEPS, best_of_k=best_of_k)
        expected = score_progress(TwoPasses(), PROMPTS, STEPS, best_of_k=best_of_k)
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0, equal_nan=True)


def test_progress_telescopes(verifier: ProcessAdvantageVerifier) -> None:
    initial, values = verifier.score_solutions(PROMPTS, STEPS)
    for start, row, progress in zip(initial, values, verifier.advantages(PROMPTS, STEPS), strict=True):
        assert sum(progress) == pytest.approx((row[-1] if row else start) - start, abs=1e-5)


def test_training_and_scoring_tokenise_alike(verifier: ProcessAdvantageVerifier) -> None:
    from tests.verifier_models import make_verifier_args
    from trl_prl.verifier.dataset import prepare_stepwise_dataset

    rows = Dataset.from_dict(
        {"prompt": PROMPTS[:3], "completions": STEPS[:3], "labels": [[0.5] * len(s) for s in STEPS[:3]]}
    )
    args = make_verifier_args("unused", max_length=30)
    prepared = prepare_stepwise_dataset(rows, verifier.tokenizer, args, "train")
    for row, prompt, steps in zip(prepared, PROMPTS, STEPS, strict=False):
        tokens = tokenize_stepwise(verifier.tokenizer, prompt, steps, args.verifier_settings())
        assert (row["input_ids"], row["positions"]) == (tokens.input_ids, tokens.positions)


def test_dropout_gradients_and_autocast_of_a_training_stay_out() -> None:
    model = build_verifier_model(build_tokenizer(), attention_dropout=0.5)
    verifier = ProcessAdvantageVerifier(model, build_tokenizer())
    expected = verifier.score_solutions(PROMPTS, STEPS)
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert verifier.score_solutions(PROMPTS, STEPS) == expected
    assert model.training  # as it was found
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_own_precision_is_kept() -> None:
    model = build_verifier_model(build_tokenizer()).to(torch.bfloat16)
    verifier = ProcessAdvantageVerifier(model, build_tokenizer())
    dtypes = []
    model.register_forward_hook(lambda module, args, output: dtypes.append(output.logits.dtype))
    [values] = verifier([PROMPTS[0]], [STEPS[0]])
    assert dtypes == [torch.bfloat16]
    assert values == pytest.approx(build_verifier(build_tokenizer())([PROMPTS[0]], [STEPS[0]])[0], abs=0.05)


def test_steps_beyond_the_window_are_unscored_and_counted() -> None:
    verifier = build_verifier(build_tokenizer(), max_length=40)
    logged: dict[str, float] = {}
    steps = ["Then we take 12.\n"] * 8
    initial, [values] = verifier.score_solutions(["Add 1.\n"], [steps], log_metric=logged.__setitem__)
    num_scored = sum(not math.isnan(value) for value in values)
    assert 0 < num_scored < 8
    assert not math.isnan(initial[0])
    assert all(math.isnan(value) for value in values[num_scored:])
    assert verifier.num_truncated_steps == 8 - num_scored
    assert logged == {"process/verifier/truncated_steps": (8 - num_scored) / 8, "process/verifier/merged_steps": 0.0}
    full = build_verifier(build_tokenizer())(["Add 1.\n"], [steps])[0]
    assert values[:num_scored] == pytest.approx(full[:num_scored], abs=TOLERANCE)


def test_the_model_bounds_the_window_by_itself() -> None:
    assert build_verifier(build_tokenizer()).settings.max_length == 512


def test_conversational_prompts() -> None:
    verifier = build_verifier(build_tokenizer(), prompt_format="chat")
    messages = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    assert verifier(messages, STEPS) == verifier(PROMPTS, STEPS)
    plain = build_verifier(build_tokenizer())
    assert plain(messages, STEPS) == plain(PROMPTS, STEPS)
    assert plain(messages, STEPS) != verifier(messages, STEPS)


def test_best_of_k_and_calibration_transform_values() -> None:
    tokenizer = build_tokenizer()
    initial, values = build_verifier(tokenizer).score_solutions(PROMPTS, STEPS)
    best = build_verifier(tokenizer, best_of_k=4).score_solutions(PROMPTS, STEPS)
    torch.testing.assert_close(flat(best), best_of_k_values(flat((initial, values)), 4))
    calibrated = build_verifier(tokenizer, temperature=2.0, offset=-1.0).score_solutions(PROMPTS, STEPS)
    expected = torch.sigmoid(torch.logit(flat((initial, values)).double()) / 2 - 1).float()
    torch.testing.assert_close(flat(calibrated), expected, atol=TOLERANCE, rtol=0)


def test_calibrate_recovers_a_known_distortion(verifier: ProcessAdvantageVerifier) -> None:
    distorted = ProcessAdvantageVerifier(
        verifier.model, verifier.tokenizer, replace(verifier.settings, temperature=1.0)
    )
    truth = build_verifier(verifier.tokenizer, temperature=2.0, offset=0.5)
    distorted.calibrate(PROMPTS, STEPS, [[*row] for row in truth(PROMPTS, STEPS)])
    assert distorted.settings.temperature == pytest.approx(2.0, rel=0.02)
    assert distorted.settings.offset == pytest.approx(0.5, abs=0.02)
    with pytest.raises(ValueError, match="nothing to fit"):
        distorted.calibrate(["Add 1.\n"], [["2"]], [[None]])


def test_malformed_calls_raise(verifier: ProcessAdvantageVerifier) -> None:
    with pytest.raises(ValueError, match="2 prompts and 1 solutions"):
        verifier(["a", "b"], [["c"]])
    with pytest.raises(ValueError, match="3 labels"):
        ProcessAdvantageVerifier(build_verifier_model(build_tokenizer(), num_labels=3), build_tokenizer())
    assert verifier([], []) == []


def test_models_with_two_labels_are_read_as_trl_trained_them() -> None:
    tokenizer = build_tokenizer()
    verifier = ProcessAdvantageVerifier(build_verifier_model(tokenizer, num_labels=2), tokenizer)
    [values] = verifier([PROMPTS[0]], [STEPS[0]])
    tokens = tokenize_stepwise(tokenizer, PROMPTS[0], STEPS[0], VerifierSettings())
    with torch.no_grad():
        probabilities = verifier.model(torch.tensor([tokens.input_ids])).logits[0].softmax(-1)[:, 1]
    assert values == pytest.approx(probabilities[tokens.positions[1:]].tolist(), abs=TOLERANCE)


# ---- saving and loading ----


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    settings = {
        "prompt_suffix": "\n",
        "prover": "bo4",
        "best_of_k": 2,
        "temperature": 1.5,
        "step_splitter": "markdown",
    }
    verifier = build_verifier(build_tokenizer(), **settings, max_length=100)
    verifier.save_pretrained(tmp_path)
    loaded = ProcessAdvantageVerifier.from_pretrained(tmp_path)
    assert loaded.settings == verifier.settings
    assert loaded(PROMPTS, STEPS) == verifier(PROMPTS, STEPS)
    assert json.loads((tmp_path / "config.json").read_text())["verifier"]["prover"] == "bo4"
    assert (tmp_path / "model.safetensors").exists()
    assert ProcessAdvantageVerifier.from_pretrained(tmp_path, dtype=torch.bfloat16).model.dtype == torch.bfloat16


def test_a_model_without_a_value_head_is_refused(tiny_model_path: str) -> None:
    with pytest.raises(ValueError, match=r"lacks the weights .*score"):
        ProcessAdvantageVerifier.from_pretrained(tiny_model_path)


def test_a_misspelt_folder_is_named(tiny_tokenizer: Any, tmp_path: Path) -> None:
    build_verifier(tiny_tokenizer).save_pretrained(tmp_path / "my-pav")
    with pytest.raises(OSError, match=r"neither a folder here .* nor one that can be had from the hub") as error:
        ProcessAdvantageVerifier.from_pretrained(tmp_path / "my-pva")
    assert f"Did you mean '{tmp_path / 'my-pav'}'?" in str(error.value)
    with pytest.raises(OSError, match=r"'no-org/no-verifier' is neither a folder here.*Looked for config.json"):
        ProcessAdvantageVerifier.from_pretrained("no-org/no-verifier")


def test_a_folder_without_a_verifier_says_what_is_missing(tiny_tokenizer: Any, tmp_path: Path) -> None:
    build_verifier(tiny_tokenizer).save_pretrained(tmp_path / "my-pav")
    with pytest.raises(OSError, match=r"config.json and a tokenizer .* not found in it. The folder holds my-pav/"):
        ProcessAdvantageVerifier.from_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "my-pav" / name).unlink()
    with pytest.raises(OSError, match=r"holds no verifier: a tokenizer \(any of tokenizer.json"):
        ProcessAdvantageVerifier.from_pretrained(tmp_path / "my-pav")


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    verifier = build_verifier(build_tokenizer())
    verifier.save_pretrained(tmp_path)
    torch.save(verifier.model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        ProcessAdvantageVerifier.from_pretrained(tmp_path)


def test_a_model_that_reads_ahead_is_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForTokenClassification

    tokenizer = build_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_labels=1, initializer_range=0.2,
    )  # fmt: skip
    BertForTokenClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="attends in both directions"):
        ProcessAdvantageVerifier.from_pretrained(tmp_path)


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    verifier = build_verifier(build_tokenizer())
    with torch.no_grad():
        verifier.model.score.weight.fill_(math.nan)
    verifier.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"not finite in torch\.float32"):
        ProcessAdvantageVerifier.from_pretrained(tmp_path)


# ---- in training ----


def test_callback_loads_it_for_a_stock_trainer(tiny_model_path: str, tmp_path: Path) -> None:
    build_verifier(build_tokenizer()).save_pretrained(tmp_path / "verifier")
    trainer = GRPOTrainer(
        tiny_model_path,
        token_reward,
        make_grpo_args(GRPOConfig, tmp_path / "out"),
        Dataset.from_dict({"prompt": ["Add 1 + 2.\n", "Add 30.\n"]}),
    )
    trainer.add_callback(ProcessRewardCallback(trainer, process_reward=str(tmp_path / "verifier"), alpha=2.0))
    trainer.train()
    assert any(entry.get("process/reward/std", 0) > 0 for entry in trainer.state.log_history)


def test_verifier_of_one_policy_serves_another_with_another_tokenizer(tmp_path: Path) -> None:
    """The verifier reads text in its own SentencePiece tokens, the policy samples byte-level ones."""
    tokenizer = sentencepiece_bpe_tokenizer()
    build_verifier(tokenizer, prompt_suffix="\n").save_pretrained(tmp_path / "verifier")
    policy_tokenizer = build_tokenizer()
    policy = build_model(policy_tokenizer)
    assert policy_tokenizer.get_vocab() != tokenizer.get_vocab()
    seen: dict[str, list[Any]] = {}

    class RecordingTrainer(PAVTrainer):
        def add_process_advantages(self, inputs: Any, output: Any, split: Any) -> None:
            outcome = output["advantages"].clone()
            super().add_process_advantages(inputs, output, split)
            seen.setdefault("steps", []).extend(split.steps)
            seen.setdefault("prompts", []).extend(row["prompt"] for row in inputs)
            seen.setdefault("added", []).extend(output["advantages"] - outcome[:, None])
            seen.setdefault("step_ids", []).extend(output["step_ids"])

    trainer = RecordingTrainer(
        policy,
        lambda completions, **kwargs: [float(len(text) % 3) for text in completions],
        make_grpo_args(PAVConfig, tmp_path / "out", max_completion_length=24, alpha=2.0, progress_scale="none"),
        Dataset.from_dict({"prompt": ["Add 1 + 2.\n", "Add 30.\n"]}),
        processing_class=policy_tokenizer,
        process_reward=str(tmp_path / "verifier"),
    )
    trainer.train()
    assert trainer.process_reward.device == trainer.accelerator.device
    log = next(entry for entry in trainer.state.log_history if "process/verifier/truncated_steps" in entry)
    assert log["process/verifier/truncated_steps"] == 0.0
    verifier = ProcessAdvantageVerifier.from_pretrained(tmp_path / "verifier")
    assert max(len(row) for row in seen["steps"]) > 1
    for prompt, steps, added, step_ids in zip(
        *(seen[k] for k in ("prompts", "steps", "added", "step_ids")), strict=True
    ):
        [progress] = verifier.advantages([prompt], [steps])
        for step, wanted in enumerate(progress):
            torch.testing.assert_close(
                added[step_ids == step], torch.full_like(added[step_ids == step], 2 * wanted), atol=1e-4, rtol=0
            )


def test_prepare_moves_to_the_device_and_trains_nothing(verifier: ProcessAdvantageVerifier) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    verifier.prepare(accelerator)
    assert verifier.device == accelerator.device
    assert not accelerator._models
    assert verifier.to("cpu") is verifier


def test_all_processes_do_as_many_forwards_where_weights_are_partitioned() -> None:
    verifier = build_verifier(build_tokenizer())

    class OtherProcessIsSlower:
        """Stands for the collective call: another process has four batches."""

        def gather(self, counts: torch.Tensor) -> torch.Tensor:
            return torch.cat([counts, torch.tensor([4])])

    verifier._accelerator = OtherProcessIsSlower()
    shapes = count_forwards(verifier.model)
    verifier(PROMPTS, STEPS)
    assert len(shapes) == 4
    assert shapes[1:] == [(1, 1)] * 3


def test_a_causal_model_is_not_changed_by_loading_it_as_a_verifier(tiny_model_path: str) -> None:
    # What training starts from: the body of the causal model.
    from transformers import AutoModelForTokenClassification

    body = AutoModelForCausalLM.from_pretrained(tiny_model_path).model.state_dict()
    loaded = AutoModelForTokenClassification.from_pretrained(tiny_model_path, num_labels=1).model.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in body.items())


def test_labels_of_one_kind_calibrate_nothing(
    verifier: ProcessAdvantageVerifier, caplog: pytest.LogCaptureFixture
) -> None:
    before = verifier.settings
    verifier.calibrate(["1+1=", "2+2="], [["2\n"], ["5\n", "x\n"]], [[0], [0, 0]])
    assert verifier.settings == before
    assert "was not calibrated: all labels it could be fitted to are 0" in caplog.text


@pytest.mark.parametrize(
    ("slope", "num_labels", "reason"),
    [
        (1.0, 200, None),
        (-1.0, 200, "do not rise with the labels (their correlation is -1.00 over 200 labels"),
        (0.0, 200, "do not rise with the labels (their correlation is -0.00 over 200 labels"),
        (1.0, 9, "there are 9 labels"),
    ],
)
def test_a_fit_that_would_mislead_is_not_applied(
    slope: float, num_labels: int, reason: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    logits = np.linspace(-2, 2, num_labels)
    labels = 1 / (1 + np.exp(-slope * logits - 0.3)) if slope else 0.5 + 0.1 * np.cos(logits)
    before = VerifierSettings()
    after = before.calibrated(np.append(logits, np.nan), np.append(labels, 0.5))
    if reason is None:
        assert (after.temperature, after.offset) == pytest.approx((1.0, 0.3), abs=0.02)
        assert not caplog.records
    else:
        assert after == before
        assert len(caplog.records) == 1
        assert f"was not calibrated: {reason}" in caplog.text.replace("its logits ", "")
