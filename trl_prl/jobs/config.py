"""Settings that jobs over a data set of prompts share: whose rollouts, of what, sampled how, checked how."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal

from trl_prl.prompts.format import PromptFormat
from trl_prl.types import SamplingParams


def option(default: Any, help: str) -> Any:
    """A field of a configuration that is an option of the command line and a key of its YAML file.

    Args:
        default (`Any`):
            Its default; a list is copied for each configuration.
        help (`str`):
            What `--help` says about it.

    Returns:
        `dataclasses.Field`: The field.
    """
    metadata = {"help": help.replace("%", "%%")}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def require(options: Any, *names: str) -> None:
    """Refuse options that lack what nothing can be done without.

    Args:
        options (`Any`):
            The options.
        *names (`str`):
            Fields that must not be empty.

    Raises:
        `ValueError`: When one of them is.
    """
    missing = [name for name in names if not getattr(options, name)]
    if missing:
        raise ValueError(
            f"{', '.join(missing)} not given, so it is not known what to do. Give them as options (--{missing[0]} "
            "...) or in the file of --config."
        )


def without_unset(values: Any) -> Any:
    """Settings without those that are `None`, at any depth: what a reader of a card is told.

    Args:
        values (`Any`):
            JSON value.

    Returns:
        `Any`: The same value, its mappings shorter.
    """
    if not isinstance(values, Mapping):
        return values
    return {name: without_unset(value) for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class PromptOptions:
    """What everything takes that reads rows with prompts, see [`PromptFormat`].

    Raises:
        `ValueError`: When an option cannot be.
    """

    prompt_column: str = option("prompt", "column of the prompts, text or messages")
    prompt_template: str | None = option(
        None, "Python format string with {prompt}, put around every prompt, or the last message of the user"
    )
    system_prompt: str | None = option(None, "message of the system, before messages that have none")
    as_user_message: bool = option(
        False, "plain-text prompts become one message of the user, as chat models need them"
    )
    chat_template_kwargs: dict[str, Any] | str | None = option(
        None, "arguments of the chat template as JSON, such as '{\"enable_thinking\": false}'"
    )

    def __post_init__(self) -> None:
        # One form for what may be given as JSON text too: settings are compared when a job is resumed.
        object.__setattr__(self, "chat_template_kwargs", self.prompts().chat_template_kwargs or None)

    def prompts(self) -> PromptFormat:
        """How rows become prompts."""
        return PromptFormat.from_dict(vars(self))


@dataclass(frozen=True)
class VerifierOptions:
    """A verifier, and where and how it runs."""

    verifier: str = option(
        "", "folder, hub id, address or module:name of the verifier, with options of its own behind commas"
    )
    batch_tokens: int = option(16384, "most tokens of a batch")
    device: str | None = option(None, "device of the model; by default the accelerator if there is one")
    dtype: str = option("auto", "precision, such as bfloat16; by default that of the weights")


@dataclass(frozen=True)
class EngineOptions:
    """Where the work of a job is done: in this process, or by workers of a Ray cluster."""

    engine: Literal["process", "ray"] = option("process", "who computes: this process, or workers of a Ray cluster")
    ray_address: str | None = option(
        None, "address of a Ray cluster; by default RAY_ADDRESS, one that runs on this machine, or a new one"
    )
    num_workers: int | None = option(None, "Ray workers; by default as many as the cluster has room for")
    gpus_per_worker: float = option(0.0, "GPUs that each Ray worker reserves; 0 is a worker on the CPU")

    def check_engine(self) -> None:
        """Refuse options of workers that there are not.

        Raises:
            `ValueError`: When there is one.
        """
        refuse_unheeded(self, ["ray_address", "num_workers", "gpus_per_worker"], "engine", unless=self.engine == "ray")


@dataclass(frozen=True)
class JobConfig(EngineOptions, PromptOptions):
    """What every job over a data set of prompts needs; its subcommands add fields of their own.

    Raises:
        `ValueError`: When fields contradict each other.
    """

    # How fast and where: what a job can be resumed with other values of.
    not_in_rows: ClassVar[frozenset[str]] = frozenset(
        {
            "output_dir",
            "endpoints",
            "api_key",
            "max_batch_tokens",
            "trust_remote_code",
            "num_processes",
            "process_index",
            *(entry.name for entry in fields(EngineOptions)),
        }
    )
    # Paths of models, or functions of modules, whose files the rows depend on.
    files_of_rows: ClassVar[tuple[str, ...]] = ("model", "adapter", "tokenizer", "reward")

    model: str = option("", "path or Hub id of the model; for a server, the name it serves and the tokenizer's id")
    dataset: str = option("", "Hub id, folder, or a .jsonl, .json, .csv (each also .gz) or .parquet file with prompts")
    output_dir: str = option("", "folder of the job; an interrupted job is resumed there")
    reward: str = option(
        "accuracy",
        "outcome reward: 'accuracy' (column `answer`, math-verify), 'exact_match' (column `answer`), or a TRL reward "
        "function as 'module:function'",
    )
    dataset_config: str | None = option(None, "configuration of the dataset")
    dataset_split: str = option("train", "split of the dataset")
    max_rows: int | None = option(None, "use only the first rows")
    tokenizer: str | None = option(None, "path or Hub id of the tokenizer, if it is not the model's")
    reward_threshold: float = option(0.5, "rewards above it are correct")
    confidence: float = option(0.95, "coverage of the intervals in the output")
    max_completion_length: int = option(1024, "most tokens of a completion")
    temperature: float = option(1.0, "sampling temperature")
    top_p: float = option(1.0, "nucleus sampling")
    top_k: int = option(0, "top-k sampling; 0 is off")
    stop: list[str] = option([], "texts that end a completion")
    seed: int = option(0, "seed of every rollout")
    generator: Literal["transformers", "vllm", "vllm-server", "openai"] = option("transformers", "what runs the model")
    endpoints: list[str] = option([], "URLs of the servers, for 'vllm-server' and 'openai'")
    api_key: str | None = option(None, "key of an OpenAI-compatible server; by default OPENAI_API_KEY, if it is set")
    send_text: bool = option(False, "send prompts as text to an OpenAI-compatible server that refuses token ids")
    adapter: str | None = option(None, "path or Hub id of a PEFT adapter of the model, for 'transformers'")
    trust_remote_code: bool = option(False, "run Python code that comes with models and tokenizers")
    dtype: str = option("auto", "dtype of the weights")
    load_in_4bit: bool = option(False, "quantize the weights to four bits, for 'transformers'")
    max_batch_tokens: int = option(65536, "most tokens in the key-value cache at a time, for 'transformers'")
    problems_per_unit: int = option(16, "problems computed and saved together; an interruption loses at most these")
    check_timeout: float = option(30.0, "seconds after which a check of one answer counts as failed; 0 is no limit")
    num_processes: int | None = option(None, "processes that share the job; WORLD_SIZE by default")
    process_index: int | None = option(None, "number of this process; RANK by default")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_engine()
        if (self.generator in ("openai", "vllm-server")) != bool(self.endpoints):
            raise ValueError(
                f"Got generator={self.generator!r} with {len(self.endpoints)} endpoints, but servers need endpoints "
                "and nothing else does. Give --endpoints, or change --generator."
            )
        if self.problems_per_unit < 1 or self.check_timeout < 0:
            raise ValueError(
                f"Got problems_per_unit={self.problems_per_unit} and check_timeout={self.check_timeout}, which cannot "
                "be. Use at least 1, and a time that is not negative."
            )
        if not 0 < self.confidence < 1:
            raise ValueError(
                f"Got confidence={self.confidence}, but an interval has some coverage, never all of it. Use a number "
                "in (0, 1), such as 0.95."
            )
        for name in ("adapter", "load_in_4bit"):
            if getattr(self, name) and self.generator != "transformers":
                raise ValueError(
                    f"Got {name}={getattr(self, name)!r} with generator={self.generator!r}, which would sample from "
                    "the model without it. Give a model with merged or quantized weights, or use --generator "
                    "transformers."
                )
        refuse_unheeded(self, ["api_key", "send_text"], "generator", unless=self.generator == "openai")
        if not self.loads_other_models:
            refuse_unheeded(self, ["dtype"], "generator", unless=self.generator in ("transformers", "vllm"))
            refuse_unheeded(self, ["max_batch_tokens"], "generator", unless=self.generator == "transformers")
        index, number = self.process()
        if not 0 <= index < number:
            raise ValueError(
                f"Got process {index} of {number}, so its share of the job is not defined. Count processes from 0, "
                "and give both or neither."
            )
        self.sampling()

    @property
    def loads_other_models(self) -> bool:
        """Whether models run in this process with `dtype` and `max_batch_tokens`, next to what `generator` is."""
        return False

    def process(self) -> tuple[int, int]:
        """Number of this process and of all, by the options or by `accelerate launch` or `torchrun`."""
        index = os.environ.get("RANK", "0") if self.process_index is None else self.process_index
        number = os.environ.get("WORLD_SIZE", "1") if self.num_processes is None else self.num_processes
        return int(index), int(number)

    def sampling(self) -> SamplingParams:
        """How to sample; one completion per prompt."""
        return SamplingParams(
            max_tokens=self.max_completion_length,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop=tuple(self.stop),
            seed=self.seed,
        )

    def kept(self) -> str:
        """What is left when the job is stopped, in words."""
        return f"Finished units are kept in {self.output_dir}; the same command goes on from there."

    def settings(self) -> dict[str, Any]:
        """The fields that rows depend on: a job can only be resumed with the same ones."""
        return {name: value for name, value in asdict(self).items() if name not in self.not_in_rows}

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The defaults of all fields."""
        return _defaults(cls)


def _defaults(settings: Any) -> dict[str, Any]:
    return {
        known.name: known.default if known.default_factory is MISSING else known.default_factory()
        for known in fields(settings)
    }


def refuse_unheeded(settings: Any, names: Sequence[str], setting: str, *, unless: bool = False) -> None:
    """Refuse fields that are not at their defaults next to a setting under which nothing would heed them.

    Args:
        settings (`Any`):
            Dataclass of the fields.
        names (`Sequence[str]`):
            The fields.
        setting (`str`):
            Field that says whether they are heeded.
        unless (`bool`, *optional*, defaults to `False`):
            Whether they are.

    Raises:
        `ValueError`: if there is one.
    """
    if unless:
        return
    defaults = _defaults(settings)
    for name in names:
        if getattr(settings, name) != defaults[name]:
            raise ValueError(
                f"`{name}` was set to {getattr(settings, name)!r} with `{setting}={getattr(settings, setting)!r}`, "
                f"where nothing would heed it. Leave `{name}` out, or change `{setting}`."
            )
