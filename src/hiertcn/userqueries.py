"""Every user's current query, for people who search among item vectors in an engine of their own."""

from __future__ import annotations

__all__ = ["current_queries", "write_item_vectors", "write_user_queries"]

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from hiertcn.artifact import Run
from hiertcn.cache import Cache
from hiertcn.errors import InputError
from hiertcn.files import written_aside
from hiertcn.models import Model, VectorModel
from hiertcn.models.hiertcn import HierTCN
from hiertcn.sessions import PARTS, Sessions
from hiertcn.streams import Ints, Stream, known_rows
from hiertcn.wholes import whole_batch

EVENTS_TOGETHER = 50_000


def write_user_queries(run: Run | str | Path, cache: Cache | str | Path, out: str | Path) -> int:
    """Write a Parquet file with user_id and query (float16, a list of fixed size) of every user of a prepared log,
    after all the user's events; how many users that are.

    The score of an item is the inner product of a query with the item's vector. Items are matched by id. Raises
    InputError for a model whose queries are no vectors, StorageError when the disk refuses.
    """
    run, cache = run if isinstance(run, Run) else Run(run), cache if isinstance(cache, Cache) else Cache(cache)
    model = _comparing(run)
    own = run.catalog.fingerprint == cache.catalog.fingerprint
    rows = known_rows(cache.catalog, None if own else run.catalog)
    size, users = model.items.query_size, 0
    kind = pa.list_(pa.float16(), size)
    ids = cache.shard(0).user_ids.to_arrow().type
    with written_aside(Path(out)) as aside:
        schema = pa.schema([("user_id", ids), ("query", kind)])
        with pq.ParquetWriter(aside, schema) as writer:
            for index in range(len(cache)):
                shard = cache.shard(index)
                blocks = current_queries(model, shard.sessions, rows, run.session_gap, run.max_session_events)
                found = np.concatenate(list(blocks)).astype(np.float16)
                queries = pa.FixedSizeListArray.from_arrays(pa.array(found.ravel()), size)
                writer.write_table(pa.table([shard.user_ids.to_arrow(), queries], schema=schema))
                users += len(found)
    return users


def _comparing(run: Run) -> VectorModel:
    model = run.model
    if isinstance(model, HierTCN) and model.config.boosts:
        raise InputError(
            f"{run.path} boosts single items beside what vectors tell, and without that its vectors rank badly. Train "
            "one without, such as `hiertcn train --preset small`."
        )
    if not isinstance(model, VectorModel) or model.bias is not None:
        raise InputError(
            f"{run.path} is a {run.name} whose scores are not inner products of a query with item vectors. Train one "
            "with an embedding head and inner ranking."
        )
    return model


def write_item_vectors(run: Run | str | Path, out: str | Path) -> int:
    """Write a Parquet file with item_id and vector (float16) of every item of a model's catalog: what queries are
    compared with; how many items that are.

    Raises InputError for a model that `write_user_queries` refuses, StorageError when the disk refuses.
    """
    run = run if isinstance(run, Run) else Run(run)
    model = _comparing(run)
    size = model.items.query_size
    with written_aside(Path(out)) as aside:
        ids = run.catalog.ids.to_arrow()
        schema = pa.schema([("item_id", ids.type), ("vector", pa.list_(pa.float16(), size))])
        with pq.ParquetWriter(aside, schema) as writer, torch.inference_mode():
            for begin in range(0, run.catalog.size, EVENTS_TOGETHER):
                rows = torch.arange(begin + 1, min(begin + EVENTS_TOGETHER, run.catalog.size) + 1)
                found = model.lookup(rows)[0].half().numpy()
                vectors = pa.FixedSizeListArray.from_arrays(pa.array(found.ravel()), size)
                writer.write_table(pa.table([ids[begin : begin + len(rows)], vectors], schema=schema))
    return run.catalog.size


@torch.inference_mode()
def current_queries(
    model: Model, sessions: Sessions, rows: Ints, session_gap: float, longest: int
) -> Iterator[npt.NDArray[np.float32]]:
    """Queries [u, Q] after all events of the users of a shard, some users at a time.

    rows: as of `known_rows`     session_gap, longest: when a session is over
    """
    model.eval()
    blocks = sessions.event_offsets[:-1] // EVENTS_TOGETHER
    bounds = np.append(np.flatnonzero(np.diff(blocks, prepend=-1)), len(blocks)).tolist()
    for first, last in pairwise(bounds):
        batch = whole_batch(_asked_at_the_end(sessions.users(first, last), rows, session_gap, longest))
        queries, _ = model(batch, model.zero_state(last - first))
        found: npt.NDArray[np.float32] = queries[batch.positions].float().numpy()
        yield found


def _asked_at_the_end(sessions: Sessions, rows: Ints, session_gap: float, longest: int) -> Stream:
    """The stream of users of whom one more event is asked for, in their running session."""
    ends, offsets = sessions.event_offsets[1:], sessions.shown_offsets
    times = np.insert(sessions.times, ends, sessions.times[ends - 1])
    parts = np.insert(np.zeros(len(sessions.items), dtype=np.uint8), ends, PARTS.index("test"))
    # The event asked for is in the running session, or begins one if that is full.
    last = sessions.user_offsets[1:] - 1
    lengths = np.diff(sessions.session_offsets)
    full = lengths[last] >= longest
    lengths[last] += ~full
    lengths = np.insert(lengths, last[full] + 1, 1)
    whole = Sessions(
        np.insert(sessions.items, ends, 0),
        times,
        parts,
        np.concatenate([[0], np.cumsum(lengths)]),
        sessions.user_offsets + np.concatenate([[0], np.cumsum(full)]),
        sessions.shown,
        offsets if offsets is None else np.insert(offsets, ends, offsets[ends]),
    )
    return Stream.of(whole, rows, "test", session_gap, longest)
