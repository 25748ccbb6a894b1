"""Gathers what a report shows from folders and files of any mix of results."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from trl_prl.storage.row_values import json_value

from .curves import HEALTHY, METRIC_INFO, curves
from .files import (
    as_text,
    diagnosis_result,
    evaluation_result,
    mapping,
    other_result,
    read_json_rows,
    read_parquet_rows,
    search_points,
    search_problem,
    verifier_result,
)
from .headlines import headlines, named_lines
from .limits import evenly, evenly_by_rollout, fit, json_bytes
from .run_files import FOLDER, MANIFEST, RecordedRun, is_inside, is_run, unreadable_manifest
from .runs import find_runs, group_runs, load_run, prompt_numbers, run_completions, run_labels
from .solutions import evaluated_samples, solution


ROW_FILES = (".jsonl", ".jsonl.gz", ".parquet")
# What searches that belong to one line may differ in.
BESIDE_SEARCH = {"n", "save_trees", "problems_per_unit"}
# Of a file of solutions or searches, no more rows than this are read.
MAX_FILE_ROWS = 200_000
# JSON files in a folder that are larger are no results of this package.
MAX_JSON_BYTES = 64_000_000
MAX_OTHERS = 200


@dataclass
class ReportData:
    """What a report shows, as JSON values.

    Args:
        max_completions (`int`, *optional*, defaults to `5000`):
            Completions and searched problems to show; of more, evenly spaced ones are taken from each source.
        max_bytes (`int`, *optional*, defaults to `32000000`):
            Bytes of completions and searches to show; beyond, fewer are taken.
    """

    max_completions: int = 5000
    max_bytes: int = 32_000_000
    sources: list[dict[str, Any]] = field(default_factory=list)
    recorded: list[tuple[RecordedRun, int]] = field(default_factory=list)
    solutions: list[tuple[int, list[dict[str, Any]]]] = field(default_factory=list)
    searches: list[dict[str, Any]] = field(default_factory=list)
    verifiers: list[dict[str, Any]] = field(default_factory=list)
    diagnoses: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    others: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    # ---- reading ----

    def add(self, path: Path) -> None:
        """Read a file, or everything in a folder that is known.

        Raises:
            `ValueError`: if there is nothing a report could show.
        """
        before = len(self.sources)
        if path.is_dir():
            self._add_folder(path)
        else:
            self._add_file(path, asked_for=True)
        if len(self.sources) == before:
            raise ValueError(
                f"{path} holds nothing a report can show. Pass the `output_dir` of a training run, or what the "
                "commands `quickstart`, `search`, `evaluate`, `evaluate-verifier`, `diagnose`, `collect` or `score` "
                "of trl-prl wrote."
            )

    def _add_folder(self, folder: Path) -> None:
        runs = find_runs(folder)
        for run in runs:
            self._add_run(run)
        inside = {run / name for run in runs for name in (FOLDER, "completions")}
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        for path in files:
            hidden = any(part.startswith((".", "checkpoint-")) or part == "shards" for part in path.parts)
            if hidden or inside & set(path.parents):
                continue
            if is_inside(path, folder):
                self._add_file(path, asked_for=False)
            else:
                self.warnings.append(f"{path} is a link to a file elsewhere and is left out.")

    def _source(self, path: Path, kind: str, note: str = "") -> int:
        self.sources.append({"label": str(path), "kind": kind, "note": note})
        return len(self.sources) - 1

    def _add_run(self, folder: Path) -> None:
        run = load_run(folder)
        kind = "training run" if run.manifest.get("format") else "training run, from a checkpoint's log"
        notes = [f"{len(run.metrics)} log entries", f"{len(run.completions)} completions"]
        if run.num_superseded:
            notes.append(f"{run.num_superseded} rows left out that a resumed run did again")
        if not run.manifest and is_run(folder):
            self.warnings.append(f"{unreadable_manifest(folder / FOLDER / MANIFEST)} The rest of the run is shown.")
        if run.num_unreadable:
            notes.append(f"{run.num_unreadable} unreadable lines")
            self.warnings.append(f"{folder}: {run.num_unreadable} unreadable lines were passed over.")
        if not run.metrics and not run.completions:
            self.warnings.append(f"{folder}: the run has logged nothing yet, so there is nothing of it to show.")
        self.recorded.append((run, self._source(folder, kind, ", ".join(notes))))

    def _add_file(self, path: Path, asked_for: bool) -> None:
        try:
            if path.suffix == ".json" and not asked_for and path.stat().st_size > MAX_JSON_BYTES:
                self.warnings.append(f"{path} is larger than any result of this package and is left out.")
            elif path.suffix == ".json":
                self._add_json(path, json.loads(path.read_text(encoding="utf-8")), asked_for)
            elif path.name.endswith(ROW_FILES):
                rows = read_parquet_rows(path) if path.suffix == ".parquet" else read_json_rows(path)
                self._add_rows(path, islice(rows, MAX_FILE_ROWS), asked_for)
        except (ValueError, RecursionError) as error:
            if asked_for:
                raise ValueError(
                    f"{path} cannot be read as results: {error}. Pass a file that a command of this package wrote."
                ) from error
            self.warnings.append(f"{path} cannot be read and is left out: {error}.")

    def _add_json(self, path: Path, data: Any, asked_for: bool) -> None:
        kind = mapping(data).get("kind")
        readers: dict[str, tuple[list[dict[str, Any]], Callable[[Mapping[str, Any], str], dict[str, Any]], str]] = {
            "evaluation": (self.evaluations, evaluation_result, "evaluation"),
            "verifier_evaluation": (self.verifiers, verifier_result, "evaluation of a verifier"),
            "diagnosis": (self.diagnoses, diagnosis_result, "diagnosis of provers"),
        }
        if kind in readers:
            results, reader, name = readers[kind]
            # Its own file has one name in every folder; one that was named by hand says more than its folder.
            named_by_kind = path.stem in (kind, "diagnosis")
            results.append(reader(data, path.resolve().parent.name if named_by_kind else path.stem))
            self._source(path, name)
            self._add_beside(path, data, asked_for)
        elif kind == "search":
            self._add_search(path, data)
            self._add_beside(path, data, asked_for)
        elif (kind is not None or asked_for) and len(self.others) < MAX_OTHERS:
            self.others.append(other_result(data, str(path)))
            self._source(path, f"results of kind {kind}" if kind else "JSON")

    def _add_search(self, path: Path, data: Mapping[str, Any]) -> None:
        """The summary of a search; its problems are in a file beside it."""
        points = search_points(data, path.parent.name)
        settings = {k: v for k, v in mapping(data.get("settings")).items() if k not in BESIDE_SEARCH}
        setting = json.dumps(settings, sort_keys=True, default=str)
        label = path.parent.name
        self.searches.append({"label": label, "problems": [], "points": points, "setting": setting})
        sizes = ", ".join(str(n) for n in dict.fromkeys(point["n"] for point in points))
        self._source(path, "search", f"accuracy against compute, n = {sizes}" if points else "no accuracy")

    def _add_beside(self, path: Path, data: Mapping[str, Any], asked_for: bool) -> None:
        """Read the rows that belong to a summary, where the summary alone was passed."""
        name = str(data.get("problems_file", data.get("solutions_file", "")))
        rows = path.parent / name
        if not asked_for or not name:
            return
        # A file that somebody sent must not bring other files of this machine onto the page.
        if Path(name).name != name or not is_inside(rows, path.parent):
            self.warnings.append(f"{path} names {name!r} as its rows, which is no file beside it and is left out.")
        elif rows.is_file():
            self._add_file(rows, asked_for=False)

    def _add_rows(self, path: Path, rows: Iterable[Mapping[str, Any]], asked_for: bool) -> None:
        iterator = iter(rows)
        first = next(iterator, None)
        if first is None:
            return
        everything = chain([first], iterator)
        if "candidates" in first:
            problems = [search_problem(row) for row in everything]
            label = path.parent.name if path.stem == "problems" else path.stem
            self.searches.append({"label": label, "problems": problems, "points": []})
            self._source(path, "search", f"{len(problems)} problems")
        elif "samples" in first or solution(first, 0, 0) is not None:
            found = [dict(row) for row in everything]
            kind, rows_are = "solutions with step values", "solutions"
            if "samples" in first:
                kind, rows_are = "evaluated samples", "problems"
            self.solutions.append((self._source(path, kind, f"{len(found)} {rows_are}"), found))
        elif asked_for:
            self.others.append(other_result([dict(row) for row in islice(everything, 50)], str(path)))
            self._source(path, "rows", "the first 50 rows as they are")

    # ---- putting together ----

    def payload(self) -> dict[str, Any]:
        """Everything as the page's script wants it, as JSON values."""
        runs = [run for run, _ in self.recorded]
        groups, self.searches = group_runs(runs), named_lines(self.searches)
        shown = sum(len(search["problems"]) for search in self.searches)
        searches = self._fit("searched problems", self._searches, shown, self.max_bytes // 2)
        total = sum(len(run.completions) for run, _ in self.recorded)
        total += sum(num_solutions(rows) for _, rows in self.solutions)
        room = self.max_bytes - json_bytes(searches)
        completions, prompts = self._fit("completions", self._completions, total, room)
        self._check_content(completions)
        payload = {
            "sources": self.sources,
            "warnings": self.warnings,
            "headlines": headlines(groups, runs, self.evaluations, self.searches),
            "groups": groups,
            "runs": [
                {"label": label, "seed": run.manifest.get("seed"), "metrics": curves(run), "warnings": run.warnings}
                for label, run in zip(run_labels(groups, runs), runs, strict=True)
            ],
            "metricInfo": METRIC_INFO,
            "healthy": HEALTHY,
            "prompts": prompts,
            "completions": completions,
            "searches": searches,
            "verifiers": self.verifiers,
            "diagnoses": self.diagnoses,
            "evaluations": self.evaluations,
            "others": self.others,
        }
        cleaned: dict[str, Any] = json_value(payload)
        return cleaned

    def _check_content(self, completions: list[dict[str, Any]]) -> None:
        """Refuse to make a page of nothing, such as of a run that has logged nothing yet."""
        shown = [*(run.metrics for run, _ in self.recorded), completions]
        shown += [self.searches, self.verifiers, self.diagnoses, self.evaluations, self.others]
        if not any(shown):
            raise ValueError(
                f"{', '.join(source['label'] for source in self.sources)}: what was read has no log entry, no "
                "completion and no result, so there is nothing to show. Wait for the first log entry of the training "
                "(`logging_steps`), or pass results of the other commands."
            )

    def _fit(self, what: str, build: Callable[[int], Any], total: int, max_bytes: int) -> Any:
        """Take as many rows as asked for and as the page has room for, and say what is left out."""
        made, limit = fit(build, min(self.max_completions, max(total, 1)), max_bytes)
        if limit < total:
            option = "--max_completions" if limit == self.max_completions else "--max_megabytes"
            self.warnings.append(
                f"About {limit:,} of {total:,} {what} are shown, evenly spaced over each source; {option} changes "
                "that."
            )
        return made

    def _searches(self, limit: int) -> list[dict[str, Any]]:
        total = sum(len(search["problems"]) for search in self.searches)
        return [
            search | {"problems": evenly(search["problems"], share(len(search["problems"]), total, limit))}
            for search in self.searches
        ]

    def _completions(self, limit: int) -> tuple[list[dict[str, Any]], list[str]]:
        total = sum(len(run.completions) for run, _ in self.recorded)
        total += sum(num_solutions(rows) for _, rows in self.solutions)
        prompts: dict[str, int] = {}
        completions: list[dict[str, Any]] = []
        for index, (run, source) in enumerate(self.recorded):
            kept = evenly_by_rollout(run.completions, share(len(run.completions), total, limit))
            prompt_numbers((str(row.get("prompt", "")) for row in kept), prompts)
            trimmed = RecordedRun(run.folder, run.manifest, completions=kept)
            completions += run_completions(trimmed, index, source, prompts)
        for source, rows in self.solutions:
            for row in evenly(rows, share(len(rows), total, limit)):
                text = as_text(row.get("prompt"))
                number = prompt_numbers([text], prompts)[text]
                if "samples" in row:
                    completions += evaluated_samples(row, number, source)
                elif (found := solution(row, number, source)) is not None:
                    completions.append(found)
        return completions, list(prompts)


def share(count: int, total: int, limit: int) -> int:
    """Rows to take of a source with `count` of the `total` rows, so that all take at most about `limit`."""
    return count if total <= limit else max(1, count * limit // total)


def num_solutions(rows: Sequence[Mapping[str, Any]]) -> int:
    """Completions in rows of one each, or of several samples."""
    return sum(len(row["samples"]) if isinstance(row.get("samples"), list) else 1 for row in rows)
