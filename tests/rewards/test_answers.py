"""The outcome reward on texts and messages, next to whatever other columns a data set has."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from trl_prl.rewards.answers import final_text, math_accuracy_reward
from trl_prl.rewards.outcomes import check_reward


pytest.importorskip("math_verify")

RIGHT, WRONG = r"So it is $\boxed{\frac{1}{2}}$.", r"So it is $\boxed{0.25}$."


def as_messages(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize("wrap", [str, as_messages], ids=["text", "messages"])
def test_the_answer_decides(wrap: Any) -> None:
    rewards = math_accuracy_reward([wrap(RIGHT), wrap(WRONG), wrap("")], answer=[r"\frac{1}{2}"] * 3)
    assert rewards == [1.0, 0.0, 0.0]


def test_an_answer_that_cannot_be_parsed_is_no_wrong_one() -> None:
    assert math_accuracy_reward([RIGHT] * 3, answer=[None, "", "see $$ there"]) == [None] * 3


def test_a_solution_column_does_not_get_in_the_way() -> None:
    """MATH and GSM8K have both: the worked solution, and the answer alone."""
    rewards = math_accuracy_reward([RIGHT], answer=["0.5"], solution=["Half of 1 is 0.25."], prompts=["?"])
    assert rewards == [1.0]


def test_the_last_message_of_the_assistant_counts() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": []}
    tool = {"role": "tool", "content": "7"}
    assert (
        final_text([*as_messages("first"), call, tool, *as_messages("last"), {"role": "user", "content": "?"}])
        == "last"
    )
    assert final_text([call, tool]) == ""


@pytest.mark.parametrize(
    "answer",
    [
        r"\left( 3, \frac{\pi}{2} \right)",
        "(1,2)",
        r"\sqrt{51}",
        r"\text{Tuesday}",
        "x=1",
        "1,000",
        "50%",
        "3x^2+1",
    ],
)
def test_latex_without_delimiters_is_read(answer: str) -> None:
    """As data sets have it: math-verify alone takes bare LaTeX for plain text, and finds a number in it or nothing."""
    completions = [rf"\boxed{{{answer}}}", rf"So ${answer}$ it is, thus \boxed{{{answer}}}", r"\boxed{77}"]
    assert math_accuracy_reward(completions, answer=[answer] * 3) == [1.0, 1.0, 0.0]
    assert math_accuracy_reward(completions, answer=[f"${answer}$"] * 3) == [1.0, 1.0, 0.0]


@pytest.mark.shared_data
def test_agreement_on_real_completions(shared_data: Path) -> None:
    """The source calls `4:30 \\text{ p.m.}` wrong where `\\text{4:30 p.m.}` is right, and `10000` for `10{,}000`."""
    path = shared_data / "pools" / "qwen25math_cot100_n8.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        samples = [(row["answer"], sample) for row in map(json.loads, lines) for sample in row["samples"]]
    rewards = math_accuracy_reward(
        [sample["completion"] for _, sample in samples], answer=[gold for gold, _ in samples]
    )
    assert None not in rewards
    differ = [
        gold for reward, (gold, sample) in zip(rewards, samples, strict=True) if bool(reward) != sample["correct"]
    ]
    assert sorted(differ) == [r"10{,}000", *[r"\text{4:30 p.m.}"] * 8]


def test_a_missing_math_verify_is_named_before_anything_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    check_reward("accuracy", ["prompt", "answer"])
    monkeypatch.setattr("trl_prl.rewards.outcomes.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"trl-prl\[math\]"):
        check_reward("accuracy", ["prompt", "answer"])
    check_reward("exact_match", ["prompt", "answer"])
