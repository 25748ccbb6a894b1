"""Process rewards for LLM fine-tuning on TRL.

Importing the package is light: a name brings in torch, transformers and TRL only when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any


# Type checkers and editors read the imports and `__all__`, Python reads `_MODULES`; `tests/test_public_api.py` keeps
# them equal.
if TYPE_CHECKING:
    from .advantages import best_of_k_values, pav_advantages, prl_advantages, step_advantages
    from .aggregation import aggregate_step_values, best_of_n, majority_vote, weighted_vote
    from .answers import math_accuracy_reward
    from .beams import beam_search, dvts
    from .callbacks import ProcessRewardCallback
    from .evaluation_callback import EvaluationCallback
    from .generation import TransformersGenerator
    from .generation_servers import OpenAIGenerator, VLLMGenerator, VLLMServerGenerator
    from .markdown_splitter import MarkdownSplitter
    from .pav_config import PAVConfig
    from .pav_reward_config import PAVRewardConfig
    from .pav_reward_trainer import PAVRewardTrainer
    from .pav_trainer import PAVTrainer
    from .prl_config import PRLConfig
    from .prl_trainer import PRLTrainer
    from .process_grpo_trainer import ProcessGRPOTrainer
    from .rejection import step_rejection
    from .search import best_of_n_search
    from .search_results import SearchResult
    from .search_scoring import EffectiveReward
    from .splitters import DelimiterSplitter, FixedLengthSplitter, RegexSplitter, SentenceSplitter
    from .step_reward_func import StepRewardFunc
    from .step_search import SearchLimits
    from .steps import get_splitter, split_completions, split_text, step_ids_from_ends
    from .token_pieces import TokenPieces
    from .types import Completion, Generator, OutcomeReward, ProcessReward, Prompt, SamplingParams, StepSplitter
    from .verifier import ProcessAdvantageVerifier

__version__ = "0.1.0"

__all__ = [
    "Completion",
    "DelimiterSplitter",
    "EffectiveReward",
    "EvaluationCallback",
    "FixedLengthSplitter",
    "Generator",
    "MarkdownSplitter",
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
    "RegexSplitter",
    "SamplingParams",
    "SearchLimits",
    "SearchResult",
    "SentenceSplitter",
    "StepRewardFunc",
    "StepSplitter",
    "TokenPieces",
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
    "advantages": ("best_of_k_values", "pav_advantages", "prl_advantages", "step_advantages"),
    "aggregation": ("aggregate_step_values", "best_of_n", "majority_vote", "weighted_vote"),
    "answers": ("math_accuracy_reward",),
    "beams": ("beam_search", "dvts"),
    "callbacks": ("ProcessRewardCallback",),
    "evaluation_callback": ("EvaluationCallback",),
    "generation": ("TransformersGenerator",),
    "generation_servers": ("OpenAIGenerator", "VLLMGenerator", "VLLMServerGenerator"),
    "markdown_splitter": ("MarkdownSplitter",),
    "pav_config": ("PAVConfig",),
    "pav_reward_config": ("PAVRewardConfig",),
    "pav_reward_trainer": ("PAVRewardTrainer",),
    "pav_trainer": ("PAVTrainer",),
    "prl_config": ("PRLConfig",),
    "prl_trainer": ("PRLTrainer",),
    "process_grpo_trainer": ("ProcessGRPOTrainer",),
    "rejection": ("step_rejection",),
    "search": ("best_of_n_search",),
    "search_results": ("SearchResult",),
    "search_scoring": ("EffectiveReward",),
    "splitters": ("DelimiterSplitter", "FixedLengthSplitter", "RegexSplitter", "SentenceSplitter"),
    "step_reward_func": ("StepRewardFunc",),
    "step_search": ("SearchLimits",),
    "steps": ("get_splitter", "split_completions", "split_text", "step_ids_from_ends"),
    "token_pieces": ("TokenPieces",),
    "types": ("Completion", "Generator", "OutcomeReward", "ProcessReward", "Prompt", "SamplingParams", "StepSplitter"),
    "verifier": ("ProcessAdvantageVerifier",),
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
