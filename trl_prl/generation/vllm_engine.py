"""Generation with vLLM, in this process or behind `vllm serve`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from trl_prl.steps.token_pieces import TokenPieces
from trl_prl.types import Completion, Prompt, SamplingParams

from .engines import check_urls, completion_of, finish_reason_of, key_of, tell
from .sampling import request_seed
from .server_answers import check_ids
from .server_calls import UnusableAnswerError, served_as


class VLLMGenerator:
    """A [`Generator`] over vLLM in this process, which shares the blocks of common prefixes.

    Each sample is a request with a seed of its own. vLLM's kernels depend on the batch, so samples are reproducible up
    to rounding.

    Args:
        model (`str` or `vllm.LLM`):
            Path or Hub id; or an engine that is there already, such as that of a trainer.
        **llm_kwargs:
            Further arguments of `vllm.LLM`, such as `dtype` or `gpu_memory_utilization`.

    Raises:
        `ImportError`: When vLLM is not installed.
    """

    on_sample: Callable[[int], None] | None = None

    def __init__(self, model: Any, **llm_kwargs: Any) -> None:
        self.llm = _engine(model, llm_kwargs) if isinstance(model, str) else model
        self.tokenizer = self.llm.get_tokenizer()
        self._pieces = TokenPieces(self.tokenizer)
        # An engine of another release, or one that stands for it, may not say.
        config = getattr(getattr(self.llm, "llm_engine", None), "model_config", None)
        self.max_length: int | None = getattr(config, "max_model_len", None)

    def generate(self, prompts: list[Prompt], params: SamplingParams) -> list[list[Completion]]:
        """Sample continuations, as [`Generator`] says."""
        from vllm import SamplingParams as VLLMSamplingParams

        requests = [(i, j) for i in range(len(prompts)) for j in range(params.n)]
        outputs = self.llm.generate(
            [{"prompt_token_ids": list(prompts[i].token_ids)} for i, _ in requests],
            [
                VLLMSamplingParams(
                    n=1,
                    temperature=params.temperature,
                    top_p=params.top_p,
                    top_k=params.top_k,
                    max_tokens=prompts[i].max_tokens or params.max_tokens,
                    stop=list(params.stop),
                    include_stop_str_in_output=True,
                    seed=request_seed(params.seed, key_of(prompts, i), j),
                )
                for i, j in requests
            ],
            use_tqdm=False,
        )
        samples: list[list[Completion]] = [[] for _ in prompts]
        for (i, _), output in zip(requests, outputs, strict=True):
            (sample,) = output.outputs
            reason = finish_reason_of(sample.finish_reason, isinstance(sample.stop_reason, str))
            samples[i].append(completion_of(self._pieces, sample.token_ids, reason))
            tell(self.on_sample, samples[i][-1:])
        return samples


def _engine(model: str, llm_kwargs: dict[str, Any]) -> Any:
    try:
        from vllm import LLM
    except ImportError as error:
        raise ImportError(
            f"Got the model {model!r} to run with vLLM, which is not installed. Install it: pip install "
            "trl-prl[vllm], or use another generator."
        ) from error
    return LLM(model, **{"enable_prefix_caching": True, **llm_kwargs})


class VLLMServerGenerator:
    """A [`Generator`] over servers started by `vllm serve`, through TRL's own client.

    Args:
        base_urls (`Sequence[str]`):
            Addresses; prompts are dealt out among them by their order.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The model's tokenizer.
        model (`str`, *optional*):
            Path or Hub id of the model that the servers must serve, compared by the last part of its name. Without it
            whatever they serve is sampled from.
        connection_timeout (`float`, *optional*, defaults to `120.0`):
            Seconds to wait for the servers to be up.

    Raises:
        `ImportError`: When vLLM, which TRL's client needs, is not installed.
        `ValueError`: When there is no address, or a server serves another model.
        `ConnectionError`: While sampling, when an answer holds no ids, too many, or some outside the vocabulary.
    """

    on_sample: Callable[[int], None] | None = None

    def __init__(
        self,
        base_urls: Sequence[str],
        tokenizer: Any,
        *,
        model: str | None = None,
        connection_timeout: float = 120.0,
    ) -> None:
        check_urls(base_urls)
        from trl.generation.vllm_client import VLLMClient

        try:
            self._clients = [VLLMClient(base_url=url, connection_timeout=connection_timeout) for url in base_urls]
        except ImportError as error:
            raise ImportError(
                f"Got the servers {', '.join(base_urls)}, but TRL's client for them needs vLLM ({error}). Install it: "
                "pip install trl-prl[vllm], or use OpenAIGenerator with the same addresses."
            ) from error
        for url, client in zip(base_urls, self._clients, strict=True):
            if model is not None:
                # The client takes the first model that its server names.
                served_as(model, [client.model], url)
        self._tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        self._pieces = TokenPieces(tokenizer)

    def generate(self, prompts: list[Prompt], params: SamplingParams) -> list[list[Completion]]:
        """Sample continuations, as [`Generator`] says. One request per prompt, the same number to every server."""
        if params.temperature == 0 and params.n > 1:
            return [row * params.n for row in self.generate(prompts, replace(params, n=1))]
        with ThreadPoolExecutor(8 * len(self._clients)) as pool:
            drawn = pool.map(lambda i: self._sample(i, prompts, params), range(len(prompts)))
            return [tell(self.on_sample, found) for found in drawn]

    def _sample(self, i: int, prompts: list[Prompt], params: SamplingParams) -> list[Completion]:
        limit = prompts[i].max_tokens or params.max_tokens
        output = self._clients[i % len(self._clients)].generate(
            [list(prompts[i].token_ids)],
            n=params.n,
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            max_tokens=limit,
            generation_kwargs={
                "seed": request_seed(params.seed, key_of(prompts, i), 0),
                "stop": list(params.stop),
                "include_stop_str_in_output": True,
            },
        )
        completions = []
        for ids in output["completion_ids"]:
            try:
                check_ids(ids, limit, len(self._tokenizer))
            except UnusableAnswerError as error:
                raise ConnectionError(
                    f"The server answered the prompt with key {prompts[i].key!r} with {error}, which is no sample of "
                    "this model. Check that it serves the model whose tokenizer is given, and restart it."
                ) from error
            # The client does not pass the reason on.
            completion = completion_of(self._pieces, ids, "length")
            if any(stop in completion.text for stop in params.stop):
                completion = Completion(completion.token_ids, completion.text, "stop")
            elif ids[-1:] == [self._tokenizer.eos_token_id] or len(ids) < limit:
                completion = Completion(completion.token_ids, completion.text, "eos")
            completions.append(completion)
        return completions
