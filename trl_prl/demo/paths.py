"""Finding a path in a known graph, with a prover whose values are exact at every line.

The graph is fixed: 48 nodes scattered over a square, each joined to its three nearest. A problem names a start and a
goal; a solution is a walk, one node a line, that ends at the goal:

    A>f=          (the prompt)
    K
    c
    f

It is right if every line is a neighbour of the line before and the goal is reached within `MAX_LINES` lines. A walk
cannot reach its goal by luck through a wrong line: what comes after an impossible line is never right.

The prover goes on from the last node: with probability `wander` to any neighbour, else to one that lies on a shortest
path, ties drawn evenly. So its probability of success depends on the node, the goal and the lines left, and follows
from dynamic programming.
"""

from __future__ import annotations

import random
import re
import string
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal

import numpy as np


if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

Split = Literal["train", "tuning", "test"]

NUM_NODES = 48
NUM_NEAREST = 3
MAX_LINES = 12
MAX_COMPLETION_LENGTH = 2 * MAX_LINES + 1  # a node and a line break per line, and the end token
NEAR = (2, 3)
"""Edges between start and goal, fewest and most, of problems that the shipped policy solves now and then."""
FAR = (5, 9)
"""The same of problems that it solves rarely."""

NODES = string.ascii_letters[:NUM_NODES]
_GRAPH_SEED = 0
_PROBLEM = re.compile(rf"([{NODES}])>([{NODES}])=")


@cache
def neighbour_matrix() -> NDArray[np.bool_]:
    """Which nodes are joined: a symmetric matrix of shape (NUM_NODES, NUM_NODES)."""
    points = np.random.default_rng(_GRAPH_SEED).random((NUM_NODES, 2))
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1)
    nearest = np.argsort(apart, axis=1)[:, 1 : 1 + NUM_NEAREST]
    joined = np.zeros((NUM_NODES, NUM_NODES), dtype=bool)
    joined[np.arange(NUM_NODES)[:, None], nearest] = True
    return joined | joined.T


@cache
def distances() -> NDArray[np.int64]:
    """Edges of a shortest path between any two nodes, of shape (NUM_NODES, NUM_NODES)."""
    from scipy.sparse.csgraph import shortest_path

    return shortest_path(neighbour_matrix(), unweighted=True).astype(np.int64)


@dataclass(frozen=True)
class PathProblem:
    """A start and a goal.

    Args:
        start (`str`), goal (`str`):
            Names of two nodes.
    """

    start: str
    goal: str

    @property
    def prompt(self) -> str:
        """The problem as text, such as `A>f=`."""
        return f"{self.start}>{self.goal}="


def parse_problem(prompt: str) -> PathProblem:
    """Read a problem from its prompt.

    Args:
        prompt (`str`):
            Text such as `A>f=`.

    Returns:
        [`PathProblem`]: The problem.

    Raises:
        `ValueError`: If the prompt is anything else.
    """
    match = _PROBLEM.fullmatch(prompt) if isinstance(prompt, str) else None
    if match is None:
        raise ValueError(
            f"Got the prompt {prompt!r}. It names no start and goal, so no walk can be checked. Use prompts of "
            f"`path_dataset`: two of the letters {NODES[0]} to {NODES[-1]}, such as 'A>f='."
        )
    return PathProblem(match[1], match[2])


def problems_of(split: Split, num_edges: tuple[int, int]) -> list[PathProblem]:
    """All problems of a split.

    A checksum of the prompt assigns a problem to one split: 20 % of all are in each of `"tuning"` and `"test"`.

    Args:
        split (`str`):
            `"train"`, `"tuning"` or `"test"`.
        num_edges (`tuple[int, int]`):
            Fewest and most edges between start and goal, such as `NEAR` or `FAR`.

    Returns:
        `list[PathProblem]`: The problems, in a fixed order.

    Raises:
        `ValueError`: If the split is unknown.
    """
    if split not in ("train", "tuning", "test"):
        raise ValueError(f"Got split={split!r}. There is no such split. Use 'train', 'tuning' or 'test'.")
    found = []
    for start, goal in np.argwhere((distances() >= num_edges[0]) & (distances() <= num_edges[1])).tolist():
        problem = PathProblem(NODES[start], NODES[goal])
        bucket = zlib.crc32(problem.prompt.encode()) % 5
        if split == ("test" if bucket == 0 else "tuning" if bucket == 1 else "train"):
            found.append(problem)
    return found


def path_dataset(split: Split, n: int, seed: int, num_edges: tuple[int, int] = NEAR) -> Dataset:
    """Data set of problems, each as often as any other.

    Args:
        split (`str`):
            `"train"`, `"tuning"` or `"test"`; they share no problem.
        n (`int`):
            Number of rows.
        seed (`int`):
            Seed of the order.
        num_edges (`tuple[int, int]`, *optional*, defaults to `NEAR`):
            Fewest and most edges between start and goal.

    Returns:
        [`~datasets.Dataset`]: Columns `"prompt"` and `"goal"`, both text.
    """
    from datasets import Dataset

    known, generator = problems_of(split, num_edges), random.Random(f"{split}-{num_edges}-{seed}")
    rows: list[PathProblem] = []
    while len(rows) < n:
        rows += generator.sample(known, min(len(known), n - len(rows)))
    return Dataset.from_dict({"prompt": [row.prompt for row in rows], "goal": [row.goal for row in rows]})


@dataclass(frozen=True)
class Walk:
    """What complete lines say: where the walk stands, `None` after an impossible line, and how many lines it has."""

    node: int | None
    goal: int
    num_lines: int = 0

    def go(self, line: str) -> Walk:
        """The walk with one more line; nothing after the goal counts."""
        if self.node is None or self.node == self.goal:
            return self
        known = len(line) == 1 and line in NODES and self.num_lines < MAX_LINES
        node = NODES.index(line) if known and neighbour_matrix()[self.node, NODES.index(line)] else None
        return Walk(node, self.goal, self.num_lines + 1)


def start_of(problem: PathProblem) -> Walk:
    return Walk(NODES.index(problem.start), NODES.index(problem.goal))


def is_right(prompt: str, text: str) -> bool:
    """Whether a solution is a walk in the graph that reaches the goal in time; its last line needs no line break."""
    walk = start_of(parse_problem(prompt))
    for line in text.split("\n"):
        walk = walk.go(line) if line else walk
    return walk.node == walk.goal


def path_reward(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    """Outcome reward in TRL's signature: 1.0 for a walk that reaches the goal, else 0.0.

    Args:
        prompts (`Sequence[str]`):
            Problems.
        completions (`Sequence[str]`):
            Walks.
        **columns:
            Not used.

    Returns:
        `list[float]`: One reward per completion.
    """
    return [float(is_right(prompt, text)) for prompt, text in zip(prompts, completions, strict=True)]


def path_policy_path() -> str:
    """Folder of the base policy that ships with the package; it imitates walks of which a tenth are shortest."""
    return str(files("trl_prl") / "demo" / "path_policy")


def path_verifier_path() -> str:
    """Folder of a verifier of that policy's values that ships with the package, learned from its rollouts."""
    return str(files("trl_prl") / "demo" / "path_verifier")
