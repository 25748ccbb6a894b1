"""Settings of `trl-prl evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from trl_prl.jobs.config import JobConfig, option, refuse_unheeded, require
from trl_prl.metrics.aggregation import Aggregation


if TYPE_CHECKING:
    from .summary import SummaryParams

# What is read where samples are drawn alone, and where they are read from a file alone.
_OF_MODELS = (
    "dataset", "dataset_config", "dataset_split", "n", "max_completion_length", "temperature", "top_p", "top_k",
    "stop", "generator", "endpoints", "api_key", "send_text", "adapter", "tokenizer", "load_in_4bit",
    "trust_remote_code",
)  # fmt: skip
_OF_SAMPLES = ("recheck", "answer_field", "id_column", "score_fields")


@dataclass(frozen=True)
class EvaluateConfig(JobConfig):
    """What to evaluate, on what, and how.

    Every field is an option of `trl-prl evaluate` and a key of its YAML file.

    Raises:
        `ValueError`: When required fields are missing or fields contradict each other.
    """

    # How fast, where, whose samples (each model has a job of its own), and what is computed from the samples.
    not_in_rows = JobConfig.not_in_rows | {
        "models", "samples", "k", "bootstrap_pass_at_k", "bootstrap_draws", "aggregations", "group_by", "confidence",
        "num_checkers", "plot",
    }  # fmt: skip
    files_of_rows = (*JobConfig.files_of_rows, "verifiers")

    models: list[str] = option([], "several models side by side, each as PATH or NAME=PATH; instead of --model")
    samples: list[str] = option(
        [], "files of samples that are there already, each as FILE or NAME=FILE; instead of models and --dataset"
    )
    n: int = option(8, "samples per problem")
    k: list[int] = option([], "k of pass@k, maj@k and best@k; the powers of two up to n by default")
    bootstrap_pass_at_k: bool = option(False, "also give the bootstrap variant of pass@k (FRPO), under its own name")
    bootstrap_draws: int = option(1000, "draws of the bootstrap variant of pass@k")
    unfinished: Literal["wrong", "exclude", "check"] = option(
        "wrong", "what samples at the length limit are: wrong, not counted, or checked like the others"
    )
    answer_pattern: str | None = option(
        None,
        "regular expression of an answer, for votes; by default the final answer, as the reward 'accuracy' reads it",
    )
    verifiers: list[str] = option([], "verifiers for best-of-n, each as PATH or NAME=PATH")
    aggregations: list[str] = option(["last", "min", "mean"], "how step values become the score of a sample")
    group_by: list[str] = option([], "columns to report by, such as a difficulty and a source")
    recheck: bool = option(False, "with --samples: check samples that the file says are right or wrong")
    answer_field: str = option("pred", "with --samples: field of a sample with its answer, where there is one")
    id_column: str | None = option(
        None,
        "with --samples: column that says which rows are samples of one problem; by default those of equal prompts",
    )
    score_fields: list[str] = option(
        [], "with --samples: fields of a sample with scores, for best-of-n; `a.b` is field b of field a"
    )
    num_checkers: int = option(1, "processes that check answers at a time")
    plot: Literal["png", "svg", "none"] = option("png", "format of the figure, or 'none'")

    def __post_init__(self) -> None:
        require(self, "output_dir")
        super().__post_init__()
        given = [name for name in ("model", "models", "samples") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                f"Got {' and '.join(given) or 'no samples'}, so it is open what to evaluate. Give one of --model, "
                "--models and --samples."
            )
        if not self.samples:
            require(self, "dataset")
        self._check_heeded()
        names = [name for name, _ in self.sources()]
        for named in (names, [name for name, _ in self.verifier_paths()]):
            if len(set(named)) < len(named):
                raise ValueError(
                    f"Got the names {', '.join(named)}, and results of equal names cannot be told apart. Name each, "
                    "as NAME=PATH."
                )
        unknown = sorted({*self.aggregations} - {*get_args(Aggregation)})
        if unknown or self.n < 1 or any(k < 1 for k in self.k) or min(self.num_checkers, self.bootstrap_draws) < 1:
            raise ValueError(
                f"Got n={self.n}, k={self.k}, num_checkers={self.num_checkers}, "
                f"bootstrap_draws={self.bootstrap_draws} and aggregations={self.aggregations}. Use whole numbers from "
                f"1 on, and aggregations among {', '.join(get_args(Aggregation))}."
            )
        if not self.samples and any(k > self.n for k in self.k):
            raise ValueError(
                f"Got k={self.k} with n={self.n}: pass@k averages over subsets of k among n samples. Raise n, to "
                "several times the largest k for a good estimate, or lower k."
            )

    def _check_heeded(self) -> None:
        """Refuse options that nothing would heed next to others."""
        refuse_unheeded(self, _OF_MODELS, "samples", unless=not self.samples)
        refuse_unheeded(self, _OF_SAMPLES, "samples", unless=bool(self.samples))
        refuse_unheeded(self, ["answer_field"], "answer_pattern", unless=self.answer_pattern is None)
        runs_models = bool(self.verifiers or not self.samples)
        refuse_unheeded(self, ["dtype", "max_batch_tokens"], "verifiers", unless=runs_models)
        # Given samples may bring scores.
        refuse_unheeded(self, ["aggregations"], "verifiers", unless=bool(self.samples or self.verifiers))
        refuse_unheeded(self, ["bootstrap_draws"], "bootstrap_pass_at_k", unless=self.bootstrap_pass_at_k)
        if len(self.models) > 1 and (self.adapter or self.generator == "vllm-server"):
            given = f"adapter={self.adapter!r}" if self.adapter else "generator='vllm-server'"
            raise ValueError(
                f"Got {given} with {len(self.models)} models, which would be that of each of them, so that their "
                "results are of one. Evaluate one model at a time, or give merged weights without --adapter."
            )

    @property
    def loads_other_models(self) -> bool:
        """Whether verifiers score the samples."""
        return bool(self.verifiers)

    def sources(self) -> list[tuple[str, str]]:
        """Name and path of each model, or of each file of samples."""
        return [_named(entry) for entry in self.samples or self.models or [self.model]]

    def verifier_paths(self) -> list[tuple[str, str]]:
        """Name and path of each verifier."""
        return [_named(entry) for entry in self.verifiers]

    def summary(self, most_samples: int) -> SummaryParams:
        """What to estimate.

        Args:
            most_samples (`int`):
                Largest number of samples of a problem.

        Returns:
            [`SummaryParams`]: The parameters, with the powers of two up to `most_samples` where no `k` are given.
        """
        # Here, so that `--help` answers at once.
        from .summary import SummaryParams

        powers = tuple(2**i for i in range(most_samples.bit_length()) if 2**i <= most_samples)
        return SummaryParams(
            k=tuple(sorted(set(self.k or (*powers, most_samples)))),
            aggregations=tuple(self.aggregations),  # type: ignore[arg-type]
            group_by=tuple(self.group_by),
            bootstrap_pass_at_k=self.bootstrap_pass_at_k,
            num_draws=self.bootstrap_draws,
            confidence=self.confidence,
            seed=self.seed,
        )


def _named(entry: str) -> tuple[str, str]:
    name, separator, path = entry.partition("=")
    # A comma comes before the options of a process reward.
    if separator and name and not {"/", ","} & set(name):
        return name, path
    return Path(entry).name.split(".jsonl")[0].removesuffix(".parquet") or entry, entry
