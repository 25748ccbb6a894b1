"""`trl-prl collect`: step values of a data set of prompts, from rollouts of a prover.

trl-prl collect --config collect.yaml --output-dir values
"""

from __future__ import annotations

import argparse
import time

from trl_prl.collect_config import CollectConfig
from trl_prl.collection import Progress, collect
from trl_prl.command_options import (
    add_config_arguments,
    load_rows,
    local_generator,
    make_config,
    make_generator,
    open_reward,
    quiet_libraries,
)
from trl_prl.types import Generator


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare one option per field of [`CollectConfig`]."""
    add_config_arguments(parser, CollectConfig)


def run(args: argparse.Namespace) -> int:
    """Collect, or go on with what was begun in the folder."""
    config = make_config(args, CollectConfig)
    quiet_libraries()
    from transformers import AutoTokenizer

    dataset = load_rows(config.dataset, config.dataset_config, config.dataset_split)
    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer or config.model)

    def make_generators() -> tuple[Generator, Generator | None]:
        """The prover, and the generator of the seeds if it is another one."""
        seeds = None if config.seed_model is None else local_generator(config, config.seed_model)
        return make_generator(config, tokenizer), seeds

    with open_reward(config) as reward, _Bar(config) as bar:
        path = collect(config, dataset, tokenizer, make_generators, reward, on_progress=bar.update)
    if path is None:
        print(f"This process's share is done. {config.output_dir} is complete once the others are.")
    else:
        print(f"Step values: {path} (load_dataset({config.output_dir!r}) reads it)")
    return 0


class _Bar:
    """Progress on the terminal: problems, rollouts per second, tokens, cost and time left."""

    def __init__(self, config: CollectConfig) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self.price = config.price_per_million_tokens
        self.first: tuple[float, int] | None = None
        # What may be cut off in a narrow terminal comes last.
        self.bar = RichProgress(BarColumn(12), MofNCompleteColumn(), TextColumn("problems, {task.fields[note]}"))
        self.task = self.bar.add_task("problems", total=None, note="")

    def __enter__(self) -> _Bar:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def update(self, progress: Progress) -> None:
        """Show where the job stands."""
        now = time.monotonic()
        if self.first is None:
            # What an earlier run finished says nothing about the speed of this one.
            self.first = now, progress.num_done
        note = progress_note(progress, now - self.first[0], progress.num_done - self.first[1], self.price)
        self.bar.update(self.task, completed=progress.num_done, total=progress.num_total, note=note)


def progress_note(progress: Progress, seconds: float, num_done: int, price: float | None) -> str:
    """What is shown next to the bar.

    Args:
        progress ([`Progress`]):
            Where the job stands.
        seconds (`float`):
            Time since this run began.
        num_done (`int`):
            Problems this run has finished.
        price (`float`, *optional*):
            Price of a million sampled tokens.

    Returns:
        `str`: Time left, speed, tokens so far and expected in all for this run, and what had no outcome.
    """
    if num_done == 0 or seconds <= 0:
        return "starting"
    spent = progress.spending
    left = progress.num_total - progress.num_done
    tokens, all_tokens = spent.num_sampled_tokens, spent.num_sampled_tokens * (num_done + left) / num_done
    cost = "" if price is None else f" (cost {tokens * price / 1e6:.2f} of {all_tokens * price / 1e6:.2f})"
    minutes, rest = divmod(round(seconds * left / num_done), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours:d}:{minutes:02d}:{rest:02d} left, {spent.num_rollouts / seconds:.1f} rollouts/s, "
        f"{tokens / 1e6:.2f} of {all_tokens / 1e6:.2f} M tokens{cost}, {spent.num_unfinished} unfinished, "
        f"{spent.num_failed} not checked"
    )
