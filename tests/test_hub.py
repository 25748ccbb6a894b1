"""Pushed to a hub and had from it again: collected values with their card, and a trained verifier with its card."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from datasets import load_dataset
from huggingface_hub import constants
from huggingface_hub.repocard import RepoCard
from transformers import AutoTokenizer

from tests.local_hub import LocalHub, local_hub
from tests.test_collect_command import options, write_prompts
from tests.verifier_models import arithmetic_rows, build_verifier_model, make_verifier_args
from trl_prl import cli
from trl_prl.pav_reward_trainer import PAVRewardTrainer
from trl_prl.tasks.arithmetic import arithmetic_policy_path
from trl_prl.verifier import ProcessAdvantageVerifier


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


def test_an_id_that_the_hub_does_not_know_is_explained(hub: LocalHub) -> None:
    with pytest.raises(OSError, match=r"'me/my-pva' is neither a folder here .* nor a model"):
        ProcessAdvantageVerifier.from_pretrained("me/my-pva")
    assert any("/me/my-pva/" in request for request in hub.requests)
