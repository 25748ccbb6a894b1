"""`trl-prl collect`: step values of a data set of prompts, from rollouts of a prover.

trl-prl collect --config collect.yaml --output-dir values
"""

from __future__ import annotations

import argparse
import difflib
import os
import time
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, get_type_hints

from trl_prl.collect_config import CollectConfig
from trl_prl.collection import Progress, collect
from trl_prl.timed_reward import TimedReward, load_reward
from trl_prl.types import Generator


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare one option per field of [`CollectConfig`]."""
    parser.add_argument("--config", type=Path, help="YAML file with any of the options below; options given here win")
    types = get_type_hints(CollectConfig)
    for option in fields(CollectConfig):
        # Without a default, so that it can be told what was given.
        parser.add_argument(
            f"--{option.name.replace('_', '-')}",
            default=argparse.SUPPRESS,
            help=f"{option.metadata['help']} (default: {option.default!r})".replace("%", "%%"),
            **_parsing(option, types[option.name]),
        )


def _parsing(option: Field[Any], annotation: Any) -> dict[str, Any]:
    if annotation is bool:
        return {"action": argparse.BooleanOptionalAction}
    if annotation == tuple[str, ...]:
        return {"nargs": "*"}
    for kind in (int, float):
        if annotation in (kind, kind | None):
            return {"type": kind}
    if hasattr(annotation, "__args__") and all(isinstance(choice, str) for choice in annotation.__args__):
        return {"choices": annotation.__args__}
    return {"type": str}


def run(args: argparse.Namespace) -> int:
    """Collect, or go on with what was begun in the folder."""
    config = make_config(args)
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TOKENIZERS_PARALLELISM"):
        os.environ.setdefault(name, "1" if name.startswith("HF") else "false")
    from transformers import AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    dataset = load_prompts(config)
    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer or config.model)
    reward = TimedReward(config.reward, config.check_timeout) if config.check_timeout else load_reward(config.reward)
    try:
        with _Bar(config) as bar:
            path = collect(
                config, dataset, tokenizer, lambda: make_generators(config, tokenizer), reward, on_progress=bar.update
            )
    finally:
        if isinstance(reward, TimedReward):
            reward.close()
    if path is None:
        print(f"This process's share is done. {config.output_dir} is complete once the others are.")
    else:
        print(f"Step values: {path} (load_dataset({config.output_dir!r}) reads it)")
    return 0


def make_config(args: argparse.Namespace) -> CollectConfig:
    """Settings from the YAML file and the options, which win.

    Args:
        args (`argparse.Namespace`):
            Parsed options.

    Returns:
        [`CollectConfig`]: The settings.

    Raises:
        `ValueError`: When the file is not a mapping or has an unknown key.
    """
    known = {option.name: option for option in fields(CollectConfig)}
    given: dict[str, Any] = {}
    if args.config is not None:
        import yaml

        try:
            loaded = yaml.safe_load(args.config.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"{args.config} is not YAML ({error}). Write one `option: value` per line.") from error
        if not isinstance(loaded, dict):
            raise ValueError(f"{args.config} holds no options. Write one `option: value` per line.")
        for key, value in loaded.items():
            name = str(key).replace("-", "_")
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(
                    f"{args.config} has the option {key!r}, which does not exist, so it would be ignored.{hint} "
                    "`trl-prl collect --help` lists all."
                )
            given[name] = _checked(args.config, name, value)
    given.update((name, value) for name, value in vars(args).items() if name in known)
    for name in ("stop", "endpoints"):
        if name in given:
            given[name] = tuple(given[name])
    return CollectConfig(**given)


def _checked(path: Path, name: str, value: Any) -> Any:
    """A value of a YAML file, if it is of the option's type."""
    annotation = get_type_hints(CollectConfig)[name]
    if annotation == tuple[str, ...]:
        fits = isinstance(value, list) and all(isinstance(entry, str) for entry in value)
    elif annotation in (float, float | None):
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        value = float(value) if fits else value
    elif annotation in (int, int | None):
        fits = isinstance(value, int) and not isinstance(value, bool)
    else:
        fits = isinstance(value, bool if annotation is bool else str)
    default = CollectConfig.__dataclass_fields__[name].default
    if not fits and not (value is None and default is None and default is not MISSING):
        raise ValueError(
            f"{path} has {name}: {value!r}, which is of the wrong type. `trl-prl collect --help` says what it takes; "
            "texts that look like numbers need quotes."
        )
    return value


def load_prompts(config: CollectConfig) -> Any:
    """Load the data set of prompts from a file, a folder or the Hub."""
    from datasets import load_dataset

    suffix = Path(config.dataset).suffix
    kinds = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
    if suffix in kinds:
        return load_dataset(kinds[suffix], data_files=config.dataset, split="train")
    return load_dataset(config.dataset, config.dataset_config, split=config.dataset_split)


def make_generators(config: CollectConfig, tokenizer: Any) -> tuple[Generator, Generator | None]:
    """The prover, and the generator of the seeds if it is another one."""
    seeds = None if config.seed_model is None else _local(config, config.seed_model, None)
    if config.generator == "openai":
        from trl_prl.generation_servers import OpenAIGenerator

        return OpenAIGenerator(config.endpoints, config.model, tokenizer, send_text=config.send_text), seeds
    if config.generator == "vllm-server":
        from trl_prl.generation_servers import VLLMServerGenerator

        return VLLMServerGenerator(config.endpoints, tokenizer), seeds
    if config.generator == "vllm":
        from trl_prl.generation_servers import VLLMGenerator

        return VLLMGenerator(config.model, dtype=config.dtype), seeds
    return _local(config, config.model, config.adapter), seeds


def _local(config: CollectConfig, model: str, adapter: str | None) -> Generator:
    import torch

    from trl_prl.generation import TransformersGenerator

    quantization = None
    if config.load_in_4bit:
        from transformers import BitsAndBytesConfig

        quantization = BitsAndBytesConfig(load_in_4bit=True)
    local_rank = os.environ.get("LOCAL_RANK", "0")
    return TransformersGenerator.from_pretrained(
        model,
        adapter=adapter,
        dtype=config.dtype,
        quantization_config=quantization,
        device=f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu",
        max_batch_tokens=config.max_batch_tokens,
    )


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
