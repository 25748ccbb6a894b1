"""A chat model as judge, against a small OpenAI-compatible server in a thread of the test."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from tests.benchmarks.arithmetic.task import arithmetic_policy_path, sample_problems
from tests.json_server import JsonServer, running, with_junk
from tests.tiny_models import make_grpo_args, prompt_dataset, token_reward
from trl_prl import JudgeProcessReward, load_process_reward
from trl_prl.__main__ import main
from trl_prl.generation.server_calls import UnusableAnswerError
from trl_prl.prms.judge import read_verdicts, yes_share
from trl_prl.rewards.checks import check_process_reward
from trl_prl.training.pav_config import PAVConfig
from trl_prl.training.pav_trainer import PAVTrainer


class JudgeServer(JsonServer):
    """Holds every step that contains `wrong` for wrong: P(Yes) is 0.1 there and 0.8 elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.takes_schemas = True
        self.words = "{}"  # what stands around the verdicts

    def refusal(self, body: dict[str, Any]) -> str | None:
        return None if self.takes_schemas or "response_format" not in body else "response_format is not supported"

    def reply(self, body: dict[str, Any]) -> dict[str, Any]:
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
            text = self.words.replace("{}", json.dumps({"verdicts": verdicts}))
            choice |= {"message": {"role": "assistant", "content": text}}
        usage = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
        answer = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"]}
        return {**answer, "choices": [choice], "usage": usage}


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with running(JudgeServer()) as server:
        yield server


PROMPTS: list[Any] = [
    "What is 1 + 2?",
    [{"role": "system", "content": "Poet."}, {"role": "user", "content": "And 2 + 2?"}],
]
STEPS = [["We add.\n", "\n", "That is wrong.\n", "So 3."], ["4"]]


def test_probability_of_yes(server: JudgeServer) -> None:
    judge = load_process_reward("my-judge", family="judge", base_url=server.url)
    assert isinstance(judge, JudgeProcessReward)
    check_process_reward(judge)
    # Yes against No alone: 0.8 / 0.9 and 0.1 / 0.9; a blank step is not shown.
    right, wrong = 8 / 9, 1 / 9
    assert judge(PROMPTS, STEPS) == [pytest.approx([right, right, wrong, right]), pytest.approx([right])]
    assert judge.initial_values(PROMPTS) == [1.0, 1.0]
    texts = sorted(request["messages"][0]["content"] for request in server.bodies)
    assert len(texts) == 4
    last = next(text for text in texts if "So 3." in text)
    solution = "Step 1: We add.\nStep 2: That is wrong.\nStep 3: So 3."
    assert f"What is 1 + 2?\n\nSolution:\n{solution}\n\nIs step 3 right" in last
    assert not any("Poet" in text for text in texts)


def test_answers_are_kept_by_content_and_tokens_counted(server: JudgeServer, tmp_path: Path) -> None:
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
    assert len(server.bodies) == 5


def test_answers_of_another_server_or_way_of_asking_are_not_taken(server: JudgeServer, tmp_path: Path) -> None:
    def ask(url: str, **options: Any) -> int:
        judge = JudgeProcessReward("m", url, method="verdicts", cache_path=tmp_path / "answers.db", **options)
        assert judge(["a"], [["We add."]]) == [[1.0]]
        return judge.cost.num_requests

    assert [ask(server.url), ask(server.url)] == [1, 0]
    assert [ask(server.url, structured=False), ask(server.url, structured=False)] == [1, 0]
    assert ask(server.url.replace("127.0.0.1", "localhost")) == 1


def test_verdicts_of_samples_are_averaged(server: JudgeServer) -> None:
    judge = JudgeProcessReward("m", server.url, method="verdicts", num_samples=8)
    assert judge(PROMPTS, STEPS) == [[1.0, 1.0, 0.25, 1.0], [1.0]]
    assert len(server.bodies) == 16
    assert {request["temperature"] for request in server.bodies} == {0.7}
    assert sorted(request["seed"] for request in server.bodies) == sorted([*range(8)] * 2)
    schema = server.bodies[0]["response_format"]["json_schema"]["schema"]["properties"]["verdicts"]
    assert schema["minItems"] == schema["maxItems"]
    one = JudgeProcessReward("m", server.url, method="verdicts")
    assert one(PROMPTS, STEPS)[0] == [1.0, 1.0, 0.0, 1.0]
    assert server.bodies[-1]["temperature"] == 0.0
    assert one([], []) == []
    assert one(["a"], [[]]) == [[]]


def test_a_server_without_schemas_is_asked_in_words(server: JudgeServer, caplog: pytest.LogCaptureFixture) -> None:
    server.takes_schemas, server.words = False, 'First {"a": 1}, so I think:\n```json\n{}\n```'
    judge = JudgeProcessReward("m", server.url, method="verdicts", concurrency=1)
    assert judge(PROMPTS, STEPS) == [[1.0, 1.0, 0.0, 1.0], [1.0]]
    assert caplog.text.count("takes no JSON schema") == 1
    assert ["response_format" in request for request in server.bodies] == [True, False, False]


def test_answers_without_a_verdict_leave_steps_unscored(server: JudgeServer) -> None:
    server.words = "I cannot say."
    judge = JudgeProcessReward("m", server.url, method="verdicts", num_samples=2)
    found = judge(PROMPTS, STEPS)
    assert all(math.isnan(value) for row in found for value in row)
    assert judge.cost.num_unread == 4
    # It may say something else the next time.
    server.words = "{}"
    assert judge(PROMPTS, STEPS)[1] == [1.0]
    assert (judge.cost.num_unread, judge.cost.num_cached) == (4, 0)


def test_failures_are_tried_again(server: JudgeServer) -> None:
    server.plan = [503, 503]
    assert JudgeProcessReward("m", server.url)(["a"], [["We add."]]) == [[pytest.approx(8 / 9)]]
    assert len(server.bodies) == 3


@pytest.mark.parametrize(
    "action",
    [
        "trickle",
        "hang up",
        "no json",
        {"choices": []},
        {"choices": [None]},
        {"usage": {"prompt_tokens": "x"}},
        {"model": "other"},
        {"model": 5},
    ],
)
def test_what_is_no_answer_is_asked_for_again(server: JudgeServer, action: Any) -> None:
    server.plan = [action, action]
    judge = JudgeProcessReward("m", server.url, timeout=0.5)
    assert judge(["a"], [["We add."]]) == [[pytest.approx(8 / 9)]]
    assert len(server.bodies) == 3
    server.plan = [action] * 9
    with pytest.raises(ConnectionError, match="gave no answer to a judgement of 1 steps"):
        JudgeProcessReward("m", server.url, timeout=0.5, max_retries=1)(["a"], [["We add."]])


@pytest.mark.parametrize("method", ["probability", "verdicts"])
def test_an_answer_with_anything_in_it_is_used_or_named(server: JudgeServer, method: Any) -> None:
    read = {"probability": yes_share, "verdicts": read_verdicts}[method]
    asked = {"model": "m", "messages": [{"content": "Step 1: good"}], "logprobs": method == "probability"}
    num_named = 0
    for choice in with_junk(server.reply(asked)["choices"]):
        try:
            # What the client makes of an answer, without any check.
            value = read(ChatCompletion.construct(choices=choice).choices[0], 1)
            assert value is None or (0 <= value <= 1 if isinstance(value, float) else value == [1.0])
        except (UnusableAnswerError, ValueError):
            num_named += 1
    assert num_named > 5


def test_a_verdict_is_found_before_many_braces(server: JudgeServer) -> None:
    server.words = "{}" + '{"a":' * 20_000
    assert JudgeProcessReward("m", server.url, method="verdicts")(["q"], [["good"]]) == [[1.0]]


def test_mistakes_are_explained(server: JudgeServer) -> None:
    with pytest.raises(ValueError, match="'probability' or 'verdicts'"):
        JudgeProcessReward("m", server.url, method="vote")  # type: ignore[arg-type]
    judge = JudgeProcessReward("m", server.url, template="{question} {steps} {number}")
    with pytest.raises(ValueError, match="no text for every message"):
        judge([None], [["a"]])


def test_a_judge_trains_and_scores_files(server: JudgeServer, tiny_model_path: str, tmp_path: Path) -> None:
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


def test_a_judge_searches_and_is_evaluated(server: JudgeServer, tmp_path: Path) -> None:
    name = f"m,family=judge,base_url={server.url}"
    problems = tmp_path / "problems.jsonl"
    rows = [{"prompt": problem.prompt, "answer": problem.answer} for problem in sample_problems("tuning", 2, seed=1)]
    problems.write_text("\n".join(map(json.dumps, rows)))
    words = ["--model", arithmetic_policy_path(), "--dataset", str(problems), "--output_dir", str(tmp_path / "out")]
    words += ["--reward", "tests.benchmarks.arithmetic.task:arithmetic_reward", "--process_reward", name]
    words += ["--max_completion_length", "24", "--n", "2"]
    assert main(["search", *words, "--check_timeout", "0", "--plot", "none", "--method", "best_of_n"]) == 0
    labelled = tmp_path / "labelled.jsonl"
    steps = [["We add.\n", "It is 3."], ["We add.\n", "That is wrong."]]
    rows = [{"prompt": "q", "completions": row, "labels": [1, int("wrong" not in row[1])]} for row in steps]
    labelled.write_text("\n".join(map(json.dumps, rows)))
    words = [
        "--verifier",
        name,
        "--dataset",
        str(labelled),
        "--output_dir",
        str(tmp_path / "judged"),
        "--plot",
        "none",
    ]
    words += ["--error_threshold", "0.5"]
    assert main(["evaluate-verifier", *words]) == 0
    # Right steps have 8 / 9, the wrong one 1 / 9.
    found = json.loads((tmp_path / "judged" / "verifier_evaluation.json").read_text())
    assert found["metrics"]["auroc"]["value"] == 1.0
