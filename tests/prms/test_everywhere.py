"""Every family wherever a verifier is taken: trainer, callback, score, search, evaluate, evaluate-verifier."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from trl import GRPOConfig, GRPOTrainer

from tests.benchmarks.arithmetic.task import arithmetic_policy_path, sample_problems
from tests.prms.test_families import FAMILIES, flat
from tests.tiny_models import make_grpo_args, prompt_dataset, token_reward
from trl_prl.__main__ import main
from trl_prl.evaluation.process_bench import SUBSETS, read_process_bench, score_process_bench
from trl_prl.metrics.step_values import process_bench_f1
from trl_prl.prms.load import load_process_reward
from trl_prl.prms.scoring import score_prefixes
from trl_prl.training.callback import ProcessRewardCallback
from trl_prl.training.pav_config import PAVConfig
from trl_prl.training.pav_trainer import PAVTrainer
from trl_prl.verifier.evaluation import ScoredSolution


@pytest.mark.parametrize("family", FAMILIES)
def test_trainer(family: str, prm_paths: dict[str, str], tiny_model_path: str, tmp_path: Path) -> None:
    """What a newcomer types first: the name of a model, and nothing else."""
    trainer = PAVTrainer(
        model=tiny_model_path,
        reward_funcs=token_reward,
        args=make_grpo_args(PAVConfig, tmp_path),
        train_dataset=prompt_dataset(),
        process_reward=prm_paths[family],
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 2
    assert all(math.isfinite(entry["process/reward/mean"]) for entry in logs)
    assert any(entry["process/reward/std"] > 0 for entry in logs)
    assert not any(parameter.grad is not None for parameter in trainer.process_reward.model.parameters())


def test_callback_on_a_stock_trainer(prm_paths: dict[str, str], tiny_model_path: str, tmp_path: Path) -> None:
    trainer = GRPOTrainer(
        model=tiny_model_path,
        reward_funcs=token_reward,
        args=make_grpo_args(GRPOConfig, tmp_path),
        train_dataset=prompt_dataset(),
    )
    trainer.add_callback(ProcessRewardCallback(trainer, process_reward=prm_paths["qwen"], alpha=1.0))
    trainer.train()
    assert any("process/reward/mean" in entry for entry in trainer.state.log_history)


@pytest.mark.parametrize("family", FAMILIES)
def test_prepare_moves_to_the_device_and_trains_nothing(family: str, prm_paths: dict[str, str]) -> None:
    reward = load_process_reward(prm_paths[family])
    reward.model.train()
    reward.prepare(Accelerator(cpu=True))
    assert not reward.model.training
    assert reward.device == torch.device("cpu")
    assert reward.to("cpu") is reward


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_score(family: str, prm_paths: dict[str, str], tmp_path: Path) -> None:
    rows = [
        {"prompt": "Add 1.", "completion": "We add.\n\nIt is 2."},
        {"prompt": "Add 2.", "completions": ["So\n", "4"], "labels": [1.0, None]},
    ]
    source, output = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    assert main(["score", "--verifier", prm_paths[family], "--file", str(source), "--output", str(output)]) == 0
    found = [json.loads(line) for line in output.read_text().splitlines()]
    steps = [found[0]["steps"], ["So\n", "4"]]
    assert "".join(steps[0]) == rows[0]["completion"]
    initial, values = score_prefixes(load_process_reward(prm_paths[family]), ["Add 1.", "Add 2."], steps)
    torch.testing.assert_close(flat(row["step_values"] for row in found), flat(values), atol=1e-5, rtol=0)
    assert [row["scored_initial_value"] for row in found] == pytest.approx(initial)


@pytest.mark.parametrize("family", FAMILIES)
def test_search(family: str, prm_paths: dict[str, str], tmp_path: Path) -> None:
    rows = [{"prompt": problem.prompt, "answer": problem.answer} for problem in sample_problems("tuning", 2, seed=1)]
    problems = write_rows(tmp_path / "problems.jsonl", rows)
    words = ["--model", arithmetic_policy_path(), "--dataset", str(problems), "--output-dir", str(tmp_path / "out")]
    words += ["--reward", "tests.benchmarks.arithmetic.task:arithmetic_reward", "--process-reward"]
    # Progress has no value that a search could compare finished solutions by.
    words.append(prm_paths[family] + ",returns=values" * (family == "implicit"))
    words += ["--max-completion-length", "24", "--n", "2"]
    words += ["--check-timeout", "0", "--plot", "none", "--method", "best_of_n"]
    assert main(["search", *words]) == 0


def test_evaluate(prm_paths: dict[str, str], tmp_path: Path) -> None:
    places = [(i, j) for i in range(2) for j in range(2)]
    rows = [{"prompt": f"Add {i}.", "answer": str(i), "completion": f"We.\n\n\\boxed{{{j}}}"} for i, j in places]
    words = ["--samples", str(write_rows(tmp_path / "samples.jsonl", rows)), "--output-dir", str(tmp_path / "out")]
    words += ["--verifiers", f"prm={prm_paths['implicit']}", "--reward", "exact_match"]
    assert main(["evaluate", *words, "--check-timeout", "0"]) == 0


PROCESS_BENCH = {
    "gsm8k": [("Add 1.", ["We add.", "It is 2.", "So 2."], -1), ("Add 2.", ["We take.", "It is 0."], 0)] * 3,
    "math": [("Add 3.", ["We add.", "It is 7.", "So 7."], 1), ("Add 4.", ["It is 8."], -1)] * 2,
}


@pytest.fixture
def process_bench(tmp_path: Path) -> Path:
    """Two subsets in files as published: one JSON array each."""
    folder = tmp_path / "bench"
    folder.mkdir()
    for name, entries in PROCESS_BENCH.items():
        rows = [
            {"id": f"{name}-{i}", "generator": "m", "problem": problem, "steps": steps, "label": label}
            for i, (problem, steps, label) in enumerate(entries)
        ]
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_evaluate_verifier_on_process_bench(
    family: str, prm_paths: dict[str, str], process_bench: Path, tmp_path: Path
) -> None:
    words = ["--verifier", prm_paths[family], "--dataset", f"processbench:{process_bench}", "--plot", "none"]
    assert main(["evaluate-verifier", *words, "--output-dir", str(tmp_path / "out")]) == 0
    evaluation = json.loads((tmp_path / "out" / "verifier_evaluation.json").read_text())
    found = evaluation["processbench"]
    assert list(found["subsets"]) == ["gsm8k", "math"]
    assert found["threshold"]["how"] == evaluation["threshold"]["how"] == "highest F1 on gsm8k"
    # The F1 of the values themselves, computed from the published rows.
    reward = load_process_reward(prm_paths[family])
    for name, entries in PROCESS_BENCH.items():
        prompts = [problem for problem, _, _ in entries]
        steps = [[f"{step}\n\n" for step in texts[:-1]] + texts[-1:] for _, texts, _ in entries]
        _, values = score_prefixes(reward, prompts, steps)
        padded = [row + [math.nan] * (3 - len(row)) for row in values]
        expected = process_bench_f1(padded, [label for _, _, label in entries])
        assert found["subsets"][name]["f1_at_0.5"] == pytest.approx(expected["f1"])
        assert found["subsets"][name]["num_solutions"] == len(entries)


def test_process_bench_by_hand() -> None:
    """Values .9 .2 | .9 .9 | .4 with first errors 1, none, none: one half of the right ones, all of the wrong ones."""
    solutions = [
        ScoredSolution("a", [0.9, 0.2, 0.1], [1.0, 0.0, None], {"subset": "math"}),
        ScoredSolution("b", [0.9, 0.9], [1.0, 1.0], {"subset": "math"}),
        ScoredSolution("c", [0.4], [1.0], {"subset": "math"}),
    ]
    found = score_process_bench(solutions)
    assert found["threshold"] == {"value": 0.5, "how": "default"}
    assert found["subsets"]["math"]["error_accuracy"] == 1.0
    assert found["subsets"]["math"]["correct_accuracy"] == 0.5
    assert found["average_f1"] == pytest.approx(2 / 3)
    assert score_process_bench(solutions, threshold=0.3)["average_f1"] == 1.0


@pytest.mark.shared_data
def test_process_bench_from_stepwise_rows(shared_data: Path) -> None:
    rows = read_process_bench(str(shared_data / "stepwise"), max_rows=5)
    assert [row["subset"] for row in rows] == [name for name in SUBSETS for _ in range(5)]
    for row in rows:
        assert len(row["labels"]) == len(row["completions"])
        assert all(step.endswith("\n\n") for step in row["completions"][:-1])


def test_a_folder_without_subsets_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no subset of ProcessBench"):
        read_process_bench(str(tmp_path))
