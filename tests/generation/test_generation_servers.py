"""Servers: a real one with a tiny model, servers that fail, and engines that are not installed.

The real server is mlx-lm's, which runs on any CPU. It is looked for in this environment and behind
`TRL_PRL_MLX_PYTHON`, the Python of another one: `python -m venv DIR && DIR/bin/pip install "mlx-lm[cpu]"`.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock
from urllib.request import urlopen

import pytest

from tests.json_server import JsonServer, running, with_junk
from tests.tiny_models import build_model, build_tokenizer
from trl_prl.generation.local import TransformersGenerator
from trl_prl.generation.openai_server import OpenAIGenerator
from trl_prl.generation.rollouts import Problem
from trl_prl.generation.server_answers import AnswerReader
from trl_prl.generation.server_calls import UnusableAnswerError, ask_openai
from trl_prl.generation.vllm_engine import VLLMGenerator, VLLMServerGenerator
from trl_prl.jobs.config import JobConfig
from trl_prl.jobs.options import make_generator, process_device
from trl_prl.search.beams import beam_search
from trl_prl.search.scoring import EffectiveReward
from trl_prl.steps.splitters import FixedLengthSplitter
from trl_prl.steps.token_pieces import TokenPieces
from trl_prl.types import Generator, Prompt, SamplingParams


HAS_VLLM = importlib.util.find_spec("vllm") is not None
openai: Any = pytest.importorskip("openai", reason="needs the package openai: pip install trl-prl[openai]")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


# ---- a real server ----


@pytest.fixture(scope="module")
def served(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Address of mlx-lm's server with the tiny model, and the model's folder."""
    given = os.environ.get("TRL_PRL_MLX_PYTHON")
    if given is None and importlib.util.find_spec("mlx_lm") is None:
        pytest.skip("no OpenAI-compatible server for the CPU: install mlx-lm[cpu], or set TRL_PRL_MLX_PYTHON")
    folder = tmp_path_factory.mktemp("served")
    build_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    port = free_port()
    command = [given or sys.executable, "-m", "mlx_lm", "server", "--model", str(folder)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], stdout=log, stderr=log)
        try:
            for _ in range(240):
                if process.poll() is not None:
                    pytest.fail("the server ended: " + (folder / "log").read_text()[-2000:])
                try:
                    urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5).read()
                    break
                except OSError:
                    time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/v1", folder
        finally:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_real_server(served: tuple[str, Path], tokenizer: Any) -> None:
    """Greedy text is that of the same model here; n samples although the server ignores n; order kept."""
    url, folder = served
    # The same address twice stands for two servers.
    generator = OpenAIGenerator([url, url], str(folder), tokenizer, send_text=True, concurrency=4, timeout=120)
    local = TransformersGenerator(build_model(tokenizer), tokenizer)
    texts = ["Let us add", "So the answer is", "First we take 12 + 7"]
    prompts = [Prompt(tuple(tokenizer(text).input_ids), key=text) for text in texts]
    greedy = SamplingParams(n=2, max_tokens=6, temperature=0)
    expected = local.generate(prompts, greedy)
    for row, expected_row in zip(generator.generate(prompts, greedy), expected, strict=True):
        assert len(row) == 2
        # Its arithmetic rounds differently, so only the first token must be the same.
        assert row[0].text[:1] == expected_row[0].text[:1]
    sampled = generator.generate(prompts, SamplingParams(n=4, max_tokens=12, seed=1))
    assert [len(row) for row in sampled] == [4, 4, 4]
    completions = [completion for row in sampled for completion in row]
    assert len({completion.text for completion in completions}) > 4
    assert {completion.finish_reason for completion in completions} <= {"eos", "length"}
    for completion in completions:
        assert (completion.token_ids[-1:] == (tokenizer.eos_token_id,)) == completion.finished
    limited = generator.generate([Prompt(prompts[0].token_ids, "x", max_tokens=2)], SamplingParams(max_tokens=12))
    assert len(limited[0][0].token_ids) <= 4


@pytest.mark.slow
def test_search_over_a_real_server(served: tuple[str, Path], tokenizer: Any) -> None:
    """A beam over a server that takes text: nothing in the search knows the engine."""
    url, folder = served
    generator = OpenAIGenerator([url], str(folder), tokenizer, send_text=True, concurrency=4, timeout=120)
    problem = Problem(0, "Let us add", tuple(tokenizer("Let us add").input_ids))
    (result,) = beam_search(
        [problem],
        generator,
        EffectiveReward(
            lambda prompts, steps, **columns: [[len(step) / 99 for step in row] for row in steps], alpha=0.0
        ),
        FixedLengthSplitter(4),
        TokenPieces(tokenizer),
        SamplingParams(max_tokens=16, seed=1),
        beam_size=2,
        expansions=2,
    )
    assert result.cost.num_samples >= 8
    assert 1 <= len(result.candidates) <= 2
    assert all(len(candidate.steps) > 1 or candidate.finished for candidate in result.candidates)


# ---- what a server may do wrong ----


class CompletionsServer(JsonServer):
    """A completions endpoint for the tiny tokenizer; `choice` is laid over each choice."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.heeds_n = True
        self.choice: dict[str, Any] = {}

    def reply(self, body: dict[str, Any]) -> dict[str, Any]:
        choices = [self.sample(body, i) for i in range(body["n"] if self.heeds_n else 1)]
        return {"id": "1", "object": "text_completion", "created": 0, "model": "tiny", "choices": choices}

    def sample(self, body: dict[str, Any], index: int) -> dict[str, Any]:
        choice = {"index": index, "text": f" {body['seed'] % 10}", "finish_reason": "stop", "logprobs": None}
        if body.get("return_token_ids"):
            choice |= {"text": self.tokenizer.decode(5 + index), "token_ids": [5 + index, 2], "stop_reason": None}
        return choice | self.choice


@pytest.fixture
def misbehaving(tokenizer: Any) -> Iterator[Any]:
    with running(CompletionsServer(tokenizer)) as server:
        yield server


PROMPTS = [Prompt((5, 6, 7), key="a"), Prompt((8, 9), key="b")]


def test_prompts_are_sent_as_ids_one_per_request(misbehaving: Any, tokenizer: Any) -> None:
    generator = OpenAIGenerator([misbehaving.url], "tiny", tokenizer)
    assert isinstance(generator, Generator)
    samples = generator.generate(PROMPTS, SamplingParams(n=3, max_tokens=7, top_k=5, stop=("\n\n",)))
    assert [[c.token_ids for c in row] for row in samples] == [[(5, 2), (6, 2), (7, 2)]] * 2
    bodies = sorted(misbehaving.bodies, key=lambda body: body["prompt"])
    assert [body["prompt"] for body in bodies] == [[5, 6, 7], [8, 9]]
    for body in bodies:
        assert (body["n"], body["max_tokens"], body["top_k"], body["stop"]) == (3, 7, 5, ["\n\n"])
        assert (body["min_p"], body["repetition_penalty"]) == (0.0, 1.0)
    assert bodies[0]["seed"] != bodies[1]["seed"]
    generator = OpenAIGenerator([misbehaving.url], "tiny", tokenizer, extra_body={"min_p": 0.1})
    generator.generate(PROMPTS, SamplingParams())
    # What is not asked for must be said, or the server takes it from the model's generation config.
    assert (misbehaving.bodies[-1]["top_k"], misbehaving.bodies[-1]["min_p"]) == (-1, 0.1)


def test_a_server_that_ignores_n_is_asked_once_per_sample(misbehaving: Any, tokenizer: Any) -> None:
    misbehaving.heeds_n = False
    generator = OpenAIGenerator([misbehaving.url], "tiny", tokenizer, send_text=True)
    samples = generator.generate(PROMPTS, SamplingParams(n=4))
    assert [len(row) for row in samples] == [4, 4]
    assert len(misbehaving.bodies) == 8
    # Each sample has a seed of its own, and the same one when asked again.
    assert len({body["seed"] for body in misbehaving.bodies}) == 8
    assert all(isinstance(body["prompt"], str) for body in misbehaving.bodies)
    assert generator.generate(PROMPTS, SamplingParams(n=4)) == samples


def test_greedy_samples_are_asked_for_once(misbehaving: Any, tokenizer: Any) -> None:
    """vLLM refuses several samples at temperature 0, which are equal."""
    generator = OpenAIGenerator([misbehaving.url], "tiny", tokenizer)
    samples = generator.generate(PROMPTS, SamplingParams(n=3, temperature=0))
    assert [body["n"] for body in misbehaving.bodies] == [1, 1]
    assert [len(row) for row in samples] == [3, 3]
    assert all(sample == row[0] for row in samples for sample in row)


def test_one_short_answer_changes_no_later_request(misbehaving: Any, tokenizer: Any) -> None:
    generator = OpenAIGenerator([misbehaving.url], "tiny", tokenizer)
    before = generator.generate(PROMPTS, SamplingParams(n=4))
    misbehaving.heeds_n = False
    assert [len(row) for row in generator.generate(PROMPTS, SamplingParams(n=4))] == [4, 4]
    misbehaving.heeds_n = True
    misbehaving.bodies.clear()
    assert generator.generate(PROMPTS, SamplingParams(n=4)) == before
    assert [body["n"] for body in misbehaving.bodies] == [4, 4]


def overlaid(**fields: Any) -> dict[str, Any]:
    """An answer whose only sample differs in some fields."""
    choice = {"index": 0, "text": "#", "finish_reason": "stop", "logprobs": None, "token_ids": [5, 2]}
    return {"choices": [{**choice, **fields}]}


UNUSABLE = {
    "a malformed answer": "no json",
    "malformed answer, with 5 as its text": overlaid(text=5),
    "malformed answer, with 5 as its token_ids": overlaid(token_ids=5),
    "with 'x' as its usage.completion_tokens": {"usage": {"completion_tokens": "x"}},
    "without any choice": {"choices": []},
    "of the model 'other'": {"model": "other"},
    "at most 4 were asked": overlaid(token_ids=[5] * 5),
    "10 tokens in 1 samples": {"usage": {"completion_tokens": 10, "prompt_tokens": 3, "total_tokens": 13}},
    "outside the vocabulary": overlaid(token_ids=[5, 10**6]),
    "the id -1": overlaid(token_ids=[-1]),
    "without any token": overlaid(token_ids=[], text=""),
    "ended by 'abort'": overlaid(finish_reason="abort"),
    "ended by None": overlaid(finish_reason=None),
}


@pytest.mark.parametrize("action", [500, 429, "hang up", "stall", "trickle", "too deep", *UNUSABLE.values()])
def test_what_may_pass_is_repeated(misbehaving: Any, tokenizer: Any, action: Any) -> None:
    generator = OpenAIGenerator([misbehaving.url], "tiny", tokenizer, timeout=0.5, backoff=0.01)
    expected = generator.generate(PROMPTS[:1], SamplingParams(max_tokens=4))
    misbehaving.plan = [action, action]
    assert generator.generate(PROMPTS[:1], SamplingParams(max_tokens=4)) == expected
    assert misbehaving.bodies == misbehaving.bodies[:1] * 4


@pytest.mark.parametrize("words", UNUSABLE)
def test_answers_that_stay_unusable_are_named(misbehaving: Any, tokenizer: Any, words: str) -> None:
    misbehaving.plan = [UNUSABLE[words]] * 100
    generator = OpenAIGenerator([misbehaving.url], "tiny", tokenizer, backoff=0.001)
    with pytest.raises(ConnectionError, match=rf"the prompt with key 'a' that can be used, in 6 attempts.*{words}"):
        generator.generate(PROMPTS[:1], SamplingParams(max_tokens=4))
    assert len(misbehaving.bodies) == 6


def test_unusable_answers_are_counted_and_other_failures_are_not(misbehaving: Any, tokenizer: Any) -> None:
    """A server that is restarted for a while, and then answers badly now and then, is no hopeless one."""
    generator = OpenAIGenerator([misbehaving.url], "tiny", tokenizer, backoff=0.001)
    misbehaving.plan = [503] * 5 + ["no json"] * 5
    assert len(generator.generate(PROMPTS[:1], SamplingParams(max_tokens=4))[0]) == 1
    misbehaving.plan = ["no json", 503] * 20
    with pytest.raises(ConnectionError, match=r"in 11 attempts.*a malformed answer"):
        generator.generate(PROMPTS[:1], SamplingParams(max_tokens=4))


@pytest.mark.parametrize("send_text", [False, True])
def test_an_answer_with_anything_in_it_is_a_sample_or_named(tokenizer: Any, send_text: bool) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    num_named = 0
    for answer in with_junk({"model": "tiny", "usage": usage, **overlaid(index=0)}):
        # What the client makes of an answer, without any check.
        made = openai.types.Completion.construct(**answer)
        reader = AnswerReader("tiny", tokenizer, TokenPieces(tokenizer), send_text=send_text)
        try:
            (sample,) = reader.read(asyncio.run(ask_openai(AsyncMock(return_value=made), model="tiny")), 3, 4)
            assert 0 < len(sample.token_ids) <= 4
            assert {type(i) for i in sample.token_ids} == {int}
        except (UnusableAnswerError, ValueError):
            num_named += 1
    assert num_named > 40


@pytest.mark.parametrize(
    ("asked", "named", "is_it"),
    [
        ("org/m-7b", "m-7b", True),
        ("m", "m-2024-08-06", True),
        ("m", "m-0613", True),
        ("m-latest", "m-latest", True),
        ("m-latest", "m-2411", True),
        ("m-7b", "m-7b-Instruct", False),
        ("m-4o", "m-4o-mini", False),
        ("m-7", "m-72", False),
        ("m-7b", "m", False),
    ],
)
def test_an_answer_is_of_the_model_asked_for_but_for_its_date(asked: str, named: str, is_it: bool) -> None:
    answer = openai.types.Completion.construct(model=named, **overlaid(index=0))
    with nullcontext() if is_it else pytest.raises(UnusableAnswerError, match=f"of the model '{named}', not of"):
        asyncio.run(ask_openai(AsyncMock(return_value=answer), model=asked))


def test_an_empty_text_is_a_sample_only_if_a_token_was_sampled(misbehaving: Any, tokenizer: Any) -> None:
    """A server that is ill says "stop" and nothing else; a model that ends at once has sampled its end token."""
    generator = OpenAIGenerator([misbehaving.url], "tiny", tokenizer, send_text=True, backoff=0.001)
    misbehaving.choice = {"text": ""}
    with pytest.raises(ConnectionError, match="a sample without any token that ended by 'stop'"):
        generator.generate(PROMPTS[:1], SamplingParams())
    usage = {"completion_tokens": 1, "prompt_tokens": 3, "total_tokens": 4}
    misbehaving.plan = [{**misbehaving.reply({"n": 1, "seed": 1}), "usage": usage}]
    ((sample,),) = generator.generate(PROMPTS[:1], SamplingParams())
    assert (sample.text, sample.token_ids, sample.finished) == ("", (tokenizer.eos_token_id,), True)


def test_the_served_tokenizer_is_compared_with_ours(
    misbehaving: Any, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def counted(prompt_tokens: int) -> dict[str, Any]:
        usage = {"completion_tokens": 1, "prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens + 1}
        return {**misbehaving.reply({"n": 1, "seed": 1}), "usage": usage}

    for num_tokens, is_warned in ((3, False), (4, False), (9, True)):
        misbehaving.plan = [counted(num_tokens)] * 2
        generator = OpenAIGenerator([misbehaving.url], "tiny", tokenizer, send_text=True)
        generator.generate([PROMPTS[0], PROMPTS[0]], SamplingParams())
        assert caplog.text.count("with this tokenizer") == is_warned
    misbehaving.choice = {"text": "something else"}
    with pytest.raises(ValueError, match="reads the ids of a sample as 'something else', this tokenizer as '#"):
        OpenAIGenerator([misbehaving.url], "tiny", tokenizer).generate(PROMPTS, SamplingParams(n=2))


def test_retries_are_bounded_and_the_error_is_clear(misbehaving: Any, tokenizer: Any) -> None:
    misbehaving.plan = [503] * 10
    generator = OpenAIGenerator([misbehaving.url], "tiny", tokenizer, max_retries=2, backoff=0.01)
    with pytest.raises(ConnectionError, match=r"no answer to the prompt with key 'a' .*, in 3 attempts.*told to fail"):
        generator.generate(PROMPTS[:1], SamplingParams())
    assert len(misbehaving.bodies) == 3
    misbehaving.plan = ["stall"] * 10
    generator = OpenAIGenerator([misbehaving.url], "tiny", tokenizer, timeout=0.2, max_wait=0.1, backoff=0.01)
    with pytest.raises(ConnectionError, match=r"in 1 attempts. The last one: no whole answer within 0.2 seconds"):
        generator.generate(PROMPTS[:1], SamplingParams())


def test_what_will_not_pass_is_not_repeated(misbehaving: Any, tokenizer: Any) -> None:
    generator = OpenAIGenerator([misbehaving.url], "tiny", tokenizer)
    misbehaving.plan = [400]
    with pytest.raises(ValueError, match="refused the prompt with key 'a'"):
        generator.generate(PROMPTS[:1], SamplingParams())
    assert len(misbehaving.bodies) == 1
    misbehaving.plan = [overlaid(token_ids=None)]
    with pytest.raises(ValueError, match="does not return the ids"):
        generator.generate(PROMPTS[:1], SamplingParams())


@pytest.mark.parametrize("status", [401, 503])
def test_a_key_that_a_server_repeats_is_in_no_message(misbehaving: Any, tokenizer: Any, status: int) -> None:
    misbehaving.says = "Incorrect API key provided: plain-words-9."
    misbehaving.plan = [status] * 9
    url = misbehaving.url.replace("//", "//me:hidden-word@")
    generator = OpenAIGenerator([url], "tiny", tokenizer, api_key="plain-words-9", max_retries=0)
    with pytest.raises((ConnectionError, ValueError), match=r"provided: \*\*\*") as caught:
        generator.generate(PROMPTS[:1], SamplingParams(max_tokens=4))
    shown = "".join(traceback.format_exception(caught.value))
    assert "plain-words-9" not in shown
    assert "hidden-word" not in str(caught.value)


def test_another_server_takes_over(misbehaving: Any, tokenizer: Any) -> None:
    dead = f"http://127.0.0.1:{free_port()}/v1"
    generator = OpenAIGenerator([dead, misbehaving.url], "tiny", tokenizer, backoff=0.01)
    assert [len(row) for row in generator.generate(PROMPTS, SamplingParams(n=2))] == [2, 2]


def test_requests_at_a_time_are_bounded(misbehaving: Any, tokenizer: Any) -> None:
    misbehaving.delay = 0.05
    generator = OpenAIGenerator([misbehaving.url], "tiny", tokenizer, concurrency=3)
    generator.generate([Prompt((5,), key=str(i)) for i in range(12)], SamplingParams())
    assert misbehaving.most_open == 3


# ---- engines that may not be installed ----


def test_vllm_is_refused_where_processes_would_share_a_gpu(monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    made: list[str] = []
    engine = "trl_prl.generation.vllm_engine.VLLMGenerator"
    monkeypatch.setattr(engine, lambda model, **fields: made.append(fields["tokenizer"]))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    config = JobConfig(model="tiny", tokenizer="words", dataset="x", output_dir="x", generator="vllm")
    # Number of the process, what it sees, and its GPU where it has one of its own.
    cases = [("0", None, 0), ("0", "2,3", 0), ("1", "3", 0), ("1", "GPU-5", 0), ("1", None, 1), ("1", "2,3", 1)]
    for rank, visible, gpu in cases:
        monkeypatch.setenv("LOCAL_RANK", rank)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert process_device() == f"cuda:{gpu}"
        if gpu == 0:
            make_generator(config, tokenizer, "tiny")
        else:
            with pytest.raises(ValueError, match=r"in process 1 of this machine.*--engine ray --gpus_per_worker 1"):
                make_generator(config, tokenizer, "tiny")
    assert made == ["words"] * 4


@pytest.mark.skipif(HAS_VLLM, reason="vLLM is installed")
def test_missing_engines_name_the_extra(tokenizer: Any) -> None:
    with pytest.raises(ImportError, match=r"trl-prl\[vllm\]"):
        VLLMGenerator("some/model")
    with pytest.raises(ImportError, match=r"trl-prl\[vllm\]"):
        VLLMServerGenerator(["http://127.0.0.1:1"], tokenizer)


def test_missing_openai_names_the_extra(monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r"trl-prl\[openai\]"):
        OpenAIGenerator(["http://127.0.0.1:1/v1"], "m", tokenizer)


def test_addresses_are_a_list(tokenizer: Any) -> None:
    for urls in ("http://127.0.0.1:1/v1", []):
        with pytest.raises(ValueError, match="as a list"):
            OpenAIGenerator(urls, "m", tokenizer)


class NamesServer(JsonServer):
    """A server of one model, as far as TRL's client asks before it samples."""

    def reply(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"data": [{"id": "elsewhere/tiny"}]}


def test_a_vllm_server_of_another_model_is_refused(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trl.generation.vllm_client.is_vllm_available", lambda: True)
    with running(NamesServer()) as server:
        fields = {"dataset": "x", "output_dir": "x", "generator": "vllm-server", "reward": "exact_match"}
        config = JobConfig(model="tiny", endpoints=[server.url.removesuffix("/v1")], **fields)
        make_generator(config, tokenizer, "somewhere/tiny/")
        for other in ("tiny-2", "elsewhere/tin"):
            with pytest.raises(ValueError, match=rf"Got the model '{other}' at http.*'elsewhere/tiny' is served"):
                make_generator(config, tokenizer, other)


def test_client_of_trl_takes_what_is_sent() -> None:
    """The server itself needs a GPU; the arguments used here are pinned against TRL's signature."""
    from trl.generation.vllm_client import VLLMClient

    assert {"base_url", "connection_timeout"} <= set(inspect.signature(VLLMClient.__init__).parameters)
    sent = {"prompts", "n", "temperature", "top_p", "top_k", "max_tokens", "generation_kwargs"}
    assert sent <= set(inspect.signature(VLLMClient.generate).parameters)
