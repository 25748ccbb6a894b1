"""Loading a verifier's model from a checkpoint or an adapter."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from trl_prl.generation.adapters import adapter_folder, adapter_weights
from trl_prl.storage.missing import say_missing


# Any of these holds a tokenizer.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
)


def load_verifier_tokenizer(path: str | Path, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """Load a verifier's tokenizer, and say what is wrong with a path that holds no verifier.

    Args:
        path (`str` or `Path`):
            Folder or hub id.
        revision (`str`, *optional*):
            Branch, tag or commit on the hub.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether Python code that comes with it may be run.

    Returns:
        [`~transformers.PreTrainedTokenizerBase`]: The tokenizer.

    Raises:
        `OSError`: If the path is neither a folder with a model and a tokenizer nor a model on the hub.
    """
    folder = Path(path)
    if folder.is_dir():
        _check_folder(folder)
        return AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    try:
        return AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise OSError(
            f"{say_missing('verifier', path, error)} Looked for config.json, a tokenizer "
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
    path: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    **model_kwargs: Any,
) -> Any:
    """Load a trained token-classification model, or a PEFT adapter merged into its base.

    Args:
        path (`str` or `Path`):
            Folder or hub id.
        dtype (`torch.dtype` or `str`, *optional*, defaults to `"auto"`):
            Precision; by default that of the weights.
        revision (`str`, *optional*):
            Branch, tag or commit on the hub.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether Python code that comes with it may be run.
        **model_kwargs:
            Passed to `AutoModelForTokenClassification.from_pretrained`.

    Returns:
        [`~transformers.PreTrainedModel`]: The model. Pickled weights are not read, only safetensors.

    Raises:
        `ValueError`: If the checkpoint is another kind of model or has no trained value head, or is not causal.
        `OSError`: If an adapter's weights are not in safetensors format.
    """
    config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    check_architecture(config, str(path))
    adapter = adapter_folder(path, revision)
    base, base_revision = (path, revision) if adapter is None else _base_of(adapter)
    with without_notes_on_new_weights():
        model, loading = AutoModelForTokenClassification.from_pretrained(
            base,
            config=config,
            dtype=dtype,
            revision=base_revision,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **model_kwargs,
        )
    # Only the value head may be missing in the base of an adapter, which then brings it.
    brought = set() if adapter is None else adapter_weights(adapter)
    missing = sorted(k for k in loading["missing_keys"] if not any(name.endswith(f".{k}") for name in brought))
    if missing:
        raise ValueError(
            f"The checkpoint '{path}' lacks the weights {missing}, so its values would be random. It is not a trained "
            "token-classification model. Train one with `PAVRewardTrainer`, then load what it saved."
        )
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    check_causal(model)
    return model


def _base_of(adapter: Path) -> tuple[str, str | None]:
    """Path or hub id of the model that an adapter belongs to, and its revision."""
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(str(adapter))
    return str(config.base_model_name_or_path), config.revision


def check_architecture(config: Any, path: str) -> None:
    """Refuse a checkpoint that was trained to judge whole texts.

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            Its config.
        path (`str`):
            Where it lies, for the message.

    Raises:
        `ValueError`: If it says that it is a sequence-classification model.
    """
    found = [name for name in getattr(config, "architectures", None) or () if "SequenceClassification" in name]
    if found:
        raise ValueError(
            f"'{path}' is a {found[0]}: a sequence-classification model, which gives a whole text one score, and a "
            "verifier needs a value after every step. Use it as one of the `reward_funcs`, or train a verifier with "
            "`PAVRewardTrainer`."
        )


@contextmanager
def without_notes_on_new_weights() -> Iterator[None]:
    """Keep `transformers` from reporting a value head that an adapter or the training is about to bring."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


@torch.no_grad()
def check_causal(model: Any) -> None:
    """Refuse a model that reads the text to come: its value of a step would depend on later steps.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Token-classification model. One whose weights are not there yet (partitioned, or without data) is not
            checked, and neither is a quantized one: on a CPU, bitsandbytes turns 4-bit weights at their first forward
            in evaluation mode into a form that has no gradient, without an error.

    Raises:
        `ValueError`: If it has no value per token, the values are not finite, or the logit of a token changes with the
            tokens behind it.
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
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    finally:
        model.train(was_training)
    if logits.dim() != 3 or logits.shape[-1] > 2:
        raise ValueError(
            f"The model is a {type(model).__name__}, whose output has the shape {tuple(logits.shape)} for 2 texts of "
            "8 tokens, and a verifier has one value (or two classes) per token. Use a token-classification model."
        )
    logits = logits[:, :4].float()
    if not logits.isfinite().all():
        raise ValueError(
            f"The model is a {type(model).__name__}, whose logits of a text are not finite in {model.dtype}: "
            "it has weights that are NaN or infinite, so it can score nothing. Use an earlier checkpoint of its "
            "training, or `dtype='float32'` if only its precision is too low."
        )
    if not torch.allclose(logits[0], logits[1], rtol=1e-2, atol=1e-3):
        raise ValueError(
            f"The model is a {type(model).__name__}, which attends in both directions: the value of a step would "
            "depend on the steps after it, which do not exist yet when a policy writes it. Use a causal model, such "
            "as the policy's own base model."
        )


def load_untrained_model(path: str, args: Any, quantization_config: Any = None) -> Any:
    """Load what a verifier is trained from: any language model, with a value head at random weights.

    Args:
        path (`str`):
            Path or hub id.
        args ([`PAVRewardConfig`]):
            Settings: `model_init_kwargs` and `trust_remote_code`.
        quantization_config (`BitsAndBytesConfig`, *optional*):
            Quantization of everything but the value head.

    Returns:
        [`~transformers.PreTrainedModel`]: The model, with one label.
    """
    kwargs: dict[str, Any] = {"dtype": "float32", "trust_remote_code": args.trust_remote_code}
    if quantization_config is not None:
        quantization_config = copy.deepcopy(quantization_config)
        # The value head starts at random weights and has to learn, so it stays as it is.
        skipped = getattr(quantization_config, "llm_int8_skip_modules", None) or []
        quantization_config.llm_int8_skip_modules = [*skipped, "score", "classifier"]
        # The base class turns adapter and value head into bfloat16; what is not quantized has to match them.
        kwargs |= {"quantization_config": quantization_config, "dtype": "bfloat16"}
    kwargs.update(args.model_init_kwargs or {})  # type: ignore[arg-type]
    with without_notes_on_new_weights():  # that the value head is new goes without saying
        return AutoModelForTokenClassification.from_pretrained(path, num_labels=1, **kwargs)


def read_template(path: str) -> str:
    """Read a chat template from a Jinja file, and refuse anything else."""
    if not (path.endswith((".jinja", ".j2")) and Path(path).is_file()):
        raise ValueError(
            f"`chat_template_path` is {path!r}, which is no Jinja file (.jinja or .j2). A template of another "
            "tokenizer may bring new tokens. Apply `trl.clone_chat_template` to model and tokenizer, then pass both."
        )
    return Path(path).read_text(encoding="utf-8")


def with_value_head(peft_config: Any) -> Any:
    """An adapter for what is trained here: PEFT wraps by task, and adds the value head by itself to token classifiers.

    The task of TRL's own options is that of a language model, whose wrapper asks for methods of generation.
    """
    if peft_config is None:
        return None
    peft_config = copy.deepcopy(peft_config)
    peft_config.task_type = "TOKEN_CLS"
    return peft_config
