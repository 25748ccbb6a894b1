"""A softmax policy with a parameter for every prefix and token, small enough to enumerate all of its completions."""

from __future__ import annotations

import torch
from torch import Tensor


class TabularPolicy:
    """All completions of a small vocabulary, and exact expectations over them.

    Args:
        vocab_size (`int`):
            Number of tokens.
        length (`int`):
            Longest completion.
        ends (`bool`, *optional*, defaults to `False`):
            Whether the last token of the vocabulary ends a completion.
    """

    def __init__(self, vocab_size: int, length: int, ends: bool = False) -> None:
        prefixes: dict[tuple[int, ...], int] = {}
        rows: list[tuple[list[int], list[int]]] = [([], [])]
        for _ in range(length):
            longer = []
            for tokens, visited in rows:
                if ends and tokens and tokens[-1] == vocab_size - 1:
                    longer.append((tokens, visited))
                    continue
                state = prefixes.setdefault(tuple(tokens), len(prefixes))
                longer += [([*tokens, token], [*visited, state]) for token in range(vocab_size)]
            rows = longer
        self.num_prefixes, self.vocab_size, self.length = len(prefixes), vocab_size, length
        # Of shape (N, T), -1 behind the end of a completion.
        self.tokens = torch.tensor([tokens + [-1] * (length - len(tokens)) for tokens, _ in rows])
        self.states = torch.tensor([visited + [-1] * (length - len(visited)) for _, visited in rows])
        self.mask = self.tokens >= 0

    def logits(self, seed: int, scale: float = 1.0) -> Tensor:
        """Parameters of shape (num_prefixes, vocab_size), float64."""
        generator = torch.Generator().manual_seed(seed)
        return scale * torch.randn(self.num_prefixes, self.vocab_size, generator=generator, dtype=torch.float64)

    def logps(self, logits: Tensor) -> Tensor:
        """Log-probabilities of the tokens of every completion, of shape (N, T), 0 behind its end."""
        table = torch.log_softmax(logits, dim=1)
        return table[self.states.clamp(min=0), self.tokens.clamp(min=0)].masked_fill(~self.mask, 0.0)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probability of every completion, of shape (N,)."""
        return self.logps(logits).sum(1).exp()

    def kl(self, logits: Tensor, ref_logits: Tensor) -> Tensor:
        """KL divergence to a reference over whole completions, differentiable."""
        logps = self.logps(logits).sum(1)
        return (logps.exp() * (logps - self.logps(ref_logits).sum(1))).sum()

    def expected_gradient(self, logits: Tensor, weights: Tensor) -> Tensor:
        """Expectation of `Σ_t weights[t]·∇log pi(a_t)`, for weights of shape (N, T) that are held constant."""
        shares = self.probabilities(logits).unsqueeze(1) * weights.double()
        entries = (self.states * self.vocab_size + self.tokens)[self.mask]
        taken = torch.zeros(self.num_prefixes * self.vocab_size, dtype=torch.float64)
        taken = taken.index_add_(0, entries, shares[self.mask]).view(self.num_prefixes, self.vocab_size)
        # The score of a token is its one-hot vector less the probabilities of its prefix.
        return taken - torch.softmax(logits, dim=1) * taken.sum(1, keepdim=True)

    def sample_gradients(self, logits: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        """`Σ_t weights[t]·∇log pi(a_t)` of the completions `rows` of shape (M,), as rows of all parameters."""
        table = torch.softmax(logits.detach(), dim=1)
        states, tokens, mask = self.states[rows].clamp(min=0), self.tokens[rows].clamp(min=0), self.mask[rows]
        scores = torch.nn.functional.one_hot(tokens, self.vocab_size).double() - table[states]
        scores *= weights.double().masked_fill(~mask, 0.0).unsqueeze(2)
        gradients = torch.zeros(len(rows), self.num_prefixes, self.vocab_size, dtype=torch.float64)
        gradients.scatter_add_(1, states.unsqueeze(2).expand_as(scores), scores)
        return gradients.flatten(1)

    def fixed_steps(self, step_length: int) -> Tensor:
        """Step ids of steps of so many tokens, of shape (N, T)."""
        ids = (torch.arange(self.length) // step_length).expand(len(self.tokens), -1)
        return ids.masked_fill(~self.mask, -1)

    def delimited_steps(self, delimiter: int = 0) -> Tensor:
        """Step ids of steps that end with a delimiter, of shape (N, T)."""
        is_delimiter = (self.tokens == delimiter).long()
        return (is_delimiter.cumsum(1) - is_delimiter).masked_fill(~self.mask, -1)


def cosine(first: Tensor, second: Tensor) -> float:
    """Cosine of the angle between two gradients."""
    return float(torch.nn.functional.cosine_similarity(first.flatten(), second.flatten(), dim=0))
