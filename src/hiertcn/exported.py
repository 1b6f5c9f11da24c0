"""A HierTCN without torch: what `hiertcn export` wrote, computed by ONNX Runtime and NumPy.

What it gives is what the model gives, to rounding: the graphs are made of the model's own parameters (graphs.py), and a
model is exported only where both agree.

Legend: P positions, M sessions, U users, T targets, S size of the state, Q size of a query, D what is read of an item,
J boosted items of a query, n items.
"""

from __future__ import annotations

__all__ = ["EXPORTED", "FOLDER", "Exported"]

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from pydantic import BaseModel, Field
from safetensors import SafetensorError
from safetensors.numpy import load_file

from hiertcn.catalogfile import ListedCatalog, read_catalog
from hiertcn.config import Count, Positive
from hiertcn.crowd import Crowd, Horizons
from hiertcn.errors import ArtifactError
from hiertcn.feeds import Folds, Windows, last_items
from hiertcn.itemrows import Given, ItemRows, Longer, boosts_of
from hiertcn.manifest import Kind, Listed, checked, read_manifest
from hiertcn.states.state import digest_of_model
from hiertcn.streams import Ints, Stream
from hiertcn.vectors import Vectors, open_vectors

Floats = npt.NDArray[np.float32]

EXPORTED = Kind("an exported model", "hiertcn export RUN", "export the model again")
FOLDER = "online"
"""Within the directory of a run."""
_NAME = "manifest.json"
_BLOCK = 1 << 16
# Positions of windows that are gathered at a time.
_TOGETHER = 1 << 14


class _Reads(BaseModel, strict=True):
    """What the graphs take. state: S without the last items; field: positions that a query sees, None: its session;
    clock: buckets of a pause, 0 without a clock."""

    state: Count
    dim: Count
    query: Count
    repeats: Annotated[int, Field(ge=0)]
    aggregate: Literal["mean", "max"]
    field: Count | None
    decay: bool
    impressions: bool
    clock: Annotated[int, Field(ge=0)]
    trends: list[Positive]
    follows: list[Positive]


class _Given(Listed):
    size: Count
    half: bool


class _Manifest(BaseModel, strict=True):
    reads: _Reads
    model: dict[str, Any]
    trained: str
    source: str
    catalog: ListedCatalog
    fold: Listed
    encode: Listed
    read: Listed
    compared: Listed
    bias: Listed | None
    given: _Given | None = None
    crowd: Listed | None
    withdrawn: list[Annotated[int, Field(ge=1)]]
    session_gap: Annotated[Positive, Field(allow_inf_nan=False)]
    max_session_events: Count


class Exported:
    """The model of a folder that `hiertcn export` wrote. Safe to use from several threads.

    vectors: float32 or float16 [n + 1, Q], what queries are compared with, by memory map; as it was exported
    bias:    float32 [n + 1], what is added to scores, or None; as it was exported
    given:   what makes rows of the vectors of new items; None for a model that reads no given vectors
    repeats: so many rows of last items stand at the end of a state
    digest:  what stored states of users depend on, the same as of the run that it is of
    source:  the digest of that run's manifest

    Raises ArtifactError if the folder is none, or a file is not what the manifest says, or holds what is no number.
    """

    def __init__(self, folder: str | Path, threads: int = 1) -> None:
        self.path = Path(folder)
        stated = read_manifest(self.path / _NAME, _Manifest, EXPORTED)
        self._stated, self._reads = stated, _Reads.model_validate(stated["reads"])
        self.session_gap = float(stated["session_gap"])
        self.max_session_events = int(stated["max_session_events"])
        self.horizons = Horizons(tuple(self._reads.trends), tuple(self._reads.follows))
        self.reads_impressions = self._reads.impressions
        self.state_size = self._reads.state + self._reads.repeats
        self.query_size = self._reads.query
        self.source = str(stated["source"])
        self.digest = digest_of_model(stated["trained"], stated["model"], self.session_gap, self.max_session_events)
        self.catalog = read_catalog(self.path, stated["catalog"], EXPORTED)
        self.withdrawn = np.array(stated["withdrawn"], dtype=np.int32)
        read = self._table("read", self._reads.dim)
        one = (stated["read"], self._reads.dim) == (stated["compared"], self._reads.query)
        self.vectors: Vectors = read if one else self._table("compared", self._reads.query)  # One file is mapped once.
        self.bias: Floats | None = None if stated["bias"] is None else self._table("bias", 1)[:, 0]
        bias = None if self.bias is None else Longer(self.bias)
        self._items = ItemRows(Longer(read), Longer(self.vectors), bias)
        self.given, self.repeats = self._reads_given(), self._reads.repeats
        if read.dtype != np.float32 or self.withdrawn.max(initial=0) > self.catalog.size:
            raise ArtifactError(f"{self.path}: what it reads of items is not what it states. Export the model again.")
        self._fold = self._session("fold", threads, {"session": self._reads.dim, "state": self._reads.state})
        self._encode = self._session("encode", threads, {"items": self._reads.dim, "state": self._reads.state})
        self._try()

    def crowd(self) -> Crowd | None:
        """What everybody picked last in the log, to go on from; None for a model that does not read it."""
        if not any(self.horizons):
            return None
        if (stated := self._stated["crowd"]) is None:
            return Crowd(self.horizons, self.catalog.size)
        path = checked(self.path, stated, EXPORTED)
        try:
            return Crowd.restored(self.horizons, self.catalog.size, load_file(path))
        except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise ArtifactError(f"{path}: what it says of the crowd is damaged ({str(error)[:80]}).") from error

    def zero_state(self, users: int) -> Floats:
        """[users, S]: the state of a person before the first session."""
        return np.zeros((users, self.state_size), dtype=np.float32)

    def encode(self, stream: Stream, initial: Floats, crowd: Crowd | None = None) -> Floats:
        """[T, Q + 2J]: the queries of the stream's targets, of users who all have positions, the last session of each
        running, from their states `initial` [U, S]."""
        folds = Folds(stream)
        long_term, last = initial[:, : self._reads.state], initial[:, self._reads.state :]
        states = self._folded(stream, folds, long_term)
        longest = self._reads.field or int(np.diff(stream.session_offsets).max(initial=1))
        together = max(_TOGETHER // longest, 1)
        places = (stream.positions[at : at + together] for at in range(0, len(stream.positions), together))
        parts = [self._queries(stream, some, states, folds.before, last, crowd) for some in places]
        if not parts:
            return np.zeros((0, self._reads.query), dtype=np.float32)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def fold(self, stream: Stream, initial: Floats) -> Floats:
        """[U, S]: the states of such users after the finished sessions."""
        folds = Folds(stream)
        after = self._folded(stream, folds, initial[:, : self._reads.state]).take(folds.after, axis=0)
        if not self._reads.repeats:
            return after
        ends = stream.session_offsets[stream.user_offsets[1:] - 1]
        last = last_items(stream, initial[:, self._reads.state :], ends, np.arange(len(ends)))
        return np.concatenate([after, last], axis=1)

    def _folded(self, stream: Stream, folds: Folds, long_term: Floats) -> Floats:
        """[U + F, S]: the states of users, and those after each folded session."""
        if not len(folds.chosen):
            return np.ascontiguousarray(long_term)
        sessions = folds.aggregated(stream, self._items.read, self._reads.aggregate)
        gaps = stream.gaps[folds.chosen]
        states = np.concatenate([long_term, np.empty((len(folds.chosen), long_term.shape[1]), dtype=np.float32)])
        for now, previous in folds.steps:
            feeds = {"session": sessions[now], "state": states[previous]}
            if self._reads.decay:
                feeds["gap"] = gaps[now]
            states[len(long_term) + now] = self._fold(feeds)[0]
        return states

    def _queries(
        self, stream: Stream, places: Ints, states: Floats, before: Ints, last: Floats, crowd: Crowd | None
    ) -> Floats:
        """[T, Q + 2J]: queries at `places` [T]."""
        reads, windows = self._reads, Windows(stream, places, self._reads.field)
        feeds: dict[str, npt.NDArray[Any]] = {
            "items": self._items.read.take(windows.rows),
            "inside": windows.inside.astype(np.float32),
            "state": states.take(before.take(windows.session), axis=0),
        }
        if reads.decay:
            feeds["gap"] = stream.gaps.take(windows.session)
        if reads.clock:
            feeds["hour"], feeds["pause"] = windows.clock(reads.clock)
        if reads.impressions:
            feeds["skipped"] = windows.skipped(self._items.read)
        rows: list[npt.NDArray[Any]] = []
        if any(self.horizons):
            if crowd is None or crowd.horizons != self.horizons:
                raise ValueError(f"the model reads a crowd of {self.horizons}; give it one")
            known, feeds["crowd"] = windows.crowd(crowd)
            rows.append(known.reshape(len(places), -1))
        if reads.repeats:
            feeds["step"] = windows.step
            users = stream.user_offsets.searchsorted(windows.session, side="right") - 1
            rows.append(last_items(stream, last, places, users)[:, ::-1])
        queries, *boosts = self._encode(feeds)
        found: Floats = np.concatenate([queries, *rows, *boosts], axis=1, dtype=np.float32) if rows else queries
        return found

    def parted(self, queries: Floats) -> tuple[Floats, Ints, Floats]:
        """([T, Q], int64 [T, J], [T, J]): the vectors of queries, the rows that they boost, 0 for none, and by how
        much."""
        size = self._reads.query
        boosted = (queries.shape[1] - size) // 2
        rows = queries[:, size : size + boosted].astype(np.int64)
        return queries[:, :size], rows, queries[:, size + boosted :]

    def score(self, queries: Floats) -> Floats:
        """Scores [T, n] of the whole catalog; column j is item row j + 1."""
        vectors, rows, boosts = self.parted(queries)
        scores = self._items.scores(vectors)
        if rows.shape[1]:
            np.add.at(scores, (np.arange(len(rows))[:, None], rows), boosts)
        return scores[:, 1:]

    def score_rows(self, queries: Floats, rows: Ints) -> Floats:
        """Scores [T, C] of item rows int64 [T, C] ≥ 1, of each query its own."""
        vectors, boosted, boosts = self.parted(queries)
        scores = self._items.scores_of(vectors, rows)
        return scores + boosts_of(boosted, boosts, rows) if boosted.shape[1] else scores

    def scores_of(self, vectors: Floats, rows: Ints) -> Floats:
        """The same without boosts, of vectors [T, Q]."""
        return self._items.scores_of(vectors, rows)

    def vectors_of(self, rows: Ints) -> Floats:
        """[R, Q]: what the vectors of queries are compared with, of item rows [R]."""
        return self._items.compared.take(rows).astype(np.float32, copy=False)

    def put(self, rows: Ints, vectors: Floats) -> None:
        """Let items of `rows` int64 [R], of the catalog or behind it, come with `vectors` [R, G]."""
        assert self.given is not None
        self._items = self._items.put(rows, *self.given.parts(vectors))

    def compared(self, rows: Ints) -> Floats:
        """[R, Q] or [R, Q + 1]: what an index holds of `rows`: their vectors, and the bias behind them."""
        return self._items.indexed(rows)

    def _reads_given(self) -> Given | None:
        if (stated := self._stated.get("given")) is None:
            return None
        weight = self._table("given", stated["size"], self._reads.dim)
        return Given(weight, np.dtype(f"f{2 if stated['half'] else 4}"), self._reads.query, self.bias is not None)

    def _table(self, part: str, size: int, height: int | None = None) -> Vectors:
        """[n + 1, size], or of another height, checked to be that and finite."""
        path = checked(self.path, self._stated[part], EXPORTED)
        table = np.asarray(open_vectors(path, self.catalog.size + 1 if height is None else height))
        if table.shape[1] != size:
            raise ArtifactError(f"{path} has {table.shape[1]} columns, expected {size}. Export the model again.")
        for begin in range(0, len(table), _BLOCK):
            if not np.isfinite(table[begin : begin + _BLOCK]).all():
                raise ArtifactError(f"{path} holds what is no number. Export the model again.")
        return table

    def _session(self, part: str, threads: int, sizes: dict[str, int]) -> Callable[[dict[str, Any]], list[Any]]:
        """What runs a graph, whose inputs are as large as they have to be."""
        path = checked(self.path, self._stated[part], EXPORTED)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4
        try:
            # The fused kernel is slower than its parts.
            session = ort.InferenceSession(
                path.read_bytes(),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=["SkipLayerNormFusion"],
            )
        # What ONNX Runtime raises has no base of its own.
        except Exception as error:
            raise ArtifactError(f"{path} is no graph ({str(error)[:120]}). Export the model again.") from error
        found = {entry.name: entry.shape[-1] for entry in session.get_inputs() if entry.shape}
        if any(found.get(name) != size for name, size in sizes.items()):
            raise ArtifactError(f"{path} takes {found}, expected {sizes}. Export the model again.")
        return lambda feeds: list(session.run(None, feeds))

    def _try(self) -> None:
        """Raise ArtifactError unless the graphs take what they are stated to take, and give numbers of the right
        sizes: of a person with a finished session, asked twice."""
        rows, two = np.array([1, 1, 0]), np.zeros(2, dtype=np.int64)
        none = np.zeros(0, dtype=np.int32)
        stream = Stream(
            items=rows,
            seen=np.array([1e9, 2e9, 2e9]),
            session_offsets=np.array([0, 1, 3]),
            gaps=np.array([0, 1e9], dtype=np.float32),
            user_offsets=np.array([0, 2]),
            positions=np.array([1, 2]),
            **dict.fromkeys(("targets", "events", "shown_begins", "shown_counts"), two),
            shown=none,
            skip_begins=np.zeros(3, dtype=np.int64),
            skip_counts=np.zeros(3, dtype=np.int64),
        )
        crowd = Crowd(self.horizons, self.catalog.size) if any(self.horizons) else None
        try:
            begun = self.zero_state(1)
            queries, after = self.encode(stream, begun, crowd), self.fold(stream, begun)
            right = np.isfinite(queries).all() and np.isfinite(after).all() and after.shape == (1, self.state_size)
            sized = self.parted(queries)
            right = right and sized[0].shape == (2, self._reads.query) and sized[1].shape == sized[2].shape
        except Exception as error:
            raise ArtifactError(f"{self.path} can't be run ({str(error)[:120]}). Export the model again.") from error
        if not right:
            raise ArtifactError(f"{self.path} gives what is no number, or of another size. Export the model again.")
