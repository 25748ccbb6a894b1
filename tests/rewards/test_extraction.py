r"""Where final answers stand, for checks and votes alike."""

from __future__ import annotations

import time

import pytest

from trl_prl.rewards.extraction import final_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("x \\boxed{1} \\boxed{2}", "2"),
        ("#### 72", "72"),
        ("The answer is $5$.", "5"),
        ("Final answer: 3/4", "3/4"),
        ("**Answer:** 4.", "4"),
        ("Answer:\n\n5", "5"),
        ("# Answer\n\n7\n", "7"),
        ("A: 8", "8"),
        ("The answer is (C).", "(C)"),
        ("So it's **Tuesday**.", "Tuesday"),
        ("The final answer is \\[ x = 5 \\]", "x = 5"),
        ("\\boxed{}", None),
        ("I do not know.", None),
        ("It costs $5.", "$5"),
        ("We get $x = 7$.", "7"),
        ("<think>\\boxed{4}</think> It is 5.", "5"),
        ("<think>\\boxed{4}", None),
        ("a</think>\\boxed{3}", "3"),
        ("<answer>42</answer>", "42"),
        ("<answer>\\boxed{42}</answer>", "42"),
        ("The answer is 5 apples because 2+3=5.", "5 apples"),
        ("The answer is: 12.", "12"),
        ("Answer = 3", "3"),
        ("The answer to the question of how many is 17.", "17"),
        ("Hence there are 3,000 of them.", "3,000"),
        ("the result is -7", "-7"),
        ("x is \\(\\frac{3}{4}\\).", "\\frac{3}{4}"),
        ("The probability is 3/4.", "3/4"),
        ("1. First 2. Second", "2"),
        ("The answer would be 15.", "15"),
        ("\\boxed{5} is the answer.<|im_end|>\n<|im_start|>user\n\\boxed{7}", "5"),
        ("So the answer is 11.\n\nQuestion: What is 3+3?\nAnswer: 6", "11"),
        ("the answers are 3 and 4", "3 and 4"),
        ("Thus the answer is 2:30 PM.", "2:30 PM"),
        ("The 8th grade has 10.", "10"),
        ("\\fbox{958}", "958"),
        ("\\boxed 5", "5"),
        ("Answer: \\$18.", "\\$18"),
        ("The answer is $18.", "$18"),
        ("Answer: **B**", "B"),
        ("**B**", "B"),
        ("The correct answer is B) 5 km", "B"),
        ("It is 50%.", "50%"),
        ("The value is \\$1,200.50 in total.", "\\$1,200.50"),
    ],
)
def test_final_answers(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("There are **15 liters** of water in the remaining 24 liters.", "15 liters"),
        ("\\[ 9 + 6 = 15 \\text{ liters} \\]\nSo there are 15 liters in the 24 liters of the mixture.", "15"),
        ("48 / 6 = 8\nTherefore, Tracy has 8 pieces, each 6 inches long.", "8"),
        ("For May:\n#### For June:\nThat makes 30.", "30"),
        ("### Step 3\nIn total \\$1,200.\n#### 1,200\n", "1,200"),
        ("So 2 + 2 = 4.\n\n**Step 2: check**\n\nThe total is 7.", "7"),
        (r"The point is \(x\) and the value \(y = 3\).", "3"),
        ("48/2 = <<48/2=24>>24 clips\n#### 72", "72"),
        ("Let me see <think> 7 </think> Answer: 8 </think>", None),
        ("**Final Answer**\n\\[ \\boxed{x \\geq 5} \\]", r"x \geq 5"),
        (r"\boxed{The solution is $x \geq 5$ here}", r"x \geq 5"),
        (r"\\boxed{004}", "004"),
    ],
)
def test_conclusions(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


HOSTILE = [
    *(r"\boxed{", "**", "answer is ", "#### ", r"\(", r"\[ ", "$", "=", "1,000", "A: ", "<answer>", "\n", " \n", "<<"),
    *(". ", "1/", "{}", "answer ", "Question: ", "\n#", "*: ", "</think>"),
]


@pytest.mark.parametrize("unit", HOSTILE)
def test_time_grows_with_the_length_of_hostile_texts(unit: str) -> None:
    begun = time.monotonic()
    final_answer(unit * (200_000 // len(unit)))
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    "text",
    [
        "The answer is indeed 8.",
        "The answer is definitely 8.",
        "The final answer is equal to 8.",
        "The answer is simply the number 8.",
        "The answer is 8, of course.",
    ],
)
def test_words_around_an_answer_are_none_of_it(text: str) -> None:
    assert final_answer(text) == "8"
