"""Curves for the report: the metrics of training runs, and what is healthy."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

from .limits import MAX_CURVE_POINTS, evenly
from .run_files import RecordedRun


# Title and meaning of the metrics that are shown first, in this order. The others follow under their own names.
METRIC_INFO: dict[str, tuple[str, str]] = {
    "reward": ("Outcome reward", "mean over completions"),
    "process/reward/mean": ("Process reward per step", "progress for PAV, process part of the advantage for PRL"),
    "process/reward/std": ("Spread of the process reward", "well above 0, else steps are not told apart"),
    "process/advantage_share": ("Process share of the advantages", "near 1 the outcome is drowned"),
    "process/outcome_correlation": ("Process reward against outcome", "correlation; a fall is a sign of gaming"),
    "process/kl_to_go": ("KL-to-go", "nats to the reference, grows slowly"),
    "kl": ("KL to the reference", "k3 estimate, grows slowly"),
    "process/steps_per_completion": ("Steps per completion", "above 1, else there is nothing to credit"),
    "process/tokens_per_step": ("Tokens per step", "tens to hundreds for text"),
    "process/reward/frac_zero": ("Steps with a process reward of 0", "below 0.9"),
    "process/unscorable_frac": ("Steps without a score", "near 0"),
    "process/repeated_steps": ("Steps that repeat an earlier one", "share; a rise is a sign of gaming"),
    "process/calibration/brier": (
        "Brier score on fresh rollouts",
        "of the process reward; a rise is a sign of gaming",
    ),
    "process/alpha": ("Weight of the progress", "alpha in force"),
    "completions/mean_length": ("Tokens per completion", "mean"),
    "completions/clipped_ratio": ("Completions cut at the limit", "share"),
    "frac_reward_zero_std": ("Groups without a spread in reward", "share; they teach nothing about the outcome"),
    "entropy": ("Entropy", "nats per token"),
    "loss": ("Loss", ""),
    "grad_norm": ("Gradient norm", ""),
    "learning_rate": ("Learning rate", ""),
}
# What is healthy, where a number says it: drawn as a band behind the curve. docs/prl_trainer.md and
# docs/pav_trainer.md have the reasons.
HEALTHY: dict[str, tuple[float | None, float | None]] = {
    "process/advantage_share": (None, 0.7),
    "process/reward/frac_zero": (0.0, 0.9),
    "process/unscorable_frac": (0.0, 0.05),
    "process/steps_per_completion": (1.0, None),
    "process/calibration/ece": (0.0, 0.1),
    "process/calibration/auroc": (0.5, 1.0),
}
NOT_CURVES = {"epoch", "step"}


def curves(run: RecordedRun) -> dict[str, dict[str, list[list[float]]]]:
    """Curves of a run by split and metric, each as optimizer steps and values, without what is not finite.

    Of a very long run, evenly spaced points are taken.
    """
    found: dict[str, dict[str, dict[int, float]]] = {"train": defaultdict(dict), "eval": defaultdict(dict)}
    for row in run.metrics:
        values = row.get("metrics")
        if not isinstance(values, Mapping) or row.get("split") not in found:
            continue
        for name, value in values.items():
            if isinstance(value, int | float) and math.isfinite(value) and name not in NOT_CURVES:
                found[row["split"]][name][row["optimizer_step"]] = value
    return {
        split: {
            name: [steps, [points[step] for step in steps]]
            for name, points in metrics.items()
            if not name.startswith(("train_", "total_flos")) and (steps := evenly(sorted(points), MAX_CURVE_POINTS))
        }
        for split, metrics in found.items()
    }
