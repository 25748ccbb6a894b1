"""The runs of `path_search.py`: searches and samples on paths, with verifiers of graded quality and learned ones."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from common import Results
from graded_verifier import GradedPathReward, sigma_of
from search_runs import Rule, sample_run, search_run, share

from trl_prl import (
    DelimiterSplitter,
    EffectiveReward,
    ProcessAdvantageVerifier,
    SamplingParams,
    TokenPieces,
    TransformersGenerator,
    beam_search,
    best_of_n_search,
    dvts,
    step_rejection,
)
from trl_prl.demo.path_values import judge, path_exam
from trl_prl.demo.paths import FAR, MAX_COMPLETION_LENGTH, NEAR, is_right, path_dataset, path_policy_path, path_reward
from trl_prl.generation.rollouts import Problem
from trl_prl.metrics.aggregation import weighted_vote
from trl_prl.metrics.step_values import auroc
from trl_prl.search.best_of_n import choose
from trl_prl.search.results import Candidate, SearchResult
from trl_prl.types import Completion, Generator, Prompt


GRADES = (0.55, 0.6, 0.7, 0.8, 0.9)
BY_PLACE = (0.6, 0.7)
EXACT, POLICY = "exact", "log-probability"
GOALS = {"far": FAR, "near": NEAR}
BEAM, BEAM_Q, DVTS, REJECTION, OWN_VOTE = "beam, Q + alpha A", "beam, Q", "DVTS", "rejection", "vote in the beam"
BEST, WEIGHTED, VOTE, ARRIVED = "best-of-n", "weighted vote", "vote on walks", "vote on last lines"
STEPWISE: dict[str, Any] = {
    BEAM: lambda size: partial(beam_search, beam_size=size),
    BEAM_Q: lambda size: partial(beam_search, beam_size=size),
    DVTS: lambda size: partial(dvts, num_trees=size),
    REJECTION: lambda size: partial(step_rejection, num_chains=size, min_advantage=0.0),
}
ALPHAS = (0.5, 1.0, 2.0, 5.0)
TUNING_SEED, TUNING_SIZE, TUNED_AT = 1000, 2, "0.8"
MAIN_SIZE, OTHER_SIZES = 2, (4, 1, 8)
K = 4
PROVERS = {
    "the verifier itself": None,
    "another, of the policy": 1.0,
    "another, of wander 0.3": 0.3,
    "another, of wander 0": 0.0,
}
PROVER_KS = (1, 4, 16)


class Remembering:
    """A generator that draws the samples of a call once, for all verifiers that choose among them."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self.draw = cache(lambda prompts, params: generator.generate(list(prompts), params))

    def generate(self, prompts: list[Prompt], params: SamplingParams) -> list[list[Completion]]:
        """Samples, drawn or remembered."""
        return self.draw(tuple(prompts), params)


class PolicyReward:
    """Log-probability of a solution so far, and its end, under the policy."""

    returns = "values"

    def __init__(self, generator: TransformersGenerator) -> None:
        self.model, self.tokenizer = generator.model, generator.tokenizer

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], steps: Sequence[Sequence[str]], **columns: Any) -> list[list[float]]:
        """The same number for every step: only the whole is ranked."""
        end, rows = self.tokenizer.eos_token, []
        for first in range(0, len(prompts), 1024):
            some = range(first, min(first + 1024, len(prompts)))
            ids = self.tokenizer(
                [prompts[i] + "".join(steps[i]) + end for i in some],
                return_tensors="pt",
                padding=True,
                padding_side="right",
            )
            logits = self.model(ids["input_ids"], attention_mask=ids["attention_mask"]).logits[:, :-1]
            logps = logits.log_softmax(-1).gather(-1, ids["input_ids"][:, 1:, None])[..., 0]
            start = len(self.tokenizer(prompts[first])["input_ids"])
            rows += (logps * ids["attention_mask"][:, 1:])[:, start - 1 :].sum(1).tolist()
        return [[total] * len(texts) for total, texts in zip(rows, steps, strict=True)]


def check(problem: Problem, texts: Sequence[str]) -> list[float]:
    """Outcomes of walks."""
    return path_reward([problem.prompt] * len(texts), texts)


def voted(
    candidates: Sequence[Candidate],
    weight: Callable[[Candidate], float] = lambda candidate: 1.0,
    answer: Callable[[Candidate], Any] = lambda candidate: candidate.text,
) -> int | None:
    """The first finished candidate with the answer that most weight is on."""
    ended = [k for k, candidate in enumerate(candidates) if candidate.finished]
    answers = [str(answer(candidates[k])) for k in ended]
    return ended[weighted_vote(answers, [weight(candidates[k]) for k in ended])] if ended else None


def own_vote(result: SearchResult) -> str:
    """The walk with the greatest sum of values among those that a search ended with."""
    index = voted(result.candidates, weight=lambda candidate: candidate.value * candidate.count)
    return "" if index is None else result.candidates[index].text


class Bench:
    """The policy, the verifiers, and the finished runs."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.results = Results(args.output)
        self.generator = TransformersGenerator.from_pretrained(path_policy_path(), dtype="float32", device="cpu")
        self.sampler = Remembering(self.generator)
        self.exam = path_exam(self.generator, num_prefixes=0)
        self.right = [is_right(p, "".join(s)) for p, s in zip(self.exam.prompts, self.exam.solutions, strict=True)]
        self.verifiers: dict[str, Any] = {EXACT: GradedPathReward(1.0, 0.0)}
        for grade in reversed(GRADES):
            self.verifiers[f"{grade:g}"] = self.graded(grade, 1.0)
        if args.report:
            # Nothing is searched, so the folders need not be there.
            found = {
                key.partition(" ")[2]: data for key, data in self.results.data.items() if key.startswith("quality ")
            }
            names = [name for name in found if name not in self.verifiers]
            learned = dict.fromkeys(sorted(names, key=lambda name: -found[name]["auroc"]))
        else:
            learned = {Path(path).name: ProcessAdvantageVerifier.from_pretrained(path) for path in args.verifier}
        self.learned = list(learned)
        self.verifiers |= learned
        self.placed = {f"{grade:g} by place": self.graded(grade, 1.0, by_place=True) for grade in BY_PLACE}
        self.quality = {
            name: self.results.get(f"quality {name}", partial(self.judged, one))
            for name, one in self.verifiers.items()
        }

    def graded(self, grade: float, wander: float, salt: str = "", by_place: bool = False) -> GradedPathReward:
        """A verifier of a grade."""

        def compute() -> float:
            return sigma_of(
                grade, lambda sigma: judge(GradedPathReward(wander, sigma, salt, by_place), self.exam)["auroc"]
            )

        shown = f"sigma {grade:g} wander {wander:g} {salt}" + " by place" * by_place
        return GradedPathReward(wander, self.results.get(shown, compute), salt, by_place)

    def judged(self, verifier: Any) -> dict[str, float]:
        """AUROC of progress and of the values of finished walks."""
        last = [row[-1] for row in verifier(self.exam.prompts, self.exam.solutions)]
        return {**judge(verifier, self.exam), "outcome": auroc(last, self.right)}

    def kept(self, key: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of a run, which a report does not begin."""
        if self.args.report and key not in self.results.data:
            raise LookupError(f"The run {key!r} is not finished. Start the script without --report.")
        return self.results.get(key, compute)

    def setting(self, goals: str, seed: int) -> tuple[list[Problem], dict[str, Any]]:
        """Problems and arguments of a run."""
        tokenizer, split = self.generator.tokenizer, "tuning" if seed == TUNING_SEED else "test"
        prompts = path_dataset(split, self.args.problems, seed, GOALS[goals])["prompt"]
        problems = [Problem(i, prompt, tuple(tokenizer(prompt).input_ids), {}) for i, prompt in enumerate(prompts)]
        sampling = SamplingParams(max_tokens=MAX_COMPLETION_LENGTH, seed=seed)
        return problems, {
            "splitter": DelimiterSplitter("\n"),
            "token_pieces": TokenPieces(tokenizer),
            "sampling": sampling,
        }

    def steps(
        self, goals: str, seed: int, method: str, size: int, name: str, alpha: float, k: int = K, prover: str = ""
    ) -> dict[str, Any]:
        """One search over steps of all problems."""
        wander = PROVERS[prover] if prover else None

        def compute() -> dict[str, Any]:
            problems, arguments = self.setting(goals, seed)
            other = None if wander is None else self.graded(float(TUNED_AT), wander, "other")
            reward = EffectiveReward(
                (self.verifiers | self.placed)[name], other, alpha=0.0 if method == BEAM_Q else alpha, best_of_k=k
            )
            found = STEPWISE[method](size)(problems, self.generator, reward, **arguments)
            votes = [int(is_right(p.prompt, own_vote(result))) for p, result in zip(problems, found, strict=True)]
            return {**search_run(problems, found, check), "voted": votes}

        shown = "" if method == BEAM_Q else f" alpha {alpha:g} K {k}" + (f" by {prover}" if wander is not None else "")
        return self.kept(f"{goals} {self.args.problems} seed {seed} {method} {size} {name}{shown}", compute)

    def samples(self, goals: str, seed: int, name: str) -> dict[str, Any]:
        """Whole walks, and what is chosen among them."""

        def compute() -> dict[str, Any]:
            problems, arguments = self.setting(goals, seed)
            reward = PolicyReward(self.generator) if name == POLICY else self.verifiers[name]
            found = best_of_n_search(problems, self.sampler, reward, n=self.args.samples, **arguments)
            rules: dict[str, Rule] = {BEST: choose, WEIGHTED: partial(voted, weight=lambda c: c.score)}
            if name == POLICY:
                rules = {POLICY: choose, VOTE: voted, ARRIVED: partial(voted, answer=lambda c: c.text.split()[-1:])}
            return sample_run(problems, found, check, rules)

        return self.kept(f"{goals} {self.args.problems} seed {seed} samples {self.args.samples} {name}", compute)

    def alpha(self, name: str) -> float:
        """alpha on the tuning split."""
        tuned = name if name in self.learned else TUNED_AT
        found = {
            alpha: share([self.steps("far", TUNING_SEED, BEAM, TUNING_SIZE, tuned, alpha)["correct"]])
            for alpha in ALPHAS
        }
        return max(ALPHAS, key=lambda alpha: found[alpha])

    def far(self, seed: int) -> None:
        """Every method with every verifier on far goals."""
        self.near(seed, "far")

    def near(self, seed: int, goals: str = "near") -> None:
        """The same on near goals."""
        for name in (POLICY, *self.verifiers):
            self.samples(goals, seed, name)
        for name in self.verifiers:
            for method in STEPWISE:
                self.steps(goals, seed, method, MAIN_SIZE, name, self.alpha(name))

    def provers(self, seed: int) -> None:
        """A of other provers than Q, and verifiers that misjudge places."""
        for name in self.placed:
            for method in (BEAM, BEAM_Q):
                self.steps("far", seed, method, MAIN_SIZE, name, self.alpha(name))
        for prover in PROVERS:
            for k in PROVER_KS:
                self.steps("far", seed, BEAM, MAIN_SIZE, TUNED_AT, self.alpha(TUNED_AT), k, prover)

    def sizes(self, seed: int, size: int) -> None:
        """Smaller and larger beams."""
        for name in self.verifiers:
            self.steps("far", seed, BEAM, size, name, self.alpha(name))
