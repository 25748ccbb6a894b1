"""What the jobs that options describe read and run: rows, tokenizers, generators, rewards."""

from __future__ import annotations

import os
from contextlib import ExitStack
from functools import cached_property
from typing import Any

from trl_prl.rewards.outcomes import load_reward
from trl_prl.rewards.timed import TimedReward
from trl_prl.storage.missing import model_named
from trl_prl.types import Generator, OutcomeReward

from .config import JobConfig
from .progress import OnCounts


def quiet_libraries() -> None:
    """Keep the progress bars and notes of Hugging Face's libraries from tearing that of the job apart."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def load_tokenizer(name: str, what: str = "tokenizer", *, trust_remote_code: bool = False) -> Any:
    """A tokenizer by its folder or Hub id, which is called `what` where there is none."""
    from transformers import AutoTokenizer

    with model_named(name, what):
        return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)


class Tools:
    """What a worker of a job needs, each made from the options when it is first used.

    Args:
        config ([`JobConfig`]):
            The job.
        model (`str`, *optional*):
            Path or Hub id, if it is another model than `config.model`.
        num_checkers (`int`, *optional*, defaults to `1`):
            Processes that check answers at a time.
        **made:
            Objects to use instead: `tokenizer`, `generator`, `reward`.
    """

    def __init__(self, config: JobConfig, model: str | None = None, num_checkers: int = 1, **made: Any) -> None:
        self.config = config
        self.model = model or config.model
        self.num_checkers = num_checkers
        self._open = ExitStack()
        vars(self).update(made)

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        name, what = (self.config.tokenizer, "tokenizer") if self.config.tokenizer else (self.model, "model")
        return load_tokenizer(name, what, trust_remote_code=self.config.trust_remote_code)

    @cached_property
    def generator(self) -> Generator:
        """What runs the model."""
        return make_generator(self.config, self.tokenizer, self.model)

    @cached_property
    def reward(self) -> OutcomeReward:
        """The outcome reward, under its time limit."""
        if not self.config.check_timeout:
            return load_reward(self.config.reward)
        timed = TimedReward(self.config.reward, self.config.check_timeout, num_workers=self.num_checkers)
        return self._open.enter_context(timed)

    def count_samples(self, on_counts: OnCounts, *others: Generator | None) -> None:
        """Count the samples of the generator, and of others, as they end; generators that do not tell are not counted.

        Args:
            on_counts (`Callable`):
                As in [`Worker.compute`].
            *others ([`Generator`]):
                Further generators.
        """

        def on_sample(num_tokens: int) -> None:
            on_counts({"num_rollouts": 1, "num_sampled_tokens": num_tokens})

        for generator in (self.generator, *others):
            if hasattr(generator, "on_sample"):
                setattr(generator, "on_sample", on_sample)  # noqa: B010 (it is no part of the protocol)

    def close(self) -> None:
        """Let go of the model's memory, and end the processes that check answers."""
        vars(self).pop("generator", None)
        self._open.close()


def make_generator(config: JobConfig, tokenizer: Any, model: str) -> Generator:
    """The generator that a job asks for.

    Args:
        config ([`JobConfig`]):
            The job.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model.
        model (`str`):
            Path or Hub id of the model.

    Returns:
        [`Generator`]: The generator.

    Raises:
        `ValueError`: When vLLM would start on a GPU that another process has.
    """
    if config.generator == "openai":
        from trl_prl.generation.openai_server import OpenAIGenerator

        key = config.api_key or os.environ.get("OPENAI_API_KEY") or "none"
        return OpenAIGenerator(config.endpoints, model, tokenizer, api_key=key, send_text=config.send_text)
    if config.generator == "vllm-server":
        from trl_prl.generation.vllm_engine import VLLMServerGenerator

        return VLLMServerGenerator(config.endpoints, tokenizer, model=model)
    if config.generator == "vllm":
        from trl_prl.generation.vllm_engine import VLLMGenerator

        _refuse_shared_gpu()
        given = {"tokenizer": config.tokenizer, "dtype": config.dtype}
        return VLLMGenerator(model, trust_remote_code=config.trust_remote_code, **given)
    return local_generator(config, model, config.adapter, tokenizer)


def process_device() -> str:
    """The GPU of this process, by `accelerate launch` or `torchrun`, if there is one, else the CPU."""
    import torch

    return f"cuda:{_gpu_number()}" if torch.cuda.is_available() else "cpu"


def _gpu_number() -> int:
    """Number of this process's GPU among those that it sees."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return 0 if visible and "," not in visible else int(os.environ.get("LOCAL_RANK", "0"))


def _refuse_shared_gpu() -> None:
    """vLLM takes the first GPU that a process sees, whatever its number."""
    if _gpu_number():
        raise ValueError(
            f"Got generator='vllm' in process {_gpu_number()} of this machine, which sees more GPUs than one by "
            f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')!r}, so the vLLM of every process would "
            "start on the first. Use --engine ray --gpus_per_worker 1; or start one process per GPU without a "
            "launcher, each with its own CUDA_VISIBLE_DEVICES, --num_processes and --process_index."
        )


def local_generator(config: JobConfig, model: str, adapter: str | None = None, tokenizer: Any = None) -> Generator:
    """A generator over a model in this process, on this process's device.

    Args:
        config ([`JobConfig`]):
            Precision, quantization and memory.
        model (`str`):
            Path or Hub id.
        adapter (`str`, *optional*):
            Path or Hub id of a PEFT adapter on top.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The model's tokenizer; by default the one that lies with it.

    Returns:
        [`Generator`]: The generator.
    """
    from trl_prl.generation.local import TransformersGenerator

    quantization = None
    if config.load_in_4bit:
        from transformers import BitsAndBytesConfig

        quantization = BitsAndBytesConfig(load_in_4bit=True)
    return TransformersGenerator.from_pretrained(
        model,
        tokenizer=tokenizer,
        adapter=adapter,
        dtype=config.dtype,
        quantization_config=quantization,
        device=process_device(),
        max_batch_tokens=config.max_batch_tokens,
        trust_remote_code=config.trust_remote_code,
    )
