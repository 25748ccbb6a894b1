"""One row, with every option of prompts, through every stage: each model sees the same ids."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import load_dataset
from transformers import AutoTokenizer, LlamaModel
from trl import ModelConfig, TrlParser

from tests.tiny_models import CHAT_TEMPLATE, build_model, build_tokenizer, make_grpo_args
from trl_prl import EvaluationCallback, PAVRewardConfig, PRLConfig, PRLTrainer, ProcessAdvantageVerifier, PromptFormat
from trl_prl.__main__ import main


QUESTION = "Add 1 + 2."
# A second row, so that there is one to hold out.
OTHER = "Take 19 - 4."
OPTIONS: dict[str, Any] = {
    "prompt_column": "question",
    "prompt_template": "{prompt} Write \\boxed{{}}.",
    "system_prompt": "First we add.",
    "chat_template_kwargs": {"enable_thinking": False},
}
THINKING = "{% if enable_thinking is defined and not enable_thinking %}So:\n\n{% endif %}"
# Written out by hand, so that no code of the package says what is right.
TEXT = (
    "<|start|>system\nFirst we add.<|end|><|start|>user\nAdd 1 + 2. Write \\boxed{}.<|end|><|start|>assistant\nSo:\n\n"
)


@contextmanager
def seen_ids() -> Iterator[list[list[int]]]:
    """Ids of every row of every forward of a whole text, without padding, policies' and verifiers' alike."""
    rows: list[list[int]] = []
    original = LlamaModel.forward

    def forward(self: Any, input_ids: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
        if input_ids.shape[1] > 1:
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            if mask.dim() == 2 and mask.shape == input_ids.shape:
                rows.extend(ids[kept.bool()].tolist() for ids, kept in zip(input_ids, mask, strict=True))
        return original(self, input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    LlamaModel.forward = forward
    try:
        yield rows
    finally:
        LlamaModel.forward = original


class Stages:
    """A folder with the row, a policy, and what the stages leave there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tokenizer = build_tokenizer()
        tokenizer.chat_template = CHAT_TEMPLATE + THINKING
        self.policy = str(folder / "policy")
        self.values = folder / "values" / "data" / "train.parquet"
        build_model(tokenizer).save_pretrained(self.policy)
        tokenizer.save_pretrained(self.policy)
        self.expected = [tokenizer(text)["input_ids"] for text in (TEXT, TEXT.replace(QUESTION, OTHER))]
        rows = [{"question": QUESTION, "answer": "3"}, {"question": OTHER, "answer": "15"}]
        (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def options(self, **others: Any) -> list[str]:
        """The same options for every command."""
        given = {**OPTIONS, "chat_template_kwargs": json.dumps(OPTIONS["chat_template_kwargs"]), **others}
        return ["--as_user_message", *(word for name, value in given.items() for word in (f"--{name}", str(value)))]

    def run(self, command: str, *words: str, **others: Any) -> None:
        assert main([command, *self.options(**others), *words]) == 0

    def sampling(self, output: str) -> dict[str, Any]:
        names = {"dataset": self.folder / "rows.jsonl", "output_dir": self.folder / output, "reward": "exact_match"}
        return {**names, "check_timeout": 0, "dtype": "float32", "max_completion_length": 12}

    def example(self, name: str, config_class: Any, **settings: Any) -> None:
        script = runpy.run_path(str(Path(__file__).resolve().parents[2] / "examples" / f"{name}.py"))
        config = {
            "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none", "max_steps": 1,
            "disable_tqdm": True, "save_strategy": "no", "dtype": "float32", "model_name_or_path": self.policy,
            "output_dir": str(self.folder / name), **settings,
        }  # fmt: skip
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(config))
        parser = TrlParser((script["DataArguments"], config_class, ModelConfig))
        script["main"](*parser.parse_args_and_config(["--config", str(path)]))

    def train_policy(self, name: str, **settings: Any) -> None:
        from trl_prl import PAVConfig

        self.example(
            name,
            PAVConfig if name == "train_pav" else PRLConfig,
            dataset_name=str(self.folder / "rows.jsonl"),
            reward="exact_match",
            as_user_message=True,
            per_device_train_batch_size=2,
            num_generations=2,
            max_completion_length=8,
            **{**OPTIONS, **settings},
        )


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    found = Stages(tmp_path_factory.mktemp("stages"))
    with seen_ids() as rows:
        found.run("collect", model=found.policy, n_cov=4, n_mc=2, unfinished="wrong", **found.sampling("values"))
    check(rows, found.expected)
    # Nothing this policy writes is right, and labels of one kind calibrate nothing: every first step becomes right.
    table = pq.read_table(found.values)
    place = table.schema.get_field_index("labels")
    column = table.schema.field(place)
    labels = pa.array([[1.0, *row[1:]] for row in table["labels"].to_pylist()], column.type)
    pq.write_table(table.set_column(place, column, labels), found.values)
    return found


def check(rows: list[list[int]], expected: list[list[int]]) -> None:
    """Every whole text begins with a prompt, and there are some. Shorter ones look whether a model is causal."""
    whole = [ids for ids in rows if len(ids) >= min(map(len, expected))]
    assert whole
    assert all(any(ids[: len(prompt)] == prompt for prompt in expected) for ids in whole)


@pytest.fixture(scope="module")
def verifier(stages: Stages) -> str:
    """Trained by the example script on what was collected, of which it takes all settings."""
    with seen_ids() as rows:
        stages.example("train_verifier", PAVRewardConfig, dataset_name=str(stages.values), eval_rows=1)
    check(rows, stages.expected)
    return str(stages.folder / "train_verifier")


def test_what_was_used_travels_from_the_collection_into_the_verifier(stages: Stages, verifier: str) -> None:
    settings = ProcessAdvantageVerifier.from_pretrained(verifier).settings
    # The column of what was collected is called as stepwise rows call it.
    assert settings.prompts == PromptFormat(**{**OPTIONS, "prompt_column": "prompt"}, as_user_message=True)
    assert (settings.prompt_type, settings.prompt_format, settings.read_end) == ("messages", "as_given", True)
    assert (settings.step_splitter, settings.prover) == ("newline", stages.policy)
    assert settings.collected is not None
    assert settings.collected["max_completion_length"] == 12
    assert settings.collected["n_mc"] == 2
    assert (settings.temperature, settings.offset) == (1.0, 0.0)  # so few labels calibrate nothing
    for card in ("values", "train_verifier"):
        text = (stages.folder / card / "README.md").read_text(encoding="utf-8")
        assert "First we add." in text
        assert "max_completion_length" in text


@pytest.mark.parametrize("stage", ["search", "evaluate", "score", "evaluate-verifier"])
def test_commands_show_models_the_same_ids(
    stages: Stages, verifier: str, stage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    solved = {"question": QUESTION, "completion": "We add.\nIt is 3.", "answer": "3"}
    (tmp_path / "solved.jsonl").write_text(json.dumps(solved))
    steps = {"question": QUESTION, "completions": ["We add.\n", "It is 3."], "labels": [0.5, 1.0]}
    (tmp_path / "steps.jsonl").write_text(json.dumps(steps))
    sampling = {**stages.sampling("unused"), "output_dir": tmp_path / "out", "plot": "none"}
    with seen_ids() as rows:
        if stage == "search":
            stages.run(stage, "--n", "2", model=stages.policy, process_reward=verifier, method="beam", **sampling)
        elif stage == "evaluate":
            stages.run(stage, "--verifiers", f"v={verifier}", model=stages.policy, n=2, **sampling)
        elif stage == "score":
            stages.run(stage, verifier=verifier, file=tmp_path / "solved.jsonl", output=tmp_path / "scored.jsonl")
        else:
            arguments = {"dataset": tmp_path / "steps.jsonl", "output_dir": tmp_path / "out", "error_threshold": 0.5}
            stages.run(stage, verifier=verifier, plot="none", **arguments)
    check(rows, stages.expected)
    assert "otherwise" not in caplog.text


@pytest.mark.parametrize("name", ["train_prl", "train_pav"])
def test_both_trainers_show_models_the_same_ids(
    stages: Stages, verifier: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with seen_ids() as rows:
        stages.train_policy(name, **({"process_reward": verifier} if name == "train_pav" else {"beta": 0.1}))
    check(rows, stages.expected)
    assert "otherwise" not in caplog.text
    assert "plain text" not in caplog.text


def test_evaluation_while_training_shows_the_policy_the_same_ids(stages: Stages, tmp_path: Path) -> None:
    options = PromptFormat(**OPTIONS, as_user_message=True)
    dataset = load_dataset("json", data_files=str(stages.folder / "rows.jsonl"), split="train")
    dataset = dataset.map(lambda row: {"prompt": options.prompt_of(row)})
    trainer = PRLTrainer(
        stages.policy,
        lambda completions, **kwargs: [0.0] * len(completions),
        make_grpo_args(PRLConfig, tmp_path, chat_template_kwargs=OPTIONS["chat_template_kwargs"]),
        dataset,
    )
    callback = EvaluationCallback(trainer, dataset, n=2)
    with seen_ids() as rows:
        callback.evaluate()
    check(rows, stages.expected)


def test_a_stage_with_other_options_warns_in_one_line(
    stages: Stages, verifier: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for column, message in (
        ({"prompt_template": "{prompt}"}, "`prompt_template` was '{prompt} Write"),
        ({"system_prompt": "Other."}, "`system_prompt` was 'First we add.', and is 'Other.' here"),
        ({"chat_template_kwargs": "{}"}, "`chat_template_kwargs` was {'enable_thinking': False}, and is {} here"),
    ):
        caplog.clear()
        sampling = {**stages.sampling("x"), "output_dir": tmp_path / str(len(message)), "plot": "none", **column}
        stages.run("search", "--n", "1", model=stages.policy, process_reward=verifier, method="best_of_n", **sampling)
        [record] = [record for record in caplog.records if "otherwise" in record.getMessage()]
        assert message in record.getMessage()
        assert "\n" not in record.getMessage()


def test_the_shipped_tokenizer_reads_the_expected_text(stages: Stages) -> None:
    # The hand-written text is what the template makes of the hand-written messages.
    tokenizer = AutoTokenizer.from_pretrained(stages.policy)
    messages = [
        {"role": "system", "content": "First we add."},
        {"role": "user", "content": "Add 1 + 2. Write \\boxed{}."},
    ]
    rendered = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert rendered == TEXT
