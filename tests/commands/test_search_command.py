"""`trl-prl search`: its curve, its rows, and a job that is killed and resumed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.arithmetic.prover import ArithmeticProcessReward
from tests.benchmarks.arithmetic.task import arithmetic_policy_path, read_answer, sample_problems
from tests.searching import arithmetic_generator, line_search
from tests.verifier_models import build_verifier
from trl_prl import __main__ as cli
from trl_prl.commands.search import accuracy_line
from trl_prl.generation.rollouts import Problem
from trl_prl.jobs.problems import fingerprint
from trl_prl.jobs.progress import Progress, speed_line
from trl_prl.metrics.sampling_estimates import mean_pass_at_k
from trl_prl.prms.load import load_process_reward
from trl_prl.search.beams import beam_search
from trl_prl.search.config import SearchConfig
from trl_prl.search.output import draw, table
from trl_prl.search.runs import load_answer_function
from trl_prl.search.scoring import EffectiveReward
from trl_prl.storage.row_sources import load_rows
from trl_prl.verifier.model import ProcessAdvantageVerifier


EXACT = "tests.benchmarks.arithmetic.prover:ArithmeticProcessReward"


def write_problems(folder: Path, n: int) -> Path:
    """A file of problems, the last one equal to the first."""
    problems = sample_problems("tuning", n - 1, seed=1)
    path = folder / "problems.jsonl"
    rows = [{"prompt": p.prompt, "answer": p.answer} for p in [*problems, problems[0]]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def options(folder: Path, problems: Path, *n: int, **changes: Any) -> list[str]:
    method = changes.get("method", "beam")
    fields = {
        "model": arithmetic_policy_path(),
        "dataset": str(problems),
        "output_dir": str(folder),
        "reward": "tests.benchmarks.arithmetic.task:arithmetic_reward",
        **({} if method == "majority_vote" else {"process_reward": EXACT}),
        **({"answer": "tests.benchmarks.arithmetic.task:read_answer"} if method.endswith("vote") else {}),
        "max_completion_length": 24,
        "problems_per_unit": 3,
        "check_timeout": 0,
        "plot": "none",
        **changes,
    }
    words = ["search", "--n", *map(str, n or (1, 2, 4))]
    for name, value in fields.items():
        option = f"--{name}"
        words += [option] if value is True else [f"--no_{option[2:]}"] if value is False else [option, str(value)]
    return words


def results_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "search.json").read_text())


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "problems.jsonl").read_text().splitlines()]


def without_time(data: Any) -> Any:
    """The data without what the clock decides."""
    if isinstance(data, dict):
        return {name: without_time(value) for name, value in data.items() if "seconds" not in name}
    return [without_time(value) for value in data] if isinstance(data, list) else data


@pytest.fixture(scope="module")
def beam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished beam search."""
    folder = tmp_path_factory.mktemp("beam")
    problems = write_problems(folder, 8)
    assert cli.main(options(folder / "beam", problems, save_trees=2, plot="png")) == 0
    return folder


def test_curve_is_counted_from_the_rows(beam: Path) -> None:
    results, rows = results_of(beam / "beam"), rows_of(beam / "beam")
    assert (results["kind"], results["method"], results["num_problems"]) == ("search", "beam", 8)
    assert [point["n"] for point in results["curve"]] == [1, 2, 4]
    assert len(rows) == 3 * 8
    for point in results["curve"]:
        found = [row for row in rows if row["n"] == point["n"]]
        assert [row["row"] for row in found] == list(range(8))
        share = sum(row["correct"] is True for row in found) / 8
        assert point["accuracy"]["value"] == share
        assert point["accuracy"]["low"] < max(share, 0.01)
        assert share <= point["any_correct"]["value"]
        tokens = sum(row["cost"]["num_generated_tokens"] for row in found) / 8
        assert point["generated_tokens_per_problem"] == pytest.approx(tokens)
        assert 0 < point["pass_at_n_tokens_per_problem"] < tokens
        for row in found:
            assert row["chosen"] is None or row["candidates"][row["chosen"]]["finished"]
            for candidate in row["candidates"]:
                right = read_answer(candidate["text"]) == int(row["columns"]["answer"])
                assert candidate["correct"] is (right if candidate["finished"] else None)
    tokens = [point["generated_tokens_per_problem"] for point in results["curve"]]
    assert tokens == sorted(tokens)
    assert (beam / "beam" / "search.png").stat().st_size > 5000
    assert json.loads((beam / "beam" / "search.json").read_text(), parse_constant=pytest.fail)


def test_rows_are_those_of_the_function(beam: Path) -> None:
    """The command adds nothing to the search but its files."""
    generator = arithmetic_generator()
    problems = [json.loads(line) for line in (beam / "problems.jsonl").read_text().splitlines()]
    given = [
        Problem(i, row["prompt"], tuple(generator.tokenizer(row["prompt"]).input_ids), {"answer": row["answer"]})
        for i, row in enumerate(problems)
    ]
    reward = EffectiveReward(ArithmeticProcessReward())
    expected = beam_search(given, process_reward=reward, beam_size=2, keep_tree=True, **line_search(generator, 24))
    rows = [row for row in rows_of(beam / "beam") if row["n"] == 2]
    for row, result in zip(rows, expected, strict=True):
        assert [candidate["text"] for candidate in row["candidates"]] == [c.text for c in result.candidates]
        assert row["chosen"] == result.chosen
        assert row.get("tree") == (result.tree if row["row"] < 2 else None)


def test_equal_prompts_are_problems_of_their_own(beam: Path) -> None:
    first, last = ([row for row in rows_of(beam / "beam") if row["row"] == number] for number in (0, 7))
    assert first[0]["prompt"] == last[0]["prompt"]
    found = [without_time([[row["candidates"], row["cost"]] for row in rows]) for rows in (first, last)]
    assert found[0] != found[1]


def test_curves_over_samples_share_them(tmp_path: Path) -> None:
    """n = 4 is drawn once: smaller n have its first samples, and pass@n counts them."""
    problems = write_problems(tmp_path, 8)
    found = {}
    for method in ("best_of_n", "majority_vote", "weighted_vote"):
        assert cli.main(options(tmp_path / method, problems, method=method)) == 0
        rows = found[method] = rows_of(tmp_path / method)
        by_n = {n: [row for row in rows if row["n"] == n] for n in (1, 2, 4)}
        for n in (1, 2):
            for small, large in zip(by_n[n], by_n[4], strict=True):
                assert small["candidates"] == large["candidates"][:n]
        correct = [[c["correct"] is True for c in row["candidates"]] for row in by_n[4]]
        curve = {point["n"]: point for point in results_of(tmp_path / method)["curve"]}
        assert curve[4]["pass_at_n"]["value"] == curve[4]["any_correct"]["value"] == mean_pass_at_k(correct, 4)
        assert curve[1]["pass_at_n"]["value"] == curve[1]["accuracy"]["value"]
        assert curve[2]["pass_at_n_tokens_per_problem"] == curve[2]["generated_tokens_per_problem"]
    texts = [[[c["text"] for c in row["candidates"]] for row in rows] for rows in found.values()]
    assert texts[0] == texts[1] == texts[2]
    row = next(row for row in found["best_of_n"] if row["n"] == 4)
    scores = [c["score"] if c["finished"] else -1 for c in row["candidates"]]
    assert row["chosen"] == scores.index(max(scores))
    # What the first n samples would have cost.
    small = next(row for row in found["best_of_n"] if row["n"] == 2)
    assert small["cost"]["num_generated_tokens"] == sum(c["num_tokens"] for c in small["candidates"])


@pytest.mark.parametrize("method", ["dvts", "rejection"])
def test_other_methods(tmp_path: Path, method: str) -> None:
    problems = write_problems(tmp_path, 4)
    assert cli.main(options(tmp_path / method, problems, 2, method=method, ceiling=False, save_trees=1)) == 0
    (point,) = results_of(tmp_path / method)["curve"]
    assert point["pass_at_n"] is None
    rows = rows_of(tmp_path / method)
    assert [("tree" in row) for row in rows] == [True, False, False, False]


def test_failed_checks_are_counted_apart(tmp_path: Path) -> None:
    problems = write_problems(tmp_path, 3)
    changes = {"reward": "tests.commands.test_search_command:never_checked", "max_completion_length": 24}
    assert cli.main(options(tmp_path / "job", problems, 2, **changes)) == 0
    (point,) = results_of(tmp_path / "job")["curve"]
    assert point["num_unchecked"] == 3 - point["num_unanswered"]
    assert point["num_correct"] == 0


def never_checked(completions: list[str], **columns: Any) -> list[float | None]:
    """A reward that can check nothing."""
    return [None] * len(completions)


def test_finished_job_is_not_searched_again_and_others_are_refused(
    beam: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = results_of(beam / "beam")
    given = options(beam / "beam", beam / "problems.jsonl", save_trees=2)
    assert cli.main(given) == 0
    assert results_of(beam / "beam") == before
    assert "done earlier" in capsys.readouterr().err
    assert cli.main([*given, "--alpha", "2"]) == 2
    assert "another folder" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["beam", "best_of_n"])
def test_samples_are_drawn_without_a_vote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    def group_answers(answers: list[Any]) -> list[Any]:
        raise AssertionError("a vote")

    monkeypatch.setattr("trl_prl.search.best_of_n.group_answers", group_answers)
    assert cli.main(options(tmp_path / "job", write_problems(tmp_path, 2), 2, method=method, ceiling=True)) == 0
    assert results_of(tmp_path / "job")["curve"][0]["num_problems"] == 2


def test_processes_share_a_job(tmp_path: Path) -> None:
    problems = write_problems(tmp_path, 5)
    assert cli.main(options(tmp_path / "one", problems, 2, problems_per_unit=2)) == 0
    for index in (1, 0):
        assert not (tmp_path / "two" / "search.json").exists()
        share = options(tmp_path / "two", problems, 2, problems_per_unit=2, num_processes=2, process_index=index)
        assert cli.main(share) == 0
    assert without_time(rows_of(tmp_path / "two")) == without_time(rows_of(tmp_path / "one"))


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    problems = write_problems(tmp_path, 24)
    sizes: dict[str, Any] = {"problems_per_unit": 1, "max_completion_length": 24}
    assert cli.main(options(tmp_path / "whole", problems, 2, 4, **sizes)) == 0
    words = [sys.executable, "-m", "trl_prl", *options(tmp_path / "killed", problems, 2, 4, **sizes)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    rng, num_kills = random.Random(0), 0
    shards = tmp_path / "killed" / "shards"
    while num_kills < 3:
        process = subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        size = folder_size(shards)
        # Killed at a random moment of its work, not of its imports.
        while process.poll() is None and folder_size(shards) == size:
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.3))
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        num_kills += 1
        assert not (tmp_path / "killed" / "search.json").exists()
    assert num_kills
    assert subprocess.run(words, env=env, capture_output=True, check=False).returncode == 0
    assert without_time(rows_of(tmp_path / "killed")) == without_time(rows_of(tmp_path / "whole"))
    assert without_time(results_of(tmp_path / "killed")) == without_time(results_of(tmp_path / "whole"))


def folder_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*")) if folder.exists() else 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"process_reward": ""}, "nothing can be scored"),
        ({"n": (0,)}, "whole numbers"),
        ({"n": ()}, "whole numbers"),
        ({"n": (2, 2)}, "different whole numbers"),
        ({"advantage_reward": EXACT, "alpha": 0.0}, "nothing would heed it"),
        ({"max_steps": 0}, "no room for a single step"),
        ({"model": ""}, "model not given"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    given = {"model": "m", "dataset": "d", "output_dir": "o", "process_reward": EXACT, **changes}
    with pytest.raises(ValueError, match=message):
        SearchConfig(**given)


def test_process_rewards_by_name(tmp_path: Path) -> None:
    assert isinstance(load_process_reward(EXACT), ArithmeticProcessReward)
    with pytest.raises(ValueError, match="cannot be imported"):
        load_process_reward("tests.benchmarks.arithmetic.task:NoSuchReward")
    assert load_answer_function("")(r"so \boxed{4}") == "4"
    assert load_answer_function("tests.benchmarks.arithmetic.task:read_answer")("#7") == 7


def test_search_with_a_verifier_of_another_tokenizer(
    tmp_path: Path, tiny_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The command scores prefixes and whole solutions with a real verifier, whose tokenizer is not the policy's."""
    problems, folder = write_problems(tmp_path, 3), tmp_path / "verifier"
    collected = {"fingerprint": fingerprint(load_rows(str(problems), None, "train"))}
    build_verifier(tiny_tokenizer, collected=collected).save_pretrained(folder)
    assert isinstance(load_process_reward(str(folder)), ProcessAdvantageVerifier)
    assert cli.main(options(tmp_path / "job", problems, 2, process_reward=str(folder), best_of_k=4)) == 0
    values = [c["value"] for row in rows_of(tmp_path / "job") for c in row["candidates"]]
    assert all(0 < value < 1 for value in values)
    assert "was trained on the prompts of" in caplog.text


class Silent:
    """Scores nothing, as a model whose weights are NaN does."""

    def score_solutions(self, prompts: list[Any], steps: list[list[str]], **columns: Any) -> Any:
        return [None] * len(prompts), [[float("nan")] * len(row) for row in steps]


@pytest.mark.parametrize("method", ["beam", "best_of_n"])
def test_a_search_by_no_score_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str) -> None:
    problems, silent = write_problems(tmp_path, 3), "tests.commands.test_search_command:Silent"
    changes = {"process_reward": silent, "method": method}
    assert cli.main(options(tmp_path / "job", problems, 8, **changes)) == 0
    point = results_of(tmp_path / "job")["curve"][0]
    assert point["num_scored"] == point["num_unscored"] > 0
    number = point["num_scored"]
    assert f"{number} of {number} texts have no usable score" in capsys.readouterr().err


def test_problems_without_a_finished_solution_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problems = write_problems(tmp_path, 2)
    assert cli.main(options(tmp_path / "job", problems, 1, max_completion_length=2)) == 0
    (point,) = results_of(tmp_path / "job")["curve"]
    number = point["num_problems"]
    words = f"{number} of {number} problems at n=1 have no finished solution and count as wrong. Raise --max_comp"
    assert words in capsys.readouterr().err


def test_progress_and_table() -> None:
    assert speed_line(Progress(5, 5, 5)) == "5/5, done earlier"
    counts = {"num_correct": 1, "num_checked": 4, "num_sampled_tokens": 2_000_000}
    assert accuracy_line(Progress(4, 5, 0, 8.0, counts), 4) == "25.0 % right at n=4, 2.00 of 2.50 M tokens"
    share = {"value": 0.5, "low": 0.25, "high": 0.75}
    costs = {f"{name}_per_problem": 10.0 for name in ("generated_tokens", "scored_tokens", "seconds")}
    point = {"n": 4, "accuracy": share, "any_correct": share, "pass_at_n": None, "num_unanswered": 1, **costs}
    header, (line,) = table({"curve": [point]})
    assert line == ["4", "50.0 (25.0-75.0)", "50.0", "-", "10", "10", "10.00", "1"]
    assert len(header) == len(line)
    assert draw({"method": "beam", "curve": [point]}) is not None
