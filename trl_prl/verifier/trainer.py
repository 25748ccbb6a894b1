"""Trains a process advantage verifier on soft step labels."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import AutoTokenizer, PreTrainedModel, set_seed
from trl import RewardConfig, RewardTrainer

from trl_prl.metrics.step_values import POSITIVE, metrics_of_records

from .batches import StepwiseCollator, gather_positions
from .card import card_section, trl_card
from .config import PAVRewardConfig, as_pav_reward_config
from .dataset import balanced_class_weights, prepare_eval_dataset, prepare_stepwise_dataset, prompt_type_of
from .loading import check_causal, load_untrained_model, read_template, with_value_head
from .model import ProcessAdvantageVerifier


class PAVRewardTrainer(RewardTrainer):
    r"""
    Trainer for Process Advantage Verifiers (PAV): a token-classification model learns the value of every step.

    The loss is the cross-entropy between the sigmoid of one logit per step end and a soft label in [0, 1], averaged
    over the labelled steps of a batch; the value of the prompt is learned too where the data set has it. Source:
    [PAV](https://huggingface.co/papers/2410.08146), section 4.2 and App. D.

    Overrides `get_batch_samples`, `compute_loss`, `evaluate`, `evaluation_loop`, `log`, `save_model` and
    `create_model_card` of [`~trl.RewardTrainer`]; the rest (PEFT, quantization, resuming, distributed training) is
    inherited unchanged.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or `PeftModel`):
            Path or hub id, loaded as a token-classification model with one label, or such a model. It must be causal.
        args ([`PAVRewardConfig`], *optional*):
            Configuration. A plain [`~trl.RewardConfig`] is accepted: its settings are kept and the new ones have their
            defaults.
        data_collator (`Callable`, *optional*):
            Makes batches of prepared rows; by default a [`StepwiseCollator`].
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Stepwise rows: `prompt` (text or messages), `completions` (list of steps, which joined are the solution),
            `labels` (numbers in [0, 1] or booleans; `None`, NaN or -100 for steps without a label) and optionally
            `initial_value` (value of the prompt). Rows without any label are dropped, and counted in the log.
        eval_dataset ([`~datasets.Dataset`] or `dict[str, Dataset]`, *optional*):
            Rows of the same form.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer, by default that of the model.
        quantization_config (`BitsAndBytesConfig`, *optional*):
            As for [`~trl.RewardTrainer`].
        peft_config (`PeftConfig`, *optional*):
            As for [`~trl.RewardTrainer`], for whatever task. The value head is trained with the adapter.
        **kwargs:
            Every other argument of [`~trl.RewardTrainer`].

    Raises:
        `ValueError`: If a row has no prompt, not one label per step, or a label out of range, no label is left, or the
        model is not causal.

    Example:

    ```python
    from trl_prl import PAVRewardConfig, PAVRewardTrainer

    trainer = PAVRewardTrainer(
        model="Qwen/Qwen2.5-Math-1.5B",
        args=PAVRewardConfig(output_dir="my-pav", learning_rate=1e-6),
        train_dataset=stepwise_rows,
    )
    trainer.train()
    trainer.save_model()
    ```
    """

    # It is divided by what `get_batch_samples` counts, so accumulation must not divide it once more.
    loss_is_scaled_for_ga = True

    args: PAVRewardConfig
    model: Any
    accelerator: Any

    def __init__(
        self,
        model: Any,
        args: RewardConfig | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *positional: Any,
        quantization_config: Any = None,
        peft_config: Any = None,
        **kwargs: Any,
    ) -> None:
        args = as_pav_reward_config(args, model)
        if train_dataset is None:
            raise ValueError(
                "`train_dataset` is missing, so there is nothing to learn from. Pass rows with `prompt`, "
                "`completions` and `labels`."
            )
        set_seed(args.seed)  # the value head starts at random weights
        if isinstance(model, str):
            model = load_untrained_model(model, args, quantization_config)
        check_causal(model)
        processing_class = _processing_class(processing_class, model, args)
        tokenizer = getattr(processing_class, "tokenizer", processing_class)
        self.settings = replace(args.verifier_settings(), prompt_type=prompt_type_of(train_dataset, args))
        model.config.verifier = self.settings.to_dict()
        train_dataset = prepare_stepwise_dataset(train_dataset, tokenizer, args, "train")
        eval_dataset = prepare_eval_dataset(eval_dataset, tokenizer, args)
        # Weights of labels below 0.5 and of the others.
        self.class_weights = balanced_class_weights(train_dataset) if args.balance_classes else (1.0, 1.0)
        if data_collator is None:
            multiple: Any = args.pad_to_multiple_of  # the config has turned 'auto' into a number or None
            data_collator = StepwiseCollator(tokenizer.pad_token_id, multiple)
        self._stepwise_records: list[tuple[Any, Any]] = []
        self._calibration_records: list[tuple[Any, Any]] = []
        # Over the labels of all processes since the last log: squared errors, values, labels, and their number.
        self._stepwise_sums = torch.zeros(4)
        # Both were used above. The base class would load a sequence classification model with the one, and warn that
        # the other is ignored.
        model_init_kwargs, args.model_init_kwargs = args.model_init_kwargs, None
        template_path, args.chat_template_path = args.chat_template_path, None
        try:
            super().__init__(
                model,
                args,
                data_collator,
                train_dataset,
                eval_dataset,
                processing_class,
                *positional,
                **{**kwargs, "peft_config": with_value_head(peft_config)},
            )
        finally:
            args.model_init_kwargs, args.chat_template_path = model_init_kwargs, template_path

    @property
    def verifier(self) -> ProcessAdvantageVerifier:
        """The model in training as a verifier, to score steps in this process."""
        return ProcessAdvantageVerifier(
            self.accelerator.unwrap_model(self.model), self.processing_class, self.settings
        )

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """Draw the batches of an optimizer step, and count their labels, of all processes together."""
        batches, _ = super().get_batch_samples(*args, **kwargs)
        if not batches:
            return batches, None
        num_labels = sum(batch["label_mask"].sum() for batch in batches).to(self.args.device)
        if self._labels_are_shared:
            num_labels = self.accelerator.gather(num_labels).sum()
        return batches, num_labels

    @property
    def _labels_are_shared(self) -> bool:
        return bool(self.args.average_tokens_across_devices and self.accelerator.num_processes > 1)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Weighted cross-entropy over the labelled positions of a batch.

        In training it is divided by the labels of the whole optimizer step, so that each label has the same weight,
        however many there are in its row and its batch.
        """
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        logits = gather_positions(outputs.logits, inputs["positions"])
        mask, labels = inputs["label_mask"], inputs["labels"]
        losses = binary_cross_entropy_with_logits(logits, labels, reduction="none")
        if self.model.training:
            negative, positive = self.class_weights
            losses = torch.where(labels < POSITIVE, negative, positive) * losses
        # Every row has a label, so the count is never 0. Unlabelled positions may hold anything, NaN included.
        loss = losses.masked_fill(~mask, 0.0).sum()
        if self.model.training and num_items_in_batch is not None:
            # Gradients are averaged over processes afterwards.
            loss = loss * (self.accelerator.num_processes if self._labels_are_shared else 1) / num_items_in_batch
        else:
            loss = loss / mask.sum()
        with torch.no_grad():
            logits, labels = (torch.where(mask, numbers, torch.nan) for numbers in (logits.detach(), labels))
            if self.model.training:
                values = torch.sigmoid(logits)
                sums = torch.stack([(values - labels).square().nansum(), values.nansum(), labels.nansum(), mask.sum()])
                self._stepwise_sums += self.accelerator.reduce(sums, reduction="sum").cpu()
            else:
                pair = self.accelerator.pad_across_processes(torch.stack([logits, labels], 1), 2, torch.nan)
                for row in self.accelerator.gather_for_metrics(pair).cpu().numpy():
                    self._stepwise_records.append((row[0], row[1]))
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate, on the data sets of the trainer or on stepwise rows given here."""
        eval_dataset = prepare_eval_dataset(eval_dataset, self.processing_class, self.args)
        return super().evaluate(eval_dataset, *args, **kwargs)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Run the loop, and add the metrics of `verifier_metrics`.

        The loss is the mean over all labels too. The loop's own one is a mean over batches, which depends on their
        size and counts rows twice that fill up the last one.
        """
        from scipy.special import expit

        self._stepwise_records.clear()
        output: Any = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)  # type: ignore[misc]
        temperature, offset = self.settings.temperature, self.settings.offset
        records = [(expit(logits / temperature + offset), labels) for logits, labels in self._stepwise_records]
        metrics = metrics_of_records(records, self.args.error_threshold)
        self._calibration_records += self._stepwise_records
        self._stepwise_records.clear()
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output

    def calibrate(self, eval_dataset: Any = None) -> None:
        """Fit two numbers, on held-out rows, that put values back on the scale of their labels, and store them.

        Class-balanced training shifts values towards 0.5. The order of values stays; what is saved, and evaluated from
        now on, has them. Logs the metrics of before under `uncalibrated`.

        Args:
            eval_dataset ([`~datasets.Dataset`], *optional*):
                Rows; by default those of the trainer.

        Raises:
            `ValueError`: If there is no label to fit to.
        """
        self._calibration_records.clear()
        self.evaluate(eval_dataset, metric_key_prefix="uncalibrated")
        records = self._calibration_records
        logits, labels = ([np.zeros(0), *(record[side] for record in records)] for side in (0, 1))
        # Two fits in a row are one on the raw logits.
        self.settings = self.settings.calibrated(np.concatenate(logits), np.concatenate(labels))
        self.model.config.verifier = self.settings.to_dict()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the means of the training metrics over the labels of all processes since the last time."""
        *sums, num_labels = self._stepwise_sums.tolist()
        if self.model.training and num_labels:
            names = ("brier", "mean_value", "mean_label")
            logs.update({name: total / num_labels for name, total in zip(names, sums, strict=True)})
            self._stepwise_sums.zero_()
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save model and tokenizer; next to an adapter also the config, which has the verifier's settings."""
        super().save_model(output_dir, _internal_call)
        if self.args.should_save and not isinstance(self.accelerator.unwrap_model(self.model), PreTrainedModel):
            config = copy.deepcopy(self.model.config)
            if hasattr(config, "quantization_config"):
                # An adapter is merged into the base in full precision.
                del config.quantization_config
            config.save_pretrained(output_dir or str(self.args.output_dir))

    def create_model_card(  # type: ignore[override]
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Write TRL's model card, with what is special to a verifier at its end."""
        tags = [tags] if isinstance(tags, str) else list(tags or ())
        super().create_model_card(model_name, dataset_name, [*tags, "trl-prl", "pav", "process-reward-model"])
        if self.is_world_process_zero():
            path = Path(str(self.args.output_dir)) / "README.md"
            path.write_text(trl_card(path) + card_section(self), encoding="utf-8")


def _processing_class(processing_class: Any, model: Any, args: PAVRewardConfig) -> Any:
    """The tokenizer, by default that of the model, with a pad token and the chat template that was asked for."""
    if processing_class is None:
        init_kwargs: Any = args.model_init_kwargs or {}
        processing_class = AutoTokenizer.from_pretrained(
            model.config._name_or_path,
            revision=init_kwargs.get("revision"),
            trust_remote_code=args.trust_remote_code,
        )
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if args.chat_template_path is not None:
        tokenizer.chat_template = read_template(args.chat_template_path)
    return processing_class
