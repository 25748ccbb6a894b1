"""Remote scoring: the service's HTTP API, its client, deadlines and retries, many clients at once."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import uvicorn
from fastapi.testclient import TestClient

from tests.json_server import JsonServer, running
from tests.prms.test_families import PROMPTS, STEPS, flat
from tests.tiny_models import build_tokenizer
from tests.verifier_models import build_verifier
from trl_prl import RemoteProcessReward, load_process_reward
from trl_prl.__main__ import main
from trl_prl.prms.remote import http_calls
from trl_prl.prms.server import create_app, describe
from trl_prl.prompts.format import PromptFormat
from trl_prl.rewards.checks import (
    check_process_reward,
    warn_of_other_prompts,
    warn_of_other_splitter,
    warn_of_second_best_of_k,
)
from trl_prl.rewards.scoring import score_values
from trl_prl.steps.split import get_splitter
from trl_prl.verifier.settings import VerifierSettings


class LengthReward:
    """The value of a step is told by its text and its prompt alone, so that mixed-up scores show."""

    returns = "values"

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.broken = 0

    def __call__(self, prompts: list[Any], steps: list[list[str]], **columns: Any) -> list[list[float]]:
        self.batches.append(len(prompts))
        time.sleep(0.002)
        if self.broken:
            self.broken -= 1
            raise RuntimeError("out of memory")
        if any(prompt == "refused" for prompt in prompts):
            raise ValueError("The prompt is 'refused'.")
        return [
            [math.nan if text == "nan" else expected_value(prompt, text) for text in row]
            for prompt, row in zip(prompts, steps, strict=True)
        ]

    def initial_values(self, prompts: list[Any], **columns: Any) -> list[float]:
        return [expected_value(prompt, "") for prompt in prompts]


def expected_value(prompt: Any, text: str) -> float:
    return (sum(map(ord, f"{prompt}|{text}")) % 9973) / 9973


def close(prompt: Any, text: str) -> Any:
    return pytest.approx(expected_value(prompt, text), abs=1e-6)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def serving(reward: Any, port: int | None = None, **options: Any) -> Iterator[str]:
    """A service in a thread of this process."""
    port = port or free_port()
    config = uvicorn.Config(create_app(reward, **options), host="127.0.0.1", port=port, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def test_the_api() -> None:
    with TestClient(create_app(LengthReward(), token="secret")) as client:
        assert client.get("/health").json() == {"status": "ok", "waiting": 0}
        assert client.get("/info").status_code == 401
        client.headers["Authorization"] = "Bearer secret"
        info = client.get("/info").json()
        assert (info["name"], info["returns"], info["has_initial_values"]) == ("LengthReward", "values", True)
        body = {"prompts": ["a", [{"role": "user", "content": "b"}]], "steps": [["x", "nan"], []]}
        answer = client.post("/score", json=body).json()
        assert answer == {"step_scores": [[close("a", "x"), None], []]}
        answer = client.post("/values", json=body).json()
        assert answer["initial_values"] == [close(prompt, "") for prompt in body["prompts"]]
        assert answer["step_values"] == [[close("a", "x"), None], []]
        answer = client.post("/initial_values", json={"prompts": ["a"]}).json()
        assert answer == {"initial_values": [close("a", "")]}
        refused = client.post("/score", json={"prompts": ["a"], "steps": [["x"], ["y"]]})
        assert (refused.status_code, "1 `prompts`, 2 `steps` and 2 `finished`" in refused.json()["detail"]) == (
            422,
            True,
        )
        assert client.post("/score", json={"prompts": "a"}).status_code == 422
        refused = client.post("/score", json={"prompts": ["refused"], "steps": [["x"]]})
        assert (refused.status_code, refused.json()["detail"]) == (422, "The prompt is 'refused'.")
        assert client.post("/score", json={"prompts": [], "steps": []}).json() == {"step_scores": []}
        documented = set(client.get("/openapi.json").json()["paths"])
        assert documented == {"/health", "/info", "/score", "/values", "/initial_values"}


@pytest.mark.parametrize("family", ["qwen", "math-shepherd", "rlhflow", "skywork", "trl", "implicit"])
def test_every_family_is_served(family: str, prm_paths: dict[str, str]) -> None:
    local = load_process_reward(prm_paths[family])
    with serving(local) as url:
        remote = load_process_reward(f"{url},chunk_size=4", device="cuda")  # of no use to an address
        assert isinstance(remote, RemoteProcessReward)
        assert remote.returns == local.returns
        assert remote.settings.step_splitter == local.settings.step_splitter
        check_process_reward(remote)
        torch.testing.assert_close(flat(remote(PROMPTS, STEPS)), flat(local(PROMPTS, STEPS)), atol=1e-5, rtol=0)
        scores, initial = score_values(remote, PROMPTS, STEPS)
        expected, start = score_values(local, PROMPTS, STEPS)
        torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0, equal_nan=True)
        assert (initial is None) == (start is None)


def test_an_own_verifier_is_served() -> None:
    local = build_verifier(build_tokenizer(), step_splitter="blank_line", prompt_format="chat")
    with serving(local) as url:
        remote = RemoteProcessReward(url)
        assert remote.settings.step_splitter == "blank_line"
        for finished in (None, [True, False, True, False, False, True]):
            initial, values = remote.score_solutions(PROMPTS, STEPS, finished=finished)
            expected = local.score_solutions(PROMPTS, STEPS, finished=finished)
            torch.testing.assert_close(flat([initial, *values]), flat([expected[0], *expected[1]]), atol=1e-5, rtol=0)


def test_a_reward_without_values_of_prompts_is_said_to_have_none() -> None:
    def only_steps(prompts: list[Any], steps: list[list[str]], **columns: Any) -> list[list[float]]:
        return [[0.5] * len(row) for row in steps]

    with serving(only_steps) as url:
        with pytest.raises(ValueError, match="says nothing about the prompt's own value"):
            check_process_reward(RemoteProcessReward(url))


@pytest.mark.slow
def test_many_clients_are_batched_and_not_mixed_up() -> None:
    reward = LengthReward()
    with serving(reward, max_batch=64) as url:

        def ask(client: int) -> bool:
            remote = RemoteProcessReward(url)
            right = True
            for call in range(4):
                prompts = [f"client {client} call {call} row {row}" for row in range(3)]
                sizes = [1 + (client + row) % 4 for row in range(3)]
                steps = [[f"{prompt} {i}" for i in range(size)] for prompt, size in zip(prompts, sizes, strict=True)]
                found = remote(prompts, steps)
                right &= [len(row) for row in found] == [len(row) for row in steps]
                for prompt, row, texts in zip(prompts, found, steps, strict=True):
                    right &= row == [close(prompt, text) for text in texts]
            return right

        with ThreadPoolExecutor(32) as pool:
            assert all(pool.map(ask, range(32)))
    assert sum(reward.batches) == 32 * 4 * 3
    # Requests that came in while a batch was scored share the next one, up to the limit.
    assert 3 < max(reward.batches) <= 64
    assert len(reward.batches) < 32 * 4


def test_a_bad_request_fails_alone() -> None:
    with serving(LengthReward()) as url:

        def ask(prompt: str) -> Any:
            try:
                return RemoteProcessReward(url)([prompt], [["x"]])
            except ValueError as error:
                return str(error)

        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(ask, [f"p{i}" if i % 4 else "refused" for i in range(16)]))
    for i, answer in enumerate(found):
        if i % 4:
            assert answer == [[close(f"p{i}", "x")]]
        else:
            assert "refused the request (422)" in answer
            assert "The prompt is 'refused'" in answer


def test_passing_errors_are_tried_again_and_others_not() -> None:
    reward = LengthReward()
    with serving(reward) as url:
        remote = RemoteProcessReward(url)
        reward.broken = 2
        assert remote(["a"], [["x"]]) == [[close("a", "x")]]
        assert len(reward.batches) == 3
        reward.broken = 10**6
        impatient = RemoteProcessReward(url, max_retries=2)
        with pytest.raises(
            ConnectionError, match=r"no answer to /score that can be used, in 3 attempts.*answered 500"
        ):
            impatient(["a"], [["x"]])


def test_deadlines_and_servers_that_are_not_there(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    started = time.monotonic()
    with pytest.raises(ConnectionError, match=r"gave no answer to /info.*Check that `trl-prl serve` runs"):
        RemoteProcessReward(url, max_wait=1.0)
    assert time.monotonic() - started < 10

    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=r"no whole answer within 0\.3 seconds|ReadTimeout"):
            RemoteProcessReward(url, timeout=0.3, max_retries=1)


class Scores(JsonServer):
    """What answers in the place of a scoring service."""

    def reply(self, body: dict[str, Any]) -> dict[str, Any]:
        info = {"name": "s", "returns": "values", "has_initial_values": False, "step_splitter": None}
        return {"step_scores": [[0.5] * len(row) for row in body["steps"]]} if body else {**info, "step_length": None}


def test_what_a_served_verifier_was_trained_with_reaches_the_client(caplog: pytest.LogCaptureFixture) -> None:
    made = PromptFormat(prompt_template="Q: {prompt}")
    stored: dict[str, Any] = {"step_splitter": "fixed", "step_length": 7, "best_of_k": 4, "prompt_type": "text"}
    verifier = build_verifier(build_tokenizer(), prompts=made, **stored)

    class Served(JsonServer):
        def reply(self, body: dict[str, Any]) -> dict[str, Any]:
            return describe(verifier).model_dump()

    with running(Served()) as server:
        remote = RemoteProcessReward(server.url)
    assert remote.settings == VerifierSettings(prompts=made, max_length=verifier.settings.max_length, **stored)
    warn_of_other_prompts(remote, "Q: 1+1=", made)
    warn_of_other_splitter(remote, get_splitter("fixed", step_length=7))
    assert not caplog.records
    warn_of_other_prompts(remote, "1+1=", PromptFormat())
    warn_of_other_splitter(remote, get_splitter("newline"))
    warn_of_second_best_of_k(remote, 2)
    assert [
        record.message.count(word)
        for record, word in zip(caplog.records, ("prompt_template", "step_length=7", "best of 8"), strict=True)
    ] == [1, 2, 1]


def test_the_transform_of_a_served_verifier_is_told_apart_from_that_of_its_data(
    caplog: pytest.LogCaptureFixture,
) -> None:
    verifier = build_verifier(build_tokenizer(), collected={"best_of_k": 4, "prover": "p"})
    with serving(verifier) as url:
        remote = RemoteProcessReward(url)
    # `PAVTrainer` undoes the first before it compares values with outcomes.
    assert (remote.settings.best_of_k, remote.settings.collected) == (1, {"best_of_k": 4})
    warn_of_second_best_of_k(remote, 2)
    assert "best of 8" in caplog.text


@pytest.mark.parametrize(
    "action",
    [
        "trickle",
        "no json",
        "too deep",
        {"step_scores": [[0.5]]},
        {"step_scores": [[0.5, 0.5, 0.5], [0.5]]},
        {"step_scores": [["high", 0.5], [0.5]]},
        {"step_scores": [0.5, 0.5]},
        {"step_scores": None},
    ],
)
def test_what_is_no_answer_is_asked_for_again(action: Any) -> None:
    with running(Scores()) as server:
        remote = RemoteProcessReward(server.url, timeout=0.5)
        server.plan = [action, action]
        assert remote(["a", "b"], [["x", "y"], ["z"]]) == [[0.5, 0.5], [0.5]]
        assert len(server.bodies) == 4
        impatient = RemoteProcessReward(server.url, timeout=0.5, max_retries=1)
        server.plan = [action] * 100
        with pytest.raises(ConnectionError, match="no answer to /score that can be used, in 2 attempts"):
            impatient(["a", "b"], [["x", "y"], ["z"]])


def test_an_answer_with_anything_in_it_is_used_or_named() -> None:
    with running(Scores()) as server:
        remote = RemoteProcessReward(server.url, max_retries=0)
        for scores in [[[0.5, 0.5], [[1]]], [[0.5, 0.5], [math.inf]], [[0.5, 0.5], [10**400]], [[0.5, True], [None]]]:
            server.plan = [{"step_scores": scores}]
            with (
                pytest.raises(ConnectionError, match="an answer that is none to /score")
                if (scores[1] != [None])
                else contextlib.nullcontext()
            ):
                assert remote(["a", "b"], [["x", "y"], ["z"]])[0] == [0.5, 1.0]
        for changed in ({"returns": None}, {"has_initial_values": "no"}, {"step_splitter": 5}, {"step_length": [1]}):
            server.plan = [changed]
            with pytest.raises(ConnectionError, match=f"none to /info, with .* as its {next(iter(changed))}"):
                RemoteProcessReward(server.url, max_retries=0)


def test_tokens() -> None:
    with serving(LengthReward(), token="secret") as url:
        with pytest.raises(ValueError, match="does not accept the token"):
            RemoteProcessReward(url)
        assert RemoteProcessReward(url, token="secret").returns == "values"


def test_a_token_of_the_environment_is_kept_out_of_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_PRL_TOKEN", "token-of-the-environment")
    calls = http_calls(["http://127.0.0.1:1"], None, timeout=1.0, max_attempts=1, max_wait=1.0)
    assert calls.secret == "token-of-the-environment"


def test_several_servers_share_the_work_and_stand_in_for_each_other() -> None:
    first, second, other = LengthReward(), LengthReward(), LengthReward()
    other.__name__ = "another"
    prompts = [f"p{i}" for i in range(40)]
    steps = [[f"s{i}"] for i in range(40)]
    expected = [[close(f"p{i}", f"s{i}")] for i in range(40)]
    with serving(first) as one:
        with serving(second) as two:
            remote = RemoteProcessReward([one, two], chunk_size=4)
            assert remote(prompts, steps) == expected
            assert sum(first.batches) == sum(second.batches) == 20
            with serving(other) as three, pytest.raises(ValueError, match="serve different process rewards"):
                RemoteProcessReward([one, three])
        # The second one is gone.
        assert remote(prompts, steps) == expected
        assert sum(first.batches) == 20 + 40


def test_small_calls_are_shared_and_the_servers_take_turns() -> None:
    rewards = [LengthReward() for _ in range(3)]
    with contextlib.ExitStack() as stack:
        urls = [stack.enter_context(serving(reward)) for reward in rewards]
        remote = RemoteProcessReward(urls)
        for size in (9, 2):
            prompts, steps = [f"p{i}" for i in range(size)], [[f"s{i}"] for i in range(size)]
            assert remote(prompts, steps) == [[close(f"p{i}", f"s{i}")] for i in range(size)]
        for _ in range(4):
            remote(["p"], [["s"]])
        assert remote([], []) == []
    # 9, 2 and four times 1 solution: a third of the first, then six in turn.
    assert [sum(reward.batches) for reward in rewards] == [5, 5, 5]


def test_clients_do_not_all_begin_with_the_first_server() -> None:
    urls = [f"http://127.0.0.1:{port}" for port in range(1, 5)]

    async def server_of(client: Any, _: None) -> str:
        return str(client.base_url)

    def first() -> str:
        [url] = http_calls(urls, None, timeout=1.0, max_attempts=1, max_wait=1.0).each(server_of, [None], str)
        return url

    # None of 16 begins elsewhere once in four thousand million times.
    assert len({first() for _ in range(16)}) > 1


def test_a_service_for_others_needs_a_token(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRL_PRL_TOKEN", raising=False)
    assert main(["serve", "--verifier", "x", "--host", "0.0.0.0"]) == 2
    assert "without a token" in capsys.readouterr().err


@pytest.mark.slow
def test_a_server_is_killed_and_restarted_in_the_middle(prm_paths: dict[str, str], repo_root: Path) -> None:
    """Nothing is lost and nothing is mixed up: clients wait for the new one."""
    port = free_port()
    words = ["serve", "--verifier", prm_paths["skywork"], "--port", str(port), "--device", "cpu"]
    command = [sys.executable, "-m", "trl_prl", *words]
    environment = {**os.environ, "PYTHONPATH": str(repo_root), "TRL_PRL_TOKEN": "secret"}

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)

    local = load_process_reward(prm_paths["skywork"])
    rows = [([f"What is {i} + 1?"], [[f"We add {i}.\n", f"It is {i + 1}."]]) for i in range(200)]
    expected = [local(*row)[0] for row in rows]
    server = start()
    try:
        remote = RemoteProcessReward(f"http://127.0.0.1:{port}", token="secret", max_retries=1000, max_wait=240)
        num_done = 0

        def ask(row: Any) -> Any:
            nonlocal num_done
            found = remote(*row)[0]
            num_done += 1
            return found

        with ThreadPoolExecutor(8) as pool:
            found = pool.map(ask, rows)
            while num_done < 40:
                time.sleep(0.01)
            server.send_signal(signal.SIGKILL)
            server.wait()
            assert num_done < 200
            server = start()
            for scores, values in zip(found, expected, strict=True):
                assert scores == pytest.approx(values, abs=1e-5)
        assert httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).json()["status"] == "ok"
    finally:
        server.kill()
        server.wait()
