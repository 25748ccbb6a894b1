"""Generation with vLLM, in this process or behind TRL's server, and with any OpenAI-compatible server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from trl_prl.sampling import request_seed
from trl_prl.token_pieces import TokenPieces
from trl_prl.types import Completion, FinishReason, Prompt, SamplingParams


class VLLMGenerator:
    """A [`Generator`] over vLLM in this process, which shares the blocks of common prefixes.

    Each sample is a request with a seed of its own. vLLM's kernels depend on the batch, so samples are reproducible up
    to rounding.

    Args:
        model (`str`):
            Path or Hub id.
        **llm_kwargs:
            Further arguments of `vllm.LLM`, such as `dtype` or `gpu_memory_utilization`.

    Raises:
        `ImportError`: When vLLM is not installed.
    """

    def __init__(self, model: str, **llm_kwargs: Any) -> None:
        try:
            from vllm import LLM
        except ImportError as error:
            raise ImportError(
                f"Got the model {model!r} to run with vLLM, which is not installed. Install it: pip install "
                "trl-prl[vllm], or use another generator."
            ) from error
        self.llm = LLM(model, **{"enable_prefix_caching": True, **llm_kwargs})
        self._pieces = TokenPieces(self.llm.get_tokenizer())

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
                    seed=request_seed(params.seed, _key(prompts, i), j),
                )
                for i, j in requests
            ],
            use_tqdm=False,
        )
        samples: list[list[Completion]] = [[] for _ in prompts]
        for (i, _), output in zip(requests, outputs, strict=True):
            (sample,) = output.outputs
            reason = _finish_reason(sample.finish_reason, isinstance(sample.stop_reason, str))
            samples[i].append(_completion(self._pieces, sample.token_ids, reason))
        return samples


class VLLMServerGenerator:
    """A [`Generator`] over servers started by `trl vllm-serve`, through TRL's own client.

    Args:
        base_urls (`Sequence[str]`):
            Addresses; prompts are dealt out among them by their order.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The model's tokenizer.
        connection_timeout (`float`, *optional*, defaults to `120.0`):
            Seconds to wait for the servers to be up.

    Raises:
        `ImportError`: When vLLM, which TRL's client needs, is not installed.
        `ValueError`: When there is no address.
    """

    def __init__(self, base_urls: Sequence[str], tokenizer: Any, *, connection_timeout: float = 120.0) -> None:
        _check_urls(base_urls)
        from trl.generation.vllm_client import VLLMClient

        try:
            self._clients = [VLLMClient(base_url=url, connection_timeout=connection_timeout) for url in base_urls]
        except ImportError as error:
            raise ImportError(
                f"Got the servers {', '.join(base_urls)}, but TRL's client for them needs vLLM ({error}). Install it: "
                "pip install trl-prl[vllm], or use OpenAIGenerator with the same addresses."
            ) from error
        self._tokenizer = tokenizer
        self._pieces = TokenPieces(tokenizer)

    def generate(self, prompts: list[Prompt], params: SamplingParams) -> list[list[Completion]]:
        """Sample continuations, as [`Generator`] says. One request per prompt, the same number to every server."""
        with ThreadPoolExecutor(8 * len(self._clients)) as pool:
            return list(pool.map(lambda i: self._sample(i, prompts, params), range(len(prompts))))

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
                "seed": request_seed(params.seed, _key(prompts, i), 0),
                "stop": list(params.stop),
                "include_stop_str_in_output": True,
            },
        )
        completions = []
        for ids in output["completion_ids"]:
            # The client does not pass the reason on.
            completion = _completion(self._pieces, ids, "length")
            if any(stop in completion.text for stop in params.stop):
                completion = Completion(completion.token_ids, completion.text, "stop")
            elif ids[-1:] == [self._tokenizer.eos_token_id] or len(ids) < limit:
                completion = Completion(completion.token_ids, completion.text, "eos")
            completions.append(completion)
        return completions


class OpenAIGenerator:
    """A [`Generator`] over OpenAI-compatible servers, through their completions endpoint.

    One prompt per request, as many servers refuse lists or fail on them, and at most `concurrency` requests at a time.
    Servers that ignore `n` without saying so are found out by their first answer and then asked once per sample. A
    request that fails in a way that may pass (no connection, time-out, too many requests, an error of the server) is
    repeated after a growing pause, at the next server if there are several.

    Prompts are sent as token ids and answers asked for with theirs, as vLLM and SGLang offer it. For servers that only
    take text, `send_text=True` sends the text of the ids, and answers are tokenised here: then, and only then, ids are
    not the sampled ones. Such servers also leave out the stop text that ended a sample.

    Args:
        base_urls (`Sequence[str]`):
            Addresses with their version, such as `"http://127.0.0.1:8000/v1"`.
        model (`str`):
            Name of the model at the servers.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        api_key (`str`, *optional*, defaults to `"none"`):
            Key of the servers.
        send_text (`bool`, *optional*, defaults to `False`):
            Whether to send text instead of ids.
        concurrency (`int`, *optional*, defaults to `32`):
            Most requests at a time, to all servers together.
        timeout (`float`, *optional*, defaults to `600.0`):
            Seconds for one request.
        max_retries (`int`, *optional*, defaults to `5`):
            How often a request is repeated.
        backoff (`float`, *optional*, defaults to `0.5`):
            Seconds before the first repetition; doubled each time, up to 30.
        extra_body (`dict`, *optional*):
            Further fields of each request.

    Raises:
        `ImportError`: When the `openai` package is not installed.
        `ValueError`: When there is no address.
    """

    def __init__(
        self,
        base_urls: Sequence[str],
        model: str,
        tokenizer: Any,
        *,
        api_key: str = "none",
        send_text: bool = False,
        concurrency: int = 32,
        timeout: float = 600.0,
        max_retries: int = 5,
        backoff: float = 0.5,
        extra_body: dict[str, Any] | None = None,
    ) -> None:
        _check_urls(base_urls)
        try:
            from openai import OpenAI
        except ImportError as error:
            raise ImportError(
                f"Got the servers {', '.join(base_urls)}, which are reached with the package openai, and it is not "
                "installed. Install it: pip install trl-prl[openai]"
            ) from error
        # Its own retries stay at one server.
        self._clients = [OpenAI(base_url=url, api_key=api_key, timeout=timeout, max_retries=0) for url in base_urls]
        self.base_urls = list(base_urls)
        self.model = model
        self.tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        self.send_text = send_text
        self.concurrency = concurrency
        self.max_retries = max_retries
        self.backoff = backoff
        self.extra_body = extra_body or {}
        self._pieces = TokenPieces(tokenizer)
        self._ignores_n = threading.Event()

    def generate(self, prompts: list[Prompt], params: SamplingParams) -> list[list[Completion]]:
        """Sample continuations.

        Args:
            prompts (`list[Prompt]`):
                What to continue.
            params ([`SamplingParams`]):
                How to sample.

        Returns:
            `list[list[Completion]]`: For each prompt, in the order given, `params.n` samples.

        Raises:
            `ConnectionError`: When a request has failed more often than `max_retries`.
            `ValueError`: When a server refuses a request or answers without a choice.
        """
        with ThreadPoolExecutor(self.concurrency) as pool:

            def run(task: Callable[..., list[Completion]], pairs: list[tuple[int, int]], n: int) -> list[Any]:
                return list(pool.map(lambda pair: task(pair[0], pair[1], n, prompts, params), pairs))

            samples: list[list[Completion]] = [[] for _ in prompts]
            if params.n > 1 and not self._ignores_n.is_set():
                for i, found in enumerate(run(self._request, [(i, 0) for i in range(len(prompts))], params.n)):
                    samples[i] = found[: params.n]
            missing = [(i, j) for i in range(len(prompts)) for j in range(len(samples[i]), params.n)]
            if missing and params.n > 1:
                self._ignores_n.set()
            for (i, _), found in zip(missing, run(self._request, missing, 1), strict=True):
                samples[i].append(found[0])
            return samples

    def _request(self, i: int, sample: int, n: int, prompts: list[Prompt], params: SamplingParams) -> list[Completion]:
        from openai import APIConnectionError, APIStatusError

        prompt = prompts[i]
        fields: dict[str, Any] = {
            "model": self.model,
            "prompt": self._text(prompt) if self.send_text else list(prompt.token_ids),
            "n": n,
            "max_tokens": prompt.max_tokens or params.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "seed": request_seed(params.seed, _key(prompts, i), sample),
            **({"stop": list(params.stop)} if params.stop else {}),
        }
        extra = {**({"top_k": params.top_k} if params.top_k else {}), **self.extra_body}
        if not self.send_text:
            extra = {"return_token_ids": True, "include_stop_str_in_output": True, **extra}
        last: Exception | None = None
        for attempt in range(self.max_retries + 1):
            if attempt:
                time.sleep(min(self.backoff * 2 ** (attempt - 1), 30.0))
            try:
                # Samples of one prompt stay at one server, which has its prefix in its cache.
                client = self._clients[(i + attempt) % len(self._clients)]
                answer = client.completions.create(**fields, extra_body=extra)
            except APIConnectionError as error:
                last = error
            except APIStatusError as error:
                if error.status_code not in (408, 409, 429) and error.status_code < 500:
                    raise ValueError(
                        f"{client.base_url} refused the prompt with key {prompt.key!r} ({error}), and would again. "
                        "Check the model's name and the length limit; a server that takes no token ids needs "
                        "send_text=True."
                    ) from error
                last = error
            else:
                return self._completions(answer, prompt, params)
        raise ConnectionError(
            f"{', '.join(self.base_urls)} did not answer the prompt with key {prompt.key!r} in {self.max_retries + 1} "
            f"attempts ({type(last).__name__}: {last}). Check that the servers run; a longer timeout or less "
            "concurrency helps if they are overloaded."
        ) from last

    def _completions(self, answer: Any, prompt: Prompt, params: SamplingParams) -> list[Completion]:
        if not answer.choices:
            raise ValueError(
                f"The server answered the prompt with key {prompt.key!r} without any choice, so there is no sample. "
                "Check that it has a completions endpoint for this model."
            )
        completions = []
        for choice in answer.choices:
            stopped = isinstance(getattr(choice, "stop_reason", None), str)
            reason = _finish_reason(choice.finish_reason, stopped)
            ids = getattr(choice, "token_ids", None)
            if ids is None:
                if not self.send_text:
                    raise ValueError(
                        "The server does not return the ids of its samples, so steps could not be cut where it cut "
                        "tokens. Use one that has `return_token_ids` (vLLM 0.10.2 or newer), or send_text=True, "
                        "which tokenises the texts again."
                    )
                ids = self.tokenizer(choice.text, add_special_tokens=False)["input_ids"]
                # A finished sample must not look like the start of a longer one.
                if reason == "eos" and self.tokenizer.eos_token_id is not None:
                    ids = [*ids, self.tokenizer.eos_token_id]
            completions.append(_completion(self._pieces, ids, reason))
        return completions

    def _text(self, prompt: Prompt) -> str:
        """Text that the server tokenises to the prompt's ids; it puts the start token there by itself."""
        ids = list(prompt.token_ids)
        if self.tokenizer("")["input_ids"][:1] == ids[:1] and ids[0] == self.tokenizer.bos_token_id:
            ids = ids[1:]
        return b"".join(self._pieces.literal_pieces(ids)).decode("utf-8", "replace")


def _completion(pieces: TokenPieces, ids: Sequence[int], reason: FinishReason) -> Completion:
    return Completion(tuple(ids), b"".join(pieces.pieces(ids)).decode("utf-8", "replace"), reason)


def _finish_reason(reason: str | None, stopped_by_text: bool) -> FinishReason:
    if reason == "stop":
        return "stop" if stopped_by_text else "eos"
    # Anything else ("length", "content_filter", an abort) is no end of the model's own.
    return "length"


def _key(prompts: list[Prompt], i: int) -> str:
    key = prompts[i].key
    return f"position {i}" if key is None else key


def _check_urls(base_urls: Sequence[str]) -> None:
    if isinstance(base_urls, str) or not base_urls:
        raise ValueError(
            f"Got base_urls={base_urls!r}, but one address or several are needed, as a list. Use "
            "['http://127.0.0.1:8000/v1'], for instance."
        )
