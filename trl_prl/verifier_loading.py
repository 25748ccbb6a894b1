"""Loading a verifier's model from a checkpoint or an adapter, fitting its calibration, cutting text as it wants it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer
from transformers.utils import find_adapter_config_file

from trl_prl.steps import get_splitter, split_text


# Any of these holds a tokenizer.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
)


def load_verifier_tokenizer(path: str | Path, revision: str | None = None) -> Any:
    """Load a verifier's tokenizer, and say what is wrong with a path that holds no verifier.

    Args:
        path (`str` or `Path`):
            Folder or hub id.
        revision (`str`, *optional*):
            Branch, tag or commit on the hub.

    Returns:
        [`~transformers.PreTrainedTokenizerBase`]: The tokenizer.

    Raises:
        `OSError`: If the path is neither a folder with a model and a tokenizer nor a model on the hub.
    """
    folder = Path(path)
    if folder.is_dir():
        _check_folder(folder)
        return AutoTokenizer.from_pretrained(path, revision=revision)
    try:
        return AutoTokenizer.from_pretrained(path, revision=revision)
    except (OSError, ValueError) as error:
        siblings = [entry.name for entry in folder.parent.iterdir()] if folder.parent.is_dir() else []
        near = difflib.get_close_matches(folder.name, siblings, n=1)
        hint = f" Did you mean '{folder.parent / near[0]}'?" if near else ""
        raise OSError(
            f"The verifier '{path}' is neither a folder here ('{folder.absolute()}' does not exist) nor a model that "
            f"can be had from the hub ({' '.join(str(error).split())}).{hint} Looked for config.json, a tokenizer "
            f"({', '.join(TOKENIZER_FILES[:2])}) and weights in safetensors format. Give the folder that "
            "`PAVRewardTrainer` or `ProcessAdvantageVerifier.save_pretrained` wrote, or the id of one on the hub."
        ) from error


def _check_folder(folder: Path) -> None:
    names = {entry.name for entry in folder.iterdir()}
    missing = [] if "config.json" in names else ["config.json"]
    if not names & set(TOKENIZER_FILES):
        missing.append(f"a tokenizer (any of {', '.join(TOKENIZER_FILES)})")
    if missing:
        inside = [f"{name}/" for name in sorted(names) if (folder / name / "config.json").is_file()]
        hint = f" The folder holds {', '.join(inside)}: give one of these." if inside else ""
        raise OSError(
            f"The folder '{folder}' holds no verifier: {' and '.join(missing)} not found in it.{hint} A verifier is a "
            "model and its tokenizer. Give the folder that `PAVRewardTrainer.save_model` or "
            "`ProcessAdvantageVerifier.save_pretrained` wrote, or save the tokenizer there too."
        )


def load_verifier_model(
    path: str | Path, *, dtype: torch.dtype | str = "auto", revision: str | None = None, **model_kwargs: Any
) -> Any:
    """Load a trained token-classification model, or a PEFT adapter merged into its base.

    Args:
        path (`str` or `Path`):
            Folder or hub id.
        dtype (`torch.dtype` or `str`, *optional*, defaults to `"auto"`):
            Precision; by default that of the weights.
        revision (`str`, *optional*):
            Branch, tag or commit on the hub.
        **model_kwargs:
            Passed to `AutoModelForTokenClassification.from_pretrained`.

    Returns:
        [`~transformers.PreTrainedModel`]: The model. Pickled weights are not read, only safetensors.

    Raises:
        `ValueError`: If the checkpoint has no trained value head, or the model is not causal.
    """
    config = AutoConfig.from_pretrained(path, revision=revision)
    model_kwargs = {"config": config, "dtype": dtype, "use_safetensors": True, **model_kwargs}
    if _is_adapter(path, revision):
        return _load_merged_adapter(path, revision, model_kwargs)
    model, loading = AutoModelForTokenClassification.from_pretrained(
        path, revision=revision, output_loading_info=True, **model_kwargs
    )
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(
            f"The checkpoint '{path}' lacks the weights {missing}, so its values would be random. It is not a trained "
            "token-classification model. Train one with `PAVRewardTrainer`, then load what it saved."
        )
    check_causal(model)
    return model


@torch.no_grad()
def check_causal(model: Any) -> None:
    """Refuse a model that reads the text to come: its value of a step would depend on later steps.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Token-classification model. One whose weights are not there yet (partitioned, or without data) is not
            checked, and neither is a quantized one: on a CPU, bitsandbytes turns 4-bit weights at their first forward
            in evaluation mode into a form that has no gradient, without an error.

    Raises:
        `ValueError`: If the logit of a token changes with the tokens behind it.
    """
    if getattr(model, "is_quantized", False) or any(
        parameter.is_meta or hasattr(parameter, "ds_id") for parameter in model.parameters()
    ):
        return
    device = model.get_input_embeddings().weight.device
    size = model.get_input_embeddings().weight.shape[0]
    # From the middle of the vocabulary: low ids are special in many.
    ids = torch.full((2, 8), size // 2, device=device)
    ids[1, 4:] = size // 3
    was_training = model.training
    model.eval()
    try:
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, :4].float()
    finally:
        model.train(was_training)
    if not torch.allclose(logits[0], logits[1], rtol=1e-2, atol=1e-3):
        raise ValueError(
            f"The model is a {type(model).__name__}, which attends in both directions: the value of a step would "
            "depend on the steps after it, which do not exist yet when a policy writes it. Use a causal model, such "
            "as the policy's own base model."
        )


def _is_adapter(path: str | Path, revision: str | None) -> bool:
    if Path(path).is_dir():
        return (Path(path) / "adapter_config.json").is_file()
    # Without a connection it looks in the cache, and finds none rather than failing.
    return find_adapter_config_file(str(path), revision=revision) is not None


def _load_merged_adapter(path: str | Path, revision: str | None, model_kwargs: dict[str, Any]) -> Any:
    from peft import PeftConfig, PeftModel

    base = PeftConfig.from_pretrained(str(path), revision=revision).base_model_name_or_path
    # Only the value head is missing in the base, and the adapter brings it.
    model = AutoModelForTokenClassification.from_pretrained(base, **model_kwargs)
    return PeftModel.from_pretrained(model, str(path), revision=revision).merge_and_unload()


def fit_calibration(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Fit `sigmoid(logit / temperature + offset)` to soft labels by cross-entropy.

    Source: Platt scaling, and for the temperature alone Guo et al.,
    [On Calibration of Modern Neural Networks](https://huggingface.co/papers/1706.04599), section 4.2.

    Args:
        logits (`torch.Tensor` of shape (N,)):
            Logits before calibration.
        labels (`torch.Tensor` of shape (N,)):
            Labels in [0, 1].

    Returns:
        `tuple[float, float]`: Temperature, positive, and offset.
    """
    x, y = logits.double(), labels.double()
    # The slope as a logarithm: the temperature stays positive, and with it the order of values.
    parameters = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        # A thousandth of a label on either side keeps the fit finite where the labels are separable.
        fitted = x * parameters[0].exp() + parameters[1]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(fitted, y.clamp(1e-3, 1 - 1e-3))
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    log_slope, offset = parameters.tolist()
    return math.exp(-log_slope), offset


def text_splitter(verifier: Any, name: str | None = None) -> Callable[[str], list[str]]:
    """A function that cuts plain text into the steps that a verifier scores.

    Args:
        verifier ([`ProcessAdvantageVerifier`]):
            The verifier.
        name (`str`, *optional*):
            Name of the splitter, see [`get_splitter`]; the one stored with the verifier by default.

    Returns:
        `Callable[[str], list[str]]`: The steps of a text; joined, they are the text.

    Raises:
        `ValueError`: If there is no such splitter.
    """
    settings = verifier.settings
    name = name or settings.step_splitter or "newline"
    splitter = get_splitter(name, step_length=settings.step_length)
    tokenizer = verifier.tokenizer if name == "fixed" else None
    return lambda text: split_text(splitter, text, tokenizer)
