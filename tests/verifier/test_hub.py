"""Pushed to a hub and had from it again: collected values with their card, and a trained verifier with its card."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from datasets import Dataset, load_dataset
from huggingface_hub import HfApi, constants, hf_api
from huggingface_hub.repocard import RepoCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.benchmarks.arithmetic.task import (
    arithmetic_dataset,
    arithmetic_policy_path,
    arithmetic_reward,
    arithmetic_verifier_path,
)
from tests.commands.test_collect_command import options, write_prompts
from tests.local_hub import LocalHub, local_hub
from tests.tiny_models import make_grpo_args
from tests.verifier_models import arithmetic_rows, build_verifier_model, make_verifier_args
from trl_prl import PAVConfig, PAVTrainer
from trl_prl import __main__ as cli
from trl_prl.verifier.model import ProcessAdvantageVerifier
from trl_prl.verifier.settings import collected_settings
from trl_prl.verifier.trainer import PAVRewardTrainer


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    """A hub of this test, to which the clients in this process talk, with a cache of its own."""
    with local_hub() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", found.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_of_this_test")
        # Clients that keep the address they were built with: one of huggingface_hub's own, one built at first use.
        monkeypatch.setattr(hf_api.api, "endpoint", found.endpoint)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)
        yield found


def test_collected_values_are_pushed_with_their_card(hub: LocalHub, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path, 3)
    assert cli.main(options(tmp_path / "values", prompts, n_cov=1, n_mc=1, push_to_hub="me/values")) == 0
    files = hub.files("dataset", "me/values")
    assert hub.repos["dataset", "me/values"]["private"] is True
    # Neither the shards nor the manifest.
    assert files.keys() == {"README.md", "data/train.parquet"}
    assert files["data/train.parquet"] == (tmp_path / "values" / "data" / "train.parquet").read_bytes()
    card = RepoCard(files["README.md"].decode())
    assert "process-reward" in card.data.tags
    assert card.data.to_dict()["configs"][0]["data_files"] == [{"split": "train", "path": "data/train.parquet"}]
    settings = collected_settings("me/values")
    assert settings == collected_settings(str(tmp_path / "values"))
    assert settings is not None
    assert (settings["splitter"], settings["n_mc"]) == ("newline", 1)
    for name, content in files.items():
        (tmp_path / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clone" / name).write_bytes(content)
    rows = load_dataset(str(tmp_path / "clone"), split="train", cache_dir=str(tmp_path / "datasets"))
    assert {"prompt", "completions", "labels"} <= set(rows.column_names)


def test_a_pushed_verifier_is_had_by_its_id(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = AutoTokenizer.from_pretrained(arithmetic_policy_path())
    args = make_verifier_args(tmp_path / "out", hub_model_id="me/my-pav", prover="mine", max_steps=1)
    trainer = PAVRewardTrainer(
        build_verifier_model(tokenizer), args, train_dataset=arithmetic_rows(8, 0), processing_class=tokenizer
    )
    trainer.train()
    trainer.push_to_hub()
    files = hub.files("model", "me/my-pav")
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= files.keys()
    assert [name for name in files if name.endswith((".bin", ".pt", ".pkl"))] == ["training_args.bin"]  # the trainer's
    card = files["README.md"].decode()
    assert 'ProcessAdvantageVerifier.from_pretrained("me/my-pav")' in card
    assert "process-reward-model" in RepoCard(card).data.tags
    assert card.count("This model was trained with the `PAVRewardTrainer` of `trl-prl`.") == 1

    verifier = ProcessAdvantageVerifier.from_pretrained("me/my-pav")
    assert verifier.settings.prover == "mine"
    prompts, steps = ["1+2="], [["3\n", "#3"]]
    expected = trainer.verifier(prompts, steps)[0]
    assert verifier(prompts, steps)[0] == pytest.approx(expected, abs=1e-6)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    cached = ProcessAdvantageVerifier.from_pretrained("me/my-pav")
    assert cached(prompts, steps)[0] == pytest.approx(expected, abs=1e-6)
    assert not hub.requests


def test_a_pushed_policy_says_how_it_was_made(hub: LocalHub, tmp_path: Path) -> None:
    args = make_grpo_args(
        PAVConfig, tmp_path / "out", hub_model_id="me/my-policy", max_steps=2, alpha=0.7, logging_steps=1
    )
    trainer = PAVTrainer(
        arithmetic_policy_path(),
        arithmetic_reward,
        args,
        Dataset.from_list(arithmetic_dataset("train", 8, seed=0)),
        process_reward=str(arithmetic_verifier_path()),
    )
    trainer.train()
    trainer.push_to_hub(dataset_name="me/problems")
    card = RepoCard(hub.files("model", "me/my-policy")["README.md"].decode())
    assert {"pav", "trl-prl"} <= set(card.data.tags)
    rows = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", card.content, re.MULTILINE))
    assert (rows["alpha"], rows["optimizer steps"], rows["number of prompts"]) == ("0.7", "2", "8")
    assert rows["prover"] == trainer.process_reward.settings.prover
    assert rows["outcome rewards"] == "arithmetic_reward"
    assert "newline" in rows["step splitter"] or "\\n" in rows["step splitter"]
    assert float(rows["reward"]) == pytest.approx(trainer.state.log_history[-2]["reward"], rel=1e-3)
    assert rows["trl_prl"] == version("trl-prl")
    assert "datasets/me/problems" in card.content
    policy = AutoModelForCausalLM.from_pretrained("me/my-policy")
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(policy.state_dict()[name], value)


def test_an_id_that_the_hub_does_not_know_is_explained(hub: LocalHub) -> None:
    with pytest.raises(OSError, match=r"'me/my-pva' is neither a folder here .* nor one that can be had"):
        ProcessAdvantageVerifier.from_pretrained("me/my-pva")
    assert any("/me/my-pva/" in request for request in hub.requests)


def test_an_adapter_is_had_by_its_id_and_refused_without_its_value_head(hub: LocalHub, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    peft = pytest.importorskip("peft")
    trainer = PAVRewardTrainer(
        arithmetic_policy_path(),
        make_verifier_args(tmp_path / "adapter", max_steps=1),
        train_dataset=arithmetic_rows(8, 0),
        peft_config=peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.save_model()
    for name in ("me/good", "me/headless"):
        api = HfApi(endpoint=hub.endpoint)
        api.create_repo(name)
        api.upload_folder(repo_id=name, folder_path=tmp_path / "adapter")
    prompts, steps = ["1+2="], [["3\n", "#3"]]
    loaded = ProcessAdvantageVerifier.from_pretrained("me/good")
    assert loaded(prompts, steps)[0] == pytest.approx(trainer.verifier(prompts, steps)[0], abs=1e-5)
    files, path = hub.files("model", "me/headless"), tmp_path / "weights.safetensors"
    path.write_bytes(files["adapter_model.safetensors"])
    save_file({name: tensor for name, tensor in load_file(path).items() if "score" not in name}, path)
    files["adapter_model.safetensors"] = path.read_bytes()
    with pytest.raises(ValueError, match="lacks the weights"):
        ProcessAdvantageVerifier.from_pretrained("me/headless")
    files = hub.files("model", "me/good")
    files["adapter_model.bin"] = files.pop("adapter_model.safetensors")
    hub.repos["model", "me/pickled"] = hub.repos["model", "me/good"]
    with pytest.raises(OSError, match="pickled weights"):
        ProcessAdvantageVerifier.from_pretrained("me/pickled")
