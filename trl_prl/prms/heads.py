"""Public process reward models as modules of ours: heads that load their weights without remote code, and a model that
runs in vLLM's server."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, Qwen2ForTokenClassification, Qwen2Model, Qwen2PreTrainedModel
from transformers.modeling_outputs import TokenClassifierOutput

from trl_prl.credit.step_tensors import precise
from trl_prl.generation.server_calls import UnusableAnswerError, served_as

from .remote import http_answer, http_calls


# Tokens whose logits over the vocabulary are computed at a time.
_TOKENS_PER_CHUNK = 2048
# Settings under which a logit is not the product of a hidden state and a row of the output layer.
_LOGIT_SETTINGS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


def labelled(config: Any, *names: str) -> Any:
    """A copy of a config that names the columns of a head made here; what it said of others would be taken for them.

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            Config of the model.
        *names (`str`):
            What each column means, see [`right_label`](../verifier/batches.py).

    Returns:
        [`~transformers.PreTrainedConfig`]: The copy.
    """
    config = copy.deepcopy(config)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: i for i, name in enumerate(names)}
    return config


class QwenProcessRewardModel(Qwen2ForTokenClassification):
    """Qwen2.5-Math-PRM: Qwen2 with a two-layer head over two labels, the second for a right step.

    Weights are `model.*`, `score.0.*` and `score.2.*`; all else is inherited unchanged.
    """

    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]  # noqa: RUF012

    def __init__(self, config: Any) -> None:
        super().__init__(labelled(config, "wrong", "right"))
        size = config.hidden_size
        self.score = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, 2))  # type: ignore[assignment]
        self.post_init()


class SkyworkProcessRewardModel(Qwen2PreTrainedModel):
    """Skywork o1 Open PRM: Qwen2 with a value head, whose sigmoid is the value.

    Overrides `forward` of [`~transformers.PreTrainedModel`]; weights are `model.*` and `v_head.summary.*`.
    """

    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]  # noqa: RUF012

    def __init__(self, config: Any) -> None:
        super().__init__(labelled(config, "right"))
        self.model = Qwen2Model(self.config)
        self.v_head = nn.ModuleDict({"summary": nn.Linear(config.hidden_size, 1)})
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **kwargs: Any) -> TokenClassifierOutput:
        """Logits of shape (B, T, 1)."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        head = self.v_head["summary"]
        return TokenClassifierOutput(logits=head(hidden.to(head.weight.dtype)))


class LabelTokenClassifier(nn.Module):
    """A causal language model as a classifier: its logits of two tokens, without those of the rest of the vocabulary.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Causal language model. Its output layer is reduced to two rows, as a copy.
        wrong (`int`), right (`int`):
            Ids of the two tokens.

    Raises:
        `ValueError`: If the model scales or caps its logits.
    """

    def __init__(self, model: Any, wrong: int, right: int) -> None:
        super().__init__()
        _refuse_scaled_logits(model.config)
        self.config = labelled(model.config, "wrong", "right")
        self.hf_device_map = getattr(model, "hf_device_map", None)
        self.body = model.base_model
        output = model.get_output_embeddings()
        rows = [wrong, right]
        with torch.no_grad(), _whole(output):
            self.score = nn.Linear(output.weight.shape[1], 2, bias=getattr(output, "bias", None) is not None)
            self.score.weight = nn.Parameter(output.weight[rows].clone(), requires_grad=False)
            if self.score.bias is not None:
                self.score.bias = nn.Parameter(output.bias[rows].clone(), requires_grad=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **kwargs: Any) -> TokenClassifierOutput:
        """Logits of shape (B, T, 2)."""
        hidden = self.body(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        return TokenClassifierOutput(logits=self.score(hidden.to(self.score.weight.device)))


class LogRatio(nn.Module):
    """Two language models as one scorer: the sum of their log-ratio over the tokens up to each.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Causal language model.
        reference ([`~transformers.PreTrainedModel`], *optional*):
            Its reference; by default the model itself without its adapters, which then is a `PeftModel`.

    Raises:
        `ValueError`: If one of them scales or caps its logits.
    """

    def __init__(self, model: Any, reference: Any = None) -> None:
        super().__init__()
        for one in (model, reference or model):
            _refuse_scaled_logits(one.config)
        self.config = labelled(model.config, "right")
        self.hf_device_map = getattr(model, "hf_device_map", None)
        self.model, self.reference = model, reference

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **kwargs: Any) -> TokenClassifierOutput:
        """Sums of shape (B, T, 1), precise, as differences of large sums are asked for; the reference is frozen."""
        without_adapters = self.model.disable_adapter() if self.reference is None else nullcontext()
        with torch.no_grad(), without_adapters:
            reference = _token_logps(self.reference or self.model, input_ids, attention_mask, **kwargs)
        ratio = _token_logps(self.model, input_ids, attention_mask, **kwargs) - reference
        ratio = nn.functional.pad(ratio, (1, 0)) * attention_mask
        return TokenClassifierOutput(logits=ratio.cumsum(1).unsqueeze(-1))


class PooledModel(nn.Module):
    r"""
    A token classifier that runs in vLLM's pooling runner, in the place of a model in this process.

    `vllm serve MODEL --runner pooling` answers a text with the logits of all its tokens, from which its family reads
    those of steps. [`load_process_reward`] makes it with the option `vllm`.

    Args:
        url (`str`):
            Address, such as `"http://10.0.0.7:8000"`.
        model (`str`):
            Folder or hub id of the served model, compared by the last part of its name.
        config ([`~transformers.PreTrainedConfig`]):
            Its config.
        timeout (`float`, *optional*, defaults to `120.0`):
            Seconds for the request of one solution.
        max_wait (`float`, *optional*, defaults to `300.0`):
            Seconds for a solution with all attempts.

    Raises:
        `ImportError`: If httpx or tenacity is not installed.
        `ConnectionError`: If the server does not answer in time.
        `ValueError`: If it serves another model.
    """

    def __init__(self, url: str, model: str, config: Any, *, timeout: float = 120.0, max_wait: float = 300.0) -> None:
        super().__init__()
        self.config = config
        # Whoever asks where the model lies finds a place.
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)
        self._calls = http_calls(
            [url.rstrip("/")],
            None,
            timeout=timeout,
            max_attempts=20,
            max_wait=max_wait,
            concurrency=64,
            advice="Check that `vllm serve MODEL --runner pooling` runs there.",
        )
        self._served = next(self._calls.each(_served_name, [model], lambda _: "/v1/models"))

    @classmethod
    def of(cls, path: str, url: str, family: Any, revision: str | None = None) -> PooledModel:
        """A model at a server, by the folder or hub id of its config.

        Raises:
            `ValueError`: If vLLM cannot compute the scores of its family.
        """
        if family in ("implicit", "skywork"):
            raise ValueError(
                f"Got vllm={url!r} for '{path}' of the family {family!r}, whose scores vLLM's pooling runner cannot "
                "compute. Serve it with `trl-prl serve`, or leave `vllm` out."
            )
        return cls(url, path, AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **kwargs: Any) -> TokenClassifierOutput:
        """Logits of shape (B, T, L) for texts that are padded on the right; zeros behind their ends."""
        texts = [row[: int(mask.sum())].tolist() for row, mask in zip(input_ids, attention_mask, strict=True)]
        logits = torch.zeros(*input_ids.shape, self.config.num_labels)
        found = self._calls.each(self._pool, texts, lambda text: f"a text of {len(text)} tokens")
        for row, numbers in zip(logits, found, strict=True):
            row[: len(numbers)] = torch.tensor(numbers)
        return TokenClassifierOutput(logits=logits.to(input_ids.device))

    async def _pool(self, client: Any, text: list[int]) -> list[list[float]]:
        body = {"model": self._served, "input": text, "task": "token_classify", "use_activation": False}
        answer = await http_answer(client, "POST", "/pooling", json=body)
        try:
            rows = answer["data"][0]["data"]
            shape = len(rows), {len(row) for row in rows}
        except (KeyError, IndexError, TypeError) as error:
            raise UnusableAnswerError(
                f"an answer that is none to /pooling ({type(error).__name__}: {error})"
            ) from error
        if shape != (len(text), {self.config.num_labels}):
            raise ValueError(
                f"{client.base_url} answered a text of {len(text)} tokens with {shape[0]} rows of {sorted(shape[1])} "
                f"numbers, not with {self.config.num_labels} logits of each token. Serve the same model, with "
                "`--runner pooling`; a classifier made of two tokens needs `--hf-overrides`, see docs/public_prms.md."
            )
        return rows  # type: ignore[no-any-return]


async def _served_name(client: Any, model: str) -> str:
    answer = await http_answer(client, "GET", "/v1/models")
    try:
        names = [str(entry["id"]) for entry in answer["data"]]
    except (KeyError, TypeError) as error:
        raise UnusableAnswerError(f"no names of models ({type(error).__name__}: {error})") from error
    if not names:
        raise UnusableAnswerError("no model")
    return served_as(model, names, str(client.base_url))


def _token_logps(model: Any, input_ids: Tensor, attention_mask: Tensor, **kwargs: Any) -> Tensor:
    """Log-probabilities of the tokens behind the first, of shape (B, T - 1), in the precision of [`precise`]."""
    # Of a PEFT model, the one that the adapters are in.
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = model.base_model(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
    return precise(_chosen_logps(model.get_output_embeddings(), hidden[:, :-1], input_ids[:, 1:]))


def _chosen_logps(output: nn.Module, hidden: Tensor, ids: Tensor) -> Tensor:
    def chosen(part: Tensor, labels: Tensor) -> Tensor:
        # `forward`, because hooks of ZeRO-3 would let go of the weights behind each chunk, and gather them again.
        return torch.log_softmax(output.forward(part).float(), -1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)

    # Processes gather together, but have texts of other lengths, and so other numbers of chunks.
    with _whole(output):
        flat = [
            # A chunk at a time, and once more for the gradient: all logits of a batch can be larger than the model.
            checkpoint(chosen, part, labels, use_reentrant=False) if part.requires_grad else chosen(part, labels)
            for part, labels in zip(
                hidden.flatten(0, 1).split(_TOKENS_PER_CHUNK), ids.flatten().split(_TOKENS_PER_CHUNK), strict=True
            )
        ]
    return torch.cat(flat).reshape(ids.shape) if flat else hidden.new_zeros(ids.shape)


def _whole(module: nn.Module) -> Any:
    """Gather the weights of a module that ZeRO-3 has partitioned; all processes do so together."""
    parameters = list(module.parameters())
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        return nullcontext()
    from deepspeed import zero

    return zero.GatheredParameters(parameters)


def _refuse_scaled_logits(config: Any) -> None:
    found = [name for name in _LOGIT_SETTINGS if getattr(config, name, None) not in (None, 1, 1.0)]
    if found:
        raise ValueError(
            f"The model's config has {found[0]}={getattr(config, found[0])}, so its logits are no products of hidden "
            "states and rows of the output layer, from which they are computed here. Use a model without it, or a "
            "process reward of your own: a function `(prompts, steps, **columns) -> list[list[float]]`."
        )
