"""Step preferences: siblings whose values differ for certain, as rows for TRL's DPO trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, permutations
from typing import Any


@dataclass(frozen=True)
class NextStep:
    """One of the steps that were measured after a prefix.

    Args:
        text (`str`):
            The step.
        value (`float`), low (`float`), high (`float`):
            Its value, and the ends of its interval, in [0, 1].
        is_end (`bool`):
            Whether the solution ends with it.
    """

    text: str
    value: float
    low: float
    high: float
    is_end: bool


def next_steps(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, ...], list[NextStep]]:
    """The measured next steps of every prefix of one prompt.

    Args:
        rows (`Iterable[Mapping]`):
            Collected rows of the prompt, seeds and branches.

    Returns:
        `dict[tuple[str, ...], list[NextStep]]`: Distinct next steps by the steps before them.
    """
    found: dict[tuple[str, ...], dict[tuple[str, bool], NextStep]] = {}
    for row in rows:
        steps = row["completions"]
        is_whole = not row["rest"] and row["finish_reason"] == "eos"
        for depth, (text, value) in enumerate(zip(steps, row["labels"], strict=True)):
            if value is None:  # no counted rollout, or a branch's prefix, which the row of its seed has
                continue
            is_end = is_whole and depth == len(steps) - 1
            step = NextStep(text, value, row["interval_low"][depth], row["interval_high"][depth], is_end)
            found.setdefault(tuple(steps[:depth]), {}).setdefault((text, is_end), step)
    return {prefix: list(steps.values()) for prefix, steps in found.items()}


def step_preferences(
    rows: Iterable[Mapping[str, Any]], render: Callable[[Any], str], max_pairs: int = 1
) -> Iterator[dict[str, Any]]:
    """Pairs of siblings of which one is better for certain: its interval lies above that of the other.

    The steps before them belong to the prompt, as in [Step-DPO](https://huggingface.co/papers/2406.18629), so that
    only what differs is preferred.

    Args:
        rows (`Iterable[Mapping]`):
            What `trl-prl collect` wrote, in its order.
        render (`Callable`):
            Text of a prompt, as the policy is given it.
        max_pairs (`int`, *optional*, defaults to `1`):
            Most pairs of one prefix, those with the largest differences.

    Yields:
        `dict`: A row of TRL's preference format, `prompt`, `chosen` and `rejected`, with `chosen_value`,
        `rejected_value`, `chosen_is_end` and `rejected_is_end` (whether the solution ends with the step), the number
        `row` of the prompt, and `step`, the number of the steps before.
    """
    for number, same_prompt in groupby(rows, key=lambda row: row["row"]):
        group = list(same_prompt)
        prompt = render(group[0]["prompt"])
        for prefix, steps in next_steps(group).items():
            # Steps of equal texts, of which one ends the solution, are no choice between texts.
            pairs = [(a, b) for a, b in permutations(steps, 2) if a.low > b.high and a.text != b.text]
            for better, worse in sorted(pairs, key=lambda pair: pair[1].value - pair[0].value)[:max_pairs]:
                yield {
                    "prompt": prompt + "".join(prefix),
                    "chosen": better.text,
                    "rejected": worse.text,
                    "chosen_value": better.value,
                    "rejected_value": worse.value,
                    "chosen_is_end": better.is_end,
                    "rejected_is_end": worse.is_end,
                    "row": number,
                    "step": len(prefix),
                }
