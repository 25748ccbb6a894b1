"""Options of the subcommands, as TRL's own commands take them: `--option_name`, and `--config` for a YAML file."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints


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
    # TRL's parser knows the file as a word of its own only.
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
    for place, word in enumerate(words):
        if word == "--config" and place + 1 < len(words):
            check_file(Path(words[place + 1]), config_class)
        elif word == "--config":
            parser.error("argument --config: expected one argument")
    config, *_ = parser.parse_args_and_config(words)
    return config  # type: ignore[no-any-return]


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
    import yaml

    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML ({error}). Write one `option: value` per line.") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds no options. Write one `option: value` per line.")
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
