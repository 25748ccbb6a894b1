"""Numbers as answers write them, read exactly: as fractions of integers, whatever their size or spelling."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction


_LITERAL = r"(?:\d+(?:\.\d*)?|\.\d+)"
_NUMBER = re.compile(rf"[+-]?{_LITERAL}")
_GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}(?:(?:,\d{3})+|(?: \d{3})+)(?:\.\d+)?")
_RATIO = re.compile(
    rf"([+-]?)(?:\\frac\{{\s*([+-]?{_LITERAL})\s*\}}\{{\s*([+-]?{_LITERAL})\s*\}}|({_LITERAL})\s*/\s*({_LITERAL}))"
)
_MIXED = re.compile(r"([+-]?)(\d+)\s*(?:\\frac\{\s*(\d+)\s*\}\{\s*(\d+)\s*\}|(?<=\s)(\d+)\s*/\s*(\d+))")
_POWER = re.compile(
    rf"([+-]?)(?:({_LITERAL})\s*(?:\\times|\\cdot|\*|x)\s*)?10\s*\^\s*(?:\{{\s*([+-]?\d+)\s*\}}|([+-]?\d))"
)
_EXPONENT = re.compile(rf"([+-]?{_LITERAL})[eE]([+-]?\d+)")
_REPEATING = re.compile(r"([+-]?)(\d*)\.(\d*)\\overline\{\s*(\d+)\s*\}")
_WORDS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SIGNS = str.maketrans({"−": "-", "–": "-"})
# Longer ones are no answers; converting them takes time that grows with the square.
_MAX_DIGITS = 1000
_MAX_EXPONENT = 1000
# Decimals from which a decimal number counts as the rounded value of one that has no end.
_MIN_ROUNDED = 6


@dataclass(frozen=True)
class Number:
    """A rational number as it was written.

    Args:
        value (`Fraction`):
            Its value.
        decimals (`int`, *optional*):
            Digits behind the point, for one written as a decimal number; `None` for fractions.
    """

    value: Fraction
    decimals: int | None = None

    def __eq__(self, other: object) -> bool:
        """Equal values, or a fraction and its value rounded to six decimals or more."""
        if not isinstance(other, Number):
            return NotImplemented
        return self.value == other.value or self._rounds(other) or other._rounds(self)

    __hash__ = None  # type: ignore[assignment]

    def _rounds(self, other: Number) -> bool:
        digits = self.decimals or 0
        return digits >= _MIN_ROUNDED and other.decimals is None and self.value == round(other.value, digits)


def parse_number(text: str) -> Number | None:
    r"""Read a number: `1,000`, `-.5`, `3/4`, `\frac{3}{4}`, `3 1/2`, `7.8\times 10^2`, `1e-3`, `0.\overline{3}`, `$5`.

    Args:
        text (`str`):
            The whole text of the number, with commands in braces as LaTeX has them.

    Returns:
        [`Number`], *optional*: The number; `None` for anything else, such as `\sqrt{2}` or a power.
    """
    if len(text) > _MAX_DIGITS:
        return None
    text = re.sub(r"\\?[$€£¥]", "", text).translate(_SIGNS).strip().rstrip(".")
    word = text.rpartition(" ")[2].lower()
    if word in _WORDS:
        number = parse_number(text[: -len(word)])
        return number and Number(number.value * 10 ** _WORDS[word], number.decimals)
    if re.match(r"[+-]\s", text):
        text = text[0] + text[1:].lstrip()
    if _GROUPED.fullmatch(text):
        text = re.sub("[, ]", "", text)
    if _NUMBER.fullmatch(text):
        return Number(Fraction(text.rstrip(".")), len(text.partition(".")[2]))
    try:
        return _parse_compound(text)
    except ZeroDivisionError:
        return None


def _parse_compound(text: str) -> Number | None:
    """A number that is written as several."""
    if match := _RATIO.fullmatch(text):
        value = Fraction(match[2] or match[4]) / Fraction(match[3] or match[5])
    elif match := _MIXED.fullmatch(text):
        part = Fraction(int(match[3] or match[5]), int(match[4] or match[6]))
        if part >= 1:  # a product, or a slip
            return None
        value = int(match[2]) + part
    elif match := _POWER.fullmatch(text):
        return _scaled(match[1] + (match[2] or "1"), match[3] or match[4])
    elif match := _EXPONENT.fullmatch(text):
        return _scaled(match[1], match[2])
    elif match := _REPEATING.fullmatch(text):
        shift, period = 10 ** len(match[3]), 10 ** len(match[4]) - 1
        value = Fraction(int(match[2] + match[3] or "0") * period + int(match[4]), shift * period)
    else:
        return None
    return Number(-value if match[1] == "-" else value)


def _scaled(mantissa: str, exponent: str) -> Number | None:
    """A mantissa times a power of ten; `None` for a power that nobody would write out."""
    if abs(int(exponent)) > _MAX_EXPONENT:
        return None
    return Number(Fraction(mantissa) * Fraction(10) ** int(exponent), max(0, len(mantissa.partition(".")[2])))
