"""`trl-prl export`: collected siblings as preferences between steps, for TRL's `DPOTrainer`.

trl-prl export --values values --output preferences.jsonl
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_prl.jobs.config import option, require
from trl_prl.jobs.options import load_tokenizer


if TYPE_CHECKING:
    from trl_prl.storage.row_files import Rows


@dataclass(frozen=True)
class Options:
    """What to export, and where to.

    Every field is an option of `trl-prl export` and a key of its YAML file.

    Raises:
        `ValueError`: When a required field is missing, or no pair is asked for.
    """

    values: str = option("", "folder of a finished `trl-prl collect`, or its .parquet file")
    output: str = option("", "where to write: .jsonl, .jsonl.gz or .parquet")
    overwrite: bool = option(False, "replace the output if it exists")
    max_pairs: int = option(1, "most pairs of siblings from one prefix, those that differ most")
    tokenizer: str | None = option(
        None, "folder or hub id of the policy's tokenizer, whose chat template makes text of prompts that are messages"
    )
    trust_remote_code: bool = option(False, "run Python code that comes with the tokenizer")

    def __post_init__(self) -> None:
        require(self, "values", "output")
        if self.max_pairs < 1:
            raise ValueError(f"Got max_pairs={self.max_pairs}, with which nothing is exported. Use 1 or more.")


def open_values(path: Path) -> tuple[Rows, dict[str, Any]]:
    """Open collected rows.

    Args:
        path (`Path`):
            Folder of a finished job, or its file.

    Returns:
        `tuple[Rows, dict]`: The rows, and the settings they were collected with.

    Raises:
        `ValueError`: When they are no collected rows.
    """
    from trl_prl.collection.output import DATA_FILE
    from trl_prl.storage.row_files import file_rows

    rows = file_rows(path / DATA_FILE if path.is_dir() else path)
    settings = (getattr(rows.stored_schema, "metadata", None) or {}).get(b"trl_prl")
    if settings is None:
        raise ValueError(
            f"{path} does not say how its values were collected, so it is not known which steps are better for "
            "certain. Give the folder of a finished `trl-prl collect`, or its .parquet file."
        )
    return rows, json.loads(settings)


def prompt_renderer(options: Options, chat_template_kwargs: Mapping[str, Any]) -> Callable[[Any], str]:
    """What makes text of a prompt.

    Args:
        options ([`Options`]):
            The tokenizer, if there is one.
        chat_template_kwargs (`Mapping`):
            Arguments of the chat template that the values were collected with.

    Returns:
        `Callable`: Text of a prompt, as the policy is given it.
    """
    from trl_prl.prompts.chat import is_messages

    tokenizer: Any = None
    if options.tokenizer is not None:
        tokenizer = load_tokenizer(options.tokenizer, trust_remote_code=options.trust_remote_code)

    def render(prompt: Any) -> str:
        if not is_messages(prompt):
            return str(prompt)
        if tokenizer is None:
            raise ValueError(
                "The prompts are messages, and no message can end in the middle of a solution, where most siblings "
                "begin. Give the policy's --tokenizer: its chat template makes text of them."
            )
        text = str(
            tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True, **chat_template_kwargs)
        )
        # The trainer tokenises the text, and some tokenizers then put a start token before it themselves.
        adds_start = tokenizer.bos_token and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
        return text.removeprefix(tokenizer.bos_token) if adds_start else text

    return render


def run(options: Options) -> int:
    """Write the preferences. The output appears when it is whole.

    Args:
        options ([`Options`]):
            What to export.

    Returns:
        `int`: 0.

    Raises:
        `ValueError`: If the values cannot be read, the output cannot be written, or no siblings differ.
        `OSError`: If a file is missing, or the output exists.
    """
    from trl_prl.collection.preferences import step_preferences
    from trl_prl.storage.row_files import check_suffix, write_rows

    output = Path(options.output)
    check_suffix(output)
    rows, settings = open_values(Path(options.values))
    render = prompt_renderer(options, settings.get("chat_template_kwargs") or {})
    preferences = list(step_preferences(rows, render, options.max_pairs))
    if not preferences:
        raise ValueError(
            f"No two siblings in '{options.values}' have intervals apart, so nothing is preferred to anything. "
            "Collect with more rollouts (--n_mc), more siblings (--n_branch), or more prompts."
        )
    with write_rows(output, _schema, overwrite=options.overwrite) as write:
        write(preferences)
    num_prompts = len({row["row"] for row in preferences})
    print(f"{len(preferences)} pairs of steps from {num_prompts} prompts -> {output}", file=sys.stderr)
    return 0


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        [(name, pa.string()) for name in ("prompt", "chosen", "rejected")]
        + [(name, pa.float64()) for name in ("chosen_value", "rejected_value")]
        + [(name, pa.bool_()) for name in ("chosen_is_end", "rejected_is_end")]
        + [(name, pa.int64()) for name in ("row", "step")]
    )
