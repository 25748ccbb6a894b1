"""Options and files of options, as TRL's users write them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoConfig
from trl import ModelConfig

from trl_prl.collection.config import CollectConfig
from trl_prl.evaluation.config import EvaluateConfig
from trl_prl.jobs.arguments import parse_options, run_script


REQUIRED = {"model": "m", "dataset": "d", "output_dir": "o"}


def write(folder: Path, **options: Any) -> str:
    path = folder / "options.yaml"
    path.write_text(yaml.safe_dump({**REQUIRED, **options}))
    return str(path)


def test_options_win_over_the_file_which_wins_over_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, n_mc=7, n_cov=3, stop=["a", "b"], temperature=1, adaptive=True, seed_model=None)
    for words in (["--config", path, "--n_mc", "9"], ["--n_mc=9", f"--config={path}"]):
        config = parse_options(CollectConfig, words)
        assert (config.n_mc, config.n_cov, config.n_probe, config.stop) == (9, 3, 4, ["a", "b"])
        assert (config.temperature, config.adaptive, config.seed_model) == (1, True, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_cow": 3}, "Did you mean 'n_cov'"),
        ({"n-mc": 3}, "Did you mean 'n_mc'"),
        ({"n_mc": "many"}, "wrong type"),
        ({"n_mc": 1.5}, "wrong type"),
        ({"n_mc": True}, "wrong type"),
        ({"n_mc": None}, "wrong type"),
        ({"splitter": False}, "wrong type"),
        ({"temperature": "hot"}, "wrong type"),
        ({"adaptive": 1}, "wrong type"),
        ({"stop": "a"}, "wrong type"),
        ({"stop": [1]}, "wrong type"),
        ({"strategy": "fast"}, "wrong type"),
        ({"n_mc": 0}, "n_mc=0"),
    ],
)
def test_files_that_are_wrong_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_options(CollectConfig, ["--config", write(tmp_path, **change)])


@pytest.mark.parametrize(("text", "message"), [("a: [", "is not YAML"), ("- a", "holds no options"), ("", "holds no")])
def test_files_that_are_no_options_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        parse_options(CollectConfig, ["--config", str(tmp_path / "a.yaml")])


def test_names_with_dashes_lists_and_switches() -> None:
    words = ["--output-dir", "o", "--dataset", "d", "--models", "a=x", "y", "--k", "1", "2", "--plot=svg"]
    words += ["--as-user-message"]
    config = parse_options(EvaluateConfig, words)
    assert (config.output_dir, config.models, config.k, config.as_user_message) == ("o", ["a=x", "y"], [1, 2], True)
    # A default is not shared between configurations.
    assert config.aggregations is not parse_options(EvaluateConfig, words).aggregations


def test_a_file_that_is_not_named_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options(CollectConfig, ["--config"])
    assert "--config: expected one argument" in capsys.readouterr().err


@dataclass
class _Settings:
    """TRL has this one in the configurations of its trainers."""

    trust_remote_code: bool = False


def test_a_script_looks_for_the_model_as_it_will_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda *args, **options: asked.append((args, options)))
    words = ["--model_name_or_path", str(tmp_path), "--trust_remote_code", "true", "--model_revision", "v2"]
    monkeypatch.setattr("sys.argv", ["script", *words])
    run_script(lambda model, settings: asked.append(model.model_revision), ModelConfig, _Settings)
    assert asked == [((str(tmp_path),), {"trust_remote_code": True, "revision": "v2"}), "v2"]
