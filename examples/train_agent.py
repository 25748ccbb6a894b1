r"""
Train an agent that calls a tool over several turns, with PAV: a dense reward for the progress of every turn.

pip install "trl-prl[peft]"

accelerate launch examples/train_agent.py \
    --model_name_or_path Qwen/Qwen3-0.6B --chat_template_kwargs '{"enable_thinking": false}' \
    --output_dir Qwen3-0.6B-guess --max_completion_length 512 --max_tool_calling_iterations 4

The game needs nothing else: the policy has to find a number with the tool `guess`, which says whether a guess is too
low or too high. Whether it was found is the outcome. That hardly says which turn was good; how many numbers each
answer leaves does, and only the tool's answers tell. So the process reward asks for the transcript.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from trl import ModelConfig, get_peft_config, get_quantization_config

from trl_prl import PAVConfig, PAVTrainer, TranscriptSegment
from trl_prl.jobs.arguments import run_script


@dataclass
class GameArguments:
    """How large the game is."""

    highest: int = field(default=15, metadata={"help": "The number to find is between 1 and this one."})
    num_games: int = field(default=1000, metadata={"help": "Rows of the data set, each with a number to find."})


class GuessGame:
    """The environment: its public methods are the tools, and its own reward is the outcome."""

    def __init__(self) -> None:
        self.secret, self.found = 0, False

    def reset(self, secret: int, **columns: Any) -> None:
        """Begin a game; called with the columns of a row."""
        self.secret, self.found = secret, False

    def guess(self, number: int) -> str:
        """
        Guess the number.

        Args:
            number: The guess.

        Returns:
            Whether the guess is right, too low or too high.
        """
        self.found |= number == self.secret
        return (
            f"{number} is {'right' if number == self.secret else 'too low' if number < self.secret else 'too high'}."
        )

    def get_reward(self) -> float:
        return float(self.found)


class ChanceOfNextGuess:
    """Process reward: the probability that a guess among the numbers that are left is right, after every turn."""

    def __init__(self, highest: int) -> None:
        self.highest = highest

    def initial_values(self, prompts: list[Any], **columns: Any) -> list[float]:
        return [1 / self.highest] * len(prompts)

    def __call__(
        self, prompts: list[Any], steps: list[list[str]], transcript: list[list[TranscriptSegment]], **columns: Any
    ) -> list[list[float]]:
        return [self.values(len(turns), segments) for turns, segments in zip(steps, transcript, strict=True)]

    def values(self, num_turns: int, segments: list[TranscriptSegment]) -> list[float]:
        low, high, found, turn = 1, self.highest, False, 0
        values = [0.0] * num_turns
        for segment in segments:
            if segment.role == "assistant" and segment.step is not None:
                turn = segment.step
            for number, answer in re.findall(r"(-?\d+) is (right|too low|too high)", segment.text):
                if segment.role == "tool":  # the policy may write such words too, which prove nothing
                    low = max(low, int(number) + 1) if answer == "too low" else low
                    high = min(high, int(number) - 1) if answer == "too high" else high
                    found = found or answer == "right"
            # What a tool answers is the work of the turn that called it.
            values[turn] = 1.0 if found else 1 / (high - low + 1)
        return values


def main(game: GameArguments, training: PAVConfig, model: ModelConfig) -> None:
    # Data: any column besides the prompt reaches the environment's `reset`
    question = f"Find the whole number between 1 and {game.highest} that I think of. Call the tool `guess`."
    numbers = random.Random(training.seed)
    dataset = Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": question}]] * game.num_games,
            "secret": [numbers.randint(1, game.highest) for _ in range(game.num_games)],
        }
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
        args=training,
        train_dataset=dataset,
        environment_factory=GuessGame,
        process_reward=ChanceOfNextGuess(game.highest),
        step_splitter="turn",
        peft_config=get_peft_config(model),
        quantization_config=get_quantization_config(model),
    )

    # Train and save
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    trainer.save_model(training.output_dir)


if __name__ == "__main__":
    run_script(main, GameArguments, PAVConfig, ModelConfig)
