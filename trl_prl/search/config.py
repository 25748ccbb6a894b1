"""Settings of `trl-prl search`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from trl_prl.jobs.config import JobConfig, option, refuse_unheeded, require
from trl_prl.steps.splitters import SPLITTER_HELP


if TYPE_CHECKING:
    from .step_search import SearchLimits


SAMPLE_METHODS = ("best_of_n", "majority_vote", "weighted_vote")
STEP_METHODS = ("beam", "dvts", "rejection")
# Options, and the methods that heed them.
_HEEDED_BY = {
    "process_reward advantage_reward alpha best_of_k rank_by initial_value": {*SAMPLE_METHODS, *STEP_METHODS}
    - {"majority_vote"},
    "aggregation aggregation_temperature": {"best_of_n", "weighted_vote"},
    "answer": {"majority_vote", "weighted_vote"},
    "max_steps max_generated_tokens max_seconds chunk_tokens ceiling save_trees": {*STEP_METHODS},
    "expansions": {"beam", "dvts"},
    "max_tries min_advantage": {"rejection"},
}


@dataclass(frozen=True)
class SearchConfig(JobConfig):
    """What to search, how, and with how much compute.

    Every field is an option of `trl-prl search` and a key of its YAML file. Defaults of the method are those of
    [PAV](https://huggingface.co/papers/2410.08146), section 4: 3 expansions, alpha 0.5.

    Raises:
        `ValueError`: When required fields are missing or fields contradict each other.
    """

    # How fast, where, and what is made of the rows afterwards.
    not_in_rows = JobConfig.not_in_rows | {"confidence", "plot"}
    files_of_rows = (*JobConfig.files_of_rows, "process_reward", "advantage_reward", "answer")

    method: Literal["best_of_n", "majority_vote", "weighted_vote", "beam", "dvts", "rejection"] = option(
        "beam", "how to search: over whole completions (the first three) or over steps"
    )
    n: list[int] = option([4, 8, 16], "samples, places of the beam, trees or chains: one point of the curve each")
    process_reward: str = option(
        "", "path or Hub id of a verifier or a public model, an address, or 'module:name'; gives Q"
    )
    advantage_reward: str = option("", "the same for A, if it is another one")
    alpha: float | None = option(None, "weight of A; by default 0.5 in searches over steps, 0 over whole completions")
    best_of_k: int = option(1, "A under the Best-of-K policy of whoever its values are of")
    rank_by: Literal["effective", "values", "advantages"] = option(
        "effective", "'effective' (Q + alpha A), 'values' (Q) or 'advantages' (A)"
    )
    initial_value: float | None = option(None, "value of every prompt, where the process reward has none")
    aggregation: Literal["last", "min", "mean", "product", "soft_min"] = option(
        "last", "how scores of steps become that of a completion, for best_of_n and votes"
    )
    aggregation_temperature: float = option(0.1, "of the aggregation 'soft_min'")
    answer: str = option(
        "",
        "'module:function' from a text to its final answer, for votes; by default as the reward 'accuracy' reads it",
    )
    expansions: int = option(3, "next steps sampled per place of a beam, or per tree")
    max_tries: int = option(4, "rejection: most samples of one step")
    min_advantage: float = option(-0.05, "rejection: least progress of a step that is kept at once")
    max_steps: int = option(64, "most steps of a completion")
    max_generated_tokens: int | None = option(None, "tokens sampled for one problem from which on no step is begun")
    max_seconds: float | None = option(
        None, "time of a unit at one n from which on no step is begun; results then depend on it"
    )
    splitter: str = option("newline", f"where steps end, the same as in the verifier's training: {SPLITTER_HELP}")
    step_length: int = option(256, "tokens per step of the splitter 'fixed'")
    chunk_tokens: int = option(64, "tokens to sample between two looks, for splitters without a delimiter")
    ceiling: bool = option(True, "searches over steps: also draw n plain samples per problem, for pass@n")
    save_trees: int = option(0, "keep the search trees of the first problems")
    plot: Literal["png", "svg", "none"] = option("png", "format of the figure, or 'none'")

    def __post_init__(self) -> None:
        require(self, "model", "dataset", "output_dir")
        super().__post_init__()
        if (
            self.method not in (*SAMPLE_METHODS, *STEP_METHODS)
            or not self.n
            or min(self.n) < 1
            or len(set(self.n)) < len(self.n)
        ):
            raise ValueError(
                f"Got method={self.method!r} and n={self.n}. Use one of "
                f"{', '.join((*SAMPLE_METHODS, *STEP_METHODS))}, and different whole numbers from 1 on."
            )
        if self.method != "majority_vote" and not self.process_reward:
            raise ValueError(
                f"Got method={self.method!r} without a process reward, so nothing can be scored. Give "
                "--process_reward, or use --method majority_vote."
            )
        self._check_heeded()
        self.limits()

    def _check_heeded(self) -> None:
        """Refuse options that nothing would heed next to others."""
        for names, methods in _HEEDED_BY.items():
            refuse_unheeded(self, names.split(), "method", unless=self.method in methods)
        refuse_unheeded(self, ["step_length"], "splitter", unless=self.splitter == "fixed")
        refuse_unheeded(self, ["aggregation_temperature"], "aggregation", unless=self.aggregation == "soft_min")
        refuse_unheeded(self, ["alpha"], "rank_by", unless=self.rank_by == "effective")
        # Rejection compares the progress of steps under the process reward, whatever ranks them.
        of_prover = ["advantage_reward"] if self.method == "rejection" else ["advantage_reward", "best_of_k"]
        refuse_unheeded(self, of_prover, "rank_by", unless=self.rank_by != "values")
        refuse_unheeded(self, of_prover, "alpha", unless=self.rank_by != "effective" or self.effective_alpha > 0)

    @property
    def over_steps(self) -> bool:
        """Whether the method searches over steps, not over whole completions."""
        return self.method in STEP_METHODS

    @property
    def effective_alpha(self) -> float:
        """Weight of A."""
        return self.alpha if self.alpha is not None else 0.5 if self.over_steps else 0.0

    def limits(self) -> SearchLimits:
        """Where a search over steps ends."""
        # Here, so that `--help` answers without torch.
        from .step_search import SearchLimits

        return SearchLimits(self.max_steps, self.max_generated_tokens, self.max_seconds)
