"""`trl-prl plan`: tokens, GPU hours, memory and price of a project before it begins.

trl-prl plan --policy_size 1.5 --num_prompts 7500 --gpu H100 --samples problems.jsonl --tokenizer Qwen/Qwen3-1.7B
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from rich.console import Console
from rich.table import Table

from trl_prl.jobs.config import PromptOptions, option, refuse_unheeded
from trl_prl.steps.splitters import SPLITTER_HELP


if TYPE_CHECKING:
    from trl_prl.diagnosis.cost import Lengths, Stage

Gpu = Literal["B200", "H200", "H100", "A100", "L40S", "L4", "RTX4090"]


@dataclass(frozen=True)
class Options(PromptOptions):
    """What is planned. Every field is an option of `trl-prl plan` and a key of its YAML file.

    Raises:
        `ValueError`: When a number cannot be.
    """

    policy_size: float = option(1.5, "parameters of the policy, in billions")
    prover_size: float | None = option(None, "those of the prover; by default the policy's")
    verifier_size: float | None = option(None, "those of the verifier; by default the policy's")
    use_peft: bool = option(False, "train adapters only, of policy and verifier")
    num_prompts: int = option(7500, "prompts to collect from")
    n_cov: int = option(4, "seed rollouts per prompt")
    n_mc: int = option(20, "rollouts per prefix")
    prompt_length: float = option(150.0, "tokens of a prompt")
    completion_length: float = option(400.0, "tokens of a completion")
    num_steps: float = option(10.0, "steps of a completion")
    samples: str | None = option(
        None, "instead of the three above: a file with n_cov samples of a few prompts, as `trl-prl evaluate` writes it"
    )
    tokenizer: str | None = option(None, "with --samples: folder or hub name of the tokenizer")
    splitter: str = option("newline", f"with --samples: where steps end: {SPLITTER_HELP}")
    step_length: int = option(256, "with --samples: tokens per step of the splitter 'fixed'")
    verifier_epochs: float = option(1.0, "passes of the verifier over what was collected")
    method: Literal["grpo", "prl", "pav"] = option("pav", "method of reinforcement learning")
    optimizer_steps: int = option(500, "optimizer steps of reinforcement learning")
    completions_per_step: int = option(512, "completions in each optimizer step, of all processes")
    num_iterations: int = option(1, "optimizer steps on each rollout, as TRL's")
    gpu: Gpu = option("H100", f"kind of GPU: {', '.join(get_args(Gpu))}")
    num_gpus: int = option(8, "GPUs")
    price_per_gpu_hour: float | None = option(None, "price of a GPU hour")
    decode_tokens_per_second: float | None = option(
        None, "sampled tokens per second and GPU, as your engine reaches it; by default from --decode_utilization"
    )
    decode_utilization: float = option(0.15, "share of the GPU's peak that sampling reaches; an assumption")
    most_decode_tokens_per_second: float = option(30_000.0, "what an engine reaches at most; an assumption")
    read_utilization: float = option(0.4, "share of the peak of forwards; an assumption")
    train_utilization: float = option(0.35, "share of the peak of training; an assumption")
    output: Literal["table", "json"] = option("table", "how to print the plan")

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_unheeded(self, ["step_length"], "splitter", unless=self.splitter == "fixed")
        refuse_unheeded(self, ["splitter"], "samples", unless=self.samples is not None)
        lengths = ["prompt_length", "completion_length", "num_steps"]
        refuse_unheeded(self, lengths, "samples", unless=self.samples is None)
        numbers = {name: value for name, value in asdict(self).items() if type(value) in (int, float)}
        wrong = {
            name: value
            for name, value in numbers.items()
            if value <= 0 or (name.endswith("utilization") and value > 1)
        }
        if wrong:
            given = " and ".join(f"{name}={value}" for name, value in wrong.items())
            raise ValueError(f"Got {given}, which cannot be. Use positive numbers, and shares up to 1.")
        if (self.samples is None) != (self.tokenizer is None):
            raise ValueError(
                f"Got samples={self.samples!r} and tokenizer={self.tokenizer!r}, and one says nothing without the "
                "other. Give both, or the three lengths."
            )

    def lengths(self) -> Lengths:
        """Lengths of a prompt with its seeds, as given or as the samples have them."""
        from trl_prl.diagnosis.cost import equal_lengths

        if self.samples is None:
            return equal_lengths(self.prompt_length, self.completion_length, self.num_steps, self.n_cov)
        return _lengths_of_samples(self)


def _lengths_of_samples(options: Options) -> Lengths:
    from trl_prl.diagnosis.cost import measured_lengths
    from trl_prl.evaluation.config import EvaluateConfig
    from trl_prl.evaluation.sources import read_samples
    from trl_prl.jobs.options import load_tokenizer
    from trl_prl.steps.split import get_splitter
    from trl_prl.steps.token_pieces import TokenPieces

    splitter = get_splitter(options.splitter, step_length=options.step_length)
    prompts = options.prompts()
    tokenizer = load_tokenizer(options.tokenizer or "")
    pieces = TokenPieces(tokenizer)
    path = options.samples or ""
    config = EvaluateConfig(samples=[path], output_dir="unused", prompt_column=options.prompt_column)
    problems, samples = read_samples(path, config)

    def cut(sample: Mapping[str, Any]) -> tuple[list[int], list[int]]:
        ids = list(tokenizer(sample["completion"], add_special_tokens=False)["input_ids"])
        if sample.get("finish_reason") != "length":
            ids.append(tokenizer.eos_token_id)
        return ids, splitter.step_ends(pieces.pieces(ids))

    return measured_lengths(
        [len(prompts.token_ids(tokenizer, prompts.apply(problem.prompt))) for problem in problems],
        [[cut(sample) for sample in row] for row in samples],
        options.n_cov,
    )


def plan(options: Options) -> dict[str, Any]:
    """Costs of the stages.

    Args:
        options ([`Options`]):
            What is planned.

    Returns:
        `dict`: `lengths`, `gpu`, `assumptions`, and `stages`, a list of dictionaries with tokens, `gpu_hours`,
        `resident` (GiB by what holds them) and `price`.
    """
    from trl_prl.diagnosis.cost import GPUS, collection, reinforcement_learning, verifier_training

    lengths = options.lengths()
    policy = 1e9 * options.policy_size
    prover, verifier = (1e9 * (size or options.policy_size) for size in (options.prover_size, options.verifier_size))
    num_prompts, use_peft = options.num_prompts, options.use_peft
    stages = []
    if options.method == "pav":
        stages = [
            collection(lengths, num_prompts, options.n_cov, options.n_mc, prover),
            verifier_training(lengths, num_prompts, options.verifier_epochs, verifier, use_peft),
        ]
    how_much = options.optimizer_steps, options.completions_per_step
    stages.append(
        reinforcement_learning(lengths, options.method, *how_much, policy, verifier, use_peft, options.num_iterations)
    )
    peak, memory = GPUS[options.gpu]
    assumed = ["decode_utilization", "most_decode_tokens_per_second"]
    if options.decode_tokens_per_second is not None:
        assumed = ["decode_tokens_per_second"]
    assumed += ["read_utilization", "train_utilization"]
    return {
        "lengths": asdict(lengths),
        "gpu": f"{options.gpu}, {peak:g} TFLOP/s in bfloat16, {memory} GB",
        "assumptions": {name: getattr(options, name) for name in assumed},
        "stages": [_costs(stage, options, 1e12 * peak) for stage in stages],
    }


def _costs(stage: Stage, options: Options, peak: float) -> dict[str, Any]:
    sampling = max(
        stage.sampled / options.most_decode_tokens_per_second,
        stage.operations["sample"] / (peak * options.decode_utilization),
    )
    if options.decode_tokens_per_second is not None:
        sampling = stage.sampled / options.decode_tokens_per_second
    reading = stage.operations["read"] / (peak * options.read_utilization)
    training = stage.operations["train"] / (peak * options.train_utilization)
    hours, price = (sampling + reading + training) / 3600, options.price_per_gpu_hour
    return {
        "name": stage.name,
        "sampled_tokens": round(stage.sampled),
        "read_tokens": round(stage.read),
        "trained_tokens": round(stage.trained),
        "gpu_hours": hours,
        "resident": stage.resident,
        "price": None if price is None else hours * price,
    }


def run(options: Options) -> int:
    """Print the plan."""
    found = plan(options)
    if options.output == "json":
        print(json.dumps(found, indent=1))
        return 0
    console = Console()
    has_price = options.price_per_gpu_hour is not None
    names = ["stage", "sampled", "read", "trained", "GPU time", f"on {options.num_gpus} GPUs", "weights, GiB"]
    table = Table(*names, *(["price"] if has_price else []), box=None)
    for stage in found["stages"]:
        hours = stage["gpu_hours"]
        tokens = [_tokens(stage[f"{name}_tokens"]) for name in ("sampled", "read", "trained")]
        weights = "\n".join(f"{name} {size:.1f}" for name, size in stage["resident"].items())
        price = [_price(stage["price"])] if has_price else []
        table.add_row(stage["name"], *tokens, _time(hours), _time(hours / options.num_gpus), weights, *price)
    console.print(table)
    lengths = found["lengths"]
    console.print(
        f"\nA prompt has {lengths['prompt']:.0f} tokens, a completion {lengths['completion']:.0f} in "
        f"{lengths['steps']:.1f} steps. Weights come with gradients and optimizer states where they are trained, "
        "before they are shared out, and without activations and caches.",
        highlight=False,
    )
    assumed = ", ".join(f"{name} {value:g}" for name, value in found["assumptions"].items())
    console.print(f"Assumed, and set by options of these names: gpu {found['gpu']}; {assumed}.", highlight=False)
    return 0


def _tokens(number: int) -> str:
    size, unit = (1e6, "M") if number >= 1e6 else (1e3, "k")
    return f"{number / size:,.1f} {unit}" if number else "-"


def _time(hours: float) -> str:
    """Hours, or what is left of them in a unit that shows some of it."""
    units = {"h": 1.0, "min": 60.0, "s": 3600.0}
    unit = next((unit for unit, number in units.items() if hours * number >= 1), None)
    return f"{hours * units[unit]:,.1f} {unit}" if unit else "<1 s"


def _price(price: float) -> str:
    return f"{price:,.0f}" if price >= 100 else f"{price:.2f}" if price >= 0.01 else "<0.01"
