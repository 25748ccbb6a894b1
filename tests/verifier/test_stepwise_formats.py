"""Converters from public formats, on hand-made rows and on the real ones."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest

from trl_prl.verifier.formats import (
    add_separator,
    from_math_aps,
    from_math_shepherd,
    from_prm800k,
    from_process_bench,
    from_trl_stepwise,
    stepwise_dataset,
)
from trl_prl.verifier.rows import clean_labels


def read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        pytest.skip(f"no shared data: {path} not found")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def check_rows(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert isinstance(row["prompt"], str)
        assert row["prompt"]
        assert all(row["completions"])
        labels = clean_labels(row["labels"], len(row["completions"]))
        assert len(labels) == len(row["completions"])


# ---- by hand ----


def test_separator_goes_behind_every_step_but_the_last() -> None:
    assert add_separator(["a", "b\n", "c"], "\n") == ["a\n", "b\n", "c"]
    assert add_separator(["a", "b"], "") == ["a", "b"]
    assert add_separator([], "\n") == []


def test_trl_rows_keep_booleans_apart_from_missing_labels() -> None:
    row = {"prompt": "p", "completions": ["a", "b", "c"], "labels": [True, False, None], "answer": 3}
    assert from_trl_stepwise(row) == [{"prompt": "p", "completions": ["a\n", "b\n", "c"], "labels": [1.0, 0.0, None]}]
    with pytest.raises(ValueError, match="one label per step"):
        from_trl_stepwise({"prompt": "p", "completions": ["a"], "labels": []})


@pytest.mark.parametrize(("error", "labels"), [(-1, [1.0, 1.0, 1.0]), (0, [0.0, None, None]), (1, [1.0, 0.0, None])])
def test_process_bench_labels_end_with_the_first_error(error: int, labels: list[float | None]) -> None:
    [row] = from_process_bench({"problem": "p", "steps": ["a", "b", "c"], "label": error, "id": "x"})
    assert row == {"prompt": "p", "completions": ["a\n\n", "b\n\n", "c"], "labels": labels, "id": "x"}


def test_process_bench_label_beyond_the_steps_raises() -> None:
    with pytest.raises(ValueError, match="no such step"):
        from_process_bench({"problem": "p", "steps": ["a"], "label": 1})


def test_math_shepherd_reads_marks_by_position_not_by_sign() -> None:
    text = "What is 1 + 2 - 3? Step 1: 1 + 2 = 3 ки\nStep 2: 3 - 3 = 0. The answer is: 0 ки"
    [row] = from_math_shepherd({"input": text, "label": text.replace("ки", "+", 1).replace("ки", "-", 1)})
    assert row["prompt"] == "What is 1 + 2 - 3?"
    assert row["completions"] == ["Step 1: 1 + 2 = 3\n", "Step 2: 3 - 3 = 0. The answer is: 0"]
    assert row["labels"] == [1.0, 0.0]


@pytest.mark.parametrize(
    "question",
    ["In Step 1: of a recipe you add 2, later 3. Total?", "Step 1: 2. Step 2: 3. Step 1: again. Total?", "Step 1 : x"],
)
def test_math_shepherd_questions_may_speak_of_steps(question: str) -> None:
    solution = "Step 1: 2+3=5 ки\nStep 2: The answer is 5 ки"
    for space in (" ", "\n"):
        text = question + space + solution
        [row] = from_math_shepherd({"input": text, "label": text.replace("ки", "+")})
        assert row["prompt"] == question
        assert row["completions"] == ["Step 1: 2+3=5\n", "Step 2: The answer is 5"]


@pytest.mark.parametrize("label", [0.7, 3, -2, None, "x", [0], math.nan])
def test_process_bench_labels_are_whole_numbers_of_steps(label: Any) -> None:
    row = {"problem": "p", "steps": ["a", "b", "c"], "label": label}
    with pytest.raises(ValueError, match="The label"):
        from_process_bench(row)
    with pytest.raises(ValueError, match="Row 0 could not be read"):
        stepwise_dataset([row], from_process_bench)


@pytest.mark.parametrize(
    ("steps", "labels", "message"),
    [
        ("ab", [1, 0], "no list of steps"),
        ([["a"], ["b"]], [1, 0], "a step is a text"),
        (["a", "b"], [1, -1], "probabilities of success"),
        (["a", "b"], [100, 0], "probabilities of success"),
        (["a", "b"], "10", "labels are a list"),
        (["a", "b"], ["yes", "no"], "no number"),
        (["a\ud800"], [1], "no tokenizer reads"),
    ],
)
def test_stepwise_rows_of_others_are_read_strictly(steps: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_trl_stepwise({"prompt": "p", "completions": steps, "labels": labels})


def test_truth_as_text_is_not_taken_for_true() -> None:
    row = {"prompt": "p", "completions": ["a", "b", "c", "d"], "labels": ["True", "False", "0.7", -100]}
    assert from_trl_stepwise(row)[0]["labels"] == [1.0, 0.0, 0.7, None]


def test_columns_of_two_kinds_are_named() -> None:
    rows = [{"problem": "p", "steps": ["a"], "label": -1, "id": value} for value in (1, "x")]
    with pytest.raises(ValueError, match="Row 1 of 'the rows of from_process_bench' has 'x' in the column 'id'"):
        stepwise_dataset(rows, from_process_bench)
    late = [{"problem": "p", "steps": ["a"], "label": -1}] * 300 + [{"problem": "p", "steps": ["a"], "label": 0}]
    late[-1]["id"] = "late"
    assert stepwise_dataset(late, from_process_bench)[-1] == {
        "prompt": "p", "completions": ["a"], "labels": [0.0], "id": "late",
    }  # fmt: skip


def test_math_shepherd_texts_that_differ_raise() -> None:
    with pytest.raises(ValueError, match="differ in the marks only"):
        from_math_shepherd({"input": "q Step 1: a ки", "label": "q Step 1: b +"})
    with pytest.raises(ValueError, match="no 'Step 1:'"):
        from_math_shepherd({"input": "q a ки", "label": "q a +"})


def prm_step(*ratings: int | None, chosen: int | None = 0, human: str | None = None) -> dict[str, Any]:
    completions = [{"text": f"t{i}{rating}", "rating": rating} for i, rating in enumerate(ratings)]
    return {
        "completions": completions or None,
        "chosen_completion": chosen,
        "human_completion": None if human is None else {"text": human, "rating": None},
    }


def prm_row(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"question": {"problem": "p"}, "label": {"steps": list(steps), "finish_reason": "solution"}}


def test_prm800k_follows_the_chosen_path_and_uses_each_rating_once() -> None:
    rows = from_prm800k(prm_row(prm_step(1), prm_step(-1, 0, chosen=None, human="h"), prm_step(1, -1)))
    paths = [("".join(row["completions"]), row["labels"]) for row in rows]
    assert paths == [
        ("t01\nt0-1", [None, 0.0]),
        ("t01\nt10", [None, 1.0]),
        ("t01\nh\nt1-1", [None, None, 0.0]),
        ("t01\nh\nt01", [1.0, None, 1.0]),
    ]


def test_prm800k_neutral_and_alternatives_are_options() -> None:
    row = prm_row(prm_step(0), prm_step(-1, 1, chosen=None))
    [path] = from_prm800k(row, neutral=None, alternatives=False)
    # Nothing was chosen at the end: the solution ends with the first completion there.
    assert path["labels"] == [None, 0.0]
    assert from_prm800k(prm_row(prm_step(chosen=None))) == []


def test_math_aps_tree_labels_shared_prefixes_once() -> None:
    leaf = {"mc_value": 1.0, "children": []}
    tree = {
        "text": "q",
        "mc_value": 0.5,
        "children": [
            {"text": "a", "mc_value": 0.75, "children": [{"text": "b", **leaf}, {"text": "c", **leaf, "mc_value": 0}]},
            {"text": "d", "mc_value": None, "children": []},
        ],
    }
    rows = from_math_aps({"question": "q", "reasoning_steps": tree}, step_separator="|")
    assert [(row["completions"], row["labels"], row["initial_value"]) for row in rows] == [
        (["a|", "b"], [0.75, 1.0], 0.5),
        (["a|", "c"], [None, 0.0], None),
    ]


def test_math_aps_list_of_prefixes_becomes_the_same_tree() -> None:
    prefixes = [("q", 0.5), ("q\n\n a", 0.75), ("q\n\n a\n\nb", 1.0), ("q\n\n a\n\nc", 0.0), ("q\n\n a", 0.1)]
    steps = [{"solution_prefix": text, "mc_value": value} for text, value in prefixes]
    rows = from_math_aps({"question": "q", "reasoning_steps": steps})
    assert [(row["completions"], row["labels"], row["initial_value"]) for row in rows] == [
        (["a\n\n", "b"], [0.75, 1.0], 0.5),
        (["a\n\n", "c"], [None, 0.0], None),
    ]


def test_data_set_names_the_row_that_is_broken() -> None:
    good = {"problem": "p", "steps": ["a"], "label": -1}
    assert stepwise_dataset([good, good], from_process_bench).column_names == ["prompt", "completions", "labels"]
    with pytest.raises(ValueError, match="Row 1 could not be read by `from_process_bench`"):
        stepwise_dataset([good, {"problem": "p"}], from_process_bench)


# ---- real rows ----


@pytest.mark.shared_data
def test_real_prm800k(shared_data: Path) -> None:
    for row in read_rows(shared_data / "formats" / "prm800k_raw.jsonl.gz"):
        rows = from_prm800k(row["raw"])
        check_rows(rows)
        rated = [c["rating"] for step in row["raw"]["label"]["steps"] for c in step["completions"] or []]
        used = [label for converted in rows for label in converted["labels"] if label is not None]
        assert len(used) == sum(rating is not None for rating in rated)
        assert used.count(0.0) == rated.count(-1)


@pytest.mark.shared_data
def test_real_math_shepherd(shared_data: Path) -> None:
    for row in read_rows(shared_data / "formats" / "math_shepherd_raw.jsonl.gz"):
        [converted] = from_math_shepherd(row["raw"])
        check_rows([converted])
        text = converted["prompt"] + " " + "".join(converted["completions"])
        assert text == row["raw"]["input"].replace(" ки", "")
        assert all(step.startswith(f"Step {i + 1}:") for i, step in enumerate(converted["completions"]))


@pytest.mark.shared_data
def test_real_math_aps(shared_data: Path) -> None:
    for row in read_rows(shared_data / "formats" / "math_aps_raw.jsonl.gz"):
        rows = from_math_aps(row["raw"])
        check_rows(rows)
        assert rows[0]["initial_value"] is not None
        if row["format"] == "math-aps":
            distinct = {entry["solution_prefix"] for entry in row["raw"]["reasoning_steps"]}
            assert sum(label is not None for r in rows for label in r["labels"]) == len(distinct) - 1


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["gsm8k", "math", "olympiadbench", "omnimath"])
def test_real_process_bench(shared_data: Path, name: str) -> None:
    for row in read_rows(shared_data / "stepwise" / f"processbench_{name}.jsonl.gz"):
        steps = row["completions"] + row["rest"]
        [converted] = from_process_bench({"problem": row["prompt"], "steps": steps, "label": row["first_error"]})
        check_rows([converted])
        judged = [label for label in converted["labels"] if label is not None]
        assert judged == [float(label) for label in row["labels"]]


@pytest.mark.shared_data
def test_real_trl_rows(shared_data: Path) -> None:
    for name in ("game24_exact", "prmbench", "mr_gsm8k"):
        data = stepwise_dataset(read_rows(shared_data / "stepwise" / f"{name}.jsonl.gz")[:50], from_trl_stepwise)
        check_rows(list(data))
