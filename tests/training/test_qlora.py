"""A 4-bit policy with adapters trains with both trainers, on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer_runs import KINDS, make_trainer, move_away_from_reference, run, train_logs, trainable


@pytest.mark.parametrize("kind", KINDS)
def test_qlora(kind: str, tiny_model_path: str, tmp_path: Path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    peft = pytest.importorskip("peft")
    from transformers import BitsAndBytesConfig

    arguments: dict[str, Any] = {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        ),
        "peft_config": peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    }
    trainer = make_trainer(kind, tiny_model_path, tmp_path, arguments, beta=0.2)
    quantized = [module for module in trainer.model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    assert quantized
    assert all(module.weight.quant_state.quant_type == "nf4" for module in quantized)
    frozen = [module.weight.detach().clone() for module in quantized]
    assert all("lora_" in name for name in trainable(trainer))
    move_away_from_reference(trainer, scale=0.3)
    run(trainer, move=False)
    assert train_logs(trainer)[0]["process/kl_to_go"] != 0.0  # the reference is the 4-bit base without the adapter
    assert all(torch.equal(module.weight, before) for module, before in zip(quantized, frozen, strict=True))
