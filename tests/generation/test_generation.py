"""The transformers generator: what `model.generate` would say, shared prefixes, and samples free of their batch."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig
from trl import GRPOConfig

from tests.tiny_models import build_model, build_tokenizer
from trl_prl.generation.local import TransformersGenerator
from trl_prl.generation.sampling import (
    StopTexts,
    choose_tokens,
    request_seed,
    sample_uniforms,
    sampling_of_training,
)
from trl_prl.generation.vllm_engine import VLLMGenerator
from trl_prl.types import Completion, Generator, Prompt, SamplingParams


TEXTS = ["Let us add", "So the answer is 15.\n\nHence", "x", "First we take 12 + 7 = 19.\n\nThen we take", "x + y"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


@pytest.fixture(scope="module")
def generator(tokenizer: Any) -> TransformersGenerator:
    return TransformersGenerator(build_model(tokenizer), tokenizer)


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[Prompt]:
    return [Prompt(tuple(tokenizer(text).input_ids), key=text) for text in TEXTS]


def ids_of(samples: list[list[Completion]]) -> list[list[tuple[int, ...]]]:
    return [[completion.token_ids for completion in row] for row in samples]


def test_greedy_equals_generate_of_each_prompt(generator: TransformersGenerator, prompts: list[Prompt]) -> None:
    """Padding, the repeated cache and dropped rows change nothing."""
    samples = generator.generate(prompts, SamplingParams(n=3, max_tokens=20, temperature=0))
    config = GenerationConfig(
        do_sample=False, max_new_tokens=20, eos_token_id=generator.tokenizer.eos_token_id, pad_token_id=0
    )
    for prompt, row in zip(prompts, samples, strict=True):
        ids = torch.tensor([prompt.token_ids])
        output = generator.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config
        )[0, ids.shape[1] :].tolist()
        assert all(list(completion.token_ids) == output for completion in row)


def test_samples_do_not_depend_on_the_batch(generator: TransformersGenerator, prompts: list[Prompt]) -> None:
    """Permuted, alone, with a smaller budget and with other prompts: sample i of a prompt is the same."""
    params = SamplingParams(n=4, max_tokens=16, seed=3)
    expected = dict(zip(TEXTS, ids_of(generator.generate(prompts, params)), strict=True))
    assert len({ids for row in expected.values() for ids in row}) > 10
    for order in itertools.islice(itertools.permutations(prompts), 0, 120, 40):
        assert ids_of(generator.generate(list(order), params)) == [expected[prompt.key] for prompt in order]
    for prompt in prompts:
        assert ids_of(generator.generate([prompt], params)) == [expected[prompt.key]]
    small = TransformersGenerator(generator.model, generator.tokenizer, max_batch_tokens=70)
    assert ids_of(small.generate(prompts, params)) == [expected[prompt.key] for prompt in prompts]
    # Fewer samples are the first ones of more.
    assert ids_of(generator.generate(prompts, SamplingParams(n=2, max_tokens=16, seed=3))) == [
        expected[text][:2] for text in TEXTS
    ]


def test_seed_and_key_change_the_samples(generator: TransformersGenerator, prompts: list[Prompt]) -> None:
    one = prompts[0]
    params = SamplingParams(n=2, max_tokens=16)
    twice = generator.generate([one, Prompt(one.token_ids, key="another row")], params)
    assert ids_of(twice)[0] != ids_of(twice)[1]
    assert ids_of(generator.generate([one], params)) == ids_of(generator.generate([one], params))
    assert ids_of(generator.generate([one], SamplingParams(n=2, max_tokens=16, seed=1)))[0] != ids_of(twice)[0]
    # Without keys the position counts, so equal prompts still have samples of their own.
    same = generator.generate([Prompt(one.token_ids)] * 2, params)
    assert ids_of(same)[0] != ids_of(same)[1]


def test_global_random_state_and_mode_are_left_alone(generator: TransformersGenerator, prompts: list[Prompt]) -> None:
    generator.model.train()
    state = torch.get_rng_state()
    generator.generate(prompts, SamplingParams(max_tokens=2))
    assert torch.equal(state, torch.get_rng_state())
    assert generator.model.training
    generator.model.eval()


def test_samples_follow_the_distribution(generator: TransformersGenerator, prompts: list[Prompt]) -> None:
    """First tokens of 3,000 samples against the model's probabilities at temperature 1.3."""
    prompt = prompts[3]
    row = generator.generate([prompt], SamplingParams(n=3000, max_tokens=1, temperature=1.3))[0]
    counts = np.bincount([completion.token_ids[0] for completion in row], minlength=len(generator.tokenizer))
    with torch.no_grad():
        logits = generator.model(torch.tensor([prompt.token_ids])).logits[0, -1]
    expected = (logits / 1.3).softmax(-1).numpy() * 3000
    frequent = expected > 5
    assert frequent.sum() > 20
    chi_square = ((counts - expected)[frequent] ** 2 / expected[frequent]).sum()
    assert chi_square < frequent.sum() + 5 * np.sqrt(2 * frequent.sum())


def test_finish_reasons(generator: TransformersGenerator, prompts: list[Prompt]) -> None:
    eos = generator.tokenizer.eos_token_id
    samples = generator.generate(prompts, SamplingParams(n=16, max_tokens=24))
    completions = [completion for row in samples for completion in row]
    assert {completion.finish_reason for completion in completions} == {"eos", "length"}
    for completion in completions:
        assert (completion.token_ids[-1] == eos) == (completion.finish_reason == "eos")
        assert eos not in completion.token_ids[:-1]
        assert completion.finished or len(completion.token_ids) == 24
        assert "<|end|>" not in completion.text


def test_stop_texts_end_a_sample_at_the_token_that_completes_them(
    generator: TransformersGenerator, prompts: list[Prompt]
) -> None:
    free = generator.generate(prompts, SamplingParams(n=16, max_tokens=24, seed=5))
    stopped = generator.generate(prompts, SamplingParams(n=16, max_tokens=24, seed=5, stop=("\n\n", "zzz")))
    num_stopped = 0
    for row, stopped_row in zip(free, stopped, strict=True):
        for completion, cut in zip(row, stopped_row, strict=True):
            assert completion.token_ids[: len(cut.token_ids)] == cut.token_ids
            if "\n\n" not in completion.text:
                assert cut == completion
                continue
            num_stopped += 1
            assert cut.finish_reason == "stop"
            assert "\n\n" in cut.text
            before = generator._pieces.pieces(cut.token_ids[:-1])
            assert b"\n\n" not in b"".join(before)
    assert num_stopped > 5


def test_limit_of_a_prompt_and_of_the_model(generator: TransformersGenerator, prompts: list[Prompt]) -> None:
    params = SamplingParams(n=8, max_tokens=12, seed=2)
    limited = generator.generate([prompts[0], Prompt(prompts[1].token_ids, TEXTS[1], max_tokens=3)], params)
    free = generator.generate(prompts[:2], params)
    assert limited[0] == free[0]
    assert [c.token_ids for c in limited[1]] == [c.token_ids[:3] for c in free[1]]
    almost_full = Prompt((5,) * 510, key="long")
    assert all(len(c.token_ids) <= 2 for c in generator.generate([almost_full], params)[0])
    with pytest.raises(ValueError, match="512 positions"):
        generator.generate([Prompt((5,) * 512)], params)


def test_positions_of_the_model_are_known_where_the_engine_says_them(generator: TransformersGenerator) -> None:
    assert generator.max_length == 512
    engine = SimpleNamespace(get_tokenizer=lambda: generator.tokenizer)
    assert VLLMGenerator(engine).max_length is None
    engine.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=96))
    assert VLLMGenerator(engine).max_length == 96


def test_no_prompts(generator: TransformersGenerator) -> None:
    assert generator.generate([], SamplingParams()) == []
    assert isinstance(generator, Generator)


def test_bfloat16_and_adapters(tokenizer: Any, prompts: list[Prompt], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = build_model(tokenizer)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "lm_head"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    params = SamplingParams(n=3, max_tokens=8)
    expected = TransformersGenerator(adapted, tokenizer).generate(prompts, params)
    path = str(tmp_path / "model")
    loaded = TransformersGenerator.from_pretrained(path, adapter=str(tmp_path / "adapter"), device="cpu")
    assert loaded.generate(prompts, params) == expected
    plain = TransformersGenerator.from_pretrained(path, device="cpu")
    assert plain.generate(prompts, params) != expected

    half = TransformersGenerator.from_pretrained(path, dtype="bfloat16", device="cpu")
    assert half.model.dtype == torch.bfloat16
    samples = half.generate(prompts, params)
    assert samples == half.generate(prompts, params)
    # Rounding of logits changes few tokens, as the uniform numbers are the same.
    pairs = [
        (a, b)
        for row, other in zip(samples, plain.generate(prompts, params), strict=True)
        for a, b in zip(row, other, strict=True)
    ]
    assert sum(a.token_ids[0] == b.token_ids[0] for a, b in pairs) > 0.7 * len(pairs)


@pytest.mark.parametrize("fields", [{"load_in_8bit": True}, {"load_in_4bit": True}])
def test_quantized(tokenizer: Any, prompts: list[Prompt], tmp_path: Path, fields: dict[str, bool]) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

    # Four-bit weights come in blocks of 64.
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    quantization = BitsAndBytesConfig(**fields, bnb_4bit_compute_dtype=torch.float32)
    generator = TransformersGenerator.from_pretrained(
        str(tmp_path), quantization_config=quantization, device="cpu", dtype="float32"
    )
    params = SamplingParams(n=2, max_tokens=6)
    samples = generator.generate(prompts, params)
    assert [len(row) for row in samples] == [2] * len(prompts)
    assert samples == generator.generate(prompts, params)


def test_refuses_what_it_cannot_run(generator: TransformersGenerator) -> None:
    with pytest.raises(ValueError, match="max_batch_tokens=0"):
        TransformersGenerator(generator.model, generator.tokenizer, max_batch_tokens=0)
    with pytest.raises(ValueError, match="no token ids"):
        Prompt(())
    with pytest.raises(ValueError, match="no room"):
        Prompt((1,), max_tokens=0)
    for fields in ({"n": 0}, {"top_p": 0.0}, {"temperature": -1.0}, {"top_k": -1}, {"max_tokens": 0}):
        with pytest.raises(ValueError, match="Got "):
            SamplingParams(**fields)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="stop="):
        SamplingParams(stop=("",))
    with pytest.raises(ValueError, match="stop="):
        SamplingParams(stop="\n")  # type: ignore[arg-type]


# ---- the sampler by itself ----


def test_choose_tokens_by_hand() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.0, 0.6, 0.3]])).repeat(6, 1)
    uniforms = torch.tensor([0.0, 0.0999, 0.1001, 0.6999, 0.7001, 1 - 2.0**-50], dtype=torch.float64)
    assert choose_tokens(logits, uniforms, SamplingParams()).tolist() == [0, 0, 2, 2, 3, 3]
    # Top-2 leaves 0.6 and 0.3; top-p 0.65 keeps the token that crosses it; top-p 0.5 keeps the first alone.
    assert choose_tokens(logits, uniforms, SamplingParams(top_k=2)).tolist() == [2, 2, 2, 3, 3, 3]
    assert choose_tokens(logits, uniforms, SamplingParams(top_p=0.65)).tolist() == [2, 2, 2, 3, 3, 3]
    assert choose_tokens(logits, uniforms, SamplingParams(top_p=0.5)).tolist() == [2] * 6
    assert choose_tokens(logits, uniforms, SamplingParams(temperature=0)).tolist() == [2] * 6


@given(st.integers(0, 2**40), st.text(), st.integers(0, 1000))
def test_streams(seed: int, key: str, sample: int) -> None:
    long = sample_uniforms(seed, key, sample, 8)
    assert np.array_equal(sample_uniforms(seed, key, sample, 3), long[:3])
    assert (long >= 0).all()
    assert (long < 1).all()
    assert not np.array_equal(long, sample_uniforms(seed, key, sample + 1, 8))
    assert not np.array_equal(long, sample_uniforms(seed + 1, key, sample, 8))
    assert 0 <= request_seed(seed, key, sample) < 2**31


def test_stop_texts_longer_than_the_pieces_are_found() -> None:
    for stop, pieces in (("abcdef", ["abc", "def"]), ("</answer>", ["x", "</", "answer", ">"]), ("é\n", ["é", "\n"])):
        finder = StopTexts([stop], 1)
        assert [finder.found(0, piece.encode()) for piece in pieces] == [False] * (len(pieces) - 1) + [True]


STOP_TEXTS = st.lists(st.text("ab\n", min_size=1, max_size=12), min_size=1, max_size=2)


@pytest.mark.slow
@given(st.binary(max_size=30), STOP_TEXTS, st.data())
def test_stop_texts_are_found_however_the_text_is_cut(text: bytes, stop: list[str], data: st.DataObject) -> None:
    alphabet = b"ab\n"
    text = bytes(alphabet[byte % 3] for byte in text)
    finder, seen = StopTexts(stop, 1), 0
    while seen < len(text):
        size = data.draw(st.integers(0, 4))
        expected = any(s.encode() in text[: seen + size] for s in stop)
        assert finder.found(0, text[seen : seen + size]) == expected
        if expected:
            return
        seen += size


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, ""),
        ({"min_p": 0.0, "repetition_penalty": 1.0, "generation_kwargs": {}}, ""),
        ({"min_p": 0.1}, "min_p=0.1"),
        ({"repetition_penalty": 1.2, "generation_kwargs": {"seed": 3}}, "repetition_penalty=1.2, generation_kwargs="),
    ],
)
def test_what_a_training_samples_with_is_kept_or_named(
    settings: dict[str, Any], named: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "max_completion_length": 12, **settings}
    args = GRPOConfig(str(tmp_path), bf16=False, **settings)
    assert sampling_of_training(args, n=3, max_tokens=None, seed=4) == SamplingParams(
        n=3, max_tokens=12, temperature=0.7, top_p=0.9, top_k=5, seed=4
    )
    assert bool(caplog.text) == bool(named)
    assert named in caplog.text
