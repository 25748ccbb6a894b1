"""One short run on a global batch that does not depend on the number of processes; what came of it goes to a file.

torchrun --nproc_per_node 2 tests/scripts/distributed_train.py --model DIR --output-dir DIR

Every process samples its rows of the same fixed completions: row j of a prompt's group is a fixed continuation. The
one group of a batch spans all processes, so statistics of a part of it would show.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from tests.tiny_models import EOS_TOKEN, build_tokenizer, prompt_dataset, token_reward
from tests.trainer_runs import KINDS, make_trainer, move_away_from_reference, text_values, train_logs, trainable
from tests.verifier_models import build_verifier_model
from trl_prl.prms.refresh import OnlineVerifier


GLOBAL_BATCH = 8
GROUP = 8
PARTS = ("Let us add.\n", "First 3\n", "So 19.\n\n", "We know the sum\n", "The answer is 4", "\n", "Take 7 from 9.\n")


def global_rows(trainer: Any, num_rows: int) -> range:
    """Numbers of this process's rows in the batch of all processes."""
    first = trainer.accelerator.process_index * num_rows
    return range(first, first + num_rows)


def fixed_rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
    tokenizer = trainer.processing_class
    completion_ids = []
    for row, prompt in zip(global_rows(trainer, len(prompts)), prompts, strict=True):
        start, length = len(prompt) + 2 * (row % GROUP), 1 + (row + len(prompt)) % 5
        text = "".join(PARTS[(start + i) % len(PARTS)] for i in range(length)) + (EOS_TOKEN if row % 3 else "")
        completion_ids.append(tokenizer(text)["input_ids"])
    return {
        "prompt_ids": [tokenizer(prompt)["input_ids"] for prompt in prompts],
        "completion_ids": completion_ids,
        "logprobs": None,
    }


def values_with_metrics(prompts: list[str], steps: list[list[str]], **columns: Any) -> list[list[float | None]]:
    """Some steps cannot be scored; one metric comes from every process, the other only from that of a certain row."""
    log_metric, log_extra = columns["log_metric"], columns["log_extra"]
    log_metric("steps_seen", sum(len(row) for row in steps) / len(steps))
    if any(text.startswith("Take") for row in steps for text in row[:1]):
        log_metric("starts_with_take", 0.5)
    log_extra("answer_length", [len(answer) for answer in columns["answer"]])
    return [
        [None if text == "\n" else value for text, value in zip(row, values, strict=True)]
        for row, values in zip(steps, text_values(prompts, steps), strict=True)
    ]


def half_unscored(prompts: list[str], steps: list[list[str]], **columns: Any) -> list[list[float | None]]:
    """The rows of the second half of the global batch cannot be scored: a second process has nothing to learn from."""
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    rows = range(rank * len(prompts), (rank + 1) * len(prompts))
    return [
        list(values) if row < GLOBAL_BATCH // 2 else [None] * len(values)
        for row, values in zip(rows, text_values(prompts, steps), strict=True)
    ]


def failing(prompts: list[str], steps: list[list[str]], **columns: Any) -> list[list[float]]:
    """Fails in the second process alone."""
    if torch.distributed.get_rank() == 1:
        raise RuntimeError("The verifier of the second process is gone.")
    return text_values(prompts, steps)


def online_verifier() -> OnlineVerifier:
    """A verifier that is refreshed after every rollout; the adapter that the first process begins with counts."""
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    torch.manual_seed(rank)
    tokenizer = build_tokenizer()
    return OnlineVerifier(
        # Three rollouts a step: two for the first process, one for the second.
        build_verifier_model(tokenizer),
        tokenizer,
        lora_rank=4,
        refresh_every=1,
        refresh_batch=3,
        refresh_steps=2,
    )


PROCESS_REWARDS = {"pav": values_with_metrics, "pav-half": half_unscored, "pav-failing": failing}
ONLINE = "pav-online"


def make_fixed_trainer(
    kind: str,
    model: str,
    output_dir: Path,
    num_processes: int,
    arguments: dict[str, Any] | None = None,
    **overrides: Any,
) -> Any:
    """Build a recording trainer for a share of the global batch.

    Args:
        kind (`str`):
            `"prl"`, one of `PROCESS_REWARDS`, `ONLINE`, or `"pav-..."` with a `process_reward` among the arguments.
        model (`str`):
            Folder of the policy.
        output_dir (`Path`):
            Folder of the run.
        num_processes (`int`):
            Number of processes the global batch is shared out to.
        arguments (`dict`, *optional*):
            Further arguments of the trainer.
        **overrides:
            Configuration fields, such as those that say how the model is spread over the processes.

    Returns:
        `PRLTrainer` or `PAVTrainer`: The trainer.
    """
    given: dict[str, Any] = {"rollout_func": fixed_rollout, **(arguments or {})}
    if kind in PROCESS_REWARDS:
        given["process_reward"] = PROCESS_REWARDS[kind]
    if kind == ONLINE:
        given["process_reward"] = online_verifier()
    if kind != "prl":
        overrides |= {"calibration_steps": 1, "progress_scale": "outcome"}
    overrides |= {"log_completions": True, "process_baseline": "group"}
    settings = {**fixed_settings(num_processes), **overrides}
    trainer = make_trainer(kind.partition("-")[0], model, output_dir, given, **settings)
    train_dataset = trainer.train_dataset
    assert train_dataset.column_names == prompt_dataset().column_names
    assert trainer.reward_funcs == [token_reward]
    return trainer


def fixed_settings(num_processes: int) -> dict[str, Any]:
    """Configuration of a short run on a share of the global batch."""
    return {
        "per_device_train_batch_size": GLOBAL_BATCH // num_processes,
        "num_generations": GROUP,
        "max_steps": 4,
        "num_iterations": 2,
        "optim": "sgd",  # Adam divides by the gradient's size, which blows up the rounding of small gradients
        "learning_rate": 0.5,
        "beta": 0.2,
    }


def train_and_compare(trainer: Any) -> dict[str, Any]:
    """Train any trainer.

    Args:
        trainer ([`~transformers.Trainer`]):
            The trainer.

    Returns:
        `dict`: World size, logs, and parameters before and after.
    """
    move_away_from_reference(trainer)
    start = trainable(trainer)
    trainer.train()
    return {
        "world_size": trainer.accelerator.num_processes,
        "logs": train_logs(trainer),
        "start": start,
        "parameters": trainable(trainer),
    }


def train_and_collect(trainer: Any) -> dict[str, Any]:
    """Train a recording trainer.

    Args:
        trainer (`PRLTrainer` or `PAVTrainer`):
            A recording trainer.

    Returns:
        `dict`: World size, logs, parameters before and after, the completions table, this process's advantages and
        what its process reward has learned.
    """
    found = train_and_compare(trainer)
    # The rows of a loss are shuffled within a process: sorting by content makes them comparable.
    advantages = [
        (record["completion_ids"][i][ids >= 0].tolist(), record["advantages"][i][ids >= 0].tolist())
        for record in trainer.losses
        for i, ids in enumerate(record["step_ids"])
    ]
    state = getattr(trainer, "process_reward_state", None)
    learned = state.process_reward.state_dict()["parameters"] if state is not None and state.learns else {}
    table = {name: [plain(entry) for entry in column] for name, column in trainer._logs["extra"].items()}
    return {**found, "advantages": advantages, "table": table, "learned": learned}


def train(kind: str, model: str, output_dir: Path, num_processes: int) -> dict[str, Any]:
    """Train on a share of the global batch: [`make_fixed_trainer`], then [`train_and_collect`]."""
    return train_and_collect(make_fixed_trainer(kind, model, output_dir, num_processes))


def plain(entry: Any) -> Any:
    """A list that prints in a way of its own, as the plain list it is: files of tensors hold nothing else."""
    return list(entry) if isinstance(entry, list) else entry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+", default=[*KINDS, "pav-half", ONLINE])
    options = parser.parse_args()
    torch.set_num_threads(1)
    for kind in options.kinds:
        result = train(kind, options.model, options.output_dir / kind, num_processes=2)
        torch.save(result, options.output_dir / f"{kind}-{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
