"""Whether a model says the same in every way it is served: whole histories at once, event by event, and exported.

Three ways of computing one thing from a log's events: one batch of a person's whole history, as in evaluation; the
online path, an event observed after another; the exported graphs. Each is asked for the next item at every event.

Legend: T events of a person, n items, S size of the state.
"""

from __future__ import annotations

__all__ = ["TOLERANCE", "Verification", "verify"]

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hiertcn.artifact import Run
from hiertcn.crowd import Crowd
from hiertcn.errors import InputError
from hiertcn.events import Events
from hiertcn.exported import Exported
from hiertcn.models.hiertcn import HierTCN
from hiertcn.recommender import Recommender
from hiertcn.sessions import PARTS, SECOND, Sessions, sessionize
from hiertcn.states.memory import MemoryStates
from hiertcn.streams import Ints, Stream
from hiertcn.wholes import whole_batch

TOLERANCE = 1e-5
# Scores in memory at a time.
_SCORES = 1 << 23


@dataclass
class Verification:
    """What was compared, and how far apart it was found.

    online, exported: the largest difference of a score from that of the whole history at once, as a share of the
              largest score (in absolute value, at least 1) of the same event
    state:    the same of the long-term states after the last event, of the exported model
    boundaries: events that one of the three ways takes to another place of a session than the others
    """

    users: int = 0
    events: int = 0
    online: float = 0.0
    exported: float = 0.0
    state: float = 0.0
    boundaries: int = 0

    @property
    def agrees(self) -> bool:
        """Whether all is alike to the tolerance; what is no number is not."""
        return max(self.online, self.exported, self.state) <= TOLERANCE and not self.boundaries

    def __str__(self) -> str:
        return (
            f"{self.users:,} users, {self.events:,} events; of the scale of the scores\n"
            f"  event by event differs from the whole history by at most {self.online:.1e}\n"
            f"  exported from the whole history by at most               {self.exported:.1e}\n"
            f"  and in its long-term states by at most                   {self.state:.1e}\n"
            f"  events at another place of their session: {self.boundaries:,}\n"
            f"{'alike' if self.agrees else 'NOT alike'} to {TOLERANCE:g}"
        )


class _Told(Crowd):
    """The crowd of a whole log, as it was known at any moment: it hears of no event twice."""

    def observe(self, row: int, time: float, before: int) -> None: ...


def verify(run: Run, exported: Exported, events: Events, users: int | None = None) -> Verification:
    """Replay the first `users` users of a log (None: all) in all three ways. What everybody picked is taken from the
    whole log, as it was known at each moment, by all three; what was shown is not read.

    Raises InputError for an exported model that is not of the run as it is now.
    """
    model = run.model
    if exported.source != run.manifest["sha256"] or not isinstance(model, HierTCN):
        raise InputError(
            f"{exported.path} was not exported from {run.path} as it is now. Run `hiertcn export {run.path}` again."
        )
    frame = events.frame.sort("user", "time", maintain_order=True)
    rows = run.catalog.rows(events.item_ids)[frame["item"].to_numpy()]
    times, user = frame["time"].to_numpy(), frame["user"].to_numpy()
    bounds = np.concatenate([[0], np.flatnonzero(np.diff(user)) + 1, [len(user)]])
    crowd = _crowd(run, model, rows, times, bounds)
    done = Verification()
    with Recommender.load(run, MemoryStates(), crowd) as online:
        for begin, end in list(pairwise(bounds.tolist()))[:users]:
            _verify_one(done, run, model, exported, online, crowd, rows[begin:end], times[begin:end])
            done.users, done.events = done.users + 1, done.events + end - begin
    return done


def _crowd(run: Run, model: HierTCN, rows: npt.NDArray[np.int32], times: Ints, bounds: Ints) -> Crowd | None:
    if not any(model.horizons):
        return None
    starts = np.zeros(len(rows), dtype=np.int64)
    starts[sessionize(bounds, times, run.session_gap, run.max_session_events)[:-1]] = 1
    begins = np.maximum.accumulate(np.where(starts, np.arange(len(rows)), 0))
    latest = np.append(-1, np.maximum.accumulate(np.where(rows > 0, np.arange(len(rows)), -1)))[:-1]
    before = np.where(latest >= begins, rows[latest], 0)
    return _Told.of(model.horizons, run.catalog.size, rows.astype(np.int64), before.astype(np.int64), times / SECOND)


@torch.inference_mode()
def _verify_one(
    done: Verification,
    run: Run,
    model: HierTCN,
    exported: Exported,
    online: Recommender,
    crowd: Crowd | None,
    rows: npt.NDArray[np.int32],
    times: Ints,
) -> None:
    """One person's events: item rows int32 [T], 0 outside the catalog, at `times` int64 [T] microseconds."""
    stream, place = _stream(rows, times, run.session_gap, run.max_session_events)
    other, other_place = _stream(rows, times, exported.session_gap, exported.max_session_events)
    batch = whole_batch(stream, crowd)
    queries, after = model(batch, model.zero_state(1))
    queries = queries[batch.positions]
    begun = exported.zero_state(1)
    found = exported.encode(other, begun, crowd)
    done.state = _larger(done.state, exported.fold(other, begun), after.numpy())
    done.boundaries += int((place != other_place).sum())
    ids = run.catalog.ids
    together = max(_SCORES // max(run.catalog.size, 1), 1)
    for at in range(0, len(rows), together):
        scores = model.score(queries[at : at + together]).numpy()
        done.exported = _larger(done.exported, exported.score(found[at : at + together]), scores)
        for number, expected in enumerate(scores, at):
            time = times[number] / SECOND
            done.online = _larger(done.online, online.scores("one", time)[None], expected[None])
            row = int(rows[number])
            # An id that no catalog holds: a text with an integer log's ids, or a long one.
            online.observe("one", ids[row - 1] if row else _UNKNOWN, time)
            done.boundaries += int(_session(online) - 1 != place[number])
    online.delete("one")


def _session(online: Recommender) -> int:
    """Events of the last session that is kept."""
    kept = online.kept_of("one")
    return len(kept.sessions[-1][0]) if kept is not None else 0


_UNKNOWN = "\N{REPLACEMENT CHARACTER}" * 85


def _stream(rows: npt.NDArray[np.int32], times: Ints, session_gap: float, longest: int) -> tuple[Stream, Ints]:
    """A person's events as a stream, each asked for; and the place of each in its session."""
    offsets = sessionize(np.array([0, len(times)]), times, session_gap, longest)
    parts = np.full(len(times), PARTS.index("test"), dtype=np.uint8)
    whole = Sessions(rows, times, parts, offsets, np.array([0, len(offsets) - 1]))
    known = np.arange(int(rows.max(initial=0)) + 1)
    place = np.arange(len(times)) - np.repeat(offsets[:-1], np.diff(offsets))
    return Stream.of(whole, known, "test", session_gap, longest), place


def _larger(so_far: float, found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """The larger of a difference so far and that of these [T, …], as a share of the scale of each of the T."""
    scale = np.maximum(np.abs(expected).max(axis=1, initial=0), 1)
    apart = np.abs(found - expected).max(axis=1, initial=0) / scale
    # What is no number differs from everything.
    return float(np.maximum(so_far, np.where(np.isnan(apart), np.inf, apart).max(initial=0)))
