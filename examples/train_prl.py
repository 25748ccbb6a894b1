r"""
Train a policy with PRL on any data set that has a prompt and an answer.

pip install "trl-prl[math,quantization]"

Full training on a data set of the Hugging Face hub, with the settings of a file:

accelerate launch examples/train_prl.py --config examples/configs/prl.yaml \
    --dataset_name openai/gsm8k --dataset_config main --prompt_column question --as_user_message \
    --model_name_or_path Qwen/Qwen2.5-Math-1.5B --output_dir Qwen2.5-Math-1.5B-PRL

QLoRA on one GPU, data from a local file:

accelerate launch examples/train_prl.py --config examples/configs/prl.yaml \
    --model_name_or_path Qwen/Qwen2.5-Math-1.5B --output_dir Qwen2.5-Math-1.5B-PRL-QLoRA \
    --dataset_name train.jsonl --prompt_column problem \
    --use_peft --lora_r 16 --load_in_4bit --bnb_4bit_quant_type nf4 --learning_rate 1e-5
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import Any

from trl import ModelConfig, ScriptArguments, get_peft_config, get_quantization_config

from trl_prl import PRLConfig, PRLTrainer, PromptFormat, load_rows
from trl_prl.jobs.arguments import run_script
from trl_prl.rewards.timed import load_reward


@dataclass
class DataArguments(ScriptArguments):
    """Where prompts and answers come from, beyond [`~trl.ScriptArguments`]."""

    prompt_column: str = field(default="prompt", metadata={"help": "Column of the questions, text or messages."})
    answer_column: str = field(default="answer", metadata={"help": "Column of the right answers."})
    reward: str = field(
        default="accuracy",
        metadata={"help": "Outcome reward: 'accuracy' (math-verify), 'exact_match', or `module:name` of a function."},
    )
    prompt_template: str | None = field(
        default=None, metadata={"help": "Python format string with {prompt}, put around every question."}
    )
    system_prompt: str | None = field(
        default=None, metadata={"help": "Message of the system, before messages that have none."}
    )
    as_user_message: bool = field(
        default=False, metadata={"help": "Plain-text questions become one message of the user, for chat models."}
    )


def prepare(row: dict[str, Any], data: DataArguments, prompts: PromptFormat) -> dict[str, Any]:
    answer = row.get(data.answer_column)
    if answer is None or answer != answer:  # null or NaN: there is none to compare with
        return {"prompt": prompts.prompt_of(row), "answer": None}
    # GSM8K keeps its solutions in the answer column, with the answer proper after four hashes.
    return {"prompt": prompts.prompt_of(row), "answer": str(answer).split("####")[-1].strip()}


def main(data: DataArguments, training: PRLConfig, model: ModelConfig) -> None:
    sys.path.insert(0, os.getcwd())  # a reward may lie where the command is run

    # Data: a local file, a local folder, or a data set of the hub
    dataset = load_rows(data.dataset_name, data.dataset_config, split=None, streaming=data.dataset_streaming)
    columns = next(iter(dataset.values())).column_names
    # A reward of one's own reads whatever columns it names, the others read the answer alone.
    own = ":" in data.reward
    for column in (data.prompt_column,) if own else (data.prompt_column, data.answer_column):
        if columns is not None and column not in columns:
            raise ValueError(
                f"The data set has no column {column!r}, only {columns}. Pass --prompt_column and --answer_column."
            )
    # Messages go through the chat template, text does not; --chat_template_kwargs reaches it through the trainer.
    prompts = PromptFormat(
        data.prompt_column,
        data.prompt_template,
        data.system_prompt,
        data.as_user_message,
        training.chat_template_kwargs,
    )
    dataset = dataset.map(
        prepare, fn_kwargs={"data": data, "prompts": prompts}, remove_columns=None if own else columns
    )

    # Model
    training.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(training.model_init_kwargs or {}),
    }
    trainer = PRLTrainer(
        model=model.model_name_or_path,
        reward_funcs=load_reward(data.reward),
        args=training,
        train_dataset=dataset[data.dataset_train_split],
        eval_dataset=dataset[data.dataset_test_split] if training.eval_strategy != "no" else None,
        peft_config=get_peft_config(model),
        quantization_config=get_quantization_config(model),
    )

    # For the run's record and card
    trainer.sources |= {"dataset": data.dataset_name, "prompts": prompts}

    # Train and save
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    trainer.save_model(training.output_dir)
    if training.push_to_hub:
        trainer.push_to_hub(dataset_name=data.dataset_name)


if __name__ == "__main__":
    run_script(main, DataArguments, PRLConfig, ModelConfig)
