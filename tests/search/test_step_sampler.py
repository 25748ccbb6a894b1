"""One step at a time: the sampled ids are cut exactly where the package's splitter ends steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.searching import PieceTable, Recital, arithmetic_generator, arithmetic_search_problems, line_search
from trl_prl.generation.rollouts import Problem
from trl_prl.search.step_sampler import StepRequest, StepSample, StepSampler
from trl_prl.steps.sentences import SentenceSplitter
from trl_prl.steps.split import MarkdownSplitter, step_ends
from trl_prl.steps.splitters import DelimiterSplitter, FixedLengthSplitter, RegexSplitter, is_blank
from trl_prl.types import SamplingParams


PIECES = PieceTable(
    [b"a", b"B", b" ", b"\n", b"\n\n", b".", b".\n\n", b"c.\n", b"\nD", b"$$", b"", b". E", b"\xc3", b"\xa9"]
)
PROBLEM = Problem(0, "p", (1,))
SPLITTERS = [
    DelimiterSplitter("\n"),
    DelimiterSplitter("\n\n"),
    DelimiterSplitter("."),
    FixedLengthSplitter(3),
    RegexSplitter(r"(?=B)"),
    SentenceSplitter(),
]
# Grows the delimiter before it and begins the next step, in one token: what looked like a step's end was none.
GROWING = PIECES.table.index(b"\nD")
scripts = st.lists(st.integers(1, len(PIECES.table) - 1), min_size=1, max_size=24)


def sampler(script: list[int], splitter: Any, max_tokens: int = 64, **options: Any) -> StepSampler:
    sampling = SamplingParams(max_tokens=max_tokens, stop=options.pop("stop", ()))
    return StepSampler(Recital(PIECES, script), splitter, PIECES, sampling, **options)  # type: ignore[arg-type]


def walk(steps: StepSampler) -> list[StepSample]:
    """Sample steps until the completion ends."""
    samples: list[StepSample] = []
    ids: tuple[int, ...] = ()
    while not samples or samples[-1].end == "step":
        samples.append(steps.draw([StepRequest(PROBLEM, ids, 1)])[0][0])
        assert len(samples[-1].ids) > len(ids)
        ids = samples[-1].ids
    return samples


@pytest.mark.parametrize("splitter", [*SPLITTERS, MarkdownSplitter(), MarkdownSplitter(newline=True)], ids=repr)
@given(scripts, st.integers(1, 5), st.booleans())
def test_sampling_in_steps_gives_the_completion(
    splitter: Any, script: list[int], chunk_tokens: int, with_stops: bool
) -> None:
    """Nothing is lost, doubled or re-tokenised, whatever pieces delimiters are made of."""
    options: dict[str, Any] = {"chunk_tokens": chunk_tokens, **({} if with_stops else {"step_stop": ()})}
    samples = walk(sampler([*script, 0], splitter, **options))
    assert samples[-1].ids == (*script, 0)
    assert samples[-1].end == "eos"


@pytest.mark.parametrize("splitter", SPLITTERS, ids=repr)
@example([6, 12], 1, True)  # a token that makes a run of dots longer and goes on
@given(scripts, st.integers(1, 5), st.booleans())
def test_steps_end_where_the_splitter_ends_them(
    splitter: Any, script: list[int], chunk_tokens: int, with_stops: bool
) -> None:
    """One sample per step of the whole completion, cut where it ends, or inside a delimiter that has grown since."""
    options: dict[str, Any] = {"chunk_tokens": chunk_tokens, **({} if with_stops else {"step_stop": ()})}
    samples = walk(sampler([*script, 0], splitter, **options))
    (ends,) = step_ends(splitter, PIECES, [[*script, 0]])  # type: ignore[arg-type]
    cuts = [len(sample.ids) for sample in samples]
    text, byte_ends = PIECES.join([*script, 0])
    for previous, cut, end in zip([0, *ends], cuts, ends, strict=False):
        assert previous < cut <= end
        grown = text[int(byte_ends[cut - 1]) : int(byte_ends[end - 1])]
        assert (
            is_blank(grown)
            or GROWING in script
            or (splitter == DelimiterSplitter(".") and grows_dots(script, cut, end))
        )
    # Whitespace or an end token alone may come after the last step.
    assert len(ends) <= len(cuts) <= len(ends) + 1


def grows_dots(script: list[int], cut: int, end: int) -> bool:
    """Whether tokens make a run of dots and blanks longer, of which the last may go on with other text."""
    *inner, last = [PIECES.table[token] for token in script[cut:end]]
    return set(b"".join(inner)) <= set(b". \n") and last[:1] in b". \n"


def test_merged_and_spread_delimiters() -> None:
    merged = PIECES.table.index(b".\n\n")
    single = PIECES.table.index(b"\n")
    script = [1, merged, 1, single, single, single, 2, 0]
    cuts = [len(sample.ids) for sample in walk(sampler(script, DelimiterSplitter("\n\n")))]
    # The third line break belongs to the second step and is sampled with what comes next.
    assert cuts == [2, 5, 8]
    (ends,) = step_ends(DelimiterSplitter("\n\n"), PIECES, [script])  # type: ignore[arg-type]
    assert ends == [2, 6, 8]


def test_token_that_grows_a_delimiter_and_goes_on_joins_the_step_before() -> None:
    script = [1, PIECES.table.index(b"\n"), GROWING, PIECES.table.index(b"\n"), 2, 0]
    assert [len(sample.ids) for sample in walk(sampler(script, DelimiterSplitter("\n")))] == [2, 6]
    (ends,) = step_ends(DelimiterSplitter("\n"), PIECES, [script])  # type: ignore[arg-type]
    assert ends == [4, 6]


def test_blank_line_inside_a_formula_ends_no_step() -> None:
    dollars, blank = PIECES.table.index(b"$$"), PIECES.table.index(b"\n\n")
    script = [dollars, 1, blank, 2, dollars, blank, 1, 0]
    (sample,) = sampler(script, MarkdownSplitter(), step_stop=()).draw([StepRequest(PROBLEM, (), 1)])[0]
    assert len(sample.ids) == 6


def test_what_is_sampled_beyond_the_end_is_cut_off_and_counted() -> None:
    script = [1, 4, 2, 4, 1, 4, 0]
    steps = sampler(script, DelimiterSplitter("\n"), step_stop=(), chunk_tokens=5)
    samples = walk(steps)
    assert [len(sample.ids) for sample in samples] == [2, 4, 7]
    generator: Any = steps.generator
    assert sum(sample.num_generated_tokens for sample in samples) == generator.num_tokens > len(script)


def test_length_limit_is_not_the_end_of_a_step() -> None:
    for limit in (3, 4):
        samples = walk(sampler([1, 4, 2, 4, 1, 4, 0], DelimiterSplitter("\n"), max_tokens=limit))
        assert samples[-1].end == "length"
        assert len(samples[-1].ids) == limit


def test_stop_texts_of_the_completion_end_it_also_across_steps() -> None:
    script = [1, 4, 2, 1, 4, 1, 0]
    samples = walk(sampler(script, DelimiterSplitter("\n"), stop=("\nB",)))
    assert (samples[-1].end, len(samples[-1].ids)) == ("stop", 3)


def test_samples_depend_on_row_ids_label_and_seed_alone() -> None:
    generator = arithmetic_generator()
    steps = StepSampler(**line_search(generator))
    first, second = arithmetic_search_problems(2)
    together = steps.draw([StepRequest(first, (), 6, "x"), StepRequest(second, (), 4, "x")])
    alone = steps.draw([StepRequest(second, (), 4, "x")])
    assert [s.ids for s in together[1]] == [s.ids for s in alone[0]]
    other = steps.draw([StepRequest(second, (), 4, "y")])
    assert [s.ids for s in other[0]] != [s.ids for s in alone[0]]
    twin = Problem(7, second.prompt, second.prompt_ids, second.columns)
    assert [s.ids for s in steps.draw([StepRequest(twin, (), 4, "x")])[0]] != [s.ids for s in alone[0]]


def test_independent_samples_with_equal_starts_go_on_independently() -> None:
    """With a chunk of one token many samples begin alike, and must not become one."""
    steps = StepSampler(**line_search(arithmetic_generator()), chunk_tokens=1, step_stop=())
    (problem,) = arithmetic_search_problems(1, 8)
    (samples,) = steps.draw([StepRequest(problem, (), 64)])
    by_first: dict[int, set[tuple[int, ...]]] = {}
    for sample in samples:
        by_first.setdefault(sample.ids[0], set()).add(sample.ids)
    assert max(map(len, by_first.values())) > 1


def test_wrong_number_of_samples_is_refused() -> None:
    class Short(Recital):
        def generate(self, prompts: Any, params: Any) -> Any:
            return [row[:-1] for row in super().generate(prompts, params)]

    steps = StepSampler(Short(PIECES, [1, 0]), DelimiterSplitter(), PIECES, SamplingParams())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="returned \\[1\\] samples for 1 prompts, but 2 were asked"):
        steps.draw([StepRequest(PROBLEM, (), 2)])


def test_samples_that_are_tokenised_again_may_have_fewer_tokens_than_asked() -> None:
    """A server that takes text: its answer to a request for two tokens may be one here, and that is no limit."""

    class Text(Recital):
        send_text = True

        def generate(self, prompts: Any, params: Any) -> Any:
            assert not params.stop
            return super().generate([replace(prompt, max_tokens=1) for prompt in prompts], params)

    script = [1, 4, 2, 2, 4, 1, 0]
    steps = StepSampler(Text(PIECES, script), DelimiterSplitter("\n"), PIECES, SamplingParams(), chunk_tokens=2)  # type: ignore[arg-type]
    assert [len(sample.ids) for sample in walk(steps)] == [2, 5, 7]

    class Longer(Text):
        def generate(self, prompts: Any, params: Any) -> Any:
            return Recital.generate(self, [replace(prompt, max_tokens=4) for prompt in prompts], params)

    sampling = SamplingParams(max_tokens=2)
    longer = StepSampler(Longer(PIECES, script), DelimiterSplitter("\n"), PIECES, sampling, chunk_tokens=2)  # type: ignore[arg-type]
    assert [(len(sample.ids), sample.end) for sample in walk(longer)] == [(2, "length")]


def test_chunk_must_be_positive() -> None:
    with pytest.raises(ValueError, match="chunk_tokens=0"):
        sampler([1], DelimiterSplitter(), chunk_tokens=0)
