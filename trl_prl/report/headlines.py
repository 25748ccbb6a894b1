"""What a report says first: what training changed, and which search is best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from .run_files import RecordedRun


def headlines(
    groups: Sequence[Mapping[str, Any]],
    runs: Sequence[RecordedRun],
    evaluations: Sequence[Mapping[str, Any]],
    searches: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """The results that matter most, in the order of how much they say.

    Args:
        groups (`Sequence[Mapping]`):
            Groups of runs, as [`~runs.group_runs`] returns them.
        runs (`Sequence[RecordedRun]`):
            The runs.
        evaluations (`Sequence[Mapping]`):
            Evaluations of models, as [`~files.evaluation_result`] returns them.
        searches (`Sequence[Mapping]`):
            Searches with their `points`.

    Returns:
        `list[dict]`: Each with `title`, `before` and `after` (estimates, `before` may be absent), `difference` (an
        estimate or absent), and `note`.
    """
    found = [line for evaluation in evaluations for line in evaluation_headlines(evaluation)]
    found += search_headlines([point for search in searches for point in search["points"]])
    found += [line for group in groups if (line := run_headline(group, [runs[i] for i in group["runs"]])) is not None]
    return found


def evaluation_headlines(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The first model of an evaluation against each other, by the first metric that both have."""
    first, *others = evaluation["models"] or [{"metrics": {}}]
    found = []
    for model in others:
        name = next((name for name in first["metrics"] if name in model["metrics"]), None)
        if name is None:
            continue
        before, after = first["metrics"][name], model["metrics"][name]
        paired = {"metric": name, "before": first["name"], "after": model["name"]}
        tests = (test["difference"] for test in evaluation["differences"] if paired.items() <= test.items())
        found.append(
            {"title": f"{name}: {first['name']} → {model['name']}", "before": before, "after": after}
            | {"difference": next(tests, None), "note": "with intervals over problems"}
        )
    return found


def search_headlines(points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The search with the highest accuracy, against the one that spends least."""
    searched = [p for p in points if not p["line"].startswith("pass@n") and p["value"] is not None]
    if not searched:
        return []
    best = max(searched, key=lambda point: (point["value"], -point["tokens"]))
    cheapest = min(searched, key=lambda point: point["tokens"])
    line: dict[str, Any] = {
        "title": f"Best search: {best['line']}, n = {best['n']}",
        "after": {name: best[name] for name in ("value", "low", "high")},
        "note": f"{best['tokens']:,.0f} tokens sampled per problem",
    }
    if cheapest is not best:
        line["before"] = {name: cheapest[name] for name in ("value", "low", "high")}
        line["note"] += f", against {cheapest['tokens']:,.0f} of {cheapest['line']}, n = {cheapest['n']}"
    return [line]


def run_headline(group: Mapping[str, Any], runs: Sequence[RecordedRun]) -> dict[str, Any] | None:
    """Evaluation reward of a group of runs before and after, from the lowest to the highest seed."""
    pairs = []
    for run in runs:
        values = [
            row["metrics"]["reward"]
            for row in run.metrics
            if row.get("split") == "eval"
            and isinstance(row.get("metrics"), Mapping)
            and isinstance(row["metrics"].get("reward"), int | float)
        ]
        if len(values) > 1:
            pairs.append((values[0], values[-1]))
    if not pairs:
        return None
    before, after = ({"value": fmean(v), "low": min(v), "high": max(v)} for v in zip(*pairs, strict=True))
    spread = f"mean of {len(pairs)} seeds, lowest to highest" if len(pairs) > 1 else "one seed"
    return {
        "title": f"Evaluation reward: {group['label']}",
        "before": before,
        "after": after,
        "note": f"first and last evaluation, {spread}",
    }


def named_lines(searches: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Searches with their lines told apart: those of one method with other settings have a folder's name too."""
    folders: dict[str, dict[str, str]] = {}
    for search in searches:
        for point in search["points"]:
            folders.setdefault(point["line"], {}).setdefault(search.get("setting", ""), search["label"])

    def named(point: Mapping[str, Any], setting: str) -> dict[str, Any]:
        found = folders[point["line"]]
        return {**point, "line": f"{point['line']}, {found[setting]}"} if len(found) > 1 else {**point}

    return [
        {
            **{name: value for name, value in search.items() if name != "setting"},
            "points": [named(point, search.get("setting", "")) for point in search["points"]],
        }
        for search in searches
    ]
