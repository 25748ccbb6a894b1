"""What the constructors of the process-reward trainers share: the configuration, the loss types, the citation."""

from __future__ import annotations

import copy
import dataclasses
import logging
import textwrap
from typing import Any, TypeVar

from trl import GRPOConfig


logger = logging.getLogger(__name__)

# The loss types of TRL 1.16, each tested to weight every token by its own advantage.
PER_TOKEN_LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo")

Config = TypeVar("Config", bound=GRPOConfig)


def promote_config(args: GRPOConfig | None, config_class: type[Config], model: Any, suffix: str) -> Config:
    """Make the configuration a process-reward trainer needs out of what the user gave.

    A script that only swaps the trainer class passes a plain [`~trl.GRPOConfig`]. It is kept field by field, and the
    new fields get their defaults.

    Args:
        args (`GRPOConfig`, *optional*):
            What the user passed.
        config_class (`type`):
            The configuration class of the trainer.
        model (`str` or `PreTrainedModel`):
            The model, after which the output folder is named if `args` is `None`, as in TRL.
        suffix (`str`):
            End of that folder's name.

    Returns:
        `config_class`: A configuration; `args` itself if it already is one.

    Raises:
        `TypeError`: if `args` is not a `GRPOConfig`, or is the configuration of another trainer of this package.
    """
    if args is None:
        name = model if isinstance(model, str) else model.config._name_or_path
        return config_class(f"{name.split('/')[-1]}-{suffix}")
    if isinstance(args, config_class):
        return args
    if not isinstance(args, GRPOConfig):
        raise TypeError(
            f"`args` is a {type(args).__name__}, which has no GRPO settings. Pass a `{config_class.__name__}`; it "
            "takes every field of `GRPOConfig`."
        )
    if hasattr(args, "step_splitter"):
        raise TypeError(
            f"`args` is a {type(args).__name__}, the configuration of another trainer, whose defaults do not fit this "
            f"one. Pass a `{config_class.__name__}`."
        )
    promoted: Any = copy.copy(args)
    promoted.__class__ = config_class
    own = [f for f in dataclasses.fields(config_class) if f.name not in {g.name for g in dataclasses.fields(args)}]
    for field in own:
        setattr(promoted, field.name, field.default)
    logger.warning(
        "A %s was passed where a %s is expected. Its settings are kept, and the new ones have their defaults: %s.",
        type(args).__name__,
        config_class.__name__,
        ", ".join(f"{field.name}={field.default!r}" for field in own),
    )
    return promoted


def check_loss_type(loss_type: str) -> None:
    """Refuse a loss type that is not known to use an advantage per token.

    Raises:
        `ValueError`: if it is not one of [`PER_TOKEN_LOSS_TYPES`].
    """
    if loss_type not in PER_TOKEN_LOSS_TYPES:
        raise ValueError(
            f"`loss_type={loss_type!r}` is not known to use an advantage per token; it could drop the process rewards "
            f"without a sign. Set `loss_type` to one of: {', '.join(PER_TOKEN_LOSS_TYPES)}."
        )


def citation(text: str) -> str:
    """Strip the indentation of a BibTeX entry for the model card."""
    return textwrap.dedent(text).strip()
