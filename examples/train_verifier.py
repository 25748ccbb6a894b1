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

import os
from dataclasses import dataclass, field

from datasets import Dataset, DatasetDict, load_dataset
from trl import ModelConfig, ScriptArguments, TrlParser, get_peft_config, get_quantization_config

from trl_prl import PAVRewardConfig, PAVRewardTrainer, stepwise_formats


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
        default=500, metadata={"help": "Rows held out of the training split where there is no test split."}
    )


def load_rows(data: DataArguments) -> DatasetDict:
    if not data.dataset_name:
        raise ValueError(
            "No data set was given. Pass --dataset_name: a hub id, a folder, or a .jsonl or .parquet file."
        )
    if os.path.isfile(data.dataset_name):
        builder = "parquet" if data.dataset_name.endswith(".parquet") else "json"
        splits = load_dataset(builder, data_files={data.dataset_train_split: data.dataset_name})
    else:
        splits = load_dataset(data.dataset_name, data.dataset_config)
    if data.format is None:
        return splits
    convert = CONVERTERS[data.format]
    return DatasetDict({name: stepwise_formats.stepwise_dataset(rows, convert) for name, rows in splits.items()})


def hold_out(splits: DatasetDict, data: DataArguments) -> tuple[Dataset, Dataset]:
    train = splits[data.dataset_train_split]
    if data.dataset_test_split in splits:
        return train, splits[data.dataset_test_split]
    # Whole prompts: solutions of one problem share their first steps, so that a random row would be half known.
    num_held_out = min(data.eval_rows, len(train) // 5)
    held_out = {str(prompt) for prompt in train[len(train) - num_held_out :]["prompt"]}
    return (
        train.filter(lambda row: str(row["prompt"]) not in held_out),
        train.filter(lambda row: str(row["prompt"]) in held_out),
    )


def main(data: DataArguments, training: PAVRewardConfig, model: ModelConfig) -> None:
    # Data
    train_dataset, eval_dataset = hold_out(load_rows(data), data)

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

    # Train, evaluate and save
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    trainer.save_model(training.output_dir)
    trainer.create_model_card(dataset_name=data.dataset_name)
    if training.push_to_hub:
        trainer.push_to_hub(dataset_name=data.dataset_name)


if __name__ == "__main__":
    main(*TrlParser((DataArguments, PAVRewardConfig, ModelConfig)).parse_args_and_config())
