"""Step values by Monte-Carlo rollouts: what a process advantage verifier is trained on.

Source: [PAV](https://huggingface.co/papers/2410.08146), section 4.2 and App. D.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from trl_prl.generation.rollouts import Prefix, Problem, Roller, measure
from trl_prl.generation.tallies import Rollout, Spending, Tally, Unfinished
from trl_prl.metrics.intervals import SequentialRule
from trl_prl.steps.split import step_ends
from trl_prl.steps.token_pieces import TokenPieces
from trl_prl.types import Generator, OutcomeReward, SamplingParams, StepSplitter

from .branches import draw_branches, label_once
from .first_pit import Trace, best_probes, find_pits, is_wrong, measure_to_pits


Strategy = Literal["iid", "first_pit"]


@dataclass(frozen=True)
class MonteCarloParams:
    """How rollouts are spent.

    Source: [PAV](https://huggingface.co/papers/2410.08146), section 4.2 (n_cov, n_mc) and App. D (first pit).

    Args:
        n_cov (`int`, *optional*, defaults to `4`):
            Seed rollouts per prompt, for coverage.
        n_mc (`int` or [`SequentialRule`], *optional*, defaults to `20`):
            Rollouts per prefix, or the rule that ends them.
        strategy (`str`, *optional*, defaults to `"iid"`):
            `"iid"` measures every prefix of every seed. `"first_pit"` measures those of wrong seeds up to their first
            step without hope, and adds wrong rollouts from promising prefixes as seeds.
        n_probe (`int`, *optional*, defaults to `4`):
            Rollouts of each probe of the first pit.
        unfinished (`str`, *optional*, defaults to `"exclude"`):
            What rollouts are that reach the length limit: `"exclude"` leaves them out of the fraction, `"wrong"`
            counts them as wrong. They are counted apart in either case.
        n_branch (`int`, *optional*, defaults to `0`):
            Further next steps drawn from every prefix of every seed and measured: siblings of the seeds' own steps,
            which a diagnosis of provers needs. Only with `"iid"`.

    Raises:
        `ValueError`: When a number or a name is not one of these.
    """

    n_cov: int = 4
    n_mc: int | SequentialRule = 20
    strategy: Strategy = "iid"
    n_probe: int = 4
    unfinished: Unfinished = "exclude"
    n_branch: int = 0

    def __post_init__(self) -> None:
        if self.n_cov < 1 or self.n_probe < 1 or (isinstance(self.n_mc, int) and self.n_mc < 1):
            raise ValueError(
                f"Got n_cov={self.n_cov}, n_mc={self.n_mc} and n_probe={self.n_probe}, but without a rollout there is "
                "nothing to count. Use at least 1 of each."
            )
        if self.strategy not in ("iid", "first_pit") or self.unfinished not in ("exclude", "wrong"):
            raise ValueError(
                f"Got strategy={self.strategy!r} and unfinished={self.unfinished!r}, and not both are known. Use "
                "'iid' or 'first_pit', and 'exclude' or 'wrong'."
            )
        if self.n_branch < 0 or (self.n_branch and self.strategy != "iid"):
            raise ValueError(
                f"Got n_branch={self.n_branch} with strategy={self.strategy!r}. Siblings are compared with the seeds' "
                "steps, and first pit chooses its seeds by their outcome. Use n_branch >= 0, and 'iid' with it."
            )


def estimate_step_values(
    problems: Sequence[Problem],
    prover: Generator,
    reward: OutcomeReward,
    splitter: StepSplitter,
    token_pieces: TokenPieces,
    params: MonteCarloParams,
    sampling: SamplingParams,
    *,
    seed_generator: Generator | None = None,
    seed_sampling: SamplingParams | None = None,
    threshold: float = 0.5,
    confidence: float = 0.95,
    spending: Spending | None = None,
) -> list[dict[str, Any]]:
    """Draw seeds of problems and estimate the value of each of their steps.

    Seeds are cut into steps on their sampled ids. Prefixes with equal ids are one within a problem, and measured once;
    problems are told apart by their row, so equal prompts keep seeds and values of their own. A prefix that is a whole
    finished completion takes its outcome; any other is measured, also those of correct seeds. The same problems give
    the same rows.

    Args:
        problems (`Sequence[Problem]`):
            The problems.
        prover ([`Generator`]):
            Whose success probability is estimated.
        reward ([`OutcomeReward`]):
            Outcome reward; above `threshold` it is correct.
        splitter (`StepSplitter`), token_pieces ([`TokenPieces`]):
            Where steps end, and bytes of the tokens, of prover and seed generator alike.
        params ([`MonteCarloParams`]):
            How rollouts are spent.
        sampling ([`SamplingParams`]):
            How to sample; `max_tokens` is the limit of a whole completion. `n` is not read.
        seed_generator ([`Generator`], *optional*), seed_sampling ([`SamplingParams`], *optional*):
            Draws the seeds instead of the prover (the base policy, for instance), and how, if not like the rollouts.
        confidence (`float`, *optional*, defaults to `0.95`):
            Coverage of the Wilson intervals.
        spending ([`Spending`], *optional*):
            Where to add up what is drawn.

    Returns:
        `list[dict]`: One row per distinct seed and per distinct branch, as `docs/collection.md` describes it.
    """
    spending = spending or Spending()
    roller = Roller(problems, prover, reward, token_pieces, sampling, threshold, spending)
    seeds = seed_generator or prover, reward, token_pieces, seed_sampling or sampling, threshold, spending
    estimate = _Estimate(roller, Roller(problems, *seeds), splitter, params)
    # Rollouts of another prover from the same prefixes must not share the random numbers of the policy's own, or the
    # errors of their values would be correlated, which a covariance between them would count as signal.
    return estimate.rows("value" if seed_generator is None and seed_sampling is None else "prover", confidence)


class _Estimate:
    """Seeds, and what is known of the values of their prefixes."""

    def __init__(self, roller: Roller, seeder: Roller, splitter: StepSplitter, params: MonteCarloParams) -> None:
        self.roller, self.seeder, self.splitter, self.params = roller, seeder, splitter, params
        self.tallies: dict[Prefix, Tally] = {}

    def rows(self, label: str, confidence: float) -> list[dict[str, Any]]:
        """Draw, measure, and say what was found."""
        params, problems = self.params, range(len(self.roller.problems))
        drawn = self.seeder.draw([(i, ()) for i in problems], params.n_cov, "seed")
        traces = self._cut([(i, rollout) for i, rollouts in enumerate(drawn) for rollout in rollouts])
        _take_outcomes(traces, self.tallies)
        if params.strategy == "first_pit":
            traces += self._first_pit(traces)
        if params.n_branch:
            siblings = draw_branches(self.seeder, traces, params.n_branch, self._cut)
            _take_outcomes([trace for trace in siblings if trace.num_kept == len(trace.prefixes)], self.tallies)
            traces += siblings
        traces.sort(key=lambda trace: trace.problem)
        keys = [trace.key(h) for trace in traces for h in range(trace.num_kept + 1)]
        measure(self.roller, keys, self.tallies, params.n_mc, params.unfinished, label)
        rows = [_row(self.roller, trace, self.tallies, confidence) for trace in traces]
        return [row if row["branch_at"] is None else label_once(row) for row in rows]

    def _first_pit(self, traces: Sequence[Trace]) -> list[Trace]:
        """Find where wrong seeds lose hope, and return wrong rollouts from promising prefixes as further seeds."""
        params = self.params
        wrong = [trace for trace in traces if is_wrong(trace)]
        probes: dict[Prefix, list[Rollout]] = {}
        pits = find_pits(self.roller, wrong, params.n_probe, probes)
        branches = [(prefix[0], rollout) for prefix, found in best_probes(wrong, probes) for rollout in found]
        known = {(trace.problem, trace.rollout.ids) for trace in traces}
        added = [trace for trace in self._cut(branches) if (trace.problem, trace.rollout.ids) not in known]
        _take_outcomes(added, self.tallies)
        more_pits = find_pits(self.roller, added, params.n_probe, probes)
        pits.update((len(wrong) + k, pit) for k, pit in more_pits.items())
        measure_to_pits(self.roller, [*wrong, *added], pits, self.tallies, params.n_mc, params.unfinished)
        return added

    def _cut(self, rollouts: Sequence[tuple[int, Rollout]]) -> list[Trace]:
        """Cut rollouts into steps; equal ones of a problem are one trace."""
        counts = Counter((i, rollout.ids) for i, rollout in rollouts)
        distinct = list({(i, rollout.ids): (i, rollout) for i, rollout in rollouts}.values())
        ends = step_ends(self.splitter, self.roller.token_pieces, [rollout.ids for _, rollout in distinct])
        return [
            Trace(i, rollout, [rollout.ids[:end] for end in row_ends], len(row_ends), counts[i, rollout.ids])
            for (i, rollout), row_ends in zip(distinct, ends, strict=True)
        ]


def _take_outcomes(traces: Sequence[Trace], tallies: dict[Prefix, Tally]) -> None:
    """Whole finished completions have their outcome as value, and no value if it could not be checked."""
    for trace in traces:
        if trace.rollout.finished:
            failed = int(trace.rollout.correct is None)
            tallies[trace.problem, trace.rollout.ids] = Tally(num_failed=failed, outcome=trace.rollout.correct)


def _row(roller: Roller, trace: Trace, tallies: dict[Prefix, Tally], confidence: float) -> dict[str, Any]:
    problem = roller.problems[trace.problem]
    steps = [tallies[trace.key(h)] for h in range(1, trace.num_kept + 1)]
    intervals = [tally.interval(confidence) for tally in steps]
    initial = tallies[trace.problem, ()]
    starts = [0, *map(len, trace.prefixes)]
    texts = [roller.text(trace.rollout.ids[a:b]) for a, b in pairwise(starts)]
    return {
        "row": problem.row,
        "prompt": problem.prompt,
        "completions": texts[: trace.num_kept],
        "labels": [tally.value for tally in steps],
        "initial_value": initial.value,
        "num_rollouts": [tally.num_rollouts for tally in steps],
        "num_correct": [tally.num_correct for tally in steps],
        "interval_low": [low for low, _ in intervals],
        "interval_high": [high for _, high in intervals],
        "num_unfinished": [tally.num_unfinished for tally in steps],
        "num_failed": [tally.num_failed for tally in steps],
        "initial_num_rollouts": initial.num_rollouts,
        "initial_num_correct": initial.num_correct,
        "initial_interval_low": initial.interval(confidence)[0],
        "initial_interval_high": initial.interval(confidence)[1],
        "outcome": None if trace.rollout.correct is None else float(trace.rollout.correct),
        "finish_reason": trace.rollout.finish_reason,
        "num_seeds": trace.count,
        "branch_at": trace.branch_at,
        "rest": "".join(texts[trace.num_kept :]),
        "columns": dict(problem.columns),
    }
