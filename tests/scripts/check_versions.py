"""Test the trainers with the oldest and the newest supported releases, each in an environment of its own.

    python tests/scripts/check_versions.py                       # all, or what is missing in the output
    python tests/scripts/check_versions.py --environments oldest --again

`oldest` has the lowest releases that pyproject.toml allows, `newest` whatever pip finds today, the others the newest
on other Pythons, where these are installed. Each runs the contract tests, the tests of the trainers and those of the
verifier's trainer. The outcome goes to `docs/figures/versions.json`, and from there as a table into
`docs/trl_compatibility.md`. Environments take several gigabytes each where PyTorch brings CUDA.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "trl_compatibility.md"
START, END = "<!-- versions: made by tests/scripts/check_versions.py -->\n", "<!-- end of versions -->\n"
PACKAGES = ("torch", "trl", "transformers", "accelerate", "datasets", "peft")
ENVIRONMENTS = {
    "oldest": "python3.11",
    "newest": "python3.11",
    "newest-3.12": "python3.12",
    "newest-3.13": "python3.13",
}
TESTS = ["tests/training", "tests/verifier/test_pav_reward_trainer.py"]
# The last two: TRL asks for them, for tools with an older transformers and for logging with an older torch.
TOOLS = ["pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "jmespath", "tensorboard"]


def floors() -> list[str]:
    """The lowest release of each package that pyproject.toml allows, as requirements."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [*project["dependencies"], *project["optional-dependencies"]["peft"]]
    lowest = dict(re.match(r"([\w-]+)>=([\w.]+)", requirement).groups() for requirement in requirements)  # type: ignore[union-attr]
    return [f"{package}=={lowest[package]}" for package in PACKAGES]


def check(name: str, python: str, folder: Path, pins: list[str]) -> dict[str, Any]:
    """Make an environment, run the tests in it, and return versions and counts."""
    path = folder / name
    began = time.monotonic()
    shutil.rmtree(path, ignore_errors=True)
    subprocess.run([python, "-m", "venv", path], check=True)
    executable = path / "bin" / "python"
    wanted = [*(floors() if name == "oldest" else []), *pins]
    subprocess.run([executable, "-m", "pip", "install", "-q", "-e", f"{ROOT}[peft,math]", *TOOLS, *wanted], check=True)
    listed = subprocess.run(
        [executable, "-m", "pip", "list", "--format=json"], check=True, capture_output=True, text=True
    )
    versions = {entry["name"]: entry["version"].split("+")[0] for entry in json.loads(listed.stdout)}
    result = folder / f"{name}.xml"
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "CI": "true",
        "CUDA_VISIBLE_DEVICES": "",
    }
    marks = "not slow and not ray and not sharded and not vllm"
    command = [executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "-m", marks, *TESTS]
    subprocess.run([*command, f"--junitxml={result}"], cwd=ROOT, env=environment, check=False)
    cases = list(ElementTree.parse(result).iter("testcase"))
    tags = [{child.tag for child in case} for case in cases]
    failed = [str(case.get("name")) for case, tag in zip(cases, tags, strict=True) if tag & {"failure", "error"}]
    return {
        "python": subprocess.run([executable, "-V"], check=True, capture_output=True, text=True).stdout.split()[1],
        **{package: versions[package] for package in PACKAGES},
        "passed": len(cases) - len(failed) - sum("skipped" in tag for tag in tags),
        "skipped": sum("skipped" in tag for tag in tags),
        "failed": failed,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "machine": platform.machine(),
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """The outcomes as a table in Markdown."""
    columns = ["python", *PACKAGES, "passed", "skipped", "failed"]
    lines = [f"| environment | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, result in results.items():
        cells = [
            ", ".join(f"`{test}`" for test in result["failed"]) or "0" if key == "failed" else str(result[key])
            for key in columns
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", nargs="+", choices=ENVIRONMENTS, default=list(ENVIRONMENTS))
    parser.add_argument("--folder", type=Path, default=ROOT / ".venv-versions", help="where environments are made")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "figures" / "versions.json")
    parser.add_argument("--pins", nargs="*", default=[], help="further requirements, such as a local build of torch")
    parser.add_argument("--again", action="store_true", help="check anew what the output has already")
    options = parser.parse_args()
    results = json.loads(options.output.read_text()) if options.output.is_file() else {}
    for name in options.environments:
        if shutil.which(ENVIRONMENTS[name]) is None:
            print(f"{name}: {ENVIRONMENTS[name]} is not installed, left out", file=sys.stderr)
        elif options.again or name not in results:
            results[name] = check(name, ENVIRONMENTS[name], options.folder, options.pins)
            ordered = {known: results[known] for known in ENVIRONMENTS if known in results}
            options.output.write_text(json.dumps(ordered, indent=1) + "\n")
            before, rest = PAGE.read_text().split(START)
            PAGE.write_text(before + START + table(ordered) + END + rest.split(END)[1])
    print(table(results))
    sys.exit(1 if any(result["failed"] for result in results.values()) else 0)


if __name__ == "__main__":
    main()
