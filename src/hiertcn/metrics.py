"""Metrics of ranks, per event and per user, with bootstrap intervals over users.

Legend: T ranked targets, U users, Q metrics.
"""

from __future__ import annotations

__all__ = ["METRICS", "Table", "difference", "measure", "per_event", "tabulate"]

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
RESAMPLES = 1000
_BLOCK = 32

_OF_RANK: dict[str, Callable[[Floats, int | Ints], Floats]] = {
    "recall@1": lambda rank, _: (rank <= 1).astype(np.float64),
    "recall@5": lambda rank, _: (rank <= 5).astype(np.float64),
    "recall@10": lambda rank, _: (rank <= 10).astype(np.float64),
    "recall@20": lambda rank, _: (rank <= 20).astype(np.float64),
    "mrr": lambda rank, _: 1 / rank,
    "mrr@20": lambda rank, _: (rank <= 20) / rank,
    "mean_rank_percentile": lambda rank, candidates: rank / candidates,
}
METRICS = tuple(_OF_RANK)


def per_event(ranks: Floats, candidates: int | Ints) -> Floats:
    """[T, Q]: every metric of each target, ranked among `candidates` items (all, or [T], each among its own).

    mean_rank_percentile is rank / candidates (lower is better).
    """
    return np.stack([metric(ranks, candidates) for metric in _OF_RANK.values()], axis=1)


@dataclass(frozen=True)
class Table:
    """Metrics of one set of targets: `event` weighs each target alike, `user` each user alike; with 95% intervals."""

    targets: int
    users: int
    event: dict[str, float]
    user: dict[str, float]
    event_interval: dict[str, tuple[float, float]]
    user_interval: dict[str, tuple[float, float]]


def _per_user(values: Floats, users: Ints) -> tuple[Floats, Ints]:
    """Sums [U, Q] and counts [U] of `values` [T, Q] over the users of targets [T]."""
    _, index, count = np.unique(users, return_inverse=True, return_counts=True)
    sums: Floats = np.stack([np.bincount(index, weights=column, minlength=len(count)) for column in values.T], axis=1)
    return sums, count.astype(np.int64)


def tabulate(values: Floats, users: Ints, *, resamples: int = RESAMPLES, seed: int = 0) -> Table:
    """The table of `values` [T, Q] (see per_event) with `users` [T], the user of each target."""
    sums, count = _per_user(values, users)
    if not len(count):
        nothing = dict.fromkeys(METRICS, float("nan"))
        none = dict.fromkeys(METRICS, (float("nan"), float("nan")))
        return Table(0, 0, nothing, nothing, none, none)
    means = sums / count[:, None]
    events, people = _bootstrap(sums, count, means, resamples, seed)
    return Table(
        targets=len(values),
        users=len(count),
        event=_named(sums.sum(0) / count.sum()),
        user=_named(means.mean(0)),
        event_interval=_intervals(events),
        user_interval=_intervals(people),
    )


def measure(ranks: Floats, users: Ints, candidates: int | Ints, *, resamples: int = RESAMPLES, seed: int = 0) -> Table:
    """The table of `ranks` [T] among `candidates` items."""
    return tabulate(per_event(ranks, candidates), users, resamples=resamples, seed=seed)


def difference(
    ours: Floats, theirs: Floats, users: Ints, candidates: int | Ints, *, resamples: int = RESAMPLES, seed: int = 0
) -> Table:
    """The table of paired differences, ours − theirs, of two models' ranks [T] of the same targets."""
    return tabulate(per_event(ours, candidates) - per_event(theirs, candidates), users, resamples=resamples, seed=seed)


def _bootstrap(sums: Floats, count: Ints, means: Floats, resamples: int, seed: int) -> tuple[Floats, Floats]:
    """Metrics [resamples, Q] per event and per user, of users drawn again with replacement."""
    rng = np.random.default_rng(seed)
    users = len(count)
    events, people = [], []
    for begin in range(0, resamples, _BLOCK):
        drawn = rng.integers(0, users, (min(_BLOCK, resamples - begin), users))
        weights = np.stack([np.bincount(row, minlength=users) for row in drawn]).astype(np.float64)
        events.append(weights @ sums / (weights @ count)[:, None])
        people.append(weights @ means / users)
    return np.concatenate(events), np.concatenate(people)


def _named(values: Floats) -> dict[str, float]:
    return dict(zip(METRICS, values.tolist(), strict=True))


def _intervals(samples: Floats) -> dict[str, tuple[float, float]]:
    low, high = np.quantile(samples, [0.025, 0.975], axis=0)
    return {name: (float(a), float(b)) for name, a, b in zip(METRICS, low, high, strict=True)}
