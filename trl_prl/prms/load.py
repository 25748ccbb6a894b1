"""From a path, a hub id, an address or a name to a process reward."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer

from trl_prl.jobs.config import VerifierOptions
from trl_prl.jobs.named_options import annotations_of, for_no_model, read_options, split_options, take
from trl_prl.rewards.outcomes import import_object
from trl_prl.rewards.scoring import callable_name
from trl_prl.types import ProcessReward
from trl_prl.verifier.loading import check_causal, load_verifier_tokenizer
from trl_prl.verifier.model import ProcessAdvantageVerifier

from .checkpoint import FAMILY_NAMES, check_loading_options, check_weights, read_checkpoint, recognise
from .families import FAMILIES, Family
from .heads import LabelTokenClassifier, PooledModel, labelled
from .implicit import ImplicitProcessReward
from .judge import JudgeProcessReward
from .model import PublicProcessReward
from .refresh import OnlineVerifier
from .remote import RemoteProcessReward


# Heads and output layers stay as they are when a model is quantized.
_UNQUANTIZED = ["lm_head", "score", "classifier", "v_head"]
# Options of a model in this process, which a server has its own of.
_OF_WEIGHTS = {"device", "device_map", "dtype", "load_in_4bit", "load_in_8bit"}


def load_process_reward(process_reward: Any, **options: Any) -> ProcessReward:
    r"""
    Make a process reward of whatever says where one is.

    Everything that takes a verifier takes what this takes, and a text may carry options behind commas:
    `"my/prm,load_in_4bit=true"`. No remote code is run without
    `trust_remote_code=True`, and no pickle is read.

    Args:
        process_reward (`str`, `Path` or [`ProcessReward`]):
            - a folder or hub id: a verifier of [`PAVRewardTrainer`], a checkpoint of TRL's `PRMTrainer`,
              Qwen2.5-Math-PRM, Math-Shepherd, RLHFlow, Skywork, or an implicit PRM, recognised by its config and
              weights;
            - `http://...` or `https://...`: servers of `trl-prl serve`, several with commas between them;
            - a process reward itself, which is returned and has no options, or its `"module:name"`; a class is made
              without arguments.
        family (`str` or [`Family`], *optional*):
            The family where it cannot be recognised: `"verifier"`, `"trl"`, `"qwen"`, `"math-shepherd"`, `"rlhflow"`,
            `"skywork"`, `"implicit"`, `"judge"` for a model behind an OpenAI-compatible endpoint; or one of your own.
        reference (`str`, *optional*):
            Reference of an implicit PRM, which makes it one; one that learns needs none.
        device (`torch.device` or `str`, *optional*):
            Where to put a model; it stays on the CPU by default, and trainers move it to the process's device.
        dtype (`torch.dtype` or `str`, *optional*, defaults to `"auto"`):
            Precision; by default that of the weights.
        load_in_4bit, load_in_8bit (`bool`, *optional*):
            Quantize with bitsandbytes while loading.
        max_batch_tokens (`int`, *optional*, defaults to `16384`):
            Most tokens of a batch.
        revision (`str`, *optional*):
            Branch, tag or commit on the hub.
        **options:
            `vllm`, the address of `vllm serve MODEL --runner pooling`, which then runs the model; options of the
            family (`system_prompt`, `number_steps`, `step_separator`), of [`ImplicitProcessReward`],
            [`RemoteProcessReward`] and [`JudgeProcessReward`], of `OnlineVerifier` (`refresh_every`), `initial_value`
            and `max_length`. The others, such as `device_map`, are passed to `from_pretrained`.

    Returns:
        [`ProcessReward`]: The process reward.

    Raises:
        `TypeError`: If `process_reward` is neither a text nor callable.
        `ValueError`, `OSError`: If a model is of no known family, is not there, or not in safetensors format; or for
        an option that nothing would heed.

    Example:

    ```python
    >>> reward = load_process_reward("Qwen/Qwen2.5-Math-PRM-7B", device="cuda", load_in_8bit=True)
    >>> reward(prompts=["What is 1 + 2?"], steps=[["We add.\n\n", "The answer is 3."]])
    [[0.98, 0.99]]
    ```
    """
    if isinstance(process_reward, str | os.PathLike):
        path, written = split_options(os.fspath(process_reward))
        return _load_named(path, options, read_options(written, _known_options()))
    return _made_already(process_reward, options)


def _made_already(process_reward: Any, options: dict[str, Any]) -> ProcessReward:
    """Return a process reward as it is, with no options, as nothing would heed them."""
    if not callable(process_reward):
        raise TypeError(
            f"`process_reward` is a {type(process_reward).__name__}, which cannot score steps. Pass a function "
            "`(prompts, steps, **columns) -> list[list[float]]`, plain or async, or the path or hub id of a verifier."
        )
    if options:
        raise ValueError(
            f"Got the option {min(options)!r} beside the process reward '{callable_name(process_reward)}', which is "
            "made already, so nothing would heed it. Give its path or hub id instead, or leave the option out."
        )
    return process_reward


def _load_named(path: str, passed: dict[str, Any], written: dict[str, Any]) -> ProcessReward:
    """Load what a text names, with the options a caller passes along and those that are written behind it."""
    options = {**passed, **written}
    if path.startswith(("http://", "https://")):
        return RemoteProcessReward(path.split(","), **for_no_model(RemoteProcessReward.__init__, options, written))
    if options.get("family") == "judge":
        of_judge = written.keys() - {"family"}
        return JudgeProcessReward(path, **for_no_model(JudgeProcessReward.__init__, options, of_judge))
    if ":" in path and not Path(path).exists():
        for_no_model(lambda: None, options, written)
        found = import_object(path, "process reward")
        return found() if isinstance(found, type) else found
    if "vllm" in options:
        _refuse_beside("vllm", _OF_WEIGHTS & written.keys(), options)
    if options.get("family") not in (None, "implicit"):
        _refuse_beside("family", {"reference"} & options.keys(), options)
    return _load_model_reward(path, **options)


def _refuse_beside(name: str, unheeded: set[str], options: dict[str, Any]) -> None:
    if unheeded:
        raise ValueError(
            f"Got the option {min(unheeded)!r} beside {name}={options[name]!r}, where nothing would heed it. Leave "
            "one of the two out."
        )


def _known_options() -> dict[str, str]:
    """Annotations of all options that are heeded here; `from_pretrained` has others."""
    rewards = (RemoteProcessReward, JudgeProcessReward, PublicProcessReward, ImplicitProcessReward, OnlineVerifier)
    return annotations_of(*(one.__init__ for one in rewards), *FAMILIES.values(), _load_model_reward)


def _load_model_reward(
    path: str,
    *,
    family: str | Family | None = None,
    reference: str | None = None,
    device: Any = None,
    max_batch_tokens: int = 16384,
    revision: str | None = None,
    vllm: str | None = None,
    **options: Any,
) -> ProcessReward:
    checkpoint = read_checkpoint(path, revision)
    if family is None:
        family = "implicit" if reference else recognise(checkpoint)
    if isinstance(family, str) and family not in FAMILY_NAMES:
        raise ValueError(
            f"Got family={family!r}, which is not known here. Use one of {', '.join(FAMILY_NAMES)}, or a "
            "`trl_prl.prms.families.Family` that says how the model is asked and read."
        )
    if vllm is None:
        check_weights(checkpoint)
    kwargs = _loading_arguments(options, checkpoint.config, device)
    served = None if vllm is None else PooledModel.of(path, vllm, family, revision)
    if family == "verifier" and served is not None:
        for_no_model(lambda: None, options)
        tokenizer = load_verifier_tokenizer(path, revision)
        return ProcessAdvantageVerifier(served, tokenizer, max_batch_tokens=max_batch_tokens)
    if family == "verifier":
        refresh = take(options, OnlineVerifier.__init__)
        check_loading_options(options, OnlineVerifier.__init__)
        given: dict[str, Any] = {"max_batch_tokens": max_batch_tokens, "revision": revision}
        verifier = ProcessAdvantageVerifier.from_pretrained(path, **given, **kwargs, **options)
        verifier = _on_device(verifier, device, kwargs)
        if not refresh:
            return verifier
        return OnlineVerifier(
            verifier.model, verifier.tokenizer, verifier.settings, verifier.max_batch_tokens, **refresh
        )
    takers: list[Callable[..., Any]] = [
        ImplicitProcessReward.__init__ if family == "implicit" else PublicProcessReward
    ]
    if isinstance(family, str) and family in FAMILIES:
        takers.append(FAMILIES[family])
        family = FAMILIES[family](**take(options, FAMILIES[family]))
    check_loading_options(options, *takers)
    tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
    made: dict[str, Any] = {"max_batch_tokens": max_batch_tokens}
    if family == "implicit":
        implicit = _load_implicit(path, reference, tokenizer, revision, {**made, **options}, kwargs)
        return _on_device(implicit, device, kwargs)
    made |= take(options, PublicProcessReward.__init__)
    if not isinstance(family, Family):
        raise TypeError(f"`family` is {family!r}, but a name or a `trl_prl.prms.families.Family` says how to ask.")
    if served is not None:
        for_no_model(lambda: None, options)
        if family.labels is not None:
            served.config = labelled(served.config, "wrong", "right")
        return PublicProcessReward(served, tokenizer, family, **made)
    model = _load_model(path, family, tokenizer, revision=revision, **kwargs, **options)
    return _on_device(PublicProcessReward(model, tokenizer, family, **made), device, kwargs)


def _load_implicit(
    path: str, reference: str | None, tokenizer: Any, revision: str | None, options: dict[str, Any], kwargs: Any
) -> ImplicitProcessReward:
    if reference is None and "learning_rate" not in options:
        raise ValueError(
            f"'{path}' is an implicit PRM: its rewards are log-ratios to the model it was trained from, which was "
            "not given. Pass its id or folder as reference=..., for EurusPRM 'Qwen/Qwen2.5-Math-7B-Instruct'. One "
            "that learns (learning_rate=...) needs none."
        )
    made = take(options, ImplicitProcessReward.__init__)
    model, against = [
        name and AutoModelForCausalLM.from_pretrained(name, revision=at, use_safetensors=True, **kwargs, **options)
        for name, at in ((path, revision), (reference, None))
    ]
    return ImplicitProcessReward(model, tokenizer, against, **made)


def _on_device(reward: Any, device: Any, kwargs: dict[str, Any]) -> Any:
    # A quantized model was put there while it was loaded, one with a map all over.
    return reward if device is None or "device_map" in kwargs else reward.to(device)


def _loading_arguments(options: dict[str, Any], config: Any, device: Any) -> dict[str, Any]:
    """Arguments of `from_pretrained`, taken out of the options."""
    dtype = options.pop("dtype", "auto")
    kwargs: dict[str, Any] = {"dtype": dtype}
    if "device_map" in options:
        kwargs["device_map"] = options.pop("device_map")
    bits = {name: options.pop(name, False) for name in ("load_in_4bit", "load_in_8bit")}
    if any(bits.values()):
        from transformers import BitsAndBytesConfig

        stored = config.get("dtype") or config.get("torch_dtype") or "float32"
        kwargs["quantization_config"] = BitsAndBytesConfig(
            **bits,
            llm_int8_skip_modules=_UNQUANTIZED,
            bnb_4bit_compute_dtype=stored if dtype == "auto" else dtype,
        )
        if device is not None:
            kwargs.setdefault("device_map", {"": device})
    return kwargs


def _load_model(path: str, family: Family, tokenizer: Any, **kwargs: Any) -> Any:
    config = AutoConfig.from_pretrained(path, revision=kwargs["revision"], trust_remote_code=False)
    kwargs |= {"config": config, "output_loading_info": True, "use_safetensors": True}
    loader: Any = family.architecture or (AutoModelForCausalLM if family.labels else AutoModelForTokenClassification)
    model, loading = loader.from_pretrained(path, **kwargs)
    # The output layer of a language model may be its embedding, and stand under that name alone.
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(
            f"The checkpoint '{path}' lacks the weights {missing[:8]}, so its values would be random: it is no model "
            f"of the family {family.name!r}. Leave `family` out to have it recognised, or check the folder."
        )
    model.eval()
    if family.labels is None:
        check_causal(model)
        return model
    right, wrong = (tokenizer.encode(label, add_special_tokens=False)[-1] for label in family.labels)
    return LabelTokenClassifier(model, wrong, right).eval()


def default_device() -> str:
    """The accelerator of this machine if there is one, else the CPU."""
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if accelerator is None else accelerator.type


def load_verifier(options: VerifierOptions) -> Any:
    """The verifier that options of the command line name, on their device or the accelerator of this machine."""
    return load_process_reward(
        options.verifier,
        device=options.device or default_device(),
        dtype=options.dtype,
        max_batch_tokens=options.batch_tokens,
    )
