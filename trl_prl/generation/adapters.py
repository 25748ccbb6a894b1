"""PEFT adapters: where one lies, and what its safetensors file holds. Pickled weights are never read."""

from __future__ import annotations

from pathlib import Path


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
