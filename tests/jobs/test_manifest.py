"""Manifests: they know what the rows depend on, and say it when they cannot be read."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trl_prl.collection.config import CollectConfig
from trl_prl.evaluation.config import EvaluateConfig
from trl_prl.jobs.manifest import MANIFEST, claim_share, job_settings, open_manifest, weights_fingerprint
from trl_prl.jobs.shards import ShardWriter
from trl_prl.search.config import SearchConfig


def begin(folder: Path, settings: Any) -> None:
    """Begin a job, and finish a unit of it."""
    open_manifest(folder, settings)
    with ShardWriter(folder) as writer:
        writer.write(0, {"rows": []})


def write_model(folder: Path, byte: int = 0, num_bytes: int = 3_000_000) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    weights = bytearray(num_bytes)
    weights[num_bytes // 2] = byte
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_fingerprint_sees_weights_and_not_the_state_of_a_training(tmp_path: Path) -> None:
    first = weights_fingerprint(str(write_model(tmp_path / "a")))
    assert first is not None
    assert first.startswith("2 files, 3000002 bytes")
    # The same files elsewhere, whenever they were written.
    assert weights_fingerprint(str(write_model(tmp_path / "b"))) == first
    (tmp_path / "b" / "trainer_state.json").write_text("{}")
    (tmp_path / "b" / "README.md").write_text("a card")
    assert weights_fingerprint(str(tmp_path / "b")) == first
    assert weights_fingerprint(str(write_model(tmp_path / "b", byte=1))) != first
    assert weights_fingerprint("my-org/model") is None


def test_large_files_are_hashed_in_part_from_start_to_end(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.truncate(1 << 33)  # sparse: 8 GiB would take long to read
    first = weights_fingerprint(str(path))
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    assert weights_fingerprint(str(path)) != first


@pytest.mark.parametrize("name", ["model", "adapter", "tokenizer", "seed_model"])
def test_a_job_is_not_resumed_with_other_weights(tmp_path: Path, name: str) -> None:
    model = write_model(tmp_path / "model")
    fields = {"model": "my-org/model", "dataset": "d", "output_dir": "o", name: str(model)}
    folder = tmp_path / "job"
    begin(folder, job_settings(CollectConfig(**fields)))  # type: ignore[arg-type]
    # Another path to the same files is the same model.
    moved = CollectConfig(**{**fields, name: os.path.relpath(model)})  # type: ignore[arg-type]
    open_manifest(folder, job_settings(moved))
    write_model(model, byte=1)
    with pytest.raises(ValueError, match=rf"{name}_files: '2 files.* there, '2 files"):
        open_manifest(folder, job_settings(CollectConfig(**fields)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"{name}_files"):
        open_manifest(folder, job_settings(CollectConfig(**{**fields, name: "my-org/other"})))  # type: ignore[arg-type]


def test_a_job_is_not_resumed_with_another_reward_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "reward_of_a_test.py"
    module.write_text("def right(**columns): return []\n")
    config = CollectConfig(model="m", dataset="d", output_dir="o", reward="reward_of_a_test:right")
    begin(tmp_path / "job", job_settings(config))
    module.write_text("def right(**columns): return [1.0]\n")
    with pytest.raises(ValueError, match="reward_files"):
        open_manifest(tmp_path / "job", job_settings(config))


def test_weights_behind_a_name_with_options_are_seen(tmp_path: Path) -> None:
    verifier, reference = write_model(tmp_path / "v"), write_model(tmp_path / "r")

    def settings_of(name: str) -> Any:
        config = SearchConfig(
            model="m", dataset="d", output_dir="o", reward="accuracy", method="beam", n=[2], process_reward=name
        )
        return job_settings(config).get("process_reward_files")

    name = f"{verifier},reference={reference},max_batch_tokens=64"
    first = settings_of(name)
    assert first != settings_of(name.replace("64", "65"))
    for folder in (verifier, reference):
        write_model(folder, byte=1)
        assert settings_of(name) != first
        write_model(folder)
        assert settings_of(name) == first
    assert settings_of("my-org/v,max_batch_tokens=64") is None


def test_names_and_weights_of_several_verifiers(tmp_path: Path) -> None:
    verifier = write_model(tmp_path / "v")
    config = EvaluateConfig(model="m", dataset="d", output_dir="o", verifiers=[f"a={verifier}", "b=my-org/b"])
    named = [f"{name}={path}" for name, path in config.verifier_paths()]
    settings = job_settings(config, verifiers=named)
    assert settings["verifiers_files"] == {"a": weights_fingerprint(str(verifier)), "b": "my-org/b"}
    begin(tmp_path / "job", settings)
    with pytest.raises(ValueError, match="verifiers_files"):
        open_manifest(tmp_path / "job", job_settings(config, verifiers=[f"c={verifier}", "b=my-org/b"]))


def test_path_of_the_data_set_does_not_matter_but_its_rows_do(tmp_path: Path) -> None:
    settings = {"dataset": "prompts.jsonl", "fingerprint": "1"}
    begin(tmp_path, settings)
    open_manifest(tmp_path, {**settings, "dataset": "/home/me/prompts.jsonl"})
    with pytest.raises(ValueError, match="fingerprint: '1' there, '2' now"):
        open_manifest(tmp_path, {**settings, "fingerprint": "2"})


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "is empty"), ("{", "is not the JSON object"), ("[1]", "is not the"), ("[" * 200_000, "is not the")],
)
def test_manifests_that_were_edited_are_named(tmp_path: Path, text: str, message: str) -> None:
    open_manifest(tmp_path, {"seed": 1})
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ValueError, match=f"{MANIFEST} {message}"):
        open_manifest(tmp_path, {"seed": 1})
    assert (tmp_path / MANIFEST).read_text() == text


def test_secrets_are_masked_and_only_the_user_reads_it(tmp_path: Path) -> None:
    settings = {"model": "http://me:secret@host/m", "extra": {"api_key": "abc"}}
    open_manifest(tmp_path, settings)
    text = (tmp_path / MANIFEST).read_text()
    assert "secret" not in text
    assert "abc" not in text
    assert stat.S_IMODE((tmp_path / MANIFEST).stat().st_mode) == 0o600
    open_manifest(tmp_path, settings)
    config = CollectConfig(
        model="m", dataset="d", output_dir="o", api_key="abc", generator="openai", endpoints=["http://h"]
    )
    assert "api_key" not in config.settings()


def test_a_second_process_of_one_number_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    open_manifest(tmp_path, {})
    code = (
        "import sys, time; from pathlib import Path; from trl_prl.jobs.manifest import claim_share\n"
        "with claim_share(Path(sys.argv[1]), 0): print('claimed', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "claimed\n"
    with claim_share(tmp_path, 1):
        pass
    with pytest.raises(ValueError, match="works as number 0"), claim_share(tmp_path, 0):
        pass
    process.kill()
    process.wait()
    with claim_share(tmp_path, 0):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {MANIFEST, "shards"}


def test_a_job_without_a_finished_unit_gives_way(tmp_path: Path) -> None:
    """A misspelled model must not block the command that spells it right."""
    open_manifest(tmp_path, {"model": "a model that is not there"})
    # What was cut by a kill is no unit.
    (tmp_path / "shards" / "process-00000-00000.jsonl").write_text('00000000 {"unit":0')
    assert open_manifest(tmp_path, {"model": "right"}) == {"model": "right"}
    assert open_manifest(tmp_path, {"model": "right"}) == {"model": "right"}
    begin(tmp_path, {"model": "right"})
    with pytest.raises(ValueError, match="model: 'right' there, 'other' now"):
        open_manifest(tmp_path, {"model": "other"})


def test_a_job_that_somebody_works_on_does_not_give_way(tmp_path: Path) -> None:
    open_manifest(tmp_path, {"seed": 1})
    code = (
        "import sys, time; from pathlib import Path; from trl_prl.jobs.manifest import claim_share\n"
        "with claim_share(Path(sys.argv[1]), 3): print('claimed', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "claimed\n"
    with pytest.raises(ValueError, match="seed: 1 there, 2 now"):
        open_manifest(tmp_path, {"seed": 2})
    process.kill()
    process.wait()
    open_manifest(tmp_path, {"seed": 2})


def test_a_job_replaced_before_it_was_claimed_is_not_worked_on(tmp_path: Path) -> None:
    begun = open_manifest(tmp_path, {"seed": 1})
    with claim_share(tmp_path, 0, begun):
        pass
    open_manifest(tmp_path, {"seed": 2})
    with pytest.raises(ValueError, match="at this moment"), claim_share(tmp_path, 0, begun):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("old", [None, "unfinished"])
def test_processes_that_start_at_once_work_on_one_job(tmp_path: Path, old: str | None) -> None:
    """Those of one job go on together, and none of another one beside them."""
    if old is not None:
        open_manifest(tmp_path, {"seed": old})
    code = (
        "import sys, time; from pathlib import Path; from trl_prl.jobs.manifest import claim_share, open_manifest\n"
        "folder, index, seed = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]\n"
        "sys.stdin.readline()\n"
        "try:\n"
        "    begun = open_manifest(folder, {'seed': seed * 5000})\n"
        "    with claim_share(folder, index, begun): print(seed, flush=True); sys.stdin.readline()\n"
        "except ValueError as error: print('refused', flush=True)"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes: Any = [subprocess.Popen([*words, str(k), str(k % 2)], **pipes) for k in range(6)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.stdout.readline().strip() for process in processes]
    for process in processes:
        process.communicate("\n")
    winner = json.loads((tmp_path / MANIFEST).read_text())["seed"][0]
    assert {said[k] for k in range(6) if str(k % 2) != winner} == {"refused"}
    assert winner in said
