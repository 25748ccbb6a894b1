"""The scoring service of `trl-prl serve`: a small HTTP API around one process reward, which batches its clients."""

import asyncio
import math
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request
from pydantic import BaseModel

from trl_prl.rewards.checks import collected_best_of_k, has_initial_values, takes
from trl_prl.rewards.scoring import callable_name, returned_type, score_steps

from .scoring import score_prefixes


Messages = list[dict[str, Any]]
Numbers = list[float | None]
_UNEQUAL = (
    "Got {} `prompts`, {} `steps` and {} `finished`, which must be as many: give every solution a prompt, a list of "
    "its steps, and a mark or none at all."
)


class PromptsBody(BaseModel):
    """Prompts, each a text or a list of messages."""

    prompts: list[str | Messages]


class SolutionsBody(PromptsBody):
    """Prompts, the texts of the steps of one solution to each, and whether it ends there (all do by default)."""

    steps: list[list[str]]
    finished: list[bool] | None = None


class Info(BaseModel):
    """What is served."""

    name: str
    returns: str
    has_initial_values: bool
    step_splitter: str | None
    step_length: int | None
    max_length: int | None
    prompts: dict[str, Any] | None
    prompt_type: str | None
    best_of_k: int
    collected_best_of_k: int


class Health(BaseModel):
    """That the service is up, and how many requests wait."""

    status: str
    waiting: int


class InitialValues(BaseModel):
    """One value per prompt, null where there is none."""

    initial_values: Numbers


class StepScores(BaseModel):
    """One list per solution, one number per step, null where a step cannot be scored."""

    step_scores: list[Numbers]


class Values(InitialValues):
    """Values of prompts and of steps."""

    step_values: list[Numbers]


@dataclass
class _Job:
    kind: str
    prompts: list[Any]
    steps: list[list[str]]
    finished: list[bool]
    future: "asyncio.Future[Any]"


class MicroBatcher:
    """Scores what has come in since the last batch together, so that many small requests fill the accelerator.

    A batch holds requests of one kind. One that is refused as a whole is scored again request by request, so that only
    the client hears of an error whose request it was.

    Args:
        process_reward ([`ProcessReward`]):
            The scorer. It is called in one thread at a time.
        max_batch (`int`):
            Most solutions of a batch, unless one request has more.
    """

    def __init__(self, process_reward: Any, max_batch: int) -> None:
        self.process_reward = process_reward
        self.max_batch = max_batch
        self._jobs: asyncio.Queue[_Job] = asyncio.Queue()
        self._kept: _Job | None = None

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return self._jobs.qsize()

    async def submit(self, kind: str, prompts: list[Any], steps: list[list[str]], finished: list[bool]) -> Any:
        """Wait for the scores of a request: `"scores"` of steps or `"values"` of prompts and steps."""
        job = _Job(kind, prompts, steps, finished, asyncio.get_running_loop().create_future())
        await self._jobs.put(job)
        return await job.future

    async def run(self) -> None:
        """Score batches until cancelled."""
        while True:
            await self._answer(await self._next_batch())

    async def _answer(self, jobs: Sequence[_Job]) -> None:
        results: Sequence[Any]
        try:
            results = await asyncio.to_thread(self._score, jobs)
        # The service goes on; the clients of this batch hear of it and try again.
        except Exception as error:
            if isinstance(error, ValueError) and len(jobs) > 1:
                for job in jobs:
                    await self._answer([job])
                return
            results = [error] * len(jobs)
        for job, result in zip(jobs, results, strict=True):
            if job.future.done():  # its client may have gone
                continue
            if isinstance(result, Exception):
                job.future.set_exception(result)
            else:
                job.future.set_result(result)

    async def _next_batch(self) -> list[_Job]:
        jobs = [self._kept or await self._jobs.get()]
        self._kept = None
        size = len(jobs[0].prompts)
        while not self._jobs.empty():
            job = self._jobs.get_nowait()
            if job.kind != jobs[0].kind or size + len(job.prompts) > self.max_batch:
                self._kept = job
                break
            jobs.append(job)
            size += len(job.prompts)
        return jobs

    def _score(self, jobs: Sequence[_Job]) -> list[Any]:
        prompts = [prompt for job in jobs for prompt in job.prompts]
        steps = [texts for job in jobs for texts in job.steps]
        finished = [mark for job in jobs for mark in job.finished]
        if jobs[0].kind == "scores":
            columns = {"finished": finished} if takes(self.process_reward, "finished") else {}
            scores = score_steps(self.process_reward, prompts, steps, **columns)
            found = [row[: len(texts)].tolist() for row, texts in zip(scores, steps, strict=True)]
        else:
            initial, values = score_prefixes(self.process_reward, prompts, steps, finished)
            found = list(zip(initial, values, strict=True))
        rows = iter(found)
        return [list(islice(rows, len(job.prompts))) for job in jobs]


def create_app(process_reward: Any, *, token: str | None = None, max_batch: int = 256) -> FastAPI:
    """Make the application.

    Args:
        process_reward ([`ProcessReward`]):
            What is served.
        token (`str`, *optional*):
            What clients must send as `Authorization: Bearer ...`; without one everybody is answered.
        max_batch (`int`, *optional*, defaults to `256`):
            Most solutions of a batch.

    Returns:
        `fastapi.FastAPI`: The application; its API is documented at `/docs`.
    """
    batcher = MicroBatcher(process_reward, max_batch)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(batcher.run())
        yield
        task.cancel()

    async def answer(kind: str, prompts: list[Any], steps: list[list[str]], marks: list[bool] | None) -> Any:
        finished = [True] * len(steps) if marks is None else marks
        if not len(prompts) == len(steps) == len(finished):
            raise HTTPException(422, _UNEQUAL.format(len(prompts), len(steps), len(finished)))
        if not prompts:
            return []
        try:
            return await batcher.submit(kind, prompts, steps, finished)
        except ValueError as error:
            raise HTTPException(422, str(error)) from error

    app = FastAPI(title="trl-prl serve", description="Scores of the steps of solutions.", lifespan=lifespan)
    allowed = [Depends(_token_check(token))]

    @app.get("/health")
    async def health() -> Health:
        return Health(status="ok", waiting=batcher.waiting)

    @app.get("/info", dependencies=allowed)
    async def info() -> Info:
        return describe(process_reward)

    @app.post("/score", dependencies=allowed)
    async def score(body: SolutionsBody) -> StepScores:
        rows = await answer("scores", body.prompts, body.steps, body.finished)
        return StepScores(step_scores=[_plain(row) for row in rows])

    @app.post("/values", dependencies=allowed)
    async def values(body: SolutionsBody) -> Values:
        rows = await answer("values", body.prompts, body.steps, body.finished)
        return Values(initial_values=_plain(row[0] for row in rows), step_values=[_plain(row[1]) for row in rows])

    @app.post("/initial_values", dependencies=allowed)
    async def initial_values(body: PromptsBody) -> InitialValues:
        rows = await answer("values", body.prompts, [[] for _ in body.prompts], None)
        return InitialValues(initial_values=_plain(row[0] for row in rows))

    return app


def _token_check(token: str | None) -> Any:
    async def check(request: Request) -> None:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and not secrets.compare_digest(given.encode(), token.encode()):
            raise HTTPException(401, "The token is missing or wrong.")

    return check


def describe(process_reward: Any) -> Info:
    """Say what a process reward is.

    Args:
        process_reward ([`ProcessReward`]):
            What is served.

    Returns:
        [`Info`]: Name, what it returns, splitter and length.
    """
    settings = getattr(process_reward, "settings", None)
    prompts = getattr(settings, "prompts", None)
    names = ("step_splitter", "step_length", "max_length", "prompt_type")
    return Info(
        name=callable_name(process_reward),
        returns=returned_type(process_reward, None),
        has_initial_values=has_initial_values(process_reward),
        prompts=None if prompts is None else asdict(prompts),
        best_of_k=getattr(settings, "best_of_k", 1),
        collected_best_of_k=collected_best_of_k(settings),
        **{name: getattr(settings, name, None) for name in names},
    )


def _plain(numbers: Any) -> Numbers:
    """NaN is no JSON."""
    return [None if math.isnan(number) else number for number in numbers]
