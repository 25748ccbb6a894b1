"""Public data sets of step labels, as rows of the stepwise format.

A row is `{"prompt": str, "completions": [step, ...], "labels": [number or None, ...]}`, and possibly `initial_value`,
the value of the prompt. Joined, the steps are the text of the solution: a separator that a format leaves out between
steps is put back at the end of each step but the last, because that is where a splitter leaves it in sampled text.

Every converter takes one row as published and returns a list of rows, because some formats hold a tree of solutions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trl_prl.storage.row_values import missing_as_none, read_labels, read_number, read_steps


if TYPE_CHECKING:
    from datasets import Dataset

_FIRST_STEP = re.compile(r"\bStep 1\s*:")
_SHEPHERD_MARK = "ки"


def add_separator(steps: Sequence[str], separator: str) -> list[str]:
    """Put a separator at the end of every step but the last, where it is not there already.

    Args:
        steps (`Sequence[str]`):
            Texts of the steps.
        separator (`str`):
            Text between two steps.

    Returns:
        `list[str]`: The steps; joined, they are the solution.
    """
    return [step if step.endswith(separator) else step + separator for step in steps[:-1]] + list(steps[-1:])


def end_with_breaks(steps: Sequence[str], drop: str = "") -> list[str]:
    """Move whitespace from the start of each step to the end of the one before, where splitters leave it.

    Args:
        steps (`Sequence[str]`):
            Texts of the steps. Whitespace before the first one is dropped.
        drop (`str`, *optional*, defaults to `""`):
            Text to take off the end of every step.

    Returns:
        `list[str]`: The steps.
    """
    bodies = [step.lstrip() for step in steps]
    breaks = [step[: len(step) - len(body)] for step, body in zip(steps, bodies, strict=True)]
    return [body.removesuffix(drop) + after for body, after in zip(bodies, [*breaks[1:], ""], strict=True)]


def from_trl_stepwise(row: Mapping[str, Any], step_separator: str = "\n") -> list[dict[str, Any]]:
    """Convert a row of TRL's former stepwise supervision type, which `PRMTrainer` took.

    Args:
        row (`Mapping`):
            Columns `prompt`, `completions` and `labels` (booleans), possibly `initial_value`; others are dropped.
        step_separator (`str`, *optional*, defaults to `"\\n"`):
            What stood between steps: the value of `PRMConfig.step_separator`.

    Returns:
        `list[dict]`: One row.

    Raises:
        `ValueError`: If there is not one label per step.
    """
    steps, labels = read_steps(row["completions"], "The solution"), _labels(row["labels"])
    if len(steps) != len(labels):
        raise ValueError(
            f"There are {len(steps)} steps and {len(labels)} labels. Labels would belong to other steps. Give one "
            "label per step, `None` for a step that nobody judged."
        )
    kept = {"initial_value": _labels([row["initial_value"]])[0]} if "initial_value" in row else {}
    texts = add_separator(steps, step_separator)
    return [{"prompt": row["prompt"], "completions": texts, "labels": labels, **kept}]


def from_process_bench(row: Mapping[str, Any], step_separator: str = "\n\n") -> list[dict[str, Any]]:
    """Convert a row of [ProcessBench](https://huggingface.co/papers/2412.06559): the first wrong step is labelled.

    Args:
        row (`Mapping`):
            Columns `problem`, `steps` and `label` (index of the first wrong step, -1 for none).
        step_separator (`str`, *optional*, defaults to `"\\n\\n"`):
            What stood between steps.

    Returns:
        `list[dict]`: One row with all steps. Steps after the first error have the label `None`: nobody judged them.

    Raises:
        `ValueError`: If the label points at a step that does not exist.
    """
    steps, error = read_steps(row["steps"], "The solution"), read_number(row["label"], "The label")
    if error not in range(-1, len(steps)):
        raise ValueError(
            f"The label is {row['label']!r}, but the solution has {len(steps)} steps, so there is no such step. Drop "
            "the row, or use an index from 0, and -1 for a solution without an error."
        )
    num_right = len(steps) if error < 0 else error
    labels = [1.0 if i < num_right else 0.0 if i == num_right else None for i in range(len(steps))]
    kept = {key: row[key] for key in ("id", "generator", "final_answer_correct") if key in row}
    return [{"prompt": row["problem"], "completions": add_separator(steps, step_separator), "labels": labels, **kept}]


def from_math_shepherd(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Convert a row of [Math-Shepherd](https://huggingface.co/papers/2312.08935): Monte-Carlo labels, 0 or 1.

    Args:
        row (`Mapping`):
            Columns `input`, where `ки` marks the end of each step, and `label`, the same text with `+` or `-` there.

    Returns:
        `list[dict]`: One row. The marks are taken out, line breaks between steps stay at the end of a step.

    Raises:
        `ValueError`: If the two texts differ elsewhere, or `Step 1:` is missing, where the problem ends.
    """
    segments = str(row["input"]).split(_SHEPHERD_MARK)
    marked, position, labels = str(row["label"]), 0, []
    # The marks are found by position: `+` and `-` also occur inside formulas.
    for segment in segments[:-1]:
        end = position + len(segment)
        if marked[position:end] != segment or marked[end : end + 1] not in ("+", "-"):
            raise ValueError(
                f"The texts of `input` and `label` part at character {position}, near {segment[:40]!r}, so no label "
                f"can be read there. They may differ in the marks only: '{_SHEPHERD_MARK}' against '+' or '-'."
            )
        labels.append(1.0 if marked[end] == "+" else 0.0)
        position = end + 1
    starts = list(_FIRST_STEP.finditer(segments[0]))
    if not starts or not labels:
        raise ValueError(
            f"The text {segments[0][:60]!r} has no 'Step 1:' or no mark '{_SHEPHERD_MARK}', so problem and solution "
            "cannot be told apart. Pass rows as published, with numbered steps."
        )
    start = starts[-1].start()  # the question may speak of a 'Step 1:' too
    # The space before a mark was put there together with it.
    steps = end_with_breaks([segments[0][start:], *segments[1:-1]], drop=" ")
    kept = {"task": row["task"]} if "task" in row else {}
    return [{"prompt": segments[0][:start].rstrip(), "completions": steps, "labels": labels, **kept}]


def from_prm800k(
    row: Mapping[str, Any], neutral: float | None = 1.0, alternatives: bool = True, step_separator: str = "\n"
) -> list[dict[str, Any]]:
    """Convert a row of [PRM800K](https://huggingface.co/papers/2305.20050): human ratings -1, 0, 1.

    The chosen completions make one solution. Every other rated completion makes a further row: the same steps before
    it, unlabelled, and its own label, so that each rating is used once.

    Args:
        row (`Mapping`):
            A row of `phase*_*.jsonl`, with `question` and `label`.
        neutral (`float`, *optional*, defaults to `1.0`):
            Label of the rating 0; 1.0 as in the paper (appendix), `None` to leave such steps unlabelled.
        alternatives (`bool`, *optional*, defaults to `True`):
            Whether completions that were not chosen make rows.
        step_separator (`str`, *optional*, defaults to `"\\n"`):
            What stands between steps.

    Returns:
        `list[dict]`: The rows; none if nothing was rated.
    """
    label_of = {1: 1.0, 0: neutral, -1: 0.0, None: None}
    path: list[str] = []
    labels: list[float | None] = []
    rows: list[dict[str, Any]] = []
    shared = {"prompt": row["question"]["problem"], "finish_reason": row["label"]["finish_reason"]}

    def add_row(steps: list[str], step_labels: list[float | None]) -> None:
        if any(label is not None for label in step_labels):
            rows.append({**shared, "completions": add_separator(steps, step_separator), "labels": step_labels})

    for step in row["label"]["steps"]:
        completions = step["completions"] or []
        chosen = step["chosen_completion"]
        human = step["human_completion"]
        if chosen is None and human is None and completions:
            # The solution ends here: found an error in every continuation, or given up.
            chosen = 0
        for index, completion in enumerate(completions):
            if alternatives and index != chosen:
                add_row([*path, completion["text"]], [*([None] * len(path)), label_of[completion["rating"]]])
        taken = human if chosen is None else completions[chosen]
        if taken is None:
            break
        path.append(taken["text"])
        labels.append(label_of[taken["rating"]])
    add_row(path, labels)
    return rows


def from_math_aps(row: Mapping[str, Any], step_separator: str = "\n\n") -> list[dict[str, Any]]:
    """Convert a row of MATH-APS, data of [OmegaPRM](https://huggingface.co/papers/2406.06592): Monte-Carlo values.

    Both published forms are read: a list of prefixes (`solution_prefix`, `mc_value`) and a tree (`text`, `mc_value`,
    `children`). Every leaf makes one row; a prefix that several rows share is labelled in the first of them, so that
    each value is used once. The value of the problem itself becomes `initial_value`.

    Args:
        row (`Mapping`):
            Columns `question` and `reasoning_steps`.
        step_separator (`str`, *optional*, defaults to `"\\n\\n"`):
            What stands between the steps of a tree; the list of prefixes holds its own.

    Returns:
        `list[dict]`: The rows; none if nothing but the problem has a value.
    """
    source, question = row["reasoning_steps"], row["question"]
    is_tree = isinstance(source, Mapping)
    root = source if is_tree else _tree_of_prefixes(question, source)
    rows: list[dict[str, Any]] = []
    (initial_value,) = _labels([root["mc_value"]])
    # Depth first, without recursion: trees may be deeper than Python's stack.
    stack: list[tuple[Mapping[str, Any], list[str], list[float | None]]] = [(root, [], [])]
    while stack:
        node, steps, labels = stack.pop()
        for index, child in reversed(list(enumerate(node["children"] or []))):
            # Only the first child carries the labels of what it shares with its siblings.
            earlier = labels if index == 0 else [None] * len(labels)
            stack.append((child, [*steps, child["text"]], [*earlier, *_labels([child["mc_value"]])]))
        if not node["children"] and steps:
            texts = add_separator(steps, step_separator) if is_tree else end_with_breaks(steps)
            rows.append({"prompt": question, "completions": texts, "labels": labels, "initial_value": None})
    if rows:
        rows[0]["initial_value"] = initial_value
    return [row for row in rows if row["initial_value"] is not None or any(x is not None for x in row["labels"])]


def stepwise_dataset(
    rows: Iterable[Mapping[str, Any]], converter: Callable[..., list[dict[str, Any]]], **kwargs: Any
) -> Dataset:
    """Convert rows and make a data set of them.

    Args:
        rows (`Iterable[Mapping]`):
            Rows as published.
        converter (`Callable`):
            One of the converters of this module.
        **kwargs:
            Arguments of the converter.

    Returns:
        [`~datasets.Dataset`]: The rows in the stepwise format; a column that only some rows have is `None` elsewhere.

    Raises:
        `ValueError`: If a row cannot be converted, with its index.
    """
    from trl_prl.storage.row_sources import rows_dataset

    converted: list[dict[str, Any]] = []
    for index, row in enumerate(rows):
        try:
            converted += converter(row, **kwargs)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"Row {index} could not be read by `{converter.__name__}`: {error!r}. It is not of that format, or "
                "broken. Check the format of the file, or drop the row."
            ) from error
    return rows_dataset(converted, f"the rows of {converter.__name__}")


def _tree_of_prefixes(question: str, prefixes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Hang every prefix below the longest other one that it starts with; the text of a node is what it adds."""
    values: dict[str, Any] = {}
    for entry in prefixes:
        # A prefix may be listed twice; its first value counts.
        values.setdefault(entry["solution_prefix"], entry["mc_value"])
    root: dict[str, Any] = {"text": "", "mc_value": values.pop(question, None), "children": []}
    open_nodes: list[tuple[str, dict[str, Any]]] = []
    # In sorted order, the prefixes of a text are right before it: a stack holds the chain of the last one.
    for prefix in sorted(values):
        if not prefix.startswith(question):
            raise ValueError(
                f"The prefix {prefix[:60]!r} does not start with the question, so where the solution begins cannot "
                "be told. Pass rows as published."
            )
        while open_nodes and not prefix.startswith(open_nodes[-1][0]):
            open_nodes.pop()
        parent_text, parent = open_nodes[-1] if open_nodes else (question, root)
        node = {"text": prefix[len(parent_text) :], "mc_value": values[prefix], "children": []}
        parent["children"].append(node)
        open_nodes.append((prefix, node))
    return root


def _labels(values: Any) -> list[float | None]:
    return [missing_as_none(label) for label in read_labels(values, "A label")]
