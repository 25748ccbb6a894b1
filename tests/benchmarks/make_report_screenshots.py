"""Make the report of a real comparison, and the screenshots of it in docs/figures.

    python tests/benchmarks/make_report_screenshots.py --work-dir runs/report

Trains GRPO, PRL and PAV on paths with three seeds each, searches, collects and diagnoses with the
commands of the package, writes the report and takes the screenshots in a browser without a screen. What is in the work
folder already is used again.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from path_training import Run, train_paths
from playwright.sync_api import Page, sync_playwright

from trl_prl import __main__ as cli
from trl_prl.commands.quickstart import quiet
from trl_prl.commands.report import write_report
from trl_prl.demo.path_values import verifier_problems
from trl_prl.demo.paths import MAX_COMPLETION_LENGTH, path_policy_path
from trl_prl.report.run_files import is_run


FIGURES = Path(__file__).resolve().parents[2] / "docs" / "figures"
# Learning rates and coefficients as in `docs/figures/paths.md`; fewer samples, so that an hour is enough.
METHODS = {"GRPO": 0.0, "PRL": 0.01, "PAV": 1.0}


def train(work_dir: Path, num_seeds: int, max_steps: int) -> None:
    """Train with each method and seed, unless that run is there."""
    quiet()
    for seed in range(num_seeds):
        for name, coefficient in METHODS.items():
            folder = work_dir / f"{name}-{seed}"
            if not is_run(folder):
                run = Run(name, 3e-4, coefficient, num_prompts=16, max_steps=max_steps, seed=seed)
                train_paths(run, path_policy_path(), None, output_dir=folder, num_eval_problems=8)
                print(f"trained {folder}", flush=True)


def use_commands(work_dir: Path, num_problems: int) -> None:
    """Search, collect and diagnose with the base policy, unless the results are there."""
    problems = work_dir / "problems.jsonl"
    verifier_problems("tuning", num_problems, seed=1).to_json(problems)
    common = ["--model", path_policy_path(), "--dataset", str(problems), "--check_timeout", "0"]
    common += ["--reward", "trl_prl.demo.paths:path_reward", "--max_completion_length", str(MAX_COMPLETION_LENGTH)]
    sizes, trees = ["--plot", "none", "--n", "1", "2", "4", "8"], ["--save_trees", str(num_problems)]
    exact = ["--process_reward", "trl_prl.demo.path_prover:PathProcessReward"]
    jobs = {
        "beam/search.json": ["search", *common, *sizes, *trees, "--method", "beam", *exact],
        "best/search.json": ["search", *common, *sizes, "--method", "best_of_n", *exact],
        "values/data/train.parquet": ["collect", *common, "--n_cov", "3", "--n_mc", "16", "--n_branch", "2"],
    }
    for output, words in jobs.items():
        path = work_dir / output
        if not path.exists() and cli.main([*words, "--output_dir", str(work_dir / Path(output).parts[0])]) != 0:
            raise SystemExit(f"{words[0]} failed, so there is nothing to show of it")
    diagnosis = work_dir / "diagnosis.json"
    if not diagnosis.exists():
        cli.main(["diagnose", str(work_dir / "values"), "--k", "1", "2", "4", "8", "--output", str(diagnosis)])


def take_screenshots(report: Path, figures: Path) -> None:
    """Open the report as a reader would, in light and in dark."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])

        def opened(scheme: Any) -> Page:
            page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme=scheme)
            page.goto(report.as_uri())
            return page

        def shoot(page: Page, name: str) -> None:
            page.wait_for_timeout(600)
            page.screenshot(path=figures / f"report_{name}.png")

        page = opened("light")
        page.click("#tab-training")
        shoot(page, "training")
        page.click("#tab-completions")
        page.select_option("#completions label:has(span:text-is('Run')) select", label="PAV-0")
        page.click("#completions button:has-text('✗ Wrong')")
        page.select_option("#completions label:has(span:text-is('Sort')) select", "spread")
        page.locator("#completions .row").nth(1).click()
        page.locator("#completions .detail .step").nth(2).hover()
        shoot(page, "completions")
        page = opened("dark")
        page.click("#tab-search")
        page.locator("#search .split").scroll_into_view_if_needed()
        page.evaluate("scrollTo(0, document.querySelector('#search .split').offsetTop - 60)")
        shoot(page, "search")
        page.click("#tab-compare")
        shoot(page, "compare")
        browser.close()


def main() -> None:
    """Make what is missing, write the report, take the screenshots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", type=Path, default=Path("runs/report"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-steps", type=int, default=60)
    parser.add_argument("--problems", type=int, default=24)
    parser.add_argument("--figures", type=Path, default=FIGURES, help="folder of the pictures")
    args = parser.parse_args()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    train(args.work_dir, args.seeds, args.max_steps)
    use_commands(args.work_dir, args.problems)
    (report,) = write_report([args.work_dir], args.work_dir / "report.html", title="Paths: GRPO, PRL and PAV")
    take_screenshots(report.resolve(), args.figures)
    print(f"{report}: {report.stat().st_size / 1e6:.1f} MB; pictures in {args.figures}")


if __name__ == "__main__":
    main()
