"""Trains a process advantage verifier on soft step labels."""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import AutoModelForTokenClassification, AutoTokenizer, PreTrainedModel, set_seed
from trl import RewardConfig, RewardTrainer

from .pav_reward_config import PAVRewardConfig
from .stepwise_batches import StepwiseCollator, gather_positions
from .stepwise_dataset import balanced_class_weights, prepare_stepwise_dataset
from .verifier import ProcessAdvantageVerifier
from .verifier_loading import check_causal
from .verifier_metrics import POSITIVE, metrics_of_records


class PAVRewardTrainer(RewardTrainer):
    r"""
    Trainer for Process Advantage Verifiers (PAV): a token-classification model learns the value of every step.

    The loss is the cross-entropy between the sigmoid of one logit per step end and a soft label in [0, 1], averaged
    over the labelled steps of a batch; the value of the prompt is learned too where the data set has it. Source:
    [PAV](https://huggingface.co/papers/2410.08146), section 4.2 and App. D.

    Overrides `compute_loss`, `evaluate`, `evaluation_loop`, `log`, `save_model` and `create_model_card` of
    [`~trl.RewardTrainer`]; the rest (PEFT, quantization, resuming, distributed training) is inherited unchanged.

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
            As for [`~trl.RewardTrainer`]. A value head that the adapter would leave frozen at random weights is added
            to its `modules_to_save`.
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
        args = _as_pav_reward_config(args, model)
        if train_dataset is None:
            raise ValueError(
                "`train_dataset` is missing, so there is nothing to learn from. Pass rows with `prompt`, "
                "`completions` and `labels`."
            )
        set_seed(args.seed)  # the value head starts at random weights
        init_kwargs: Any = args.model_init_kwargs or {}
        if isinstance(model, str):
            model = _load_model(model, args, quantization_config)
        check_causal(model)
        if processing_class is None:
            name = model.config._name_or_path
            processing_class = AutoTokenizer.from_pretrained(
                name, revision=init_kwargs.get("revision"), trust_remote_code=args.trust_remote_code
            )
        tokenizer = getattr(processing_class, "tokenizer", processing_class)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if args.chat_template_path is not None:
            tokenizer.chat_template = _read_template(args.chat_template_path)
        self.settings = args.verifier_settings()
        model.config.verifier = self.settings.to_dict()
        train_dataset = prepare_stepwise_dataset(train_dataset, tokenizer, args, "train")
        eval_dataset = _prepare_eval(eval_dataset, tokenizer, args)
        # Weights of labels below 0.5 and of the others.
        self.class_weights = balanced_class_weights(train_dataset) if args.balance_classes else (1.0, 1.0)
        if data_collator is None:
            multiple: Any = args.pad_to_multiple_of  # the config has turned 'auto' into a number or None
            data_collator = StepwiseCollator(tokenizer.pad_token_id, multiple)
        self._stepwise_records: list[tuple[Any, Any]] = []
        self._stepwise_logs: dict[str, list[float]] = defaultdict(list)
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
                **{**kwargs, "peft_config": _with_value_head(peft_config)},
            )
        finally:
            args.model_init_kwargs, args.chat_template_path = model_init_kwargs, template_path

    @property
    def verifier(self) -> ProcessAdvantageVerifier:
        """The model in training as a verifier, to score steps in this process."""
        return ProcessAdvantageVerifier(
            self.accelerator.unwrap_model(self.model), self.processing_class, self.settings
        )

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Weighted cross-entropy over the labelled positions of a batch."""
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        logits = gather_positions(outputs.logits, inputs["positions"])
        mask, labels = inputs["label_mask"], inputs["labels"]
        losses = binary_cross_entropy_with_logits(logits, labels, reduction="none")
        if self.model.training:
            negative, positive = self.class_weights
            losses = torch.where(labels < POSITIVE, negative, positive) * losses
        # Every row has a label, so the count is never 0. Unlabelled positions may hold anything, NaN included.
        loss = losses.masked_fill(~mask, 0.0).sum() / mask.sum()
        with torch.no_grad():
            values = torch.where(mask, torch.sigmoid(logits.detach()), torch.nan)
            labels = torch.where(mask, labels, torch.nan)
            if self.model.training:
                self._stepwise_logs["brier"].append((values - labels).square().nanmean().item())
                self._stepwise_logs["mean_value"].append(values.nanmean().item())
                self._stepwise_logs["mean_label"].append(labels.nanmean().item())
            else:
                pair = self.accelerator.pad_across_processes(torch.stack([values, labels], 1), 2, torch.nan)
                for row in self.accelerator.gather_for_metrics(pair).cpu().numpy():
                    self._stepwise_records.append((row[0], row[1]))
        return (loss, outputs) if return_outputs else loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate, on the data sets of the trainer or on stepwise rows given here."""
        eval_dataset = _prepare_eval(eval_dataset, self.processing_class, self.args)
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Run the loop, and add the metrics of [`~verifier_metrics.verifier_metrics`].

        The loss is the mean over all labels too. The loop's own one is a mean over batches, which depends on their
        size and counts rows twice that fill up the last one.
        """
        self._stepwise_records.clear()
        output: Any = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        metrics = metrics_of_records(self._stepwise_records, self.args.error_threshold)
        self._stepwise_records.clear()
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the means of the training metrics since the last time."""
        if self.model.training:
            logs.update({name: sum(values) / len(values) for name, values in self._stepwise_logs.items()})
            self._stepwise_logs.clear()
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
            path.write_text(path.read_text(encoding="utf-8") + _card_section(self), encoding="utf-8")


def _as_pav_reward_config(args: RewardConfig | None, model: Any) -> PAVRewardConfig:
    if isinstance(args, PAVRewardConfig):
        return args
    if args is None:
        name = model if isinstance(model, str) else model.config._name_or_path
        return PAVRewardConfig(f"{Path(name).name}-PAV-verifier")
    # A script that only swaps the trainer class: kept field by field, because building it again would check and
    # derive again what has been derived.
    promoted: Any = copy.copy(args)
    promoted.__class__ = PAVRewardConfig
    for entry in {entry.name: entry for entry in fields(PAVRewardConfig)}.values():
        if entry.name not in vars(args):
            setattr(promoted, entry.name, entry.default)
    promoted.remove_unused_columns = False
    return promoted


def _prepare_eval(eval_dataset: Any, tokenizer: Any, args: PAVRewardConfig) -> Any:
    if isinstance(eval_dataset, dict):
        return {name: prepare_stepwise_dataset(rows, tokenizer, args, name) for name, rows in eval_dataset.items()}
    if eval_dataset is None or isinstance(eval_dataset, str):
        return eval_dataset
    return prepare_stepwise_dataset(eval_dataset, tokenizer, args, "eval")


def _load_model(path: str, args: PAVRewardConfig, quantization_config: Any) -> Any:
    kwargs: dict[str, Any] = {"dtype": "float32", "trust_remote_code": args.trust_remote_code}
    if quantization_config is not None:
        quantization_config = copy.deepcopy(quantization_config)
        # The value head starts at random weights and has to learn, so it stays as it is.
        skipped = getattr(quantization_config, "llm_int8_skip_modules", None) or []
        quantization_config.llm_int8_skip_modules = [*skipped, "score", "classifier"]
        # The base class turns adapter and value head into bfloat16; what is not quantized has to match them.
        kwargs |= {"quantization_config": quantization_config, "dtype": "bfloat16"}
    kwargs.update(args.model_init_kwargs or {})  # type: ignore[arg-type]
    return AutoModelForTokenClassification.from_pretrained(path, num_labels=1, **kwargs)


def _read_template(path: str) -> str:
    if not (path.endswith((".jinja", ".j2")) and Path(path).is_file()):
        raise ValueError(
            f"`chat_template_path` is {path!r}, which is no Jinja file (.jinja or .j2). A template of another "
            "tokenizer may bring new tokens. Apply `trl.clone_chat_template` to model and tokenizer, then pass both."
        )
    return Path(path).read_text(encoding="utf-8")


def _with_value_head(peft_config: Any) -> Any:
    """An adapter that also trains the value head: PEFT adds it by itself only for classification tasks."""
    task = str(getattr(peft_config, "task_type", ""))
    modules = getattr(peft_config, "modules_to_save", None)
    if peft_config is None or task.endswith(("TOKEN_CLS", "SEQ_CLS")) or {"score", "classifier"} & set(modules or ()):
        return peft_config
    peft_config = copy.deepcopy(peft_config)
    peft_config.modules_to_save = [*(modules or ()), "score"]
    return peft_config


def _card_section(trainer: PAVRewardTrainer) -> str:
    settings = "\n".join(f"- `{name}`: `{value!r}`" for name, value in trainer.settings.to_dict().items())
    metrics = next((entry for entry in reversed(trainer.state.log_history) if "eval_loss" in entry), {})
    numbers = "\n".join(
        f"| {name.removeprefix('eval_')} | {value:.4f} |"
        for name, value in metrics.items()
        if name.startswith("eval_") and isinstance(value, float) and not name.endswith(("_second", "_runtime"))
    )
    table = f"\n### Evaluation\n\n| metric | value |\n|---|---|\n{numbers}\n" if numbers else ""
    return f"""
## Process advantage verifier

A process reward: it scores every step of a solution, and the prompt, with the probability that the prover still
reaches a right answer ([Setlur et al.](https://huggingface.co/papers/2410.08146)). The pipeline of the quick start
above does not apply; use it with `trl-prl`:

```python
from trl_prl import ProcessAdvantageVerifier

verifier = ProcessAdvantageVerifier.from_pretrained("{trainer.args.hub_model_id or trainer.args.output_dir}")
verifier(prompts=["..."], steps=[["first step\\n", "second step\\n"]])  # one value in [0, 1] per step
```

### Settings

{settings}
{table}"""
