"""Every public family: scores equal those of a plain reference that reads one solution at a time, as the cards do."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer, Qwen2Model

from tests.prm_models import save_trl
from trl_prl.jobs.named_options import split_options
from trl_prl.prms.families import QWEN_SYSTEM_PROMPT
from trl_prl.prms.load import load_process_reward


VALUE_FAMILIES = ["qwen", "math-shepherd", "rlhflow", "skywork", "trl"]
FAMILIES = [*VALUE_FAMILIES, "implicit"]
TOLERANCE = 1e-5

PROMPTS: list[Any] = [
    "What is 12 + 30?",
    [{"role": "system", "content": "You write steps."}, {"role": "user", "content": "What is 4 - 1?"}],
    "数学: 1 + 1?",
    "Add 2.",
    "What is 12 + 30? " * 6,
    "Add 3.",
]
STEPS = [
    ["Step 1: we add 12 + 30.\n\n", "Step 2: the answer is \\boxed{42}."],
    ["We take 4 - 1 = 3.\n\n"],
    ["Первые шаги ки, 数学 😀.\n\n", "Done 😀\n\n", "So 2."],
    # Markers of all families inside steps.
    ["A <extra_0> b ки + c - d\n\n", "So + - ки <extra_0>"],
    ["Step 1: first.\n\n", "Step 2: then a line\nand another.\n\n", "Step 3: last.\n\n", "Step 4: it is 4."],
    ["The answer is 3."],
]


def question(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def load_plain(path: str, cls: Any) -> tuple[Any, Any]:
    return cls.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)


def weights_of(path: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {name: value for file in Path(path).glob("*.safetensors") for name, value in load_file(file).items()}


@torch.no_grad()
def qwen_reference(path: str) -> Callable[[Any, list[str]], list[float]]:
    """The chat of the card, two Linear layers on the hidden states, softmax at every marker that was put there."""
    weights, tokenizer = weights_of(path), AutoTokenizer.from_pretrained(path)
    body = Qwen2Model.from_pretrained(path).eval()
    marker = tokenizer.convert_tokens_to_ids("<extra_0>")

    def score(prompt: Any, steps: list[str]) -> list[float]:
        answer = "<extra_0>".join([step.rstrip() for step in steps]) + "<extra_0>"
        turns = [
            {"role": "system", "content": QWEN_SYSTEM_PROMPT},
            {"role": "user", "content": question(prompt)},
            {"role": "assistant", "content": answer},
        ]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        hidden = body(ids).last_hidden_state[0]
        hidden = torch.relu(hidden @ weights["score.0.weight"].T + weights["score.0.bias"])
        probabilities = torch.softmax(hidden @ weights["score.2.weight"].T + weights["score.2.bias"], -1)[:, 1]
        markers = (ids[0] == marker).nonzero()[:, 0].tolist()
        # A step that holds the marker has more of them; its own is the last.
        ends, at = [], -1
        for step in steps:
            at += step.count("<extra_0>") + 1
            ends.append(markers[at])
        return probabilities[ends].tolist()

    return score


@torch.no_grad()
def math_shepherd_reference(path: str) -> Callable[[Any, list[str]], list[float]]:
    """One prefix at a time: the last token of each is the marker, whose logits of + and - are compared."""
    model, tokenizer = load_plain(path, AutoModelForCausalLM)
    good, bad = tokenizer.encode("+ -")[1:]
    marker = tokenizer.encode("ки")[-1]

    def score(prompt: Any, steps: list[str]) -> list[float]:
        values, output = [], ""
        for number, step in enumerate(steps, 1):
            text = step.rstrip()
            text = text if text.startswith("Step") else f"Step {number}: {text}"
            output += f"{text} ки"
            ids = tokenizer.encode(f"{question(prompt)} {output}", return_tensors="pt")
            assert ids[0, 0] == tokenizer.bos_token_id
            assert ids[0, -1] == marker
            values.append(torch.softmax(model(ids).logits[0, -1, [good, bad]], -1)[0].item())
            output += "\n"
        return values

    return score


@torch.no_grad()
def rlhflow_reference(path: str) -> Callable[[Any, list[str]], list[float]]:
    """One turn at a time; the logits that predict the assistant's sign stand three tokens before the end."""
    model, tokenizer = load_plain(path, AutoModelForCausalLM)
    plus, minus = tokenizer.encode("+")[-1], tokenizer.encode("-")[-1]

    def score(prompt: Any, steps: list[str]) -> list[float]:
        turns, values = [], []
        for k, step in enumerate(steps):
            text = f"{question(prompt)} {step.rstrip()}" if k == 0 else step.rstrip()
            turns += [{"role": "user", "content": text}, {"role": "assistant", "content": "+"}]
            ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=False)
            values.append(torch.softmax(model(ids).logits[0, -3, [plus, minus]], -1)[0].item())
        return values

    return score


@torch.no_grad()
def skywork_reference(path: str) -> Callable[[Any, list[str]], list[float]]:
    """Lines tokenised apart, each ended by the id of a line break; sigmoid of the value head there."""
    weights, tokenizer = weights_of(path), AutoTokenizer.from_pretrained(path)
    body = Qwen2Model.from_pretrained(path).eval()

    def score(prompt: Any, steps: list[str]) -> list[float]:
        ids, flags = tokenizer.encode(tokenizer.bos_token + question(prompt) + "\n"), []
        mark = tokenizer.encode("\n")[-1]
        for step in steps:
            for line in [line for line in step.split("\n") if line]:
                ids += [*tokenizer.encode(line), mark]
            flags.append(len(ids) - 1)
        hidden = body(torch.tensor([ids])).last_hidden_state[0]
        logits = hidden @ weights["v_head.summary.weight"].T + weights["v_head.summary.bias"]
        return torch.sigmoid(logits[flags, 0]).tolist()

    return score


@torch.no_grad()
def trl_reference(path: str) -> Callable[[Any, list[str]], list[float]]:
    """Prompt and steps tokenised apart, each step ended by the separator; class 1 at the separator."""
    model, tokenizer = load_plain(path, AutoModelForTokenClassification)

    def score(prompt: Any, steps: list[str]) -> list[float]:
        ids, ends = tokenizer.encode(question(prompt), add_special_tokens=False), []
        for step in steps:
            ids += tokenizer.encode(step.rstrip(), add_special_tokens=False)
            ids += tokenizer.encode("\n", add_special_tokens=False)
            ends.append(len(ids) - 1)
        return torch.softmax(model(torch.tensor([ids])).logits[0, ends], -1)[:, 1].tolist()

    return score


@torch.no_grad()
def implicit_reference(path: str) -> Callable[[Any, list[str]], list[float]]:
    """Log-probabilities of every token by both models, one solution at a time, summed by step."""
    folder, options = split_options(path)
    model, tokenizer = load_plain(folder, AutoModelForCausalLM)
    reference, _ = load_plain(options["reference"], AutoModelForCausalLM)

    def score(prompt: Any, steps: list[str]) -> list[float]:
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        encoding = tokenizer(text + "".join(steps), return_offsets_mapping=True)
        ids = torch.tensor([encoding.input_ids])
        logps = []
        for one in (model, reference):
            table = torch.log_softmax(one(ids).logits[0].double(), -1)
            logps.append(torch.tensor([table[t - 1, ids[0, t]] for t in range(1, ids.shape[1])]))
        ratio = float(options["beta"]) * (logps[0] - logps[1])
        sums, begin = [], len(text)
        starts = [start for start, _ in encoding.offset_mapping]
        for step in steps:
            end = begin + len(step)
            sums.append(sum(ratio[t - 1].item() for t, start in enumerate(starts) if begin <= start < end))
            begin = end
        return sums

    return score


REFERENCES: dict[str, Any] = {
    "qwen": qwen_reference,
    "math-shepherd": math_shepherd_reference,
    "rlhflow": rlhflow_reference,
    "skywork": skywork_reference,
    "trl": trl_reference,
    "implicit": implicit_reference,
}


@pytest.fixture(scope="module")
def rewards(prm_paths: dict[str, str]) -> dict[str, Any]:
    return {name: load_process_reward(path) for name, path in prm_paths.items()}


def flat(rows: Any) -> torch.Tensor:
    return torch.tensor([value for row in rows for value in row], dtype=torch.float64)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_the_reference(family: str, prm_paths: dict[str, str], rewards: dict[str, Any]) -> None:
    reference = REFERENCES[family](prm_paths[family])
    with torch.no_grad():
        expected = [reference(prompt, steps) for prompt, steps in zip(PROMPTS, STEPS, strict=True)]
    found = rewards[family](PROMPTS, STEPS)
    torch.testing.assert_close(flat(found), flat(expected), atol=TOLERANCE, rtol=1e-5)
    # The models are random, but not blind.
    assert flat(found).std() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_do_not_depend_on_batch_order_and_padding_side(family: str, rewards: dict[str, Any]) -> None:
    reward = rewards[family]
    expected = flat(reward(PROMPTS, STEPS))
    alone = [reward([prompt], [steps])[0] for prompt, steps in zip(PROMPTS, STEPS, strict=True)]
    torch.testing.assert_close(flat(alone), expected, atol=TOLERANCE, rtol=0)
    turned = reward(PROMPTS[::-1], STEPS[::-1])[::-1]
    torch.testing.assert_close(flat(turned), expected, atol=TOLERANCE, rtol=0)
    side = reward.tokenizer.padding_side
    try:
        reward.tokenizer.padding_side = "left"
        torch.testing.assert_close(flat(reward(PROMPTS, STEPS)), expected, atol=0, rtol=0)
    finally:
        reward.tokenizer.padding_side = side


@pytest.mark.parametrize("family", FAMILIES)
def test_left_padding_by_hand_changes_nothing(family: str, rewards: dict[str, Any]) -> None:
    """The models themselves, with eight tokens of padding in front."""
    model = rewards[family].model
    ids = torch.arange(20, 40).unsqueeze(0)
    padded = torch.cat([torch.zeros(1, 8, dtype=torch.long), ids], 1)
    mask = torch.cat([torch.zeros(1, 8, dtype=torch.long), torch.ones_like(ids)], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        found = model(input_ids=padded, attention_mask=mask, position_ids=positions).logits[:, 8:]
    if family == "implicit":  # a sum from the first token on, whose own probability depends on what stands before it
        expected, found = expected - expected[:, :1], found - found[:, :1]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", VALUE_FAMILIES)
def test_blank_steps_have_the_value_of_the_step_before(family: str, rewards: dict[str, Any]) -> None:
    reward = rewards[family]
    plain = reward(["What is 12 + 30?"], [["We add.\n\n", "It is 42."]])[0]
    found = reward(["What is 12 + 30?"], [["", "We add.\n\n", " \n", "", "It is 42.", "\n"]])[0]
    assert found == pytest.approx([1.0, plain[0], plain[0], plain[0], plain[1], plain[1]], abs=TOLERANCE)
    assert reward(["Add."], [["\n", ""]]) == [[1.0, 1.0]]
    assert reward(["Add."], [[]]) == [[]]
    assert reward([], []) == []


def test_blank_steps_are_no_progress_of_an_implicit_reward(rewards: dict[str, Any]) -> None:
    found = rewards["implicit"](["Add."], [["We add.\n\n", "", "It is 42."]])[0]
    assert found[1] == 0.0


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_beyond_the_context_have_no_value(family: str, rewards: dict[str, Any]) -> None:
    """The head is kept: what fits is scored as if nothing followed."""
    reward, steps = rewards[family], [f"Step {i}: we add {i}.\n\n" for i in range(1, 90)]
    assert reward.settings.max_length == 512
    before = reward.num_truncated_steps
    shares: dict[str, float] = {}
    [found] = reward(["Add all."], [steps], log_metric=shares.__setitem__)
    num_scored = sum(not math.isnan(value) for value in found)
    assert 10 < num_scored < 80
    assert all(math.isnan(value) for value in found[num_scored:])
    [head] = reward(["Add all."], [steps[:num_scored]])
    torch.testing.assert_close(flat([found[:num_scored]]), flat([head]), atol=TOLERANCE, rtol=1e-5)
    assert reward.num_truncated_steps - before == 89 - num_scored
    assert shares["process/verifier/truncated_steps"] == pytest.approx(1 - num_scored / 89)


@pytest.mark.parametrize("family", FAMILIES)
def test_later_steps_do_not_change_earlier_scores(family: str, rewards: dict[str, Any]) -> None:
    [whole] = rewards[family]([PROMPTS[4]], [STEPS[4]])
    [part] = rewards[family]([PROMPTS[4]], [STEPS[4][:2]])
    assert part == pytest.approx(whole[:2], abs=TOLERANCE)


def test_the_system_prompt_is_the_models_own(prm_paths: dict[str, str], rewards: dict[str, Any]) -> None:
    """That of a policy says how to write, and changes no score; the card's can be replaced."""
    turn = {"role": "user", "content": "Add."}
    parts = {"role": "user", "content": [{"type": "text", "text": "Ad"}, {"type": "text", "text": "d."}]}
    chats = [[turn], [{"role": "system", "content": "Be a poet."}, turn], [parts]]
    for family in VALUE_FAMILIES:
        first, second, third, plain = rewards[family]([*chats, "Add."], [["We add."]] * 4)
        assert first == second == third == plain
    other = load_process_reward(prm_paths["qwen"], system_prompt="Judge.")
    assert other(["Add."], [["We add."]]) != rewards["qwen"](["Add."], [["We add."]])


def test_a_tokenizer_that_adds_a_start_token_changes_no_chat(prm_paths: dict[str, str]) -> None:
    from tokenizers import processors

    reward = load_process_reward(prm_paths["qwen"])
    expected = reward(PROMPTS, STEPS)
    tokenizer = reward.tokenizer
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", tokenizer.bos_token_id)]
    )
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    assert reward(PROMPTS, STEPS) == expected


def test_labels_are_read_not_guessed(tmp_path: Path, rewards: dict[str, Any]) -> None:
    expected = rewards["trl"](PROMPTS, STEPS)
    named = load_process_reward(save_trl(tmp_path / "named", {0: "incorrect", 1: "correct"}))
    assert named(PROMPTS, STEPS) == expected
    turned = load_process_reward(save_trl(tmp_path / "turned", {0: "good", 1: "bad"}))
    torch.testing.assert_close(flat(turned(PROMPTS, STEPS)), 1 - flat(expected), atol=TOLERANCE, rtol=0)
    with pytest.raises(ValueError, match="not say which one means a right step"):
        load_process_reward(save_trl(tmp_path / "odd", {0: "a", 1: "b"}))


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "trl"])
@pytest.mark.parametrize("names", [["LABEL_0"], ["correct", "wrong"], ["a", "b", "c"]])
def test_labels_that_a_config_has_of_another_head_say_nothing(
    family: str, names: list[str], prm_paths: dict[str, str], rewards: dict[str, Any], tmp_path: Path
) -> None:
    folder, comma, options = prm_paths[family].partition(",")
    shutil.copytree(folder, copied := tmp_path / Path(folder).name)
    config = json.loads((copied / "config.json").read_text())
    config["id2label"] = dict(enumerate(names))
    config["label2id"] = {name: i for i, name in enumerate(names)}
    (copied / "config.json").write_text(json.dumps(config))
    assert load_process_reward(f"{copied}{comma}{options}")(PROMPTS, STEPS) == rewards[family](PROMPTS, STEPS)


def test_math_shepherd_numbers_steps_without_a_number(prm_paths: dict[str, str], rewards: dict[str, Any]) -> None:
    bare, numbered = ["First.\n", "Then."], ["Step 1: First.\n", "Step 2: Then."]
    reward = rewards["math-shepherd"]
    assert reward(["Add."], [bare]) == reward(["Add."], [numbered])
    assert load_process_reward(prm_paths["math-shepherd"], number_steps=False)(["Add."], [bare]) != reward(
        ["Add."], [bare]
    )


def test_separator_of_a_trl_checkpoint(prm_paths: dict[str, str], rewards: dict[str, Any]) -> None:
    other = load_process_reward(prm_paths["trl"], step_separator="\n\n")
    assert other(["Add."], [["We add."]]) != rewards["trl"](["Add."], [["We add."]])


def test_values_of_an_implicit_reward_are_those_of_prime(rewards: dict[str, Any]) -> None:
    """sigmoid(beta * sum of log-ratios), so 0.5 for a prompt; progress sums up to its argument."""
    reward = rewards["implicit"]
    assert reward.returns == "advantages"
    progress, (initial, values) = reward(PROMPTS, STEPS), reward.score_solutions(PROMPTS, STEPS)
    assert initial == [0.5] * len(PROMPTS)
    for row, found in zip(progress, values, strict=True):
        expected = torch.sigmoid(torch.tensor(row).cumsum(0))
        torch.testing.assert_close(torch.tensor(found), expected, atol=TOLERANCE, rtol=0)
