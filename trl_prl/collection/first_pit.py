"""First pit: where wrong solutions lose their last chance.

Source: [PAV](https://huggingface.co/papers/2410.08146), App. D. Values after the first step without hope are zero and
teach nothing more, so rollouts are spent on the prefixes up to and including it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trl_prl.generation.rollouts import Prefix, Roller, measure
from trl_prl.generation.tallies import Rollout, Tally, Unfinished
from trl_prl.metrics.intervals import SequentialRule


# Fraction of correct probes from which a prefix is promising.
PROMISING = 0.5


@dataclass
class Trace:
    """A seed rollout, cut into steps.

    Attributes:
        problem (`int`):
            Position of its problem in the list at hand.
        rollout ([`Rollout`]):
            The seed.
        prefixes (`list[tuple[int, ...]]`):
            Ids up to and including each step; the last one is the whole completion.
        num_kept (`int`):
            Steps whose values are measured: all of them, or those up to the pit.
        count (`int`):
            How many seeds of the problem had exactly these ids.
        branch_at (`int`, *optional*):
            For a next step that was drawn from a seed's prefix: the number of steps of that prefix.
    """

    problem: int
    rollout: Rollout
    prefixes: list[tuple[int, ...]]
    num_kept: int
    count: int = 1
    branch_at: int | None = None

    def key(self, num_steps: int) -> Prefix:
        """The prefix of so many steps; none is the prompt."""
        return self.problem, self.prefixes[num_steps - 1] if num_steps else ()


def is_wrong(trace: Trace) -> bool:
    """Whether a seed has a pit: it finished, was checked, and is wrong."""
    return trace.rollout.correct is False and bool(trace.prefixes)


def find_pits(
    roller: Roller, traces: Sequence[Trace], n_probe: int, probes: dict[Prefix, list[Rollout]]
) -> dict[int, int]:
    """Look for the first step without a correct continuation by bisection, a few rollouts at a time.

    Between a prefix with a correct rollout (its value is certainly not zero) and one without, the middle one is
    probed. A probe without success proves nothing, so what is found is where to *start* measuring:
    [`measure_to_pits`] goes on where the measured value is not zero after all.

    Args:
        roller ([`Roller`]):
            Draws the rollouts.
        traces (`Sequence[Trace]`):
            Wrong seeds.
        n_probe (`int`):
            Rollouts per probe; none where the prover has no room left for a token.
        probes (`dict[Prefix, list[Rollout]]`):
            Probes so far; new ones are added.

    Returns:
        `dict[int, int]`: For the position of each trace, the number of steps up to and including the candidate.
    """
    low = dict.fromkeys(range(len(traces)), 0)
    high = {k: len(trace.prefixes) for k, trace in enumerate(traces)}
    while open_traces := [k for k in low if high[k] - low[k] > 1]:
        middles = {k: traces[k].key((low[k] + high[k]) // 2) for k in open_traces}
        new = [p for p in dict.fromkeys(middles.values()) if p not in probes]
        room = [prefix for prefix in new if roller.has_room(prefix)]
        probes.update((prefix, []) for prefix in new)
        probes.update(zip(room, roller.draw(room, n_probe, "probe"), strict=True))
        for k, prefix in middles.items():
            side = low if any(rollout.correct for rollout in probes[prefix]) else high
            side[k] = (low[k] + high[k]) // 2
    return high


def best_probes(traces: Sequence[Trace], probes: dict[Prefix, list[Rollout]]) -> list[tuple[Prefix, list[Rollout]]]:
    """The most promising prefix of each problem, with its wrong rollouts: seeds that fail from a good start.

    Args:
        traces (`Sequence[Trace]`):
            The seeds; of problems without one nothing is returned.
        probes (`dict[Prefix, list[Rollout]]`):
            Probed prefixes.

    Returns:
        `list`: Prefix and wrong finished rollouts, at most one entry per problem, in the order of problems.
    """
    best: dict[int, tuple[float, Prefix]] = {}
    for prefix, rollouts in probes.items():
        checked = [rollout.correct for rollout in rollouts if rollout.correct is not None]
        value = sum(checked) / len(checked) if checked else 0.0
        if value >= PROMISING and value > best.get(prefix[0], (0.0, prefix))[0]:
            best[prefix[0]] = value, prefix
    problems = sorted({trace.problem for trace in traces} & set(best))
    found = [(best[i][1], [r for r in probes[best[i][1]] if r.correct is False]) for i in problems]
    return [(prefix, wrong) for prefix, wrong in found if wrong]


def measure_to_pits(
    roller: Roller,
    traces: Sequence[Trace],
    pits: dict[int, int],
    tallies: dict[Prefix, Tally],
    rule: int | SequentialRule,
    unfinished: Unfinished,
) -> None:
    """Measure every prefix up to the pit with rollouts of its own, and move pits that turn out not to be one.

    The probes are not counted: the pit was chosen for having none correct among them, so they would be biased.

    Args:
        roller ([`Roller`]):
            Draws the rollouts.
        traces (`Sequence[Trace]`):
            Wrong seeds; their `num_kept` is set.
        pits (`dict[int, int]`):
            Candidates, as [`find_pits`] returns them.
        tallies (`dict[Prefix, Tally]`):
            Tallies so far; new ones are added.
        rule (`int` or [`SequentialRule`]):
            Rollouts of each prefix, or the rule that ends them.
        unfinished (`str`):
            As in [`Tally.add`].
    """
    measure(roller, (t.key(h) for k, t in enumerate(traces) for h in range(pits[k] + 1)), tallies, rule, unfinished)
    while moving := [
        k for k, t in enumerate(traces) if tallies[t.key(pits[k])].value != 0.0 and pits[k] < len(t.prefixes)
    ]:
        pits.update((k, pits[k] + 1) for k in moving)
        measure(roller, (traces[k].key(pits[k]) for k in moving), tallies, rule, unfinished)
    for k, trace in enumerate(traces):
        trace.num_kept = pits[k]
