"""What a checkpoint is, told from its config and the names of its weights, before any weight is loaded."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers.utils import cached_file

from trl_prl.verifier.loading import load_verifier_tokenizer

from .families import FAMILIES


FAMILY_NAMES = ("verifier", *FAMILIES, "implicit", "judge")

# Language models that are asked as a family asks them, but look like any other language model from outside.
_KNOWN_NAMES = {
    re.compile(r"math-shepherd.*prm", re.IGNORECASE): "math-shepherd",
    re.compile(r"llama3\.1-8b-prm-(deepseek|mistral)-data", re.IGNORECASE): "rlhflow",
    re.compile(r"eurusprm-stage", re.IGNORECASE): "implicit",
}

# What `from_pretrained` takes and nothing here has a word of its own for.
_LOADING_OPTIONS = frozenset(
    {"attn_implementation", "cache_dir", "code_revision", "key_mapping", "local_files_only", "low_cpu_mem_usage"}
    | {"max_memory", "offload_buffers", "offload_folder", "quantization_config", "subfolder", "token", "torch_dtype"}
    | {"trust_remote_code", "use_kernels", "variant"}
)


@dataclass(frozen=True)
class Checkpoint:
    """What is known of a checkpoint without its weights.

    Args:
        path (`str`):
            Folder or hub id.
        config (`Mapping`):
            Its `config.json`.
        weights (`frozenset[str]`):
            Names of its weights in safetensors format; empty if there are none.
        has_adapter (`bool`):
            Whether it is a PEFT adapter.
    """

    path: str
    config: Mapping[str, Any]
    weights: frozenset[str]
    has_adapter: bool = False

    @property
    def architecture(self) -> str:
        """Class of the model, as its authors named it; empty if the config does not say."""
        return str((self.config.get("architectures") or [""])[0])


def read_checkpoint(path: str, revision: str | None = None) -> Checkpoint:
    """Read config and weight names of a folder or of a model on the hub.

    Args:
        path (`str`):
            Folder or hub id.
        revision (`str`, *optional*):
            Branch, tag or commit on the hub.

    Returns:
        [`Checkpoint`]: What was found.

    Raises:
        `OSError`: If there is no model with its tokenizer.
    """

    def find(name: str) -> str | None:
        try:
            return cached_file(path, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        except (OSError, ValueError):
            return None

    config = find("config.json")
    settings = _json(config)
    if config is None or Path(path).is_dir():
        load_verifier_tokenizer(path, revision)  # says what is missing, in words
    has_adapter = find("adapter_config.json") is not None
    return Checkpoint(path, settings, frozenset(_weight_names(find)), has_adapter)


def _json(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}). Write the model or download it anew.") from error
    return found if isinstance(found, dict) else {}


def _weight_names(find: Callable[[str], str | None]) -> list[str]:
    index = find("model.safetensors.index.json")
    if index is not None:
        return list(_json(index)["weight_map"])
    single = find("model.safetensors")
    if single is None:
        return []
    with safe_open(single, framework="pt") as file:
        return list(file.keys())


def recognise(checkpoint: Checkpoint) -> str:
    """Tell the family of a checkpoint.

    Args:
        checkpoint ([`Checkpoint`]):
            What was found.

    Returns:
        `str`: One of `FAMILY_NAMES`.

    Raises:
        `ValueError`: If it cannot be told, with what was found and what can be done.
        `OSError`: If there are only pickled weights.
    """
    names, architecture, config = checkpoint.weights, checkpoint.architecture, checkpoint.config
    if checkpoint.has_adapter or "verifier" in config:
        return "verifier"
    if architecture == "Qwen2ForProcessRewardModel" or {"score.0.weight", "score.2.weight"} <= names:
        return "qwen"
    if "v_head.summary.weight" in names:
        return "skywork"
    if architecture.endswith("ForTokenClassification"):
        return "trl" if len(config.get("id2label") or (0, 1)) == 2 else "verifier"
    if architecture.endswith("ForCausalLM"):
        known = (str(checkpoint.path), str(config.get("_name_or_path", "")))
        for pattern, family in _KNOWN_NAMES.items():
            if any(pattern.search(Path(name).name) for name in known):
                return family
    raise ValueError(_unknown(checkpoint))


def check_weights(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint without safetensors.

    Args:
        checkpoint ([`Checkpoint`]):
            What was found.

    Raises:
        `OSError`: If there are none.
    """
    if not checkpoint.weights and not checkpoint.has_adapter:
        raise OSError(
            f"'{checkpoint.path}' has no weights in safetensors format, only pickled ones or none; a pickle can run "
            "code when it is read. Where you trust its authors, convert it once: "
            "`AutoModelForCausalLM.from_pretrained(path, use_safetensors=False).save_pretrained(folder)`, save the "
            "tokenizer there too, and give that folder."
        )


def _unknown(checkpoint: Checkpoint) -> str:
    heads = sorted(
        name for name in checkpoint.weights if not re.match(r"(model|transformer|lm_head|gpt_neox)\.", name)
    )
    found = [f"architecture {checkpoint.architecture or 'not said'}"]
    found += [f"model type {checkpoint.config['model_type']}"] if "model_type" in checkpoint.config else []
    found += [f"labels {checkpoint.config['id2label']}"] if "id2label" in checkpoint.config else []
    found.append(f"weights besides the body: {', '.join(heads[:8]) or 'none'}")
    return (
        f"'{checkpoint.path}' is no process reward model of a family that is known here. Found: {'; '.join(found)}. "
        f"If it is one, say which: family=... with one of {', '.join(FAMILY_NAMES)} (a language model does not show "
        "it; 'implicit' also needs its reference=...). If it is of another family, give a "
        "`trl_prl.prms.families.Family` of a few lines that says how it is asked and read, see docs/public_prms.md."
    )


def check_loading_options(options: Mapping[str, Any], *functions: Callable[..., Any]) -> None:
    """Refuse an option that would reach the constructor of the model, such as a slip of the pen.

    Args:
        options (`Mapping[str, Any]`):
            What was given and not taken yet.
        functions (`Callable`):
            What takes options besides `from_pretrained`, by the names of its parameters.

    Raises:
        `ValueError`: If nothing takes an option.
    """
    taken = {name for function in functions for name in inspect.signature(function).parameters}
    if unknown := sorted(set(options) - taken - _LOADING_OPTIONS):
        names = {"family", "reference", "device", "device_map", "dtype", "revision", "vllm"}
        names |= {"load_in_4bit", "load_in_8bit"}
        taken -= {"self", "model", "tokenizer", "settings", "kwargs"}
        raise ValueError(
            f"Got the option {unknown[0]!r}, which nothing would heed. Use one of {', '.join(sorted(names | taken))}, "
            "or an argument of `from_pretrained`."
        )
