"""The outcome reward on texts and messages, next to whatever other columns a data set has."""

from __future__ import annotations

from typing import Any

import pytest

from trl_prl.answers import final_text, math_accuracy_reward


pytest.importorskip("math_verify")

RIGHT, WRONG = r"So it is $\boxed{\frac{1}{2}}$.", r"So it is $\boxed{0.25}$."


def as_messages(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize("wrap", [str, as_messages], ids=["text", "messages"])
def test_the_answer_decides(wrap: Any) -> None:
    rewards = math_accuracy_reward([wrap(RIGHT), wrap(WRONG), wrap("")], answer=[r"\frac{1}{2}"] * 3)
    assert rewards == [1.0, 0.0, 0.0]


def test_an_answer_that_cannot_be_parsed_is_no_wrong_one() -> None:
    assert math_accuracy_reward([RIGHT], answer=["see the figure"]) == [None]


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
