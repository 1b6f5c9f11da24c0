"""A stream as one batch, every user whole: for who asks of few people at a time. No state is carried in the batch."""

from __future__ import annotations

__all__ = ["whole_batch"]

import numpy as np

from hiertcn.crowd import Crowd
from hiertcn.ragged import SessionBatch, pack_sessions
from hiertcn.streams import Stream


def whole_batch(stream: Stream, crowd: Crowd | None = None) -> SessionBatch:
    """All positions of a stream, whose users all have some. The last session of each user runs, the others are over."""
    users = np.arange(len(stream.user_offsets) - 1)
    finished = np.ones(len(stream.gaps), dtype=bool)
    finished[stream.user_offsets[1:] - 1] = False
    skipped, skipped_at = stream.skipped(np.arange(len(stream.items)))
    return pack_sessions(
        items=stream.items,
        seen=stream.seen,
        session_lengths=np.diff(stream.session_offsets),
        user_sessions=np.diff(stream.user_offsets),
        gaps=stream.gaps,
        finished=finished,
        carried=np.full(len(users), -1),
        rows=users,
        closing=users,
        positions=stream.positions,
        targets=stream.targets,
        events=stream.events,
        skipped=skipped,
        skipped_at=skipped_at,
        crowd=crowd,
    )
