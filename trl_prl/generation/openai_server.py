"""Generation with any OpenAI-compatible server, through its completions endpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from trl_prl.steps.token_pieces import TokenPieces
from trl_prl.types import Completion, Prompt, SamplingParams

from .engines import check_urls, key_of, tell
from .sampling import request_seed
from .server_answers import AnswerReader
from .server_calls import ask_openai, openai_calls


# vLLM's server takes what a request leaves out from the model's generation config, whose top-k, least probability and
# penalty of repetition would change the distribution in silence.
_WHOLE_DISTRIBUTION = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}


class OpenAIGenerator:
    """A [`Generator`] over OpenAI-compatible servers, through their completions endpoint.

    One prompt per request, as many servers refuse lists or fail on them, and at most `concurrency` requests at a time.
    What an answer lacks, be it short or from a server that ignores `n`, is asked for sample by sample. A request that
    fails in a way that may pass (no connection, no whole answer in time, too many requests, an error of the server) is
    repeated after a growing pause, at the next server if there are several. So is one whose answer cannot be used
    ([`AnswerReader`](server_answers.py)); no sample is made up for it. Repeated requests have the same seed.

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
        timeout (`float`, *optional*, defaults to `300.0`):
            Seconds for one whole request, to the last byte of its answer.
        max_retries (`int`, *optional*, defaults to `20`):
            How often a request is repeated; fewer times if the server answers, but not usably.
        max_wait (`float`, *optional*, defaults to `600.0`):
            Seconds after which a request is not repeated any more: a server that is restarted may need minutes.
        backoff (`float`, *optional*, defaults to `0.5`):
            Seconds that the pause before the first repetition is drawn from; doubled each time, up to 30.
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
        timeout: float = 300.0,
        max_retries: int = 20,
        max_wait: float = 600.0,
        backoff: float = 0.5,
        extra_body: dict[str, Any] | None = None,
    ) -> None:
        check_urls(base_urls)
        self._calls = openai_calls(
            base_urls,
            api_key,
            timeout=timeout,
            max_attempts=max_retries + 1,
            max_wait=max_wait,
            backoff=backoff,
            concurrency=concurrency,
            advice="Check that the servers run and serve this model; a longer timeout or less concurrency helps if "
            "they are overloaded.",
        )
        self.model = model
        self.tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        self.send_text = send_text
        self.extra_body = extra_body or {}
        self._pieces = TokenPieces(tokenizer)
        self._reader = AnswerReader(model, self.tokenizer, self._pieces, send_text=send_text)

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
            `ConnectionError`: When a request has got no answer that can be used, as often as it was made.
            `ValueError`: When a server refuses a request, gives no ids or has another tokenizer.
        """
        if params.temperature == 0 and params.n > 1:
            # They would be equal, and vLLM refuses to draw several.
            return [row * params.n for row in self.generate(prompts, replace(params, n=1))]

        def run(pairs: list[tuple[int, int]], n: int) -> Iterator[list[Completion]]:
            drawn = self._calls.each(
                lambda client, pair: self._request(client, prompts, *pair, n, params),
                pairs,
                lambda pair: f"the prompt with key {prompts[pair[0]].key!r}",
            )
            return (tell(self.on_sample, found[:n]) for found in drawn)

        samples: list[list[Completion]] = [[] for _ in prompts]
        if params.n > 1:
            samples = list(run([(i, 0) for i in range(len(prompts))], params.n))
        missing = [(i, j) for i in range(len(prompts)) for j in range(len(samples[i]), params.n)]
        for (i, _), found in zip(missing, run(missing, 1), strict=True):
            samples[i].append(found[0])
        return samples

    async def _request(
        self, client: Any, prompts: list[Prompt], i: int, sample: int, n: int, params: SamplingParams
    ) -> list[Completion]:
        import openai

        prompt = prompts[i]
        max_tokens = prompt.max_tokens or params.max_tokens
        extra: dict[str, Any] = {"top_k": params.top_k} if params.top_k else {}
        if not self.send_text:
            extra = {"return_token_ids": True, "include_stop_str_in_output": True, **_WHOLE_DISTRIBUTION, **extra}
        try:
            answer = await ask_openai(
                client.completions.create,
                model=self.model,
                prompt=self._text(prompt) if self.send_text else list(prompt.token_ids),
                n=n,
                max_tokens=max_tokens,
                temperature=params.temperature,
                top_p=params.top_p,
                seed=request_seed(params.seed, key_of(prompts, i), sample),
                **({"stop": list(params.stop)} if params.stop else {}),
                extra_body={**extra, **self.extra_body},
            )
        except openai.APIStatusError as error:
            raise ValueError(
                f"{client.base_url} refused the prompt with key {prompt.key!r} ({error}), and would again. Check the "
                "model's name and the length limit; a server that takes no token ids needs send_text=True."
            ) from error
        return self._reader.read(answer, len(prompt.token_ids), max_tokens)

    def _text(self, prompt: Prompt) -> str:
        """Text that the server tokenises to the prompt's ids; it puts the start token there by itself."""
        ids = list(prompt.token_ids)
        if self.tokenizer("")["input_ids"][:1] == ids[:1] and ids[0] == self.tokenizer.bos_token_id:
            ids = ids[1:]
        return b"".join(self._pieces.literal_pieces(ids)).decode("utf-8", "replace")
