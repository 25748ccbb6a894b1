"""Step values of word problems, the verifier that learns them, and search with it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from datasets import load_dataset
from word_problem_lab import Lab
from word_problem_measures import right_lines
from word_problems import word_dataset, word_problems

from trl_prl.collection.config import CollectConfig
from trl_prl.collection.job import CollectWorker, collect
from trl_prl.collection.output import DATA_FILE
from trl_prl.jobs.options import Tools
from trl_prl.rewards.answers import exact_match_reward
from trl_prl.rewards.extraction import final_answer
from trl_prl.search.beams import beam_search
from trl_prl.search.best_of_n import best_of_n_search, choose
from trl_prl.search.scoring import EffectiveReward
from trl_prl.steps.split import get_splitter
from trl_prl.steps.token_pieces import TokenPieces
from trl_prl.verifier.config import PAVRewardConfig
from trl_prl.verifier.model import ProcessAdvantageVerifier
from trl_prl.verifier.trainer import PAVRewardTrainer


BEST_OF_K = 4
BEAMS = (2, 4, 8)
EXPANSIONS = 3


def collect_values(lab: Lab) -> dict[str, Any]:
    """Values of the steps of the start's solutions, from its own rollouts."""
    sizes = lab.sizes
    problems = word_dataset(word_problems("train", sizes.collect_problems, seed=2)).select_columns(
        ["prompt", "answer"]
    )
    config = CollectConfig(
        model="policy",
        dataset="word problems",
        output_dir=str(lab.folder / "values"),
        reward="trl_prl.rewards.answers:exact_match_reward",
        n_cov=sizes.n_cov,
        n_mc=sizes.n_mc,
        splitter="newline",
        max_completion_length=sizes.max_tokens,
        temperature=1.0,
        unfinished="wrong",
        problems_per_unit=max(1, sizes.collect_problems // 4),
        seed=0,
    )

    def make_worker() -> CollectWorker:
        made = {"tokenizer": lab.tokenizer, "generator": lab.frozen_start(), "reward": exact_match_reward}
        return CollectWorker(config, problems, Tools(config, **made))

    collected = collect(config, problems, make_worker)
    assert collected is not None
    return {"spending": asdict(collected.spending), "num_rows": collected.num_rows}


def train_verifier(lab: Lab) -> dict[str, Any]:
    """Learn the values with LoRA; measure on held-out problems, and on right and wrong lines of test problems."""
    sizes = lab.sizes
    rows = load_dataset("parquet", data_files=str(lab.folder / "values" / DATA_FILE), split="train")
    first_held_out = int(sizes.collect_problems * 0.85)
    train, held_out = (
        rows.filter(keep) for keep in (lambda r: r["row"] < first_held_out, lambda r: r["row"] >= first_held_out)
    )
    args = PAVRewardConfig(
        **lab.arguments("verifier"),
        per_device_train_batch_size=sizes.verifier_batch,
        per_device_eval_batch_size=sizes.verifier_batch,
        num_train_epochs=sizes.verifier_epochs,
        learning_rate=sizes.verifier_learning_rate,
        balance_classes=False,
        max_length=512,
        prover="the policy after its supervised start",
        seed=0,
    )
    trainer = PAVRewardTrainer(
        lab.policy_path,
        args,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=lab.tokenizer,
        peft_config=lab.lora(),
    )
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    labels = [label for row in held_out["labels"] for label in row if label is not None]
    constant = statistics.pvariance(labels) if labels else math.nan
    return {
        "metrics": metrics,
        "brier_of_constant": constant,
        "num_train_rows": len(train),
        "num_held_out_rows": len(held_out),
        "lines": right_lines(lab, load_verifier(lab)),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }


def load_verifier(lab: Lab) -> ProcessAdvantageVerifier:
    """The trained verifier."""
    return ProcessAdvantageVerifier.from_pretrained(lab.folder / "verifier", device=lab.device)


def search(lab: Lab) -> dict[str, Any]:
    """Accuracy against sampled tokens: beams by effective reward, best-of-n, votes; all by the start."""
    sizes = lab.sizes
    stories = word_problems("test", sizes.beam_problems, 2, num_steps=(3, 4))
    problems, generator, verifier = lab.problems(stories), lab.frozen_start(), load_verifier(lab)
    splitter, pieces, sampling = get_splitter("newline"), TokenPieces(lab.tokenizer), lab.sampling(3)
    reward = EffectiveReward(verifier, verifier, best_of_k=BEST_OF_K)
    shared = (problems, generator, reward, splitter, pieces, sampling)
    found: dict[str, list[dict[str, float]]] = {"beam": []}

    def right(candidates: Sequence[Any]) -> float:
        texts = [candidate.text if candidate else "" for candidate in candidates]
        rewards = exact_match_reward(texts, [str(story.answer) for story in stories])
        return 100 * statistics.fmean(rewards)

    for size in BEAMS:
        results = beam_search(*shared, beam_size=size, expansions=EXPANSIONS)
        tokens = statistics.fmean(result.cost.num_generated_tokens for result in results)
        found["beam"].append({"n": size, "tokens": tokens, "accuracy": right([r.answer for r in results])})
    values = EffectiveReward(verifier, alpha=0.0)
    drawn = best_of_n_search(
        problems,
        generator,
        values,
        splitter,
        pieces,
        replace(sampling, seed=4),
        n=sizes.best_of,
        answer_of=final_answer,
    )
    n = 1
    while n <= sizes.best_of:
        tokens = statistics.fmean(sum(len(c.token_ids) for c in r.candidates[:n]) for r in drawn)
        for choice in ("best_of_n", "majority_vote", "weighted_vote"):
            chosen = [choose(r.candidates[:n], choice, final_answer) for r in drawn]  # type: ignore[arg-type]
            picked = [None if k is None else r.candidates[k] for r, k in zip(drawn, chosen, strict=True)]
            found.setdefault(choice, []).append({"n": n, "tokens": tokens, "accuracy": right(picked)})
        n *= 2
    return {"accuracy": found, "num_problems": len(stories)}
