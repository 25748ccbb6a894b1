"""`load_process_reward`: what is recognised, what is refused and how it is said, precision and quantization."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.prm_models import save_qwen, save_rlhflow, save_trl
from tests.prms.test_families import FAMILIES, PROMPTS, STEPS, flat
from tests.tiny_models import build_tokenizer
from tests.verifier_models import build_verifier, build_verifier_model
from trl_prl import load_process_reward
from trl_prl.jobs.named_options import read_options, split_options
from trl_prl.prms.families import Family, question_of, tokenize_pieces
from trl_prl.prms.implicit import ImplicitProcessReward
from trl_prl.prms.model import PublicProcessReward
from trl_prl.verifier.model import ProcessAdvantageVerifier


def text_values(prompts: list[Any], steps: list[list[str]], **columns: Any) -> list[list[float]]:
    return [[0.5] * len(row) for row in steps]


@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_recognised(family: str, prm_paths: dict[str, str]) -> None:
    reward = load_process_reward(prm_paths[family])
    if family == "implicit":
        assert isinstance(reward, ImplicitProcessReward)
        assert reward.beta == 0.05
    else:
        assert isinstance(reward, PublicProcessReward)
        assert reward.family.name == family
    assert reward.__name__ == Path(split_options(prm_paths[family])[0]).name


def test_own_verifiers_functions_and_names(tmp_path: Path) -> None:
    build_verifier(build_tokenizer()).save_pretrained(tmp_path / "own")
    assert isinstance(load_process_reward(tmp_path / "own"), ProcessAdvantageVerifier)
    assert load_process_reward(text_values) is text_values
    assert load_process_reward("tests.prms.test_load:text_values") is text_values
    # A class is made without arguments.
    exact = load_process_reward("tests.benchmarks.arithmetic.prover:ArithmeticProcessReward")
    assert type(exact).__name__ == "ArithmeticProcessReward"
    with pytest.raises(ValueError, match="cannot be imported"):
        load_process_reward("tests.benchmarks.arithmetic.task:NoSuchReward")
    with pytest.raises(TypeError, match="cannot score steps"):
        load_process_reward(3)


def test_a_name_is_found_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `python script.py` finds it, whatever command asks first: a console script has no folder of its own."""
    (tmp_path / "my_own_steps.py").write_text("def values(prompts, steps, **columns):\n    return [[0.5]]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    assert load_process_reward("my_own_steps:values")([], []) == [[0.5]]


def test_options_behind_commas(tmp_path: Path) -> None:
    written = "org/prm,family=rlhflow,load_in_4bit=true,max_length=4096,beta=0.5"
    texts = {"family": "rlhflow", "load_in_4bit": "true", "max_length": "4096", "beta": "0.5"}
    assert split_options(written) == ("org/prm", texts)
    kinds = {"max_length": "int | None", "beta": "float | None", "family": "str | Family | None"}
    expected = {"family": "rlhflow", "load_in_4bit": True, "max_length": 4096, "beta": 0.5}
    assert read_options(texts, kinds) == expected
    assert split_options("http://a:1,http://b:2,timeout=3") == ("http://a:1,http://b:2", {"timeout": "3"})
    # A commit or a key may be all digits.
    assert read_options({"revision": "12e4567", "beta": "1"}, {**kinds, "revision": "str | None"}) == {
        "revision": "12e4567",
        "beta": 1,
    }
    with pytest.raises(ValueError, match=r"the option 'timout', which nothing would heed\. (?!.*urls)"):
        load_process_reward("http://127.0.0.1:1,timout=3")
    with pytest.raises(ValueError, match=r"the option 'alpha'.*none at all"):
        load_process_reward("tests.prms.test_load:text_values,alpha=3", device="cpu")
    # Commands pass options of models whatever they are given; what is written is meant.
    with pytest.raises(ValueError, match="the option 'load_in_4bit', which nothing would heed"):
        load_process_reward("http://127.0.0.1:1,load_in_4bit=true", device="cpu", dtype="auto")
    for option in ({"refresh_every": 10}, {"device": "cpu"}):
        with pytest.raises(ValueError, match=f"the option '{min(option)}' beside .* 'text_values', which is made"):
            load_process_reward(text_values, **option)
    folder = tmp_path / "a,b=c"
    folder.mkdir()
    assert split_options(str(folder)) == (str(folder), {})


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("refresh_every=x", "`refresh_every` is a whole number"),
        ("refresh_every=2.5", "`refresh_every` is a whole number"),
        ("refresh_every=true", "`refresh_every` is a whole number"),
        ("refresh_every=", "`refresh_every` is a whole number"),
        ("learning_rate=fast", "`learning_rate` is a number"),
        ("learning_rate=nan", "nothing would be learned"),
        ("number_steps=2", "`number_steps` is true or false"),
        ("max_batch_tokens=x", "`max_batch_tokens` is a whole number"),
        ("refresh_every=2,refresh_every=3", "cannot both be"),
        # Of other process rewards.
        ("max_length=5", r"'max_length', which nothing would heed.*refresh_every"),
        ("family=trl,refresh_every=2", "'refresh_every', which nothing would heed"),
        ("family=trl,reference=other", "'reference' beside family='trl'"),
        ("vllm=http://127.0.0.1:1,load_in_4bit=true", "'load_in_4bit' beside vllm="),
        ("family=judge,dtype=bfloat16", "'dtype', which nothing would heed"),
        ("family=judge,num_samples=4", "asks once for the probability"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path: Path, written: str, words: str) -> None:
    build_verifier(build_tokenizer()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=words):
        load_process_reward(f"{tmp_path},{written}")


@pytest.mark.parametrize("family", ["qwen", "math-shepherd", "rlhflow", "skywork", "trl", "implicit"])
def test_a_slip_in_an_option_is_named(family: str, prm_paths: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"the option 'famly', which nothing would heed\. Use one of .*max_length"):
        load_process_reward(prm_paths[family] + ",famly=qwen")
    # What `from_pretrained` knows goes through.
    assert callable(load_process_reward(prm_paths[family] + ",attn_implementation=eager"))


def test_a_slip_in_an_option_of_an_own_verifier_is_named(tmp_path: Path) -> None:
    build_verifier(build_tokenizer()).save_pretrained(tmp_path / "own")
    with pytest.raises(
        ValueError, match=r"the option 'refresh_evry', which nothing would heed\. (?!.*settings).*refresh_every"
    ):
        load_process_reward(f"{tmp_path / 'own'},refresh_evry=3")


def test_a_language_model_shows_nothing_and_its_family_can_be_said(tmp_path: Path) -> None:
    path = save_rlhflow(tmp_path / "my-finetune")
    with pytest.raises(ValueError, match=r"Found: architecture LlamaForCausalLM; model type llama.*family=.*rlhflow"):
        load_process_reward(path)
    assert load_process_reward(path, family="rlhflow").family.name == "rlhflow"
    with pytest.raises(ValueError, match="marks steps with 'ки'"):
        load_process_reward(f"{path},family=math-shepherd,number_steps=false")
    with pytest.raises(ValueError, match="family='rlhflo', which is not known"):
        load_process_reward(path, family="rlhflo")
    with pytest.raises(ValueError, match=r"reference=.*Qwen2.5-Math-7B-Instruct"):
        load_process_reward(path, family="implicit")
    with pytest.raises(ValueError, match="lacks the weights"):
        load_process_reward(path, family="trl")


def test_an_adapter_of_a_few_lines(tmp_path: Path) -> None:
    """The example of the docs: template, marker, readout."""
    path = save_rlhflow(tmp_path / "my-prm")

    def tokenize(tokenizer: Any, messages: Any, steps: list[str]) -> tuple[list[int], list[int]]:
        return tokenize_pieces(tokenizer, [question_of(messages) + "\n", *(f"{step}\n!" for step in steps)])

    reward = load_process_reward(path, family=Family("mine", tokenize, labels=("+", "-")))
    [values] = reward(["Add 2."], [["We add.\n", "It is 4."]])
    model = AutoModelForCausalLM.from_pretrained(path)
    ids = reward.tokenizer("Add 2.\nWe add.\n!It is 4.\n!", return_tensors="pt").input_ids
    with torch.no_grad():
        logits = model(ids).logits[0, -1, [reward.tokenizer.encode(sign)[-1] for sign in "+-"]]
    assert values[1] == pytest.approx(torch.softmax(logits, -1)[0].item(), abs=1e-5)


def test_scaled_logits_are_refused(tmp_path: Path) -> None:
    path = save_rlhflow(tmp_path / "scaled")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "logit_scale": 0.5}))
    with pytest.raises(ValueError, match=r"logit_scale=0.5"):
        load_process_reward(path, family="rlhflow")


@pytest.mark.parametrize("text", ["", '{"model_type": ', "[" * 100_000])
def test_a_torn_config_is_named(tmp_path: Path, text: str) -> None:
    path = save_trl(tmp_path / "torn")
    (path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config.json is no JSON"):
        load_process_reward(path)


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    path = save_trl(tmp_path / "pickled")
    (path / "model.safetensors").unlink()
    torch.save({}, path / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"no weights in safetensors format.*convert it once"):
        load_process_reward(path)


def test_remote_code_is_not_run_and_incomplete_heads_are_refused(tmp_path: Path) -> None:
    path = save_qwen(tmp_path / "qwen")
    assert "remote code was run" in (path / "modeling_qwen2_rm.py").read_text()
    load_process_reward(path)
    index = path / "model.safetensors.index.json"
    text = index.read_text().replace('"score.2.bias"', '"score.3.bias"')
    index.write_text(text)
    from safetensors.torch import load_file, save_file

    for file in path.glob("*.safetensors"):
        weights = load_file(file)
        renamed = {name.replace("score.2.bias", "score.3.bias"): value for name, value in weights.items()}
        save_file(renamed, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks the weights \['score.2.bias'\]"):
        load_process_reward(path)


def test_a_folder_without_a_model_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"config.json and a tokenizer .* not found"):
        load_process_reward(tmp_path)
    (tmp_path / "my-prm").mkdir()
    with pytest.raises(OSError, match="Did you mean"):
        load_process_reward(str(tmp_path / "my-pmr"))
    with pytest.raises(OSError, match="neither a folder here"):
        load_process_reward("no-org/no-prm")


@pytest.mark.parametrize("family", FAMILIES)
def test_own_precision(family: str, prm_paths: dict[str, str]) -> None:
    assert next(load_process_reward(prm_paths[family]).model.parameters()).dtype == torch.float32
    reward = load_process_reward(prm_paths[family], dtype="bfloat16", device="cpu", max_batch_tokens=100)
    assert {parameter.dtype for parameter in reward.model.parameters()} == {torch.bfloat16}
    expected = load_process_reward(prm_paths[family])(PROMPTS, STEPS)
    # The precision of bfloat16, which the sum of an implicit reward collects over its tokens.
    torch.testing.assert_close(flat(reward(PROMPTS, STEPS)), flat(expected), atol=0.1, rtol=0.1)


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
@pytest.mark.parametrize("family", FAMILIES)
def test_quantized(family: str, bits: str, prm_paths: dict[str, str]) -> None:
    """Layers of the body shrink, heads stay; scores stay near, and equal in every batch."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    reward = load_process_reward(prm_paths[family], **{bits: True})
    stored = {parameter.dtype for parameter in reward.model.parameters()}
    assert stored & {torch.uint8, torch.int8}
    heads = ("score", "v_head", "lm_head")
    dtypes = {parameter.dtype for name, parameter in reward.model.named_parameters() if any(h in name for h in heads)}
    assert all(dtype.is_floating_point for dtype in dtypes)
    found = reward(PROMPTS, STEPS)
    assert not any(math.isnan(value) for row in found for value in row)
    alone = [reward([prompt], [steps])[0] for prompt, steps in zip(PROMPTS, STEPS, strict=True)]
    # In 8 bits activations are rounded too, which makes steps of last digits; in 4 bits on processors with bfloat16.
    exact = bits == "load_in_4bit" and not bitsandbytes.functional.has_avx512bf16()
    torch.testing.assert_close(flat(alone), flat(found), atol=1e-5 if exact else 0.05, rtol=0)
    expected = flat(load_process_reward(prm_paths[family])(PROMPTS, STEPS))
    assert (flat(found) - expected).abs().mean() < (0.35 if family != "implicit" else 3.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_device_map(family: str, prm_paths: dict[str, str]) -> None:
    reward = load_process_reward(prm_paths[family], device_map={"": "cpu"})
    expected = load_process_reward(prm_paths[family])(PROMPTS, STEPS)
    torch.testing.assert_close(flat(reward(PROMPTS, STEPS)), flat(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_quantized_own_verifier(bits: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    tokenizer = build_tokenizer()
    # Blocks of 64 numbers share a scale, and there are kernels that take whole blocks alone.
    ProcessAdvantageVerifier(build_verifier_model(tokenizer, hidden_size=64), tokenizer).save_pretrained(tmp_path)
    reward = load_process_reward(tmp_path, device="cpu", **{bits: True})
    assert {parameter.dtype for parameter in reward.model.parameters()} & {torch.uint8, torch.int8}
    assert reward.model.score.weight.dtype == torch.float32
    assert 0 < reward(["Add 1."], [["2\n"]])[0][0] < 1
