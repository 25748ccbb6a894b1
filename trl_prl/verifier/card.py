"""What the model card of a verifier says."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trl_prl.jobs.config import without_unset
from trl_prl.storage.markdown import table


def trl_card(path: Path) -> str:
    """TRL's card in a file, with words where it has None or a link to the hub for what lies in a local folder."""
    card = path.read_text(encoding="utf-8").replace("[None](https://huggingface.co/None)", "a model in a local folder")
    card = card.replace("# Model Card for None", f"# Model Card for {path.parent.resolve().name}")
    card = card.replace("trained with Reward.", "trained with the `PAVRewardTrainer` of `trl-prl`.")
    for data in re.findall(r"\(https://huggingface\.co/datasets/(.+?)\) dataset", card):
        if Path(data).exists():
            card = card.replace(f"[{data}](https://huggingface.co/datasets/{data})", f"`{Path(data).name}`")
            card = card.replace(f"datasets: {data}\n", "", 1)
    return card.replace('model="None"', f'model="{path.parent}"')


def section(title: str, rows: Mapping[str, Any]) -> str:
    """A section with a table of names and values; nothing without any."""
    return f"\n\n## {title}\n\n{table(('name', 'value'), rows.items())}\n" if rows else ""


def card_section(trainer: Any) -> str:
    """Markdown about a verifier: how to use it, its settings, its metrics.

    Args:
        trainer ([`PAVRewardTrainer`]):
            The trainer.

    Returns:
        `str`: The section.
    """
    metrics: dict[str, Any] = next(
        (entry for entry in reversed(trainer.state.log_history) if "eval_loss" in entry), {}
    )
    numbers = {
        name.removeprefix("eval_"): f"{value:.4f}"
        for name, value in metrics.items()
        if name.startswith("eval_") and isinstance(value, float) and not name.endswith(("_second", "_runtime"))
    }
    where = json.dumps(str(trainer.args.hub_model_id or trainer.args.output_dir))
    text = f"""
## Process advantage verifier

A process reward: it scores every step of a solution, and the prompt, with the probability that the prover still
reaches a right answer ([Setlur et al.](https://huggingface.co/papers/2410.08146)). The pipeline of the quick start
above does not apply; use it with `trl-prl`:

```python
from trl_prl import ProcessAdvantageVerifier

verifier = ProcessAdvantageVerifier.from_pretrained({where})
verifier(prompts=["..."], steps=[["first step\\n", "second step\\n"]])  # one value in [0, 1] per step
```
"""
    text += section("Settings", without_unset(trainer.settings.to_dict())) + section("Evaluation", numbers)
    if numbers and (trainer.settings.temperature, trainer.settings.offset) != (1.0, 0.0):
        text += (
            "\nThe calibration (temperature and offset) was fitted on an evaluation split. If these are metrics of "
            "the same split, as `examples/train_verifier.py` reports them, they are in sample for the two numbers.\n"
        )
    return text
