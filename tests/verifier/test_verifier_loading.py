"""Verifiers load what was trained, adapters and whole models alike, and refuse what is none."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, LlamaForSequenceClassification

from tests.tiny_models import build_model, build_tokenizer, save_tiny_model
from tests.verifier_models import arithmetic_rows, build_verifier, build_verifier_model, make_verifier_args
from trl_prl.demo.arithmetic import arithmetic_policy_path, arithmetic_verifier_path, build_arithmetic_tokenizer
from trl_prl.generation.local import TransformersGenerator
from trl_prl.verifier.model import ProcessAdvantageVerifier
from trl_prl.verifier.rows import tokenize_stepwise
from trl_prl.verifier.trainer import PAVRewardTrainer


ROW = (["1+2="], [["3\n", "#3"]])


def train_adapter(folder: Path, **lora: Any) -> PAVRewardTrainer:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], **lora})
    args = make_verifier_args(folder)
    trainer = PAVRewardTrainer(
        arithmetic_policy_path(), args, train_dataset=arithmetic_rows(12, seed=0), peft_config=config
    )
    trainer.train()
    trainer.save_model()
    return trainer


@pytest.mark.parametrize("task_type", ["CAUSAL_LM", "SEQ_CLS", "TOKEN_CLS", None])
def test_an_adapter_for_whatever_task_trains_its_value_head_and_loads_in_silence(
    task_type: str | None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trainer = train_adapter(tmp_path, task_type=task_type)
    trained = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    assert any("score" in name for name in trained)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["task_type"] == "TOKEN_CLS"
    capfd.readouterr()
    loaded = ProcessAdvantageVerifier.from_pretrained(tmp_path)
    assert loaded(*ROW)[0] == pytest.approx(trainer.verifier(*ROW)[0], abs=1e-5)
    printed = "".join(capfd.readouterr())
    assert "newly initialized" not in printed
    assert "MISSING" not in printed


def drop_value_head(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if "score" not in name}, path)


def test_an_adapter_without_its_value_head_is_refused(tmp_path: Path) -> None:
    train_adapter(tmp_path)
    drop_value_head(tmp_path)
    with pytest.raises(ValueError, match=r"lacks the weights \['score.bias', 'score.weight'\]"):
        ProcessAdvantageVerifier.from_pretrained(tmp_path)


def test_an_adapter_merged_without_a_value_head_is_refused(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(arithmetic_policy_path()),
        peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    )
    adapted.merge_and_unload().save_pretrained(tmp_path)
    build_arithmetic_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="lacks the weights"):
        ProcessAdvantageVerifier.from_pretrained(tmp_path)


def test_an_adapter_on_a_verifier_needs_no_head_of_its_own(tmp_path: Path) -> None:
    train_adapter(tmp_path)
    drop_value_head(tmp_path)
    build_verifier(build_arithmetic_tokenizer()).save_pretrained(tmp_path / "base")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    other = tmp_path / "adapter"
    other.mkdir()
    base = build_verifier_model(build_arithmetic_tokenizer())
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj"]))
    adapted.save_pretrained(other)
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": str(tmp_path / "base")})
    )
    base.config.save_pretrained(other)
    build_arithmetic_tokenizer().save_pretrained(other)
    values = ProcessAdvantageVerifier.from_pretrained(other)(*ROW)
    assert values[0] == pytest.approx(ProcessAdvantageVerifier.from_pretrained(tmp_path / "base")(*ROW)[0], abs=1e-6)


def test_pickled_adapters_are_not_read(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    trainer = train_adapter(tmp_path / "verifier")
    policy = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(arithmetic_policy_path()), peft.LoraConfig(target_modules=["q_proj"])
    )
    policy.save_pretrained(tmp_path / "policy")
    for folder, load in (
        (tmp_path / "verifier", lambda path: ProcessAdvantageVerifier.from_pretrained(path)),
        (tmp_path / "policy", lambda path: TransformersGenerator.from_pretrained(
            arithmetic_policy_path(), adapter=str(path), device="cpu")),
    ):  # fmt: skip
        load(folder)
        (folder / "adapter_model.safetensors").unlink()
        torch.save(trainer.model.state_dict(), folder / "adapter_model.bin")
        with pytest.raises(OSError, match="pickled weights, which can run code"):
            load(folder)


def test_code_of_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left to itself, `transformers` asks on the terminal."""
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("asked"))
    build_verifier(build_tokenizer()).save_pretrained(tmp_path / "verifier")
    save_tiny_model(tmp_path / "policy")
    for name, load in (
        ("verifier", lambda path: ProcessAdvantageVerifier.from_pretrained(path)),
        ("policy", lambda path: TransformersGenerator.from_pretrained(str(path), device="cpu")),
    ):
        path = tmp_path / name / "config.json"
        config = json.loads(path.read_text())
        code = {"AutoConfig": "code.Config", "AutoModelForTokenClassification": "code.Model"}
        path.write_text(json.dumps({**config, "model_type": "own", "auto_map": code}))
        (tmp_path / name / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            load(tmp_path / name)
    assert not (tmp_path / "ran").exists()


# ---- labels, and models that are none ----


def test_the_names_of_two_labels_are_read() -> None:
    tokenizer = build_tokenizer()

    def values(names: dict[int, str] | None) -> list[float]:
        model = build_verifier_model(tokenizer, num_labels=2)
        if names is not None:
            model.config.id2label = names
        return ProcessAdvantageVerifier(model, tokenizer)(["Add 1.\n"], [["2.\n", "So 2."]])[0]

    second = values(None)
    assert values({0: "incorrect", 1: "correct"}) == values({0: "-", 1: "+"}) == second
    first = values({0: "Good", 1: "Bad"})
    assert first == pytest.approx([1 - value for value in second], abs=1e-6)
    for unclear in ({0: "good", 1: "correct"}, {0: "A", 1: "B"}, {0: "wrong", 1: "neutral"}):
        with pytest.raises(ValueError, match="does not say which one means a right step"):
            values(unclear)


def test_a_sequence_classifier_is_called_what_it_is(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    model = LlamaForSequenceClassification(build_verifier_model(tokenizer).config)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="LlamaForSequenceClassification: a sequence-classification model"):
        ProcessAdvantageVerifier.from_pretrained(tmp_path)
    rows = Dataset.from_dict({"prompt": ["a"], "completions": [["b"]], "labels": [[1.0]]})
    for wrong in (model, build_model(tokenizer)):
        with pytest.raises(ValueError, match="Use a token-classification model"):
            PAVRewardTrainer(wrong, make_verifier_args(tmp_path), train_dataset=rows, processing_class=tokenizer)


def test_the_shipped_verifier_reads_as_it_was_trained() -> None:
    verifier = ProcessAdvantageVerifier.from_pretrained(arithmetic_verifier_path())
    assert not verifier.settings.read_end
    assert verifier.settings.prompt_format == "text"
    prompt, steps = "1+2-4=", ["3\n", "-1\n", "#-1"]
    tokens = tokenize_stepwise(verifier.tokenizer, prompt, steps, verifier.settings, finished=True)
    assert verifier.tokenizer.decode(tokens.input_ids) == "1+2-4=3\n-1\n#-1"
    assert verifier([prompt], [steps], finished=[True]) == verifier([prompt], [steps], finished=[False])


# ---- training ----


def uneven_rows() -> Dataset:
    """Rows of one to four labelled steps."""
    rows = []
    for count in (1, 4, 2, 1):
        steps = ["3\n"] * count
        rows.append({"prompt": "1+2=", "completions": steps, "labels": [count / 4 - i / 10 for i in range(count)]})
    return Dataset.from_list(rows)


def test_labels_weigh_alike_however_rows_are_batched(tmp_path: Path) -> None:
    found = []
    for batch_size, accumulation in ((4, 1), (2, 2), (1, 4)):
        tokenizer = build_arithmetic_tokenizer()
        args = make_verifier_args(
            tmp_path / str(batch_size), per_device_train_batch_size=batch_size, max_steps=1, optim="sgd",
            gradient_accumulation_steps=accumulation, learning_rate=1.0, lr_scheduler_type="constant", warmup_steps=0,
            max_grad_norm=0.0,
        )  # fmt: skip
        model = build_verifier_model(tokenizer)
        trainer = PAVRewardTrainer(model, args, train_dataset=uneven_rows(), processing_class=tokenizer)
        trainer.train()
        logged = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
        found.append((logged, torch.cat([p.detach().flatten() for p in trainer.model.parameters()])))
    for loss, weights in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-4)
        torch.testing.assert_close(weights, found[0][1], atol=1e-6, rtol=1e-4)


@pytest.mark.slow
def test_calibration_puts_balanced_values_back_and_is_saved(tmp_path: Path) -> None:
    # One row in five is right, and some more of those that end in 0, which alone can be seen: a few right ones among
    # many, which balanced training draws to a value of 0.5.
    rows = Dataset.from_list(
        [
            {"prompt": "1+2=", "completions": ["3\n", f"#{i % 7}"], "labels": [float(i % 5 == 0 or i % 14 == 0)] * 2}
            for i in range(70)
        ]
    )
    tokenizer = build_arithmetic_tokenizer()
    args = make_verifier_args(tmp_path, max_steps=40, per_device_train_batch_size=32, learning_rate=3e-3)
    trainer = PAVRewardTrainer(
        build_verifier_model(tokenizer), args, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer
    )
    trainer.train()
    trainer.calibrate()
    before = next(entry for entry in trainer.state.log_history if "uncalibrated_loss" in entry)
    assert before["uncalibrated_mean_value"] - before["uncalibrated_mean_label"] > 0.1
    after = trainer.evaluate()
    assert after["eval_mean_value"] == pytest.approx(after["eval_mean_label"], abs=0.03)
    assert after["eval_loss"] < before["uncalibrated_loss"]
    assert after["eval_auroc"] == pytest.approx(before["uncalibrated_auroc"], abs=1e-3)  # but for ties of float32
    first = trainer.settings
    trainer.calibrate()  # from the raw logits once more
    assert trainer.settings.temperature == pytest.approx(first.temperature, rel=1e-3)
    trainer.save_model()
    settings = ProcessAdvantageVerifier.from_pretrained(tmp_path).settings
    assert (settings.temperature, settings.offset) == (trainer.settings.temperature, trainer.settings.offset)
    assert not math.isclose(settings.offset, 0.0)
