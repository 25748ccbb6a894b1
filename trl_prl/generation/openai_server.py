"""Generation with any OpenAI-compatible server, through its completions endpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from trl_prl.steps.token_pieces import TokenPieces
from trl_prl.types import Completion, Prompt, SamplingParams

from .engines import check_urls, completion_of, finish_reason_of, key_of, tell
from .sampling import request_seed


class OpenAIGenerator:
    """A [`Generator`] over OpenAI-compatible servers, through their completions endpoint.

    One prompt per request, as many servers refuse lists or fail on them, and at most `concurrency` requests at a time.
    What an answer lacks, be it short or from a server that ignores `n`, is asked for sample by sample. A request that
    fails in a way that may pass (no connection, time-out, too many requests, an error of the server) is repeated after
    a growing pause, at the next server if there are several.

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

    on_sample: Callable[[int], None] | None = None

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
        check_urls(base_urls)
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
                drawn = pool.map(lambda pair: task(pair[0], pair[1], n, prompts, params), pairs)
                return [tell(self.on_sample, found[:n]) for found in drawn]

            samples: list[list[Completion]] = [[] for _ in prompts]
            if params.n > 1:
                for i, found in enumerate(run(self._request, [(i, 0) for i in range(len(prompts))], params.n)):
                    samples[i] = found
            missing = [(i, j) for i in range(len(prompts)) for j in range(len(samples[i]), params.n)]
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
            "seed": request_seed(params.seed, key_of(prompts, i), sample),
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
            reason = finish_reason_of(choice.finish_reason, stopped)
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
            completions.append(completion_of(self._pieces, ids, reason))
        return completions

    def _text(self, prompt: Prompt) -> str:
        """Text that the server tokenises to the prompt's ids; it puts the start token there by itself."""
        ids = list(prompt.token_ids)
        if self.tokenizer("")["input_ids"][:1] == ids[:1] and ids[0] == self.tokenizer.bos_token_id:
            ids = ids[1:]
        return b"".join(self._pieces.literal_pieces(ids)).decode("utf-8", "replace")
