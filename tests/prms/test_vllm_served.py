"""Process rewards on vLLM's server: verifiers and public models by its pooling runner, and a chat model as judge.

`make test-vllm` runs them. The judge is a pretrained chat model, a folder that `TRL_PRL_TEST_CHAT_MODEL` names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.benchmarks.arithmetic.task import arithmetic_verifier_path, sample_problems
from tests.prm_models import FOLDER_NAMES, save_qwen
from tests.vllm_runs import VLLMServer, require_vllm, vllm_server
from trl_prl import JudgeProcessReward, load_process_reward
from trl_prl.__main__ import main


require_vllm()
pytestmark = pytest.mark.vllm

PROBLEMS = sample_problems("test", 5, seed=3)


@pytest.fixture(scope="module")
def verifier_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServer]:
    folder = tmp_path_factory.mktemp("verifier")
    with vllm_server(arithmetic_verifier_path(), folder, "--runner", "pooling") as server:
        yield server


def solutions() -> tuple[list[str], list[list[str]]]:
    """Right, gone wrong, cut off, without steps, and longer than the verifier reads."""
    rows = [[*(f"{result}\n" for result in p.running_results), f"#{p.answer}"] for p in PROBLEMS]
    rows[1][1] = "77\n"
    rows[2] = rows[2][:1]
    rows[3] = []
    rows[4] = rows[4] * 9
    return [problem.prompt for problem in PROBLEMS], rows


def test_own_verifier(verifier_server: VLLMServer, tmp_path: Path) -> None:
    """Calibration, unfinished solutions and the value of the prompt are this package's, so every number is equal."""
    prompts, steps = solutions()
    here = load_process_reward(arithmetic_verifier_path())
    there = load_process_reward(f"{arithmetic_verifier_path()},vllm={verifier_server.root}")
    finished = [True, True, False, False, True]
    found, expected = (r.score_solutions(prompts, steps, finished=finished) for r in (there, here))  # type: ignore[attr-defined]
    assert found[0] == pytest.approx(expected[0], abs=1e-5)
    assert any(math.isnan(value) for value in expected[1][4])
    for row, wanted in zip(found[1], expected[1], strict=True):
        assert row == pytest.approx(wanted, abs=1e-5, nan_ok=True)
    source, output = tmp_path / "in.jsonl", tmp_path / "scored.jsonl"
    source.write_text(json.dumps({"prompt": prompts[0], "completion": "".join(steps[0])}) + "\n")
    verifier = f"{arithmetic_verifier_path()},vllm={verifier_server.root}"
    assert main(["score", "--verifier", verifier, "--file", str(source), "--output", str(output)]) == 0
    assert json.loads(output.read_text())["step_values"] == pytest.approx(expected[1][0], abs=1e-5)


def test_a_public_model(tmp_path: Path) -> None:
    """Qwen's: vLLM would answer with the steps that it finds itself, so all tokens are asked for."""
    path = save_qwen(tmp_path / FOLDER_NAMES["qwen"], num_attention_heads=2, num_key_value_heads=1)
    pooler = json.dumps({"tok_pooling_type": "ALL"})
    prompts, steps = ["Add 12 and 30.", "x"], [["We add.\n\n", "\n", "So <extra_0> 42."], ["Yes."]]
    with vllm_server(str(path), tmp_path, "--runner", "pooling", "--pooler-config", pooler) as server:
        found = load_process_reward(f"{path},vllm={server.root}")(prompts, steps)
    expected = load_process_reward(str(path))(prompts, steps)
    assert len(set(expected[0])) == 2
    for row, wanted in zip(found, expected, strict=True):
        assert row == pytest.approx(wanted, abs=1e-5)


# ---- a chat model as judge ----


@pytest.fixture(scope="module")
def judge_server(chat_model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServer]:
    options = ("--max-model-len", "1024", "--max-num-batched-tokens", "16384")
    with vllm_server(chat_model_path, tmp_path_factory.mktemp("judge"), *options) as server:
        yield server


QUESTIONS = ["What is 2 + 2?", [{"role": "user", "content": "What is 3 + 4?"}]]
STEPS = [["We add 2 and 2.\n", "\n", "That is 5."], ["3 + 4 = 7."]]


def test_judge_by_the_probability_of_yes(judge_server: VLLMServer, chat_model_path: str) -> None:
    """The same as from the model's logits in transformers, as far as the server shows the words."""
    judge = JudgeProcessReward(chat_model_path, judge_server.url)
    found = judge(QUESTIONS, STEPS)
    assert judge.cost.num_requests == 3
    assert judge.cost.completion_tokens == 3
    tokenizer: Any = AutoTokenizer.from_pretrained(chat_model_path)
    model = AutoModelForCausalLM.from_pretrained(chat_model_path, dtype="float32")
    text = judge.template.format(question="What is 3 + 4?", steps="Step 1: 3 + 4 = 7.", number=1)
    message = [{"role": "user", "content": text}]
    ids = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        probs = model(**ids).logits[0, -1].softmax(-1)
    shares = {"yes": 0.0, "no": 0.0}
    for token in probs.topk(20).indices.tolist():
        word = tokenizer.decode([token]).strip().strip(".*\"'").lower()
        if word in shares:
            shares[word] += float(probs[token])
    assert sum(shares.values()) > 0
    assert found[1] == [pytest.approx(shares["yes"] / sum(shares.values()), abs=1e-4)]
    assert found[0][0] == found[0][1]


def test_judge_by_verdicts_in_a_schema(judge_server: VLLMServer, chat_model_path: str) -> None:
    """A model this small writes no JSON by itself: that all verdicts are read is the schema's doing."""
    judge = JudgeProcessReward(chat_model_path, judge_server.url, method="verdicts", num_samples=4, max_tokens=128)
    found = judge(QUESTIONS, STEPS)
    assert judge.structured
    assert judge.cost.num_unread == 0
    assert judge.cost.num_requests == 8
    assert [len(row) for row in found] == [3, 1]
    assert all(value in (0.0, 0.25, 0.5, 0.75, 1.0) for row in found for value in row)
    assert judge(QUESTIONS, STEPS) == found
    assert judge.cost.num_cached == 8
