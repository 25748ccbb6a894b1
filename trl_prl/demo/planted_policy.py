"""Tokenizer, prompts and base policy of the planted sub-sequence task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .planted import DEFAULT_TASK, END_TEXT, PlantedTask, sample_prover
from .tokenizers import character_tokenizer


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


def planted_dataset(n: int) -> Dataset:
    """Data set of `n` equal prompts, a single start token each: the task has no question.

    Args:
        n (`int`):
            Number of rows.

    Returns:
        [`~datasets.Dataset`]: One column, `"prompt"`.
    """
    from datasets import Dataset

    return Dataset.from_dict({"prompt": [END_TEXT] * n})


def build_planted_tokenizer(task: PlantedTask = DEFAULT_TASK) -> PreTrainedTokenizerFast:
    """Byte-level tokenizer with one letter per token and one special token.

    The special token starts and ends sequences and pads them, as in GPT-2: the vocabulary stays at the paper's 15
    tokens and a policy can sample nothing that the task does not have.

    Args:
        task ([`PlantedTask`], *optional*):
            The task.

    Returns:
        [`~transformers.PreTrainedTokenizerFast`]: Pads on the left.
    """
    letters = [chr(ord("a") + token) for token in range(task.eos)]
    return character_tokenizer([*letters, END_TEXT], bos=END_TEXT, eos=END_TEXT, pad=END_TEXT)


def build_base_policy(
    seed: int,
    task: PlantedTask = DEFAULT_TASK,
    *,
    gamma: float = 5.0,
    num_iterations: int = 50,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    hidden_size: int = 128,
    num_layers: int = 3,
) -> LlamaForCausalLM:
    """Train the base policy: a small Llama imitating a weak prover, one pass over its samples.

    Defaults are those of https://huggingface.co/papers/2410.08146, Appendix B: 50 iterations of batch 64 at learning
    rate 1e-3, that is 3,200 samples of the `gamma = 5` prover. The random state of the caller is left as it was.

    Args:
        seed (`int`):
            Seed of the initial weights and of the samples.
        task ([`PlantedTask`], *optional*):
            The task.
        gamma (`float`, *optional*, defaults to `5.0`):
            Strength of the prover that is imitated.
        num_iterations (`int`, *optional*, defaults to `50`):
            Number of optimizer steps, each on new samples.
        batch_size (`int`, *optional*, defaults to `64`):
            Sequences per optimizer step.
        learning_rate (`float`, *optional*, defaults to `1e-3`):
            Learning rate of Adam.
        hidden_size (`int`, *optional*, defaults to `128`):
            Width of the model; a multiple of 4.
        num_layers (`int`, *optional*, defaults to `3`):
            Depth of the model.

    Returns:
        [`~transformers.LlamaForCausalLM`]: On CPU, float32, in evaluation mode.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=task.vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        max_position_embeddings=task.length + 2,
        bos_token_id=task.eos,
        eos_token_id=task.eos,
        # A padding id here would freeze that token's embedding at zero, and it is the start token: the policy could
        # then never learn its first token.
        pad_token_id=None,
    )
    samples = torch.from_numpy(sample_prover(gamma, num_iterations * batch_size, seed, task))
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).float().train()
        _imitate(model, samples.split(batch_size), task.eos, learning_rate)
    model.generation_config.pad_token_id = task.eos
    return model.eval()


def _imitate(model: Any, batches: Any, eos: int, learning_rate: float) -> None:
    """One optimizer step of supervised training on each batch of sequences."""
    import torch

    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    for batch in batches:
        start = torch.full((len(batch), 1), eos)
        after_end = (batch == eos).cumsum(dim=1) > 1
        labels = torch.cat([torch.full_like(start, -100), batch.masked_fill(after_end, -100)], dim=1)
        loss = model(input_ids=torch.cat([start, batch], dim=1), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
