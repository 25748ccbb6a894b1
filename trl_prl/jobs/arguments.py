"""Options of the subcommands, as TRL's own commands take them: `--option_name`, and `--config` for a YAML file."""

from __future__ import annotations

import argparse
import difflib
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from trl_prl.storage.missing import model_named, say_missing

from .masking import mask_secrets


Config = TypeVar("Config")


def parse_options(
    config_class: type[Config], words: Sequence[str], prog: str | None = None, description: str | None = None
) -> Config:
    """Make a configuration from the words of a command line, with [`~trl.TrlParser`].

    Args:
        config_class (`type`):
            Dataclass of the options.
        words (`Sequence[str]`):
            The words behind the subcommand. A list is written `--name a b`, a file of options `--config FILE`.
        prog (`str`, *optional*):
            Name of the command, for its help.
        description (`str`, *optional*):
            What it does, for its help.

    Returns:
        `config_class`: The configuration. Options given win over those of the file.

    Raises:
        `ValueError`: When there is no such option, or the file is not a mapping of options to values of their types.
        `OSError`: When the file cannot be read.
    """
    from trl import TrlParser

    classes: Any = [config_class]
    parser = TrlParser(classes, prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of the options; those given here win")
    words = _file_apart(words)
    for place, word in enumerate(words):
        if word == "--config" and place + 1 < len(words):
            check_file(Path(words[place + 1]), config_class)
        elif word == "--config":
            parser.error("argument --config: expected one argument")
    check_words(parser, words)
    config, *_ = parser.parse_args_and_config(words)
    return config  # type: ignore[no-any-return]


def _file_apart(words: Sequence[str]) -> list[str]:
    """TRL's parser knows the file of options as a word of its own only."""
    return [part for word in words for part in (word.split("=", 1) if word.startswith("--config=") else [word])]


def check_words(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Refuse words that a parser does not know.

    Args:
        parser (`argparse.ArgumentParser`):
            The parser.
        words (`Sequence[str]`):
            Words of a command line.

    Returns:
        `argparse.Namespace`: The arguments.

    Raises:
        `ValueError`: When there is such a word, with the nearest options that there are.
    """
    namespace, unknown = parser.parse_known_args(words)
    if not unknown:
        return namespace
    shown = parser.format_help()
    options = [option for name in vars(namespace) if (option := f"--{name}") in shown]
    word = next((word for word in unknown if word.startswith("-")), unknown[0]).partition("=")[0]
    near = difflib.get_close_matches(word, options, n=3) if word.startswith("-") else []
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    raise ValueError(f"Got {word!r}, which is no option, so nothing would heed it. {hint}--help lists all.")


def describe(error: Exception) -> str:
    """Say what went wrong in one line, also for exceptions whose message is bare or empty; secrets are masked.

    Args:
        error (`Exception`):
            What was raised.

    Returns:
        `str`: The message.
    """
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.strerror}: {error.filename}"
    return str(mask_secrets(" ".join(str(error).split()))) or type(error).__name__


def run_script(main: Callable[..., None], *classes: type[Any]) -> None:
    """Run a training script with the arguments of its command line, as [`~trl.TrlParser`] reads them.

    Args:
        main (`Callable`):
            Called with a configuration of each class.
        *classes (`type`):
            Dataclasses of the arguments. A `model_name_or_path` is looked for before `main` is called.

    Raises:
        `SystemExit`: In one line, when something given is wrong or missing, unless `--debug` is given; what is raised
            once a training has begun is left as it is.
    """
    from trl import TrlParser

    words = _file_apart([word for word in sys.argv[1:] if word != "--debug"])
    # The usage of all of the trainer's options would fill the screen.
    parser = TrlParser(classes, usage="%(prog)s [--config FILE] [--option value ...]")  # type: ignore[arg-type]
    try:
        place = words.index("--config") if "--config" in words else len(words)
        if words[place + 1 : place + 2]:
            read_mapping(Path(words[place + 1]))
        check_words(parser, words[:place] + words[place + 2 :])
        arguments = parser.parse_args_and_config(words)
        given = {name: value for argument in arguments for name, value in vars(argument).items()}
        named = {"revision": "model_revision", "trust_remote_code": "trust_remote_code"}
        options = {name: given[field] for name, field in named.items() if given.get(field)}
        check_model(given.get("model_name_or_path"), **options)
        main(*arguments)
    except (ValueError, OSError, ImportError) as error:
        in_training = any(frame.name == "train" for frame in traceback.extract_tb(error.__traceback__))
        if in_training or "--debug" in sys.argv:
            raise
        raise SystemExit(f"{parser.prog}: error: {describe(error)} (--debug shows the traceback)") from None


def check_model(name: str | None, **options: Any) -> None:
    """Look for a model before anything is loaded.

    Args:
        name (`str`, *optional*):
            Folder or Hub id of a model or adapter; `None` is not looked for.
        **options:
            Arguments of `from_pretrained` that it will be loaded with.

    Raises:
        `OSError`: When there is none.
    """
    from transformers import AutoConfig

    if name is not None and not (Path(name) / "adapter_config.json").is_file():
        with model_named(name):
            AutoConfig.from_pretrained(name, **options)


def check_file(path: Path, config_class: type[Any]) -> None:
    """Refuse a YAML file that does not say options of a configuration: TRL's parser takes any value as it is.

    Args:
        path (`Path`):
            The file.
        config_class (`type`):
            Dataclass of the options.

    Raises:
        `ValueError`: When the file is not a mapping, has an unknown key or a value of the wrong type.
        `OSError`: When it cannot be read.
    """
    loaded = read_mapping(path)
    types, known = get_type_hints(config_class), {entry.name: entry for entry in fields(config_class)}
    for name, value in loaded.items():
        if name == "env":  # environment variables, which TRL's parser sets
            continue
        if name not in known:
            near = difflib.get_close_matches(str(name).replace("-", "_"), known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"{path} has the option {name!r}, which does not exist, so it would be ignored.{hint} The "
                "subcommand's --help lists all."
            )
        if not _fits(known[name], types[name], value):
            raise ValueError(
                f"{path} has {name}: {value!r}, which is of the wrong type. The subcommand's --help says what it "
                "takes; texts that look like numbers need quotes."
            )


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file of options.

    Args:
        path (`Path`):
            The file.

    Returns:
        `dict`: Options and values, unchecked.

    Raises:
        `ValueError`: When the file is no YAML or no mapping.
        `OSError`: When it cannot be read.
    """
    import yaml

    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is a folder. Give a YAML file with --config."
            if path.is_dir()
            else f"{say_missing('file of --config', path)} Give a YAML file with one `option: value` per line."
        )
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML ({error}). Write one `option: value` per line.") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds no options. Write one `option: value` per line.")
    return loaded


def _fits(entry: Field[Any], annotation: Any, value: Any) -> bool:
    """Whether a value of a YAML file is of an option's type."""
    if value is None:
        return entry.default is None and entry.default is not MISSING
    kinds = getattr(annotation, "__args__", (annotation,))
    if getattr(annotation, "__origin__", None) is list:
        return isinstance(value, list) and all(type(item) in kinds for item in value)
    if isinstance(value, bool):
        return bool in kinds
    return (
        (isinstance(value, dict) and any(getattr(kind, "__origin__", None) is dict for kind in kinds))
        or (isinstance(value, str) and (str in kinds or value in kinds))
        or (isinstance(value, int) and int in kinds)
        or (isinstance(value, int | float) and float in kinds)
    )
