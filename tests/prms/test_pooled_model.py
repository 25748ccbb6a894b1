"""A verifier behind vLLM's pooling runner, here a small server that answers as vLLM does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks.arithmetic.task import arithmetic_verifier_path
from tests.json_server import JsonServer, running
from trl_prl import load_process_reward
from trl_prl.verifier.model import ProcessAdvantageVerifier


PROMPTS, STEPS = ["1+2-3+4=", "9-8+7+6="], [["3\n", "0\n", "#4"], []]


class PoolingServer(JsonServer):
    """The shipped verifier's logits of every token of a text."""

    def __init__(self) -> None:
        super().__init__()
        self.names = ["elsewhere/" + Path(arithmetic_verifier_path()).name]
        self.model = ProcessAdvantageVerifier.from_pretrained(arithmetic_verifier_path()).model.eval()

    def reply(self, body: dict[str, Any]) -> dict[str, Any]:
        if not body:
            return {"data": [{"id": name} for name in self.names]}
        ids = torch.tensor([body["input"]])
        with torch.no_grad():
            logits = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].tolist()
        return {"data": [{"index": 0, "data": logits}]}


@pytest.fixture(scope="module")
def server() -> Iterator[PoolingServer]:
    with running(PoolingServer()) as server:
        yield server


def served(server: PoolingServer, **options: Any) -> Any:
    return load_process_reward(arithmetic_verifier_path(), vllm=server.url.removesuffix("/v1"), **options)


def test_values_are_those_of_the_model_in_this_process(server: PoolingServer) -> None:
    expected = load_process_reward(arithmetic_verifier_path()).score_solutions(PROMPTS, STEPS)  # type: ignore[attr-defined]
    server.plan = [{}, 503, "hang up", {"data": []}]
    found = served(server, device="cpu", max_batch_tokens=20).score_solutions(PROMPTS, STEPS)
    assert found[0] == pytest.approx(expected[0], abs=1e-5)
    assert [len(row) for row in found[1]] == [3, 0]
    assert found[1][0] == pytest.approx(expected[1][0], abs=1e-5)
    asked = {key: server.bodies[-1][key] for key in ("model", "task", "use_activation")}
    assert asked == {"model": server.names[0], "task": "token_classify", "use_activation": False}


def test_two_tokens_are_the_labels_whatever_the_config_says(prm_paths: dict[str, str], tmp_path: Path) -> None:
    here: Any = load_process_reward(prm_paths["rlhflow"])
    shutil.copytree(prm_paths["rlhflow"], folder := tmp_path / Path(prm_paths["rlhflow"]).name)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "id2label": {0: "LABEL_0"}}))
    with running(PoolingServer()) as server:
        server.model, server.names = here.model, [folder.name]
        there = load_process_reward(folder, vllm=server.url.removesuffix("/v1"))
        assert there(PROMPTS, STEPS)[0] == pytest.approx(here(PROMPTS, STEPS)[0], abs=1e-5)


def test_a_server_of_another_model_is_refused(server: PoolingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "names", ["org/other", "org/third"])
    with pytest.raises(ValueError, match=r"Got the model '.*' at http.*, where 'org/other' and 'org/third' is served"):
        served(server)


def test_another_model_of_the_same_name_is_noticed(server: PoolingServer) -> None:
    verifier = served(server)
    server.plan = [{"data": [{"data": [[0.0, 1.0]]}]}] * 9
    with pytest.raises(ValueError, match=r"with 1 rows of \[2\] numbers, not with 1 logits of each token"):
        verifier(PROMPTS[:1], STEPS[:1])
    server.plan = [{"data": []}]
    assert len(served(server)(PROMPTS, STEPS)[0]) == 3


def test_options_that_nothing_heeds_are_refused(server: PoolingServer) -> None:
    with pytest.raises(ValueError, match="Got the option 'colour', which nothing would heed"):
        served(server, colour="red")


def test_families_that_vllm_cannot_run_are_refused(prm_paths: dict[str, str]) -> None:
    for family in ("skywork", "implicit"):
        with pytest.raises(ValueError, match="whose scores vLLM's pooling runner cannot compute"):
            load_process_reward(f"{prm_paths[family]},vllm=http://127.0.0.1:1")
