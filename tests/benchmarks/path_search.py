"""Which search is best at which quality of the verifier? On paths in a graph, at equal sampled tokens.

    python tests/benchmarks/path_search.py --verifier runs/path_verifier/verifiers/NAME

The shipped policy is searched with verifiers of graded quality: exact values of a prover that steps along any edge,
which are about the policy's own, with noise on their logits. A grade is the AUROC of progress, right steps against
wrong ones, on the exam of `path_verifier.py`. Learned verifiers are judged in the same way and searched with too.

Searches over steps: beams by Q + alpha A (A is of the Best-of-K policy of the same values) and by Q, DVTS, step-level
rejection, and a weighted vote over the beam's own walks. At their tokens, over whole walks: the best by the verifier,
by the policy's own log-probability, votes, and pass@n. alpha is chosen on the tuning split with a grade of 0.8, and
with each learned verifier. Then A of other provers than Q. Finished runs are kept, so it can be interrupted; seeds are
finished one after another, and `--report` makes tables and figure of what is kept, without any verifier at hand.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import machine_text, table
from path_search_bench import (
    ARRIVED,
    BEAM,
    BEAM_Q,
    BEST,
    BY_PLACE,
    DVTS,
    EXACT,
    GOALS,
    MAIN_SIZE,
    OTHER_SIZES,
    OWN_VOTE,
    POLICY,
    PROVER_KS,
    PROVERS,
    REJECTION,
    STEPWISE,
    TUNED_AT,
    VOTE,
    WEIGHTED,
    Bench,
    K,
)
from search_runs import CEILING, at_tokens, difference, percent, share, tokens_ratio

from trl_prl.report.plots import STYLES, new_figure, save


def finished(compute: Callable[[int], dict[str, Any]], seeds: int) -> list[dict[str, Any]]:
    """The runs of the seeds that are done."""
    found = []
    for seed in range(seeds):
        with contextlib.suppress(LookupError):
            found.append(compute(seed))
    return found


class Report:
    """Tables and the figure of what is finished."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.seeds = bench.args.seeds
        self.whole: dict[tuple[str, str], int] = {}
        for goals in GOALS:
            for name in bench.verifiers:
                every = [self.runs(goals, method, MAIN_SIZE, name) for method in STEPWISE]
                self.whole[goals, name] = min(map(len, every))
        self.goals = [goals for goals in GOALS if self.names(goals)]

    def names(self, goals: str) -> list[str]:
        """The verifiers that every method was run with."""
        return [name for name in self.bench.verifiers if self.whole[goals, name]]

    def runs(self, goals: str, method: str, size: int, name: str, **options: Any) -> list[dict[str, Any]]:
        """One search over steps, all seeds."""
        alpha, seeds = self.bench.alpha(name), self.whole.get((goals, name), self.seeds)
        return finished(lambda seed: self.bench.steps(goals, seed, method, size, name, alpha, **options), seeds)

    def chosen(self, goals: str, name: str, method: str, runs: Sequence[dict[str, Any]]) -> list[list[int]]:
        """What a method over whole walks solves at the tokens of a search."""
        sampled = finished(lambda seed: self.bench.samples(goals, seed, name), len(runs))
        return [at_tokens(one, method, run["tokens"])[1] for one, run in zip(sampled, runs, strict=True)]

    def title(self, name: str) -> str:
        """A verifier and its AUROC."""
        kind = "learned" if name in self.bench.learned else "exact" if name == EXACT else "graded"
        return f"{kind}, {self.bench.quality[name]['auroc']:.2f}"

    def row(self, goals: str, name: str) -> dict[str, list[list[int]]]:
        """Every method with a verifier: which problems it solves, for each seed."""
        beams = self.runs(goals, BEAM, MAIN_SIZE, name)
        found = {method: [r["correct"] for r in self.runs(goals, method, MAIN_SIZE, name)] for method in STEPWISE}
        owners = {BEST: name, WEIGHTED: name, POLICY: POLICY, VOTE: POLICY, ARRIVED: POLICY, CEILING: POLICY}
        return found | {method: self.chosen(goals, owner, method, beams) for method, owner in owners.items()}

    def methods(self, goals: str) -> str:
        """Accuracy of all methods at the tokens of the beam, and points of searches over best-of-n at their own."""
        rows, gains = [], []
        for name in self.names(goals):
            found, beams = self.row(goals, name), self.runs(goals, BEAM, MAIN_SIZE, name)
            rows.append([self.title(name), len(beams), *(percent(found[m]) for m in (*STEPWISE, BEST, WEIGHTED))])
            cells = []
            for method in STEPWISE:
                runs = self.runs(goals, method, MAIN_SIZE, name)
                against = self.chosen(goals, name, BEST, runs)
                tokens = statistics.fmean(run["tokens"] for run in runs)
                cells.append(f"{difference([run['correct'] for run in runs], against)} at {tokens:.0f}")
            sampled = finished(lambda seed, name=name: self.bench.samples(goals, seed, name), len(beams))
            ratio = tokens_ratio(sampled, BEST, found[BEAM], [run["tokens"] for run in beams])
            gains.append([self.title(name), *cells, difference(found[BEAM], found[BEAM_Q]), ratio])
        found = self.row(goals, TUNED_AT)
        plain = table(
            (POLICY, VOTE, ARRIVED, CEILING), [[percent(found[m]) for m in (POLICY, VOTE, ARRIVED, CEILING)]]
        )
        first = table(("verifier, AUROC", "seeds", *STEPWISE, BEST, WEIGHTED), rows)
        header = ("verifier, AUROC", *STEPWISE, "Q + alpha A over Q", "tokens of best-of-n / beam")
        return (
            f"**{goals.capitalize()} goals**, beam of {MAIN_SIZE}, and whole walks at its tokens\n\n"
            f"{first}\nWithout a verifier, at the tokens of the beam with the grade of {TUNED_AT}\n\n{plain}\n"
            f"Points over best-of-n by the same verifier, each at its own tokens\n\n{table(header, gains)}\n"
            f"Beam and best-of-n at equal tokens sampled and scored together\n\n{self.with_scoring(goals)}"
        )

    def with_scoring(self, goals: str) -> str:
        """Beam against best-of-n where a token that the verifier reads counts as one that is sampled."""
        rows = []
        for name in self.names(goals):
            beams = self.runs(goals, BEAM, MAIN_SIZE, name)
            sampled = finished(lambda seed, name=name: self.bench.samples(goals, seed, name), len(beams))
            tokens = [run["tokens"] + run["scored"] for run in beams]
            chosen = [at_tokens(one, BEST, t, scored=True) for one, t in zip(sampled, tokens, strict=True)]
            ours, theirs = [run["correct"] for run in beams], [right for _, right in chosen]
            costs = [f"{statistics.fmean(run[key] for run in beams):.0f}" for key in ("tokens", "scored")]
            number = f"{statistics.fmean(n for n, _ in chosen):.0f}"
            ratio = tokens_ratio(sampled, BEST, ours, tokens, scored=True)
            rows.append([self.title(name), *costs, number, percent(theirs), difference(ours, theirs), ratio])
        header = ("verifier, AUROC", "sampled", "scored", "n", BEST, "beam - best-of-n", "tokens of best-of-n / beam")
        return table(header, rows)

    def sizes(self) -> str:
        """Accuracy of beams by size, and best-of-n at their tokens."""
        rows = []
        for name in self.bench.verifiers:
            for size in sorted((MAIN_SIZE, *OTHER_SIZES)):
                runs = self.runs("far", BEAM, size, name)
                if not runs:
                    continue
                ours, theirs = [run["correct"] for run in runs], self.chosen("far", name, BEST, runs)
                tokens = f"{statistics.fmean(run['tokens'] for run in runs):.0f}"
                voted = percent([run["voted"] for run in runs])
                sampled = finished(lambda seed, name=name: self.bench.samples("far", seed, name), len(runs))
                ratio = tokens_ratio(sampled, BEST, ours, [run["tokens"] for run in runs])
                cells = (percent(ours), voted, percent(theirs), difference(ours, theirs), ratio)
                rows.append([self.title(name), size, len(runs), tokens, *cells])
        header = (
            "verifier, AUROC",
            "beam",
            "seeds",
            "tokens",
            BEAM,
            OWN_VOTE,
            BEST,
            "points",
            "tokens of best-of-n / beam",
        )
        return f"**Beams by size**, far goals\n\n{table(header, rows)}"

    def places(self) -> str:
        """Accuracy with noise that is the same at a place on every walk."""
        rows = []
        for name in (*(f"{grade:g}" for grade in BY_PLACE), *self.bench.placed):
            found = [self.runs("far", method, MAIN_SIZE, name) for method in (BEAM, BEAM_Q)]
            if all(found):
                rows.append([name, len(found[0]), *(percent([run["correct"] for run in runs]) for runs in found)])
        return f"**Errors of places**, far goals\n\n{table(('graded', 'seeds', BEAM, BEAM_Q), rows)}"

    def provers(self) -> str:
        """Accuracy by the prover of A and its K."""
        rows = []
        for prover in PROVERS:
            found = [self.runs("far", BEAM, MAIN_SIZE, TUNED_AT, k=k, prover=prover) for k in PROVER_KS]
            rows.append([prover, *(percent([run["correct"] for run in runs]) if runs else "" for runs in found)])
        by_q = percent([run["correct"] for run in self.runs("far", BEAM_Q, MAIN_SIZE, TUNED_AT)])
        header = ("A from", *(f"K = {k}" for k in PROVER_KS))
        return f"**Provers of A**, far goals, Q graded {TUNED_AT}; Q alone {by_q}\n\n{table(header, rows)}"

    def draw(self, path: Path) -> None:
        """Accuracy by AUROC, far and near, and by tokens."""
        figure, axes = new_figure(3, width=4.6, height=4.2)
        methods = (BEAM, BEAM_Q, DVTS, REJECTION, BEST, POLICY, VOTE)
        for axis, goals in zip(axes, self.goals, strict=False):
            names = sorted(self.names(goals), key=lambda name: self.bench.quality[name]["auroc"])
            for method, style in zip(methods, STYLES, strict=False):
                for group, line in (
                    ([n for n in names if n not in self.bench.learned], {}),
                    ([n for n in names if n in self.bench.learned], {"linestyle": "", "markersize": 9, "alpha": 0.6}),
                ):
                    points = [(self.bench.quality[n]["auroc"], share(self.row(goals, n)[method])) for n in group]
                    if points:
                        axis.plot(*zip(*points, strict=True), **{**style, **line}, label="" if line else method)
            axis.set(
                title=f"{goals} goals, beam of {MAIN_SIZE}",
                xlabel="AUROC of progress (pale marks: learned)",
                ylabel="accuracy, %",
            )
        axes[1].legend(frameon=False, fontsize=8, loc="center right", bbox_to_anchor=(1.0, 0.6))
        for name, style in zip(self.bench.verifiers, STYLES, strict=False):
            every = [self.runs("far", BEAM, size, name) for size in sorted((MAIN_SIZE, *OTHER_SIZES))]
            points = [
                (statistics.fmean(r["tokens"] for r in runs), share([r["correct"] for r in runs]))
                for runs in every
                if runs
            ]
            axes[2].plot(*zip(*points, strict=True), **style, label=f"beam, {self.title(name)}")
        sampled = finished(lambda seed: self.bench.samples("far", seed, POLICY), self.seeds)
        for method, style in zip((CEILING, VOTE), STYLES[-2:], strict=True):
            heights = [
                share([[row[k] for row in one["correct"][method]] for one in sampled])
                for k in range(len(sampled[0]["sizes"]))
            ]
            axes[2].plot(
                [n * sampled[0]["tokens_per_sample"] for n in sampled[0]["sizes"]],
                heights,
                **{**style, "marker": ""},
                label=method,
            )
        axes[2].set_xscale("log")
        axes[2].set(title="far goals", xlabel="tokens sampled per problem", ylabel="accuracy, %")
        axes[2].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verifier", nargs="*", default=[], help="folders of learned verifiers")
    parser.add_argument("--problems", type=int, default=64, help="problems per seed, near and far")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=64, help="whole walks per problem")
    parser.add_argument("--stages", nargs="*", help="far, near, provers, size1, size4, size8; all of them by default")
    parser.add_argument("--report", action="store_true", help="only write the tables of the seeds that are finished")
    parser.add_argument("--output", type=Path, default=Path("docs/figures/path_search.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(args)
    stages = {"far": bench.far, "near": bench.near, "provers": bench.provers}
    stages |= {f"size{size}": partial(bench.sizes, size=size) for size in OTHER_SIZES}
    for name in () if args.report else args.stages or stages:
        for seed in range(args.seeds):
            stages[name](seed)
    args.report = True
    report = Report(bench)
    alphas = ", ".join(f"{bench.alpha(name):g} ({report.title(name)})" for name in bench.verifiers)
    parts = [*(report.methods(goals) for goals in report.goals), report.sizes(), report.places(), report.provers()]
    learned = "".join(f"{report.title(name)}: {name}\n" for name in bench.learned)
    text = f"{args.problems} problems per seed, K = {K}, alpha {alphas}; Wilson intervals over all problems\n\n"
    text += "\n".join(parts) + f"\n{learned}{machine_text(bench.results.data['machine'])}\n"
    args.output.with_suffix(".md").write_text(text, encoding="utf-8")
    report.draw(args.output.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()
