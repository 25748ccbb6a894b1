"""`trl-prl report`: what it reads, how runs are grouped, that every text stays text, and the figures."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.benchmarks.arithmetic.task import arithmetic_policy_path, sample_problems
from tests.report_inputs import HOSTILE, write_results, write_run, write_search
from trl_prl import __main__ as cli
from trl_prl.commands.report import write_report
from trl_prl.evaluation.comparison import compare
from trl_prl.evaluation.summary import SummaryParams, summarise
from trl_prl.report.data import ReportData
from trl_prl.report.limits import evenly, evenly_by_rollout
from trl_prl.report.page import embed_json, render_page
from trl_prl.report.run_files import RunWriter
from trl_prl.verifier.evaluation import ScoredSolution, evaluate_verifier


def payload_of(*paths: Path, **arguments: Any) -> dict[str, Any]:
    data = ReportData(**arguments)
    for path in paths:
        data.add(path)
    return data.payload()


# ---- reading ----


def test_runs_that_differ_in_the_seed_are_one_group(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        write_run(tmp_path / f"a{seed}", seed=seed, alpha=5.0)
    write_run(tmp_path / "b", seed=0, alpha=1.0)
    write_run(tmp_path / "c", method="PRL", seed=0)
    found = payload_of(tmp_path)
    assert [(group["label"], group["seeds"]) for group in found["groups"]] == [
        ("a", [0, 1, 2]),
        ("b", [0]),
        ("c", [0]),
    ]
    assert [group["settings"] for group in found["groups"]] == ["alpha=5", "alpha=1", ""]
    assert [run["label"] for run in found["runs"]] == ["a0", "a1", "a2", "b", "c"]
    steps, rewards = found["runs"][1]["metrics"]["train"]["reward"]
    assert steps == [1, 2, 3, 4, 5]
    assert rewards == pytest.approx([0.21, 0.41, 0.61, 0.81, 1.01])
    assert found["runs"][1]["metrics"]["eval"]["reward"] == [[5], [0.75]]
    assert "loss" not in found["runs"][0]["metrics"]["train"]  # never finite


def test_runs_of_one_seed_are_no_sample_of_seeds(tmp_path: Path) -> None:
    """Something that no setting says is another, such as a policy without a name."""
    for name in ("weak", "strong"):
        write_run(tmp_path / name, seed=0)
    found = payload_of(tmp_path)
    assert [(group["label"], group["seeds"]) for group in found["groups"]] == [("strong", [0]), ("weak", [0])]


def test_runs_with_other_sources_are_other_runs(tmp_path: Path) -> None:
    for seed, verifier in enumerate(("old-pav", "new-pav")):
        manifest = json.loads((write_run(tmp_path / verifier, seed=seed) / "process" / "run.json").read_text())
        manifest["sources"] = {"process_reward": verifier}
        manifest["config"] |= {"seed": seed}
        (tmp_path / verifier / "process" / "run.json").write_text(json.dumps(manifest))
    found = payload_of(tmp_path)
    assert [group["settings"] for group in found["groups"]] == ["process_reward=new-pav", "process_reward=old-pav"]


def test_completions_share_prompts_across_runs(tmp_path: Path) -> None:
    write_run(tmp_path / "a", seed=0)
    write_run(tmp_path / "b", seed=1)
    found = payload_of(tmp_path)
    assert found["prompts"] == ["problem 0 <b>&</b>", "problem 1 <b>&</b>"]
    assert len(found["completions"]) == 2 * 5 * 8
    row = found["completions"][0]
    assert row["kl"][-1] == 0.1
    assert row["adv"] == pytest.approx([row["outcome"] + value for value in row["rew"]], abs=1e-3)


def test_every_kind_of_result_is_read(tmp_path: Path) -> None:
    write_results(tmp_path / "results")
    write_search(tmp_path / "beam")
    found = payload_of(tmp_path)
    (verifier,) = found["verifiers"]
    assert verifier["label"] == "my-verifier"
    assert verifier["bins"][1] == pytest.approx({"predicted": 0.3, "observed": 0.28, "count": 20})
    assert verifier["tables"]["by_position"][0]["brier"]["value"] == 0.2
    (diagnosis,) = found["diagnoses"]
    assert [candidate["k"] for candidate in diagnosis["candidates"]] == [1, 2, 4]
    assert diagnosis["candidates"][2]["numbers"]["gain"] == pytest.approx({"value": 0.4, "low": 0.35, "high": 0.45})
    assert diagnosis["words"] == ["It is highest with Bo4."]
    (evaluation,) = found["evaluations"]
    assert evaluation["models"][0]["metrics"]["avg@4"] == {"value": 0.3, "low": 0.2, "high": 0.4}
    problems, summary = found["searches"]
    assert [(point["line"], point["tokens"], point["value"]) for point in summary["points"]][:3] == [
        ("beam", 40.0, 0.1),
        ("beam", 80.0, 0.2),
        ("pass@n (beam)", 20.0, 0.4),
    ]
    assert payload_of(tmp_path / "beam" / "search.json")["searches"][1]["problems"] == problems["problems"]
    assert [node["status"] for node in problems["problems"][0]["nodes"]] == ["root", "kept", "pruned", "finished"]
    assert [other["label"].endswith("unknown.json") for other in found["others"]] == [True]
    assert not any("not_a_result" in source["label"] for source in found["sources"])


def test_searches_of_one_method_with_other_settings_are_lines_of_their_own(tmp_path: Path) -> None:
    for folder, n, verifier in (("few", 4, "mine"), ("many", 8, "mine"), ("exact", 4, "exact")):
        accuracy = {"value": 0.5, "low": 0.4, "high": 0.6}
        point = {"n": n, "generated_tokens_per_problem": 10.0 * n, "accuracy": accuracy}
        results = {"kind": "search", "method": "beam", "curve": [point]}
        (tmp_path / folder).mkdir()
        settings = {"n": [n], "process_reward": verifier}
        (tmp_path / folder / "search.json").write_text(json.dumps(results | {"settings": settings}))
    lines = {search["label"]: search["points"][0]["line"] for search in payload_of(tmp_path)["searches"]}
    assert lines in (
        {"few": "beam, few", "many": "beam, few", "exact": "beam, exact"},
        {"few": "beam, many", "many": "beam, many", "exact": "beam, exact"},
    )
    lines = {search["label"]: search["points"][0]["line"] for search in payload_of(tmp_path / "few")["searches"]}
    assert lines == {"few": "beam"}


def test_collected_and_scored_solutions_are_completions(tmp_path: Path) -> None:
    collected = {
        "prompt": "1+2+3=",
        "completions": ["3\n", "7\n"],
        "labels": [0.75, 0.0],
        "initial_value": 0.5,
        "interval_low": [0.5, 0.0],
        "interval_high": [0.9, 0.2],
        "num_rollouts": [16, 16],
        "outcome": 0.0,
        "finish_reason": "stop",
    }
    (tmp_path / "job" / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([collected]), tmp_path / "job" / "data" / "train.parquet")
    scored = {"prompt": [{"role": "user", "content": "hi"}], "steps": ["a", "b"], "step_values": [0.2, 0.4]}
    (tmp_path / "scored.jsonl").write_text(json.dumps(scored) + "\n{torn", encoding="utf-8")
    rows = payload_of(tmp_path)["completions"]
    assert len(rows) == 2
    assert (rows[0]["val"], rows[0]["rew"], rows[0]["rollouts"]) == ([0.75, 0.0], [0.25, -0.75], [16, 16])
    assert (rows[1]["val"], rows[1]["rew"]) == ([0.2, 0.4], None)


def test_a_run_of_another_trainer_shows_the_log_of_its_last_checkpoint(tmp_path: Path) -> None:
    for step in (9, 10):
        (tmp_path / "run" / f"checkpoint-{step}").mkdir(parents=True)
        history = [{"step": i, "reward": 0.1 * i} for i in range(1, step + 1)] + [{"step": step, "eval_reward": 0.5}]
        path = tmp_path / "run" / f"checkpoint-{step}" / "trainer_state.json"
        path.write_text(json.dumps({"log_history": history}), encoding="utf-8")
    (run,) = payload_of(tmp_path)["runs"]
    assert run["metrics"]["train"]["reward"][0] == list(range(1, 11))
    assert run["metrics"]["eval"]["reward"] == [[10], [0.5]]


@pytest.mark.parametrize("text", ["", "[]", '{"log_history": [', "[" * 100_000])
def test_a_torn_state_of_a_trainer_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run" / "checkpoint-5" / "trainer_state.json"
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"trainer_state.json is no state of a trainer"):
        payload_of(tmp_path)


def test_unreadable_lines_are_named(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    path = RunWriter(tmp_path / "run").completions_path
    path.write_bytes(path.read_bytes()[:-20])
    found = payload_of(tmp_path / "run")
    assert len(found["completions"]) == 39
    assert "1 unreadable lines" in found["warnings"][0]


@pytest.mark.parametrize("text", ["", '{"method": "PR', "[]", '{"version": "one"}', '{"starts": 3}', None])
def test_an_unreadable_manifest_is_named_and_the_rest_is_shown(
    tmp_path: Path, text: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "run")
    path = tmp_path / "run" / "process" / "run.json"
    path.unlink() if text is None else path.write_text(text)
    found = payload_of(tmp_path / "run")
    assert len(found["completions"]) == 40
    assert [warning.split(" is missing, empty or torn")[0] for warning in found["warnings"]] == [str(path)]
    assert cli.main(["report", str(tmp_path / "run"), "--output", str(tmp_path / "report.html")]) == 0
    assert str(path) in " ".join(capsys.readouterr().err.split())


def test_more_completions_than_asked_for_are_thinned_in_whole_rollouts(tmp_path: Path) -> None:
    write_run(tmp_path / "run", num_steps=20)
    found = payload_of(tmp_path / "run", max_completions=40)
    steps = [row["step"] for row in found["completions"]]
    assert len(steps) == 40
    assert {steps.count(step) for step in set(steps)} == {8}
    assert {1, 20} <= set(steps)
    assert "About 40 of 160 completions" in found["warnings"][0]


@pytest.mark.parametrize(("count", "limit", "expected"), [(5, 9, [0, 1, 2, 3, 4]), (9, 3, [0, 4, 8]), (3, 1, [2])])
def test_evenly(count: int, limit: int, expected: list[int]) -> None:
    assert evenly(range(count), limit) == expected


def test_evaluations_are_kept_first_but_leave_half() -> None:
    rows = [{"optimizer_step": step, "split": split} for step in range(50) for split in ("train", "eval")]
    kept = evenly_by_rollout(rows, 20)
    assert [row["split"] for row in kept].count("eval") == 10
    assert len(kept) == 20


def test_the_commands_own_results_are_read(tmp_path: Path) -> None:
    """What the other commands write today, made by their own functions."""
    solutions = [
        ScoredSolution(f"p{i}", [0.9, 0.2 + 0.1 * (i % 3)], [1.0, float(i % 2)], {"level": i % 2}) for i in range(40)
    ]
    verified = evaluate_verifier(solutions, group_by=["level"])
    samples = [
        {"completion": "3\n6\n", "correct": j == 0, "answer": "6", "scores": {"pav": [0.5, 0.75]}, "num_tokens": 4}
        | {"finish_reason": "stop", "why_not": None}
        for j in range(4)
    ]
    rows = [{"row": i, "prompt": f"p{i}", "columns": {"level": i % 2}, "samples": samples} for i in range(4)]
    better = [{**row, "samples": [{**sample, "correct": row["row"] > 0} for sample in samples]} for row in rows]
    params = SummaryParams(k=(1, 2), group_by=("level",))
    evaluated = {"m": rows, "better": better}
    (tmp_path / "v.json").write_text(json.dumps({"kind": "verifier_evaluation", "verifier": "v", **verified}))
    models = [{"name": name, "path": name, **summarise(model, params)} for name, model in evaluated.items()]
    comparisons = compare(evaluated, params)
    (tmp_path / "e.json").write_text(json.dumps({"kind": "evaluation", "models": models, "comparisons": comparisons}))
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps({"model": "m", **row}) + "\n" for row in rows))
    found = payload_of(tmp_path)
    (verifier,) = found["verifiers"]
    assert verifier["metrics"]["brier"]["value"] == verified["metrics"]["brier"]["value"]
    assert verifier["metrics"]["brier"]["low"] == verified["metrics"]["brier"]["interval"][0]
    assert sum(entry["count"] for entry in verifier["bins"]) == verified["num_labels"]
    assert [row["label"] for row in verifier["tables"]["by_level"]] == ["0", "1"]
    assert len(verifier["tables"]["by_position"]) == 2
    (line,) = found["headlines"]
    low, high = comparisons[0]["interval"]
    assert line["title"] == "avg@4: m → better"
    assert line["difference"] == {"value": 0.5, "low": low, "high": high}
    model, _ = found["evaluations"][0]["models"]
    assert model["metrics"]["pass@2"]["value"] == pytest.approx(0.5)
    assert [row["label"] for row in model["groups"]["level"]] == ["0", "1"]
    row = found["completions"][0]
    assert (row["steps"], row["val"], row["correct"], row["label"]) == (["3\n", "6\n"], [0.5, 0.75], True, "m")


def test_the_search_commands_results_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problems = [{"prompt": p.prompt, "answer": p.answer} for p in sample_problems("tuning", 2, seed=1)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))
    task = "tests.benchmarks.arithmetic"
    words = ["search", "--model", arithmetic_policy_path(), "--dataset", str(tmp_path / "data.jsonl"), "--n", "1", "2"]
    words += [
        "--reward",
        f"{task}.task:arithmetic_reward",
        "--check-timeout",
        "0",
    ]
    words += [
        "--process-reward",
        f"{task}.prover:ArithmeticProcessReward",
        "--max-completion-length",
        "24",
        "--plot",
        "none",
    ]
    assert cli.main([*words, "--method", "beam", "--save-trees", "2", "--output-dir", str(tmp_path / "beam")]) == 0
    found = payload_of(tmp_path / "beam")
    shown = [problem for search in found["searches"] for problem in search["problems"]]
    assert [problem["n"] for problem in shown] == [1, 2, 1, 2]
    assert [problem["prompt"] for problem in shown] == [row["prompt"] for row in problems for _ in range(2)]
    for problem in shown:
        assert problem["answer"] is not None
        statuses = {node["status"] for node in problem["nodes"]}
        assert statuses <= {"open", "kept", "pruned", "finished", "unfinished", "chosen"}
        assert (problem["chosen"] is None) == ("chosen" not in statuses)
        assert all(node["reason"] for node in problem["nodes"] if node["status"] == "pruned")
        assert all(node["q"] is not None for node in problem["nodes"] if node["status"] == "chosen")
    lines = {point["line"] for search in found["searches"] for point in search["points"]}
    assert lines == {"beam", "pass@n (beam)"}


# ---- the page ----


class Elements(HTMLParser):
    """Counts elements and collects the text of scripts, as a browser's parser would see them."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.addresses: list[str] = []
        self._open = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open = tag == "script"
        if self._open:
            self.scripts.append((dict(attrs), ""))
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data: str) -> None:
        if self._open:
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)

    def handle_endtag(self, tag: str) -> None:
        self._open = False


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    (written,) = write_report([tmp_path / "run"], tmp_path / "r.html", title="<script>alert(1)</script>&")
    html = written.read_text(encoding="utf-8")
    parser = Elements()
    parser.feed(html)
    assert len(parser.scripts) == 2
    assert "alert(1)" not in parser.scripts[1][1]
    payload = json.loads(parser.scripts[0][1])
    texts = "".join(text for row in payload["completions"] for text in row["steps"])
    assert all(text in texts for text in HOSTILE)
    assert "\u2028" not in html
    assert "<!--" not in html


@pytest.mark.parametrize("text", [*HOSTILE, "plain", "ünïcode 𝔘"])
def test_embedded_json_is_the_same_and_cannot_end_its_element(text: str) -> None:
    embedded = embed_json({"text": text})
    assert json.loads(embedded)["text"] == text
    assert not re.search("[<>&\u2028\u2029]", embedded)
    embedded.encode("utf-8")


def test_page_loads_nothing(tmp_path: Path) -> None:
    html = render_page(payload_of(write_run(tmp_path / "run")), "t")
    parser = Elements()
    parser.feed(html)
    assert all(address.startswith("#") for address in parser.addresses)
    assert "default-src 'none'" in html
    assert "url(" not in html
    assert "@import" not in html
    assert not re.search(r"\b(fetch\(|XMLHttpRequest|WebSocket|importScripts|innerHTML|eval\()", parser.scripts[1][1])


# ---- command and figures ----


@pytest.mark.slow
def test_command_writes_page_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    write_run(tmp_path / "a", seed=0)
    write_run(tmp_path / "b", seed=1)
    write_results(tmp_path / "results")
    output = tmp_path / "out" / "report.html"
    arguments = ["report", str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "results")]
    assert cli.main([*arguments, "--output", str(output), "--format", "html", "png", "svg"]) == 0
    printed = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert all(path.stat().st_size > 500 for path in printed)
    names = {path.name for path in printed}
    assert {"report.html", "train-reward.png", "train-reward.svg", "calibration-my-verifier.svg"} <= names
    assert {"prover-policy-gain.png", "results-pass_at_k.svg"} <= names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "not there"),
        (["empty"], "nothing a report can show"),
        (["run", "--max_completions", "0"], "max_completions=0"),
        (["broken.json"], "cannot be read"),
    ],
)
def test_errors_say_what_to_do(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    write_run(tmp_path / "run")
    assert cli.main(["report", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()
