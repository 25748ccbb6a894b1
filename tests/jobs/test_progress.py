"""The bar: nothing that matters is cut at 80 columns, and a log file gets lines."""

from __future__ import annotations

import io

from rich.console import Console

from trl_prl.commands.collect import cost_line
from trl_prl.jobs.progress import Progress, ProgressBar, speed_line, token_line


COUNTS = {
    "num_rollouts": 1_234_567, "num_sampled_tokens": 98_765_432, "num_unfinished": 123_456, "num_failed": 12_345,
}  # fmt: skip


def test_eighty_columns_are_enough() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=80, height=20)
    with ProgressBar(lambda progress: cost_line(progress, 1.5), console) as bar:
        bar.update(Progress(12_345.5, 123_456, 0, 36_000.0, COUNTS))
    shown = " ".join(stream.getvalue().split())
    for part in ("12345/123456", "90:00:03 left", "34.3 samples/s", "98.77 of 987.66 M tokens",
                 "cost 148.15 of 1481.49", "123456 unfinished", "12345 not checked", "━" * 12):  # fmt: skip
        assert part in shown
    assert "…" not in shown


def test_a_file_gets_a_line_every_so_often() -> None:
    stream = io.StringIO()
    with ProgressBar(console=Console(file=stream, width=80), seconds_between_lines=1e6) as bar:
        for done in (0, 1, 2, 3):
            bar.update(Progress(done, 3, 0, float(done), {"num_rollouts": done, "num_sampled_tokens": done * 10**6}))
    # The first one, and the end.
    assert stream.getvalue() == "0/3\n3/3, done, 1.0 samples/s, 3.00 of 3.00 M tokens\n"
    stream.truncate(0)
    with ProgressBar(console=Console(file=stream, width=80), seconds_between_lines=0.0) as bar:
        for done in (0, 1, 2):
            bar.update(Progress(done, 3, 0, float(done)))
    assert len(stream.getvalue().splitlines()) == 3


def test_small_jobs_have_numbers_too() -> None:
    """A large model on a CPU draws less than a sample a second, and a trial run samples less than 0.01 M tokens."""
    progress = Progress(2, 6, 0, 100.0, {"num_rollouts": 4, "num_sampled_tokens": 1_584})
    assert speed_line(progress) == "2/6, 0:03:20 left, 2.4 samples/min"
    assert token_line(progress) == "1,584 of 4,752 tokens"
    assert token_line(Progress(0, 6, 0, 100.0, {"num_sampled_tokens": 999_999})) == "999,999 tokens"
    assert token_line(Progress(0, 6, 0, 100.0, {"num_sampled_tokens": 1_000_000})) == "1.00 M tokens"


def test_names_are_shown() -> None:
    assert speed_line(Progress(1, 4, 0, 10.0, {}, "base")) == "base: 1/4, 0:00:30 left"
