"""Where a job stands, and the one bar that shows it."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


# From this share on, a result is of the problems that are solved within the limit, and no longer of all.
MANY_UNFINISHED = 0.1


@dataclass(frozen=True)
class Progress:
    """Where a job stands.

    Attributes:
        num_done (`float`):
            Rows of this process's share that are done. Of the unit at hand a part counts, as far as the number of its
            samples is known.
        num_total (`int`):
            All rows of its share.
        num_before (`int`):
            Rows that were done when this run began.
        seconds (`float`):
            Time since then.
        counts (`Mapping[str, int]`):
            What this run has counted: `num_rollouts`, `num_sampled_tokens`, and what its job counts besides.
        name (`str`):
            What the job is about, where there are several.
    """

    num_done: float
    num_total: int
    num_before: int = 0
    seconds: float = 0.0
    counts: Mapping[str, int] = field(default_factory=dict)
    name: str = ""

    @property
    def seconds_left(self) -> float | None:
        """Time to the end at the speed of this run; `None` where nothing is done yet."""
        done = self.num_done - self.num_before
        return None if done <= 0 else self.seconds * (self.num_total - self.num_done) / done

    def expected(self, name: str) -> int | None:
        """What a count will come to when this run is through; `None` where nothing is done yet."""
        done = self.num_done - self.num_before
        return None if done <= 0 else round(self.counts.get(name, 0) * (self.num_total - self.num_before) / done)


OnProgress = Callable[[Progress], None]

OnCounts = Callable[[Mapping[str, int]], None]
"""Takes what has been counted since the last call, by the names of [`Progress.counts`]."""

# Between two reports of what is counted: as often as a terminal is drawn.
_SECONDS_BETWEEN = 0.1


class Meter:
    """Adds up what a run has done, and tells of it.

    Args:
        num_total (`int`):
            Rows to do.
        on_progress (`Callable`, *optional*):
            Told at the start, while something is counted, and after every unit.
        num_before (`int`, *optional*, defaults to `0`):
            Rows that are done already.
        samples_per_row (`int`, *optional*):
            Samples drawn for a row; by default as many as for the rows so far.
        name (`str`, *optional*):
            As in [`Progress`].
    """

    def __init__(
        self,
        num_total: int,
        on_progress: OnProgress | None,
        num_before: int = 0,
        samples_per_row: int | None = None,
        name: str = "",
    ) -> None:
        self.num_total, self.num_before, self.name = num_total, num_before, name
        self.on_progress, self.samples_per_row = on_progress, samples_per_row
        self.counts: Counter[str] = Counter()
        self._num_done, self._num_samples_done = num_before, 0
        self._began = self._told = time.monotonic()
        self._tell()

    def count(self, counts: Mapping[str, int]) -> None:
        """Add what was counted; an [`OnCounts`]."""
        self.counts.update(counts)
        if time.monotonic() - self._told >= _SECONDS_BETWEEN:
            self._tell()

    def finish(self, num_rows: int) -> None:
        """Add the rows of a finished unit."""
        self._num_done += num_rows
        self._num_samples_done = self.counts["num_rollouts"]
        self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        if self.on_progress is not None:
            num_done, seconds = self._num_done + self._num_begun(), self._told - self._began
            self.on_progress(
                Progress(num_done, self.num_total, self.num_before, seconds, dict(self.counts), self.name)
            )

    def _num_begun(self) -> float:
        """Rows' worth of samples that are drawn, but in no finished unit yet."""
        finished = self._num_done - self.num_before
        per_row = self.samples_per_row or (self._num_samples_done / finished if finished else 0)
        if not per_row:
            return 0.0
        # A unit is done when it is written, whatever its number of samples was expected to be.
        most = 0.99 * (self.num_total - self._num_done)
        return min((self.counts["num_rollouts"] - self._num_samples_done) / per_row, most)


def speed_line(progress: Progress) -> str:
    """Rows, time left and speed: what every job can say.

    Args:
        progress ([`Progress`]):
            Where the job stands.

    Returns:
        `str`: At most 60 characters, but for the job's name.
    """
    name = f"{progress.name}: " if progress.name else ""
    parts = [f"{name}{int(progress.num_done)}/{progress.num_total}"]
    if progress.num_done >= progress.num_total:
        parts.append("done" if progress.num_total > progress.num_before else "done earlier")
    elif (left := progress.seconds_left) is not None:
        minutes, seconds = divmod(round(left), 60)
        parts.append(f"{minutes // 60:d}:{minutes % 60:02d}:{seconds:02d} left")
    elif not progress.counts:
        parts.append("starting")
    if progress.counts.get("num_rollouts") and progress.seconds > 0:
        speed = progress.counts["num_rollouts"] / progress.seconds
        parts.append(f"{speed:.1f} samples/s" if speed >= 1 else f"{60 * speed:.1f} samples/min")
    return ", ".join(parts)


def token_line(progress: Progress) -> str:
    """Tokens sampled by this run, and how many they will be; empty before the first one."""
    tokens, expected = progress.counts.get("num_sampled_tokens", 0), progress.expected("num_sampled_tokens")
    if not tokens:
        return ""
    numbers = [tokens] if expected is None else [tokens, expected]
    # Below a million they would be hundredths of one, or none.
    millions = max(numbers) >= 1e6
    shown = " of ".join(f"{n / 1e6:.2f}" if millions else f"{n:,}" for n in numbers)
    return f"{shown} M tokens" if millions else f"{shown} tokens"


class ProgressBar:
    """Shows progress: two lines that fit 80 columns on a terminal, a line every so often in a file.

    Args:
        note (`Callable`, *optional*):
            What a job says in the second line.
        console (`rich.console.Console`, *optional*):
            Where to show it; standard error by default.
        seconds_between_lines (`float`, *optional*, defaults to `30.0`):
            Time between two lines where there is no terminal.
    """

    def __init__(
        self,
        note: Callable[[Progress], str] = token_line,
        console: Any | None = None,
        seconds_between_lines: float = 30.0,
    ) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress
        from rich.table import Column

        self.note = note
        self.seconds_between_lines = seconds_between_lines
        self._console = console or Console(stderr=True)
        bar = BarColumn(12, table_column=Column(min_width=12))
        # Wrapped where it is too long, never cut.
        text = TextColumn("{task.fields[lines]}", markup=False, table_column=Column())
        self._bar = RichProgress(bar, text, console=self._console, disable=not self._console.is_terminal)
        self._tasks: dict[str, Any] = {}
        self._last = ("", -seconds_between_lines)

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def update(self, progress: Progress) -> None:
        """Show where the job stands."""
        lines = [line for line in (speed_line(progress), self.note(progress)) if line]
        if not self._console.is_terminal:
            self._print(", ".join(lines), progress)
            return
        if progress.name not in self._tasks:
            self._tasks[progress.name] = self._bar.add_task("", total=progress.num_total, lines="")
        task = self._tasks[progress.name]
        self._bar.update(task, total=progress.num_total, completed=progress.num_done, lines="\n".join(lines))

    def _print(self, line: str, progress: Progress) -> None:
        """Print a line at the start, at the end, and every so often."""
        now, (last_name, last_time) = time.monotonic(), self._last
        is_end = progress.num_done >= progress.num_total
        if is_end or progress.name != last_name or now - last_time >= self.seconds_between_lines:
            self._last = progress.name, now
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def warn_of_unfinished(num_unfinished: int, number: int, what: str, limit: int | None) -> None:
    """Say on stderr that the length limit decides a result, where it cut off many.

    Args:
        num_unfinished (`int`):
            How many it cut off.
        number (`int`):
            Of how many.
        what (`str`):
            What was cut off, and what that does to the result.
        limit (`int`, *optional*):
            The limit, if it is an option of the command.
    """
    if num_unfinished > MANY_UNFINISHED * number:
        raise_it = "Raise their limit" if limit is None else f"Raise --max_completion_length ({limit})"
        print(f"Warning: {num_unfinished:,} of {number:,} {what}. {raise_it}, and begin anew.", file=sys.stderr)
