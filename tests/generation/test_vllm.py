"""vLLM for real: its engine in this process against the transformers generator, and its server, killed on the way.

`make test-vllm` runs them. A pretrained chat model is a folder that `TRL_PRL_TEST_CHAT_MODEL` names.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import chi2_contingency, chisquare

from tests.benchmarks.arithmetic.task import arithmetic_policy_path, sample_problems
from tests.vllm_runs import VLLMServer, require_vllm, vllm_generator, vllm_server
from trl_prl import __main__ as cli
from trl_prl.demo.paths import path_policy_path
from trl_prl.generation.local import TransformersGenerator
from trl_prl.generation.openai_server import OpenAIGenerator
from trl_prl.generation.vllm_engine import VLLMServerGenerator
from trl_prl.jobs.shards import find_units
from trl_prl.types import Completion, Prompt, SamplingParams


require_vllm()
pytestmark = pytest.mark.vllm

Both = tuple[Any, TransformersGenerator]
PROBLEMS = sample_problems("test", 6, seed=0)


def prompts_of(tokenizer: Any, texts: list[str]) -> list[Prompt]:
    return [Prompt(tuple(tokenizer(text).input_ids), key=text) for text in texts]


@pytest.fixture(scope="module")
def arithmetic() -> Both:
    """The shipped arithmetic policy, by both engines."""
    path = arithmetic_policy_path()
    return vllm_generator(path), TransformersGenerator.from_pretrained(path, device="cpu")


@pytest.fixture(scope="module")
def prompts(arithmetic: Both) -> list[Prompt]:
    """Problems, and one of them with the first line of a solution."""
    texts = [problem.prompt for problem in PROBLEMS]
    return prompts_of(arithmetic[1].tokenizer, [*texts, f"{texts[0]}{PROBLEMS[0].running_results[0]}\n"])


def flat(samples: list[list[Completion]]) -> list[Completion]:
    return [sample for row in samples for sample in row]


def p_value_of_one_distribution(*counts: Counter[Any]) -> float:
    """P-value of the hypothesis that all counts come from one distribution. What is rare is one column."""
    total = sum(counts, Counter())
    common = [key for key in total if total[key] >= 10]
    assert len(common) > 2
    table = np.array([[*(c[key] for key in common), c.total() - sum(c[key] for key in common)] for c in counts])
    return float(chi2_contingency(table[:, table.sum(0) > 0]).pvalue)


# ---- the engine ----


def test_greedy_equals_transformers(arithmetic: Both, prompts: list[Prompt]) -> None:
    engine, local = arithmetic
    params = SamplingParams(n=2, max_tokens=30, temperature=0)
    samples = engine.generate(prompts, params)
    assert samples == local.generate(prompts, params)
    assert {sample.finish_reason for row in samples for sample in row} == {"eos"}


def test_greedy_equals_transformers_on_other_models(chat_model_path: str) -> None:
    """The path policy, whose tokens are words, and a pretrained chat model."""
    for path, texts in (
        (path_policy_path(), None),
        (chat_model_path, ["What is 2 + 2?", "Name three colours.\n\n1. ", "Écrivez: "]),
    ):
        local = TransformersGenerator.from_pretrained(path, device="cpu", dtype="float32")
        ids = [Prompt((5, 6, 7), "a"), Prompt((9,), "b")]
        asked = prompts_of(local.tokenizer, texts) if texts else ids
        engine = vllm_generator(path, min(1024, local.model.config.max_position_embeddings))
        params = SamplingParams(max_tokens=24, temperature=0, stop=("\n\n",))
        assert engine.generate(asked, params) == local.generate(asked, params)


@pytest.mark.parametrize("fields", [{}, {"temperature": 1.7, "top_k": 6}, {"temperature": 2.0, "top_p": 0.9}])
def test_first_tokens_follow_the_distribution(arithmetic: Both, prompts: list[Prompt], fields: dict[str, Any]) -> None:
    """Against the probabilities of the model in transformers, cut and scaled as asked for."""
    engine, local = arithmetic
    params = SamplingParams(n=1000, max_tokens=1, seed=11, **fields)
    for prompt, row in zip(prompts[:3], engine.generate(prompts[:3], params), strict=True):
        with torch.no_grad():
            logits = local.model(torch.tensor([prompt.token_ids])).logits[0, -1].double() / params.temperature
        if params.top_k:
            logits[logits < logits.topk(params.top_k).values[-1]] = -torch.inf
        probs, order = logits.softmax(-1).sort(descending=True)
        probs[probs.cumsum(0) - probs >= params.top_p] = 0.0
        expected = torch.zeros_like(logits).scatter(0, order, probs / probs.sum()).numpy() * params.n
        counts = np.bincount([sample.token_ids[0] for sample in row], minlength=len(expected))
        assert counts[expected == 0].sum() == 0
        frequent = expected >= 5
        # The rare tokens are one class.
        found = np.append(counts[frequent], counts[~frequent].sum())
        assert len(found) > 2
        wanted = np.append(expected[frequent], expected[~frequent].sum())
        assert chisquare(found[wanted > 0], wanted[wanted > 0]).pvalue > 1e-3


def test_sequences_have_the_same_distribution(arithmetic: Both, prompts: list[Prompt]) -> None:
    """Whole solutions by both engines: one table of counts, rare solutions as one column."""
    params = SamplingParams(n=500, max_tokens=30, seed=5)
    for prompt in prompts[:2]:
        theirs, ours = (Counter(s.text for s in e.generate([prompt], params)[0]) for e in arithmetic)
        assert p_value_of_one_distribution(theirs, ours) > 1e-3


def test_samples_belong_to_seed_key_and_number(arithmetic: Both, prompts: list[Prompt]) -> None:
    engine, _ = arithmetic
    params = SamplingParams(n=4, max_tokens=30, temperature=1.5, seed=3)
    samples = engine.generate(prompts, params)
    assert engine.generate(prompts[::-1], params)[::-1] == samples
    assert engine.generate(prompts[2:3], params) == samples[2:3]
    assert [row[:2] for row in samples] == engine.generate(prompts, SamplingParams(2, 30, 1.5, seed=3))
    assert len({sample.token_ids for row in samples for sample in row}) > 20
    renamed = [Prompt(prompt.token_ids, key=f"{prompt.key} again") for prompt in prompts]
    for others in (engine.generate(renamed, params), engine.generate(prompts, SamplingParams(4, 30, 1.5, seed=4))):
        assert sum(a != b for a, b in zip(others, samples, strict=True)) >= 5


def test_stop_texts_and_end_tokens(arithmetic: Both, prompts: list[Prompt]) -> None:
    """A stop text ends a sample of the same seed at the token that completes it, also where it spans tokens."""
    engine, local = arithmetic
    free = engine.generate(prompts, SamplingParams(n=8, max_tokens=30, seed=1))
    eos = local.tokenizer.eos_token_id
    seen: Counter[str] = Counter()
    for stop in (("\n",), ("\n#", "zz"), ("0\n", "1\n", "2\n")):
        cut = engine.generate(prompts, SamplingParams(n=8, max_tokens=30, seed=1, stop=stop))
        for whole, part in zip(flat(free), flat(cut), strict=True):
            assert whole.token_ids[: len(part.token_ids)] == part.token_ids
            seen[part.finish_reason] += 1
            if part.finish_reason == "stop":
                assert part.text.endswith(stop)
                assert not any(text in part.text[:-1] for text in stop)
            else:
                assert part == whole
                assert not any(text in part.text for text in stop)
    for sample in flat(free):
        assert (sample.token_ids[-1] == eos) == (sample.finish_reason == "eos")
        assert eos not in sample.token_ids[:-1]
    assert seen["stop"] > 100
    assert seen["eos"] > 5


def test_limits(arithmetic: Both, prompts: list[Prompt]) -> None:
    """Of a call, of a prompt, and of the model, as the transformers generator heeds them."""
    engine, local = arithmetic
    long = Prompt(prompts[0].token_ids * 13, key="long")
    assert 90 < len(long.token_ids) < 120
    asked = [prompts[0], Prompt(prompts[1].token_ids, "short", max_tokens=3), long]
    params = SamplingParams(max_tokens=64, temperature=0)
    samples = engine.generate(asked, params)
    assert samples == local.generate(asked, params)
    assert samples[1][0].finish_reason == "length"
    assert len(samples[1][0].token_ids) == 3


def test_prefixes_are_shared(prompts: list[Prompt]) -> None:
    """The blocks of a prefix are computed once for all of its samples, and once for all that begin with it."""
    # A new engine: vLLM's counters are those of the one that was made last.
    engine = vllm_generator(arithmetic_policy_path(), max_model_len=96)
    assert engine.max_length == 96

    def hits() -> int:
        return next(metric.value for metric in engine.llm.get_metrics() if metric.name == "vllm:prefix_cache_hits")

    stem = Prompt((prompts[3].token_ids * 9)[:70], key="stem")
    before = hits()
    engine.generate([stem], SamplingParams(n=8, max_tokens=2, temperature=0))
    # 64 of 70 tokens are whole blocks, which seven samples find.
    assert hits() - before == 7 * 64
    engine.generate([Prompt((*stem.token_ids, 5, 16), key="longer")], SamplingParams(max_tokens=2))
    assert hits() - before == 8 * 64


def test_samples_are_told_as_they_are_counted(arithmetic: Both, prompts: list[Prompt]) -> None:
    engine, _ = arithmetic
    told: list[int] = []
    engine.on_sample = told.append
    try:
        samples = engine.generate(prompts, SamplingParams(n=2, max_tokens=30))
    finally:
        engine.on_sample = None
    assert told == [len(sample.token_ids) for row in samples for sample in row]


# ---- the server ----


@pytest.fixture(scope="module")
def model_with_defaults(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The arithmetic policy, published with settings for sampling, as many models are."""
    folder = tmp_path_factory.mktemp("model") / "policy"
    shutil.copytree(arithmetic_policy_path(), folder)
    path = folder / "generation_config.json"
    defaults = {"do_sample": True, "top_k": 1, "repetition_penalty": 1.3, "min_p": 0.5}
    path.write_text(json.dumps({**json.loads(path.read_text()), **defaults}))
    return str(folder)


@pytest.fixture(scope="module")
def server(model_with_defaults: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServer]:
    options = ("--max-model-len", "128", "--max-num-batched-tokens", "16384", "--logprobs-mode", "processed_logprobs")
    with vllm_server(model_with_defaults, tmp_path_factory.mktemp("log"), *options) as server:
        yield server


@pytest.fixture
def remote(server: VLLMServer, model_with_defaults: str, arithmetic: Both) -> OpenAIGenerator:
    return OpenAIGenerator([server.url], model_with_defaults, arithmetic[1].tokenizer)


def test_ids_go_in_and_come_out(remote: OpenAIGenerator, arithmetic: Both, prompts: list[Prompt]) -> None:
    _, local = arithmetic
    params = SamplingParams(n=2, max_tokens=30, temperature=0)
    assert remote.generate(prompts, params) == local.generate(prompts, params)
    asked = [Prompt(prompts[0].token_ids * 13, key="long"), Prompt(prompts[1].token_ids, "short", max_tokens=3)]
    params = SamplingParams(max_tokens=64, temperature=0, stop=("\n",))
    assert remote.generate(asked, params) == local.generate(asked, params)


def test_sampling_defaults_of_the_model_are_not_heeded(
    remote: OpenAIGenerator, arithmetic: Both, prompts: list[Prompt]
) -> None:
    """vLLM's server fills what a request leaves out from the model's generation config."""
    params = SamplingParams(n=400, max_tokens=1, seed=2)
    first = [Counter(s.token_ids[0] for s in e.generate(prompts[:1], params)[0]) for e in (remote, arithmetic[1])]
    assert p_value_of_one_distribution(*first) > 1e-3


def test_log_probabilities_are_those_of_the_model(
    server: VLLMServer, model_with_defaults: str, arithmetic: Both, prompts: list[Prompt]
) -> None:
    import openai

    client = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0)
    extra = {"return_token_ids": True, "top_k": -1, "repetition_penalty": 1.0, "min_p": 0.0}
    fields: dict[str, Any] = {"model": model_with_defaults, "logprobs": 1, "max_tokens": 30, "seed": 1}
    for prompt in prompts[:2]:
        answer = client.completions.create(prompt=list(prompt.token_ids), extra_body=extra, **fields)
        ids = answer.choices[0].token_ids  # type: ignore[attr-defined]
        whole = torch.tensor([[*prompt.token_ids, *ids]])
        with torch.no_grad():
            logps = arithmetic[1].model(whole).logits.log_softmax(-1)[0, len(prompt.token_ids) - 1 : -1]
        expected = logps[torch.arange(len(ids)), torch.tensor(ids)]
        assert answer.choices[0].logprobs.token_logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_trl_client(server: VLLMServer, arithmetic: Both, prompts: list[Prompt]) -> None:
    """TRL's client samples from it. What it has besides, new weights by NCCL, needs a GPU."""
    _, local = arithmetic
    generator = VLLMServerGenerator([server.root], local.tokenizer)
    params = SamplingParams(n=2, max_tokens=30, temperature=0)
    assert generator.generate(prompts, params) == local.generate(prompts, params)
    params = SamplingParams(max_tokens=30, temperature=0, stop=("\n#", "4\n"))
    assert generator.generate(prompts, params) == local.generate(prompts, params)
    params = SamplingParams(n=8, max_tokens=30, temperature=1.5, seed=1)
    samples = generator.generate(prompts, params)
    assert generator.generate(prompts, params) == samples
    assert len({sample.token_ids for row in samples for sample in row}) > 20


def job(command: str, folder: Path, model: str, url: str | None, **options: Any) -> Path:
    """Run a command over the problems, with the server of an address or in this process."""
    dataset = folder.parent / "problems.jsonl"
    problems = sample_problems("test", 12, seed=1)
    dataset.write_text("".join(json.dumps({"prompt": p.prompt, "answer": p.answer}) + "\n" for p in problems))
    engine = {} if url is None else {"generator": "openai", "endpoints": url}
    fields = {"dataset": dataset, "output_dir": folder, "max_completion_length": 30, "problems_per_unit": 3, **options}
    fields |= {"reward": "tests.benchmarks.arithmetic.task:arithmetic_reward", "check_timeout": 0, **engine}
    fields |= {"models" if command == "evaluate" else "model": model}
    words = [word for name, value in fields.items() for word in (f"--{name}", str(value))]
    assert cli.main([command, *words]) == 0
    return folder


def test_collect_outlives_the_server(server: VLLMServer, model_with_defaults: str, tmp_path: Path) -> None:
    """Killed after the first unit and started again: no rollout is lost, made up or counted twice."""
    options = {"n_cov": 4, "n_mc": 8, "splitter": "newline"}
    whole = job("collect", tmp_path / "whole", model_with_defaults, server.url, **options)
    killed: list[int] = []

    def kill_and_restart() -> None:
        while not find_units(tmp_path / "interrupted"):
            time.sleep(0.01)
        server.kill()
        killed.append(len(find_units(tmp_path / "interrupted")))
        server.start()

    thread = threading.Thread(target=kill_and_restart)
    thread.start()
    interrupted = job("collect", tmp_path / "interrupted", model_with_defaults, server.url, **options)
    thread.join()
    assert killed[0] in (1, 2, 3)
    rows, expected = (pq.read_table(f / "data" / "train.parquet").to_pylist() for f in (interrupted, whole))
    assert [row["row"] for row in rows] == [row["row"] for row in expected]
    # Requests of another moment are batched otherwise, and rounding may turn a token.
    assert sum(a == b for a, b in zip(rows, expected, strict=True)) >= 0.9 * len(rows)
    assert {n for row in rows for n in row["num_rollouts"]} == {n for row in expected for n in row["num_rollouts"]}


def test_search_and_evaluate_equal_those_of_transformers(
    server: VLLMServer, model_with_defaults: str, tmp_path: Path
) -> None:
    """The likeliest token each time, so that every engine must find the same."""
    process_reward = "tests.benchmarks.arithmetic.prover:ArithmeticProcessReward"
    options: dict[str, Any] = {"top_k": 1, "plot": "none", "n": 2}
    guided = {**options, "method": "beam", "process_reward": process_reward}
    trees, pools = [], []
    for name, url in (("server", server.url), ("here", None)):
        model = arithmetic_policy_path() if url is None else model_with_defaults
        found = job("search", tmp_path / f"search {name}", model, url, **guided)
        trees.append([json.loads(line) for line in (found / "problems.jsonl").read_text().splitlines()])
        assert all(tree["cost"].pop("seconds") > 0 for tree in trees[-1])
        found = job("evaluate", tmp_path / f"evaluate {name}", model, url, **options)
        pools.append(json.loads((found / "evaluation.json").read_text())["models"][0]["metrics"])
    assert len(trees[0]) == 12
    assert trees[0] == trees[1]
    assert pools[0] == pools[1]
