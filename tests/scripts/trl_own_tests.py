"""Run TRL's own GRPO tests on the trainers of this package, and list where they differ from TRL's trainer.

TRL's tests name tiny models and data sets of the Hub. This script fetches nothing: it builds stand-ins of the same
architectures, with the chat templates that TRL ships, in folders of the same names, and runs the tests beside them.
A test that fails on TRL's trainer too (a model without a stand-in, another release) says nothing and is listed so.

    git clone --depth 1 https://github.com/huggingface/trl ../trl     # best at the tag of the installed release
    python tests/scripts/trl_own_tests.py --trl ../trl --out trl-own-tests.json

The trainers stand in the place of `GRPOTrainer` with their own defaults: PRL with its `beta`, PAV with a process
reward that gives each step its length. It exits with 1 where a test differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import trl


ROOT = Path(__file__).resolve().parents[2]
ARMS = ("GRPOTrainer", "PRLTrainer", "PAVTrainer")
HUB_USER = "trl-internal-testing"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", type=Path, required=True, help="checkout of TRL, or a folder with its tests/")
    parser.add_argument("--out", type=Path, help="JSON file for the outcome of each test and trainer")
    parser.add_argument("--keyword", help="only tests that match, as pytest's -k")
    parser.add_argument("--work", type=Path, help="folder for stand-ins and tests; a temporary one by default")
    options = parser.parse_args()
    tests = options.trl / "tests" / "test_grpo_trainer.py"
    if not tests.is_file():
        parser.error(f"--trl {options.trl}: there is no tests/test_grpo_trainer.py in it; give a checkout of TRL.")

    work = options.work or Path(tempfile.mkdtemp(prefix="trl-own-tests-"))
    build_stand_ins(work)
    shutil.copytree(options.trl / "tests", work / "tests", dirs_exist_ok=True)
    outcomes = {arm: run(arm, work, options.keyword) for arm in ARMS}
    differences = report(outcomes)
    if options.out:
        options.out.write_text(json.dumps({"trl": trl.__version__, "outcomes": outcomes}, indent=1) + "\n")
    sys.exit(1 if differences else 0)


def run(arm: str, work: Path, keyword: str | None) -> dict[str, str]:
    """Run the tests with one trainer in the place of `GRPOTrainer`: the outcome by the name of the test."""
    result = work / f"{arm}.xml"
    command = [sys.executable, "-m", "pytest", "tests/test_grpo_trainer.py", "-q", "-p", "no:cacheprovider"]
    command += ["-p", "trl_own_tests_plugin", f"--junitxml={result}", "--timeout=300", "--tb=line"]
    environment = {
        **os.environ,
        "TRL_PRL_TEST_TRAINER": arm,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "scripts"), os.environ.get("PYTHONPATH", "")]),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_DATASETS_CACHE": str(work / "cache"),
    }
    subprocess.run([*command, *(["-k", keyword] if keyword else [])], cwd=work, env=environment, check=False)
    outcomes = {}
    for case in ElementTree.parse(result).iter("testcase"):
        tags = {child.tag for child in case}
        outcome = "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"
        outcomes[f"{case.get('classname', '').rsplit('.', 1)[-1]}::{case.get('name')}"] = outcome
    return outcomes


def report(outcomes: dict[str, dict[str, str]]) -> list[str]:
    """Print a table of counts and the tests on which a trainer of this package differs from TRL's."""
    stock = outcomes["GRPOTrainer"]
    differences = []
    for arm, of_arm in outcomes.items():
        counts = {
            word: sum(outcome == word for outcome in of_arm.values()) for word in ("passed", "failed", "skipped")
        }
        print(f"{arm:<12}", *(f"{count} {word}" for word, count in counts.items()), sep="  ")
        differences += [
            f"{arm}: {test}: {of_arm.get(test, 'absent')}" for test in stock if of_arm.get(test) != stock[test]
        ]
    print("\n".join(["differ from GRPOTrainer:", *differences]) if differences else "no test differs from GRPOTrainer")
    return differences


# --- stand-ins ---------------------------------------------------------------------------------------------------


def build_stand_ins(work: Path) -> None:
    """Write tiny models and data sets into folders named as those of the Hub, relative to `work`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    base = work / HUB_USER
    for name, (family, template, extra) in LANGUAGE_MODELS.items():
        folder = base / name
        if folder.exists():
            continue
        tokenizer = build_chat_tokenizer(template)
        torch.manual_seed(0)
        settings = {**TINY, **extra, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
        settings |= {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
        config = AutoConfig.for_model(family, **settings)
        if "SequenceClassification" in name:
            config.num_labels = 1
            model = AutoModelForSequenceClassification.from_config(config)
        else:
            model = AutoModelForCausalLM.from_config(config)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    build_vision_models(base)
    build_datasets(base)


TINY: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.1,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "output_router_logits": True}
QWEN3 = {"head_dim": 8}
LANGUAGE_MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "tiny-Qwen2ForCausalLM-2.5": ("qwen2", "qwen2_5", {}),
    "tiny-Qwen2ForSequenceClassification-2.5": ("qwen2", "qwen2_5", {}),
    "tiny-Qwen3ForCausalLM": ("qwen3", "qwen3", QWEN3),
    "tiny-Qwen3ForSequenceClassification": ("qwen3", "qwen3", QWEN3),
    "tiny-Qwen3MoeForCausalLM": ("qwen3_moe", "qwen3", {**QWEN3, **EXPERTS}),
    "tiny-LlamaForCausalLM-3.2": ("llama", "llama3_2", {}),
    "tiny-LlamaForSequenceClassification-3.2": ("llama", "llama3_2", {}),
    "tiny-MistralForCausalLM-0.2": ("mistral", "qwen2_5", {}),
    "tiny-Gemma2ForCausalLM": ("gemma2", "gemma", {"head_dim": 8}),
    "tiny-Cohere2ForCausalLM": ("cohere2", "cohere2", {}),
    "tiny-GptOssForCausalLM": ("gpt_oss", "gptoss", {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
}
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def build_chat_tokenizer(template: str, special_tokens: list[str] | None = None) -> Any:
    """Make a small byte-level tokenizer with one of the chat templates that TRL ships."""
    sys.path.insert(0, str(ROOT))
    from tests.tiny_models import build_tokenizer

    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL_TOKENS + (special_tokens or [])})
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    tokenizer.response_template = None
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / f"{template}.jinja").read_text()
    return tokenizer


def build_vision_models(base: Path) -> None:
    """Write a tiny LLaVA-NeXT and a tiny Gemma 3 with their processors."""
    import torch
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3ImageProcessorPil,
        Gemma3Processor,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessorPil,
        LlavaNextProcessor,
    )

    def text_config(tokenizer: Any, **extra: Any) -> dict[str, Any]:
        special = {
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": None,
        }
        return {**TINY, "hidden_size": 16, "vocab_size": len(tokenizer), **special, **extra}

    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision |= {"image_size": 28, "patch_size": 14}
    tokenizer = build_chat_tokenizer("llava_next", ["<image>"])
    torch.manual_seed(0)
    config = LlavaNextConfig(
        text_config={"model_type": "llama", **text_config(tokenizer)},
        vision_config={"model_type": "clip_vision_model", **vision, "projection_dim": 16},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=[[28, 56], [56, 28]],
    )
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=[[28, 56], [56, 28]]
    )
    folder = base / "tiny-LlavaNextForConditionalGeneration"
    LlavaNextForConditionalGeneration(config).save_pretrained(folder)
    LlavaNextProcessor(
        images,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=tokenizer.chat_template,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)

    marks = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = build_chat_tokenizer("gemma3", list(marks.values()))
    names = ("eos_token", "pad_token", "padding_side", "chat_template")
    settings = {name: getattr(tokenizer, name) for name in names}
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, extra_special_tokens=marks, **settings)
    config = Gemma3Config(
        text_config=text_config(tokenizer, head_dim=8, layer_types=["sliding_attention", "full_attention"]),
        vision_config={**vision, "vision_use_head": False},
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    folder = base / "tiny-Gemma3ForConditionalGeneration"
    Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    images = Gemma3ImageProcessorPil(size={"height": 28, "width": 28})
    Gemma3Processor(images, tokenizer, chat_template=tokenizer.chat_template, image_seq_length=4).save_pretrained(
        folder
    )


LINES = [
    "Although practicality beats",
    "Although never is often better",
    "If the implementation is hard",
    "Errors should never pass",
    "Now is better than",
    "There should be one",
    "In the face of ambiguity",
    "Beautiful is better than",
    "Explicit is better than",
    "Flat is better than",
    "Simple is better",
    "Special cases are not",
    "Unless explicitly",
    "Namespaces are one honking",
    "Readability",
    "Sparse is better than",
    "Complex is better than",
]


def build_datasets(base: Path) -> None:
    """Write the data sets `zen`, `zen-image` and `zen-multi-image` with the configurations the tests load."""
    from datasets import Dataset
    from PIL import Image

    def messages(line: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": line}]

    configurations = {
        ("zen", "standard_prompt_only"): lambda line: {"prompt": line},
        ("zen", "conversational_prompt_only"): lambda line: {"prompt": messages(line)},
    }
    picture = Image.new("RGB", (56, 56), (90, 120, 200))
    configurations |= {
        ("zen-image", "conversational_prompt_only"): lambda line: {"prompt": messages(line), "image": picture},
        ("zen-multi-image", "conversational_prompt_only"): lambda line: {
            "prompt": messages(line),
            "images": [picture, picture],
        },
    }
    cards: dict[str, list[str]] = {}
    for (name, configuration), row in configurations.items():
        for split, lines in (("train", LINES), ("test", LINES[:3])):
            path = base / name / configuration / f"{split}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            Dataset.from_list([row(line) for line in lines]).to_parquet(path)
        cards.setdefault(name, []).append(
            f"- config_name: {configuration}\n  data_files:\n"
            + "".join(
                f"  - split: {split}\n    path: {configuration}/{split}.parquet\n" for split in ("train", "test")
            )
        )
    for name, entries in cards.items():
        (base / name / "README.md").write_text("---\nconfigs:\n" + "".join(entries) + "---\n")


if __name__ == "__main__":
    main()
