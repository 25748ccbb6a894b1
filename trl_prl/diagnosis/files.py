"""Files of collected values that are diagnosed together: whether they may be, and what to know about the result."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trl_prl.storage.row_sources import open_rows

from .diagnosis import DiagnosisParams, diagnose
from .moments import Candidate
from .states import Coverage, ProblemValues, read_problems, sampled_states
from .words import describe


# Below these, what is estimated is worth a word of caution, or of no use.
FEW_PROBLEMS = 20
LEAST_COVERAGE = 0.9
LEAST_MATCH = 0.9


def diagnose_files(paths: Sequence[Path], ks: Sequence[int], params: DiagnosisParams) -> dict[str, Any]:
    """Read collections, join them and diagnose.

    Args:
        paths (`Sequence[Path]`):
            The base policy's file or folder, then those of other provers.
        ks (`Sequence[int]`):
            K of the Best-of-K provers; each prover is tried with each.
        params ([`DiagnosisParams`]):
            How they are compared.

    Returns:
        `dict`: The JSON object, `"kind": "diagnosis"`.

    Raises:
        `ValueError`: When files cannot be diagnosed or do not belong together.
    """
    loaded = [load_values(path) for path in paths]
    files, settings = [file for file, _ in loaded], [setting for _, setting in loaded]
    check_settings(paths, settings)
    full = [s["model"] if not s.get("adapter") else f"{s['model']} with {s['adapter']}" for s in settings]
    names = ["base", *short_names(full[1:], paths[1:])]
    candidates: list[Candidate] = []
    left_out: list[Candidate] = []
    for k in sorted(set(ks)):
        for position, setting in enumerate(settings):
            fits = k >= 1 and 2 * k <= setting["n_mc"]
            (candidates if fits else left_out).append(Candidate(position, k))
    states, coverage = sampled_states(files, candidates)
    if coverage.num_unmatched > (1 - LEAST_MATCH) * coverage.num_draws:
        raise ValueError(
            f"{coverage.num_unmatched} of {coverage.num_draws} next steps in {paths[0]} are not in every other file, "
            "so they are not on the same prefixes. Collect the other provers with the same prompts, --seed, sampling "
            "options and splitter, and with --seed_model naming the base policy."
        )
    success = {row: value for row, problem in files[0].items() if (value := _success(problem)) is not None}
    result = diagnose([s for s in states if s.problem in success], success, names, candidates, params)
    result = {
        "kind": "diagnosis",
        "base": full[0],
        "provers": dict(zip(names, full, strict=True)),
        "files": [str(path) for path in paths],
        "coverage": vars(coverage),
        "warnings": warn(result, coverage, left_out, settings[0]["n_branch"]),
        **result,
    }
    return {**result, "words": describe(result)}


def short_names(names: Sequence[str], paths: Sequence[Path]) -> list[str]:
    """The last part of each path or Hub id, with the file where that is not enough to tell them apart."""
    short = [" with ".join(part.rstrip("/").rsplit("/", 1)[-1] for part in name.split(" with ")) for name in names]
    return [f"{name} ({path})" if short.count(name) > 1 else name for name, path in zip(short, paths, strict=True)]


def load_values(path: Path) -> tuple[dict[int, ProblemValues], dict[str, Any]]:
    """Read one collection.

    Args:
        path (`Path`):
            Parquet file, or the folder of a finished job.

    Returns:
        `tuple`: Its problems, and the settings it was collected with.

    Raises:
        `ValueError`: If it is no finished collection.
    """
    file = path / "data" / "train.parquet" if path.is_dir() else path
    if file.suffix != ".parquet" or not file.exists():
        raise ValueError(
            f"{path} holds no collected values: {file} is missing or no Parquet file. Give the folder of a finished "
            "`trl-prl collect`, or its .parquet file."
        )
    rows = open_rows(file)
    settings = (rows.stored_schema.metadata or {}).get(b"trl_prl")
    if settings is None:
        raise ValueError(
            f"{file} does not say how its values were collected, so it is not known whose they are. Give a file that "
            "`trl-prl collect` wrote."
        )
    return read_problems(rows, file), json.loads(settings)


def check_settings(paths: Sequence[Path], settings: Sequence[Mapping[str, Any]]) -> None:
    """Refuse collections whose rollouts say nothing unbiased about siblings, or that do not belong together.

    Raises:
        `ValueError`: With what to collect instead.
    """
    for path, setting in zip(paths, settings, strict=True):
        if setting["strategy"] != "iid" or setting["adaptive"]:
            raise ValueError(
                f"{path} was collected with strategy {setting['strategy']!r} and adaptive={setting['adaptive']}: "
                "what was drawn depends on what came out: variances from it would be biased. Collect with --strategy "
                "iid and a fixed --n_mc."
            )
        if setting["fingerprint"] != settings[0]["fingerprint"] or setting["splitter"] != settings[0]["splitter"]:
            raise ValueError(
                f"{path} has other prompts or another splitter than {paths[0]}, so its prefixes are others. Collect "
                "both from the same prompts with the same splitter."
            )
    if settings[0].get("seed_model") not in (None, settings[0]["model"]) or (
        settings[0].get("seed_model") and settings[0].get("adapter")
    ):
        raise ValueError(
            f"{paths[0]} has values of {settings[0]['model']} on seeds of {settings[0]['seed_model']}, but the "
            "first file must have the base policy's own values. Collect the base policy without --seed_model, and "
            "give it first."
        )
    if settings[0].get("seed_temperature") not in (None, settings[0]["temperature"]):
        raise ValueError(
            f"{paths[0]} has values at temperature {settings[0]['temperature']} on seeds at temperature "
            f"{settings[0]['seed_temperature']}, but the first file must have the base policy's own values. Collect "
            "the base policy without --seed_temperature, and give it first."
        )


def _success(problem: ProblemValues) -> float | None:
    total, correct = problem.counts[(), False]
    return correct / total if total else None


def warn(result: Mapping[str, Any], coverage: Coverage, left_out: Sequence[Candidate], n_branch: int = 0) -> list[str]:
    """What a reader should know before trusting the numbers."""
    warnings = []
    more = "Raise --max_completion_length or --n_mc" if n_branch else "Collect with --n_branch 1"
    share = coverage.num_used / max(coverage.num_visits, 1)
    if share < LEAST_COVERAGE:
        warnings.append(
            f"Only {share:.0%} of the visited states have two measured next steps; the numbers are about those, "
            f"mostly the first steps. {more} to have them all."
        )
    if result["num_problems"] < FEW_PROBLEMS:
        warnings.append(f"{result['num_problems']} problems are few: bootstrap intervals are too narrow then.")
    elif result["effective_problems"] < FEW_PROBLEMS:
        warnings.append(
            f"The estimates rest on about {result['effective_problems']:.0f} of {result['num_problems']} problems, as "
            "the policy's values hardly vary on the others: intervals are too narrow then. Collect more problems, "
            "or easier ones."
        )
    for number, why in (
        (coverage.num_unmatched, "are not in every other file"),
        (coverage.num_unmeasured, "have too few counted rollouts"),
    ):
        if number:
            warnings.append(f"{number} of {coverage.num_draws} next steps {why} and are left out.")
    if left_out:
        ks = ", ".join(str(k) for k in sorted({candidate.k for candidate in left_out}))
        warnings.append(f"K = {ks} left out for some prover: it needs n_mc of at least 2 K (and K >= 1).")
    return warnings
