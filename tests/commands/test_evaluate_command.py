"""`trl-prl evaluate`: given samples and drawn ones, models side by side, real pools, and a job that is killed."""

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

from tests.benchmarks.arithmetic.task import arithmetic_policy_path, sample_problems
from tests.hostile_answers import HANG, hostile_answers
from tests.tiny_models import build_tokenizer
from tests.verifier_models import build_verifier
from trl_prl import __main__ as cli
from trl_prl.evaluation.config import EvaluateConfig
from trl_prl.jobs.problems import fingerprint
from trl_prl.jobs.shards import find_units
from trl_prl.storage.row_sources import load_rows


REWARD = "tests.benchmarks.arithmetic.task:arithmetic_reward"


def parity(completions: list[str], answer: list[Any], **columns: Any) -> list[float | None]:
    """A reward that tests name: right if equal, and `?` cannot be checked."""
    return [None if text == "?" else float(text == right) for text, right in zip(completions, answer, strict=True)]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def words_of(folder: Path, **options: Any) -> list[str]:
    """The command line."""
    words = ["evaluate"]
    for name, value in {"output_dir": folder, "plot": "none", "check_timeout": 0, **options}.items():
        values = value if isinstance(value, list) else [value]
        flag = f"--{name}"
        words += [flag] if value is True else [flag, *map(str, values)]
    return words


def evaluate(folder: Path, **options: Any) -> dict[str, Any]:
    """Run the command and read its results."""
    assert cli.main(words_of(folder, **options)) == 0
    return json.loads((folder / "evaluation.json").read_text())


def metrics_of(results: dict[str, Any], model: int = 0) -> dict[str, Any]:
    return {name: entry["value"] for name, entry in results["models"][model]["metrics"].items()}


# ---- given samples ----

POOL_NAMES = {"rm@n": "best_of_n/rm_score", "maj@n": "majority_vote"}


@pytest.mark.parametrize(
    "pool",
    [
        pytest.param("game24_gpt4_n100", marks=pytest.mark.slow),
        "qwen25math_cot100_n8",
        "strictprm_gsm8k_n16",
        "strictprm_math500_n16",
    ],
)
def test_pools_are_reproduced(pool: str, shared_data: Path, tmp_path: Path) -> None:
    """pass@k, best-of-n by real reward models and votes, on real samples, to the digit."""
    reference = json.loads((shared_data / "pools_reference.json").read_text())[f"{pool}.jsonl.gz"]
    verifiers = sorted({name.split()[1] for name in reference if name.startswith("best-of-n")})
    fields = [f"prm_scores.{name}" for name in verifiers] + ["rm_score"] * ("qwen25" in pool)
    options = {"score_fields": fields, "aggregations": ["min", "last", "product", "mean"]} if fields else {}
    results = evaluate(tmp_path, samples=shared_data / "pools" / f"{pool}.jsonl.gz", **options)
    found = metrics_of(results)
    assert (results["kind"], results["models"][0]["num_problems"]) == ("evaluation", reference.pop("problems"))
    n = reference.pop("n")
    assert found[f"avg@{n}"] == pytest.approx(found["pass@1"])
    for entry, expected in reference.items():
        name = POOL_NAMES.get(entry.split()[0], entry)
        if entry.startswith("best-of-n"):
            _, verifier, aggregation, *_ = entry.split()
            aggregation = {"prod": "product"}.get(aggregation, aggregation)
            name = f"best_of_n/prm_scores.{verifier}/{aggregation}"
        assert round(found[name], 6) == expected, entry


def four_problems() -> list[dict[str, Any]]:
    """Samples with every way of not counting: unfinished, not checked, without an answer."""
    rows = [("a", "1", 1, "12"), ("b", "2", 1, "2?"), ("b", "3", 2, "33"), ("c", "4", 2, "49")]
    samples = [[{"completion": text, "finish_reason": "eos"} for text in texts] for *_, texts in rows]
    samples[3][0]["finish_reason"] = "length"
    return [
        {"prompt": prompt, "answer": answer, "level": level, "samples": row}
        for (prompt, answer, level, _), row in zip(rows, samples, strict=True)
    ]


def test_what_does_not_count_is_counted_apart(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "samples.jsonl", four_problems())
    reward = "tests.commands.test_evaluate_command:parity"
    results = evaluate(tmp_path / "excluded", samples=path, reward=reward, group_by=["level"], unfinished="exclude")
    (model,) = results["models"]
    assert (model["num_samples"], model["num_counted"], model["num_unfinished"], model["num_unchecked"]) == (
        8,
        6,
        1,
        1,
    )
    # Problems: 1/2, 1/1 (one not checked), 2/2, 0/1 (one unfinished).
    assert metrics_of(results)["avg@2"] == pytest.approx((0.5 + 1 + 1 + 0) / 4)
    assert model["accuracy_bounds"] == [4 / 8, 6 / 8]
    # pass@2 needs two samples that count, which two problems have.
    assert model["metrics"]["pass@2"] | {"interval": None} == {
        "value": 1.0, "interval": None, "interval_method": "wilson", "num_problems": 2,
    }  # fmt: skip
    groups = model["groups"]["level"]
    assert {label: group["metrics"]["avg@2"]["value"] for label, group in groups.items()} == {"1": 0.75, "2": 0.5}
    # Equal prompts stay problems of their own.
    assert model["num_problems"] == 4
    wrong = evaluate(tmp_path / "wrong", samples=path, reward=reward)
    assert metrics_of(wrong)["avg@2"] == pytest.approx((0.5 + 1 + 1 + 0) / 4)
    assert (wrong["models"][0]["num_counted"], wrong["models"][0]["num_unfinished"]) == (7, 1)
    checked = evaluate(tmp_path / "checked", samples=path, reward=reward, unfinished="check")
    assert metrics_of(checked)["avg@2"] == pytest.approx((0.5 + 1 + 1 + 0.5) / 4)
    rows = [json.loads(line) for line in (tmp_path / "excluded" / "problems.jsonl").read_text().splitlines()]
    assert [[sample["why_not"] for sample in row["samples"]] for row in rows] == [
        [None, None], [None, "unchecked"], [None, None], ["unfinished", None],
    ]  # fmt: skip
    table = (tmp_path / "excluded" / "evaluation.md").read_text()
    assert "| avg@2 | 62.5 [" in table
    # Whatever unfinished samples count as, both numbers are shown.
    assert "| avg@2, unfinished wrong | 62.5 [" in (tmp_path / "wrong" / "evaluation.md").read_text()
    assert "| avg@2, unfinished left out | 62.5 [" in table
    assert "| accuracy, not counted as right | 75.0 |" in table
    assert "| not checked | 1 |" in table


def test_two_files_are_compared_in_pairs(tmp_path: Path) -> None:
    """Nine problems only a solves and one only b: McNemar by hand, 2 (1 + 10) / 2^10. Differences are b minus a."""
    right = [[True] * 9 + [False] + [True] * 5, [False] * 9 + [True] + [True] * 5]
    files = []
    for name, marks in zip("ab", right, strict=True):
        rows = [{"prompt": f"p{i}", "completions": [str(int(mark))], "answer": "1"} for i, mark in enumerate(marks)]
        # Another order of the problems is the same set of problems.
        files.append(f"{name}={write_jsonl(tmp_path / f'{name}.jsonl', rows if name == 'a' else rows[::-1])}")
    results = evaluate(
        tmp_path / "out", samples=files, reward="tests.commands.test_evaluate_command:parity", plot="svg"
    )
    assert [model["name"] for model in results["models"]] == ["a", "b"]
    entry = next(entry for entry in results["comparisons"] if entry["metric"] == "pass@1")
    assert (entry["before"], entry["after"], entry["test"], entry["num_problems"]) == ("a", "b", "mcnemar_exact", 15)
    assert entry["difference"] == pytest.approx(-8 / 15)
    assert entry["p_value"] == entry["p_value_holm"] == pytest.approx(22 / 1024)
    assert entry["interval"][1] < 0
    assert "b - a, in points of percent" in (tmp_path / "out" / "evaluation.md").read_text()
    assert (tmp_path / "out" / "evaluation.svg").stat().st_size > 1000


def test_votes_are_counted_once_for_estimates_and_comparisons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[Any]] = []

    def counted(answers: list[Any]) -> list[Any]:
        asked.append(answers)
        return answers

    monkeypatch.setattr("trl_prl.evaluation.summary.group_answers", counted)
    rows = [{"prompt": f"p{i}", "completions": ["1", "2"], "answer": "1"} for i in range(3)]
    files = [f"{name}={write_jsonl(tmp_path / f'{name}.jsonl', rows)}" for name in "ab"]
    results = evaluate(tmp_path / "out", samples=files, reward="tests.commands.test_evaluate_command:parity")
    assert [entry["difference"] for entry in results["comparisons"]] == [0.0] * len(results["comparisons"])
    assert asked == [["1", "2"]] * 6


def test_unfinished_samples_as_wrong_and_without_them(tmp_path: Path) -> None:
    """One problem with 1 of 2 right, one with a right sample and two that were cut: 5/12 with, 3/4 without."""
    samples = [["1", "0"], ["1", "1", "1"]]
    reasons = [["eos", "eos"], ["eos", "length", "length"]]
    rows = [
        {"prompt": f"p{i}", "answer": "1", "samples": [
            {"completion": text, "finish_reason": reason} for text, reason in zip(*pair, strict=True)
        ]}
        for i, pair in enumerate(zip(samples, reasons, strict=True))
    ]  # fmt: skip
    path = write_jsonl(tmp_path / "samples.jsonl", rows)
    reward = "tests.commands.test_evaluate_command:parity"
    for way, value in (("wrong", 5 / 12), ("exclude", 3 / 4), ("check", 3 / 4)):
        results = evaluate(tmp_path / way, samples=path, reward=reward, unfinished=way)
        (model,) = results["models"]
        assert metrics_of(results)["avg@3"] == pytest.approx(value)
        both = {name: entry["value"] for name, entry in model["avg_by_unfinished"].items()}
        assert both == pytest.approx({"wrong": 5 / 12, "exclude": 3 / 4})


def test_metrics_of_no_problem_are_left_out(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "samples.jsonl", [{"prompt": "p", "answer": "1", "completions": ["?", "1"]}])
    results = evaluate(tmp_path / "out", samples=path, reward="tests.commands.test_evaluate_command:parity")
    (model,) = results["models"]
    # pass@2 and maj@2 need two samples that count.
    assert metrics_of(results) == {"avg@2": 1.0, "pass@1": 1.0, "maj@1": 1.0, "majority_vote": 1.0}
    assert None not in model.values()


@pytest.mark.parametrize(
    ("columns", "sizes", "warning"),
    [
        ([{}, {}, {}], [3], ""),
        # A running number of the samples, and a column of which some rows have none.
        ([{"sample_id": 0, "level": 3}, {"sample_id": 1, "level": 3}, {"sample_id": 2, "level": 3}], [3], "sample_id"),
        ([{"seed": 1}, {}, {"seed": 1}], [3], "seed"),
        # What is held against another right answer is another problem.
        ([{"answer": "2"}, {"answer": "3"}, {"answer": "2"}], [2, 1], "several right answers"),
    ],
)
def test_rows_of_equal_prompts_are_samples_of_one_problem(
    columns: list[dict[str, Any]], sizes: list[int], warning: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    completions = ["2", "3", "2"]
    rows = [
        {"question": "1+1=", "answer": "2", "completion": text, **extra}
        for text, extra in zip(completions, columns, strict=True)
    ]
    path = write_jsonl(tmp_path / "samples.jsonl", rows)
    results = evaluate(tmp_path / "out", samples=path, reward="tests.commands.test_evaluate_command:parity")
    written = [json.loads(line) for line in (tmp_path / "out" / "problems.jsonl").read_text().splitlines()]
    assert [len(row["samples"]) for row in written] == sizes
    if sizes == [3]:
        assert metrics_of(results)["pass@2"] == 1.0
        kept = {"answer": "2", **({"level": 3} if "level" in columns[0] else {})}
        assert written[0]["columns"] == kept
    assert warning in caplog.text
    assert bool(caplog.text) == bool(warning)


def test_rows_are_grouped_by_an_id(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prompts that differ in a system prompt, samples of one problem; and equal ones of two problems."""
    rows = [
        {"prompt": prompt, "problem_id": number, "answer": "1", "completions": texts}
        for prompt, number, texts in (("a", 1, ["1"]), ("a!", 1, ["0", "1"]), ("a", 2, ["0"]))
    ]
    path = write_jsonl(tmp_path / "samples.jsonl", rows)
    options = {"samples": path, "reward": "tests.commands.test_evaluate_command:parity"}
    results = evaluate(tmp_path / "out", **options, id_column="problem_id")
    assert (results["models"][0]["num_problems"], metrics_of(results)["avg@3"]) == (2, pytest.approx((2 / 3 + 0) / 2))
    assert cli.main(words_of(tmp_path / "other", **options, id_column="id")) == 2
    assert "has no column 'id'" in capsys.readouterr().err


def test_what_rests_on_few_samples_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three problems with five of six samples cut; and two files between which no problem differs."""
    reasons = [["length", "length"], ["length", "length"], ["length", "eos"]]
    rows = [
        {"prompt": f"p{i}", "answer": "1", "samples": [{"completion": "0", "finish_reason": why} for why in pair]}
        for i, pair in enumerate(reasons)
    ]
    files = [f"{name}={write_jsonl(tmp_path / f'{name}.jsonl', rows)}" for name in "ab"]
    reward = "tests.commands.test_evaluate_command:parity"
    (model, _) = evaluate(tmp_path / "out", samples=files, reward=reward)["models"]
    left = model["avg_by_unfinished"]["exclude"]
    assert (left["num_problems"], left["num_samples"]) == (1, 1)
    table = (tmp_path / "out" / "evaluation.md").read_text()
    assert "| problems with a finished sample | 1 | 1 |\n| finished samples | 1 | 1 |" in table
    # What does not differ at all was drawn from too few problems, and has no interval.
    assert "| avg@2 | +0.0 [-] | 1 |" in table
    assert "Warning: 5 of 6 samples of a reached the limit and count as wrong. Raise" in capsys.readouterr().err


def test_tables_fit_80_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is cut, with three models too: cells break between a number and its interval."""
    monkeypatch.setenv("COLUMNS", "80")
    files = []
    for name in ("base", "trained", "distilled"):
        rows = [{"prompt": f"p{i}", "completions": [str(i % 2), "1"], "answer": "1"} for i in range(8)]
        files.append(f"{name}={write_jsonl(tmp_path / f'{name}.jsonl', rows)}")
    evaluate(tmp_path / "out", samples=files, reward="tests.commands.test_evaluate_command:parity")
    printed = capsys.readouterr().out
    shown = printed[: printed.index("Results:")].splitlines()
    assert max(map(len, shown)) <= 80
    assert "…" not in printed
    assert all(word in printed for word in ("trained - base", "distilled - trained", "p (Holm)", "permutation"))


def test_what_was_written_can_be_evaluated_again(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "samples.jsonl", four_problems())
    first = evaluate(tmp_path / "first", samples=path, reward="tests.commands.test_evaluate_command:parity")
    written = tmp_path / "first" / "problems.jsonl"
    again = evaluate(
        tmp_path / "again", samples=written, group_by=["level"], reward="tests.commands.test_evaluate_command:parity"
    )
    assert metrics_of(again)["pass@1"] == metrics_of(first)["pass@1"]
    assert set(again["models"][0]["groups"]["level"]) == {"1", "2"}


def test_several_models_of_one_file_stay_apart(tmp_path: Path) -> None:
    """`a` is right on every problem and `b` on half of them; what is written of both says so again."""
    files = []
    for name, answers in (("a", "1111"), ("b", "1010")):
        rows = [{"prompt": f"p{i}", "answer": "1", "completions": [c, c]} for i, c in enumerate(answers)]
        files.append(f"{name}={write_jsonl(tmp_path / f'{name}.jsonl', rows)}")
    reward = "tests.commands.test_evaluate_command:parity"
    first = evaluate(tmp_path / "first", samples=files, reward=reward)
    written = tmp_path / "first" / "problems.jsonl"
    again = evaluate(tmp_path / "again", samples=written, reward=reward)
    assert [model["name"] for model in again["models"]] == ["a", "b"]
    assert [metrics_of(again, model)["avg@2"] for model in (0, 1)] == [1.0, 0.5]
    assert again["comparisons"] == first["comparisons"]
    next_to_another = evaluate(tmp_path / "three", samples=[files[1], f"both={written}"], reward=reward)
    assert [model["name"] for model in next_to_another["models"]] == ["b", "both/a", "both/b"]


def test_a_pattern_wins_over_answers_of_the_file(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "answer": "1", "samples": [{"completion": "a 1 b 0", "pred": "0", "correct": True}]}]
    path = write_jsonl(tmp_path / "samples.jsonl", rows)
    for folder, options, answer in (("file", {}, "0"), ("pattern", {"answer_pattern": "a ([0-9])"}, "1")):
        evaluate(tmp_path / folder, samples=path, **options)
        (row,) = map(json.loads, (tmp_path / folder / "problems.jsonl").read_text().splitlines())
        assert row["samples"][0]["answer"] == answer


def test_cut_samples_that_a_file_calls_wrong_are_checked_with_recheck(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`wrong` of an earlier evaluation is no check."""
    samples = [{"completion": "1", "finish_reason": "length"}, {"completion": "1", "finish_reason": "eos"}]
    path = write_jsonl(tmp_path / "samples.jsonl", [{"prompt": "p", "answer": "1", "samples": samples}])
    reward = "tests.commands.test_evaluate_command:parity"
    evaluate(tmp_path / "wrong", samples=path, reward=reward)
    assert "--recheck" not in caplog.text
    written = tmp_path / "wrong" / "problems.jsonl"
    kept = evaluate(tmp_path / "kept", samples=written, reward=reward, unfinished="check")
    assert metrics_of(kept)["avg@2"] == 0.5
    assert "1 samples at the length limit are called wrong by the file" in caplog.text
    checked = evaluate(tmp_path / "checked", samples=written, reward=reward, unfinished="check", recheck=True)
    assert metrics_of(checked)["avg@2"] == 1.0


@pytest.mark.slow
def test_a_pool_of_hostile_answers_is_evaluated(tmp_path: Path) -> None:
    """Good answers between hostile ones are right, and those that took too long are not called wrong."""
    pytest.importorskip("math_verify")
    rows = [
        {"prompt": str(i), "answer": str(i), "completions": [bad, rf"\boxed{{{i}}}"]}
        for i, bad in enumerate([HANG, *hostile_answers(18), HANG])
    ]
    path = write_jsonl(tmp_path / "hostile.jsonl", rows)
    reward = "tests.hostile_answers:accuracy_that_may_hang"
    limits = {"check_timeout": 1, "num_checkers": 2}
    results = evaluate(tmp_path / "out", samples=path, reward=reward, bootstrap_pass_at_k=True, **limits)
    (model,) = results["models"]
    assert model["num_unchecked"] >= 2
    assert model["accuracy_bounds"] == [0.5, (20 + model["num_unchecked"]) / 40]
    assert "bootstrap_pass@2" in model["metrics"]


def test_mistakes_are_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_jsonl(tmp_path / "samples.jsonl", [{"prompt": "a", "completions": ["1"]}])
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"text": "a"}])
    base = ["evaluate", "--output-dir", str(tmp_path / "out"), "--plot", "none"]
    for words, message in (
        (["--samples", str(path)], "no column 'answer'"),
        (["--samples", str(bad)], "none of prompt, problem, question"),
        (["--samples", str(path), "--score-fields", "rm"], "score_fields"),
        (["--samples", f"x={path}", f"x={path}"], "cannot be told apart"),
        (["--samples", str(path), "--model", "m"], "model and samples"),
        (["--model", "m"], "dataset not given"),
        (["--model", "m", "--dataset", "d", "--n", "2", "--k", "4"], "subsets of k among n"),
        (["--samples", str(path), "--aggregations", "median"], "aggregations among"),
        ([], "no samples"),
    ):
        if message == "score_fields":
            path = write_jsonl(tmp_path / "scored.jsonl", [{"prompt": "a", "samples": [{"completion": "1"}]}])
            words[1] = str(path)
        assert cli.main([*base, *words]) == 2, message
        assert message in capsys.readouterr().err


# ---- drawn samples ----


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Arithmetic problems; the sixth is a duplicate of the fifth."""
    problems = sample_problems("tuning", 6, seed=1)
    rows = [{"prompt": p.prompt, "answer": p.answer, "source": "ab"[i % 2]} for i, p in enumerate(problems)]
    rows[5] = rows[4]
    return write_jsonl(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", rows)


def model_options(prompts: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model": arithmetic_policy_path(), "dataset": prompts, "reward": REWARD, "n": 4, "max_completion_length": 22,
        "problems_per_unit": 2, "answer_pattern": "#(.*)", **changes,
    }  # fmt: skip


def test_a_model_is_sampled(prompts: Path, tmp_path: Path) -> None:
    results = evaluate(tmp_path / "one", **model_options(prompts), group_by=["source"])
    (model,) = results["models"]
    assert model["num_samples"] == 24
    assert 0 < metrics_of(results)["avg@4"] < 1
    assert {"pass@4", "maj@4", "majority_vote"} <= set(model["metrics"])
    assert set(model["groups"]["source"]) == {"a", "b"}
    rows = [json.loads(line) for line in (tmp_path / "one" / "problems.jsonl").read_text().splitlines()]
    assert [len(row["samples"]) for row in rows] == [4] * 6
    texts = [[sample["completion"] for sample in row["samples"]] for row in rows]
    # Equal prompts are sampled apart.
    assert texts[4] != texts[5]
    # Finished: nothing is computed again, and other estimates of the same samples cost nothing.
    shards = {path: path.read_bytes() for path in (tmp_path / "one").rglob("process-*.jsonl")}
    again = evaluate(tmp_path / "one", **model_options(prompts), k=[3])
    assert {path: path.read_bytes() for path in (tmp_path / "one").rglob("process-*.jsonl")} == shards
    assert "pass@3" in again["models"][0]["metrics"]


def test_more_processes_than_units(prompts: Path, tmp_path: Path) -> None:
    """Six problems make two units, one smaller than the other: the third process has nothing to do."""
    options = model_options(prompts, problems_per_unit=4)
    for index in (2, 0, 1):
        assert not (tmp_path / "shared" / "evaluation.json").exists()
        assert cli.main(words_of(tmp_path / "shared", **options, num_processes=3, process_index=index)) == 0
    results = json.loads((tmp_path / "shared" / "evaluation.json").read_text())
    assert metrics_of(results) == metrics_of(evaluate(tmp_path / "one", **options))


def test_two_processes_and_two_models(prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = arithmetic_policy_path()
    options = model_options(prompts, models=[f"x={path}", f"y={path}"])
    del options["model"]
    assert cli.main(words_of(tmp_path / "two", **options, num_processes=2, process_index=1)) == 0
    assert "once the others are" in capsys.readouterr().out
    assert cli.main(words_of(tmp_path / "two", **options, num_processes=2, process_index=0)) == 0
    results = json.loads((tmp_path / "two" / "evaluation.json").read_text())
    # The same model twice: no difference at all.
    assert metrics_of(results, 0) == metrics_of(results, 1)
    assert {entry["p_value"] for entry in results["comparisons"]} == {1.0}
    whole = evaluate(tmp_path / "one", **model_options(prompts))
    assert metrics_of(results, 0) == metrics_of(whole)


def test_best_of_n_by_a_verifier(prompts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    collected = {"fingerprint": fingerprint(load_rows(str(prompts), None, "train").select(range(2)))}
    verifier = build_verifier(build_tokenizer(), step_splitter="newline", max_length=80, collected=collected)
    verifier.save_pretrained(tmp_path / "verifier")
    results = evaluate(
        tmp_path / "out", **model_options(prompts), verifiers=[f"v={tmp_path / 'verifier'}"], max_rows=2,
        aggregations=["last", "min"],
    )  # fmt: skip
    assert "was trained on the prompts of" in caplog.text
    found = metrics_of(results)
    assert {"best@2/v/last", "best_of_n/v/min", "weighted_vote/v/last"} <= set(found)
    assert found["best@1/v/last"] == pytest.approx(found["pass@1"])
    rows = [json.loads(line) for line in (tmp_path / "out" / "problems.jsonl").read_text().splitlines()]
    sample = rows[0]["samples"][0]
    assert len(sample["scores"]["v"]) == len(sample["completion"].splitlines())


def test_settings_of_another_job_are_refused(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = model_options(prompts, max_rows=2)
    evaluate(tmp_path / "out", **options)
    words = [word for name, value in {**options, "seed": 5}.items() for word in (f"--{name}", str(value))]
    assert cli.main(["evaluate", "--output-dir", str(tmp_path / "out"), "--plot", "none", *words]) == 2
    assert "seed: 0 there, 5 now" in capsys.readouterr().err


def test_names_of_models() -> None:
    config = EvaluateConfig(output_dir="o", dataset="d", models=["a=org/x", "org/y", "out/checkpoint-5"])
    assert config.sources() == [("a", "org/x"), ("y", "org/y"), ("checkpoint-5", "out/checkpoint-5")]
    assert config.summary(6).k == (1, 2, 4, 6)


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(prompts: Path, tmp_path: Path) -> None:
    problems = sample_problems("tuning", 16, seed=2)
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": p.prompt, "answer": p.answer} for p in problems])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def start(folder: Path) -> subprocess.Popen[bytes]:
        words = words_of(folder, **model_options(path, problems_per_unit=1, n=8))
        command = [sys.executable, "-m", "trl_prl", *words]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    assert start(tmp_path / "whole").wait() == 0
    killed, generator = tmp_path / "killed", random.Random(0)
    units = killed / "models" / Path(arithmetic_policy_path()).name
    left = []
    for target in (2, 9):
        process = start(killed)
        while process.poll() is None and len(find_units(units)) < target:
            time.sleep(0.005)
        time.sleep(generator.uniform(0, 0.05))
        process.kill()
        process.wait()
        left.append(len(find_units(units)))
    assert any(0 < number < 16 for number in left)
    assert start(killed).wait() == 0
    for name in ("evaluation.json", "problems.jsonl", "evaluation.md"):
        whole = (tmp_path / "whole" / name).read_bytes()
        assert (killed / name).read_bytes() == whole
