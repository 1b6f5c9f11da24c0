"""What is in a cache, for people and as JSON."""

from __future__ import annotations

__all__ = ["describe", "inspection"]

from typing import Any

import numpy as np

from hiertcn.cache import Cache
from hiertcn.sessions import SECOND


def inspection(cache: Cache) -> dict[str, Any]:
    """Counts, sessions per user, session lengths, span of time, gap, split, vectors, size, how it was made."""
    manifest = cache.manifest
    per_user, lengths, first, last = [], [], [], []
    for index in range(len(cache)):
        sessions = cache.shard(index).sessions
        per_user.append(np.diff(sessions.user_offsets))
        lengths.append(np.diff(sessions.session_offsets))
        first.append(sessions.times.min(initial=np.iinfo(np.int64).max))
        last.append(sessions.times.max(initial=np.iinfo(np.int64).min))
    return {
        "cache": str(cache.path),
        "users": manifest.users,
        "sessions": manifest.sessions,
        "events": manifest.events,
        "items": manifest.items,
        "items_outside_the_catalog": manifest.outside_items,
        "sessions_per_user": _spread(np.concatenate(per_user)),
        "events_per_session": _spread(np.concatenate(lengths)),
        "sessions_of_one_event": int((np.concatenate(lengths) == 1).sum()),
        "from": str(np.datetime64(int(min(first)) // SECOND, "s")),
        "to": str(np.datetime64(int(max(last)) // SECOND, "s")),
        "session_gap": manifest.session_gap,
        "max_session_events": manifest.max_session_events,
        "session_column": manifest.sources.get("columns", {}).get("session"),
        "split": manifest.split,
        "parts": manifest.parts,
        "vectors": None
        if cache.vectors is None
        else {"dim": cache.vectors.shape[1], "dtype": str(cache.vectors.dtype)},
        "shards": len(cache),
        "bytes": cache.bytes,
        "waterfall": manifest.waterfall,
        "sources": manifest.sources,
        "fingerprint": manifest.fingerprint,
    }


def _spread(counts: np.ndarray[Any, np.dtype[np.int64]]) -> dict[str, float]:
    return {
        "median": float(np.median(counts)),
        "mean": round(float(counts.mean()), 2),
        "p95": float(np.quantile(counts, 0.95)),
        "max": int(counts.max()),
    }


def _session_rule(found: dict[str, Any]) -> str:
    rule = f"a gap of {found['session_gap']:g} s begins a session"
    if found["session_column"] is not None:
        rule = f"a new value of {found['session_column']!r} begins a session"
    return f"{rule}, and so does its event after the first {found['max_session_events']:,}"


def describe(found: dict[str, Any]) -> str:
    """The inspection as lines for a person."""

    def spread(of: dict[str, float]) -> str:
        return f"median {of['median']:g}, mean {of['mean']:g}, 95% up to {of['p95']:g}, most {of['max']:,}"

    lines = [
        f"{found['cache']}: {found['users']:,} users, {found['sessions']:,} sessions, {found['events']:,} events, "
        f"{found['items']:,} items in the catalog, {found['items_outside_the_catalog']:,} outside",
        f"  from {found['from']} to {found['to']} UTC; {_session_rule(found)}",
        f"  sessions per user   {spread(found['sessions_per_user'])}",
        f"  events per session  {spread(found['events_per_session'])}; {found['sessions_of_one_event']:,} of one event",
        f"  split by {found['split'].get('by')}",
    ]
    for part, counts in found["parts"].items():
        lines.append(
            f"    {part:6} {counts['events']:>12,} events of {counts['users']:,} users, "
            f"{counts['outside_events']:,} on items outside the catalog"
        )
    given = found["vectors"]
    lines.append(f"  item vectors: {'none, they are learned' if given is None else '{dim} × {dtype}'.format(**given)}")
    lines.append(
        f"  {found['shards']} shard(s), {found['bytes'] / 1e6:,.1f} MB; fingerprint {found['fingerprint'][:16]}"
    )
    lines += [
        f"  {step['events']:>13,} events {step['users']:>11,} users {step['items']:>10,} items   {step['step']}"
        for step in found["waterfall"]
    ]
    return "\n".join(lines)
