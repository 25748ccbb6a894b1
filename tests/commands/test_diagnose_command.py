"""`trl-prl diagnose`, and the siblings that `trl-prl collect --n-branch` draws for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from tests.benchmarks.arithmetic.task import arithmetic_reward
from tests.commands.test_collect_command import options, write_prompts
from tests.provers import ArithmeticProver, ScriptedGenerator
from trl_prl import __main__ as cli
from trl_prl.collection.monte_carlo import MonteCarloParams, estimate_step_values
from trl_prl.diagnosis.diagnosis import DiagnosisParams, diagnose
from trl_prl.diagnosis.files import check_settings, short_names, warn
from trl_prl.diagnosis.moments import Candidate
from trl_prl.diagnosis.states import Coverage, read_problems, sampled_states
from trl_prl.generation.rollouts import Problem
from trl_prl.steps.splitters import DelimiterSplitter
from trl_prl.steps.token_pieces import TokenPieces
from trl_prl.training.pav_config import PAVArguments
from trl_prl.types import SamplingParams


ROOT = Path(__file__).parents[2]


def rows_of(generator: Any, tokenizer: Any, params: MonteCarloParams) -> list[dict[str, Any]]:
    problem = Problem(7, "3+4=", tuple(tokenizer("3+4=").input_ids), {"answer": "7"})
    return estimate_step_values(
        [problem], generator, arithmetic_reward, DelimiterSplitter("\n"), TokenPieces(tokenizer), params,
        SamplingParams(max_tokens=64, seed=1),
    )  # fmt: skip


# ---- branches ----


def test_branches_by_hand() -> None:
    """One seed of two steps; two branches from the prompt and two after the first step."""
    tokenizer = ArithmeticProver().tokenizer

    def write(text: str, i: int) -> str:
        call = len(generator.prompts)
        if call == 1:
            return "7\n#7"
        if call <= 3:  # the branches: of the prompt, and of the first step
            return ["8\n#8", "7\n#1"][i] if text.endswith("=") else ["#7", "#9"][i]
        return "7\n#7" if text.endswith("=") else "#7"

    generator = ScriptedGenerator(tokenizer, write)
    rows = rows_of(generator, tokenizer, MonteCarloParams(n_cov=1, n_mc=4, n_branch=2))
    seed, *branches = sorted(rows, key=lambda row: (row["branch_at"] is not None, row["branch_at"]))
    assert (seed["branch_at"], seed["completions"], seed["labels"]) == (None, ["7\n", "#7"], [1.0, 1.0])
    found = [(b["branch_at"], b["completions"], b["labels"], b["num_seeds"], b["rest"]) for b in branches]
    assert found == [
        # A new first step, measured (all its rollouts say 7, so it is right).
        (0, ["8\n"], [1.0], 1, "#8"),
        # The seed's own first step once more: its label, not new rollouts.
        (0, ["7\n"], [1.0], 1, "#1"),
        # Ended solutions have their outcome; the label of the prefix is in the seed's row.
        (1, ["7\n", "#7"], [None, 1.0], 1, ""),
        (1, ["7\n", "#9"], [None, 0.0], 1, ""),
    ]

    problems = read_problems(rows)
    assert problems[7].visits == {(): 1, ("7\n",): 1}
    assert problems[7].draws[()] == {(("7\n",), False): 2, (("8\n",), False): 1}
    assert problems[7].draws["7\n",] == {(("7\n", "#7"), True): 2, (("7\n", "#9"), True): 1}
    states, coverage = sampled_states([problems], [Candidate(0)])
    assert (coverage.num_visits, coverage.num_used, coverage.num_draws) == (2, 2, 6)
    at_prompt, after_step = states
    assert (at_prompt.depth, after_step.depth) == (0, 1)
    assert at_prompt.num_rollouts.tolist() == [[4, 4]]
    assert after_step.num_rollouts.tolist() == [[0, 0]]
    assert after_step.num_correct.tolist() == [[1, 0]]


def test_a_whole_solution_is_not_its_prefix_of_equal_text() -> None:
    """`7\\n` as the end of a solution is wrong; as a prefix that goes on it has rollouts of its own."""
    base = {
        "prompt": "3+4=", "row": 0, "initial_num_rollouts": 4, "initial_num_correct": 3, "branch_at": None,
        "num_seeds": 1,
    }  # fmt: skip
    rows = [
        {**base, "completions": ["7\n", "#7"], "labels": [0.5, 1.0], "num_rollouts": [4, 0], "num_correct": [2, 0]},
        {**base, "completions": ["7\n"], "labels": [0.0], "num_rollouts": [0], "num_correct": [0]},
    ]
    (problem,) = read_problems(rows).values()
    assert problem.draws[()] == {(("7\n",), False): 1, (("7\n",), True): 1}
    assert problem.counts[("7\n",), False] == (4, 2)
    assert problem.counts[("7\n",), True] == (0, 0)


def test_branches_need_seeds_that_are_not_chosen() -> None:
    with pytest.raises(ValueError, match="chooses its seeds by their outcome"):
        MonteCarloParams(strategy="first_pit", n_branch=1)


# ---- the command ----


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small jobs on the same prefixes; the second prover is the base policy again, with rollouts of its own."""
    folder = tmp_path_factory.mktemp("diagnose")
    prompts = write_prompts(folder, 8)
    changes = {"n_branch": 1, "n_mc": 8, "max_completion_length": 24, "unfinished": "wrong"}
    assert cli.main(options(folder / "base", prompts, **changes)) == 0
    words = options(folder / "other", prompts, **changes)
    model = words[words.index("--model") + 1]
    assert cli.main([*words, "--seed-model", model]) == 0
    return folder


def test_command_writes_table_json_and_plot(
    job: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    arguments = [
        "--k",
        "1",
        "2",
        "4",
        "8",
        "--resamples",
        "400",
        "--output",
        str(job / "d.json"),
        "--plot",
        str(job / "d.png"),
    ]
    assert cli.main(["diagnose", str(job / "base"), *arguments]) == 0
    printed = capsys.readouterr().out
    result = json.loads((job / "d.json").read_text())
    assert result["kind"] == "diagnosis"
    # K = 8 needs 16 rollouts.
    assert [(entry["prover"], entry["k"]) for entry in result["candidates"]] == [("base", 1), ("base", 2), ("base", 4)]
    assert any("K = 8 left out" in warning for warning in result["warnings"])
    assert any("8 problems are few" in warning for warning in result["warnings"])
    own = result["candidates"][0]
    assert own["distinguishability"] == own["alignment"]
    assert own["distinguishability"]["low"] <= own["distinguishability"]["value"] <= own["distinguishability"]["high"]
    assert result["coverage"]["num_used"] == result["coverage"]["num_visits"]
    # The terminal says what the file says, in words and within its width.
    assert all(paragraph in " ".join(printed.split()) for paragraph in map(" ".join, map(str.split, result["words"])))
    assert max(map(len, printed.splitlines())) <= 80
    assert "…" not in printed
    assert all(f"{name}: " in printed for name in ("distinguishability", "alignment", "credit", "alpha"))
    assert set(result["recommendation"]["by_verifier_error"]) == {"0.05", "0.1", "0.2"}
    assert sum(result["recommendation"]["probability_best"]) == pytest.approx(1)
    assert (job / "d.png").stat().st_size > 10_000


def test_advice_on_alpha_agrees_with_the_trainer_the_configuration_and_the_walkthrough(job: Path) -> None:
    """Where the advice differs from what the files have, both say so."""
    default = PAVArguments().alpha
    assert yaml.safe_load((ROOT / "examples/configs/pav.yaml").read_text())["alpha"] == default
    walkthrough = (ROOT / "docs/pipeline.md").read_text()
    assert f"It stays at the {default} of `pav.yaml`" in walkthrough
    assert "--alpha" not in walkthrough
    said = {}
    for use in ("rl", "search"):
        words = ["diagnose", str(job / "base"), "--use", use, "--resamples", "100", "--output", str(job / "advice")]
        assert cli.main(words) == 0
        said[use] = json.loads((job / "advice").read_text())["words"][-1]
    assert f"below it at {default}, which PAVConfig and pav.yaml have" in said["rl"]
    assert "if off by 0.1, " in said["rl"]
    assert "PAVConfig" not in said["search"]


@pytest.mark.slow
def test_same_seed_same_diagnosis_and_a_second_prover_is_joined(job: Path) -> None:
    results = []
    for name in ("a", "b"):
        files = [str(job / "base"), str(job / "other" / "data" / "train.parquet")]
        assert cli.main(["diagnose", *files, "--k", "1", "2", "--resamples", "200", "--output", str(job / name)]) == 0
        results.append(json.loads((job / name).read_text()))
    assert results[0] == results[1]
    assert results[0]["coverage"]["num_unmatched"] == 0
    # Rollouts of the second prover have random numbers of their own, so that their errors are independent.
    base, other = (pq.read_table(job / name / "data" / "train.parquet").to_pydict() for name in ("base", "other"))
    assert base["completions"] == other["completions"]
    assert base["num_correct"] != other["num_correct"]
    labels = [entry["label"] for entry in results[0]["candidates"]]
    assert labels == ["base", "policy", "Bo2 of base", "Bo2 of policy"]
    # Every state, and so every number of the base policy, is the same as without the second file.
    assert (
        cli.main(
            ["diagnose", str(job / "base"), "--k", "1", "2", "--resamples", "200", "--output", str(job / "alone")]
        )
        == 0
    )
    alone = json.loads((job / "alone").read_text())
    assert alone["candidates"][0] == results[0]["candidates"][0]


def test_without_branches_the_coverage_is_said(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [r for r in pq.read_table(job / "base" / "data" / "train.parquet").to_pylist() if r["branch_at"] is None]
    states, coverage = sampled_states([read_problems(rows)], [Candidate(0)])
    assert coverage.num_used < 0.7 * coverage.num_visits
    assert min(state.num_draws.sum() for state in states) >= 2


@pytest.mark.parametrize(("n_branch", "advice"), [(0, "Collect with --n_branch 1"), (1, "Raise --max_completion_len")])
def test_branches_are_not_asked_for_twice(n_branch: int, advice: str) -> None:
    few = Coverage(num_visits=10, num_used=5, num_unmatched=0, num_unmeasured=0, num_draws=10)
    assert advice in warn({"num_problems": 100, "effective_problems": 100.0}, few, [], n_branch)[0]


def test_files_that_do_not_belong_together_are_refused(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["diagnose", str(job)]) == 2
    assert "holds no collected values" in capsys.readouterr().err
    assert cli.main(["diagnose", str(job / "base"), "--alpha", "-1"]) == 2
    assert "not all" in capsys.readouterr().err
    settings = json.loads(pq.read_schema(job / "base" / "data" / "train.parquet").metadata[b"trl_prl"])
    paths = [Path("a"), Path("b")]
    with pytest.raises(ValueError, match="biased"):
        check_settings(paths[:1], [{**settings, "adaptive": True}])
    with pytest.raises(ValueError, match="biased"):
        check_settings(paths[:1], [{**settings, "strategy": "first_pit"}])
    with pytest.raises(ValueError, match="other prompts"):
        check_settings(paths, [settings, {**settings, "fingerprint": "x"}])
    with pytest.raises(ValueError, match="own values"):
        check_settings(paths[:1], [{**settings, "seed_model": "another"}])


def test_seeds_of_another_policy_are_noticed(job: Path) -> None:
    rows = pq.read_table(job / "base" / "data" / "train.parquet").to_pylist()
    base = read_problems(rows)
    other = read_problems([{**row, "completions": [step + "!" for step in row["completions"]]} for row in rows])
    states, coverage = sampled_states([base, other], [Candidate(0), Candidate(1)])
    assert not states
    assert coverage.num_unmatched + coverage.num_unmeasured == coverage.num_draws
    assert coverage.num_unmatched > 0.9 * coverage.num_draws
    with pytest.raises(ValueError, match="nothing to compare"):
        diagnose(states, {}, ["base", "other"], [Candidate(0), Candidate(1)])


def test_provers_that_are_equal_cannot_be_told_apart(job: Path) -> None:
    """The same prover under two names: whatever the data, no clear choice."""
    files = [read_problems(pq.read_table(job / "base" / "data" / "train.parquet").to_pylist())] * 2
    candidates = [Candidate(0), Candidate(0)]
    states, _ = sampled_states(files[:1], candidates)
    success = dict.fromkeys(files[0], 0.5)
    result = diagnose(states, success, ["base"], candidates, DiagnosisParams(num_resamples=200))
    assert result["recommendation"]["verdict"] in ("cannot tell", "none helps")
    assert result["recommendation"]["not_told_apart"] == ["base"]


def test_names_are_short_where_they_can_be() -> None:
    paths = [Path("v1"), Path("v2")]
    assert short_names(["org/model-a", "/models/b/"], paths) == ["model-a", "b"]
    assert short_names(["org/model", "you/model"], paths) == ["model (v1)", "model (v2)"]
    assert short_names(["org/model with me/lora"], paths[:1]) == ["model with lora"]
