"""`trl-prl collect`: its output, its settings, and a job that is killed again and again."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import load_dataset
from transformers import AutoTokenizer

from tests.benchmarks.arithmetic.task import arithmetic_policy_path, arithmetic_reward, sample_problems
from trl_prl import __main__ as cli
from trl_prl.collection.config import CollectConfig
from trl_prl.collection.job import CollectWorker, collect
from trl_prl.commands.collect import cost_line
from trl_prl.jobs.options import Tools
from trl_prl.jobs.progress import Progress, speed_line
from trl_prl.jobs.shards import SHARDS, find_units
from trl_prl.prompts.chat import prompt_token_ids
from trl_prl.storage.row_sources import load_rows


def write_prompts(folder: Path, n: int) -> Path:
    """A file of prompts, with every fifth one a duplicate of the one before it."""
    problems = sample_problems("tuning", n, seed=1)
    rows = [problems[k - 1 if k % 5 == 4 else k] for k in range(n)]
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": p.prompt, "answer": p.answer}) + "\n" for p in rows))
    return path


def options(folder: Path, prompts: Path, **changes: Any) -> list[str]:
    fields = {
        "model": arithmetic_policy_path(),
        "dataset": str(prompts),
        "output_dir": str(folder),
        "reward": "tests.benchmarks.arithmetic.task:arithmetic_reward",
        "splitter": "newline",
        "n_cov": 2,
        "n_mc": 4,
        "max_completion_length": 22,
        "problems_per_unit": 3,
        "check_timeout": 0,
        **changes,
    }
    words = []
    for name, value in fields.items():
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return ["collect", *words]


def columns_of(folder: Path) -> dict[str, list[Any]]:
    return pq.read_table(folder / "data" / "train.parquet").to_pydict()


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished small job."""
    folder = tmp_path_factory.mktemp("job")
    prompts = write_prompts(folder, 10)
    assert cli.main(options(folder / "values", prompts)) == 0
    return folder


def test_output_is_a_stepwise_dataset(job: Path) -> None:
    rows = load_dataset(str(job / "values"), split="train", cache_dir=str(job / "cache"))
    assert {"prompt", "completions", "labels", "initial_value", "num_rollouts", "answer", "outcome"} <= set(
        rows.column_names
    )
    assert len(rows) > 12
    for row in rows:
        assert len(row["completions"]) == len(row["labels"]) == len(row["num_rollouts"]) == len(row["interval_low"])
        for value, low, high in zip(row["labels"], row["interval_low"], row["interval_high"], strict=True):
            assert value is None or low <= value <= high
        assert "".join(row["completions"]).count("\n") >= len(row["completions"]) - 1
        assert (row["outcome"] is None) == (row["finish_reason"] == "length")
    # Duplicate prompts stay separate rows.
    assert set(rows["row"]) == set(range(10))
    metadata = json.loads(pq.read_schema(job / "values" / "data" / "train.parquet").metadata[b"trl_prl"])
    assert metadata["splitter"] == "newline"
    assert metadata["prover"] == arithmetic_policy_path()
    card = (job / "values" / "README.md").read_text()
    assert "null" not in card.split("---")[2]
    assert "sampled tokens" in card


def test_finished_job_is_not_computed_again_and_best_of_k_costs_nothing(job: Path) -> None:
    before = {path: path.read_bytes() for path in (job / "values" / SHARDS).iterdir()}
    values = columns_of(job / "values")
    assert cli.main(options(job / "values", job / "prompts.jsonl", best_of_k=3)) == 0
    best = columns_of(job / "values")
    assert cli.main(options(job / "values", job / "prompts.jsonl")) == 0
    assert columns_of(job / "values") == values
    assert {path: path.read_bytes() for path in (job / "values" / SHARDS).iterdir()} == before
    assert best["initial_value"] == pytest.approx([1 - (1 - value) ** 3 for value in values["initial_value"]])


def test_share_of_unfinished_rollouts_is_said(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(options(job / "values", job / "prompts.jsonl")) == 0
    printed = capsys.readouterr()
    assert re.search(r"[\d,]+ rollouts; \d+ of them \(\d\.\d%\) reached the limit of 22 tokens", printed.out)
    assert "Warning" not in printed.err
    assert cli.main(options(tmp_path, job / "prompts.jsonl", max_completion_length=8, max_rows=3)) == 0
    printed = capsys.readouterr()
    assert "reached the limit of 8 tokens and are left out of the values" in printed.out
    assert "rollouts reached the limit, so values are biased towards short solutions. Raise --max_c" in printed.err


def test_weights_that_were_replaced_are_refused(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of two models would be mixed; the path of prompts and model may be written otherwise."""
    shutil.copytree(arithmetic_policy_path(), tmp_path / "policy")
    changes: dict[str, Any] = {"model": str(tmp_path / "policy"), "max_rows": 3}
    assert cli.main(options(tmp_path / "values", job / "prompts.jsonl", **changes)) == 0
    monkeypatch.chdir(job)
    changes["model"] = os.path.relpath(tmp_path / "policy")
    assert cli.main(options(tmp_path / "values", Path("prompts.jsonl"), **changes)) == 0
    weights = next((tmp_path / "policy").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    capsys.readouterr()
    assert cli.main(options(tmp_path / "values", Path("prompts.jsonl"), **changes)) == 2
    assert "model_files" in capsys.readouterr().err


def test_other_settings_or_prompts_are_refused(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(options(job / "values", job / "prompts.jsonl", seed=5)) == 2
    assert "seed: 0 there, 5 now" in capsys.readouterr().err
    assert cli.main(options(job / "values", job / "prompts.jsonl", max_rows=9)) == 2
    assert "fingerprint" in capsys.readouterr().err


def test_two_processes_give_the_same_rows(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in (1, 0):
        arguments = options(tmp_path, job / "prompts.jsonl", num_processes=2, process_index=index)
        assert cli.main(arguments) == 0
        printed = capsys.readouterr().out
        assert ("once the others are" in printed) == (index == 1)
    assert {path.name for path in (tmp_path / SHARDS).iterdir()} == {
        "process-00000-00000.jsonl",
        "process-00001-00000.jsonl",
    }
    assert columns_of(tmp_path) == columns_of(job / "values")


def test_finished_units_are_on_the_disk_before_the_next_begins(job: Path, tmp_path: Path) -> None:
    """A job of days cannot wait for its end with what it has found, nor hold it in memory."""
    config = CollectConfig(
        model=str(arithmetic_policy_path()), dataset=str(job / "prompts.jsonl"), output_dir=str(tmp_path),
        splitter="newline", n_cov=1, n_mc=1, max_completion_length=22, problems_per_unit=3,
    )  # fmt: skip
    on_disk: list[int] = []

    def reward(prompts: list[str], completions: list[str], answer: list[str], **columns: Any) -> list[float]:
        on_disk.append(len(find_units(tmp_path)))
        return arithmetic_reward(completions, answer)

    rows = load_rows(config.dataset)
    collect(config, rows, lambda: CollectWorker(config, rows, Tools(config, reward=reward)))
    # While the k-th unit is computed, the ones before it are there.
    assert sorted(set(on_disk)) == [0, 1, 2, 3]
    assert on_disk == sorted(on_disk)


def test_yaml_and_options(tmp_path: Path, job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = options(tmp_path / "values", job / "prompts.jsonl")[1:]
    settings: dict[str, Any] = dict(zip([word[2:] for word in words[::2]], words[1::2], strict=True))
    settings.update(n_cov=1, n_mc=2, max_completion_length=22, problems_per_unit=3, check_timeout=0, max_rows=9)
    path = tmp_path / "collect.yaml"
    path.write_text(yaml.safe_dump(settings))
    assert (
        cli.main(["collect", "--config", str(path), "--max-rows", "2", "--adaptive", "--strategy", "first_pit"]) == 0
    )
    assert set(columns_of(tmp_path / "values")["row"]) == {0, 1}
    for change, message in (({"n_cow": 3}, "n_cov"), ({"n_mc": "many"}, "wrong type"), ({"n_mc": 0}, "n_mc=0")):
        path.write_text(yaml.safe_dump({**settings, **change}))
        assert cli.main(["collect", "--config", str(path)]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": ""}, "model not given"),
        ({"generator": "openai"}, "endpoints"),
        ({"process_index": 2, "num_processes": 2}, "process 2 of 2"),
        ({"problems_per_unit": 0}, "problems_per_unit=0"),
        ({"generator": "vllm", "adapter": "mine"}, "sample from the model without it"),
        ({"generator": "vllm", "load_in_4bit": True}, "load_in_4bit=True with generator='vllm'"),
        ({"send_text": True}, "`send_text` was set to True with `generator='transformers'`"),
        ({"confidence": 1.5}, "confidence=1.5"),
        ({"rule_confidence": 0.0}, "rule_confidence=0.0"),
        ({"n_probe": 0}, "n_probe=0"),
        ({"seed_temperature": -1.0}, "seed_temperature=-1.0"),
    ],
)
def test_settings_that_contradict_each_other(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CollectConfig(**{"model": "m", "dataset": "d", "output_dir": "o", **fields})


def test_share_of_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert CollectConfig(model="m", dataset="d", output_dir="o").process() == (3, 8)


def test_messages_go_through_the_chat_template(tiny_model_path: str, tmp_path: Path) -> None:
    """Prompts of messages, completions of one message for the reward, a seed model of its own."""
    path = tmp_path / "chat.jsonl"
    rows = [{"prompt": [{"role": "user", "content": f"Add {k}."}], "answer": str(k)} for k in range(2)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen: list[Any] = []

    def reward(prompts: list[Any], completions: list[Any], answer: list[str], **columns: Any) -> list[float]:
        seen.extend(zip(prompts, completions, answer, strict=True))
        return [float("a" in completion[0]["content"]) for completion in completions]

    config = CollectConfig(
        model=tiny_model_path, dataset=str(path), output_dir=str(tmp_path / "values"), max_completion_length=24,
        splitter="newline", n_cov=3, n_mc=3, seed_model=tiny_model_path,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
    ids = prompt_token_ids(tokenizer, rows[0]["prompt"])
    assert tokenizer.decode(ids) == "<|start|>user\nAdd 0.<|end|><|start|>assistant\n"
    dataset = load_rows(config.dataset)
    collect(config, dataset, lambda: CollectWorker(config, dataset, Tools(config, reward=reward)))
    assert all(completion[0]["role"] == "assistant" for _, completion, _ in seen)
    assert all(prompt[0]["content"] == f"Add {answer}." for prompt, _, answer in seen)
    values = columns_of(tmp_path / "values")
    assert values["prompt"][0] == rows[0]["prompt"]
    # Unfinished seeds have no outcome.
    assert {
        outcome
        for outcome, reason in zip(values["outcome"], values["finish_reason"], strict=True)
        if reason == "length"
    } <= {None}


def test_the_tokenizer_of_the_job_is_that_of_the_model(tiny_model_path: str, tmp_path: Path) -> None:
    """The model's folder needs none; a seed model has its own end tokens, and the same ids."""
    weights = tmp_path / "weights"
    shutil.copytree(tiny_model_path, weights, ignore=shutil.ignore_patterns("*token*", "*.jinja"))
    prompts = write_prompts(tmp_path, 2)
    given = {"model": weights, "tokenizer": tiny_model_path, "seed_model": tiny_model_path}
    assert cli.main(options(tmp_path / "values", prompts, **given)) == 0
    config = CollectConfig(
        model=tiny_model_path, dataset=str(prompts), output_dir="x", seed_model=arithmetic_policy_path()
    )
    with pytest.raises(ValueError, match="whose tokenizer has another vocabulary than that of the job"):
        CollectWorker(config, load_rows(config.dataset))


def test_progress_by_hand() -> None:
    counts = {"num_rollouts": 500, "num_unfinished": 3, "num_failed": 1, "num_sampled_tokens": 2_000_000}
    progress = Progress(30, 100, 10, 50.0, counts)
    # 20 problems in 50 s: 70 are left for 175 s, and 90 cost 4.5 times as much as 20.
    assert speed_line(progress) == "30/100, 0:02:55 left, 10.0 samples/s"
    assert cost_line(progress, 1.5) == "2.00 of 9.00 M tokens, cost 3.00 of 13.50, 3 unfinished, 1 not checked"
    assert speed_line(Progress(30, 100, 30)) == "30/100, starting"
    assert cost_line(Progress(30, 100, 30), None) == ""


# ---- kill -9 ----


@pytest.mark.slow
@pytest.mark.timeout(1800)  # twenty starts of Python, on a busy machine half a minute each
def test_killed_twenty_times_equals_uninterrupted(tmp_path: Path) -> None:
    """No row lost, none doubled, the same bytes: the real process, killed at random moments, with one or two of it."""
    num_problems = 24
    prompts = write_prompts(tmp_path, num_problems)
    changes = {"problems_per_unit": 1, "n_mc": 12, "n_cov": 3}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def start(folder: Path, **more: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "trl_prl", *options(folder, prompts, **{**changes, **more})]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    begun = time.monotonic()
    assert start(tmp_path / "whole").wait() == 0
    seconds = time.monotonic() - begun

    generator, killed = random.Random(0), tmp_path / "killed"
    num_killed, units_left = 0, []
    while num_killed < 20:
        share = {"num_processes": 2, "process_index": num_killed % 2} if num_killed % 3 else {}
        process = start(killed, **share)
        try:
            # From before the manifest is written to somewhere among the units.
            assert process.wait(timeout=generator.uniform(0.0, 0.9) * seconds) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            num_killed += 1
        else:
            # It was through before it could be killed: take its work away, so that there is some to interrupt.
            for shard in (killed / SHARDS).iterdir():
                shard.unlink()
        units_left.append(len(find_units(killed)) if killed.exists() else 0)
    last = start(killed)
    assert last.wait() == 0
    # Some kills fell among the units.
    assert any(0 < number < num_problems for number in units_left)
    assert len(find_units(killed)) == num_problems
    for name in ("data/train.parquet", "README.md"):
        assert (killed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_in_the_middle_says_how_to_go_on(tmp_path: Path, number: int, code: int) -> None:
    """With processes that check answers, as a terminal sends Ctrl-C to them too."""
    prompts = write_prompts(tmp_path, 24)
    changes = {"problems_per_unit": 1, "n_mc": 12, "check_timeout": 30, "reward": "exact_match"}
    command = [sys.executable, "-m", "trl_prl", *options(tmp_path / "values", prompts, **changes)]
    process = subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell lets what it runs in the background ignore Ctrl-C, and this would be inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None and not find_units(tmp_path / "values"):
        time.sleep(0.01)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert errors.rstrip().splitlines()[-2:] == [
        "trl-prl collect: stopped.",
        f"Finished units are kept in {tmp_path / 'values'}; the same command goes on from there.",
    ]
    assert not list(tmp_path.rglob(".tmp-*"))


# ---- several processes ----


def test_more_processes_than_units_and_a_last_unit_that_is_smaller(job: Path, tmp_path: Path) -> None:
    """Ten problems make four units, the last of one problem: the fifth process has nothing to do."""
    for index in (4, 0, 3, 1, 2):
        assert not (tmp_path / "data").exists()
        words = options(tmp_path, job / "prompts.jsonl", num_processes=5, process_index=index)
        assert cli.main(words) == 0
    assert [len(list((tmp_path / SHARDS).glob(f"process-0000{k}-*"))) for k in range(5)] == [1, 1, 1, 1, 0]
    assert columns_of(tmp_path) == columns_of(job / "values")


@pytest.mark.slow
def test_a_second_process_of_one_number_is_refused(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path, 24)
    changes = {"problems_per_unit": 1, "n_mc": 12}
    command = [sys.executable, "-m", "trl_prl", *options(tmp_path / "values", prompts, **changes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not find_units(tmp_path / "values"):
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # so that it is not through before the second begins
    try:
        second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    finally:
        first.send_signal(signal.SIGCONT)
    assert first.wait() == 0
    assert second.returncode == 2
    assert "Another process works as number 0" in second.stderr


def test_prompts_of_solutions_that_another_splitter_cut_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = pa.Table.from_pylist([json.loads(line) for line in write_prompts(tmp_path, 1).read_text().splitlines()])
    made = json.dumps({"splitter": "sentence", "step_length": 256})
    pq.write_table(table.replace_schema_metadata({"trl_prl": made}), tmp_path / "prompts.parquet")
    for splitter, warns in (("sentence", False), ("newline", True)):
        caplog.clear()
        changes = {"splitter": splitter, "n_cov": 1, "n_mc": 1}
        assert cli.main(options(tmp_path / splitter, tmp_path / "prompts.parquet", **changes)) == 0
        assert ("would learn two kinds of steps" in caplog.text) == warns


@pytest.mark.slow
def test_accelerate_launch_shares_the_job(job: Path, tmp_path: Path) -> None:
    """Two real processes of a launcher compute what one does, each into a file of its own."""
    # On CPUs accelerate starts several processes with `--multi_gpu` only; with `--cpu` it starts one.
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command = [*launcher, "-m", "trl_prl", *options(tmp_path, job / "prompts.jsonl")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert {path.name for path in (tmp_path / SHARDS).iterdir()} == {
        "process-00000-00000.jsonl",
        "process-00001-00000.jsonl",
    }
    assert columns_of(tmp_path) == columns_of(job / "values")
