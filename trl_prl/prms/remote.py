"""A process reward on other machines: the client of `trl-prl serve`."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

from trl_prl.verifier.rows import VerifierSettings


TOKEN_VARIABLE = "TRL_PRL_TOKEN"
"""Environment variable of the token that server and clients share."""

# Answers that say that the server is not ready or overloaded, which passes.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


class _PassingError(Exception):
    """An answer after which another attempt makes sense."""


class RemoteProcessReward:
    r"""
    Asks servers of `trl-prl serve` for the scores of steps.

    It is a [`ProcessReward`] that returns what the served one does. A call is cut into chunks that go to the servers
    in turn; a chunk whose server does not answer, or answers that it cannot now, is sent again, to the next server,
    after growing pauses, until `max_wait` seconds are over. Scores come back in order, whole or not at all. Only
    prompts, steps and the column `finished` are sent. It has the methods `initial_values` and `score_solutions` of a
    [`ProcessReward`] where the served one values prompts.

    Args:
        urls (`str` or `Sequence[str]`):
            Addresses, such as `"http://10.0.0.7:8000"`. All must serve the same process reward.
        timeout (`float`, *optional*, defaults to `120.0`):
            Seconds for one request.
        max_wait (`float`, *optional*, defaults to `300.0`):
            Seconds for one chunk with all attempts: a server may be restarted meanwhile.
        max_attempts (`int`, *optional*, defaults to `20`):
            Most attempts of one chunk.
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
        max_attempts: int = 20,
        chunk_size: int = 64,
        token: str | None = None,
    ) -> None:
        try:
            import httpx
            import tenacity  # noqa: F401
        except ImportError as error:
            raise ImportError(
                f"Remote scoring needs the package '{error.name}', which is not installed. Install it with "
                "`pip install 'trl-prl[serve]'`."
            ) from error
        self.urls = [url.strip().rstrip("/") for url in ([urls] if isinstance(urls, str) else urls)]
        self.timeout, self.max_wait, self.max_attempts, self.chunk_size = timeout, max_wait, max_attempts, chunk_size
        token = token or os.environ.get(TOKEN_VARIABLE)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        # A proxy of the environment is for other hosts than the cluster's own.
        self._client = httpx.Client(timeout=timeout, headers=headers, trust_env=False)
        infos = [self._request("GET", "/info", None, place) for place in range(len(self.urls))]
        if any(info != infos[0] for info in infos):
            raise ValueError(
                f"The servers {', '.join(self.urls)} serve different process rewards: {infos}. Scores would depend on "
                "who answers. Start all of them with the same verifier."
            )
        self.info: Mapping[str, Any] = infos[0]
        """What the servers say of themselves."""
        self.returns = str(self.info["returns"])
        """`"values"` or `"advantages"`, as of the served process reward."""
        self.settings = VerifierSettings(
            step_splitter=self.info.get("step_splitter"), step_length=self.info.get("step_length") or 256
        )
        self.__name__ = str(self.info["name"])
        if self.info["has_initial_values"]:
            # Whoever asks whether prompts are valued looks for these methods.
            self.initial_values = self._initial_values
            self.score_solutions = self._score_solutions

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max_workers=4 * len(self.urls), thread_name_prefix="remote-reward")

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
        answers = self._send("/score", _rows(prompts, steps, columns))
        return [[_number(value) for value in row] for answer in answers for row in answer["step_scores"]]

    def _initial_values(self, prompts: Sequence[Any], **columns: Any) -> list[float]:
        answers = self._send("/initial_values", {"prompts": list(prompts)})
        return [_number(value) for answer in answers for value in answer["initial_values"]]

    def _score_solutions(
        self, prompts: Sequence[Any], steps: Sequence[Sequence[str]], **columns: Any
    ) -> tuple[list[float], list[list[float]]]:
        answers = self._send("/values", _rows(prompts, steps, columns))
        initial = [_number(value) for answer in answers for value in answer["initial_values"]]
        return initial, [[_number(value) for value in row] for answer in answers for row in answer["step_values"]]

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _send(self, route: str, columns: Mapping[str, list[Any]]) -> list[Any]:
        """Send the rows in chunks, and return the answers in order."""
        if len({len(rows) for rows in columns.values()}) > 1:
            raise ValueError(
                f"There are {' and '.join(f'{len(rows)} {name}' for name, rows in columns.items())}. Row i of one "
                "belongs to row i of the other. Pass one prompt per solution."
            )
        starts = range(0, len(columns["prompts"]), self.chunk_size)
        chunks = [{name: rows[i : i + self.chunk_size] for name, rows in columns.items()} for i in starts]
        futures = [self._pool.submit(self._request, "POST", route, chunk, place) for place, chunk in enumerate(chunks)]
        return [future.result() for future in futures]

    def _request(self, method: str, route: str, body: Any, place: int) -> Any:
        """One request with all its attempts; the first goes to the server at `place`, the next to those behind it."""
        import httpx
        import tenacity

        attempts = tenacity.Retrying(
            stop=tenacity.stop_after_delay(self.max_wait) | tenacity.stop_after_attempt(self.max_attempts),
            wait=tenacity.wait_random_exponential(multiplier=0.2, max=30),
            retry=tenacity.retry_if_exception_type((httpx.TransportError, _PassingError)),
        )
        try:
            for number, attempt in enumerate(attempts):
                with attempt:
                    url = self.urls[(place + number) % len(self.urls)]
                    return self._answer(self._client.request(method, url + route, json=body), url)
        except tenacity.RetryError as error:
            last = error.last_attempt.exception()
            raise ConnectionError(
                f"{', '.join(self.urls)} gave no answer to {route} in {error.last_attempt.attempt_number} attempts "
                f"within {self.max_wait:.0f} seconds ({type(last).__name__}: {last}). Check that `trl-prl serve` runs "
                "there; a longer `timeout` or `max_wait` helps if it is slow or being restarted."
            ) from last

    def _answer(self, response: Any, url: str) -> Any:
        if response.status_code in _PASSING:
            raise _PassingError(f"{url} answered {response.status_code}: {response.text[:200]}")
        if response.status_code == 401:
            raise ValueError(
                f"{url} does not accept the token of this client. Set the environment variable {TOKEN_VARIABLE} to "
                "that of the server, or pass `token`."
            )
        if response.status_code != 200:
            raise ValueError(
                f"{url} refused the request ({response.status_code}): {response.text[:500]}. Another attempt would "
                "end the same way. Check the prompts and steps, and that a `trl-prl serve` of this version runs there."
            )
        return response.json()


def _rows(prompts: Sequence[Any], steps: Sequence[Sequence[str]], columns: Mapping[str, Any]) -> dict[str, list[Any]]:
    rows = {"prompts": list(prompts), "steps": [list(row) for row in steps]}
    if columns.get("finished") is not None:
        rows["finished"] = [mark is None or bool(mark) for mark in columns["finished"]]
    return rows


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
