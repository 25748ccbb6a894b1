"""PEFT adapters: a new one, where one lies, and what its safetensors file holds. Pickled weights are never read."""

from __future__ import annotations

from pathlib import Path
from typing import Any


CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def adapter_folder(path: str | Path, revision: str | None = None) -> Path | None:
    """Folder of a PEFT adapter, downloaded if it is on the hub.

    Args:
        path (`str` or `Path`):
            Folder or hub id.
        revision (`str`, *optional*):
            Branch, tag or commit on the hub.

    Returns:
        `Path`, *optional*: The folder; `None` where there is no adapter.

    Raises:
        `OSError`: If the adapter has no weights in safetensors format.
    """
    # Without a connection these look in the cache, and find nothing rather than failing.
    from transformers.utils import cached_file, find_adapter_config_file

    folder = Path(path)
    if not folder.is_dir():
        config = find_adapter_config_file(str(path), revision=revision)
        if config is None:
            return None
        weights = cached_file(str(path), WEIGHTS, revision=revision, _raise_exceptions_for_missing_entries=False)
        folder = Path(config).parent if weights is None else Path(weights).parent
    if not (folder / CONFIG).is_file():
        return None
    if not (folder / WEIGHTS).is_file():
        raise OSError(
            f"The adapter '{path}' has no {WEIGHTS}, and pickled weights, which can run code when they are read, are "
            "not read. Save it again with `save_pretrained`, which writes safetensors."
        )
    return folder


def adapter_weights(folder: Path) -> set[str]:
    """Names of the weights of an adapter.

    Args:
        folder (`Path`):
            Its folder.

    Returns:
        `set[str]`: The names, with PEFT's prefix.
    """
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS, framework="pt") as file:
        return set(file.keys())


def with_adapter(model: Any, rank: int, task_type: str | None = None) -> Any:
    """A model with a new LoRA adapter in all its linear layers, which changes nothing yet.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model, which is changed in place. The output layer of a language model is left out; a value head is
            not, so that it learns in float32 whatever the precision of the model.
        rank (`int`):
            Rank of the adapter; its scale is 2.
        task_type (`str`, *optional*):
            PEFT's name of the task, `"CAUSAL_LM"` for a language model.

    Returns:
        [`~peft.PeftModel`]: The model.

    Raises:
        `ImportError`: If PEFT is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError(
            "A process reward that learns has its weights in a LoRA adapter, which is made with PEFT, but that is not "
            "installed. Install it: pip install trl-prl[peft]. Or set `lora_rank=0`, which trains the model itself."
        ) from error
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type=task_type)
    return get_peft_model(model, config)
