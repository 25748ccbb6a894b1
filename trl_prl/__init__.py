"""Process rewards for LLM fine-tuning on TRL.

Importing the package is light: a name brings in torch, transformers and TRL only when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any


# Type checkers and editors read the imports and `__all__`, Python reads `_MODULES`; `tests/test_public_api.py` keeps
# them equal.
if TYPE_CHECKING:
    from .collection.monte_carlo_reward import MonteCarloProcessReward
    from .credit.advantages import best_of_k_values, pav_advantages, prl_advantages, step_advantages
    from .generation.local import TransformersGenerator
    from .generation.openai_server import OpenAIGenerator
    from .generation.vllm_engine import VLLMGenerator, VLLMServerGenerator
    from .metrics.aggregation import aggregate_step_values, best_of_n, majority_vote, weighted_vote
    from .prms.implicit import ImplicitProcessReward
    from .prms.judge import JudgeProcessReward
    from .prms.load import load_process_reward
    from .prms.remote import RemoteProcessReward
    from .prompts.format import PromptFormat
    from .rewards.answers import math_accuracy_reward
    from .rewards.transcript import TranscriptSegment
    from .search.beams import beam_search, dvts
    from .search.best_of_n import best_of_n_search
    from .search.rejection import step_rejection
    from .search.results import SearchResult
    from .search.scoring import EffectiveReward
    from .search.step_search import SearchLimits
    from .steps.markdown import MarkdownSplitter
    from .steps.plain_text import split_text
    from .steps.sentences import SentenceSplitter
    from .steps.split import get_splitter, split_completions, step_ids_from_ends
    from .steps.splitters import DelimiterSplitter, FixedLengthSplitter, RegexSplitter
    from .steps.token_pieces import TokenPieces
    from .storage.row_sources import load_rows
    from .training.callback import ProcessRewardCallback
    from .training.evaluation_callback import EvaluationCallback
    from .training.pav_config import PAVConfig
    from .training.pav_trainer import PAVTrainer
    from .training.prl_config import PRLConfig
    from .training.prl_trainer import PRLTrainer
    from .training.process_grpo_trainer import ProcessGRPOTrainer
    from .training.step_reward_func import StepRewardFunc
    from .types import Completion, Generator, OutcomeReward, ProcessReward, Prompt, SamplingParams, StepSplitter
    from .verifier.config import PAVRewardConfig
    from .verifier.model import ProcessAdvantageVerifier
    from .verifier.trainer import PAVRewardTrainer

__version__ = "0.1.0"

__all__ = [
    "Completion",
    "DelimiterSplitter",
    "EffectiveReward",
    "EvaluationCallback",
    "FixedLengthSplitter",
    "Generator",
    "ImplicitProcessReward",
    "JudgeProcessReward",
    "MarkdownSplitter",
    "MonteCarloProcessReward",
    "OpenAIGenerator",
    "OutcomeReward",
    "PAVConfig",
    "PAVRewardConfig",
    "PAVRewardTrainer",
    "PAVTrainer",
    "PRLConfig",
    "PRLTrainer",
    "ProcessAdvantageVerifier",
    "ProcessGRPOTrainer",
    "ProcessReward",
    "ProcessRewardCallback",
    "Prompt",
    "PromptFormat",
    "RegexSplitter",
    "RemoteProcessReward",
    "SamplingParams",
    "SearchLimits",
    "SearchResult",
    "SentenceSplitter",
    "StepRewardFunc",
    "StepSplitter",
    "TokenPieces",
    "TranscriptSegment",
    "TransformersGenerator",
    "VLLMGenerator",
    "VLLMServerGenerator",
    "aggregate_step_values",
    "beam_search",
    "best_of_k_values",
    "best_of_n",
    "best_of_n_search",
    "dvts",
    "get_splitter",
    "load_process_reward",
    "load_rows",
    "majority_vote",
    "math_accuracy_reward",
    "pav_advantages",
    "prl_advantages",
    "split_completions",
    "split_text",
    "step_advantages",
    "step_ids_from_ends",
    "step_rejection",
    "weighted_vote",
]

_MODULES = {
    "collection.monte_carlo_reward": ("MonteCarloProcessReward",),
    "credit.advantages": ("best_of_k_values", "pav_advantages", "prl_advantages", "step_advantages"),
    "storage.row_sources": ("load_rows",),
    "metrics.aggregation": ("aggregate_step_values", "best_of_n", "majority_vote", "weighted_vote"),
    "prms.implicit": ("ImplicitProcessReward",),
    "prms.judge": ("JudgeProcessReward",),
    "prms.load": ("load_process_reward",),
    "prms.remote": ("RemoteProcessReward",),
    "prompts.format": ("PromptFormat",),
    "rewards.answers": ("math_accuracy_reward",),
    "rewards.transcript": ("TranscriptSegment",),
    "search.beams": ("beam_search", "dvts"),
    "training.callback": ("ProcessRewardCallback",),
    "training.evaluation_callback": ("EvaluationCallback",),
    "generation.local": ("TransformersGenerator",),
    "generation.openai_server": ("OpenAIGenerator",),
    "generation.vllm_engine": ("VLLMGenerator", "VLLMServerGenerator"),
    "steps.markdown": ("MarkdownSplitter",),
    "training.pav_config": ("PAVConfig",),
    "verifier.config": ("PAVRewardConfig",),
    "verifier.trainer": ("PAVRewardTrainer",),
    "training.pav_trainer": ("PAVTrainer",),
    "training.prl_config": ("PRLConfig",),
    "training.prl_trainer": ("PRLTrainer",),
    "training.process_grpo_trainer": ("ProcessGRPOTrainer",),
    "search.rejection": ("step_rejection",),
    "search.best_of_n": ("best_of_n_search",),
    "search.results": ("SearchResult",),
    "search.scoring": ("EffectiveReward",),
    "steps.plain_text": ("split_text",),
    "steps.sentences": ("SentenceSplitter",),
    "steps.splitters": ("DelimiterSplitter", "FixedLengthSplitter", "RegexSplitter"),
    "training.step_reward_func": ("StepRewardFunc",),
    "search.step_search": ("SearchLimits",),
    "steps.split": ("get_splitter", "split_completions", "step_ids_from_ends"),
    "steps.token_pieces": ("TokenPieces",),
    "types": ("Completion", "Generator", "OutcomeReward", "ProcessReward", "Prompt", "SamplingParams", "StepSplitter"),
    "verifier.model": ("ProcessAdvantageVerifier",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value  # so that the next access is a plain one
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
