"""Requests to servers, many at a time: each with a deadline for the whole of it, and asked again where it may pass."""

from __future__ import annotations

import asyncio
import reprlib
import secrets
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import reduce
from types import NoneType
from typing import Any, TypeVar
from urllib.parse import urlsplit


T = TypeVar("T")
R = TypeVar("R")


class PassingError(Exception):
    """A request failed in a way that may pass: another attempt, or another server, may fare better."""


class UnusableAnswerError(PassingError):
    """A server has answered, with what cannot be used. It is asked again, but not as long as one that is away."""


_MAX_UNUSABLE = 6


@dataclass
class ServerCalls:
    """Makes requests to one server or several that stand in for each other.

    A time limit of an HTTP client holds for each read, so that a server which sends a byte now and then is waited for
    without end. Here the limit holds for the whole request.

    Args:
        urls (`Sequence[str]`):
            Addresses.
        open_client (`Callable`):
            Makes an asynchronous client of an address. Clients are opened for each round of requests and closed after
            it.
        timeout (`float`):
            Seconds for one attempt, from its start to the last byte of the answer.
        max_attempts (`int`):
            Attempts for one request.
        max_wait (`float`):
            Seconds after which no further attempt begins.
        backoff (`float`, *optional*, defaults to `0.5`):
            Seconds that the pause before the second attempt is drawn from; doubled each time, up to 30.
        concurrency (`int`, *optional*, defaults to `32`):
            Most requests at a time.
        advice (`str`, *optional*, defaults to `""`):
            What to do when all attempts have failed, for the message.
        secret (`str`, *optional*):
            Key of the servers. Where one repeats it, as many do to one that they do not know, no error does.
    """

    urls: Sequence[str]
    open_client: Callable[[str], Any]
    _: KW_ONLY
    timeout: float
    max_attempts: int
    max_wait: float
    backoff: float = 0.5
    concurrency: int = 32
    advice: str = ""
    secret: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        known = [self.secret, *(urlsplit(url).password for url in self.urls)]
        # Shorter ones, such as "none", stand for no key.
        self._secrets = [text for text in known if text and len(text) > 5]
        # Processes that begin together do not all ask the same server, and seeds are not touched.
        self._turn = secrets.randbelow(len(self.urls))

    def each(self, ask: Callable[[Any, T], Awaitable[R]], tasks: Sequence[T], name: Callable[[T], str]) -> Iterator[R]:
        """Ask for every task, and yield the answers in the order of the tasks.

        Args:
            ask (`Callable`):
                Makes one attempt: takes a client and a task. Raises [`PassingError`] for what may pass.
            tasks (`Sequence`):
                The tasks. Their first attempts go to the servers in turn, from call to call.
            name (`Callable`):
                Says of a task what it asks for, for messages.

        Yields:
            The answer to each task.

        Raises:
            `ConnectionError`: When a request has failed in all its attempts.
        """
        import anyio
        from anyio.from_thread import start_blocking_portal

        with start_blocking_portal() as portal:
            clients, first = [self.open_client(url) for url in self.urls], self._turn
            self._turn += len(tasks)
            limiter = asyncio.Semaphore(self.concurrency)

            async def attempt(number: int, place: int, task: T) -> R:
                client = clients[(first + place + number) % len(clients)]
                try:
                    with anyio.fail_after(self.timeout):
                        return await ask(client, task)
                except TimeoutError:
                    raise PassingError(f"no whole answer within {self.timeout:g} seconds") from None
                except Exception as error:
                    self._hide_secrets(error)
                    raise

            async def request(place: int, task: T) -> R:
                async with limiter:
                    return await self._attempts(lambda number: attempt(number, place, task), name(task))

            futures = [portal.start_task_soon(request, place, task) for place, task in enumerate(tasks)]
            try:
                for future in futures:
                    yield future.result()
            finally:
                for future in futures:
                    future.cancel()
                for client in clients:
                    portal.call(client.aclose if hasattr(client, "aclose") else client.close)

    async def _attempts(self, attempt: Callable[[int], Awaitable[R]], name: str) -> R:
        import tenacity

        numbers, num_unusable = iter(range(self.max_attempts)), 0
        stops = (
            tenacity.stop_after_attempt(self.max_attempts),
            tenacity.stop_after_delay(self.max_wait),
            lambda _: num_unusable >= _MAX_UNUSABLE,
        )
        attempts = tenacity.AsyncRetrying(
            stop=lambda state: any(stop(state) for stop in stops),
            wait=tenacity.wait_random_exponential(multiplier=self.backoff, max=30),
            retry=tenacity.retry_if_exception_type(PassingError),
            retry_error_callback=lambda state: self._give_up(name, state),
        )

        async def next_attempt() -> R:
            nonlocal num_unusable
            try:
                return await attempt(next(numbers))
            except UnusableAnswerError:
                num_unusable += 1
                raise

        return await attempts(next_attempt)

    def _hide_secrets(self, error: BaseException | None) -> None:
        """Take the secrets out of what an exception and its causes say."""
        while error is not None:
            error.args = tuple(self._hidden(arg) if isinstance(arg, str) else arg for arg in error.args)
            error = error.__cause__

    def _hidden(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def _give_up(self, name: str, state: Any) -> Any:
        last = state.outcome.exception()
        raise ConnectionError(
            f"{self._hidden(', '.join(self.urls))} gave no answer to {name} that can be used, in "
            f"{state.attempt_number} attempts. The last one: {str(last).rstrip('.')}. {self.advice}".rstrip()
        ) from (last.__cause__ or last)


def openai_calls(urls: Sequence[str | None], api_key: str, **settings: Any) -> ServerCalls:
    """Requests to OpenAI-compatible servers.

    Args:
        urls (`Sequence[str]`):
            Addresses with their version. `None` is the one that the `openai` package finds in the environment.
        api_key (`str`):
            Their key.
        **settings:
            As of [`ServerCalls`].

    Returns:
        [`ServerCalls`]: The requests, whose clients are `openai.AsyncOpenAI`.

    Raises:
        `ImportError`: When a package is not installed.
    """
    try:
        import openai
        import tenacity  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"OpenAI-compatible servers are reached with the package {error.name!r}, which is not installed. Install "
            "it: pip install trl-prl[openai]"
        ) from error

    def open_client(url: str | None) -> Any:
        # Its own retries stay at one server, and its time limit holds for each read.
        return openai.AsyncOpenAI(base_url=url, api_key=api_key, timeout=settings["timeout"], max_retries=0)

    addresses = [url or str(open_client(url).base_url) for url in urls]
    return ServerCalls(addresses, open_client, secret=api_key, **settings)


async def ask_openai(create: Callable[..., Awaitable[Any]], **fields: Any) -> Any:
    """One attempt at an OpenAI-compatible server.

    Args:
        create (`Callable`):
            Method of an asynchronous client of the `openai` package whose own retries are off.
        **fields:
            Its arguments, `model` among them.

    Returns:
        The answer.

    Raises:
        [`PassingError`]: For no connection, time-outs, too many requests and errors of the server.
        [`UnusableAnswerError`]: For answers that are malformed, of another model or without any choice.
        `openai.APIStatusError`: For what would fail again.
    """
    import openai

    try:
        answer = await create(**fields)
    except openai.APIStatusError as error:
        if error.status_code not in (408, 409, 429) and error.status_code < 500:
            raise
        raise PassingError(f"{type(error).__name__}: {error}") from error
    except openai.APIConnectionError as error:
        raise PassingError(f"{type(error).__name__}: {error}") from error
    except (openai.APIResponseValidationError, ValueError, RecursionError) as error:
        # A body that is no JSON is a `ValueError` of the parser, one that is nested too deep a `RecursionError`.
        raise UnusableAnswerError(f"a malformed answer ({type(error).__name__}: {error})") from error
    if not isinstance(choices := getattr(answer, "choices", None), list) or not choices or None in choices:
        raise UnusableAnswerError("an answer without any choice")
    # A server may leave folders out of the name, and add a date to it or put one in the place of "latest".
    model = part_of(answer, "model", str, NoneType) or fields["model"]
    asked, named = (_last_part(name).removesuffix("-latest") for name in (fields["model"], model))
    added = named.removeprefix(asked)
    if added.strip("-@0123456789") or added[:1].isdigit():
        raise UnusableAnswerError(f"an answer of the model {model!r}, not of {fields['model']!r}")
    return answer


def part_of(answer: Any, name: str, *types: type) -> Any:
    """A part of an answer, of which the `openai` package checks nothing.

    Args:
        answer:
            The answer, or a part of it.
        name (`str`):
            Name of the attribute, with dots for one of a part.
        *types (`type`):
            Types that it may have, exactly these: `True` is no number.

    Returns:
        The part; `None` where it is absent.

    Raises:
        [`UnusableAnswerError`]: When it is of another type, or a text that cannot be written.
    """
    value = reduce(lambda part, attribute: getattr(part, attribute, None), name.split("."), answer)
    if type(value) not in types:
        raise UnusableAnswerError(f"a malformed answer, with {reprlib.repr(value)} as its {name}")
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise UnusableAnswerError(f"a malformed answer, with halves of characters in its {name}")
    return value


def served_as(model: str, names: Sequence[str], url: str) -> str:
    """The name that a vLLM server has for a model, of which only the last part must be the same.

    Args:
        model (`str`):
            Path or Hub id of the model that is asked for.
        names (`Sequence[str]`), url (`str`):
            What the server serves, and its address for the message.

    Returns:
        `str`: One of the names.

    Raises:
        `ValueError`: When the server serves other models only.
    """
    found = [name for name in names if _last_part(name) == _last_part(model)]
    if not found:
        raise ValueError(
            f"Got the model {model!r} at {url}, where {' and '.join(map(repr, names))} is served, whose answers would "
            "be taken for those of the other. Give the address of a server of this model, or start it with "
            f"`--served-model-name {_last_part(model)}` where it is the same under another name."
        )
    return found[0]


def _last_part(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]
