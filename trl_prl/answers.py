"""Outcome rewards: is the final answer right?"""

from __future__ import annotations

from typing import Any

from trl.rewards import accuracy_reward


def math_accuracy_reward(completions: list[Any], answer: list[str], **columns: Any) -> list[float | None]:
    r"""Outcome reward in TRL's signature: is the answer in the completion mathematically equal to the right one?

    [`~trl.rewards.accuracy_reward`], which compares with math-verify, for plain text as well as for messages, and for
    a data set whose column is called `answer`. The completion's answer is looked for in `\boxed{}` first.

    Args:
        completions (`list[str]` or `list[list[dict]]`):
            Completions as text or as messages; of messages, the last one of the assistant counts.
        answer (`list[str]`):
            Right answers, such as `"42"` or `"\\frac{1}{2}"`.
        **columns:
            Passed on, apart from `solution`: where a data set has worked solutions too, the answer alone is compared.

    Returns:
        `list[float | None]`: 1.0 or 0.0 per completion, `None` where the right answer cannot be parsed.

    Raises:
        `ImportError`: if math-verify is not installed.
    """
    messages = [[{"role": "assistant", "content": final_text(completion)}] for completion in completions]
    columns.pop("solution", None)  # TRL's name for the right answer
    return accuracy_reward(messages, solution=answer, **columns)


def final_text(completion: Any) -> str:
    """Text of a completion, or of its last assistant message; empty if the assistant said nothing."""
    if isinstance(completion, str):
        return completion
    contents = [message.get("content") or "" for message in completion if message["role"] == "assistant"]
    return contents[-1] if contents else ""
