r"""One spelling for the many that an answer has, as text: `\dfrac12`, `\frac{1}{2}` and `$1/2$` become alike.

Nothing is computed here, so that no answer, however hostile, takes long.
"""

from __future__ import annotations

import functools
import re

from .parts import depths


# Longer answers are compared letter by letter.
MAX_CHARS = 1000
_MAX_DEPTH = 20

_UNICODE = str.maketrans(
    {
        **dict(zip("−–×·÷π∞≤≥≠∪∩∅°²³′", ("-", "-", r"\times ", r"\cdot ", "/", r"\pi ", r"\infty ", r"\le ", r"\ge ",
            r"\ne ", r"\cup ", r"\cap ", r"\emptyset ", r"^\circ ", "^2", "^3", "'"), strict=True)),
        **dict.fromkeys("\u00a0\u2009\u202f\u2002\u2003\u2006\n\t", " "),
        **dict.fromkeys("\u200b\u2061\u2062", ""),
        **dict(zip("½⅓⅔¼¾⅕⅛", (" 1/2", " 1/3", " 2/3", " 1/4", " 3/4", " 1/5", " 1/8"), strict=True)),
        **dict(zip("₀₁₂₃₄₅₆₇₈₉", (f"_{digit}" for digit in range(10)), strict=True)),
    }
)  # fmt: skip
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^(-?)\s*\\?\$\s*(-?[\d.,]*\d)\s*$", r"\1\2 dollars"),
        (r"\*\*|\\?\$|(?<!\\)\\[()\[\]]|\\displaystyle|\\limits|\\!\s*|\\boldsymbol|\\cancel", ""),
        (r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])\.?", ""),
        (r"(?<!\\)\\(?:[,;:>~ ]|q?quad(?![a-zA-Z])|hspace\{[^{}]*\})|~", " "),
        (r"(?<=\d)\s*\{,\}\s*(?=\d{3}(?!\d))", ""),
        (r"(?<=\d)\{,\}(?=\d)", "."),
        (r"\\[dtc]frac(?![a-z])", r"\\frac"),
        (r"√\s*\(([^()]*)\)|(?<![\\a-z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1\2}"),
        (r"√\s*(\d+(?:\.\d+)?|[a-zA-Z])", r"\\sqrt{\1}"),
        (r"\\sqrt\s*(\d|[a-zA-Z]|\\[a-zA-Z]+)", r"\\sqrt{\1}"),
        (r"\\frac\s*(\d|[a-zA-Z]|\\pi)\s*(?=[\d{a-zA-Z\\])", r"\\frac{\1}"),
        (r"\\frac(\{[^{}]*\})\s*(\d|[a-zA-Z])", r"\\frac\1{\2}"),
        (r"\\(?:leq|leqslant|leqq)(?![a-z])|<=|=<", r"\\le "),
        (r"\\(?:geq|geqslant|geqq)(?![a-z])|>=", r"\\ge "),
        (r"\\neq(?![a-z])|!=", r"\\ne "),
        (r"\\lt(?![a-z])", "<"),
        (r"\\gt(?![a-z])", ">"),
        (r"(?<![\\a-z])\+?inf(?:inity|ty)?(?![a-z])|\+\\infty", r"\\infty "),
        (r"\\varnothing|\\\{\s*\\\}|^\s*\{\s*\}\s*$|^\s*(?:the )?empty set\s*$", r"\\emptyset"),
        (r"\\%", "%"),
        (r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ|\\degree", r"^\\circ "),
        (r"\^\\circ\s*([CF])(?![a-zA-Z])", r" degrees\1"),
        (r"\s+", " "),
        (r" \^", "^"),
        (r"\{\s", "{"),
        (r"(?<!\\)\s\}", "}"),
    )
]
_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|normal|sf|tt)?|[mhf]box|math(?:rm|bf|it|sf)|operatorname|emph|bf|rm)\*?\s*\{([^{}]*)\}"
)
_MEASURES = {
    synonym: unit
    for unit, synonyms in {
        "mm": "millimeter millimetre",
        "cm": "centimeter centimetre",
        "m": "meter metre",
        "km": "kilometer kilometre",
        "inch": "in inches",
        "foot": "ft feet",
        "yard": "yd",
        "mile": "mi",
        "second": "s sec",
        "minute": "min",
        "hour": "h hr",
        "day": "",
        "week": "wk",
        "month": "",
        "year": "yr",
        "g": "gram gm",
        "kg": "kilogram",
        "mg": "milligram",
        "pound": "lb",
        "ounce": "oz",
        "ton": "",
        "l": "liter litre",
        "ml": "milliliter millilitre",
        "gallon": "gal",
        "dollar": "usd buck",
        "cent": "¢",
        "euro": "€ eur",
        "£": "gbp",
        "degree": "deg °",
        "degreesc": "celsius",
        "degreesf": "fahrenheit",
        "radian": "rad",
        "%": "percent pct percentage",
        "am": "a.m",
        "pm": "p.m",
    }.items()
    for synonym in (unit, *synonyms.split())
}
_RATES = {"mph": "mile/hour", "kph": "km/hour", "kmh": "km/hour", "kmph": "km/hour", "fps": "foot/second"}
_POWERS = {"square": "^2", "sq": "^2", "squared": "^2", "cubic": "^3", "cu": "^3", "cubed": "^3"}
# Words behind a number that change it.
_NO_UNITS = re.compile(
    "or|and|than|least|most|not|to|over|plus|minus|times|half|hundred|thousand|million|billion|trillion|dozen|if|for|"
    "when|mod|base|pi|sqrt|sin|cos|tan|log|ln",
    re.IGNORECASE,
)
_UNIT_WORD = re.compile(r"[A-Za-z%°¢€£.\-]+(?:\^\{?[23]\}?)?(?:/[A-Za-z]+(?:\^\{?[23]\}?)?)*")
_WORD = re.compile(r"(?<![\\A-Za-z_{])[A-Za-z]{3,}(?![A-Za-z])")
_FUNCTIONS = re.compile("(?:arc)?(?:sin|cos|tan)|cot|sec|csc|log|exp|max|min|mod|gcd|lcm|det|sqrt|deg", re.IGNORECASE)


@functools.lru_cache(maxsize=1 << 14)
def canonical(text: str) -> str:
    r"""One spelling of an answer.

    Args:
        text (`str`):
            Answer, as text or LaTeX, with or without `$` around it.

    Returns:
        `str`: The answer without what says nothing: formula signs, thin spaces, sizes of brackets and fonts, full
        stops; with `\frac{1}{2}` for `\frac12` and `1/2` for `½`.
    """
    text = text.strip()
    if len(text) > MAX_CHARS:
        return text
    text = text.translate(_UNICODE)
    if r"\begin" not in text:  # where `\\` ends a row
        text = re.sub(r"\\{2,}(?=[a-zA-Z])", r"\\", text)
    for _ in range(_MAX_DEPTH):
        text, count = _TEXT.subn(r" \1 ", text)
        if not count:
            break
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = text.strip(" ,;:")
    while text.endswith(".") and not text.endswith(("..", ".m.")):
        text = text[:-1].rstrip()
    text = re.sub(r"^(-?)\s*([€£¥])\s*(-?[\d.,]+)$", r"\1\3 \2", text)
    choice = re.fullmatch(r"\(?([A-Za-z])\)?[.:]?", text)
    return choice[1] if choice else text


def key(text: str) -> str:
    """What equal spellings share: a canonical text without spaces that say nothing, words in small letters."""
    text = re.sub(
        r"(?<![\\A-Za-z])(?:[A-Z][a-z]+|[A-Z]{3,}|[AP]M|NO)(?![A-Za-z])", lambda match: match[0].lower(), text
    )
    return re.sub(r"(?<![0-9a-zA-Z.]) | (?![0-9a-zA-Z.])", "", text)


def split_unit(text: str) -> tuple[str, str | None]:
    r"""Take the unit off a canonical text.

    Args:
        text (`str`):
            A canonical text, such as `5 cm^2`, `60%` or `15 apples`.

    Returns:
        `tuple[str, str | None]`: The value, and the unit if it is a known measure; `None` for other words and none.
    """
    text = re.sub(r"(?<=[\d}])\s*\^\\circ\s*$", " degrees", text)
    text = re.sub(
        r"(?<=\d)(?=(?:[cmk]m|kg|mg|ml|ft|lbs?|mph|[ap]\.?m\.?|%|cents?|hours?)(?:\^\{?[23]\}?)?$)",
        " ",
        text,
        flags=re.I,
    )
    words = text.split(" ")
    first = len(words)
    while first > 1 and _UNIT_WORD.fullmatch(words[first - 1]) and not _NO_UNITS.fullmatch(words[first - 1]):
        first -= 1
    value, unit = " ".join(words[:first]), words[first:]
    if not unit or not re.search(r"\d|\\[a-z]", value) or _WORD.search(value) or len(unit) > 6:
        return text, None
    measure = _measure(unit)
    if measure is None and (len(unit[0]) < 2 or (len(re.findall("[a-zA-Z]", value)) and not re.search(r"\\", value))):
        return text, None  # a variable, or words around one
    if measure and len("".join(unit)) < 2 and measure != "%" and not re.fullmatch(r"[-\d.,/]+", value):
        return text, None
    return value, measure


def _measure(words: list[str]) -> str | None:
    """Canonical name of a measure; `None` if a word of it is not known."""
    found, power = "", ""
    for word in re.split(r"\s+|(?=/)|(?<=/)", " ".join(words)):
        word = word.lower().rstrip(".").replace("{", "").replace("}", "")
        base, _, exponent = word.partition("^")
        base = next((b for b in (base, base.removesuffix("s"), base.removesuffix("es")) if b in _MEASURES), base)
        if word in ("", "of"):
            continue
        if word in ("per", "/"):
            found += "/"
        elif word in _RATES:
            found += _RATES[word]
        elif word in _POWERS:
            power, found = ("", found + _POWERS[word]) if word.endswith("ed") else (_POWERS[word], found)
        elif base in _MEASURES:
            found += _MEASURES[base] + (f"^{exponent}" if exponent else power)
            power = ""
        else:
            return None
    return found or None


def is_prose(text: str) -> bool:
    """Whether a canonical text has words that are no mathematics."""
    return any(not _FUNCTIONS.fullmatch(word) for word in _WORD.findall(re.sub(r"\\(?:begin|end)\{\w+\}", "", text)))


def is_deep(text: str) -> bool:
    """Whether brackets are nested as nobody nests them."""
    return max(depths(text), default=0) > _MAX_DEPTH
