"""The vectors of items: what a model reads of an item, and what its queries are compared with. Row 0 is no item: zero.

Legend: R rows, n items, D what a model reads, Q size of a query, G size of the given vectors.
"""

from __future__ import annotations

__all__ = ["GivenItems", "How", "Items", "LearnedItems", "fixed_scores"]

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_TOGETHER = 64
How = Literal["learned", "fixed", "tuned", "both"]


class LearnedItems(nn.Embedding):
    """Vectors that are learned with the model, read and compared with alike: Q = D."""

    def __init__(self, items: int, dim: int) -> None:
        super().__init__(items + 1, dim, padding_idx=0)
        nn.init.normal_(self.weight, std=dim**-0.5)
        with torch.no_grad():
            self.weight[0] = 0
        self.query_size = dim

    def compared(self, rows: Tensor) -> Tensor:
        """[R, Q]: what queries are compared with, of item rows int64 [R]."""
        return F.embedding(rows, self.weight, padding_idx=0, sparse=self.sparse)

    def whole(self) -> Tensor:
        """[n + 1, Q]: the same of all rows."""
        return self.weight


class GivenItems(nn.Module):
    """Vectors V that items came with (You et al., 2019: PinSage, fixed), read through a bias-free linear map W.

    "fixed": reads W V, compared with V. "tuned": the same, V is learned on. "both": a learned vector E beside each,
    zero before it is trained: reads W V + E, compared with [V; E]. An item that was never trained on has its V.
    """

    given: Tensor

    def __init__(self, items: int, dim: int, how: How, given: Tensor, reads: bool) -> None:
        super().__init__()
        size = given.shape[1]
        self.project = nn.Linear(size, dim, bias=False) if reads else None
        self.learned: nn.Embedding | None = None
        if how == "tuned":
            self.learned = nn.Embedding(items + 1, size, padding_idx=0)
        elif how == "both":
            self.learned = nn.Embedding(items + 1, dim, padding_idx=0)
        self.how = how
        self.query_size = size + dim if how == "both" else size
        # Not among the weights: it is a file of its own, read by memory map where it lies on the CPU.
        self.register_buffer("given", given, persistent=False)
        if self.learned is not None:
            with torch.no_grad():
                self.learned.weight.copy_(given) if how == "tuned" else self.learned.weight.zero_()

    @property
    def sparse(self) -> bool:
        """Whether the gradient of a learned table holds only the rows that were read."""
        return self.learned is not None and self.learned.sparse

    @sparse.setter
    def sparse(self, value: bool) -> None:
        if self.learned is not None:
            self.learned.sparse = value

    def fixed(self, dtype: torch.dtype) -> bool:
        """Whether queries of `dtype` are compared with the given vectors, as they are."""
        return self.how == "fixed" and self.given.dtype == dtype

    def _vectors(self, rows: Tensor) -> Tensor:
        if self.how == "tuned" and self.learned is not None:
            out: Tensor = self.learned(rows)
            return out
        found = F.embedding(rows, self.given)
        return found.float() if found.dtype == torch.float16 else found

    def forward(self, rows: Tensor) -> Tensor:
        """[…, D]: what a model reads of item rows […]."""
        assert self.project is not None
        out: Tensor = self.project(self._vectors(rows))
        return out + self.learned(rows) if self.how == "both" and self.learned is not None else out

    def compared(self, rows: Tensor) -> Tensor:
        """[R, Q]: what queries are compared with, of item rows int64 [R]."""
        vectors = self._vectors(rows)
        if self.how == "both" and self.learned is not None:
            return torch.cat([vectors, self.learned(rows)], dim=1)
        return vectors

    def whole(self) -> Tensor:
        """[n + 1, Q]: the same of all rows, in memory."""
        return self.compared(torch.arange(len(self.given), device=self.given.device))


Items = LearnedItems | GivenItems


class _FixedScores(torch.autograd.Function):
    """q · v of each query with rows of its own, some queries at a time, so that what is gathered stays near the cores.

    The vectors are gathered once more for the gradient: that costs less than to keep them.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, vectors: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(vectors, rows)
        scores = queries.new_empty(rows.shape)
        for place, gathered in _gathered(vectors, rows):
            torch.bmm(gathered, queries[place].unsqueeze(2), out=scores[place].unsqueeze(2))
        return scores

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        vectors, rows = ctx.saved_tensors
        (grad,) = grads
        of_queries = grad.new_empty(len(rows), vectors.shape[1])
        for place, gathered in _gathered(vectors, rows):
            torch.bmm(grad[place].unsqueeze(1), gathered, out=of_queries[place].unsqueeze(1))
        return of_queries, None, None


def _gathered(vectors: Tensor, rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Slices of the T queries, and the vectors [t, C, Q] of their rows, in a buffer that is used again."""
    together = len(rows) if vectors.is_cuda else _TOGETHER
    buffer = vectors.new_empty(min(together, len(rows)) * rows.shape[1], vectors.shape[1])
    for begin in range(0, len(rows), max(together, 1)):
        part = rows[begin : begin + together]
        gathered = buffer[: part.numel()]
        torch.index_select(vectors, 0, part.reshape(-1), out=gathered)
        yield slice(begin, begin + together), gathered.view(*part.shape, -1)


def fixed_scores(queries: Tensor, vectors: Tensor, rows: Tensor) -> Tensor:
    """[T, C]: inner products of queries [T, Q] with vectors [n, Q] of rows int64 [T, C], each query with its own. No
    gradient reaches the vectors."""
    scores: Tensor = _FixedScores.apply(queries, vectors, rows)  # type: ignore[no-untyped-call]
    return scores
