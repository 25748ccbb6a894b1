"""How the answer checker does on real pairs of answers, how fast it is, and what hostile answers cost.

python -m tests.benchmarks.bench_answers --data ../shared/data
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from pathlib import Path
from typing import Any

from tests.hostile_answers import hostile_answers
from trl_prl.rewards.answers import math_accuracy_reward
from trl_prl.rewards.timed import TimedReward


def read(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def boxed(answer: str) -> str:
    r"""A completion with this answer; what is a whole completion already stays as it is."""
    return answer if "boxed" in answer else rf"\boxed{{{answer}}}"


def agreement(reward: TimedReward, rows: list[dict[str, Any]], truth: str) -> dict[str, Any]:
    """Compare verdicts with what is known, where something is.

    Args:
        reward (`TimedReward`):
            The checker.
        rows (`list[dict]`):
            Rows with `gold`, `pred` and the verdict to compare with.
        truth (`str`):
            Column of that verdict.

    Returns:
        `dict`: Number of pairs, those not checked, agreement, and both kinds of disagreement.
    """
    known = [row for row in rows if row.get(truth) is not None]
    verdicts = reward(completions=[boxed(row["pred"]) for row in known], answer=[str(row["gold"]) for row in known])
    pairs = [(bool(v), bool(row[truth])) for v, row in zip(verdicts, known, strict=True) if v is not None]
    return {
        "pairs": len(known),
        "not checked": len(known) - len(pairs),
        "agree": sum(a == b for a, b in pairs),
        "called wrong": sum(b and not a for a, b in pairs),
        "called right": sum(a and not b for a, b in pairs),
    }


def check_pool(reward: TimedReward, name: str, pool: list[dict[str, Any]]) -> None:
    """Print how many samples of a pool are right, and how fast that was found out, with and without processes."""
    flat = [(row["answer"], sample) for row in pool for sample in row["samples"]]
    completions, golds = [sample["completion"] for _, sample in flat], [gold for gold, _ in flat]
    begun = time.perf_counter()
    verdicts = reward(completions=completions, answer=golds)
    rate = len(flat) / (time.perf_counter() - begun)
    begun = time.perf_counter()
    math_accuracy_reward(completions, golds)
    own_rate = len(flat) / (time.perf_counter() - begun)
    pairs = [(bool(v), sample["correct"]) for v, (_, sample) in zip(verdicts, flat, strict=True) if v is not None]
    print(
        f"{name}: {len(flat)} completions, {verdicts.count(1.0) / len(flat):.1%} right, {verdicts.count(None)} not "
        f"checked; the source says {sum(sample['correct'] for _, sample in flat) / len(flat):.1%}, calls right "
        f"{sum(truth and not v for v, truth in pairs)} that are wrong here and wrong "
        f"{sum(v and not truth for v, truth in pairs)} that are right here; {rate:.0f} checks/s, "
        f"{own_rate:.0f} in this process"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--num-workers", type=int, default=1)
    parser.add_argument("--hostile", type=int, default=200)
    args = parser.parse_args()
    pairs = args.data / "answer_pairs"
    with TimedReward("accuracy", timeout=5, num_workers=args.num_workers) as reward:
        for name, truth in (
            ("math_verify_cases", "equal"),
            ("olympiad_scoring_examples", "equal"),
            ("math500_real_predictions", "mv_equal"),
        ):
            rows = read(pairs / f"{name}.jsonl.gz")
            print(name, truth, agreement(reward, rows, truth))
        disputed = read(pairs / "disputed_gsm8k.jsonl.gz")
        print(
            "disputed_gsm8k",
            reward(completions=[r["completion"] for r in disputed], answer=[r["answer"] for r in disputed]),
        )
        for name in ("gsm8k_test", "math500"):
            rows = read(args.data / "tasks" / f"{name}.jsonl.gz")
            verdicts = reward(completions=[r["solution"] for r in rows], answer=[r["answer"] for r in rows])
            print(f"{name}: {verdicts.count(1.0)} of {len(rows)} worked solutions right")
            verdicts = reward(completions=[boxed(r["answer"]) for r in rows], answer=[r["answer"] for r in rows])
            print(f"{name}: {verdicts.count(1.0)} of {len(rows)} right answers right against themselves")
        for name in ("strictprm_gsm8k_n16", "strictprm_math500_n16", "qwen25math_cot100_n8"):
            check_pool(reward, name, read(args.data / "pools" / f"{name}.jsonl.gz"))
    with TimedReward("accuracy", timeout=0.5, num_workers=args.num_workers) as reward:
        reward(completions=[r"\boxed{1}"] * args.num_workers, answer=["1"] * args.num_workers)
        begun = time.perf_counter()
        verdicts = reward(completions=hostile_answers(args.hostile), answer=["7"] * args.hostile)
        print(f"hostile: {args.hostile} answers in {time.perf_counter() - begun:.1f} s with a limit of 0.5 s, "
              f"{verdicts.count(None)} killed, {verdicts.count(0.0)} wrong, {verdicts.count(1.0)} right")  # fmt: skip


if __name__ == "__main__":
    main()
