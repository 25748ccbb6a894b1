"""Shares of a PAV optimizer step that the process reward and the outcome reward take.

    python tests/benchmarks/bench_scoring_share.py --steps 10

What running the two at the same time could save is at most the smaller share. The verifier is as large as the policy
(its weights are random: values do not change its time), and the outcome reward is math-verify.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from arithmetic.task import LONG_NUM_TERMS, arithmetic_dataset, arithmetic_policy_path, completion_length
from common import machine
from transformers import AutoConfig, AutoTokenizer, LlamaForTokenClassification, PrinterCallback

from trl_prl import PAVConfig, PAVTrainer, ProcessAdvantageVerifier, math_accuracy_reward
from trl_prl.demo.training import cpu_fields


def boxed_accuracy(completions: list[str], answer: list[str], **columns: Any) -> list[float | None]:
    """Math-verify on the answer line, in the form it reads."""
    texts = [text.replace("#", "so the answer is $\\boxed{") + "}$" for text in completions]
    return math_accuracy_reward(completions=texts, answer=answer)


def build_verifier() -> ProcessAdvantageVerifier:
    path = arithmetic_policy_path()
    config = AutoConfig.from_pretrained(path, num_labels=1)
    return ProcessAdvantageVerifier(LlamaForTokenClassification(config).eval(), AutoTokenizer.from_pretrained(path))


def timed(function: Callable[..., Any], times: list[float]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            times.append(time.perf_counter() - start)

    call.__name__ = getattr(function, "__name__", type(function).__name__)
    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    outcome_times: list[float] = []
    process_times: list[float] = []
    verifier = build_verifier()
    verifier.score_solutions = timed(verifier.score_solutions, process_times)  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        config = PAVConfig(
            **cpu_fields(folder),
            per_device_train_batch_size=args.batch_size,
            num_generations=8,
            max_completion_length=completion_length(LONG_NUM_TERMS),
            max_steps=args.steps,
            learning_rate=1e-6,
        )
        dataset = arithmetic_dataset("train", args.batch_size * args.steps, seed=0, num_terms=LONG_NUM_TERMS)
        trainer = PAVTrainer(
            arithmetic_policy_path(),
            timed(boxed_accuracy, outcome_times),
            config,
            dataset,
            process_reward=verifier,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    step_times = [entry["step_time"] for entry in trainer.state.log_history if "step_time" in entry]
    # The first step warms up.
    step, outcome, process = (statistics.median(times[1:]) for times in (step_times, outcome_times, process_times))
    results = {
        "ms_per_step": 1000 * step,
        "outcome_share": outcome / step,
        "process_share": process / step,
        "most_that_overlap_could_save": min(outcome, process) / step,
        "machine": machine(),
    }
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
