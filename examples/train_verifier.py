r"""
Train a process advantage verifier on step labels: rows of your own, collected ones, or a public data set.

pip install "trl-prl[peft]"

accelerate launch examples/train_verifier.py --config examples/configs/verifier.yaml \
    --model_name_or_path Qwen/Qwen2.5-Math-1.5B --output_dir Qwen2.5-Math-1.5B-verifier \
    --dataset_name values

Rows are in the stepwise format, `{"prompt", "completions": [step, ...], "labels": [number, ...]}`. `--format` converts
public ones: trl, prm800k, math_shepherd, math_aps, process_bench. The folder it saves is a process reward:

    PAVTrainer(..., process_reward="Qwen2.5-Math-1.5B-verifier")
"""

from __future__ import annotations

from dataclasses import dataclass, field

from datasets import Dataset
from trl import ModelConfig, ScriptArguments, get_peft_config, get_quantization_config

from trl_prl import PAVRewardConfig, PAVRewardTrainer, load_rows
from trl_prl.jobs.arguments import run_script
from trl_prl.storage.row_sources import open_rows
from trl_prl.verifier import formats as stepwise_formats
from trl_prl.verifier.settings import follow_collection


CONVERTERS = {
    "trl": stepwise_formats.from_trl_stepwise,
    "prm800k": stepwise_formats.from_prm800k,
    "math_shepherd": stepwise_formats.from_math_shepherd,
    "math_aps": stepwise_formats.from_math_aps,
    "process_bench": stepwise_formats.from_process_bench,
}


@dataclass
class DataArguments(ScriptArguments):
    """Where step labels come from, beyond [`~trl.ScriptArguments`]."""

    format: str | None = field(
        default=None,
        metadata={"help": "Format to convert from. Default: the rows are stepwise.", "choices": list(CONVERTERS)},
    )
    eval_rows: int = field(
        default=500,
        metadata={
            "help": "Rows held out where there is no test split: at most a fifth, with all rows of their prompts."
        },
    )


def load_splits(data: DataArguments) -> dict[str, Dataset]:
    if data.dataset_streaming:
        raise ValueError(
            "Got dataset_streaming=True, but rows are held out by their prompts and their labels counted, which needs "
            "all rows. Leave it out; Parquet files are not held in memory."
        )
    if data.format is None:
        return load_rows(data.dataset_name, data.dataset_config, split=None)
    splits = open_rows(data.dataset_name, data.dataset_config, split=None)
    return {name: stepwise_formats.stepwise_dataset(rows, CONVERTERS[data.format]) for name, rows in splits.items()}


def hold_out(splits: dict[str, Dataset], data: DataArguments, prompt_column: str) -> tuple[Dataset, Dataset]:
    train = splits[data.dataset_train_split]
    if data.dataset_test_split in splits:
        return train, splits[data.dataset_test_split]
    # Whole prompts: solutions of one problem share their first steps, so that a random row would be half known.
    num_held_out = min(data.eval_rows, max(1, len(train) // 5))
    held_out = {str(prompt) for prompt in train[len(train) - num_held_out :][prompt_column]}
    return (
        train.filter(lambda row: str(row[prompt_column]) not in held_out),
        train.filter(lambda row: str(row[prompt_column]) in held_out),
    )


def main(data: DataArguments, training: PAVRewardConfig, model: ModelConfig) -> None:
    # Data
    train_dataset, eval_dataset = hold_out(load_splits(data), data, training.prompt_column)
    # Splitter, prover, prompts and sampling that the rows were collected with go into the verifier.
    follow_collection(training, data.dataset_name)

    # Model
    chosen = {"revision": model.model_revision, "attn_implementation": model.attn_implementation, "dtype": model.dtype}
    training.model_init_kwargs = {
        **{name: value for name, value in chosen.items() if value is not None},
        **(training.model_init_kwargs or {}),
    }
    trainer = PAVRewardTrainer(
        model=model.model_name_or_path,
        args=training,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        peft_config=get_peft_config(model),
        quantization_config=get_quantization_config(model),
    )

    # Train, put values back on the scale of their labels, evaluate and save
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    trainer.calibrate()
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    trainer.save_model(training.output_dir)
    trainer.create_model_card(dataset_name=data.dataset_name)
    if training.push_to_hub:
        trainer.push_to_hub(dataset_name=data.dataset_name)


if __name__ == "__main__":
    run_script(main, DataArguments, PAVRewardConfig, ModelConfig)
