"""What generators over engines and servers share: their samples as completions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trl_prl.steps.token_pieces import TokenPieces
from trl_prl.types import Completion, FinishReason, Prompt


def tell(on_sample: Callable[[int], None] | None, samples: list[Completion]) -> list[Completion]:
    """Tell of samples that have ended, in the thread of the caller."""
    for sample in samples:
        if on_sample is not None:
            on_sample(len(sample.token_ids))
    return samples


def completion_of(pieces: TokenPieces, ids: Sequence[int], reason: FinishReason) -> Completion:
    return Completion(tuple(ids), b"".join(pieces.pieces(ids)).decode("utf-8", "replace"), reason)


def finish_reason_of(reason: str | None, stopped_by_text: bool) -> FinishReason:
    if reason == "stop":
        return "stop" if stopped_by_text else "eos"
    # Anything else ("length", "content_filter", an abort) is no end of the model's own.
    return "length"


def key_of(prompts: list[Prompt], i: int) -> str:
    key = prompts[i].key
    return f"position {i}" if key is None else key


def check_urls(base_urls: Sequence[str]) -> None:
    if isinstance(base_urls, str) or not base_urls:
        raise ValueError(
            f"Got base_urls={base_urls!r}, but one address or several are needed, as a list. Use "
            "['http://127.0.0.1:8000/v1'], for instance."
        )
