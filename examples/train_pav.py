r"""
Train a policy with PAV, dense rewards from a process reward, on any data set that has a prompt and an answer.

pip install "trl-prl[math,peft]"

accelerate launch examples/train_pav.py --config examples/configs/pav.yaml \
    --dataset_name openai/gsm8k --dataset_config main --prompt_column question \
    --model_name_or_path Qwen/Qwen2.5-Math-1.5B --output_dir Qwen2.5-Math-1.5B-PAV \
    --process_reward my_rewards:step_values --initial_value 0.5

`my_rewards.py` lies where the command is run and holds a function in TRL's reward-function convention, one level
deeper: one number per step.

    def step_values(prompts, steps, answer, **columns):
        return [[probability_of_success(...) for step in completion_steps] for completion_steps in steps]

A verifier trained with examples/train_verifier.py is passed as its folder or hub id, without --initial_value:

    --process_reward my-org/my-pav
"""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass, field
from typing import Any

from datasets import load_dataset
from transformers import AutoTokenizer
from trl import ModelConfig, ScriptArguments, TrlParser, get_peft_config, get_quantization_config

from trl_prl import PAVConfig, PAVTrainer
from trl_prl.timed_reward import load_reward


@dataclass
class DataArguments(ScriptArguments):
    """Where prompts, answers and process rewards come from, beyond [`~trl.ScriptArguments`]."""

    prompt_column: str = field(default="prompt", metadata={"help": "Column of the questions."})
    answer_column: str = field(default="answer", metadata={"help": "Column of the right answers."})
    reward: str = field(
        default="accuracy",
        metadata={"help": "Outcome reward: 'accuracy' (math-verify), 'exact_match', or `module:name` of a function."},
    )
    prompt_template: str = field(
        default="{prompt} Let's think step by step and output the final answer within \\boxed{{}}.",
        metadata={"help": "Python format string put around a question."},
    )
    process_reward: str | None = field(
        default=None,
        metadata={
            "help": "What scores the steps: `module:name` of a function or object importable from here, or the folder "
            "or hub id of a verifier."
        },
    )


def prepare(row: dict[str, Any], data: DataArguments, conversational: bool) -> dict[str, Any]:
    text = data.prompt_template.format(prompt=row[data.prompt_column])
    prompt = [{"role": "user", "content": text}] if conversational else text
    # GSM8K keeps its solutions in the answer column, with the answer proper after four hashes.
    answer = str(row[data.answer_column]).split("####")[-1].strip()
    return {"prompt": prompt, "answer": answer}


def load_process_reward(name: str | None) -> Any:
    if name is None:
        raise ValueError(
            "No --process_reward was given. Pass `module:name`, such as `my_rewards:step_values`, or the folder or "
            "hub id of a verifier."
        )
    module, separator, attribute = name.partition(":")
    if not separator:
        return name  # the trainer loads the verifier
    return getattr(importlib.import_module(module), attribute)


def main(data: DataArguments, training: PAVConfig, model: ModelConfig) -> None:
    sys.path.insert(0, os.getcwd())  # rewards may lie where the command is run

    # Data: a local file, a local folder, or a data set of the hub
    if data.dataset_name and os.path.isfile(data.dataset_name):
        builder = "parquet" if data.dataset_name.endswith(".parquet") else "json"
        dataset = load_dataset(builder, data_files={data.dataset_train_split: data.dataset_name})
    elif data.dataset_name:
        dataset = load_dataset(data.dataset_name, data.dataset_config, streaming=data.dataset_streaming)
    else:
        raise ValueError(
            "No data set was given. Pass --dataset_name: a hub id, a folder, or a .jsonl or .parquet file."
        )
    columns = next(iter(dataset.values())).column_names
    for column in (data.prompt_column, data.answer_column):
        if columns is not None and column not in columns:
            raise ValueError(
                f"The data set has no column {column!r}, only {columns}. Pass --prompt_column and --answer_column."
            )
    tokenizer = AutoTokenizer.from_pretrained(model.model_name_or_path, trust_remote_code=training.trust_remote_code)
    dataset = dataset.map(
        prepare,
        fn_kwargs={"data": data, "conversational": tokenizer.chat_template is not None},
        remove_columns=columns,
    )

    # Model
    training.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(training.model_init_kwargs or {}),
    }
    trainer = PAVTrainer(
        model=model.model_name_or_path,
        reward_funcs=load_reward(data.reward),
        args=training,
        train_dataset=dataset[data.dataset_train_split],
        eval_dataset=dataset[data.dataset_test_split] if training.eval_strategy != "no" else None,
        processing_class=tokenizer,
        process_reward=load_process_reward(data.process_reward),
        peft_config=get_peft_config(model),
        quantization_config=get_quantization_config(model),
    )

    # Train and save
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    trainer.save_model(training.output_dir)
    if training.push_to_hub:
        trainer.push_to_hub(dataset_name=data.dataset_name)


if __name__ == "__main__":
    main(*TrlParser((DataArguments, PAVConfig, ModelConfig)).parse_args_and_config())
