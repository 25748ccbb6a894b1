"""Command lines and YAML files of configurations, and what the jobs they describe read and run."""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from trl_prl.job_config import JobConfig
from trl_prl.timed_reward import TimedReward, load_reward
from trl_prl.types import Generator, OutcomeReward


Config = TypeVar("Config")


def add_config_arguments(parser: argparse.ArgumentParser, config_class: type[Any]) -> None:
    """Declare `--config` and one option per field of a configuration.

    Args:
        parser (`argparse.ArgumentParser`):
            Parser of the subcommand.
        config_class (`type`):
            Dataclass whose fields were made with [`option`].
    """
    parser.add_argument("--config", type=Path, help="YAML file with any of the options below; options given here win")
    types = get_type_hints(config_class)
    for entry in fields(config_class):
        # Without a default, so that it can be told what was given.
        parser.add_argument(
            f"--{entry.name.replace('_', '-')}",
            default=argparse.SUPPRESS,
            help=f"{entry.metadata['help']} (default: {entry.default!r})".replace("%", "%%"),
            **_parsing(types[entry.name]),
        )


def _parsing(annotation: Any) -> dict[str, Any]:
    if annotation is bool:
        return {"action": argparse.BooleanOptionalAction}
    if annotation in (tuple[str, ...], tuple[int, ...]):
        return {"nargs": "*", "type": annotation.__args__[0]}
    for kind in (int, float):
        if annotation in (kind, kind | None):
            return {"type": kind}
    if hasattr(annotation, "__args__") and all(isinstance(choice, str) for choice in annotation.__args__):
        return {"choices": annotation.__args__}
    return {"type": str}


def make_config(args: argparse.Namespace, config_class: type[Config]) -> Config:
    """Settings from the YAML file and the options, which win.

    Args:
        args (`argparse.Namespace`):
            Parsed options.
        config_class (`type`):
            Class of the settings.

    Returns:
        `config_class`: The settings.

    Raises:
        `ValueError`: When the file is not a mapping, has an unknown key or a value of the wrong type.
    """
    types = get_type_hints(config_class)
    known: dict[str, Field[Any]] = {entry.name: entry for entry in fields(config_class)}  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    if args.config is not None:
        for key, value in _read_yaml(args.config).items():
            name = str(key).replace("-", "_")
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(
                    f"{args.config} has the option {key!r}, which does not exist, so it would be ignored.{hint} "
                    "The subcommand's --help lists all."
                )
            given[name] = _checked(args.config, known[name], types[name], value)
    given.update((name, value) for name, value in vars(args).items() if name in known)
    for name, value in given.items():
        given[name] = tuple(value) if isinstance(value, list) else value
    return config_class(**given)


def _read_yaml(path: Path) -> dict[Any, Any]:
    import yaml

    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML ({error}). Write one `option: value` per line.") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds no options. Write one `option: value` per line.")
    return loaded


def _checked(path: Path, entry: Field[Any], annotation: Any, value: Any) -> Any:
    """A value of a YAML file, if it is of the option's type."""
    if annotation in (tuple[str, ...], tuple[int, ...]):
        kind = annotation.__args__[0]
        fits = isinstance(value, list) and all(type(item) is kind for item in value)
    elif annotation in (float, float | None):
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        value = float(value) if fits else value
    elif annotation in (int, int | None):
        fits = isinstance(value, int) and not isinstance(value, bool)
    else:
        fits = isinstance(value, bool if annotation is bool else str)
    if not fits and not (value is None and entry.default is None and entry.default is not MISSING):
        raise ValueError(
            f"{path} has {entry.name}: {value!r}, which is of the wrong type. The subcommand's --help says what it "
            "takes; texts that look like numbers need quotes."
        )
    return value


def quiet_libraries() -> None:
    """Keep the progress bars and notes of Hugging Face's libraries from tearing that of the job apart."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def load_rows(path: str, name: str | None = None, split: str = "train") -> Any:
    """Load a data set from a file, a folder or the Hub.

    Args:
        path (`str`):
            A `.jsonl`, `.json`, `.parquet` or `.csv` file, gzipped or not, a folder or a Hub id.
        name (`str`, *optional*):
            Configuration of the data set.
        split (`str`, *optional*, defaults to `"train"`):
            Its split.

    Returns:
        [`~datasets.Dataset`]: The rows.
    """
    from datasets import load_dataset

    suffix = Path(path.removesuffix(".gz")).suffix
    kinds = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
    if suffix in kinds:
        return load_dataset(kinds[suffix], data_files=path, split="train")
    return load_dataset(path, name, split=split)


@contextmanager
def open_reward(config: JobConfig, num_workers: int = 1) -> Iterator[OutcomeReward]:
    """The outcome reward of a job, under its time limit.

    Args:
        config ([`JobConfig`]):
            The job.
        num_workers (`int`, *optional*, defaults to `1`):
            Processes that check answers at a time.

    Yields:
        [`OutcomeReward`]: The reward; its processes end with the context.
    """
    if not config.check_timeout:
        yield load_reward(config.reward)
        return
    with TimedReward(config.reward, config.check_timeout, num_workers=num_workers) as reward:
        yield reward


def make_generator(config: JobConfig, tokenizer: Any, model: str | None = None) -> Generator:
    """The generator that a job asks for.

    Args:
        config ([`JobConfig`]):
            The job.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model, for servers.
        model (`str`, *optional*):
            Path or Hub id, if it is another model than `config.model`.

    Returns:
        [`Generator`]: The generator.
    """
    model = config.model if model is None else model
    if config.generator == "openai":
        from trl_prl.generation_servers import OpenAIGenerator

        return OpenAIGenerator(config.endpoints, model, tokenizer, send_text=config.send_text)
    if config.generator == "vllm-server":
        from trl_prl.generation_servers import VLLMServerGenerator

        return VLLMServerGenerator(config.endpoints, tokenizer)
    if config.generator == "vllm":
        from trl_prl.generation_servers import VLLMGenerator

        return VLLMGenerator(model, dtype=config.dtype)
    return local_generator(config, model, config.adapter)


def local_generator(config: JobConfig, model: str, adapter: str | None = None) -> Generator:
    """A generator over a model in this process, on this process's device.

    Args:
        config ([`JobConfig`]):
            Precision, quantization and memory.
        model (`str`):
            Path or Hub id.
        adapter (`str`, *optional*):
            Path or Hub id of a PEFT adapter on top.

    Returns:
        [`Generator`]: The generator.
    """
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
