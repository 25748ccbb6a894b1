"""The PRL release's own inputs and outputs, reproduced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from trl_prl.credit.advantages import prl_advantages
from trl_prl.credit.groups import group_normalise
from trl_prl.credit.kl import kl_to_go


NUM_CASES = 6


def release_step_ids(case: dict) -> torch.Tensor:
    """Steps as the release cuts them: by length, or after each token equal to the delimiter."""
    mask = torch.tensor(case["mask"]).bool()
    if case["split"] == "length":
        ids = torch.arange(mask.shape[1]).expand_as(mask) // case["step_length"]
    else:
        is_delimiter = (torch.tensor(case["token_ids"]) == case["delimiter_id"]) & mask
        ids = is_delimiter.cumsum(1) - is_delimiter.long()
    return torch.where(mask, ids, -1)


@pytest.fixture(scope="module")
def golden(shared_data: Path) -> list[dict]:
    cases = json.loads((shared_data / "golden" / "prl_release.json").read_text())["cases"]
    if len(cases) != NUM_CASES:
        pytest.fail(f"{len(cases)} golden cases; this test names {NUM_CASES}")
    return cases


@pytest.mark.shared_data
@pytest.mark.parametrize("index", range(NUM_CASES))
class TestGolden:
    def test_advantages_equal_the_release(self, golden: list[dict], index: int) -> None:
        case = golden[index]
        step_ids = release_step_ids(case)
        outcome = group_normalise(torch.tensor(case["outcome_rewards"]), case["num_generations"], eps=1e-6)
        logps, ref_logps = torch.tensor(case["logps"]), torch.tensor(case["ref_logps"])
        advantages = prl_advantages(outcome, logps, ref_logps, step_ids, beta=1 / case["eta"], level="step_end")
        expected = torch.where(step_ids >= 0, torch.tensor(case["advantages"]), 0.0)
        torch.testing.assert_close(advantages, expected, atol=1e-5, rtol=0)

    def test_the_correction_is_not_negligible(self, golden: list[dict], index: int) -> None:
        # With a correction below the tolerance, the comparison above would say nothing about it.
        case = golden[index]
        process = kl_to_go(torch.tensor(case["logps"]), torch.tensor(case["ref_logps"]), release_step_ids(case))
        assert process.abs().max() / case["eta"] > 1e-3
