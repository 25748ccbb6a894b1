"""The report under load and among files of strangers: what is cut, left out, said, and called how."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.report.test_report import payload_of
from tests.report_inputs import write_results, write_run, write_search
from trl_prl import __main__ as cli
from trl_prl.commands.report import write_report
from trl_prl.report.headlines import headlines
from trl_prl.report.limits import (
    MAX_CHARACTERS,
    MAX_CURVE_POINTS,
    MAX_STEPS,
    evenly,
    fit,
    json_bytes,
    shorten,
    shorten_row,
)
from trl_prl.report.run_files import RunWriter, read_run


# ---- long texts ----


def test_long_text_is_cut_in_the_middle_and_says_so() -> None:
    assert shorten("abcdefgh", 8) == "abcdefgh"
    assert shorten("abcdefghij", 5) == "abc\n[… 5 characters are left out …]\nij"


def test_long_completion_is_cut_with_its_numbers() -> None:
    steps = [f"step {i}\n" for i in range(5_000)]
    row = {"prompt": "p" * 50_000, "steps": steps, "step_rewards": list(range(5_000)), "rewards": {"a": 1.0}}
    found = shorten_row(row)
    position, count = found["skipped"]
    assert len(found["steps"]) == len(found["step_rewards"]) == 5_000 - count + 1 <= MAX_STEPS + 1
    num_characters = sum(map(len, steps[position : position + count]))
    assert found["steps"][position] == f"[… {count:,} steps with {num_characters:,} characters are left out …]\n"
    assert found["step_rewards"][position] is None
    assert found["steps"][:position] == steps[:position]
    assert found["steps"][position + 1 :] == steps[position + count :]
    assert found["step_rewards"][position + 1 :] == list(range(position + count, 5_000))
    assert len(found["prompt"]) < MAX_CHARACTERS + 60
    assert found["rewards"] == {"a": 1.0}


@pytest.mark.parametrize("sizes", [[1_000_000], [1_000_000] * 3, [10, 1_000_000, 10], [9_000, 9_000, 9_000], []])
def test_a_few_long_steps_are_cut_each(sizes: list[int]) -> None:
    found = shorten_row({"completions": ["x" * size for size in sizes], "labels": [1.0] * len(sizes)})
    assert len(found["completions"]) == len(found["labels"])
    assert sum(map(len, found["completions"])) < 2 * MAX_CHARACTERS
    assert ("left out" in "".join(found["completions"])) == bool(sizes)


def test_short_rows_are_as_they_were() -> None:
    row = {"steps": ["a", "b"], "step_values": [0.5, None], "tree": [{"text": "t"}], "x": {"y": ["z"]}, "n": 3}
    assert shorten_row(row) == row
    assert shorten_row({"steps": "no list"}) == {"steps": "no list"}


def test_nodes_of_trees_and_samples_are_cut() -> None:
    row = {"tree": [{"id": 0, "text": "x" * 90_000}], "samples": [{"completion": "y" * 90_000}]}
    found = shorten_row(row)
    assert len(found["tree"][0]["text"]) < 2_100
    assert len(found["samples"][0]["completion"]) < MAX_CHARACTERS + 60


def long_rows(num_rows: int, size: int) -> list[dict[str, Any]]:
    common = {"split": "train", "prompt": "p", "step_rewards": [0.5], "rewards": {}}
    return [{"optimizer_step": i, "steps": [f"{i:06} " + "x" * size], **common} for i in range(num_rows)]


def test_what_is_escaped_counts(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "steps": ["<&>" * 6_000], "values": [0.5]} for i in range(100)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_report([tmp_path / "rows.jsonl"], tmp_path / "page.html", max_megabytes=1.0)
    frame = 300_000  # styles and scripts
    assert (tmp_path / "page.html").stat().st_size < 1_000_000 + frame


def test_numbers_and_nesting_beyond_what_python_takes_cost_no_report(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "deep.json").write_text("[" * 200_000)
    rows = "[" * 200_000 + '\n{"prompt": "p", "steps": ["a", "b"], "step_values": [0.5, 1' + "0" * 400 + "]}\n"
    (tmp_path / "rows.jsonl").write_text(rows)
    write_report([tmp_path], tmp_path / "page.html", say=said.append)
    assert [text.split(" cannot")[0] for text in said] == [str(tmp_path / "deep.json")]
    (found,) = payload_of(tmp_path)["completions"]
    assert found["val"] == [0.5, None]


def test_completions_of_a_megabyte_make_a_small_page(tmp_path: Path) -> None:
    """Of 1,000 such completions, 100 here: reading them keeps only what is shown in memory."""
    writer = RunWriter(tmp_path / "run")
    writer.start({"method": "PAV", "seed": 0, "config": {}}, 0, "now")
    for row in long_rows(100, 1_000_000):
        writer.write_completions([row])
    found = payload_of(tmp_path / "run")
    assert len(found["completions"]) == 100
    assert json_bytes(found) < 100 * (MAX_CHARACTERS + 1_000)
    assert "980,007 characters are left out" in found["completions"][0]["steps"][0]
    assert len(read_run(tmp_path / "run").completions[0]["steps"][0]) == 1_000_007  # the record itself is whole


def test_page_has_a_budget_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run")
    writer.start({"method": "PAV", "seed": 0, "config": {}}, 0, "now")
    writer.write_completions(long_rows(300, 10_000))
    write_search(tmp_path / "search", num_problems=300)
    for megabytes in (1.0, 0.1):
        said: list[str] = []
        (page,) = write_report([tmp_path], tmp_path / f"{megabytes}.html", max_megabytes=megabytes, say=said.append)
        assert page.stat().st_size < 1e6 * megabytes + 200_000  # the page's own code
        assert any("of 300 completions are shown" in text and "--max_megabytes" in text for text in said)
    assert any("of 300 searched problems are shown" in text for text in said)


def test_fit_takes_as_many_as_fit() -> None:
    rows = ["x" * 10] * 100
    made, limit = fit(lambda count: evenly(rows, count), 100, 700)
    assert json_bytes(made) <= 700
    assert 40 <= limit == len(made)
    assert fit(lambda count: evenly(rows, count), 100, 10**6) == (rows, 100)
    assert fit(lambda count: evenly(rows, count), 100, 1) == (rows[:1], 1)


def test_long_curves_are_thinned(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run")
    writer.start({"method": "GRPO", "seed": 0, "config": {}}, 0, "now")
    rows = [{"optimizer_step": i, "split": "train", "metrics": {"reward": float(i)}} for i in range(5_000)]
    (tmp_path / "run" / "process" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    steps, values = payload_of(tmp_path / "run")["runs"][0]["metrics"]["train"]["reward"]
    assert len(steps) == MAX_CURVE_POINTS
    assert (steps[0], steps[-1], values) == (0, 4_999, [float(step) for step in steps])


# ---- files of strangers ----


@pytest.mark.parametrize("name", ["../secret.jsonl", "{}", "sub/secret.jsonl", "link.jsonl", ".."])
def test_a_result_brings_no_file_but_one_beside_it(name: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.jsonl"
    secret.write_text(json.dumps({"prompt": "SECRET", "steps": ["SECRET"], "values": [0.5]}) + "\n")
    folder = write_search(tmp_path / "search")
    (folder / "sub").mkdir()
    (folder / "sub" / "secret.jsonl").write_text(secret.read_text())
    os.symlink(secret, folder / "link.jsonl")
    data = json.loads((folder / "search.json").read_text())
    (folder / "search.json").write_text(json.dumps({**data, "problems_file": name.format(secret)}))
    found = payload_of(folder / "search.json")
    assert "SECRET" not in json.dumps({**found, "warnings": []})
    assert "is no file beside it" in found["warnings"][0]


def test_links_out_of_a_folder_are_left_out(tmp_path: Path) -> None:
    secret = tmp_path / "secret.jsonl"
    secret.write_text(
        json.dumps({"optimizer_step": 9, "prompt": "SECRET", "steps": ["SECRET"], "values": [0.5]}) + "\n"
    )
    run = write_run(tmp_path / "sent" / "run")
    os.symlink(secret, tmp_path / "sent" / "values.jsonl")
    os.symlink(secret, run / "process" / "completions-00001.jsonl")
    os.symlink(write_run(tmp_path / "elsewhere"), tmp_path / "mine")
    found = payload_of(tmp_path / "sent")
    assert "SECRET" not in json.dumps(found)
    assert "values.jsonl is a link to a file elsewhere" in found["warnings"][0]
    assert len(payload_of(tmp_path / "mine")["completions"]) == 40  # a link that the user passes is followed


def test_names_of_files_are_text(tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>"
    write_run(tmp_path / name)
    (tmp_path / f"{name}.json").write_text(json.dumps({"kind": name}))
    html = write_report([tmp_path / name, tmp_path / f"{name}.json"], tmp_path / "r.html")[0].read_text()
    assert "<img" not in html
    assert "onerror=alert" in html


# ---- nothing to show ----


def test_nothing_to_show_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RunWriter(tmp_path / "run").start({"method": "PAV", "seed": 0, "config": {}}, 0, "now")
    output = tmp_path / "r.html"
    assert cli.main(["report", str(tmp_path / "run"), "--output", str(output)]) == 2
    assert "nothing to show" in capsys.readouterr().err
    assert not output.exists()
    write_run(tmp_path / "other")
    assert cli.main(["report", str(tmp_path / "run"), str(tmp_path / "other"), "--output", str(output)]) == 0
    assert "the run has logged nothing yet" in capsys.readouterr().err


# ---- names, headlines, warnings ----


def test_runs_are_called_by_name_or_folder(tmp_path: Path) -> None:
    for seed in (10, 11):
        write_run(tmp_path / f"pav-seed{seed}", seed=seed)
    for seed in (0, 1):
        write_run(tmp_path / f"seed-{seed}" / "out", seed=seed, alpha=2.0)
    write_run(tmp_path / "named", run_name="my run", alpha=3.0)
    write_run(tmp_path / "old", run_name=str(tmp_path / "old"), alpha=4.0)
    found = payload_of(tmp_path)
    assert [group["label"] for group in found["groups"]] == ["my run", "old", "pav", "out"]
    assert [run["label"] for run in found["runs"]] == [
        *["my run", "old", "pav-seed10", "pav-seed11", "out, seed 0 (5)", "out, seed 1 (6)"]
    ]


def test_equal_names_are_told_apart(tmp_path: Path) -> None:
    for number in (1, 2):
        write_run(tmp_path / f"try-{number}" / "out", alpha=float(number))
    labels = [group["label"] for group in payload_of(tmp_path)["groups"]]
    assert labels == ["out (try-1, 1)", "out (try-2, 2)"]


def test_headlines_state_before_and_after_and_the_best_search(tmp_path: Path) -> None:
    models = [
        {"name": name, "metrics": {"avg@4": {"value": value, "low": value - 0.1, "high": value + 0.1}}}
        for name, value in (("base", 0.3), ("tuned", 0.5))
    ]
    difference = {"value": 0.2, "low": 0.1, "high": 0.3}
    test = {"metric": "avg@4", "before": "base", "after": "tuned", "difference": difference}
    evaluation = {"models": models, "differences": [test]}
    points = [
        {"line": line, "n": n, "tokens": 40.0 * n, "value": value, "low": None, "high": None}
        for line, n, value in (("beam", 1, 0.1), ("beam", 4, 0.4), ("vote", 4, 0.3), ("pass@n (beam)", 4, 0.9))
    ]
    trained, best = headlines([], [], [evaluation], [{"points": points}])
    assert trained["title"] == "avg@4: base → tuned"
    assert (trained["before"]["value"], trained["after"]["value"]) == (0.3, 0.5)
    assert trained["difference"] == difference
    assert best["title"] == "Best search: beam, n = 4"
    assert (best["before"]["value"], best["after"]["value"]) == (0.1, 0.4)
    for seed in (0, 1):
        writer = RunWriter(write_run(tmp_path / f"run-{seed}", seed=seed))
        writer.write_metrics("eval", 6, {"reward": 0.85 + 0.1 * seed})
    (line,) = payload_of(tmp_path)["headlines"]
    assert line["title"] == "Evaluation reward: PAV"
    assert line["before"] == {"value": 0.75, "low": 0.75, "high": 0.75}
    assert line["after"] == {"value": pytest.approx(0.9), "low": 0.85, "high": pytest.approx(0.95)}
    assert payload_of(write_results(tmp_path / "results"))["headlines"][0]["difference"]["value"] == 0.0


def test_warnings_of_the_training_are_kept(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    RunWriter(folder).write_warning(5, "the outcome has fallen")
    RunWriter(folder, process_index=1).write_warning(5, "said once")
    found = payload_of(folder)["runs"][0]
    assert found["warnings"] == [[5, "the outcome has fallen"]]
    assert found["metrics"]["train"]["reward"][0] == [1, 2, 3, 4, 5]
