"""`trl-prl collect`: step values of a data set of prompts, from rollouts of a prover.

trl-prl collect --config collect.yaml --output_dir values
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trl_prl.collection.config import CollectConfig
from trl_prl.jobs.progress import Progress, ProgressBar, token_line, warn_of_unfinished
from trl_prl.jobs.ray_engine import make_engine


if TYPE_CHECKING:
    from trl_prl.generation.rollouts import Spending


Options = CollectConfig


def run(options: CollectConfig) -> int:
    """Collect, or go on with what was begun in the folder."""
    from trl_prl.collection.job import collect
    from trl_prl.jobs.options import quiet_libraries
    from trl_prl.storage.row_sources import load_rows

    quiet_libraries()
    dataset = load_rows(options.dataset, options.dataset_config, options.dataset_split)
    with ProgressBar(lambda progress: cost_line(progress, options.price_per_million_tokens)) as bar:
        collected = collect(options, dataset, engine=make_engine(options), on_progress=bar.update)
    if collected is None:
        print(f"This process's share is done. {options.output_dir} is complete once the others are.")
        return 0
    print(f"Step values: {collected.path} (load_dataset({options.output_dir!r}) reads it)")
    print(unfinished_sentence(collected.spending, options))
    warn_of_unfinished(
        collected.spending.num_unfinished,
        collected.spending.num_rollouts,
        "rollouts reached the limit, so values are biased towards short solutions",
        options.max_completion_length,
    )
    return 0


def cost_line(progress: Progress, price: float | None) -> str:
    """Tokens so far and expected in all, their price, and what had no outcome.

    Args:
        progress ([`Progress`]):
            Where the job stands.
        price (`float`, *optional*):
            Price of a million sampled tokens.

    Returns:
        `str`: The line; empty before the first sample.
    """
    parts = [token_line(progress)]
    expected = progress.expected("num_sampled_tokens")
    if price is not None and expected:
        spent = progress.counts["num_sampled_tokens"]
        parts.append(f"cost {spent * price / 1e6:.2f} of {expected * price / 1e6:.2f}")
    for name, text in (("num_unfinished", "unfinished"), ("num_failed", "not checked")):
        parts += [f"{progress.counts[name]} {text}"] if progress.counts.get(name) else []
    return ", ".join(filter(None, parts))


def unfinished_sentence(spending: Spending, options: CollectConfig) -> str:
    """What became of the rollouts, in words."""
    share = spending.num_unfinished / max(1, spending.num_rollouts)
    what = "are left out of the values" if options.unfinished == "exclude" else "count as wrong"
    text = (
        f"{spending.num_rollouts:,} rollouts; {spending.num_unfinished:,} of them ({share:.1%}) reached the limit of "
        f"{options.max_completion_length} tokens and {what}."
    )
    return text if not spending.num_failed else f"{text} {spending.num_failed:,} could not be checked."
