"""A process reward on other machines: the client of `trl-prl serve`."""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Mapping, Sequence
from functools import partial
from types import NoneType
from typing import Any

from trl_prl.generation.server_calls import PassingError, ServerCalls, UnusableAnswerError
from trl_prl.verifier.settings import VerifierSettings


TOKEN_VARIABLE = "TRL_PRL_TOKEN"
"""Environment variable of the token that server and clients share."""

# Answers that say that the server is not ready or overloaded, which passes.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})

_FIELDS = {
    "/score": ("step_scores",),
    "/initial_values": ("initial_values",),
    "/values": ("initial_values", "step_values"),
}
_INFO: Mapping[str, tuple[type, ...]] = {
    **{"name": (str,), "returns": (str,), "has_initial_values": (bool,)},
    **{"step_splitter": (str, NoneType), "step_length": (int, NoneType)},
}


class RemoteProcessReward:
    r"""
    Asks servers of `trl-prl serve` for the scores of steps.

    It is a [`ProcessReward`] that returns what the served one does. A call is cut into chunks, one for each server or
    more, and the servers take turns, from call to call; a chunk whose server does not answer, or answers that it
    cannot now, is sent again, to the next server, after growing pauses, until `max_wait` seconds are over. Scores come
    back in order, whole or not at all. Only prompts, steps and the column `finished` are sent. It has the methods
    `initial_values` and `score_solutions` of a [`ProcessReward`] where the served one values prompts.

    Args:
        urls (`str` or `Sequence[str]`):
            Addresses, such as `"http://10.0.0.7:8000"`. All must serve the same process reward.
        timeout (`float`, *optional*, defaults to `120.0`):
            Seconds for one whole request.
        max_wait (`float`, *optional*, defaults to `300.0`):
            Seconds for one chunk with all attempts: a server may be restarted meanwhile.
        max_retries (`int`, *optional*, defaults to `20`):
            Further attempts of a chunk that failed.
        chunk_size (`int`, *optional*, defaults to `64`):
            Most solutions of one request.
        token (`str`, *optional*):
            Token of the servers; by default that of the environment variable `TRL_PRL_TOKEN`.

    Raises:
        `ImportError`: If httpx or tenacity is not installed.
        `ConnectionError`: If no server answers in time.
        `ValueError`: If the servers serve different things, or refuse a request.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        timeout: float = 120.0,
        max_wait: float = 300.0,
        max_retries: int = 20,
        chunk_size: int = 64,
        token: str | None = None,
    ) -> None:
        self.urls = [url.strip().rstrip("/") for url in ([urls] if isinstance(urls, str) else urls)]
        self.chunk_size = chunk_size
        self._calls = http_calls(
            self.urls,
            token,
            timeout=timeout,
            max_attempts=max_retries + 1,
            max_wait=max_wait,
            concurrency=4 * len(self.urls),
            advice="Check that `trl-prl serve` runs there; a longer `timeout` or `max_wait` helps if it is slow or "
            "being restarted.",
        )
        infos = dict(self._calls.each(_info, [None] * len(self.urls), lambda _: "/info"))
        self.info: Mapping[str, Any] = next(iter(infos.values()))
        """What the servers say of themselves."""
        if any(info != self.info for info in infos.values()):
            raise ValueError(
                f"The servers serve different process rewards: {infos}. Scores would depend on who answers. Start all "
                "of them with the same verifier."
            )
        self.returns = str(self.info["returns"])
        """`"values"` or `"advantages"`, as of the served process reward."""
        self.settings = _settings(self.info)
        self.__name__ = str(self.info["name"])
        if self.info["has_initial_values"]:
            # Whoever asks whether prompts are valued looks for these methods.
            self.initial_values = self._initial_values
            self.score_solutions = self._score_solutions

    def __call__(
        self, prompts: Sequence[Any], steps: Sequence[Sequence[str]], **columns: Any
    ) -> list[list[float | None]]:
        """Scores of the steps.

        Args:
            prompts (`Sequence`):
                One prompt per solution, plain text or messages.
            steps (`Sequence[Sequence[str]]`):
                Texts of the steps of each solution.
            **columns:
                `finished` says of each solution whether it ends with its last step; the others are not sent.

        Returns:
            `list[list[float]]`: One number per step, NaN where there is none.
        """
        return self._send("/score", _rows(prompts, steps, columns))[0]

    def _initial_values(self, prompts: Sequence[Any], **columns: Any) -> list[float]:
        return self._send("/initial_values", {"prompts": list(prompts)})[0]

    def _score_solutions(
        self, prompts: Sequence[Any], steps: Sequence[Sequence[str]], **columns: Any
    ) -> tuple[list[float], list[list[float]]]:
        initial_values, step_values = self._send("/values", _rows(prompts, steps, columns))
        return initial_values, step_values

    def _send(self, route: str, columns: Mapping[str, list[Any]]) -> list[list[Any]]:
        """Send the rows in chunks, and return what was answered under each name of `_FIELDS`, in order."""
        if len({len(rows) for rows in columns.values()}) > 1:
            raise ValueError(
                f"There are {' and '.join(f'{len(rows)} {name}' for name, rows in columns.items())}. Row i of one "
                "belongs to row i of the other. Pass one prompt per solution."
            )
        num_rows = len(columns["prompts"])
        size = min(self.chunk_size, math.ceil(num_rows / len(self.urls))) or 1
        chunks = [{name: rows[i : i + size] for name, rows in columns.items()} for i in range(0, num_rows, size)]
        answers = list(self._calls.each(partial(_ask, route), chunks, lambda _: route))
        return [[row for answer in answers for row in answer[name]] for name in _FIELDS[route]]


def http_calls(urls: list[str], token: str | None, **settings: Any) -> ServerCalls:
    """Requests to servers of scores.

    Args:
        urls (`list[str]`):
            Addresses.
        token (`str`, *optional*):
            Their token; by default that of the environment variable `TRL_PRL_TOKEN`.
        **settings:
            As of [`ServerCalls`].

    Returns:
        [`ServerCalls`]: The requests, whose clients are `httpx.AsyncClient`.

    Raises:
        `ImportError`: If httpx or tenacity is not installed.
    """
    try:
        import httpx
        import tenacity  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"Remote scoring needs the package '{error.name}', which is not installed. Install it with "
            "`pip install 'trl-prl[serve]'`."
        ) from error
    token = token or os.environ.get(TOKEN_VARIABLE)
    # A proxy of the environment is for other hosts than the cluster's own.
    fields: dict[str, Any] = {
        "headers": {"Authorization": f"Bearer {token}"} if token else {},
        "timeout": settings["timeout"],
        "trust_env": False,
        "verify": httpx.create_ssl_context(),
    }
    return ServerCalls(
        urls, lambda url: httpx.AsyncClient(base_url=url, **fields), backoff=0.2, secret=token, **settings
    )


async def _info(client: Any, _: None) -> tuple[str, Any]:
    info = await http_answer(client, "GET", "/info")
    for name, types in _INFO.items():
        value = info.get(name) if isinstance(info, dict) else info
        if type(value) not in types:
            raise UnusableAnswerError(f"an answer that is none to /info, with {reprlib.repr(value)} as its {name}")
    return str(client.base_url), info


async def _ask(route: str, client: Any, chunk: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    answer = await http_answer(client, "POST", route, json=chunk)
    try:
        found = {name: [_numbers(entry) for entry in answer[name]] for name in _FIELDS[route]}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UnusableAnswerError(f"an answer that is none to {route} ({type(error).__name__}: {error})") from error
    sizes = [len(row) for row in chunk.get("steps", ())]
    shapes: dict[str, list[Any]] = {"step_scores": sizes, "step_values": sizes}
    shapes["initial_values"] = [None] * len(chunk["prompts"])
    for name, rows in found.items():
        if (shape := [len(row) if isinstance(row, list) else None for row in rows]) != shapes[name]:
            raise UnusableAnswerError(f"{name} of the shape {shape[:8]} for solutions of the shape {shapes[name][:8]}")
    return found


async def http_answer(client: Any, method: str, route: str, **fields: Any) -> Any:
    """One attempt at a server of scores.

    Args:
        client (`httpx.AsyncClient`):
            Client of the server.
        method (`str`), route (`str`):
            What is asked of it.
        **fields:
            The rest of the request.

    Returns:
        The JSON of the answer.

    Raises:
        [`PassingError`]: For no connection, and for answers that pass.
        `ValueError`: For a wrong token, and for a request that would be refused again.
    """
    import httpx

    try:
        response = await client.request(method, route, **fields)
    except httpx.TransportError as error:
        raise PassingError(f"{type(error).__name__}: {error}") from error
    if response.status_code in _PASSING:
        raise PassingError(f"{client.base_url} answered {response.status_code}: {response.text[:200]}")
    if response.status_code == 401:
        raise ValueError(
            f"{client.base_url} does not accept the token of this client. Set the environment variable "
            f"{TOKEN_VARIABLE} to that of the server, or pass `token`."
        )
    if response.status_code != 200:
        raise ValueError(
            f"{client.base_url} refused the request ({response.status_code}): {response.text[:500]}. Another attempt "
            "would end the same way. Check the prompts and steps, and that a server of this kind and version runs "
            "there."
        )
    try:
        return response.json()
    except (ValueError, RecursionError) as error:
        raise UnusableAnswerError(f"an answer that is no JSON ({error})") from error


def _rows(prompts: Sequence[Any], steps: Sequence[Sequence[str]], columns: Mapping[str, Any]) -> dict[str, list[Any]]:
    rows = {"prompts": list(prompts), "steps": [list(row) for row in steps]}
    if columns.get("finished") is not None:
        rows["finished"] = [mark is None or bool(mark) for mark in columns["finished"]]
    return rows


def _numbers(value: Any) -> Any:
    """A number or a list of them, where null stands for none."""
    if isinstance(value, list):
        return [_number(entry) for entry in value]
    return _number(value)


def _number(value: Any) -> float:
    number = math.nan if value is None else float(value)
    if math.isinf(number):
        raise ValueError(f"{number} is no score")
    return number


def _settings(info: Mapping[str, Any]) -> VerifierSettings:
    """What a contradiction is told by, as far as the servers say it."""
    given = {name: value for name, value in info.items() if value is not None}
    if (best_of_k := given.pop("collected_best_of_k", 1)) != 1:
        given["collected"] = {"best_of_k": best_of_k}
    return VerifierSettings.from_dict({"step_splitter": None, **given})
