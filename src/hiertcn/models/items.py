"""The vectors of items: what a model reads of an item, and what its queries are compared with. Row 0 is no item: zero.

Legend: R rows, n items, D what a model reads, Q size of a query, G size of the given vectors.
"""

from __future__ import annotations

__all__ = ["GivenItems", "How", "Items", "LearnedItems"]

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
