"""Further next steps from the prefixes of seeds: siblings, without which a step has no alternatives to compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from trl_prl.generation.rollouts import Roller
from trl_prl.generation.tallies import Rollout

from .first_pit import Trace


def draw_branches(
    roller: Roller,
    traces: Sequence[Trace],
    n_branch: int,
    cut: Callable[[Sequence[tuple[int, Rollout]]], list[Trace]],
) -> list[Trace]:
    """Draw next steps from every distinct prefix that a seed went on from, the prompt included.

    What was drawn is cut as a whole, like a seed. A sample that begins with more of the prefix's own delimiter, or
    otherwise moves the ends of the prefix's steps, is no next step from there and is left out; so is one that was cut
    off inside its next step.

    Args:
        roller ([`Roller`]):
            Draws from the policy that wrote the seeds.
        traces (`Sequence[Trace]`):
            The seeds.
        n_branch (`int`):
            Next steps per prefix.
        cut (`Callable`):
            Cuts rollouts into steps.

    Returns:
        `list[Trace]`: One per prefix and distinct next step, which is its last kept step; `count` says how often it
        was drawn.
    """
    states = {trace.key(h): (trace, h) for trace in traces for h in range(len(trace.prefixes))}
    room = [prefix for prefix in states if roller.has_room(prefix)]
    drawn = roller.draw(room, n_branch, "branch")
    branches: dict[tuple[int, tuple[int, ...], int], Trace] = {}
    for prefix, rollouts in zip(room, drawn, strict=True):
        trace, depth = states[prefix]
        for rollout in rollouts:
            (whole,) = cut([(prefix[0], rollout)])
            if not _goes_on(whole, trace.prefixes[:depth]):
                continue
            key = (prefix[0], whole.prefixes[depth], depth)
            if key in branches:
                branches[key].count += 1
            else:
                branches[key] = Trace(prefix[0], rollout, whole.prefixes, depth + 1, branch_at=depth)
    return list(branches.values())


def _goes_on(whole: Trace, steps: Sequence[tuple[int, ...]]) -> bool:
    """Whether a completion, cut as a whole, has the steps of a prefix and a complete one after them."""
    if whole.prefixes[: len(steps)] != list(steps) or len(whole.prefixes) == len(steps):
        return False
    return whole.rollout.finished or len(whole.prefixes) > len(steps) + 1


def label_once(row: dict[str, Any]) -> dict[str, Any]:
    """Take the labels of a branch's prefix away, as they are in the row of the seed that it branches from.

    Args:
        row (`dict`):
            Row of a branch.

    Returns:
        `dict`: The row with a label for its last step only.
    """
    known = row["branch_at"]
    blank: dict[str, Any] = {
        "labels": None, "num_rollouts": 0, "num_correct": 0, "interval_low": 0.0, "interval_high": 1.0,
        "num_unfinished": 0, "num_failed": 0,
    }  # fmt: skip
    return {**row, **{name: [value] * known + row[name][known:] for name, value in blank.items()}}
