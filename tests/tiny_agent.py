"""A tiny model that calls a tool in its turns, for tests of agents."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AddedToken, LlamaConfig, LlamaForCausalLM
from transformers.utils import get_json_schema

from tests.tiny_models import build_tokenizer


def save_tiny_agent(path: Path, tool: Callable[..., Any], question: str, highest: int) -> Path:
    """Teach a tiny Llama to call a tool with a random digit in every turn until it is right, and save it.

    Args:
        path (`Path`):
            Folder to write to.
        tool (`Callable`):
            The tool; it takes one whole number, `number`.
        question (`str`):
            The user's message.
        highest (`int`):
            Largest digit to call it with, from 1 to 9.

    Returns:
        `Path`: The folder.
    """
    begin, end = f'<call>{{"name": "{tool.__name__}", "arguments": {{"number": ', "}}</call>"
    tokenizer = build_tokenizer()
    # One token for what does not vary, the description of the tool above all, so that sequences are short.
    schema = get_json_schema(tool)
    whole = (begin, end, json.dumps(schema), question)
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in whole])
    head = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tools=[schema], tokenize=False, add_generation_prompt=True
    )
    numbers, games = random.Random(0), []
    for _ in range(16):
        texts = [head]
        for answer in ("too low", "too high", "right"):
            number = numbers.randint(1, highest)
            texts.append(f"{begin}{number}{end}<|end|>")
            texts.append(f"\n<|start|>tool\n{number} is {answer}.<|end|>\n<|start|>assistant\n")
        games.append([tokenizer(text, add_special_tokens=False).input_ids for text in [*texts, "Done.<|end|>"]])
    model = _taught(tokenizer, games)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def _taught(tokenizer: Any, games: list[list[list[int]]]) -> LlamaForCausalLM:
    """A model that writes every other of the pieces of a game, from the second on."""
    rows = [torch.tensor([token for piece in game for token in piece]) for game in games]
    labels = [
        torch.tensor([token if i % 2 else -100 for i, piece in enumerate(game) for token in piece]) for game in games
    ]
    ids = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
    targets = pad_sequence(labels, batch_first=True, padding_value=-100)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024,
                pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
            )
        )  # fmt: skip
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(60):
            chosen = torch.randint(len(ids), (4,))
            loss = model(input_ids=ids[chosen], labels=targets[chosen]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model
