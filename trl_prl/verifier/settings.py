"""What a verifier has to know to be used as it was trained."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import DatasetCard, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from numpy.typing import NDArray

from trl_prl.metrics.calibration import fit_calibration, value_label_pairs
from trl_prl.prompts.format import PromptFormat
from trl_prl.types import StepSplitter


logger = logging.getLogger(__name__)

# Fewer would fit chance.
MIN_CALIBRATION_LABELS = 10


@dataclass(frozen=True)
class VerifierSettings:
    """What a verifier has to know to be used as it was trained; saved in its model's `config.verifier`.

    Args:
        step_splitter (`str`, *optional*, defaults to `"newline"`):
            Name of the splitter that cut the solutions it was trained on, see [`get_splitter`].
        step_length (`int`, *optional*, defaults to `256`):
            Tokens per step of the `"fixed"` splitter.
        prompt_format (`str`, *optional*, defaults to `"text"`):
            `"as_given"`: as a policy in TRL reads it, messages through the chat template of the verifier's tokenizer
            with `prompts.chat_template_kwargs`, text as it stands. `"text"`: text as it stands, and of messages the
            contents, with blank lines between them. `"chat"`: through the chat template, text as one message of the
            user.
        prompt_suffix (`str`, *optional*, defaults to `""`):
            Text between prompt and solution.
        max_length (`int`, *optional*):
            Most tokens of a solution with its prompt. Steps that end beyond are not scored.
        prover (`str`, *optional*):
            Whose probability of success the values are.
        best_of_k (`int`, *optional*, defaults to `1`):
            Values are those of the best of K samples of the prover, `1 - (1 - Q)^K`
            ([PAV](https://huggingface.co/papers/2410.08146), eq. 30).
        temperature (`float`, *optional*, defaults to `1.0`), offset (`float`, *optional*, defaults to `0.0`):
            Calibration: the value is `sigmoid(logit / temperature + offset)`.
        read_end (`bool`, *optional*, defaults to `False`):
            Whether the last step of a finished solution is read with the token that ends it (that of the turn behind
            a chat template, else that of the text), and scored there. Without it, a solution that stops too early
            looks like the start of a good one.
        prompts ([`PromptFormat`], *optional*):
            How rows became the prompts it was trained on; `None` for not known.
        prompt_type (`str`, *optional*):
            What these were: `"text"` or `"messages"`.
        collected (`dict`, *optional*):
            How the rows were collected: settings of `trl-prl collect`, the prover's sampling among them.

    Raises:
        `ValueError`: If a setting is out of its range.
    """

    step_splitter: str | None = "newline"
    step_length: int = 256
    prompt_format: str = "text"
    prompt_suffix: str = ""
    max_length: int | None = None
    prover: str | None = None
    best_of_k: int = 1
    temperature: float = 1.0
    offset: float = 0.0
    read_end: bool = False
    prompts: PromptFormat | None = None
    prompt_type: str | None = None
    collected: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.prompt_format not in ("as_given", "text", "chat"):
            raise ValueError(
                f"`prompt_format` is {self.prompt_format!r}. There is no such format. Use 'as_given', which applies "
                "the chat template to messages, 'text', or 'chat', which applies it to text too."
            )
        if self.best_of_k < 1 or (self.max_length is not None and self.max_length < 1):
            raise ValueError(
                f"`best_of_k` is {self.best_of_k} and `max_length` is {self.max_length}, but both count something "
                "that exists. Use 1 or more; `None` leaves the length to the model."
            )
        if not (self.temperature > 0 and math.isfinite(self.temperature) and math.isfinite(self.offset)):
            raise ValueError(
                f"`temperature` is {self.temperature} and `offset` is {self.offset}. Values would be turned around or "
                "undefined. Use a positive temperature and a finite offset; 1.0 and 0.0 change nothing."
            )

    def calibrated(self, logits: NDArray[np.floating[Any]], labels: NDArray[np.floating[Any]]) -> VerifierSettings:
        """The settings with temperature and offset fitted to labels, see [`fit_calibration`].

        Args:
            logits (`np.ndarray`):
                Logits before calibration, of any shape; NaN where there is none.
            labels (`np.ndarray`):
                Labels in [0, 1], of the same shape; NaN where there is none.

        Returns:
            [`VerifierSettings`]: The new settings; the old ones, with a warning, where labels are few, all equal,
            or do not rise with the logits, as a fit would make the values constant or those of chance.

        Raises:
            `ValueError`: If no label goes with a logit.
        """
        scores, known = value_label_pairs(logits, labels)
        reason = None
        if len(known) and known.min() == known.max():
            reason = f"all labels it could be fitted to are {known[0]:g}, so its values would become constant"
        elif 0 < len(known) < MIN_CALIBRATION_LABELS:
            reason = f"there are {len(known)} labels to fit to, and two numbers need {MIN_CALIBRATION_LABELS} or more"
        # The loss is convex: its slope has the sign of the covariance.
        elif len(known) and (correlation := np.corrcoef(scores, known)[0, 1] if np.ptp(scores) else 0.0) <= 0:
            reason = (
                f"its logits do not rise with the labels (their correlation is {correlation:.2f} over {len(known)} "
                "labels, of prompts too where they have some; AUROC is of steps alone), and calibration keeps their "
                "order"
            )
        if reason is not None:
            logger.warning(
                "The verifier was not calibrated: %s. Hold out more rows, with right and wrong steps among them, or "
                "train it for longer.",
                reason,
            )
            return self
        temperature, offset = fit_calibration(logits, labels)
        return replace(self, temperature=temperature, offset=offset)

    def to_dict(self) -> dict[str, Any]:
        """Settings as they stand in `config.json`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VerifierSettings:
        """Read settings from a config; names of later versions are left out."""
        known = {entry.name for entry in fields(cls)}
        given = {name: value for name, value in values.items() if name in known}
        if isinstance(given.get("prompts"), Mapping):
            given["prompts"] = PromptFormat.from_dict(given["prompts"])
        return cls(**given)


def collected_settings(path: str, revision: str | None = None) -> dict[str, Any] | None:
    """How `trl-prl collect` made a data set: its prover, splitter, prompts and sampling, as they stand with the rows.

    Args:
        path (`str`):
            Folder of the job, its Parquet file, or the hub id that it was pushed to.
        revision (`str`, *optional*):
            Branch, tag or commit on the hub.

    Returns:
        `dict[str, Any]`, *optional*: The settings; `None` for a data set that was made otherwise.
    """
    import pyarrow.parquet

    place = Path(path)
    files = sorted(place.glob("**/*.parquet"))[:1] if place.is_dir() else [place] if place.suffix == ".parquet" else []
    if files and files[0].is_file():
        found = (pyarrow.parquet.read_schema(files[0]).metadata or {}).get(b"trl_prl")
        return None if found is None else dict(json.loads(found))
    if place.exists():
        return None
    try:
        card = DatasetCard.load(hf_hub_download(path, "README.md", repo_type="dataset", revision=revision))
    except (
        EntryNotFoundError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError
    ):  # fmt: skip
        return None
    settings = card.data.to_dict().get("trl_prl")
    return dict(settings) if isinstance(settings, Mapping) else None


def collected_splitter(path: str) -> StepSplitter | None:
    """What cut the steps of a data set that `trl-prl collect` made.

    Args:
        path (`str`):
            As of [`collected_settings`].

    Returns:
        [`StepSplitter`], *optional*: The splitter; `None` for a data set that was made otherwise.
    """
    collected = collected_settings(path) or {}
    name = collected.get("splitter")
    if name is None:
        return None
    from trl_prl.steps.split import get_splitter  # imports torch, which `--help` can do without

    return get_splitter(name, step_length=collected.get("step_length", 256))


def warn_of_training_prompts(verifier: Any, fingerprint: str | None, where: str) -> None:
    """Warn about a verifier that is judged on the prompts it was trained on.

    Args:
        verifier (`ProcessReward`):
            The verifier; a process reward that stores nothing about its data is fine.
        fingerprint (`str`, *optional*):
            Checksum of the prompts, as a collection has it in its settings.
        where (`str`):
            What holds them.
    """
    collected = getattr(getattr(verifier, "settings", None), "collected", None) or {}
    if fingerprint is not None and collected.get("fingerprint") == fingerprint:
        logger.warning(
            "The verifier was trained on the prompts of '%s', so numbers on them flatter it. Give prompts that were "
            "held out from its training.",
            where,
        )


def follow_collection(args: Any, path: str) -> None:
    """Train a verifier with the settings its rows were collected with, and say where its own contradict them.

    Args:
        args ([`PAVRewardConfig`]):
            Configuration. What it leaves at its default is set; a setting of its own stays.
        path (`str`):
            Data set, as of [`collected_settings`].
    """
    collected = collected_settings(path)
    if collected is None:
        return
    args.collected = collected
    defaults = {entry.name: entry.default for entry in fields(args)}
    taken = {"splitter": "step_splitter", "step_length": "step_length", "prover": "prover"}
    for source, name in {**taken, "chat_template_kwargs": "chat_template_kwargs"}.items():
        then, now = collected.get(source), getattr(args, name)
        if then is not None and now == defaults[name]:
            setattr(args, name, then)
        elif then is not None and now != then:
            logger.warning(
                "`%s` is %r, but '%s' was collected with %r. The verifier would claim what its rows are not. Leave it "
                "out, to take what the rows were collected with.",
                name,
                now,
                path,
                then,
            )
    for name in ("prompt_template", "system_prompt"):
        if collected.get(name) is not None and getattr(args, name) is not None:
            logger.warning(
                "`%s` is given, but the prompts of '%s' have one already, and would get a second one. Leave it out.",
                name,
                path,
            )
