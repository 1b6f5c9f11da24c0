"""A trained model of any kind, for people rather than parts of a log, by torch."""

from __future__ import annotations

__all__ = ["Eager"]

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hiertcn.artifact import Run
from hiertcn.crowd import Crowd
from hiertcn.itemrows import Given
from hiertcn.models import VectorModel
from hiertcn.models.hiertcn import HierTCN
from hiertcn.states.state import digest_of_model
from hiertcn.streams import Ints, Stream
from hiertcn.wholes import whole_batch

Array = npt.NDArray[Any]


class Eager:
    """The model of a run; see `recommender.Served`."""

    def __init__(self, run: Run) -> None:
        self._run, self._model = run, run.model
        self.path, self.catalog, self.withdrawn = run.path, run.catalog, run.withdrawn
        self.session_gap, self.max_session_events = run.session_gap, run.max_session_events
        stated = run.manifest["trained"], run.manifest["model"]
        self.digest = digest_of_model(*stated, run.session_gap, run.max_session_events)
        self.reads_impressions = self._model.reads_impressions
        self.repeats = self._model.config.repeats if isinstance(self._model, HierTCN) else 0
        # Only what is exported takes new items while serving.
        self.given: Given | None = None

    @torch.inference_mode()
    def vectors_of(self, rows: Ints) -> Array | None:
        """[R, Q]: what the vectors of queries are compared with, of item rows [R]; None where they are with none."""
        if not isinstance(self._model, VectorModel):
            return None
        vectors: Array = self._model.lookup(torch.from_numpy(rows))[0].numpy()
        return vectors

    def crowd(self) -> Crowd | None:
        """What everybody picked last in the log, to go on from; None for a model that does not read it."""
        return self._run.crowd()

    def zero_state(self, users: int) -> Array:
        """[users, S]: the state of a person before the first session."""
        state: Array = self._model.zero_state(users).numpy()
        return state

    @torch.inference_mode()
    def fold(self, stream: Stream, initial: Array) -> Array:
        """[U, S]: the states after the finished sessions alone."""
        # What the crowd does changes no state.
        _, after = self._model.fold(whole_batch(stream), torch.from_numpy(initial))
        found: Array = after.numpy()
        return found

    @torch.inference_mode()
    def encode(self, stream: Stream, initial: Array, crowd: Crowd | None = None) -> Array:
        """[T, Q + 2J]: the queries of the stream's targets."""
        batch = whole_batch(stream, crowd)
        queries: Array = self._model(batch, torch.from_numpy(initial))[0][batch.positions].numpy()
        return queries

    @torch.inference_mode()
    def score(self, queries: Array) -> Array:
        """[T, n]: of the whole catalog; column j is item row j + 1."""
        scores: Array = self._model.score(torch.from_numpy(queries)).numpy()
        return scores

    def parted(self, queries: Array) -> tuple[Array, Array, Array]:
        """([T, Q], int64 [T, J], [T, J]): the vectors of queries, the rows that they boost, 0 for none, and by how
        much."""
        size = self._model.query_size if isinstance(self._model, VectorModel) else queries.shape[1]
        rows, boosts = np.split(queries[:, size:], 2, axis=1)
        return queries[:, :size], rows.astype(np.int64), boosts
