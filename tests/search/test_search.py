"""Searches at test time: by hand on scripted steps, and as properties on the arithmetic policy."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from tests.benchmarks.arithmetic.prover import ArithmeticProcessReward
from tests.benchmarks.arithmetic.task import read_answer
from tests.provers import few_positions
from tests.searching import (
    PieceTable,
    StepScript,
    TableReward,
    arithmetic_generator,
    arithmetic_search_problems,
    line_search,
)
from trl_prl.generation.rollouts import Problem
from trl_prl.metrics.aggregation import aggregate_step_values
from trl_prl.search.beams import beam_search, dvts
from trl_prl.search.best_of_n import best_of_n_search, choose
from trl_prl.search.rejection import step_rejection
from trl_prl.search.results import SearchResult
from trl_prl.search.scoring import EffectiveReward, score_solutions
from trl_prl.search.step_sampler import StepRequest, StepSample, StepSampler
from trl_prl.search.step_search import SearchLimits
from trl_prl.steps.split import step_ends
from trl_prl.steps.splitters import DelimiterSplitter, FixedLengthSplitter
from trl_prl.types import Completion, SamplingParams


SEARCHES: dict[str, Any] = {
    "beam": lambda *given, **options: beam_search(*given, beam_size=4, **options),
    "dvts": lambda *given, **options: dvts(*given, num_trees=4, **options),
    "rejection": lambda *given, **options: step_rejection(*given, num_chains=4, **options),
    "best_of_n": lambda *given, **options: best_of_n_search(*given, n=4, **options),
}


def search(name: str, problems: list[Problem], reward: Any, **changes: Any) -> list[SearchResult]:
    return SEARCHES[name](problems, process_reward=reward, **{**line_search(arithmetic_generator()), **changes})


def scripted(run: Any, table: dict[str, list[str]], values: dict[str, Any], **options: Any) -> SearchResult:
    """Search one problem on scripted steps; the first step's list is the entry of the empty text."""
    generator = options.pop("generator", None) or StepScript(table)
    reward = options.pop("reward", None) or EffectiveReward(TableReward(values), alpha=0.0)
    arguments = {**line_search(generator, options.pop("max_tokens", 40)), **options}
    return run([generator.problem()], process_reward=reward, keep_tree=True, **arguments)[0]


def outcome(results: list[SearchResult]) -> list[Any]:
    """What does not depend on the clock."""
    return [(r.row, r.candidates, r.chosen, replace(r.cost, seconds=0.0), r.tree) for r in results]


# ---- invariants, for every search ----


@pytest.mark.parametrize("name", SEARCHES)
def test_permuting_problems_permutes_results(name: str) -> None:
    problems, reward = arithmetic_search_problems(5, 6), ArithmeticProcessReward()
    results = outcome(search(name, problems, reward))
    assert outcome(search(name, problems[::-1], reward)) == results[::-1]
    assert outcome(search(name, problems[2:3], reward)) == results[2:3]
    assert outcome(search(name, problems, reward, **line_search(arithmetic_generator(), seed=1))) != results


@pytest.mark.parametrize("name", SEARCHES)
def test_equal_prompts_under_different_rows_are_searched_apart(name: str) -> None:
    problem = arithmetic_search_problems(1, 8)[0]
    twin = Problem(1, problem.prompt, problem.prompt_ids, problem.columns)
    first, second = search(name, [problem, twin], ArithmeticProcessReward())
    assert (first.row, second.row) == (0, 1)
    assert first.candidates != second.candidates


@pytest.mark.parametrize("name", SEARCHES)
def test_steps_of_candidates_are_those_of_the_splitter(name: str) -> None:
    setting = line_search(arithmetic_generator())
    for result in search(name, arithmetic_search_problems(4), ArithmeticProcessReward()):
        for candidate in result.candidates:
            (ends,) = step_ends(setting["splitter"], setting["token_pieces"], [candidate.token_ids])
            assert len(candidate.steps) == len(candidate.values) == len(candidate.advantages) == len(ends)
            assert candidate.text.encode() == setting["token_pieces"].join(candidate.token_ids)[0]


@pytest.mark.parametrize("name", SEARCHES)
def test_only_finished_candidates_are_chosen(name: str) -> None:
    """Room for some completions only: the others are returned, flagged, and never the answer."""
    results = search(name, arithmetic_search_problems(12, 4), ArithmeticProcessReward(), **limited(11))
    candidates = [candidate for result in results for candidate in result.candidates]
    assert {candidate.end_reason for candidate in candidates} == {"eos", "length"}
    for result in results:
        finished = [candidate for candidate in result.candidates if candidate.finished]
        assert (result.answer is None) == (not finished)
        if result.answer is not None:
            assert result.answer.finished
            assert result.answer.value == max(candidate.value for candidate in finished)
        assert all(len(candidate.token_ids) <= 11 for candidate in result.candidates)


@pytest.mark.parametrize("name", ["beam", "dvts", "rejection"])
@pytest.mark.parametrize("step_length", [1, 2])
def test_a_completion_ends_where_the_models_positions_do(name: str, step_length: int) -> None:
    generator = few_positions(24)
    problem = Problem(0, "Add", tuple(generator.tokenizer("Add 1 + 2.").input_ids))
    setting = {**line_search(generator, 32), "splitter": FixedLengthSplitter(step_length)}
    (result,) = search(name, [problem], TableReward({}), **setting)
    room = 24 - len(problem.prompt_ids)
    cut = [candidate for candidate in result.candidates if not candidate.finished]
    assert cut
    assert {(candidate.end_reason, len(candidate.token_ids)) for candidate in cut} == {("length", room)}


def limited(max_tokens: int) -> dict[str, Any]:
    return line_search(arithmetic_generator(), max_tokens)


@pytest.mark.parametrize("name", SEARCHES)
def test_texts_are_scored_once_and_returned_once(name: str) -> None:
    reward = CountingReward()
    results = search(name, arithmetic_search_problems(4), reward)
    assert len(reward.asked) == len(set(reward.asked)) == sum(result.cost.num_scored for result in results)
    for result in results:
        texts = [(candidate.text, candidate.finished) for candidate in result.candidates]
        assert name == "best_of_n" or len(texts) == len(set(texts))


class CountingReward(ArithmeticProcessReward):
    """Exact values; remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, str, bool]] = []

    def __call__(self, prompts: Any, steps: Any, finished: Any = None, **columns: Any) -> Any:
        self.asked += [(p, "".join(s), f) for p, s, f in zip(prompts, steps, finished, strict=True)]
        return super().__call__(prompts, steps, finished, **columns)


@pytest.mark.parametrize("name", SEARCHES)
def test_results_are_plain_json(name: str) -> None:
    options = {} if name == "best_of_n" else {"keep_tree": True}
    (result,) = search(name, arithmetic_search_problems(1), ArithmeticProcessReward(), **options)
    rows = [candidate.as_dict() for candidate in result.candidates]
    assert json.loads(json.dumps([rows, result.tree, vars(result.cost)], allow_nan=False))[0] == rows


@pytest.mark.parametrize("name", ["beam", "dvts", "rejection"])
def test_row_numbers_must_differ(name: str) -> None:
    problem = arithmetic_search_problems(1)[0]
    with pytest.raises(ValueError, match="same row number"):
        search(name, [problem, problem], ArithmeticProcessReward())


def test_no_problems_give_no_results() -> None:
    assert [search(name, [], ArithmeticProcessReward()) for name in SEARCHES] == [[]] * 4


# ---- what a search reduces to ----


def test_alpha_zero_is_q_only() -> None:
    problems, exact = arithmetic_search_problems(4, 6), ArithmeticProcessReward()
    by_value = outcome(search("beam", problems, EffectiveReward(exact, rank_by="values")))
    assert outcome(search("beam", problems, EffectiveReward(exact, alpha=0.0))) == by_value
    assert outcome(search("beam", problems, EffectiveReward(exact, alpha=3.0, best_of_k=8))) != by_value


def test_alpha_zero_never_asks_the_prover() -> None:
    class Unused(ArithmeticProcessReward):
        def __call__(self, *given: Any, **columns: Any) -> Any:
            raise AssertionError("the prover was asked")

    reward = EffectiveReward(ArithmeticProcessReward(), Unused(), alpha=0.0)
    assert search("beam", arithmetic_search_problems(1), reward)[0].answer is not None


@pytest.mark.parametrize("run", [beam_search, dvts])
def test_one_place_and_one_expansion_is_plain_sampling_in_steps(run: Any) -> None:
    problems, setting = arithmetic_search_problems(6), line_search(arithmetic_generator())
    size = {"beam_size": 1} if run is beam_search else {"num_trees": 1}
    results = run(problems, process_reward=ArithmeticProcessReward(), expansions=1, **size, **setting)
    sampler = StepSampler(**setting)
    for problem, result in zip(problems, results, strict=True):
        sample = sampler.draw([StepRequest(problem, (), 1, "tree0")])[0][0]
        while sample.end == "step":
            sample = sampler.draw([StepRequest(problem, sample.ids, 1, "tree0")])[0][0]
        (candidate,) = result.candidates
        assert candidate.token_ids == sample.ids
        assert result.chosen == (0 if sample.end == "eos" else None)


def test_one_tree_is_a_beam_of_one() -> None:
    problems, reward = arithmetic_search_problems(4), ArithmeticProcessReward()
    setting = line_search(arithmetic_generator())
    one = dvts(problems, process_reward=reward, num_trees=1, **setting)
    assert outcome(one) == outcome(beam_search(problems, process_reward=reward, beam_size=1, **setting))


def test_one_try_is_plain_sampling_and_costs_as_much() -> None:
    problems = arithmetic_search_problems(4)
    plain = search("rejection", problems, ArithmeticProcessReward(), max_tries=1)
    anything = search("rejection", problems, ArithmeticProcessReward(), min_advantage=-math.inf)
    assert [r.candidates for r in plain] == [r.candidates for r in anything]
    picky = search("rejection", problems, ArithmeticProcessReward(), max_tries=8)
    assert sum(r.cost.num_samples for r in picky) > sum(r.cost.num_samples for r in plain)
    right = [r.answer is not None and read_answer(r.answer.text) == int(p.columns["answer"])
             for r, p in zip(picky, problems, strict=True)]  # fmt: skip
    assert all(right)


# ---- beams by hand ----


def test_beam_by_hand() -> None:
    """Two places, two expansions: ranked by value, the answer by value, every number counted."""
    table = {"": ["1\n", "2\n", "3\n", "4\n"], "1\n": ["#1", "#5"], "4\n": ["#2", "#3"]}
    values = {"1\n": 0.6, "2\n": 0.2, "3\n": 0.1, "4\n": 0.9, "1\n#1": 0.8, "1\n#5": 0.1, "4\n#2": 0.4, "4\n#3": 0.7}
    generator = StepScript(table)
    result = scripted(beam_search, table, values, generator=generator, beam_size=2, expansions=2)
    assert [candidate.text for candidate in result.candidates] == ["1\n#1", "4\n#3"]
    assert result.answer is not None
    assert result.answer.text == "1\n#1"
    assert result.cost.num_samples == 8
    assert result.cost.num_generated_tokens == generator.num_tokens == 4 * 2 + 4 * 3
    assert result.cost.num_scored == 8
    # The prompt has 4 tokens, a first step 2, and the second 3 with its end token.
    assert result.cost.num_scored_tokens == 4 * (4 + 2) + 4 * (4 + 5)
    assert result.cost.num_prompt_tokens == 4 + 2 * 6
    assert generator.num_calls == 2
    assert 0 < result.cost.seconds < 10
    assert result.tree is not None
    status = {node["text"]: node["status"] for node in result.tree}
    assert status["4\n"] == status["1\n"] == "kept"
    assert status["2\n"] == status["#5"] == "pruned"
    assert (status["#1"], status["#3"]) == ("chosen", "finished")
    node = next(node for node in result.tree if node["text"] == "2\n")
    assert (node["parent"], node["depth"], node["reason"]) == (0, 1, "rank 3 of 4, 0 of 2 places")


def test_effective_reward_by_hand() -> None:
    """Progress can outweigh value: 0.5 + 2 * (0.5 - 0.1) > 0.6 + 2 * (0.6 - 0.5)."""
    table = {"": ["1\n", "2\n"], "1\n": ["3\n"], "2\n": ["4\n"], "1\n3\n": ["#1"], "2\n4\n": ["#2"]}
    values = {"1\n": 0.1, "2\n": 0.5, "1\n3\n": 0.5, "2\n4\n": 0.6, "1\n3\n#1": 0.9, "2\n4\n#2": 0.8}
    chosen = {}
    for alpha in (0.0, 2.0):
        reward = EffectiveReward(TableReward(values), alpha=alpha)
        result = scripted(beam_search, table, values, reward=reward, beam_size=2, expansions=1)
        assert result.tree is not None
        scores = {node["text"]: node["score"] for node in result.tree}
        assert scores["3\n"] == pytest.approx(0.5 + alpha * 0.4)
        chosen[alpha] = scores["3\n"] > scores["4\n"]
        # The first step's progress is measured from the prompt's own value, 0.5.
        assert scores["1\n"] == pytest.approx(0.1 + alpha * (0.1 - 0.5))
    assert chosen == {0.0: False, 2.0: True}


def test_a_second_verifier_gives_the_progress_under_its_own_best_of_k() -> None:
    table = {"": ["1\n", "2\n"], "1\n": ["#1"], "2\n": ["#2"]}
    prover = TableReward({"1\n": 0.1, "2\n": 0.3}, initial=0.2)
    reward = EffectiveReward(TableReward({}), prover, alpha=1.0, best_of_k=2)
    result = scripted(beam_search, table, {}, reward=reward, beam_size=2, expansions=1)
    assert result.tree is not None
    nodes = {node["text"]: node for node in result.tree}
    assert nodes["1\n"]["value"] == 0.5
    assert nodes["1\n"]["advantage"] == pytest.approx((1 - 0.9**2) - (1 - 0.8**2))
    assert nodes["2\n"]["score"] == pytest.approx(0.5 + (1 - 0.7**2) - (1 - 0.8**2))
    # Both read every text.
    assert result.cost.num_scored_tokens == 2 * (2 * 6 + 2 * 9)
    by_progress = replace(reward, rank_by="advantages")
    result = scripted(beam_search, table, {}, reward=by_progress, beam_size=1, expansions=2)
    assert result.answer is not None
    assert result.answer.text == "2\n#2"


def test_prover_may_return_advantages() -> None:
    class Progress(TableReward):
        returns = "advantages"

    table = {"": ["1\n", "2\n"], "1\n": ["#1"], "2\n": ["#2"]}
    reward = EffectiveReward(TableReward({}), Progress({"1\n": -0.2, "2\n": 0.3}), alpha=1.0)
    result = scripted(beam_search, table, {}, reward=reward, beam_size=1, expansions=2)
    assert [candidate.text for candidate in result.candidates] == ["2\n#2"]
    with pytest.raises(ValueError, match="finished solutions are compared by their value"):
        EffectiveReward(Progress({}))


def test_process_rewards_are_told_what_is_finished() -> None:
    """The last line of an unfinished solution is no outcome."""
    reward = TableReward({})
    scripted(beam_search, {"": ["1\n"], "1\n": ["#1"]}, {}, reward=EffectiveReward(reward), beam_size=1)
    assert reward.asked == [("1\n", False), ("1\n#1", True)]


def test_short_solution_does_not_end_the_search_of_longer_ones() -> None:
    """The first finished one keeps its place; the better, longer one is still found and chosen."""
    table = {"": ["#9", "1\n"], "1\n": ["2\n"], "1\n2\n": ["3\n"], "1\n2\n3\n": ["#6"]}
    values = {"#9": 0.7, "1\n": 0.5, "1\n2\n": 0.5, "1\n2\n3\n": 0.5, "1\n2\n3\n#6": 0.9}
    result = scripted(beam_search, table, values, beam_size=2, expansions=1)
    assert [candidate.text for candidate in result.candidates] == ["#9", "1\n2\n3\n#6"]
    assert result.answer is not None
    assert result.answer.text == "1\n2\n3\n#6"


def test_pruned_siblings_of_the_last_step_are_not_returned() -> None:
    table = {"": ["#1", "#2", "#3", "#4"]}
    result = scripted(beam_search, table, {"#3": 0.9, "#1": 0.8}, beam_size=2, expansions=2)
    assert [candidate.text for candidate in result.candidates] == ["#3", "#1"]


def test_duplicates_are_one_node_with_their_places() -> None:
    """Three of four samples agree: one node, expanded for three; a finished one holds its places too."""
    table = {"": ["1\n", "1\n", "1\n", "2\n"], "1\n": ["#1"], "2\n": ["#2"]}
    generator, reward = StepScript(table), TableReward({"1\n": 0.9, "2\n": 0.8})
    result = scripted(
        beam_search,
        table,
        {},
        generator=generator,
        reward=EffectiveReward(reward, alpha=0.0),
        beam_size=4,
        expansions=1,
    )
    assert [(candidate.text, candidate.count) for candidate in result.candidates] == [("1\n#1", 3), ("2\n#2", 1)]
    assert reward.asked == [("1\n", False), ("2\n", False), ("1\n#1", True), ("2\n#2", True)]
    assert result.tree is not None
    assert [(node["text"], node["count"], node["places"]) for node in result.tree[1:3]] == [
        ("1\n", 3, 3),
        ("2\n", 1, 1),
    ]
    # A prefix is sent once for all of its samples.
    assert len(generator.prompts) == 3


def test_a_merged_node_goes_on_from_the_sample_that_has_room() -> None:
    """The same text in two tokens, which is the limit, and in one."""
    pieces: Any = PieceTable([b"a", b"\n", b"a\n"])

    class Spellings:
        def generate(self, prompts: Any, params: Any) -> Any:
            drawn = [[(1, 2), (3,)] if len(prompt.token_ids) == 1 else [(0,)] * params.n for prompt in prompts]
            return [[Completion(ids, "", "stop" if ids[-1] else "eos") for ids in row] for row in drawn]

    setting: Any = {
        "splitter": DelimiterSplitter("\n"),
        "token_pieces": pieces,
        "sampling": SamplingParams(max_tokens=2),
    }
    reward = EffectiveReward(TableReward({}), alpha=0.0)
    given = {"beam_size": 1, "expansions": 2, "keep_tree": True, **setting}
    (result,) = beam_search([Problem(0, "p", (1,))], Spellings(), reward, **given)
    assert [(candidate.token_ids, candidate.end_reason) for candidate in result.candidates] == [((3, 0), "eos")]
    assert result.tree is not None
    assert [(node["count"], node["end"]) for node in result.tree[1:]] == [(2, None), (2, "eos")]


@pytest.mark.parametrize(("size", "alpha"), [(3, 0.0), (6, 0.5)])
def test_merging_changes_nothing_but_the_cost(size: int, alpha: float) -> None:
    """The search equals one that keeps every duplicate as an element of its own."""
    problems, setting = arithmetic_search_problems(6, 5), line_search(arithmetic_generator(), 30)
    reward = EffectiveReward(ArithmeticProcessReward(), alpha=alpha)
    results = beam_search(problems, process_reward=reward, beam_size=size, expansions=2, **setting)
    num_duplicates = 0
    for problem, result in zip(problems, results, strict=True):
        kept = beam_with_duplicates(problem, setting, reward, size, 2)
        texts = Counter(setting["token_pieces"].join(sample.ids)[0].decode() for sample in kept)
        assert {candidate.text for candidate in result.candidates} == set(texts)
        num_duplicates += len(kept) - len(texts)
    assert num_duplicates > 0


def beam_with_duplicates(
    problem: Problem, setting: dict[str, Any], reward: EffectiveReward, size: int, expansions: int
) -> list[StepSample]:
    """A beam without any merging, in a few lines."""
    sampler, pieces = StepSampler(**setting), setting["token_pieces"]
    live, ended = [StepSample(())] * size, []
    while live:
        drawn = [
            sample
            for ids, places in Counter(sample.ids for sample in live).items()
            for sample in sampler.draw([StepRequest(problem, ids, places * expansions, "tree0")])[0]
        ]
        texts = [pieces.join(sample.ids)[0].decode() for sample in drawn]
        steps = [re.findall(r"[^\n]*\n+|[^\n]+", text) for text in texts]
        scored = score_solutions(reward, [problem] * len(drawn), steps, [sample.end == "eos" for sample in drawn])
        order = sorted(range(len(drawn)), key=lambda k: (-scored[k].score, texts.index(texts[k])))
        best = [drawn[k] for k in order[: size - len(ended)]]
        live = [sample for sample in best if sample.end == "step"]
        ended += [sample for sample in best if sample.end != "step"]
    return ended


def test_fewer_candidates_than_places() -> None:
    """Greedy sampling yields one text however many places there are."""
    result = scripted(beam_search, {"": ["1\n"], "1\n": ["#1"]}, {}, beam_size=16, expansions=3)
    assert [(candidate.text, candidate.count) for candidate in result.candidates] == [("1\n#1", 48)]
    assert result.chosen == 0


def test_unscored_candidates_rank_last_and_are_counted() -> None:
    table = {"": ["1\n", "2\n", "3\n"], "2\n": ["#2"]}
    for unknown in (None, math.nan):
        result = scripted(beam_search, table, {"1\n": unknown, "2\n": 0.0, "3\n": unknown}, beam_size=1, expansions=3)
        assert [candidate.text for candidate in result.candidates] == ["2\n#2"]
        assert result.cost.num_unscored == 2


def test_equal_samples_without_a_score_are_one_text_without_it() -> None:
    table = {"": ["#1", "#1", "#1", "#2"]}
    generator, reward = StepScript(table), TableReward({"#1": None, "#2": 0.5})
    (result,) = best_of_n_search([generator.problem()], process_reward=reward, n=4, **line_search(generator))
    cost = result.cost
    assert (cost.num_samples, cost.num_scored, cost.num_unscored, result.chosen) == (4, 2, 1, 3)
    assert cost.num_scored_tokens == sum(
        len(generator.problem().prompt_ids) + len(result.candidates[k].token_ids) for k in (0, 3)
    )


def test_limits_end_the_search_and_flag_what_is_unfinished() -> None:
    table = {"1\n" * depth: ["1\n"] for depth in range(60)}
    cases: list[tuple[dict[str, Any], str, int]] = [
        ({"limits": SearchLimits(max_steps=3)}, "steps", 3),
        ({"limits": SearchLimits(max_generated_tokens=8)}, "budget", 4),
        ({"max_tokens": 10}, "length", 5),
    ]
    for options, reason, num_steps in cases:
        result = scripted(beam_search, table, {}, beam_size=1, expansions=1, **options)
        assert [(c.end_reason, len(c.steps)) for c in result.candidates] == [(reason, num_steps)]
        assert result.chosen is None
        assert result.tree is not None
        assert result.tree[-1]["status"] == "unfinished"
    result = scripted(beam_search, table, {}, limits=SearchLimits(max_seconds=1e-9))
    assert (result.candidates, result.chosen, result.cost.num_samples) == ((), None, 0)
    for run in (dvts, step_rejection):
        result = scripted(run, table, {}, limits=SearchLimits(max_steps=3))
        assert {c.end_reason for c in result.candidates} == {"steps"}


@pytest.mark.parametrize("limits", [{"max_steps": 0}, {"max_generated_tokens": 0}, {"max_seconds": -1.0}])
def test_limits_without_room_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no room for a single step"):
        SearchLimits(**limits)


def test_trees_of_dvts_do_not_see_each_other() -> None:
    """A beam of two drops the worse start; two trees keep one each wherever they began."""
    problems = arithmetic_search_problems(8, 8)
    exact = ArithmeticProcessReward()
    trees = search("dvts", problems, exact, keep_tree=True)
    beams = search("beam", problems, exact, keep_tree=True)
    assert [r.cost.num_samples for r in trees] == pytest.approx([r.cost.num_samples for r in beams], rel=0.3)
    kept = [sum(n["depth"] == 1 and n["status"] == "kept" for n in r.tree or []) for r in trees]
    assert kept == [4] * 8


def test_rejection_by_hand() -> None:
    """The first step that loses nothing is kept; where all lose, the best of them."""
    table = {"": ["1\n"], "1\n": ["#1"]}
    generator = StepScript(table)
    values = {"1\n": 0.1, "1\n#1": 0.9}
    result = scripted(step_rejection, table, values, generator=generator, num_chains=1, max_tries=3)
    assert result.cost.num_samples == 4
    assert [candidate.text for candidate in result.candidates] == ["1\n#1"]
    assert result.tree is not None
    assert [node["status"] for node in result.tree[1:]] == ["kept", "pruned", "pruned", "chosen"]
    assert result.tree[1]["reason"] == "best of 3 rejected"
    # Tries draw under keys of their own.
    assert len({prompt.key for prompt in generator.prompts}) == 4


def test_rejection_needs_progress() -> None:
    reward = EffectiveReward(TableReward({}), TableReward({}), alpha=0.0)
    with pytest.raises(ValueError, match="steps are kept or rejected by it"):
        scripted(step_rejection, {"": ["#1"]}, {}, reward=reward)


def test_settings_that_cannot_rank_are_refused() -> None:
    for options in ({"alpha": -1.0}, {"alpha": math.inf}, {"best_of_k": 0}, {"rank_by": "value"}):
        with pytest.raises(ValueError, match="nothing can be ranked"):
            EffectiveReward(TableReward({}), **options)
    with pytest.raises(ValueError, match="says nothing about the prompt's own value"):
        EffectiveReward(lambda prompts, steps, **columns: [])
    with pytest.raises(ValueError, match="no step is sampled"):
        scripted(beam_search, {}, {}, beam_size=0)


# ---- whole completions ----


def test_smaller_n_are_the_first_samples() -> None:
    problems, setting = arithmetic_search_problems(4), line_search(arithmetic_generator())
    large = best_of_n_search(problems, process_reward=ArithmeticProcessReward(), n=8, **setting)
    small = best_of_n_search(problems, process_reward=ArithmeticProcessReward(), n=3, **setting)
    for many, few in zip(large, small, strict=True):
        assert many.candidates[:3] == few.candidates
        assert choose(many.candidates[:3]) == few.chosen


@pytest.mark.parametrize("aggregation", ["last", "min", "mean", "product", "soft_min"])
def test_aggregation_reaches_the_choice_and_the_vote(aggregation: Any) -> None:
    problems, setting = arithmetic_search_problems(6, 6), line_search(arithmetic_generator())
    options: dict[str, Any] = {"n": 6, "aggregation": aggregation, "answer_of": read_answer}
    best = best_of_n_search(problems, process_reward=ArithmeticProcessReward(), **options, **setting)
    voted = best_of_n_search(
        problems, process_reward=ArithmeticProcessReward(), choice="weighted_vote", **options, **setting
    )
    for one, other in zip(best, voted, strict=True):
        scores = [aggregate_step_values(candidate.values, aggregation) for candidate in one.candidates]
        assert [candidate.score for candidate in one.candidates] == pytest.approx(scores, nan_ok=True)
        finished = {k: score for k, score in enumerate(scores) if one.candidates[k].finished}
        assert one.chosen == max(finished, key=lambda k: finished[k])
        sums: dict[Any, float] = {}
        for k, score in finished.items():
            answer = read_answer(one.candidates[k].text)
            sums[answer] = sums.get(answer, 0.0) + score
        assert other.answer is not None
        assert sums[read_answer(other.answer.text)] == pytest.approx(max(sums[a] for a in sums if a is not None))


def test_majority_needs_no_process_reward_and_unfinished_ones_have_no_vote() -> None:
    problems = arithmetic_search_problems(12)
    setting = limited(11)
    results = best_of_n_search(
        problems, process_reward=None, n=8, choice="majority_vote", answer_of=read_answer, **setting
    )
    assert sum(result.cost.num_scored for result in results) == 0
    for result in results:
        answers = [read_answer(c.text) for c in result.candidates if c.finished]
        counted = [answer for answer in answers if answer is not None]
        if result.answer is not None and counted:
            most = max(map(counted.count, counted))
            assert counted.count(read_answer(result.answer.text)) == most


@pytest.mark.parametrize("reward", [None, ArithmeticProcessReward()])
def test_no_choice_takes_no_vote(reward: Any) -> None:
    problems, setting = arithmetic_search_problems(2), line_search(arithmetic_generator())
    given: dict[str, Any] = {"process_reward": reward, "n": 4, **setting}
    chosen = {"choice": "majority_vote", "answer_of": read_answer} if reward is None else {}
    for plain, voted in zip(
        best_of_n_search(problems, choice=None, **given), best_of_n_search(problems, **chosen, **given), strict=True
    ):
        assert plain.chosen is None
        assert [candidate.as_dict() for candidate in plain.candidates] == [c.as_dict() for c in voted.candidates]


def test_pav_as_an_outcome_reward_model_scores_the_last_step_by_effective_reward() -> None:
    problems, setting = arithmetic_search_problems(2), line_search(arithmetic_generator())
    reward = EffectiveReward(ArithmeticProcessReward(), alpha=0.5, best_of_k=4)
    for result in best_of_n_search(problems, process_reward=reward, n=4, **setting):
        for candidate in result.candidates:
            if candidate.finished:
                assert candidate.score == pytest.approx(candidate.values[-1] + 0.5 * candidate.advantages[-1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"choice": "first"}, "no such rule"),
        ({"process_reward": None}, "there are no scores"),
        ({"choice": "majority_vote"}, "which completions agree"),
        ({"n": 0}, "no step is sampled"),
    ],
)
def test_choices_that_cannot_be_made_are_refused(options: dict[str, Any], message: str) -> None:
    given = {"process_reward": ArithmeticProcessReward(), **line_search(arithmetic_generator()), **options}
    with pytest.raises(ValueError, match=message):
        best_of_n_search(arithmetic_search_problems(1), **given)
