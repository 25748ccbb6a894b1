"""Settings of `trl-prl collect`."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from trl_prl.intervals import SequentialRule
from trl_prl.monte_carlo import MonteCarloParams
from trl_prl.types import SamplingParams


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class CollectConfig:
    """What to collect, from whom, and where to.

    Every field is an option of `trl-prl collect` and a key of its YAML file. Defaults of the method are those of
    [PAV](https://huggingface.co/papers/2410.08146), section 4.2 and App. D (n_mc = 20).

    Raises:
        `ValueError`: When required fields are missing or fields contradict each other.
    """

    model: str = _option("", "path or Hub id of the prover; for a server, the name it serves and the tokenizer's id")
    dataset: str = _option("", "Hub id, folder, or a .jsonl, .json or .parquet file with prompts")
    output_dir: str = _option("", "folder of the job; an interrupted job is resumed there")
    reward: str = _option("accuracy", "outcome reward: 'accuracy' (column `answer`, math-verify) or 'module:function'")
    dataset_config: str | None = _option(None, "configuration of the dataset")
    dataset_split: str = _option("train", "split of the dataset")
    prompt_column: str = _option("prompt", "column of the prompts, text or messages")
    max_rows: int | None = _option(None, "use only the first rows")
    tokenizer: str | None = _option(None, "path or Hub id of the tokenizer, if it is not the model's")
    strategy: Literal["iid", "first_pit"] = _option("iid", "'iid' or 'first_pit' (PAV, App. D)")
    n_cov: int = _option(4, "seed rollouts per prompt")
    n_mc: int = _option(20, "rollouts per prefix; with --adaptive, the most")
    adaptive: bool = _option(False, "end the rollouts of a prefix once its value is settled")
    tolerance: float = _option(0.02, "with --adaptive: standard deviation per rollout at which a value is settled")
    rule_confidence: float = _option(0.5, "joint coverage of all looks of the adaptive rule")
    n_probe: int = _option(4, "rollouts per probe of the first pit, and of the first round of --adaptive")
    unfinished: Literal["exclude", "wrong"] = _option(
        "exclude", "'exclude' or 'wrong': what rollouts at the length limit are"
    )
    reward_threshold: float = _option(0.5, "rewards above it are correct")
    confidence: float = _option(0.95, "coverage of the Wilson intervals in the output")
    best_of_k: int = _option(1, "make the values those of the Best-of-K prover; costs no rollouts")
    splitter: str = _option("blank_line", "where steps end; the same as in training")
    step_length: int = _option(256, "tokens per step of the splitter 'fixed'")
    max_completion_length: int = _option(1024, "most tokens of a completion, prefix included")
    temperature: float = _option(1.0, "sampling temperature")
    top_p: float = _option(1.0, "nucleus sampling")
    top_k: int = _option(0, "top-k sampling; 0 is off")
    stop: tuple[str, ...] = _option((), "texts that end a completion")
    seed: int = _option(0, "seed of every rollout")
    generator: Literal["transformers", "vllm", "vllm-server", "openai"] = _option(
        "transformers", "what runs the model"
    )
    endpoints: tuple[str, ...] = _option((), "URLs of the servers, for 'vllm-server' and 'openai'")
    send_text: bool = _option(False, "send prompts as text to an OpenAI-compatible server that refuses token ids")
    seed_model: str | None = _option(None, "path or Hub id of another model that draws the seeds")
    adapter: str | None = _option(None, "path or Hub id of a PEFT adapter of the prover")
    dtype: str = _option("auto", "dtype of the weights")
    load_in_4bit: bool = _option(False, "quantize the weights to four bits")
    max_batch_tokens: int = _option(65536, "most tokens in the key-value cache at a time")
    problems_per_unit: int = _option(16, "problems computed and saved together; an interruption loses at most these")
    check_timeout: float = _option(30.0, "seconds after which a check of one answer counts as failed; 0 is no limit")
    num_processes: int | None = _option(None, "processes that share the job; WORLD_SIZE by default")
    process_index: int | None = _option(None, "number of this process; RANK by default")
    price_per_million_tokens: float | None = _option(None, "price of sampled tokens, for the cost estimate")
    push_to_hub: str | None = _option(None, "Hub id of a dataset to push the result to")

    def __post_init__(self) -> None:
        missing = [name for name in ("model", "dataset", "output_dir") if not getattr(self, name)]
        if missing:
            raise ValueError(
                f"{', '.join(missing)} not given, so it is not known what to collect. Give them as options "
                f"(--{missing[0].replace('_', '-')} ...) or in the file of --config."
            )
        if (self.generator in ("openai", "vllm-server")) != bool(self.endpoints):
            raise ValueError(
                f"Got generator={self.generator!r} with {len(self.endpoints)} endpoints, but servers need endpoints "
                "and nothing else does. Give --endpoints, or change --generator."
            )
        if self.problems_per_unit < 1 or self.best_of_k < 1 or self.check_timeout < 0:
            raise ValueError(
                f"Got problems_per_unit={self.problems_per_unit}, best_of_k={self.best_of_k} and check_timeout="
                f"{self.check_timeout}, which cannot be. Use at least 1, at least 1, and a time that is not negative."
            )
        index, number = self.process()
        if not 0 <= index < number:
            raise ValueError(
                f"Got process {index} of {number}, so its share of the job is not defined. Count processes from 0, "
                "and give both or neither."
            )
        self.monte_carlo()
        self.sampling()

    def process(self) -> tuple[int, int]:
        """Number of this process and of all, by the options or by `accelerate launch`, `torchrun` or `mpirun`."""
        index = os.environ.get("RANK", "0") if self.process_index is None else self.process_index
        number = os.environ.get("WORLD_SIZE", "1") if self.num_processes is None else self.num_processes
        return int(index), int(number)

    def monte_carlo(self) -> MonteCarloParams:
        """How rollouts are spent."""
        n_mc: int | SequentialRule = self.n_mc
        if self.adaptive:
            n_mc = SequentialRule(
                self.tolerance, min(self.n_probe, self.n_mc), self.n_mc, self.rule_confidence, "wilson"
            )
        return MonteCarloParams(
            n_cov=self.n_cov, n_mc=n_mc, strategy=self.strategy, n_probe=self.n_probe, unfinished=self.unfinished
        )

    def sampling(self) -> SamplingParams:
        """How to sample."""
        return SamplingParams(
            max_tokens=self.max_completion_length,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop=tuple(self.stop),
            seed=self.seed,
        )

    def settings(self) -> dict[str, Any]:
        """The fields that rows depend on: a job can only be resumed with the same ones."""
        return {name: value for name, value in asdict(self).items() if name not in _NOT_IN_ROWS}


# How fast, where, and what is made of the rows afterwards.
_NOT_IN_ROWS = {
    "output_dir",
    "endpoints",
    "max_batch_tokens",
    "best_of_k",
    "num_processes",
    "process_index",
    "price_per_million_tokens",
    "push_to_hub",
}
