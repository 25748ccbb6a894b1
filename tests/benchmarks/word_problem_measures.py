"""Measuring policies and verifiers on word problems: success, KL to the start, right against wrong lines."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from word_problem_lab import Lab
from word_problems import WordProblem, results_of, right_so_far, word_problems

from trl_prl.generation.local import TransformersGenerator
from trl_prl.generation.rollouts import Roller
from trl_prl.metrics.sampling_estimates import mean_pass_at_k
from trl_prl.metrics.step_values import auroc
from trl_prl.prompts.chat import prompt_token_ids
from trl_prl.rewards.answers import exact_match_reward
from trl_prl.steps.plain_text import split_text
from trl_prl.steps.split import get_splitter
from trl_prl.steps.token_pieces import TokenPieces
from trl_prl.verifier.model import ProcessAdvantageVerifier


def sample(lab: Lab, generator: TransformersGenerator, stories: Sequence[WordProblem], n: int, seed: int) -> Any:
    """Draw solutions.

    Returns:
        `tuple`: Whether each is right, one row of `n` per story; their token ids in the same form; the sampled tokens.
    """
    pieces = TokenPieces(lab.tokenizer)
    roller = Roller(lab.problems(stories), generator, exact_match_reward, pieces, lab.sampling(seed))
    rows = roller.draw([(i, ()) for i in range(len(stories))], n, "sample")
    right = [[bool(rollout.correct) for rollout in row] for row in rows]
    return right, [[rollout.ids for rollout in row] for row in rows], roller.spending.num_sampled_tokens


def scores_of(lab: Lab, generator: TransformersGenerator, split: str = "test") -> tuple[dict[str, float], Any]:
    """avg@n and pass@4 in percent, of all problems and by number of calculations; and the token ids of the samples."""
    sizes = lab.sizes
    stories = word_problems(split, sizes.test_problems, 0)  # type: ignore[arg-type]
    right, ids, _ = sample(lab, generator, stories, sizes.test_samples, seed=0)
    scores = {"avg": 100 * mean_pass_at_k(right, 1), "pass@4": 100 * mean_pass_at_k(right, 4)}
    for steps in sorted({len(story.calculations) for story in stories}):
        rows = [row for row, story in zip(right, stories, strict=True) if len(story.calculations) == steps]
        scores[f"avg, {steps} steps"] = 100 * mean_pass_at_k(rows, 1)
    return scores, (stories, ids)


@torch.no_grad()
def log_probs(
    model: Any, prompts: Sequence[Sequence[int]], ids: Sequence[Sequence[int]], batch: int = 16
) -> list[float]:
    """Log-probability of each completion."""
    found: list[float] = []
    for start in range(0, len(ids), batch):
        pairs = list(zip(prompts[start : start + batch], ids[start : start + batch], strict=True))
        width = max(len(prompt) + len(completion) for prompt, completion in pairs)
        tokens = torch.zeros(len(pairs), width, dtype=torch.long)
        labels = torch.full((len(pairs), width), -100)
        for row, (prompt, completion) in enumerate(pairs):
            end = len(prompt) + len(completion)
            tokens[row, :end] = torch.tensor([*prompt, *completion])
            labels[row, len(prompt) : end] = torch.tensor(completion)
        # Padding comes last, where nothing before it can see it.
        logits = model(input_ids=tokens.to(model.device)).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), labels[:, 1:].to(model.device), reduction="none"
        )
        found += (-losses.sum(1)).tolist()
    return found


def distance(lab: Lab, model: Any, samples: Any) -> float:
    """KL to the start, in nats per completion, from one sample of each problem."""
    stories, rows = samples
    prompts = [prompt_token_ids(lab.tokenizer, story.prompt) for story in stories]
    ids = [row[0] for row in rows]
    model.eval()
    own = log_probs(model, prompts, ids)
    return statistics.fmean(
        a - b for a, b in zip(own, log_probs(lab.load(lab.policy_path), prompts, ids), strict=True)
    )


def right_lines(lab: Lab, verifier: ProcessAdvantageVerifier) -> dict[str, float]:
    """How well values tell prefixes without a mistake from others, on solutions of test problems by the start.

    The policy's own log-probability of the prefix so far is the baseline. Means over positions, so that early and late
    steps are not compared with each other.
    """
    stories = word_problems("test", lab.sizes.test_problems, 1)
    generator, pieces, splitter = lab.frozen_start(), TokenPieces(lab.tokenizer), get_splitter("newline")
    _, rows, _ = sample(lab, generator, stories, 1, seed=1)
    texts = [pieces.join(row[0])[0].decode("utf-8", "replace") for row in rows]
    steps = [split_text(splitter, text) for text in texts]
    values = verifier([story.prompt for story in stories], steps)
    prompts, prefixes, places = [], [], []
    for i, (story, own) in enumerate(zip(stories, steps, strict=True)):
        for position in range(len(own)):
            prompts.append(prompt_token_ids(lab.tokenizer, story.prompt))
            prefixes.append(lab.tokenizer("".join(own[: position + 1]), add_special_tokens=False)["input_ids"])
            places.append((i, position))
    likely = dict(zip(places, log_probs(generator.model, prompts, prefixes), strict=True))
    by_position: dict[int, list[tuple[float, float, bool]]] = {}
    for i, (story, own) in enumerate(zip(stories, steps, strict=True)):
        flags = right_so_far(own, [r for r in results_of(story.calculations) if r is not None])
        for position, flag in enumerate(flags):
            value = values[i][position]
            if value is not None and not math.isnan(value):
                by_position.setdefault(position, []).append((value, likely[i, position], flag))
    found = {}
    for column, name in enumerate(("auroc", "auroc_of_log_probability")):
        scores = [auroc([e[column] for e in entries], [e[2] for e in entries]) for entries in by_position.values()]
        known = [score for score in scores if not math.isnan(score)]
        found[name] = statistics.fmean(known) if known else math.nan
    return {**found, "num_lines": sum(map(len, by_position.values()))}
