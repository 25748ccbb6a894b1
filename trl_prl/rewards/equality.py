"""Whether two answers are the same: as text, as exact numbers, part by part, and in the end as math-verify has it."""

from __future__ import annotations

import functools
import logging
import re
import threading
from collections.abc import Sequence
from typing import Any

from .canonical import MAX_CHARS, canonical, is_deep, is_prose, key, split_unit
from .numbers import Number, parse_number
from .parts import closing_place, parse_parts, split_outside


logger = logging.getLogger(__name__)

# For one comparison by math-verify, as long as TRL gives it.
_SECONDS = 5
# Relative difference of constants that are equal, and of those of which one is rounded to six decimals.
_EXACT, _ROUNDED = 1e-20, 2e-6
_DIGITS = 30
# Every part of one side may have to be compared with every part of the other.
_MAX_PARTS = 50

_NAME = re.compile(r"(?:\\?[A-Za-z]|[|(])[\\A-Za-z_{}'|:,()\d\s]{0,30}")
_EQUALS = re.compile(r"(?<![<>!\\])=|\\in(?![a-z])|\\approx")
_BASED = re.compile(r"([0-9A-Za-z]+)\s*_\s*\{?\s*(\d{1,2})\s*\}?")


class NotChecked(Exception):
    """A comparison that took longer than it may."""


def answers_equal(gold: str, answer: str) -> bool:
    r"""Whether an answer is the right one.

    Equal text is equal. Otherwise both sides are brought to one spelling and compared as rational numbers, exactly, if
    that is what both are; then part by part: lists and sets in any order, tuples and column vectors in theirs; and
    what is left by math-verify. A unit may be left out, but may not be another one.

    Args:
        gold (`str`):
            The right answer.
        answer (`str`):
            The answer, as [`final_answer`] finds it.

    Returns:
        `bool`: The verdict.

    Raises:
        `NotChecked`: When the comparison takes too long. Only in the main thread there is a limit.
        `ImportError`: If math-verify is needed and not installed.
    """
    gold, answer = gold.strip(), answer.strip()
    if gold == answer:
        return bool(gold)
    if max(len(gold), len(answer)) > MAX_CHARS:
        return False
    return _equal(canonical(gold), canonical(answer))


def group_answers(answers: Sequence[Any]) -> list[Any]:
    """Give answers that are mathematically equal one name, so that votes can count them.

    Args:
        answers (`Sequence`):
            Final answers; those that are no text, such as `None` for no answer, stay what they are.

    Returns:
        `list`: For each answer the first one that it equals. Where math-verify is missing, a formula equals those with
        its text, and a warning says so.
    """
    names: dict[Any, Any] = {}
    for answer in answers:
        if answer not in names:
            names[answer] = next((name for name in names.values() if _same_vote(name, answer)), answer)
    return [names[answer] for answer in answers]


def _same_vote(first: Any, second: Any) -> bool:
    if not isinstance(first, str) or not isinstance(second, str):
        return False
    # Votes are counted where nothing kills what takes too long: towers and factorials are compared as text.
    if any(
        re.search(r"\^.*\^|!|\d{5}.*\^|\^\s*\{?\s*\d{3}|\\(?:sum|int|prod|lim|binom)", text)
        for text in (first, second)
    ):
        return key(canonical(first)) == key(canonical(second))
    try:
        return answers_equal(first, second)
    except NotChecked:
        return False
    except ImportError:  # their texts are different, or nothing would have been imported
        _warn_of_votes_by_text()
        return False


@functools.cache
def _warn_of_votes_by_text() -> None:
    logger.warning(
        "Votes compare formulas with the package 'math-verify', which is not installed, so that formulas written in "
        "two ways are two answers. Install it with `pip install 'trl-prl[math]'` to count them as one."
    )


@functools.lru_cache(maxsize=1 << 14)
def _equal(gold: str, answer: str) -> bool:
    """Compare canonical texts."""
    if key(gold) == key(answer):
        return bool(gold)
    if not gold or not answer or is_deep(gold) or is_deep(answer):
        return False
    gold, answer = _values(gold, answer)
    (gold, unit), (answer, other_unit) = split_unit(_bare(gold)), split_unit(_bare(answer))
    if unit != other_unit and None not in (unit, other_unit):
        return False
    if key(gold) == key(answer):
        return True
    numbers = parse_number(gold), parse_number(answer)
    if numbers[0] is not None and numbers[1] is not None:
        return numbers[0] == numbers[1] or _as_percent(numbers[0], numbers[1], unit, other_unit)
    based = _BASED.fullmatch(gold), _BASED.fullmatch(answer)
    if any(based) and all(match or number for match, number in zip(based, numbers, strict=True)):
        return _equal_based(gold, answer, *based)
    if _is_decimal_comma(gold, numbers[1]) or _is_decimal_comma(answer, numbers[0]):
        return _equal(gold.replace(",", "."), answer.replace(",", "."))
    parts = parse_parts(gold), parse_parts(answer)
    if parts[0] is not None or parts[1] is not None:
        verdict = _equal_parts(parts[0] or ("list", [gold]), parts[1] or ("list", [answer]))
        if verdict is not None:
            return verdict
    if is_prose(gold) or is_prose(answer) or re.findall(r"\d_\{?\w+", gold) != re.findall(r"\d_\{?\w+", answer):
        return False
    if ("=" in gold) != ("=" in answer) or any(
        _is_tower(text) and number for text, number in ((gold, numbers[1]), (answer, numbers[0]))
    ):
        return False
    return _math_equal(gold, answer)


def _is_tower(text: str) -> bool:
    """Whether a text is a power of powers of powers, larger than any number that is written out."""
    return re.fullmatch(r"-?(?:(?:[2-9]|[1-9]\d+)\s*\^\s*\{?\s*){3,}\d+[\s}]*", text) is not None


def _values(gold: str, answer: str) -> tuple[str, str]:
    r"""The answers without the names in front of them, `x = 5` or `x \in [0, 1]`, and without what they are near to.

    A name stays where the other side has another one, or is an equation.
    """
    (name, value), (other_name, other_value) = _named(gold), _named(answer)
    if name is not None and other_name is not None and key(name) != key(other_name):
        return gold, answer
    if name is not None and other_name is None and _is_relation(answer):
        return gold, other_value
    if name is None and other_name is not None and _is_relation(gold):
        return value, answer
    return value, other_value


def _named(text: str) -> tuple[str | None, str]:
    """The name in front of a value, and the value; of `6 + 2 = 8` the value is the result."""
    exact = text.partition(r"\approx")[0].strip()
    if exact and not _NAME.fullmatch(exact):
        text = exact
    first, *rest = [part.strip() for part in _EQUALS.split(text)]
    if not rest:
        return None, text
    if not first or not re.search(r"[A-Za-z]", first):
        return None, rest[-1]
    if _NAME.fullmatch(first) and (len(rest) == 1 or not re.search(r"[,;]|\band\b|\bor\b", text)):
        return first, rest[-1]
    return None, text


def _bare(text: str) -> str:
    """A text without brackets around the whole of it, where they hold one thing."""
    while len(text) > 2 and text[0] + text[-1] in ("()", "{}") and closing_place(text) == len(text) - 1:
        if text[0] == "(" and len(split_outside(text[1:-1], ",;")) > 1:
            break
        text = text[1:-1].strip()
    return text


def _as_percent(first: Number, second: Number, unit: str | None, other_unit: str | None) -> bool:
    """Whether `50%` stands for `0.5`; that it stands for `50` too is what leaving out a unit means."""
    return (unit == "%" and other_unit is None and first.value == second.value * 100) or (
        other_unit == "%" and unit is None and second.value == first.value * 100
    )


def _equal_based(gold: str, answer: str, *based: re.Match[str] | None) -> bool:
    r"""Compare numbers of which one or both have a base, `2516_8`."""
    digits = [(match[1] if match else text).upper() for match, text in zip(based, (gold, answer), strict=True)]
    bases = [int(match[2]) if match else None for match in based]
    if bases[0] == bases[1] or bases[1] is None:
        return digits[0] == digits[1]  # the question says which base is asked for
    try:
        values = [int(text, base or 10) for text, base in zip(digits, bases, strict=True)]
    except ValueError:  # a digit that the base does not have
        return False
    return values[0] == values[1]


def _is_decimal_comma(text: str, other: Number | None) -> bool:
    """Whether a comma stands for a decimal point: `1,22`, next to a decimal number."""
    return bool(other and other.decimals and re.fullmatch(r"-?\d+,\d+", text))


def _equal_parts(gold: tuple[str, list[str]], answer: tuple[str, list[str]]) -> bool | None:
    """Compare parts; `None` where it takes more than comparing them."""
    if any(len(items) == 1 and _is_relation(items[0]) for _, items in (gold, answer)):
        return None
    kinds = {gold[0], answer[0]}
    if max(len(gold[1]), len(answer[1])) > _MAX_PARTS:
        return gold[0] == answer[0] and sorted(map(key, gold[1])) == sorted(map(key, answer[1]))
    if kinds <= {"list", "set"} or kinds == {"union"}:
        return all(any(_equal(a, b) for b in answer[1]) for a in gold[1]) and all(
            any(_equal(b, a) for b in gold[1]) for a in answer[1]
        )
    if len(kinds) == 1 or (kinds <= {"()", "column", "row", "list"} and kinds != {"column", "row"}):
        return len(gold[1]) == len(answer[1]) and all(_equal(a, b) for a, b in zip(gold[1], answer[1], strict=True))
    return None if "union" in kinds else False


def _is_relation(text: str) -> bool:
    return re.search(r"[<>=]|\\(?:le|ge|ne|in)(?![a-z])", text) is not None


def _math_equal(gold: str, answer: str) -> bool:
    """Compare what is neither a number nor made of parts, with math-verify."""
    try:
        from math_verify.errors import TimeoutException
        from math_verify.utils import timeout
    except ImportError as error:
        raise ImportError(
            f"Formulas are compared with the package '{error.name}', which is not installed. Install it with "
            "`pip install 'trl-prl[math]'`."
        ) from error

    # Its alarms work in the main thread only; elsewhere, who needs a limit kills the process.
    in_main_thread = threading.current_thread() is threading.main_thread()
    seconds: Any = _SECONDS if in_main_thread else None
    try:
        return timeout(timeout_seconds=seconds)(_compare)(gold, answer)
    except TimeoutException as error:
        raise NotChecked(f"It took more than {_SECONDS} s to compare {gold!r} and {answer!r}.") from error


def _compare(gold: str, answer: str) -> bool:
    from math_verify import verify

    parsed = [_parse(text) for text in (gold, answer)]
    if not all(parsed):
        return False
    agree, constant = _agree(parsed[0][0], parsed[1][0])
    if agree is False or constant:
        return bool(agree)
    return verify(*parsed, allow_set_relation_comp=True, timeout_seconds=None)  # type: ignore[arg-type]


@functools.lru_cache(maxsize=1 << 10)
def _parse(text: str) -> list[Any]:
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    for name in ("parser", "grader"):  # they warn that there is no limit
        logging.getLogger(f"math_verify.{name}").setLevel(logging.ERROR)
    config = LatexExtractionConfig(
        boxed_match_priority=0,
        normalization_config=NormalizationConfig(malformed_operators=True, nits=True, boxed="last"),
    )
    text = re.sub(r"(?<![\d.,])(\d{1,3}),(?=\d{3}(?![\d,]))", r"\1", text)
    return parse(rf"\boxed{{{text}}}", [config], fallback_mode="no_fallback", parsing_timeout=None)  # type: ignore[arg-type]


def _agree(gold: Any, answer: Any) -> tuple[bool | None, bool]:
    """Whether two expressions agree at one point, relative to their size, and whether they are constants.

    Expressions that differ somewhere are different, which is much faster to see than to prove. math-verify compares
    constants by their difference alone, so that all small ones are equal. `None` where there is nothing to compare.
    """
    import sympy

    if not all(isinstance(entry, sympy.Expr) for entry in (gold, answer)):
        return None, False
    symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
    point = {
        symbol: sympy.Rational(prime, 7) for symbol, prime in zip(symbols, sympy.primerange(11, 1000), strict=False)
    }
    try:
        values = [sympy.N(entry.subs(point), _DIGITS) for entry in (gold, answer)]
        if not all(value.is_number and value.is_finite for value in values):
            return None, False
        tolerance = _ROUNDED if gold.has(sympy.Float) or answer.has(sympy.Float) else _EXACT
        return bool(abs(values[0] - values[1]) <= tolerance * max(abs(values[0]), abs(values[1]))), not symbols
    except (ArithmeticError, AttributeError, NotImplementedError, RecursionError, TypeError, ValueError):
        return None, False  # an expression that has no value
