"""PAVRewardTrainer through real training runs: the loss, the labels, what is learned, and what is saved."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import binary_cross_entropy
from trl import RewardConfig

from tests.benchmarks.arithmetic.task import (
    arithmetic_policy_path,
    arithmetic_reward,
    build_arithmetic_tokenizer,
)
from tests.tiny_models import build_tokenizer, make_grpo_args
from tests.verifier_models import arithmetic_rows, build_verifier_model, make_verifier_args
from trl_prl.training.pav_config import PAVConfig
from trl_prl.training.pav_trainer import PAVTrainer
from trl_prl.verifier.config import PAVRewardConfig
from trl_prl.verifier.model import ProcessAdvantageVerifier
from trl_prl.verifier.settings import VerifierSettings
from trl_prl.verifier.trainer import PAVRewardTrainer


def dataset(num_rows: int = 12) -> Dataset:
    return arithmetic_rows(num_rows, seed=0)


def make_trainer(tmp_path: Path, rows: Any = None, model: Any = None, **overrides: Any) -> PAVRewardTrainer:
    tokenizer = build_arithmetic_tokenizer()
    trainer_kwargs = overrides.pop("trainer_kwargs", {})
    return PAVRewardTrainer(
        model or build_verifier_model(tokenizer),
        make_verifier_args(tmp_path, **overrides),
        train_dataset=dataset() if rows is None else rows,
        processing_class=tokenizer,
        **trainer_kwargs,
    )


def train_logs(trainer: PAVRewardTrainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


# ---- learning ----


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> PAVRewardTrainer:
    """A verifier trained from the shipped policy for a few seconds, saved to its output folder."""
    args = make_verifier_args(
        tmp_path_factory.mktemp("verifier"),
        learning_rate=1e-3,
        max_steps=-1,
        num_train_epochs=5,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        logging_steps=20,
        prover="arithmetic, error rate 0.1",
    )
    rows, held_out = arithmetic_rows(1000, seed=0), arithmetic_rows(300, seed=1)
    trainer = PAVRewardTrainer(arithmetic_policy_path(), args, train_dataset=rows, eval_dataset=held_out)
    trainer.train()
    trainer.save_model()
    return trainer


@pytest.mark.slow
def test_verifier_learns_the_values_of_held_out_rollouts(trained: PAVRewardTrainer) -> None:
    metrics = trained.evaluate()
    assert metrics["eval_auroc"] > 0.8
    assert metrics["eval_spearman"] > 0.4
    # The label's own mean as a constant prediction.
    assert metrics["eval_brier"] < 0.6 * 0.22
    assert metrics["eval_num_labels"] == 600
    assert {"eval_ece", "eval_loss", "eval_brier_step_1", "eval_brier_step_2", "eval_brier_prompt"} <= set(metrics)


@pytest.mark.slow
def test_losses_fall_and_metrics_are_logged(trained: PAVRewardTrainer) -> None:
    logs = train_logs(trained)
    assert logs[-1]["loss"] < 0.8 * logs[0]["loss"]
    assert logs[-1]["brier"] < logs[0]["brier"]
    assert {"mean_value", "mean_label"} <= set(logs[0])


@pytest.mark.slow
def test_saved_folder_is_a_verifier(trained: PAVRewardTrainer) -> None:
    loaded = ProcessAdvantageVerifier.from_pretrained(trained.args.output_dir)
    assert loaded.settings.prover == "arithmetic, error rate 0.1"
    prompts, steps = ["1+2=", "1+2="], [["3\n", "#3"], ["13\n", "#13"]]
    right, wrong = loaded(prompts, steps)
    assert right[0] > wrong[0] + 0.2
    here = trained.verifier(prompts, steps)
    assert here[0] == pytest.approx(right, abs=1e-5)


@pytest.mark.slow
def test_pav_trains_with_the_saved_folder(trained: PAVRewardTrainer, tmp_path: Path) -> None:
    problems = Dataset.from_dict({"prompt": ["1+2=", "4-3=", "2+2=", "3-1="], "answer": ["3", "1", "4", "2"]})
    trainer = PAVTrainer(
        arithmetic_policy_path(),
        arithmetic_reward,
        make_grpo_args(PAVConfig, tmp_path, alpha=2.0, max_completion_length=10),
        problems,
        process_reward=str(trained.args.output_dir),
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "process/reward/std" in entry]
    assert len(logs) == 2
    assert any(entry["process/reward/std"] > 0 for entry in logs)
    assert all(math.isfinite(entry["loss"]) for entry in logs)


# ---- the loss ----


def test_loss_is_the_soft_cross_entropy_at_step_ends(tmp_path: Path) -> None:
    rows = Dataset.from_dict(
        {
            "prompt": ["1+2=", "4-1="],
            "completions": [["3\n", "#3"], ["3\n", "5\n", "#3"]],
            "labels": [[0.7, 0.2], [1.0, None, 0.0]],
            "initial_value": [0.6, None],
        }
    )
    model = build_verifier_model(build_arithmetic_tokenizer())
    settings = VerifierSettings(prompt_format="as_given", read_end=True)
    verifier = ProcessAdvantageVerifier(model, build_arithmetic_tokenizer(), settings)
    initial, values = verifier.score_solutions(rows["prompt"], rows["completions"])
    predicted = torch.tensor([initial[0], *values[0], values[1][0], values[1][2]])
    wanted = torch.tensor([0.6, 0.7, 0.2, 1.0, 0.0])
    expected = binary_cross_entropy(predicted, wanted).item()
    trainer = make_trainer(
        tmp_path, rows, model, max_steps=1, per_device_train_batch_size=2, balance_classes=False,
        trainer_kwargs={"eval_dataset": rows},
    )  # fmt: skip
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-4)
    trainer.train()
    assert train_logs(trainer)[0]["loss"] == pytest.approx(expected, rel=1e-4)


def test_classes_are_balanced_by_total_weight(tmp_path: Path) -> None:
    rows = Dataset.from_dict(
        {
            "prompt": ["1+2="] * 4,
            "completions": [["3\n", "#3"]] * 4,
            "labels": [[0.9, 0.1], [1, 1], [1, 0.5], [0.6, 1]],
        }
    )
    trainer = make_trainer(tmp_path, rows, max_steps=1)
    negative, positive = trainer.class_weights
    assert (negative, positive) == pytest.approx((8 / 2, 8 / 14))
    values = trainer.verifier(["1+2="], [["3\n", "#3"]])[0]
    predicted = torch.tensor(values * 4)
    wanted = torch.tensor([0.9, 0.1, 1, 1, 1, 0.5, 0.6, 1])
    weights = torch.where(wanted < 0.5, negative, positive)
    expected = binary_cross_entropy(predicted, wanted, weight=weights).item()
    trainer.train()
    assert train_logs(trainer)[0]["loss"] == pytest.approx(expected, rel=1e-4)


def test_unlabelled_steps_have_no_gradient(tmp_path: Path) -> None:
    losses = []
    for filler in (None, math.nan, -100):
        rows = Dataset.from_list(
            [{"prompt": "1+2=", "completions": ["3\n", "9\n", "#3"], "labels": [0.25, filler, 0.75]}] * 4
        )
        trainer = make_trainer(tmp_path / str(filler), rows)
        trainer.train()
        losses.append([entry["loss"] for entry in train_logs(trainer)])
    assert losses[0] == losses[1] == losses[2]
    assert all(math.isfinite(loss) for loss in losses[0])


def test_booleans_train_as_zeros_and_ones(tmp_path: Path) -> None:
    losses = []
    for labels in ([True, False], [1, 0], [1.0, 0.0]):
        rows = Dataset.from_dict({"prompt": ["1+2="] * 4, "completions": [["3\n", "#4"]] * 4, "labels": [labels] * 4})
        trainer = make_trainer(tmp_path / str(labels), rows)
        trainer.train()
        losses.append([entry["loss"] for entry in train_logs(trainer)])
    assert losses[0] == losses[1] == losses[2]


# ---- data ----


def test_rows_truncated_to_no_label_are_dropped_with_a_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    long = {"prompt": "1+2+3+4+5=", "completions": ["3\n", "6\n"], "labels": [1.0, 0.0], "initial_value": None}
    unlabelled = {**long, "prompt": "1+2=", "labels": [None, None]}
    rows = Dataset.from_list([long, unlabelled, {**long, "prompt": "1+2="}] * 4)
    with caplog.at_level(logging.WARNING, "trl_prl.verifier.dataset"):
        trainer = make_trainer(tmp_path, rows, max_length=7)
    assert len(trainer.train_dataset) == 4
    assert "train data set, 12 rows: 4 rows without any label (null" in caplog.text
    assert (
        "4 rows with labels only beyond 7 tokens, 4 labels beyond 7 tokens in other rows are left out" in caplog.text
    )
    trainer.train()
    assert all(math.isfinite(entry["loss"]) for entry in train_logs(trainer))


def test_no_row_left_raises(tmp_path: Path) -> None:
    rows = Dataset.from_dict({"prompt": ["1+2="], "completions": [["3"]], "labels": [[None]]})
    with pytest.raises(ValueError, match="has a label to learn from: 1 rows without any label"):
        make_trainer(tmp_path, rows)


def test_cut_at_first_error(tmp_path: Path) -> None:
    rows = Dataset.from_dict({"prompt": ["1+2="], "completions": [["3\n", "4\n", "#3"]], "labels": [[0.5, 0.0, 1.0]]})
    [row] = make_trainer(tmp_path, rows, cut_at_first_error=True).train_dataset
    assert build_arithmetic_tokenizer().decode(row["input_ids"]) == "1+2=3\n4\n"
    assert row["labels"][1:] == [0.5, 0.0]
    [row] = make_trainer(tmp_path, rows).train_dataset
    assert row["labels"][1:] == [0.5, 0.0, 1.0]


def test_rows_that_cannot_be_used_raise_with_their_index(tmp_path: Path) -> None:
    good = {"prompt": "1+2=", "completions": ["3"], "labels": [1.0]}
    for bad, message in (
        ({**good, "labels": [1.0, 0.0]}, "Row 1 of the train data set.*2 labels for 1 steps"),
        ({**good, "labels": [2.0]}, "Row 1 of the train data set.*probabilities of success"),
        ({**good, "prompt": ""}, "Row 1 of the train data set.*no token of its own"),
    ):
        with pytest.raises(ValueError, match=message):
            make_trainer(tmp_path, Dataset.from_list([good, bad]))
    with pytest.raises(ValueError, match=r"lacks \['labels'\]"):
        make_trainer(tmp_path, Dataset.from_dict({"prompt": ["1+2="], "completions": [["3"]]}))


def test_steps_that_run_into_each_other_are_pointed_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = Dataset.from_dict({"prompt": ["1+2="] * 4, "completions": [["3", "#3"]] * 4, "labels": [[1.0, 0.0]] * 4})
    with caplog.at_level(logging.WARNING, "trl_prl.verifier.dataset"):
        make_trainer(tmp_path, rows)
        assert "run into each other" in caplog.text
        caplog.clear()
        trainer = make_trainer(tmp_path, rows, step_separator="\n")
    assert "run into each other" not in caplog.text
    assert build_arithmetic_tokenizer().decode(trainer.train_dataset[0]["input_ids"]) == "1+2=3\n#3<eos>"


def test_streams_train_without_balancing(tmp_path: Path) -> None:
    stream = dataset(8).to_iterable_dataset()
    with pytest.raises(ValueError, match="balance_classes=False"):
        make_trainer(tmp_path, stream)
    trainer = make_trainer(tmp_path, stream, balance_classes=False)
    trainer.train()
    assert len(train_logs(trainer)) == 2


# ---- as TRL's former PRMTrainer ----


def test_rows_of_prm_trainer_train(tmp_path: Path) -> None:
    """The format `PRMTrainer` took: steps without separators, boolean labels; ProcessBench F1 comes with them."""
    rows = Dataset.from_dict(
        {
            "prompt": ["Which number is larger, 9.8 or 9.11?", "Which is larger, 2 or 1?"] * 4,
            "completions": [["The fraction of 9.8 is 0.8.", "So 9.11 is larger."], ["2 is.", "Sure."]] * 4,
            "labels": [[True, False], [True, True]] * 4,
        }
    )
    tokenizer = build_tokenizer()
    trainer = PAVRewardTrainer(
        build_verifier_model(tokenizer),
        make_verifier_args(tmp_path, step_separator="\n", prompt_suffix="\n", learning_rate=3e-3, max_steps=30),
        train_dataset=rows,
        eval_dataset={"seen": rows, "half": rows.select(range(4))},
        processing_class=tokenizer,
    )
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_seen_process_bench_f1"] == 1.0
    assert metrics["eval_half_auroc"] == 1.0
    direct = trainer.evaluate(rows.select(range(2)), metric_key_prefix="test")
    assert direct["test_num_labels"] == 4


# ---- what RewardTrainer gives ----


def test_peft_trains_adapter_and_value_head_and_loads_merged(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    trainer = PAVRewardTrainer(
        arithmetic_policy_path(),
        make_verifier_args(tmp_path, prover="base"),
        train_dataset=dataset(),
        peft_config=peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
    )
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert any("score" in name for name in before)
    trainer.train()
    changed = {name for name, p in trainer.model.named_parameters() if name in before and not p.equal(before[name])}
    assert any("score" in name for name in changed)
    assert any("lora" in name for name in changed)
    trainer.save_model(str(tmp_path / "final"))
    loaded = ProcessAdvantageVerifier.from_pretrained(tmp_path / "final")
    assert loaded.settings.prover == "base"
    assert type(loaded.model).__name__ == "LlamaForTokenClassification"
    rows = (["1+2="], [["3\n", "#3"]])
    assert loaded(*rows)[0] == pytest.approx(trainer.verifier(*rows)[0], abs=1e-5)


def test_qlora(tmp_path: Path) -> None:
    peft, bitsandbytes = pytest.importorskip("peft"), pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    trainer = PAVRewardTrainer(
        arithmetic_policy_path(),
        make_verifier_args(tmp_path),
        train_dataset=dataset(),
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
        peft_config=peft.LoraConfig(r=4, task_type="TOKEN_CLS", target_modules=["q_proj", "v_proj"]),
    )
    trainer.train()
    quantized = [name for name, m in trainer.model.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert quantized
    assert not any("score" in name for name in quantized)
    # Gradients pass through the 4-bit layers down to the first adapter.
    first = [p for name, p in trainer.model.named_parameters() if "layers.0." in name and "lora_B" in name]
    assert first
    assert all(parameter.abs().max() > 0 for parameter in first)
    assert all(math.isfinite(entry["loss"]) for entry in train_logs(trainer))
    trainer.save_model(str(tmp_path / "final"))
    values = ProcessAdvantageVerifier.from_pretrained(tmp_path / "final")(["1+2="], [["3\n", "#3"]])[0]
    assert values == pytest.approx(trainer.verifier(["1+2="], [["3\n", "#3"]])[0], abs=0.1)


def test_resumed_training_equals_uninterrupted(tmp_path: Path) -> None:
    kwargs: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "learning_rate": 1e-3}
    whole = make_trainer(tmp_path / "whole", **kwargs)
    whole.train()
    resumed = make_trainer(tmp_path / "whole", **kwargs)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for name, tensor in whole.model.state_dict().items():
        assert tensor.equal(resumed.model.state_dict()[name]), name
    # A checkpoint is a verifier too.
    ProcessAdvantageVerifier.from_pretrained(tmp_path / "whole" / "checkpoint-2")


def test_length_grouping(tmp_path: Path) -> None:
    batches: list[list[int]] = []

    class Recorder(PAVRewardTrainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            batches.append(inputs["attention_mask"].sum(1).tolist())
            return super().compute_loss(model, inputs, *args, **kwargs)

    tokenizer = build_arithmetic_tokenizer()
    short = [{"prompt": "1+2=", "completions": ["3"], "labels": [1.0]}] * 40
    rows = Dataset.from_list([*short, *[{**short[0], "completions": ["3" * 30]}] * 40]).shuffle(seed=3)
    args = make_verifier_args(tmp_path, train_sampling_strategy="group_by_length", max_steps=20)
    Recorder(build_verifier_model(tokenizer), args, train_dataset=rows, processing_class=tokenizer).train()
    assert len(batches) == 20
    # Sorted within groups of five batches: one batch of a group may be mixed. Random batches nearly all are.
    assert sum(len(set(batch)) == 1 for batch in batches) >= 15


def test_plain_reward_config_is_accepted(tmp_path: Path) -> None:
    args = RewardConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_steps=1, learning_rate=3e-4,
        gradient_checkpointing=False,
    )  # fmt: skip
    tokenizer = build_arithmetic_tokenizer()
    trainer = PAVRewardTrainer(
        build_verifier_model(tokenizer), args, train_dataset=dataset(), processing_class=tokenizer
    )
    assert isinstance(trainer.args, PAVRewardConfig)
    assert trainer.args.learning_rate == 3e-4
    trainer.train()


def test_defaults_are_the_papers() -> None:
    args = PAVRewardConfig(output_dir="unused", bf16=False, use_cpu=True)
    assert (args.learning_rate, args.lr_scheduler_type, args.warmup_steps) == (5e-7, "cosine", 0.1)
    assert args.balance_classes


@pytest.mark.parametrize(
    "bad", [{"remove_unused_columns": True}, {"center_rewards_coefficient": 0.1}, {"prompt_format": "x"}]
)
def test_settings_that_cannot_work_raise(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="`"):
        PAVRewardConfig(output_dir="unused", bf16=False, use_cpu=True, **bad)


def test_model_card_tells_how_to_use_it(tmp_path: Path) -> None:
    rows = dataset()
    trainer = make_trainer(tmp_path, rows, trainer_kwargs={"eval_dataset": rows})
    trainer.train()
    trainer.evaluate()
    trainer.create_model_card(model_name="mine", tags="math")
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "None" not in card
    for part in (
        "ProcessAdvantageVerifier.from_pretrained",
        "process-reward-model",
        "math",
        "| auroc |",
        "| newline |",
    ):
        assert part in card, part
    # A data set in a folder is on no hub, and its model is called by its own.
    values = tmp_path / "values"
    values.mkdir()
    trainer.create_model_card(dataset_name=str(values))
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "None" not in card
    assert f"# Model Card for {tmp_path.name}" in card
    assert "on the `values` dataset" in card
    assert str(values) not in card
    assert "in sample" not in card
    trainer.settings = replace(trainer.settings, temperature=2.0)
    trainer.create_model_card(dataset_name="openai/gsm8k")
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "(https://huggingface.co/datasets/openai/gsm8k)" in card
    assert "they are in sample" in card


def test_the_example_trains_and_its_folder_scores(tmp_path: Path, repo_root: Path) -> None:
    """The example script in this process, on rows in the format of the former PRMTrainer."""
    import json
    import runpy

    import yaml
    from trl import ModelConfig, TrlParser

    rows = [
        {"prompt": row["prompt"], "completions": row["completions"], "labels": [x > 0.5 for x in row["labels"]]}
        for row in dataset(20)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    example = runpy.run_path(str(repo_root / "examples" / "train_verifier.py"))
    settings = yaml.safe_load((repo_root / "examples" / "configs" / "verifier.yaml").read_text())
    settings |= {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none", "max_steps": 2}
    settings |= {"max_length": 64, "prompt_suffix": "", "disable_tqdm": True, "eval_strategy": "no"}
    settings |= {"dataset_name": str(tmp_path / "rows.jsonl"), "format": "trl", "output_dir": str(tmp_path / "out")}
    settings |= {"model_name_or_path": arithmetic_policy_path(), "dtype": "float32"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ValueError, match="dataset_streaming=True"):
        example["load_splits"](example["DataArguments"](dataset_name="rows.jsonl", dataset_streaming=True))
    parser = TrlParser((example["DataArguments"], PAVRewardConfig, ModelConfig))
    example["main"](*parser.parse_args_and_config(["--config", str(tmp_path / "config.yaml")]))
    [values] = ProcessAdvantageVerifier.from_pretrained(tmp_path / "out")(["1+2="], [["3\n", "#3"]])
    assert len(values) == 2
    metrics = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    assert 0.0 <= metrics["eval_brier"] <= 1.0
    assert "process-reward-model" in (tmp_path / "out" / "README.md").read_text()
