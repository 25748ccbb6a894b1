"""Options that nothing would heed next to others are refused by name, and heeded ones are not."""

from __future__ import annotations

from typing import Any

import pytest

from trl_prl.collection.config import CollectConfig
from trl_prl.commands import evaluate_verifier, plan, score, split_report
from trl_prl.evaluation.config import EvaluateConfig
from trl_prl.search.config import SearchConfig
from trl_prl.verifier.config import PAVRewardConfig


JOB = {"model": "m", "dataset": "d", "output_dir": "o"}
SEARCH = {**JOB, "process_reward": "v"}
SERVER = {"generator": "vllm-server", "endpoints": ["http://localhost:8000"]}
SAMPLES = {"samples": ["s.jsonl"], "output_dir": "o"}
JUDGED = {"verifier": "v", "dataset": "d", "output_dir": "o"}
MAKERS: dict[str, Any] = {
    "collect": lambda **given: CollectConfig(**{**JOB, **given}),
    "search": lambda **given: SearchConfig(**{**(JOB if given.get("method") == "majority_vote" else SEARCH), **given}),
    "evaluate": lambda **given: EvaluateConfig(**{**(SAMPLES if "samples" in given else JOB), **given}),
    "score": lambda **given: score.Options(**{"verifier": "v", "file": "f", "output": "o.jsonl", **given}),
    "evaluate-verifier": lambda **given: evaluate_verifier.Options(**{**JUDGED, **given}),
    "split-report": lambda **given: split_report.Options(**{"tokenizer": "t", "file": "f", **given}),
    "plan": lambda **given: plan.Options(**given),
    "verifier": lambda **given: PAVRewardConfig(**{"output_dir": "o", "use_cpu": True, "bf16": False, **given}),
}


@pytest.mark.parametrize(
    ("command", "around", "unheeded", "setting"),
    [
        *[
            (command, {}, {name: value}, "engine")
            for command in ("collect", "search", "evaluate", "score")
            for name, value in (("num_workers", 2), ("gpus_per_worker", 1.0), ("ray_address", "auto"))
        ],
        ("collect", {}, {"tolerance": 0.1}, "adaptive"),
        ("collect", {}, {"rule_confidence": 0.9}, "adaptive"),
        ("collect", {}, {"n_probe": 8}, "strategy"),
        ("verifier", {}, {"step_length": 64}, "step_splitter"),
        *[(command, {}, {"step_length": 64}, "splitter") for command in ("collect", "search", "split-report", "plan")],
        ("collect", SERVER, {"dtype": "bfloat16"}, "generator"),
        ("search", SERVER, {"max_batch_tokens": 9}, "generator"),
        ("search", {"generator": "vllm"}, {"max_batch_tokens": 9}, "generator"),
        ("evaluate", SERVER, {"api_key": "k"}, "generator"),
        *[
            ("search", {"method": "best_of_n"}, {name: value}, "method")
            for name, value in {
                "expansions": 2, "max_tries": 2, "min_advantage": 0.0, "max_steps": 3, "max_generated_tokens": 9,
                "max_seconds": 1.0, "chunk_tokens": 8, "ceiling": False, "save_trees": 1, "answer": "m:f",
            }.items()
        ],
        *[
            ("search", {"method": "beam"}, {name: value}, "method")
            for name, value in {
                "aggregation": "min", "aggregation_temperature": 1.0, "answer": "m:f", "max_tries": 2,
                "min_advantage": 0.0,
            }.items()
        ],
        ("search", {"method": "rejection"}, {"expansions": 2}, "method"),
        ("search", {"method": "best_of_n"}, {"aggregation_temperature": 1.0}, "aggregation"),
        *[
            ("search", {"method": "majority_vote"}, {name: value}, "method")
            for name, value in {
                "process_reward": "v", "advantage_reward": "v", "alpha": 0.5, "best_of_k": 4, "rank_by": "values",
                "initial_value": 0.5, "aggregation": "min",
            }.items()
        ],
        ("search", {"method": "best_of_n"}, {"best_of_k": 4}, "alpha"),
        ("search", {"alpha": 0.0}, {"best_of_k": 4}, "alpha"),
        ("search", {"rank_by": "values"}, {"best_of_k": 4}, "rank_by"),
        ("search", {"rank_by": "values"}, {"alpha": 0.2}, "rank_by"),
        ("search", {"rank_by": "advantages"}, {"alpha": 0.2}, "rank_by"),
        ("search", {"rank_by": "values"}, {"advantage_reward": "v"}, "rank_by"),
        *[
            ("evaluate", SAMPLES, {name: value}, "samples")
            for name, value in {
                "dataset": "d", "dataset_config": "c", "dataset_split": "test", "n": 4, "max_completion_length": 8,
                "temperature": 0.5, "top_p": 0.9, "top_k": 5, "stop": ["."], "tokenizer": "t", "adapter": "a",
                "generator": "vllm", "trust_remote_code": True,
            }.items()
        ],
        ("evaluate", SAMPLES, {"dtype": "bfloat16"}, "verifiers"),
        ("evaluate", SAMPLES, {"max_batch_tokens": 9}, "verifiers"),
        ("evaluate", {}, {"recheck": True}, "samples"),
        ("evaluate", {}, {"answer_field": "a"}, "samples"),
        ("evaluate", {}, {"id_column": "id"}, "samples"),
        ("evaluate", {}, {"score_fields": ["s"]}, "samples"),
        ("evaluate", {}, {"aggregations": ["min"]}, "verifiers"),
        ("evaluate", {}, {"bootstrap_draws": 10}, "bootstrap_pass_at_k"),
        ("evaluate-verifier", {"dataset": "processbench"}, {"tune_fraction": 0.5}, "dataset"),
        ("evaluate-verifier", {"dataset": "processbench"}, {"dataset_split": "test"}, "dataset"),
        ("evaluate-verifier", {"dataset": "processbench:folder"}, {"dataset_config": "c"}, "dataset"),
        ("evaluate-verifier", {"error_threshold": 0.5}, {"tune_fraction": 0.5}, "error_threshold"),
        ("evaluate", {**SAMPLES, "answer_pattern": "a"}, {"answer_field": "a"}, "answer_pattern"),
        ("plan", {}, {"splitter": "sentence"}, "samples"),
        ("plan", {"samples": "s", "tokenizer": "t"}, {"num_steps": 3.0}, "samples"),
    ],
)  # fmt: skip
def test_what_nothing_would_heed_is_refused(
    command: str, around: dict[str, Any], unheeded: dict[str, Any], setting: str
) -> None:
    (name,) = unheeded
    MAKERS[command](**around)
    with pytest.raises(ValueError, match=rf"`{name}` was set to .* with `{setting}=.*Leave `{name}` out") as raised:
        MAKERS[command](**around, **unheeded)
    assert f"or change `{setting}`" in str(raised.value)


@pytest.mark.parametrize(
    ("command", "given"),
    [
        ("collect", {"engine": "ray", "num_workers": 2, "gpus_per_worker": 1.0, "ray_address": "auto"}),
        ("collect", {"adaptive": True, "tolerance": 0.1, "rule_confidence": 0.9, "n_probe": 8}),
        ("collect", {"strategy": "first_pit", "n_probe": 8, "splitter": "fixed", "step_length": 8}),
        # A model of this process draws the seeds.
        ("collect", {**SERVER, "seed_model": "s", "dtype": "bfloat16", "max_batch_tokens": 9}),
        ("collect", {"generator": "vllm", "dtype": "bfloat16"}),
        ("search", {"method": "best_of_n", "alpha": 0.5, "best_of_k": 4, "advantage_reward": "v"}),
        ("search", {"method": "best_of_n", "aggregation": "soft_min", "aggregation_temperature": 1.0}),
        ("search", {"method": "weighted_vote", "aggregation": "min", "answer": "m:f"}),
        ("search", {"method": "majority_vote", "answer": "m:f"}),
        # Steps are kept by their progress, whatever ranks those that were rejected.
        ("search", {"method": "rejection", "rank_by": "values", "best_of_k": 4, "max_tries": 2}),
        ("search", {"rank_by": "advantages", "advantage_reward": "v", "best_of_k": 4}),
        ("evaluate", {**SERVER, "verifiers": ["v"], "dtype": "bfloat16", "max_batch_tokens": 9}),
        ("evaluate", {**SAMPLES, "verifiers": ["v"], "dtype": "bfloat16", "aggregations": ["min"]}),
        ("evaluate", {**SAMPLES, "aggregations": ["min"], "recheck": True, "id_column": "id", "max_rows": 3}),
        ("evaluate", {"bootstrap_pass_at_k": True, "bootstrap_draws": 10, "adapter": "a"}),
        ("evaluate-verifier", {"tune_fraction": 0.5, "dataset_split": "test"}),
        ("plan", {"samples": "s", "tokenizer": "t", "splitter": "fixed", "step_length": 8}),
    ],
)
def test_what_is_heeded_is_taken(command: str, given: dict[str, Any]) -> None:
    MAKERS[command](**given)


@pytest.mark.parametrize("given", [{"adapter": "a"}, SERVER])
def test_what_all_models_would_share_is_refused_with_several(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="with 2 models, which would be that of each of them"):
        EvaluateConfig(models=["a", "b"], dataset="d", output_dir="o", **given)
    EvaluateConfig(models=["a"], dataset="d", output_dir="o", **given)
