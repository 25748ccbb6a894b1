"""A chat model as judge, against a small OpenAI-compatible server in a thread of the test."""

from __future__ import annotations

import contextlib
import json
import math
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_models import make_grpo_args, prompt_dataset, token_reward
from trl_prl import JudgeProcessReward, load_process_reward
from trl_prl.commands.main import main
from trl_prl.rewards.checks import check_process_reward
from trl_prl.training.pav_config import PAVConfig
from trl_prl.training.pav_trainer import PAVTrainer


class Server(ThreadingHTTPServer):
    """Holds every step that contains `wrong` for wrong: P(Yes) is 0.1 there and 0.8 elsewhere."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict[str, Any]] = []
        self.takes_schemas = True
        self.num_failures = 0
        self.words = "{}"  # what stands around the verdicts

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(body)
        if self.server.num_failures:
            self.server.num_failures -= 1
            return self.reply(503, {"error": {"message": "overloaded"}})
        if "response_format" in body and not self.server.takes_schemas:
            return self.reply(400, {"error": {"message": "response_format is not supported"}})
        steps = re.findall(r"^Step \d+: (.*)$", body["messages"][0]["content"], re.MULTILINE)
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        if body.get("logprobs"):
            yes = 0.1 if "wrong" in steps[-1] else 0.8
            # The rest of the probability lies on other words.
            shares = {" Yes": yes / 2, "yes": yes / 2, "No": 0.9 - yes, "Well": 0.1}
            known = {token: math.log(share) for token, share in shares.items() if share > 0.001}
            tops = [{"token": token, "logprob": logprob, "bytes": None} for token, logprob in known.items()]
            choice["message"] = {"role": "assistant", "content": "Yes"}
            choice["logprobs"] = {"content": [{**tops[0], "top_logprobs": tops}]}
        else:
            # One sample in four sees no errors.
            verdicts = ["wrong" not in step or body.get("seed", 0) % 4 == 3 for step in steps]
            text = self.server.words.replace("{}", json.dumps({"verdicts": verdicts}))
            choice |= {"message": {"role": "assistant", "content": text}}
        usage = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
        answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
        self.reply(200, {**answer, "choices": [choice], "usage": usage})

    def reply(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with contextlib.closing(Server()) as server:
        server.close = server.server_close  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


PROMPTS: list[Any] = [
    "What is 1 + 2?",
    [{"role": "system", "content": "Poet."}, {"role": "user", "content": "And 2 + 2?"}],
]
STEPS = [["We add.\n", "\n", "That is wrong.\n", "So 3."], ["4"]]


def test_probability_of_yes(server: Server) -> None:
    judge = load_process_reward("my-judge", family="judge", base_url=server.url)
    assert isinstance(judge, JudgeProcessReward)
    check_process_reward(judge)
    # Yes against No alone: 0.8 / 0.9 and 0.1 / 0.9; a blank step is not shown.
    right, wrong = 8 / 9, 1 / 9
    assert judge(PROMPTS, STEPS) == [pytest.approx([right, right, wrong, right]), pytest.approx([right])]
    assert judge.initial_values(PROMPTS) == [1.0, 1.0]
    texts = sorted(request["messages"][0]["content"] for request in server.requests)
    assert len(texts) == 4
    last = next(text for text in texts if "So 3." in text)
    solution = "Step 1: We add.\nStep 2: That is wrong.\nStep 3: So 3."
    assert f"What is 1 + 2?\n\nSolution:\n{solution}\n\nIs step 3 right" in last
    assert not any("Poet" in text for text in texts)


def test_answers_are_kept_by_content_and_tokens_counted(server: Server, tmp_path: Path) -> None:
    judge = JudgeProcessReward("m", server.url, cache_path=tmp_path / "answers.db")
    spent: dict[str, float] = {}
    first = judge(PROMPTS, STEPS, log_metric=spent.__setitem__)
    assert spent == {"process/judge/tokens": 4 * 107}
    again = JudgeProcessReward("m", server.url, cache_path=tmp_path / "answers.db")
    assert again(PROMPTS, STEPS, log_metric=spent.__setitem__) == first
    assert spent == {"process/judge/tokens": 0}
    assert (again.cost.num_requests, again.cost.num_cached, again.cost.prompt_tokens) == (0, 4, 0)
    assert (judge.cost.num_requests, judge.cost.prompt_tokens, judge.cost.completion_tokens) == (4, 400, 28)
    JudgeProcessReward("other", server.url, cache_path=tmp_path / "answers.db")(["a"], [["We add."]])
    assert len(server.requests) == 5


def test_verdicts_of_samples_are_averaged(server: Server) -> None:
    judge = JudgeProcessReward("m", server.url, method="verdicts", num_samples=8)
    assert judge(PROMPTS, STEPS) == [[1.0, 1.0, 0.25, 1.0], [1.0]]
    assert len(server.requests) == 16
    assert {request["temperature"] for request in server.requests} == {0.7}
    assert sorted(request["seed"] for request in server.requests) == sorted([*range(8)] * 2)
    schema = server.requests[0]["response_format"]["json_schema"]["schema"]["properties"]["verdicts"]
    assert schema["minItems"] == schema["maxItems"]
    one = JudgeProcessReward("m", server.url, method="verdicts")
    assert one(PROMPTS, STEPS)[0] == [1.0, 1.0, 0.0, 1.0]
    assert server.requests[-1]["temperature"] == 0.0
    assert one([], []) == []
    assert one(["a"], [[]]) == [[]]


def test_a_server_without_schemas_is_asked_in_words(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.takes_schemas, server.words = False, 'First {"a": 1}, so I think:\n```json\n{}\n```'
    judge = JudgeProcessReward("m", server.url, method="verdicts", concurrency=1)
    assert judge(PROMPTS, STEPS) == [[1.0, 1.0, 0.0, 1.0], [1.0]]
    assert caplog.text.count("takes no JSON schema") == 1
    assert ["response_format" in request for request in server.requests] == [True, False, False]


def test_answers_without_a_verdict_leave_steps_unscored(server: Server) -> None:
    server.words = "I cannot say."
    judge = JudgeProcessReward("m", server.url, method="verdicts", num_samples=2)
    found = judge(PROMPTS, STEPS)
    assert all(math.isnan(value) for row in found for value in row)
    assert judge.cost.num_unread == 4


def test_failures_are_tried_again(server: Server) -> None:
    server.num_failures = 2
    assert JudgeProcessReward("m", server.url)(["a"], [["We add."]]) == [[pytest.approx(8 / 9)]]
    assert len(server.requests) == 3


def test_mistakes_are_explained(server: Server) -> None:
    with pytest.raises(ValueError, match="'probability' or 'verdicts'"):
        JudgeProcessReward("m", server.url, method="vote")  # type: ignore[arg-type]
    judge = JudgeProcessReward("m", server.url, template="{question} {steps} {number}")
    with pytest.raises(ValueError, match="no text for every message"):
        judge([None], [["a"]])


def test_a_judge_trains_and_scores_files(server: Server, tiny_model_path: str, tmp_path: Path) -> None:
    name = f"m,family=judge,base_url={server.url}"
    trainer = PAVTrainer(
        model=tiny_model_path,
        reward_funcs=token_reward,
        args=make_grpo_args(PAVConfig, tmp_path / "out"),
        train_dataset=prompt_dataset(),
        process_reward=name,
    )
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["process/judge/tokens"] > 0
    assert math.isfinite(log["process/reward/mean"])
    source, output = tmp_path / "in.jsonl", tmp_path / "scored.jsonl"
    source.write_text('{"prompt": "a", "completion": "We add.\\nThat is wrong."}\n')
    assert main(["score", "--verifier", name, "--file", str(source), "--output", str(output)]) == 0
    assert json.loads(output.read_text())["step_values"] == pytest.approx([8 / 9, 1 / 9])
