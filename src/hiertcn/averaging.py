"""A moving average of the weights, which varies less than the last ones (Polyak & Juditsky, 1992)."""

from __future__ import annotations

__all__ = ["Averaged"]

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_NAME = "average"


class Averaged:
    """Of the weights of `model` that have dense gradients. With decay 0 there is none, and the weights stand for it."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        sparse = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding) and m.sparse}
        self._decay = decay
        self._weights = {
            name: weight for name, weight in model.named_parameters() if decay and id(weight) not in sparse
        }
        self._average = {name: weight.detach().clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step 1, 2, …; the first ones weigh less, so that it forgets the initial weights."""
        if self._average:
            share = 1 - min(self._decay, step / (step + 10))
            torch._foreach_lerp_(list(self._average.values()), list(self._weights.values()), share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model with the average as its weights."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, weight in self._weights.items():
            kept = weight.detach().clone()
            weight.copy_(self._average[name])
            self._average[name] = kept

    def state_tensors(self) -> dict[str, Tensor]:
        """All state as named tensors, for a checkpoint."""
        return {f"{_NAME}.{name}": tensor for name, tensor in self._average.items()}

    @torch.no_grad()
    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take the state from what `state_tensors` gave. Raises KeyError or RuntimeError if it is not of this model."""
        for name, tensor in self._average.items():
            tensor.copy_(tensors[f"{_NAME}.{name}"])
