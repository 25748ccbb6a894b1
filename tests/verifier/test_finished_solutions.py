"""What a verifier reads of a solution that has ended, and of one that goes on; and where its settings come from."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from tests.tiny_models import build_tokenizer
from tests.verifier_models import build_verifier, make_verifier_args
from trl_prl.collection.output import dataset_card
from trl_prl.prompts.format import PromptFormat
from trl_prl.rewards.checks import warn_of_other_prompts, warn_of_second_best_of_k
from trl_prl.verifier.config import PAVRewardConfig
from trl_prl.verifier.dataset import prepare_stepwise_dataset
from trl_prl.verifier.rows import is_finished, tokenize_stepwise
from trl_prl.verifier.settings import VerifierSettings, collected_settings, follow_collection


NEW = VerifierSettings(prompt_format="as_given", read_end=True)
MESSAGES = [{"role": "user", "content": "Add 1 + 2."}]
STEPS = ["We add.\n\n", "It is 3."]


def test_the_end_is_read_with_the_last_step_of_a_finished_solution() -> None:
    tokenizer = build_tokenizer()
    for prompt in ("Add 1 + 2.\n", MESSAGES):
        ended = tokenize_stepwise(tokenizer, prompt, STEPS, NEW)
        open_ = tokenize_stepwise(tokenizer, prompt, STEPS, NEW, finished=False)
        assert ended.input_ids == [*open_.input_ids, tokenizer.eos_token_id]
        assert ended.positions[:-1] == open_.positions[:-1]
        assert (ended.positions[-1], open_.positions[-1]) == (len(ended.input_ids) - 1, len(open_.input_ids) - 1)


def test_a_prompt_has_the_ids_that_the_policy_sees_whatever_follows() -> None:
    tokenizer = build_tokenizer()
    for prompt in ("Add 1 + 2.\n", MESSAGES):
        seen = PromptFormat().token_ids(tokenizer, prompt)
        # The first step would be merged with the line break of text and template.
        for steps in ([], ["\n\n3"], STEPS):
            tokens = tokenize_stepwise(tokenizer, prompt, steps, NEW)
            assert tuple(tokens.input_ids[: len(seen)]) == seen
            assert tokens.positions[0] == len(seen) - 1


def test_no_end_without_steps_and_none_in_verifiers_that_say_nothing_of_it() -> None:
    tokenizer = build_tokenizer()
    assert tokenize_stepwise(tokenizer, MESSAGES, [], NEW).input_ids == list(
        PromptFormat().token_ids(tokenizer, MESSAGES)
    )
    old = VerifierSettings.from_dict({"step_splitter": "newline", "prompt_format": "text", "max_length": 64})
    assert not old.read_end
    assert tokenizer.decode(tokenize_stepwise(tokenizer, MESSAGES, STEPS, old).input_ids) == (
        "Add 1 + 2.We add.\n\nIt is 3."
    )


def test_an_early_stop_is_told_from_a_start() -> None:
    verifier = build_verifier(build_tokenizer(), prompt_format="as_given", read_end=True)
    ended, start = verifier([MESSAGES] * 2, [["We add.\n"]] * 2, finished=[True, False])
    assert ended != start
    assert verifier([MESSAGES], [["We add.\n"]]) == [pytest.approx(ended, abs=1e-5)]  # solutions are whole by default


@pytest.mark.parametrize(
    ("row", "finished"),
    [
        ({}, True),
        ({"finish_reason": "length"}, False),
        ({"finish_reason": "eos", "rest": ""}, True),
        ({"finish_reason": "eos", "rest": "More."}, False),
        ({"finished": False}, False),
        ({"finished": None, "finish_reason": "stop"}, True),
    ],
)
def test_rows_say_whether_they_are_whole(row: dict[str, Any], finished: bool) -> None:
    assert is_finished(row) is finished
    steps = {"prompt": "Add.\n", "completions": STEPS, "labels": [0.5, 1.0], **row}
    tokenizer, args = build_tokenizer(), make_verifier_args("unused")
    [prepared] = prepare_stepwise_dataset(Dataset.from_list([steps]), tokenizer, args, "train")
    assert (prepared["input_ids"][-1] == tokenizer.eos_token_id) is finished


def test_a_solution_cut_at_its_first_error_has_no_end() -> None:
    rows = Dataset.from_list([{"prompt": "Add.\n", "completions": STEPS, "labels": [0.0, 1.0]}])
    tokenizer, args = build_tokenizer(), make_verifier_args("unused", cut_at_first_error=True)
    [prepared] = prepare_stepwise_dataset(rows, tokenizer, args, "train")
    assert prepared["input_ids"][-1] != tokenizer.eos_token_id


def test_parts_of_text_are_read_and_images_refused() -> None:
    tokenizer = build_tokenizer()
    parts = [{"role": "user", "content": [{"type": "text", "text": "Add 1 + 2."}]}]
    assert tokenize_stepwise(tokenizer, parts, STEPS, NEW) == tokenize_stepwise(tokenizer, MESSAGES, STEPS, NEW)
    parts[0]["content"].append({"type": "image", "text": None})
    for settings in (NEW, VerifierSettings()):
        with pytest.raises(ValueError, match="reads text only"):
            tokenize_stepwise(tokenizer, parts, STEPS, settings)


# ---- what travels ----


COLLECTED = {
    "prover": "my-org/prover", "splitter": "blank_line", "step_length": 8, "temperature": 0.7, "best_of_k": 4,
    "chat_template_kwargs": {"enable_thinking": False}, "prompt_template": "Q: {prompt}", "system_prompt": None,
    "as_user_message": True, "dataset": "rows.jsonl", "confidence": 0.95, "unfinished": "exclude",
}  # fmt: skip


def collected_folder(folder: Path) -> Path:
    (folder / "data").mkdir()
    schema = pa.schema([("prompt", pa.string())], metadata={"trl_prl": json.dumps(COLLECTED)})
    pq.write_table(pa.table({"prompt": ["a"]}, schema=schema), folder / "data" / "train.parquet")
    return folder


def test_settings_are_found_in_folders_and_files(tmp_path: Path) -> None:
    folder = collected_folder(tmp_path)
    assert collected_settings(str(folder)) == collected_settings(str(folder / "data" / "train.parquet")) == COLLECTED
    (tmp_path / "rows.jsonl").write_text("{}")
    assert collected_settings(str(tmp_path / "rows.jsonl")) is None
    assert collected_settings("no-org/no-data") is None
    assert collected_settings("a b") is None


def test_the_card_carries_them_too() -> None:
    from huggingface_hub import DatasetCard

    card = DatasetCard(dataset_card(COLLECTED, "my-org/prover", {"num_rollouts": 3}, 2))
    assert card.data.to_dict()["trl_prl"] == COLLECTED
    assert "| temperature | 0.7 |" in card.text


def make_args(**settings: Any) -> PAVRewardConfig:
    return PAVRewardConfig(output_dir="unused", bf16=False, use_cpu=True, **settings)


def test_training_follows_the_collection(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    args = make_args()
    follow_collection(args, str(collected_folder(tmp_path)))
    settings = args.verifier_settings()
    assert (settings.step_splitter, settings.step_length, settings.prover) == ("blank_line", 8, "my-org/prover")
    assert settings.prompts == PromptFormat("prompt", "Q: {prompt}", None, True, {"enable_thinking": False})
    assert settings.collected == COLLECTED
    assert not args.prompts().changes_prompts  # the rows have it already
    assert VerifierSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    assert not caplog.records


def test_labels_are_not_made_those_of_best_of_k_twice(tmp_path: Path) -> None:
    folder = collected_folder(tmp_path)
    args = make_args()
    follow_collection(args, str(folder))
    assert args.verifier_settings().best_of_k == 1
    args = make_args(best_of_k=2)
    follow_collection(args, str(folder))
    with pytest.raises(ValueError, match=r"collected with best_of_k=4.*Leave `best_of_k` at 1"):
        args.verifier_settings()
    with pytest.raises(ValueError, match="collected with best_of_k=4"):
        make_args(best_of_k=2, collected={"best_of_k": 4})


def test_a_setting_of_its_own_stays_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    args = make_args(step_splitter="sentence", prompt_template="{prompt}!")
    follow_collection(args, str(collected_folder(tmp_path)))
    assert args.step_splitter == "sentence"
    messages = [record.getMessage() for record in caplog.records]
    assert [message.split(" ")[0] for message in messages] == ["`step_splitter`", "`prompt_template`"]


class Scorer:
    """A process reward with the settings of a verifier."""

    def __init__(self, **settings: Any) -> None:
        self.settings = VerifierSettings(**settings)

    def __call__(self, prompts: Any, steps: Any, **columns: Any) -> Any:
        return [[0.5] * len(row) for row in steps]


@pytest.mark.parametrize(
    ("stored", "prompt", "used", "message"),
    [
        ({}, "1+1=", None, None),
        ({"prompts": PromptFormat(), "prompt_type": "text"}, "1+1=", None, None),
        ({"prompts": PromptFormat(), "prompt_type": "messages"}, "1+1=", None, "were messages, and are text here"),
        ({"prompts": PromptFormat(), "prompt_type": "text"}, MESSAGES, None, "were text, and are messages here"),
        ({"prompts": PromptFormat(prompt_template="Q: {prompt}")}, "Q: 1+1=", PromptFormat(), None),
        ({"prompts": PromptFormat(prompt_template="Q: {prompt}")}, "1+1=", None, "`prompt_template` was 'Q: {pro"),
        ({"prompts": PromptFormat()}, "Q: 1", PromptFormat(prompt_template="Q: {prompt}"), "`prompt_template` was N"),
        ({"prompts": PromptFormat(system_prompt="A")}, MESSAGES, None, "`system_prompt` was 'A'"),
        ({"prompts": PromptFormat()}, MESSAGES, PromptFormat(chat_template_kwargs={"a": 1}), "`chat_template_kwargs`"),
        ({"prompts": PromptFormat()}, "1+1=", PromptFormat(chat_template_kwargs={"a": 1}), None),
    ],
)  # fmt: skip
def test_other_prompts_warn_in_one_line(
    stored: Any, prompt: Any, used: Any, message: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "trl_prl.rewards.checks"):
        warn_of_other_prompts(Scorer(**stored), prompt, used)
        warn_of_other_prompts(lambda prompts, steps, **columns: [], prompt, used)
    assert [message in record.getMessage() for record in caplog.records] == [True] * (message is not None)


def test_a_second_best_of_k_warns(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_second_best_of_k(Scorer(collected={"best_of_k": 4}), 1)
    warn_of_second_best_of_k(Scorer(), 4)
    assert not caplog.records
    warn_of_second_best_of_k(Scorer(collected={"best_of_k": 4}), 2)
    warn_of_second_best_of_k(Scorer(best_of_k=3), 2)
    assert ["best of 8" in caplog.records[0].getMessage(), "best of 6" in caplog.records[1].getMessage()] == [True] * 2
