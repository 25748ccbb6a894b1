"""Tiny random process reward models of every public family, saved as their authors save them.

Config keys, weight names, chat templates and special tokens are those of the published checkpoints; sizes and
vocabularies are not.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForTokenClassification,
)


CORPUS = [
    "Step 1: we add 12 + 30 = 42.\n\nStep 2: we take 4 - 1 = 3.\n\nSo the answer is \\boxed{42}.\n\n",
    "Первые шаги. 数学 😀\n",
    "First we add 12 and 30.\nThen we get 42.\nThe answer is 42.\n",
] * 4

QWEN_TEMPLATE = (
    "{%- if messages[0]['role'] == 'system' %}"
    "{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>system\\nPlease reason step by step, and put your final answer within \\\\boxed{}."
    "<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}{%- if message.role != 'system' or not loop.first %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
LLAMA_TEMPLATE = (
    "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content']|trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system_message = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\n\\n' }}"
    "{{- system_message + '<|eot_id|>' }}"
    "{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' "
    "+ message['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)

_GPT4_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
}


def _byte_level(special: list[str], **roles: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_GPT4_PATTERN), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=360, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **roles)


def qwen_tokenizer(bos_token: str | None = None) -> PreTrainedTokenizerFast:
    """Byte-level BPE with Qwen's tokens and template; a right step is marked with `<extra_0>`."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra_0>"]
    roles = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    tokenizer = _byte_level(special, **roles, **({"bos_token": bos_token} if bos_token else {}))
    tokenizer.chat_template = QWEN_TEMPLATE
    return tokenizer


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with Llama 3's tokens and template, which puts a start token before every text."""
    special = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = _byte_level(special, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>", pad_token="<|eot_id|>")
    start = ("<|begin_of_text|>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[start]
    )
    tokenizer.chat_template = LLAMA_TEMPLATE
    return tokenizer


def mistral_tokenizer() -> PreTrainedTokenizerFast:
    """SentencePiece BPE with byte fallback that adds a start token; ` ки`, ` +` and ` -` are one token each."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split(Regex("▁[^▁]+|\n"), behavior="isolated")
    lines = [" " + line.replace(".", ". ки + - ") for text in CORPUS for line in text.splitlines()]
    trained.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    state = json.loads(trained.to_str())["model"]
    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))])}
    for token in state["vocab"]:
        vocab.setdefault(token, len(vocab))
    merges = [tuple(merge) for merge in state["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", "<s>", "</s>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


def _seeded(make: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()


def _write_qwen(folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor], tokenizer: Any) -> None:
    """Two shards with an index, and a config that names remote code, as the 7B models have them."""
    folder.mkdir(parents=True)
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, part in shards.items():
        save_file({name: weights[name].contiguous() for name in part}, folder / shard, metadata={"format": "pt"})
    weight_map = {name: shard for shard, part in shards.items() for name in part}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_qwen2_rm.py").write_text("raise RuntimeError('remote code was run')\n")
    tokenizer.save_pretrained(folder)


def _qwen_config(tokenizer: Any, **keys: Any) -> dict[str, Any]:
    fixed = {
        "model_type": "qwen2",
        "attention_dropout": 0.0,
        "bos_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "hidden_act": "silu",
        "max_window_layers": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_cache": False,
        "use_sliding_window": False,
        "vocab_size": len(tokenizer) + 8,
    }
    return {**SIZES, **fixed, **keys}


def save_qwen(folder: Path, **sizes: int) -> Path:
    """Qwen2.5-Math-PRM: `model.*`, `score.0.*`, `score.2.*`, and an `lm_head` that is not used."""
    tokenizer = qwen_tokenizer()
    config = _qwen_config(
        tokenizer,
        **sizes,
        architectures=["Qwen2ForProcessRewardModel"],
        auto_map={
            "AutoConfig": "configuration_qwen2_rm.Qwen2RMConfig",
            "AutoModel": "modeling_qwen2_rm.Qwen2ForProcessRewardModel",
        },
    )
    model = _seeded(lambda: Qwen2ForCausalLM(Qwen2Config(**{**config, "torch_dtype": None})))
    size = config["hidden_size"]
    head = _seeded(lambda: nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, 2)))
    weights = {**model.state_dict(), **{f"score.{name}": 2 * value for name, value in head.state_dict().items()}}
    _write_qwen(folder, config, weights, tokenizer)
    return folder


def save_skywork(folder: Path) -> Path:
    """Skywork o1 Open PRM: a causal language model with `v_head.summary.*` beside it."""
    tokenizer = qwen_tokenizer(bos_token="<|endoftext|>")
    config = _qwen_config(
        tokenizer,
        architectures=["Qwen2ForPrmModel"],
        auto_map={"AutoModel": "modeling_qwen2_rm.Qwen2ForPrmModel"},
    )
    model = _seeded(lambda: Qwen2ForCausalLM(Qwen2Config(**{**config, "torch_dtype": None})))
    head = _seeded(lambda: nn.Linear(config["hidden_size"], 1))
    weights = {**model.state_dict(), **{f"v_head.summary.{name}": value for name, value in head.state_dict().items()}}
    _write_qwen(folder, config, weights, tokenizer)
    return folder


def save_math_shepherd(folder: Path) -> Path:
    """Math-Shepherd: a Mistral language model, of which only its name says what it is."""
    tokenizer = mistral_tokenizer()
    config = MistralConfig(**SIZES, vocab_size=len(tokenizer), sliding_window=None, bos_token_id=1, eos_token_id=2)
    _seeded(lambda: MistralForCausalLM(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_rlhflow(folder: Path) -> Path:
    """RLHFlow: a Llama language model, of which only its name says what it is."""
    tokenizer = llama_tokenizer()
    config = LlamaConfig(**SIZES, vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=3)
    _seeded(lambda: LlamaForCausalLM(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_trl(folder: Path, id2label: dict[int, str] | None = None) -> Path:
    """A checkpoint of TRL's `PRMTrainer`: token classification with two labels."""
    tokenizer = qwen_tokenizer()
    config = Qwen2Config(**SIZES, vocab_size=len(tokenizer), num_labels=2, pad_token_id=tokenizer.pad_token_id)
    if id2label is not None:
        config.id2label, config.label2id = id2label, {name: i for i, name in id2label.items()}
    _seeded(lambda: Qwen2ForTokenClassification(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_implicit(folder: Path) -> Path:
    """An implicit PRM, and its reference in the folder `reference` beside it."""
    tokenizer = qwen_tokenizer()
    config = Qwen2Config(**SIZES, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    for seed, path in ((0, folder.parent / "reference"), (1, folder)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            Qwen2ForCausalLM(config).eval().save_pretrained(path)
        tokenizer.save_pretrained(path)
    return folder


# Last parts of the hub ids, by which two of the families are recognised.
FOLDER_NAMES = {
    "qwen": "Qwen2.5-Math-PRM-7B",
    "math-shepherd": "math-shepherd-mistral-7b-prm",
    "rlhflow": "Llama3.1-8B-PRM-Deepseek-Data",
    "skywork": "Skywork-o1-Open-PRM-Qwen-2.5-1.5B",
    "trl": "my-trl-prm",
    "implicit": "EurusPRM-Stage2",
}
_SAVERS = {
    "qwen": save_qwen,
    "math-shepherd": save_math_shepherd,
    "rlhflow": save_rlhflow,
    "skywork": save_skywork,
    "trl": save_trl,
    "implicit": save_implicit,
}


def save_all(folder: Path) -> dict[str, str]:
    """Save one model of every family.

    Args:
        folder (`Path`):
            Where.

    Returns:
        `dict[str, str]`: By family, what `load_process_reward` takes.
    """
    paths = {name: str(save(folder / name / FOLDER_NAMES[name])) for name, save in _SAVERS.items()}
    # beta is larger than usual, so that differences show.
    paths["implicit"] += f",reference={folder / 'implicit' / 'reference'},beta=0.05"
    return paths
