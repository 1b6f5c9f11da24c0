"""A trained model of any kind as a Reader, by torch."""

from __future__ import annotations

__all__ = ["Eager"]

from typing import Any

import numpy.typing as npt
import torch

from hiertcn.crowd import Crowd
from hiertcn.models import Model, VectorModel
from hiertcn.streams import Stream
from hiertcn.wholes import whole_batch


class Eager:
    """See `online.Reader` and `recommender.Scorer`."""

    def __init__(self, model: Model) -> None:
        self._model = model.eval()
        self.reads_impressions = model.reads_impressions

    def zero_state(self, users: int) -> npt.NDArray[Any]:
        state: npt.NDArray[Any] = self._model.zero_state(users).numpy()
        return state

    @torch.inference_mode()
    def fold(self, stream: Stream, initial: npt.NDArray[Any]) -> npt.NDArray[Any]:
        # What the crowd does changes no state.
        _, after = self._model.fold(whole_batch(stream), torch.from_numpy(initial))
        found: npt.NDArray[Any] = after.numpy()
        return found

    @torch.inference_mode()
    def queries(self, stream: Stream, initial: npt.NDArray[Any], crowd: Crowd | None) -> npt.NDArray[Any]:
        batch = whole_batch(stream, crowd)
        queries, _ = self._model(batch, torch.from_numpy(initial))
        found: npt.NDArray[Any] = queries[batch.positions].numpy()
        return found

    @torch.inference_mode()
    def score(self, queries: npt.NDArray[Any]) -> npt.NDArray[Any]:
        scores: npt.NDArray[Any] = self._model.score(torch.from_numpy(queries)).numpy()
        return scores

    def parted(self, queries: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
        if not isinstance(self._model, VectorModel):
            return queries, None
        vectors, boosts = self._model.parted(torch.from_numpy(queries))
        return vectors.numpy(), None if boosts is None else boosts.numpy()
