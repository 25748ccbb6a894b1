"""The calculator: numbers worked out by hand, and token counts against a small real run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.arithmetic.task import arithmetic_policy_path, sample_problems
from tests.tiny_models import make_grpo_args, prompt_dataset, token_reward
from trl_prl import PRLConfig, PRLTrainer
from trl_prl.__main__ import main
from trl_prl.diagnosis.cost import (
    collection,
    equal_lengths,
    measured_lengths,
    reinforcement_learning,
    verifier_training,
)


def planned(capsys: pytest.CaptureFixture[str], *words: Any) -> dict[str, Any]:
    assert main(["plan", "--output", "json", *map(str, words)]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_tokens_by_hand() -> None:
    """Two seeds of 12 tokens in 3 steps: rollouts begin after 0 tokens, and twice after 4 and after 8."""
    lengths = equal_lengths(prompt=10, completion=12, steps=3, n_cov=2)
    assert (lengths.prefixes, lengths.kept, lengths.remaining) == (4, 24, 24)
    stage = collection(lengths, num_prompts=100, n_cov=2, n_mc=5, prover_size=1e9)
    assert stage.sampled == 100 * (2 * 12 + 5 * (12 + 2 * (8 + 4)))
    assert stage.read == 100 * (10 + 10 + 2 * (10 + 4) + 2 * (10 + 8))
    assert stage.operations == {"sample": 2e9 * stage.sampled, "read": 2e9 * stage.read, "train": 0.0}
    trained = verifier_training(lengths, 100, epochs=2, size=1e9, is_lora=False)
    assert trained.trained == 100 * 2 * 2 * 22
    assert trained.operations["train"] == 6e9 * trained.trained
    learnt = reinforcement_learning(lengths, "prl", 50, 64, 1e9, 1e9, is_lora=True, num_iterations=2)
    assert (learnt.sampled, learnt.read, learnt.trained) == (25 * 64 * 12, 25 * 64 * 22, 50 * 64 * 22)
    assert learnt.operations["train"] == 4e9 * learnt.trained
    # The reference of an adapter is the policy itself.
    assert list(learnt.resident) == ["policy"]


def test_shared_prefixes_are_measured_once() -> None:
    seeds = [([1, 2, 3, 9], [2, 3, 4]), ([1, 2, 4, 4, 4, 9], [2, 5, 6]), ([1, 2, 3, 9], [2, 3, 4])]
    lengths = measured_lengths([5], [seeds], n_cov=3)
    # [1, 2] thrice with 2, 4 and 2 tokens to come, [1, 2, 3] twice with 1, [1, 2, 4, 4, 4] once with 1.
    assert (lengths.seeds, lengths.prefixes, lengths.kept) == (2, 3, 10)
    assert lengths.remaining == pytest.approx(8 / 3 + 1 + 1)
    assert (lengths.completion, lengths.steps) == (pytest.approx(14 / 3), 3)
    with pytest.raises(ValueError, match="Got 3 samples of a prompt and n_cov=4"):
        measured_lengths([5], [seeds], n_cov=4)


def test_hours_and_price_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    run = {"method": "grpo", "policy_size": 1, "optimizer_steps": 10, "completions_per_step": 100}
    run |= {"prompt_length": 100, "completion_length": 300, "decode_tokens_per_second": 1000, "train_utilization": 0.5}
    words = [word for name, value in run.items() for word in (f"--{name}", value)]
    (stage,) = planned(capsys, *words, "--price_per_gpu_hour", 2)["stages"]
    seconds = 300_000 / 1000 + 6e9 * 400_000 / (989e12 * 0.5)
    assert stage["gpu_hours"] == pytest.approx(seconds / 3600)
    assert stage["price"] == pytest.approx(2 * seconds / 3600)
    assert stage["resident"] == {"policy": pytest.approx(16e9 / 2**30)}


@pytest.mark.slow
def test_tokens_of_a_collection_are_met_to_five_percent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Planned from samples of some problems, and spent on others."""
    problems = sample_problems("tuning", 400, seed=3)
    for name, part in (("some", problems[:200]), ("others", problems[200:])):
        rows = [json.dumps({"prompt": problem.prompt, "answer": problem.answer}) for problem in part]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    policy, reward = arithmetic_policy_path(), "tests.benchmarks.arithmetic.task:arithmetic_reward"
    common = ["--model", policy, "--reward", reward, "--max_completion_length", "40", "--check_timeout", "0"]
    data = ["--dataset", str(tmp_path / "some.jsonl"), "--output_dir", str(tmp_path / "sampled")]
    assert main(["evaluate", *common, *data, "--n", "3", "--plot", "none"]) == 0
    data = ["--dataset", str(tmp_path / "others.jsonl"), "--output_dir", str(tmp_path / "values")]
    counts = ["--n_cov", "3", "--n_mc", "2"]
    assert main(["collect", *common, *data, *counts]) == 0
    capsys.readouterr()
    given = ["--samples", tmp_path / "sampled" / "problems.jsonl", "--tokenizer", policy, "--num_prompts", 200]
    stage, *_ = planned(capsys, *given, *counts)["stages"]
    card = (tmp_path / "values" / "README.md").read_text()
    spent = {
        name: int(line.split("|")[2].replace(",", ""))
        for line in card.splitlines()
        for name in ("sampled", "prompt")
        if line.startswith(f"| {name} tokens")
    }
    assert stage["sampled_tokens"] == pytest.approx(spent["sampled"], rel=0.05)
    assert stage["read_tokens"] == pytest.approx(spent["prompt"], rel=0.05)


def test_tokens_of_a_training_are_met(tiny_model_path: str, tiny_tokenizer: Any, tmp_path: Path) -> None:
    prompts = prompt_dataset()
    args = make_grpo_args(PRLConfig, tmp_path, max_steps=4, max_completion_length=12, num_iterations=2)
    trainer = PRLTrainer(model=tiny_model_path, args=args, reward_funcs=token_reward, train_dataset=prompts)
    trainer.train()
    mean = sum(len(tiny_tokenizer(text)["input_ids"]) for text in prompts["prompt"]) / len(prompts)
    name = "completions/mean_length"
    logged = [entry[name] for entry in trainer.state.log_history if name in entry]
    lengths = equal_lengths(mean, sum(logged) / len(logged), 2, 1)
    number = args.per_device_train_batch_size * args.gradient_accumulation_steps
    stage = reinforcement_learning(lengths, "prl", 4, number, 1e6, 1e6, is_lora=False, num_iterations=2)
    seen = max(entry.get("num_tokens", 0) for entry in trainer.state.log_history)
    assert stage.read == pytest.approx(seen, rel=0.05)


def test_the_table_says_what_is_assumed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--price_per_gpu_hour", "2"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "price" in text
    assert "decode_utilization 0.15" in text


def test_small_jobs_have_numbers_too(capsys: pytest.CaptureFixture[str]) -> None:
    run = {"method": "grpo", "policy_size": 0.1, "optimizer_steps": 2, "completions_per_step": 4, "num_gpus": 2}
    run |= {"prompt_length": 50, "completion_length": 100, "decode_tokens_per_second": 10, "price_per_gpu_hour": 2}
    words = [str(word) for name, value in run.items() for word in (f"--{name}", value)]
    assert main(["plan", *words]) == 0
    text = " ".join(capsys.readouterr().out.split())
    # 800 tokens at 10 per second are 80 seconds; 2 / 3600 of a price for each of them.
    assert "0.8 k - 1.2 k 1.3 min 40.0 s" in text
    assert "policy 1.5 0.04 " in text
    assert "on 2 GPUs" in text
    assert main(["plan", *words, "--decode_tokens_per_second", "10000", "--price_per_gpu_hour", "0.01"]) == 0
    assert "<1 s <1 s policy 1.5 <0.01" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--n_mc", "0", "--read_utilization", "1.5"], "Got n_mc=0 and read_utilization=1.5, which cannot be"),
        (["--samples", "x.jsonl"], "Got samples='x.jsonl' and tokenizer=None"),
        (["--num_steps", "0.5"], "completions of 400.0 tokens in 0.5 steps"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words]) == 2
    assert message in capsys.readouterr().err
