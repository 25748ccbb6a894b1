"""Convert a policy that `PRLTrainer` trained to GGUF with llama.cpp's own converter, read it back and compare.

The converter is `convert_hf_to_gguf.py` of a checkout of llama.cpp; the source archive of `llama-cpp-python` on PyPI
has one below `vendor/`. It and transformers read GGUF with `pip install gguf sentencepiece`.

    python tests/scripts/gguf_round_trip.py --converter ../llama.cpp/convert_hf_to_gguf.py --model CHAT_MODEL

It exits with 1 where the logits of the two differ by more than 1e-4. The tokenizer of the model must be one that the
converter knows, so random tiny models do not do.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_prl import PRLConfig, PRLTrainer


def length_reward(completions: list[list[dict[str, str]]], **kwargs: object) -> list[float]:
    return [float(len(completion[0]["content"])) for completion in completions]


def train(model: str, folder: Path) -> None:
    """Train for two optimizer steps, and save the policy."""
    prompts = [[{"role": "user", "content": f"What is {k} plus {k}?"}] for k in range(4)]
    config = PRLConfig(
        str(folder), max_steps=2, learning_rate=1e-4, beta=0.005, per_device_train_batch_size=4, num_generations=4,
        max_completion_length=16, save_strategy="no", report_to="none", use_cpu=True, bf16=False,
        model_init_kwargs={"dtype": "float32"},
    )  # fmt: skip
    trainer = PRLTrainer(model, length_reward, config, train_dataset=Dataset.from_dict({"prompt": prompts}))
    trainer.train()
    trainer.save_model()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--converter", type=Path, required=True, help="convert_hf_to_gguf.py of llama.cpp")
    parser.add_argument("--model", required=True, help="folder or name of a chat model")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train(args.model, folder)
        convert = [sys.executable, str(args.converter), name, "--outtype", "f32", "--outfile", f"{name}/policy.gguf"]
        subprocess.run(convert, check=True, capture_output=True)
        saved = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
        read = AutoModelForCausalLM.from_pretrained(name, gguf_file="policy.gguf", dtype=torch.float32)
        ids = AutoTokenizer.from_pretrained(name)("Two plus two is four.", return_tensors="pt").input_ids
        with torch.no_grad():
            before = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)(ids).logits
            learned, error = (float((saved(ids).logits - other).abs().max()) for other in (before, read(ids).logits))
    print(f"largest difference of logits: {learned:.2e} by training, {error:.2e} by GGUF")
    return int(error > 1e-4 or learned == 0)


if __name__ == "__main__":
    sys.exit(main())
