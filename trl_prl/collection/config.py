"""Settings of `trl-prl collect`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from trl_prl.jobs.config import JobConfig, option, refuse_unheeded, require
from trl_prl.steps.splitters import SPLITTER_HELP
from trl_prl.types import SamplingParams


if TYPE_CHECKING:
    from .monte_carlo import MonteCarloParams


@dataclass(frozen=True)
class CollectConfig(JobConfig):
    """What to collect, from whom, and where to.

    Every field is an option of `trl-prl collect` and a key of its YAML file. Defaults of the method are those of
    [PAV](https://huggingface.co/papers/2410.08146), section 4.2 and App. D (n_mc = 20).

    Raises:
        `ValueError`: When required fields are missing or fields contradict each other.
    """

    # How fast, where, and what is made of the rows afterwards.
    not_in_rows = JobConfig.not_in_rows | {"best_of_k", "price_per_million_tokens", "push_to_hub"}
    files_of_rows = (*JobConfig.files_of_rows, "seed_model")

    strategy: Literal["iid", "first_pit"] = option("iid", "'iid' or 'first_pit' (PAV, App. D)")
    n_cov: int = option(4, "seed rollouts per prompt")
    n_mc: int = option(20, "rollouts per prefix; with --adaptive, the most")
    n_branch: int = option(0, "further next steps from every prefix, as `trl-prl diagnose` needs them")
    adaptive: bool = option(False, "end the rollouts of a prefix once its value is settled")
    tolerance: float = option(0.02, "with --adaptive: standard deviation per rollout at which a value is settled")
    rule_confidence: float = option(0.5, "joint coverage of all looks of the adaptive rule")
    n_probe: int = option(4, "rollouts per probe of the first pit, and of the first round of --adaptive")
    unfinished: Literal["exclude", "wrong"] = option(
        "exclude", "'exclude' or 'wrong': what rollouts at the length limit are"
    )
    best_of_k: int = option(1, "make the values those of the Best-of-K prover; costs no rollouts")
    splitter: str = option("newline", f"where steps end, the same as in training: {SPLITTER_HELP}")
    step_length: int = option(256, "tokens per step of the splitter 'fixed'")
    seed_model: str | None = option(None, "path or Hub id of another model that draws the seeds")
    seed_temperature: float | None = option(None, "sampling temperature of the seeds, if it is not the prover's")
    price_per_million_tokens: float | None = option(None, "price of sampled tokens, for the cost estimate")
    push_to_hub: str | None = option(None, "Hub id of a dataset to push the result to")

    def __post_init__(self) -> None:
        require(self, "model", "dataset", "output_dir")
        super().__post_init__()
        if self.best_of_k < 1:
            raise ValueError(
                f"Got best_of_k={self.best_of_k}, but the best of no rollouts has no value. Use 1 or more; 1 is the "
                "prover itself."
            )
        low = {"n_cov": 1, "n_mc": 1, "n_probe": 1, "n_branch": 0, "seed_temperature": 0}
        for name, least in low.items():
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"Got {name}={value}, with which nothing can be sampled. Use {least} or more.")
        if not 0 < self.rule_confidence < 1:
            raise ValueError(
                f"Got rule_confidence={self.rule_confidence}, but the looks of the adaptive rule have some coverage, "
                "never all of it. Use a number in (0, 1), such as 0.5."
            )
        refuse_unheeded(self, ["tolerance", "rule_confidence"], "adaptive", unless=self.adaptive)
        refuse_unheeded(self, ["n_probe"], "strategy", unless=self.adaptive or self.strategy == "first_pit")
        refuse_unheeded(self, ["step_length"], "splitter", unless=self.splitter == "fixed")
        self.monte_carlo()
        self.seed_sampling()

    @property
    def loads_other_models(self) -> bool:
        """Whether another model draws the seeds."""
        return self.seed_model is not None

    def monte_carlo(self) -> MonteCarloParams:
        """How rollouts are spent."""
        # Here, so that `--help` answers without torch.
        from trl_prl.metrics.intervals import SequentialRule

        from .monte_carlo import MonteCarloParams

        n_mc: int | SequentialRule = self.n_mc
        if self.adaptive:
            n_mc = SequentialRule(
                self.tolerance, min(self.n_probe, self.n_mc), self.n_mc, self.rule_confidence, "wilson"
            )
        return MonteCarloParams(
            n_cov=self.n_cov,
            n_mc=n_mc,
            strategy=self.strategy,
            n_probe=self.n_probe,
            unfinished=self.unfinished,
            n_branch=self.n_branch,
        )

    def seed_sampling(self) -> SamplingParams | None:
        """How to sample the seeds; `None` for like the rollouts."""
        if self.seed_temperature is None:
            return None
        return replace(self.sampling(), temperature=self.seed_temperature)
