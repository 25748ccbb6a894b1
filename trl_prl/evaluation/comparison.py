"""Models side by side: paired tests on the problems that two of them have."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from trl_prl.metrics.resampling import bootstrap_interval, holm_adjusted, mcnemar_test, permutation_test

from .summary import Row, SummaryParams, Values, problem_values


def compare(
    models: Mapping[str, Sequence[Row]], params: SummaryParams, values: Mapping[str, Values] | None = None
) -> list[dict[str, Any]]:
    """Paired tests of every pair of models on the problems that both have.

    Problems are the same if their prompts are; of equal prompts the first of one model is that of the other. Where
    every value is 0 or 1 the test is McNemar's, exact, else the permutation test. `p_value_holm` is adjusted for all
    pairs of models tested on the same metric, not for looking at several metrics.

    Args:
        models (`Mapping[str, Sequence[Mapping]]`):
            Rows of each model.
        params ([`SummaryParams`]):
            What to compare.
        values (`Mapping[str, Mapping]`, *optional*):
            [`problem_values`] of each model's rows, where they are known already.

    Returns:
        `list[dict]`: One per metric and pair, with `metric`, `before` and `after` (models, in the order given),
        `difference` (after minus before), `interval` (bootstrap over problems, in pairs), `test`, `p_value`,
        `p_value_holm` and `num_problems`.

    Raises:
        `ValueError`: If two models have no problem in common.
    """
    if values is None:
        values = {name: problem_values(rows, params) for name, rows in models.items()}
    keys = {name: _keys(rows) for name, rows in models.items()}
    keyed = {
        name: {metric: dict(zip(keys[name], found, strict=True)) for metric, found in values[name].items()}
        for name in models
    }
    by_metric: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for before, after in combinations(models, 2):
        if not set(keys[before]) & set(keys[after]):
            raise ValueError(
                f"{before} and {after} have no prompt in common, so nothing of them can be compared in pairs. "
                "Evaluate them on the same problems, or apart."
            )
        for metric in keyed[before]:
            if metric in keyed[after]:
                result = _compare(keyed[before][metric], keyed[after][metric], params)
                if result is not None:
                    by_metric[metric].append({"metric": metric, "before": before, "after": after, **result})
    for results in by_metric.values():
        for result, adjusted in zip(results, holm_adjusted([r["p_value"] for r in results]), strict=True):
            result["p_value_holm"] = adjusted
    return [result for results in by_metric.values() for result in results]


def _compare(
    before: Mapping[Any, float | None], after: Mapping[Any, float | None], params: SummaryParams
) -> dict[str, Any] | None:
    pairs = [(float(a), float(b)) for key, a in before.items() if a is not None and (b := after.get(key)) is not None]
    if not pairs:
        return None
    old, new = zip(*pairs, strict=True)
    single = {*old, *new} <= {0.0, 1.0}
    differences = [b - a for a, b in pairs]
    return {
        "difference": math.fsum(new) / len(new) - math.fsum(old) / len(old),
        "interval": list(bootstrap_interval(differences, params.confidence, seed=params.seed)),
        "test": "mcnemar_exact" if single else "permutation",
        "p_value": mcnemar_test(new, old) if single else permutation_test(new, old, seed=params.seed),
        "num_problems": len(pairs),
    }


def _keys(rows: Sequence[Row]) -> list[tuple[str, int]]:
    """The prompt of each row, and how many rows with that prompt came before."""
    seen: Counter[str] = Counter()
    keys = []
    for row in rows:
        prompt = json.dumps(row["prompt"], sort_keys=True, default=str)
        keys.append((prompt, seen[prompt]))
        seen[prompt] += 1
    return keys
