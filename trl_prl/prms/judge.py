"""A chat model as judge: a process reward behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal

from trl_prl.generation.server_calls import UnusableAnswerError, ask_openai, openai_calls, part_of
from trl_prl.verifier.rows import text_messages

from .families import question_of
from .model import with_blanks


logger = logging.getLogger(__name__)

JudgeMethod = Literal["probability", "verdicts"]
_Judgement = tuple[str, Sequence[str], Mapping[str, Any]]  # question, steps and sampling options

PROBABILITY_TEMPLATE = (
    "Here is a problem and the first {number} steps of a solution.\n\nProblem:\n{question}\n\nSolution:\n{steps}\n\n"
    "Is step {number} right, given the problem and the steps before it? Answer with one word, Yes or No."
)
VERDICTS_TEMPLATE = (
    "Here is a problem and a solution in {number} steps.\n\nProblem:\n{question}\n\nSolution:\n{steps}\n\n"
    "Judge every step: is it right, given the problem and the steps before it? A step that builds on an earlier error "
    'is wrong. Answer with a JSON object {{"verdicts": [...]}} that holds {number} times true or false.'
)


@dataclass
class JudgeCost:
    """What a judge has cost so far.

    Attributes:
        num_requests (`int`), num_cached (`int`), num_unread (`int`):
            Requests that were sent, answers that were known, and answers that hold no verdict.
        prompt_tokens (`int`), completion_tokens (`int`):
            Tokens, as the server counts them.
    """

    num_requests: int = 0
    num_cached: int = 0
    num_unread: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class JudgeProcessReward:
    r"""
    Asks a chat model whether each step is right.

    It is a [`ProcessReward`] that returns values: the judge's probability that the step is right. Steps are shown with
    their numbers; a step of white space alone is not shown and has the value of the step before. An answer that holds
    no verdict leaves its steps unscored, NaN, and is counted.

    Args:
        model (`str`):
            Name of the model at the endpoint.
        base_url (`str`, *optional*):
            Address such as `"http://127.0.0.1:8000/v1"`; by default what the `openai` package finds in the
            environment.
        api_key (`str`, *optional*):
            Key; by default that of the environment, or none.
        method (`str`, *optional*, defaults to `"probability"`):
            `"probability"`: one request per step, whose value is the probability of Yes against that of No as the next
            token (the server must give log-probabilities). `"verdicts"`: one request per solution and sample, whose
            verdicts, true or false, are averaged; for models that think before they answer.
        num_samples (`int`, *optional*, defaults to `1`):
            Samples of `"verdicts"`.
        temperature (`float`, *optional*, defaults to `0.7`):
            Temperature of more than one sample; a single one is greedy.
        max_tokens (`int`, *optional*, defaults to `4096`):
            Most tokens of an answer with verdicts.
        template (`str`, *optional*):
            Format string with `{question}`, `{steps}` and `{number}`.
        structured (`bool`, *optional*, defaults to `True`):
            Whether verdicts are asked for by a JSON schema. A server that refuses it is asked without, after a
            warning.
        initial_value (`float`, *optional*, defaults to `1.0`):
            Value of a prompt before any step: no step is wrong yet.
        concurrency (`int`, *optional*, defaults to `32`):
            Requests at a time.
        timeout (`float`, *optional*, defaults to `120.0`), max_retries (`int`, *optional*, defaults to `5`):
            Seconds for a whole attempt, and attempts after the first.
        cache_path (`str`, *optional*):
            SQLite file in which answers with a verdict are kept by what was asked where; in memory by default.

    Raises:
        `ValueError`: If the method is unknown or a number is out of its range.
        `ImportError`: If the `openai` package is not installed.
    """

    returns: Literal["values"] = "values"

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        method: JudgeMethod = "probability",
        num_samples: int = 1,
        temperature: float = 0.7,
        max_tokens: int = 4096,
        template: str | None = None,
        structured: bool = True,
        initial_value: float = 1.0,
        concurrency: int = 32,
        timeout: float = 120.0,
        max_retries: int = 5,
        cache_path: str | os.PathLike[str] | None = None,
    ) -> None:
        if method not in ("probability", "verdicts") or num_samples < 1 or concurrency < 1:
            raise ValueError(
                f"Got method={method!r}, num_samples={num_samples} and concurrency={concurrency}, with which nothing "
                "can be judged. Use 'probability' or 'verdicts', and at least one sample and request at a time."
            )
        if method == "probability" and num_samples > 1:
            raise ValueError(
                f"Got num_samples={num_samples} with method='probability', which asks once for the probability. Leave "
                "it at 1, or use method='verdicts'."
            )
        self._calls = openai_calls(
            [base_url],
            # Local servers need no key, the client does.
            api_key or os.environ.get("OPENAI_API_KEY") or "none",
            timeout=timeout,
            max_attempts=max_retries + 1,
            max_wait=timeout * (max_retries + 1),
            concurrency=concurrency,
            advice="Check that the server runs and serves this model.",
        )
        self.model, self.method, self.num_samples, self.max_tokens = model, method, num_samples, max_tokens
        self.temperature = temperature if num_samples > 1 else 0.0
        self.template = template or (PROBABILITY_TEMPLATE if method == "probability" else VERDICTS_TEMPLATE)
        self.structured = structured
        self._asked = [*self._calls.urls, model, structured]
        self.initial_value = initial_value
        self.cost = JudgeCost()
        """Requests and tokens so far."""
        self.__name__ = model.rpartition("/")[-1]
        self._lock = threading.Lock()
        self._cache = sqlite3.connect(":memory:" if cache_path is None else cache_path, check_same_thread=False)
        self._cache.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT)")

    def __call__(
        self, prompts: Sequence[Any], steps: Sequence[Sequence[str]], **columns: Any
    ) -> list[list[float | None]]:
        """Values of the steps.

        Args:
            prompts (`Sequence`):
                One prompt per solution, plain text or messages.
            steps (`Sequence[Sequence[str]]`):
                Texts of the steps of each solution.
            **columns:
                `log_metric`, as trainers pass it, is told the tokens spent; the others are not used.

        Returns:
            `list[list[float]]`: One value per step, in [0, 1], NaN without a verdict.
        """
        before = self.cost.prompt_tokens + self.cost.completion_tokens
        texts = [[step.strip() for step in row] for row in steps]
        shown = [[text for text in row if text] for row in texts]
        judge = self._probabilities if self.method == "probability" else self._verdicts
        questions = [question_of(text_messages(prompt)) for prompt in prompts]
        found = judge(questions, shown)
        if (log_metric := columns.get("log_metric")) is not None:
            log_metric("process/judge/tokens", self.cost.prompt_tokens + self.cost.completion_tokens - before)
        return [[*with_blanks(row, values, self.initial_value)] for row, values in zip(texts, found, strict=True)]

    def initial_values(self, prompts: Sequence[Any], **columns: Any) -> list[float]:
        """The constant `initial_value` for every prompt."""
        return [self.initial_value] * len(prompts)

    def _probabilities(self, questions: Sequence[str], rows: Sequence[Sequence[str]]) -> list[list[float]]:
        places = [(i, number) for i, row in enumerate(rows) for number in range(1, len(row) + 1)]
        options = {"max_tokens": 1, "temperature": 0.0, "logprobs": True, "top_logprobs": 20}
        found = self._ask([(questions[i], rows[i][:number], options) for i, number in places], yes_share)
        values: list[list[float]] = [[] for _ in rows]
        for (i, _), value in zip(places, found, strict=True):
            values[i].append(math.nan if value is None else value)
        return values

    def _verdicts(self, questions: Sequence[str], rows: Sequence[Sequence[str]]) -> list[list[float]]:
        places = [(i, sample) for i, row in enumerate(rows) if row for sample in range(self.num_samples)]
        options = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        asked = [(questions[i], rows[i], {**options, "seed": sample}) for i, sample in places]
        samples: list[list[Any]] = [[] for _ in rows]
        for (i, _), verdicts in zip(places, self._ask(asked, read_verdicts), strict=True):
            samples[i] += [] if verdicts is None else [verdicts]
        return [
            [sum(column) / len(column) for column in zip(*found, strict=True)] if found else [math.nan] * len(row)
            for row, found in zip(rows, samples, strict=True)
        ]

    def _ask(self, judgements: Sequence[_Judgement], read: Callable[[Any, int], Any]) -> Iterator[Any]:
        """The verdicts, from the cache or from the server; `None` where an answer holds none."""
        return self._calls.each(
            lambda client, judgement: self._judge(client, judgement, read),
            judgements,
            lambda judgement: f"a judgement of {len(judgement[1])} steps",
        )

    async def _judge(self, client: Any, judgement: _Judgement, read: Callable[[Any, int], Any]) -> Any:
        question, steps, options = judgement
        numbered = "\n".join(f"Step {number}: {step}" for number, step in enumerate(steps, 1))
        text = self.template.format(question=question, steps=numbered, number=len(steps))
        content = json.dumps([self._asked, text, dict(options)], sort_keys=True)
        key = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
        with self._lock:
            known = self._cache.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
            self.cost.num_cached += known is not None
        if known is not None:
            return json.loads(known[0])
        response = await self._request(client, text, options, len(steps))
        verdict = read(response.choices[0], len(steps))
        with self._lock:
            self.cost.num_requests += 1
            self.cost.num_unread += verdict is None
            self.cost.prompt_tokens += part_of(response, "usage.prompt_tokens", int, NoneType) or 0
            self.cost.completion_tokens += part_of(response, "usage.completion_tokens", int, NoneType) or 0
            if verdict is not None:
                self._cache.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, json.dumps(verdict)))
                self._cache.commit()
        return verdict

    async def _request(self, client: Any, text: str, options: Mapping[str, Any], num_steps: int) -> Any:
        import openai

        create = client.chat.completions.create
        fields = {"model": self.model, "messages": [{"role": "user", "content": text}], **options}
        if self.method != "verdicts" or not self.structured:
            return await ask_openai(create, **fields)
        try:
            return await ask_openai(create, **fields, response_format=_schema(num_steps))
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            answer = await ask_openai(create, **fields)  # raises again where the schema was not what was refused
            if self.structured:
                self.structured = False
                logger.warning(
                    "The server of the judge '%s' takes no JSON schema (%s). Verdicts are asked for in words from "
                    "here on, and answers without them leave steps unscored.",
                    self.model,
                    error,
                )
            return answer


def _schema(num_steps: int) -> dict[str, Any]:
    verdicts = {"type": "array", "items": {"type": "boolean"}, "minItems": num_steps, "maxItems": num_steps}
    strict = {"type": "object", "required": ["verdicts"], "additionalProperties": False}
    schema = {**strict, "properties": {"verdicts": verdicts}}
    return {"type": "json_schema", "json_schema": {"name": "verdicts", "strict": True, "schema": schema}}


def yes_share(choice: Any, num_steps: int) -> float | None:
    """Probability of Yes against No as the first token of an answer."""
    content = part_of(choice, "logprobs.content", list, NoneType)
    if not content:
        raise ValueError(
            "The server of the judge gives no log-probabilities, so the probability of Yes cannot be told. Use a "
            "server that does, or method='verdicts'."
        )
    shares = {"yes": 0.0, "no": 0.0}
    for entry in part_of(content[0], "top_logprobs", list):
        word = part_of(entry, "token", str).strip().strip(".*\"'").lower()
        logprob = part_of(entry, "logprob", float, int)
        if not logprob < 0.01:  # NaN too; 0 is often a little above
            raise UnusableAnswerError(f"a malformed answer, with the log-probability {logprob}")
        shares[word] = shares.get(word, 0.0) + math.exp(logprob)
    total = shares["yes"] + shares["no"]
    return shares["yes"] / total if total else None


def read_verdicts(choice: Any, num_steps: int) -> list[float] | None:
    """Verdicts of the last JSON object of an answer that holds as many as there are steps."""
    text = part_of(choice, "message.content", str, NoneType) or ""
    decoder = json.JSONDecoder()
    for start in reversed([i for i, character in enumerate(text) if character == "{"]):
        try:
            found, _ = decoder.raw_decode(text, start)
        except (json.JSONDecodeError, RecursionError):
            continue
        verdicts = found.get("verdicts") if isinstance(found, dict) else None
        if isinstance(verdicts, list) and len(verdicts) == num_steps and all(isinstance(v, bool) for v in verdicts):
            return [float(verdict) for verdict in verdicts]
    return None
