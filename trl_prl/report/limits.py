"""What keeps a report small: long texts are cut where they are read, and many rows are thinned evenly."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


# Of one text, and of one completion with all its steps.
MAX_CHARACTERS = 20_000
MAX_STEPS = 1_000
# Of one step of a search tree, which has many.
MAX_NODE_CHARACTERS = 2_000
MAX_CURVE_POINTS = 2_000


def shorten(text: str, limit: int = MAX_CHARACTERS) -> str:
    """Cut the middle out of a long text, and say so in its place.

    Args:
        text (`str`):
            The text.
        limit (`int`, *optional*, defaults to `20000`):
            Characters to keep.

    Returns:
        `str`: The text itself if it is not longer.
    """
    if len(text) <= limit:
        return text
    head, tail = limit - limit // 2, limit // 2
    return f"{text[:head]}\n[… {len(text) - limit:,} characters are left out …]\n{text[-tail:]}"


def shorten_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Cut what is long in a row of any result: its texts, and the middle steps of a completion.

    Args:
        row (`Mapping`):
            The row.

    Returns:
        `dict`: The row with short texts. Where steps are left out, one that says so stands for them, every list with
        one entry per step has `None` there, and `skipped` has its position and how many steps it stands for.
    """
    found = {
        name: _shorten(value, MAX_NODE_CHARACTERS if name == "tree" else MAX_CHARACTERS) for name, value in row.items()
    }
    steps = row.get("steps", row.get("completions"))
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        return found
    if sum(map(len, steps)) <= MAX_CHARACTERS and len(steps) <= MAX_STEPS:
        return found
    texts = [shorten(step, MAX_CHARACTERS // min(len(steps), 4)) for step in steps]
    head = _num_fitting(texts)
    tail = _num_fitting(texts[: head - 1 : -1])
    end = max(head, len(steps) - tail)
    gap: list[str] = []
    if end > head:
        num_characters = sum(map(len, steps[head:end]))
        gap = [f"[… {end - head:,} steps with {num_characters:,} characters are left out …]\n"]
        found["skipped"] = [head, end - head]
    for name, value in row.items():
        if isinstance(value, list) and len(value) == len(steps):
            values, middle = (texts, gap) if value is steps else (found[name], [None] * len(gap))
            found[name] = [*values[:head], *middle, *values[end:]]
    return found


def _shorten(value: Any, limit: int) -> Any:
    if isinstance(value, str):
        return shorten(value, limit)
    # Lists of numbers are long and many.
    if isinstance(value, list) and value and isinstance(value[0], str | list | Mapping):
        return [_shorten(item, limit) for item in value]
    if isinstance(value, Mapping):
        return {name: _shorten(item, limit) for name, item in value.items()}
    return value


def _num_fitting(texts: Iterable[str]) -> int:
    """How many of the first texts fit into about half of the room of a completion, at least one."""
    count = num_characters = 0
    for text in texts:
        num_characters += len(text)
        if count >= MAX_STEPS // 2 or (count and num_characters > 0.6 * MAX_CHARACTERS):
            break
        count += 1
    return count


def json_lines(path: Path, is_shortened: bool = True) -> Iterator[dict[str, Any] | None]:
    """Objects of a file of JSON lines, gzipped or not, with long texts cut; `None` for a line that is no object.

    Args:
        path (`Path`):
            The file.
        is_shortened (`bool`, *optional*, defaults to `True`):
            Whether to cut long texts as they are read, so that they never fill the memory.

    Yields:
        `dict`, *optional*: One per line that is not blank.
    """
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        for line in file:
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8", "replace"))
            except (ValueError, RecursionError):  # no JSON, or nested too deep
                row = None
            if isinstance(row, dict):
                yield shorten_row(row) if is_shortened and len(line) > MAX_CHARACTERS else row
            else:
                yield None


def json_bytes(value: Any) -> int:
    """Bytes of a value as JSON on a page, about: in UTF-8, with what could end a script escaped."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return len(text.encode("utf-8", "replace")) + sum(5 * text.count(character) for character in "<>&")


def fit(build: Callable[[int], Any], limit: int, max_bytes: int) -> tuple[Any, int]:
    """Take as many rows as fit into a number of bytes.

    Args:
        build (`Callable[[int], Any]`):
            Makes a JSON value out of at most so many rows.
        limit (`int`):
            Most rows to take.
        max_bytes (`int`):
            Most bytes of what is made, where one row is no larger.

    Returns:
        `tuple[Any, int]`: What was made, and the limit it was made with.
    """
    while True:
        made = build(limit)
        size = json_bytes(made)
        if size <= max_bytes or limit <= 1:
            return made, limit
        limit = max(1, min(limit - 1, int(0.95 * limit * max_bytes / size)))


def evenly(rows: Sequence[Any], limit: int) -> list[Any]:
    """At most `limit` rows, evenly spaced, the first and the last among them."""
    if len(rows) <= limit:
        return list(rows)
    if limit == 1:
        return [rows[-1]]
    return [rows[round(i * (len(rows) - 1) / (limit - 1))] for i in range(limit)]


def evenly_by_rollout(rows: Sequence[Mapping[str, Any]], limit: int) -> list[Any]:
    """At most `limit` rows, in whole rollouts where possible; up to half of evaluations, whose prompts recur."""
    if len(rows) <= limit:
        return list(rows)
    rollouts: dict[str, dict[int, list[Mapping[str, Any]]]] = {"eval": defaultdict(list), "train": defaultdict(list)}
    for row in rows:
        rollouts["eval" if row.get("split") == "eval" else "train"][row["optimizer_step"]].append(row)
    kept: list[Mapping[str, Any]] = []
    for split, share in (("eval", limit // 2), ("train", limit)):
        blocks, room = list(rollouts[split].values()), share - len(kept)
        if not blocks or room < 1:
            continue
        count = room // max(map(len, blocks))
        chosen = evenly(blocks, count) if count else blocks
        kept += evenly([row for block in chosen for row in block], room)
    return sorted(kept, key=lambda row: row["optimizer_step"])
