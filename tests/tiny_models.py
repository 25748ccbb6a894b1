"""Tiny real models, tokenizers and arguments for trainer tests.

Everything is built from scratch in memory within a second, so that tests train real `transformers` models through
real TRL trainers and never touch a network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
import transformers
from datasets import Dataset
from packaging.version import Version
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, RLOOConfig


ArgsT = TypeVar("ArgsT", GRPOConfig, RLOOConfig)

PAD_TOKEN = "<|pad|>"
START_TOKEN = "<|start|>"
EOS_TOKEN = "<|end|>"

# The text is written so that training learns the merges step splitters stumble over: a delimiter glued to
# punctuation (".\n\n", ":\n\n"), runs of line breaks, and numbers. Multi-byte characters appear too rarely to be
# merged, so each of them is spread over several tokens.
TRAINING_TEXT = (
    "Let us add the numbers.\n\nFirst we take 12 + 7 = 19.\n\nThen we take 19 - 4 = 15.\n\nSo the answer is 15.\n"
    "Step 1: we know the sum.\nStep 2: we know the difference.\n\n\nThe steps are:\n\n"
    "- add the first\n- take the rest\n\n"
    "Hence the answer is:\n\n$$x + y = 3$$\n\nand the final answer is \\boxed{42}.\n\n"
)

# Like the splits of current tokenizers (and unlike GPT-2's), punctuation keeps the line breaks that follow it.
PRE_TOKEN_PATTERN = r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"

CHAT_TEMPLATE = (
    "{%- if tools %}<|start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|end|>\n{% endif -%}"
    "{%- for message in messages %}"
    "<|start|>{{ message.role }}\n"
    "{{ message.content }}"
    "{%- for call in message.tool_calls or [] %}"
    '<call>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</call>'
    "{%- endfor %}"
    "<|end|>\n"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}<|start|>assistant\n{% endif -%}"
)

needs_response_templates = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.13"),
    reason="older releases of transformers read tool calls by a schema, which the chat template here has none of",
)

# How `transformers` reads a generated turn of the template above back into a message with tool calls.
RESPONSE_TEMPLATE: dict[str, Any] = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|start|>assistant\n",
    "fields": {
        "tool_calls": {
            "open": "<call>",
            "close_pattern": r"</call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<\|end\|>\s*", "content": "text"},
    },
}


def build_tokenizer(vocab_size: int = 384) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with a chat template that renders tools.

    Args:
        vocab_size (`int`, *optional*, defaults to `384`):
            Upper bound of the vocabulary: 256 bytes, 3 special tokens, the rest merges.

    Returns:
        `PreTrainedTokenizerFast`: Tokenizer with padding on the left, as generation needs it.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKEN_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD_TOKEN, START_TOKEN, EOS_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Twice, so that every pair occurs at least twice and can be merged.
    tokenizer.train_from_iterator([TRAINING_TEXT] * 2, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD_TOKEN,
        eos_token=EOS_TOKEN,
        padding_side="left",
        truncation_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.response_template = RESPONSE_TEMPLATE
    return fast


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> LlamaForCausalLM:
    """Build a random two-layer Llama of about 40 thousand parameters for a tokenizer.

    The weights are random, but the end-of-sequence token and a few delimiters are made likely, so that completions
    have several steps and different lengths.

    Args:
        tokenizer (`PreTrainedTokenizerFast`):
            Tokenizer that fixes the vocabulary and the special tokens.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the weights. The global random state is left as it was.

    Returns:
        `LlamaForCausalLM`: Model in float32 on the CPU.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        # Larger than usual, so that an untrained policy is not uniform and its samples differ in probability.
        initializer_range=0.1,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    likely = [tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(["Ċ", "ĊĊ", ".ĊĊ"])]
    with torch.no_grad():
        # A direction shared by all inputs survives the two layers, and the likely tokens' outputs point along it.
        model.model.embed_tokens.weight += 0.1
        model.lm_head.weight[likely] += 0.15
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


def save_tiny_model(path: Path, seed: int = 0) -> Path:
    """Save a tiny model with its tokenizer, because TRL reloads the reference model from its path.

    Args:
        path (`Path`):
            Folder to write to; created if absent.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the weights.

    Returns:
        `Path`: The folder.
    """
    tokenizer = build_tokenizer()
    build_model(tokenizer, seed=seed).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def prompt_dataset(num_rows: int = 16, conversational: bool = False) -> Dataset:
    """Build a small dataset of additions with prompts of different lengths and the column `answer`.

    Args:
        num_rows (`int`, *optional*, defaults to `16`):
            Number of rows.
        conversational (`bool`, *optional*, defaults to `False`):
            Whether prompts are lists of messages instead of plain text.

    Returns:
        `Dataset`: Columns `prompt` and `answer`.
    """
    prompts: list[Any] = []
    for row in range(num_rows):
        text = f"Add {row} + {row * 3}" + " and then add 1" * (row % 3) + ".\n\n"
        prompts.append([{"role": "user", "content": text}] if conversational else text)
    return Dataset.from_dict({"prompt": prompts, "answer": [str(row * 4 + row % 3) for row in range(num_rows)]})


def token_reward(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    """Reward function that differs between almost any two completions: the share of even token ids, minus length.

    Args:
        completion_ids (`list[list[int]]`):
            Sampled ids, one list per completion.
        **kwargs:
            The rest of TRL's reward-function arguments, unused.

    Returns:
        `list[float]`: One reward per completion, from -1 to 1.
    """
    return [
        sum(token % 2 == 0 for token in ids) / max(len(ids), 1) - len(ids) / 1000 + (sum(ids) % 7) / 100
        for ids in completion_ids
    ]


def make_grpo_args(cls: type[ArgsT], output_dir: Path | str, **overrides: Any) -> ArgsT:
    """Build training arguments that are fast on a CPU: two optimizer steps of one group of four completions.

    Args:
        cls (`type`):
            Config class: [`~trl.GRPOConfig`], [`~trl.RLOOConfig`] or a subclass.
        output_dir (`Path` or `str`):
            Folder of the run.
        **overrides:
            Fields that replace or extend the defaults.

    Returns:
        The config.
    """
    fields: dict[str, Any] = {
        "output_dir": str(output_dir),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 12,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "max_steps": 2,
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 7,
    }
    return cls(**{**fields, **overrides})
