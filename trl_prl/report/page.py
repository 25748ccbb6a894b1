"""The report as one HTML file that needs nothing else: no network, no other file."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from typing import Any

from jinja2 import Environment
from markupsafe import Markup


STYLES = ("vendor/uPlot.min.css", "report.css")
LIBRARIES = ("vendor/uPlot.iife.min.js",)
SCRIPTS = ("core.js", "charts.js", "steps.js", "completions.js", "compare.js", "training.js", "trees.js", "results.js")


def asset(name: str) -> str:
    """Text of a file that ships with the package."""
    return (files(__package__) / "assets" / name).read_text(encoding="utf-8")


def embed_json(data: Any) -> str:
    """JSON that can stand inside a `<script>` element, whatever texts are in it.

    `<`, `>` and `&` are escaped, so that no text ends the element or begins a comment in it, and so are the two line
    separators that JSON allows and JavaScript once did not.
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    # Sampled bytes can decode to halves of surrogate pairs, which UTF-8 cannot hold and JSON can escape.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def sections(payload: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Sections that have something to show, in the order of the tabs."""
    prompts: dict[int, set[tuple[Any, ...]]] = {}
    for row in payload["completions"]:
        prompts.setdefault(row["prompt"], set()).add((row["run"], row["source"], row.get("step"), row.get("split")))
    num_comparable = sum(len(places) > 1 for places in prompts.values())
    num_problems = sum(len(search["problems"]) for search in payload["searches"])
    found = [
        ("overview", "Overview", None, True),
        ("training", "Training", len(payload["runs"]), payload["runs"]),
        ("completions", "Completions", len(payload["completions"]), payload["completions"]),
        ("compare", "Compare", num_comparable, num_comparable),
        ("search", "Search", num_problems or None, payload["searches"]),
        ("evaluation", "Evaluation", len(payload["evaluations"]), payload["evaluations"]),
        ("verifier", "Verifier", len(payload["verifiers"]), payload["verifiers"]),
        ("prover", "Prover", len(payload["diagnoses"]), payload["diagnoses"]),
        ("other", "Other files", len(payload["others"]), payload["others"]),
    ]
    return [{"id": name, "label": label, "count": count} for name, label, count, content in found if content]


def render_page(payload: Mapping[str, Any], title: str) -> str:
    """Write the page.

    Args:
        payload (`Mapping`):
            What to show, as `ReportData.payload` returns it.
        title (`str`):
            Title of the page.

    Returns:
        `str`: The HTML.
    """
    script = "\n".join([*(asset(name) for name in LIBRARIES), "(() => {", *(asset(name) for name in SCRIPTS), "})();"])
    # Only this very script may run: text that got around all escaping could still do nothing.
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    template = Environment(autoescape=True, keep_trailing_newline=True).from_string(asset("report.html.j2"))
    return template.render(
        title=title,
        version=_version(),
        generated=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        sections=sections(payload),
        style=Markup("\n".join(asset(name) for name in STYLES)),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        payload=Markup(embed_json(payload)),
    )


def _version() -> str:
    try:
        return version("trl-prl")
    except PackageNotFoundError:
        return ""
