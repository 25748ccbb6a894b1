"""The path task: exact values, the conditions a task must meet before methods are compared on it, and training."""

from __future__ import annotations

import random
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.benchmarks.path_training import Run, evaluate_paths, train_paths
from tests.benchmarks.train_path_policy import build_path_tokenizer, sample_walk
from trl_prl.demo.path_prover import PathProcessReward, values
from trl_prl.demo.paths import (
    FAR,
    MAX_COMPLETION_LENGTH,
    MAX_LINES,
    NEAR,
    PathProblem,
    distances,
    is_right,
    neighbour_matrix,
    parse_problem,
    path_dataset,
    path_policy_path,
    path_reward,
    problems_of,
)


NODES = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUV"


@cache
def edges() -> frozenset[tuple[str, str]]:
    """Pairs of joined nodes by name."""
    return frozenset((NODES[a], NODES[b]) for a, b in np.argwhere(neighbour_matrix()).tolist())


@cache
def samples(name: str) -> list[tuple[PathProblem, str]]:
    """Solutions of the shipped policy, eight for each problem of the test split."""
    model = AutoModelForCausalLM.from_pretrained(path_policy_path())
    tokenizer = AutoTokenizer.from_pretrained(path_policy_path())
    problems = [p for p in problems_of("test", NEAR if name == "near" else FAR) for _ in range(8)]
    ids = tokenizer([problem.prompt for problem in problems], return_tensors="pt")["input_ids"]
    torch.manual_seed(0)
    output = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_COMPLETION_LENGTH, do_sample=True
    )
    texts = tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
    return list(zip(problems, texts, strict=True))


# ---- the graph and its problems ----


def test_graph_is_connected_and_symmetric() -> None:
    joined = neighbour_matrix()
    assert (joined == joined.T).all()
    assert not joined.diagonal().any()
    assert joined.sum(1).min() >= 3
    assert (distances() >= 0).all()
    assert distances().max() < 48


def test_splits_share_no_problem_and_problems_have_their_length() -> None:
    for num_edges in (NEAR, FAR):
        found = {split: set(problems_of(split, num_edges)) for split in ("train", "tuning", "test")}
        assert not found["train"] & found["test"]
        assert not found["tuning"] & found["test"]
        ends = [(NODES.index(p.start), NODES.index(p.goal)) for group in found.values() for p in group]
        assert all(num_edges[0] <= distances()[pair] <= num_edges[1] for pair in ends)
    assert path_dataset("test", 7, seed=1)["prompt"] == path_dataset("test", 7, seed=1)["prompt"]
    with pytest.raises(ValueError, match="no such split"):
        problems_of("dev", NEAR)  # type: ignore[arg-type]


def test_data_sets_of_the_pipeline_page_share_no_problem(repo_root: Path) -> None:
    page = (repo_root / "docs" / "pipeline.md").read_text(encoding="utf-8")
    made = re.findall(r'path_dataset\("(\w+)", (\d+), seed=(\d+)\)', page)
    prompts = [path_dataset(split, int(n), int(seed))["prompt"] for split, n, seed in made]  # type: ignore[arg-type]
    assert len(made) == 3
    assert len({prompt for part in prompts for prompt in part}) == sum(map(len, prompts))


def test_prompts_are_read_back() -> None:
    problem = problems_of("test", NEAR)[0]
    assert parse_problem(problem.prompt) == problem
    with pytest.raises(ValueError, match="names no start and goal"):
        parse_problem("a>1=")


# ---- outcomes and values ----


def walk_along(num_lines: int) -> tuple[PathProblem, str]:
    """A problem and a walk of so many lines along existing edges that ends at its goal."""
    generator = random.Random(3)
    while True:
        problem = generator.choice(problems_of("train", (num_lines, num_lines)))
        text = sample_walk(problem, 0.0, generator)
        if text.count("\n") == num_lines:
            return problem, text


def test_outcome_by_hand() -> None:
    problem, text = walk_along(3)
    first, second, third = text.split()
    right = [text, text.rstrip("\n"), f"{text}{problem.start}\n"]
    wrong = [f"{first}\n{second}\n", f"{first}\n{third}\n", f"{problem.goal}\n", "", f"{first}\n?\n{third}\n"]
    assert path_reward([problem.prompt] * 3, right) == [1.0] * 3
    assert path_reward([problem.prompt] * 5, wrong) == [0.0] * 5


def test_the_goal_must_be_reached_in_time() -> None:
    problem, text = walk_along(2)
    first, last = text.split()
    detour = f"{first}\n{problem.start}\n" * ((MAX_LINES - 2) // 2)
    assert is_right(problem.prompt, f"{detour}{first}\n{last}\n")
    assert not is_right(problem.prompt, f"{detour}{first}\n{problem.start}\n{first}\n{last}\n")


def test_values_by_recursion() -> None:
    wander, goal = 0.3, 5

    @cache
    def value(node: int, lines: int) -> float:
        if node == goal or lines == 0:
            return float(node == goal)
        around = np.flatnonzero(neighbour_matrix()[node]).tolist()
        closer = [n for n in around if distances()[n, goal] < distances()[node, goal]]
        go_on = [value(n, lines - 1) for n in around]
        return (1 - wander) * np.mean([value(n, lines - 1) for n in closer]) + wander * np.mean(go_on)

    table = values(wander)
    for node in range(0, 48, 5):
        for lines in (0, 1, 4, MAX_LINES):
            assert table[lines, goal, node] == pytest.approx(value(node, lines), abs=1e-12)


def test_values_are_shares_of_walks() -> None:
    generator, problem = random.Random(0), problems_of("train", (6, 6))[0]
    (value,) = PathProcessReward(0.5).initial_values([problem.prompt])
    right = [is_right(problem.prompt, sample_walk(problem, 0.5, generator)) for _ in range(2000)]
    assert np.mean(right) == pytest.approx(value, abs=4 * np.sqrt(value * (1 - value) / 2000))


def test_step_values_by_hand() -> None:
    problem, text = walk_along(3)
    first, second, third = text.split()
    reward = PathProcessReward(0.3)
    table = values(0.3)[:, NODES.index(problem.goal)]
    (scores,) = reward([problem.prompt], [[f"{first}\n", f"{second}\n", f"{third}\n"]])
    assert scores == [table[11, NODES.index(first)], table[10, NODES.index(second)], 1.0]
    (cut,) = reward([problem.prompt], [[f"{first}\n", f"{second}\n"]])
    assert cut == [table[11, NODES.index(first)], 0.0]
    (going_on,) = reward([problem.prompt], [[f"{first}\n", f"{second}\n"]], finished=[False])
    assert going_on == [table[11, NODES.index(first)], table[10, NODES.index(second)]]
    (wrong,) = reward([problem.prompt], [[f"{first}\n", "?\n", f"{third}\n"]])
    assert wrong == [table[11, NODES.index(first)], 0.0, 0.0]
    # A step that ends inside a line has the value of the lines before.
    (halves,) = reward([problem.prompt], [[first, f"\n{second}\n"]], finished=[False])
    assert halves == [table[12, NODES.index(problem.start)], table[10, NODES.index(second)]]


# ---- what a task must be ----


@pytest.mark.slow
def test_no_right_answer_comes_through_a_wrong_line() -> None:
    num_right = 0
    for problem, text in [*samples("near"), *samples("far")]:
        if not is_right(problem.prompt, text):
            continue
        num_right += 1
        lines = (
            text[: text.index(f"{problem.goal}\n") + 1].split("\n") if f"{problem.goal}\n" in text else text.split()
        )
        assert set(zip([problem.start, *lines], lines, strict=False)) <= edges()
    assert num_right > 100


@pytest.mark.parametrize(("name", "fewest", "most"), [("near", 0.20, 0.40), ("far", 0.01, 0.05)])
def test_the_shipped_policy_succeeds_now_and_then(name: str, fewest: float, most: float) -> None:
    right = [is_right(problem.prompt, text) for problem, text in samples(name)]
    assert fewest <= np.mean(right) <= most


def test_mistakes_are_the_policys_own() -> None:
    """It knows most edges and imitates walks; nothing in its data is wrong but for walks that miss the goal."""
    wrong = [(p, text.split()) for p, text in samples("far") if not is_right(p.prompt, text)]
    impossible = [
        any(edge not in edges() for edge in zip([p.start, *lines], lines, strict=False)) for p, lines in wrong
    ]
    assert 0.0 < np.mean(impossible) < 0.5


def test_verifying_is_easier_than_generating() -> None:
    """Who only chooses among three random edges, by their values, solves ten times as many far problems."""
    generator, right = random.Random(0), []
    reward = PathProcessReward(0.3)
    for problem in problems_of("test", FAR)[:60]:
        text = ""
        for _ in range(MAX_LINES):
            node = text[-2] if text else problem.start
            around = sorted(b for a, b in edges() if a == node)
            tries = [f"{text}{generator.choice(around)}\n" for _ in range(3)]
            text = max(tries, key=lambda t: reward([problem.prompt], [[t]], finished=[False])[0][0])
        right.append(is_right(problem.prompt, text))
    assert np.mean(right) > 0.35


# ---- policy and training ----


def test_tokenizer_is_the_shipped_one() -> None:
    shipped = AutoTokenizer.from_pretrained(path_policy_path())
    text = "a>V=b\nc\n"
    assert shipped(text)["input_ids"] == build_path_tokenizer()(text)["input_ids"]
    assert len(shipped(text)["input_ids"]) == len(text)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["GRPO", "PRL", "PAV", "RLOO"])
def test_every_method_trains_and_is_measured(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "tests.benchmarks.path_training.problems_of", lambda split, edges: problems_of(split, edges)[:4]
    )
    run = Run(method, 1e-3, coefficient=0.1, num_prompts=4, num_generations=4, max_steps=2, options="top_p=0.9")
    model, result = train_paths(run, path_policy_path(), "tuning", evaluate_every=1)
    assert len(result["curve"]) == 2
    assert list(result["scores"]) == [0, 1, 2]
    assert 0 <= result["scores"][2]["near/avg"] <= 100
    assert result["scores"][2]["far/kl"] != 0.0
    assert evaluate_paths(model, AutoTokenizer.from_pretrained(path_policy_path()), "tuning", 4, seed=1)
