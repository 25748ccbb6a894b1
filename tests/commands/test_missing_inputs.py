"""What is not there, and options that do not exist: one line that says what was given and what to do, everywhere."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from tests.benchmarks.arithmetic.task import arithmetic_dataset, arithmetic_policy_path, arithmetic_verifier_path
from trl_prl import __main__ as cli


POLICY, VERIFIER = str(arithmetic_policy_path()), str(arithmetic_verifier_path())
REWARD = "tests.benchmarks.arithmetic.task:arithmetic_reward"
ABSENT = ("absent/model", "./absent", "absents")
COMMANDS = {
    "collect": "--model MODEL --dataset DATA --output_dir out --reward REWARD",
    "evaluate": "--models MODEL --dataset DATA --output_dir out --reward REWARD",
    "search": "--model MODEL --dataset DATA --output_dir out --reward REWARD --method beam --process_reward VERIFIER",
    "score": "--verifier VERIFIER --file DATA --output out.jsonl",
    "evaluate-verifier": "--verifier VERIFIER --dataset DATA --output_dir out",
    "serve": "--verifier VERIFIER",
    "split-report": "--tokenizer MODEL --file DATA",
    "plan": "--samples DATA --tokenizer MODEL --n_cov 1",
    "export": "--values DATA --output out.jsonl",
    "diagnose": "DATA",
    "report": "DATA",
    "quickstart": "",
}
SCRIPTS = {
    "train_prl.py": "--dataset_name DATA --model_name_or_path MODEL",
    "train_pav.py": "--dataset_name DATA --model_name_or_path MODEL --process_reward VERIFIER",
    "train_verifier.py": "--dataset_name DATA --model_name_or_path MODEL",
}
SCRIPT_WORDS = ["--output_dir", "out", "--use_cpu", "--bf16", "false", "--report_to", "none"]


def words_of(template: str, **given: str) -> list[str]:
    values = {"MODEL": POLICY, "DATA": "data.jsonl", "VERIFIER": VERIFIER, "REWARD": REWARD, **given}
    return [values.get(word, word) for word in template.split()]


def cases(templates: dict[str, str]) -> list[tuple[str, str, str]]:
    return [(name, what, t) for name, t in templates.items() for what in ("MODEL", "VERIFIER", "DATA") if what in t]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = [{**row, "completion": "3\n#3"} for row in arithmetic_dataset("train", 2, seed=0)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    labelled = {"prompt": "1+2=", "completions": ["3\n", "#3"], "labels": [1.0, 1.0]}
    (tmp_path / "labelled.jsonl").write_text(json.dumps(labelled) + "\n")
    return tmp_path


def check_line(text: str, *parts: str) -> None:
    line = text.strip().splitlines()[-1]
    assert "Traceback" not in text
    assert ": error: " in line
    assert all(part in line for part in parts), line


@pytest.mark.parametrize("absent", ABSENT)
@pytest.mark.parametrize(("name", "what", "template"), cases(COMMANDS))
def test_what_is_missing_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, what: str, template: str, absent: str
) -> None:
    data = "labelled.jsonl" if name == "evaluate-verifier" else "data.jsonl"
    assert cli.main([name, *words_of(template, **{"DATA": data, what: absent})]) == 2
    check_line(capsys.readouterr().err, absent.removeprefix("./"), "Give " if name != "report" else "Pass ")


@pytest.mark.parametrize("name", ["collect", "evaluate", "search"])
def test_a_misspelled_name_does_not_block_the_command_that_is_right(folder: Path, name: str) -> None:
    def run(**given: str) -> int:
        return cli.main([name, *words_of(COMMANDS[name], **given), "--max_completion_length", "4"])

    assert run(MODEL="absent/model") == 2
    if name == "search":
        assert run(VERIFIER="absent/verifier") == 2
    assert run() == 0


@pytest.mark.parametrize("name", ["collect", "evaluate", "search"])
def test_a_missing_answer_column_is_named_before_a_model_is_loaded(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", None)
    (folder / "unanswered.jsonl").write_text(json.dumps({"prompt": "1+2=", "solution": "3"}))
    for reward in ("accuracy", "exact_match"):
        words = words_of(COMMANDS[name], DATA="unanswered.jsonl", REWARD=reward)
        assert cli.main([name, *words]) == 2
        check_line(capsys.readouterr().err, "no column 'answer'", repr(reward), "only 'prompt', 'solution'. Rename")
    assert not (folder / "out").exists()


def test_samples_without_an_answer_to_compare_with_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "samples.jsonl").write_text(json.dumps({"prompt": "1+2=", "completion": "3"}))
    assert cli.main(["evaluate", "--samples", "samples.jsonl", "--output_dir", "out"]) == 2
    check_line(capsys.readouterr().err, "no column 'answer'", "only 'prompt'. Rename")


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("diagnose", "report")])
def test_a_missing_file_of_options_is_named(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (folder / "options.yaml").write_text("{}")
    for given, part in (
        ("option.yaml", "Did you mean 'options.yaml'?"),
        (".", "is a folder"),
        (POLICY, "is a folder"),
    ):
        assert cli.main([name, "--config", given]) == 2
        check_line(capsys.readouterr().err, given, part, "Give a YAML file")
    assert cli.main([name, "--config", f"{POLICY}/model.safetensors"]) == 2
    check_line(capsys.readouterr().err, "is not YAML")


@pytest.mark.parametrize(
    ("name", "word", "near"),
    [
        ("collect", "--modell", "--model"),
        ("evaluate", "--modelss", "--models"),
        ("search", "--process-rewards=x", "--process_reward"),
        ("diagnose", "--verifier-eror", "--verifier_error"),
        ("report", "--max_completion", "--max_completions"),
        ("quickstart", "--output_dirs", "--output_dir"),
    ],
)
def test_unknown_options_hint_at_the_nearest(
    capsys: pytest.CaptureFixture[str], name: str, word: str, near: str
) -> None:
    assert cli.main([name, *(["values"] if name in ("diagnose", "report") else []), word, "x"]) == 2
    check_line(capsys.readouterr().err, f"Did you mean {near}", "--help")


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("colect", "Did you mean 'collect'? "),
        ("evaluate_verifier", "Did you mean 'evaluate-verifier'? "),
        ("xyz", "no command. --help"),
    ],
)
def test_unknown_commands_hint_at_the_nearest(capsys: pytest.CaptureFixture[str], word: str, hint: str) -> None:
    with pytest.raises(SystemExit):
        cli.main([word, "--model", "m"])
    check_line(capsys.readouterr().err, repr(word), hint, "--help lists all")


def test_words_that_are_no_options_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "values", "--output", "o.jsonl"]) == 2
    check_line(capsys.readouterr().err, "'values', which is no option")


def run_script(name: str, words: list[str], repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "argv", [name, *SCRIPT_WORDS, *words])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(repo_root / "examples" / name), run_name="__main__")
    return str(stop.value)


@pytest.mark.parametrize(("name", "what", "template"), cases(SCRIPTS))
def test_scripts_name_what_is_missing(
    folder: Path, repo_root: Path, monkeypatch: pytest.MonkeyPatch, name: str, what: str, template: str
) -> None:
    for absent in ABSENT:
        text = run_script(name, words_of(template, **{what: absent}), repo_root, monkeypatch)
        check_line(text, absent.removeprefix("./"), "Give ")


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_name_wrong_options_and_files(
    folder: Path, repo_root: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    text = run_script(name, [*words_of(SCRIPTS[name]), "--learning_rates", "1"], repo_root, monkeypatch)
    check_line(text, "Did you mean --learning_rate")
    check_line(run_script(name, ["--config", "absent.yaml"], repo_root, monkeypatch), "absent.yaml", "Give a YAML")


def test_pav_without_a_process_reward_says_what_to_pass_before_a_model_is_loaded(
    folder: Path, repo_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", None)
    text = run_script("train_pav.py", words_of(SCRIPTS["train_prl.py"]), repo_root, monkeypatch)
    check_line(text, "No --process_reward was given. Pass the folder or hub id")


def test_with_debug_the_traceback_is_left(folder: Path, repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train_prl.py", *SCRIPT_WORDS, "--debug", "--dataset_name", "absent.jsonl"])
    with pytest.raises(OSError, match=r"absent.jsonl"):
        runpy.run_path(str(repo_root / "examples" / "train_prl.py"), run_name="__main__")
