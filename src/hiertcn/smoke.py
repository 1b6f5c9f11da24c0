"""What a model has to show before it takes over from another: that it still knows the items, and answers people."""

from __future__ import annotations

__all__ = ["check_answers", "check_catalog"]

import time
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from hiertcn.door import Ask, Event
from hiertcn.errors import ArtifactError
from hiertcn.exported import Exported
from hiertcn.recommender import LATENESS, Recommender
from hiertcn.retrieval import ExactIndex, Index
from hiertcn.served import Served
from hiertcn.states import MemoryStates

PEOPLE, PICKS, BEST = 32, 8, 50
RECALL = 0.9
"""Of the 50 best, the share that an index has to find; one that is well built finds 0.97."""
SLOWEST = 0.05
"""Seconds of one core for an answer: ten times what a large model takes."""
_START = 1_700_000_000


def check_catalog(model: Served, current: Served, allow_shrink: bool) -> None:
    """Raise ArtifactError if `model` has nothing to recommend; and, unless `allow_shrink`, if it can't recommend half
    of the items that `current` can."""
    ours, theirs = _rankable(model), _rankable(current)
    if not ours.len():
        raise ArtifactError(f"{model.path} has no item to recommend. Train it on a log that has some, or take it back.")
    kept = int(theirs.is_in(ours.implode()).sum())
    if not allow_shrink and 2 * kept < theirs.len():
        raise ArtifactError(
            f"{model.path} holds {kept:,} of the {theirs.len():,} items that are recommended now; expected half of "
            'them at least. If that is meant, say "allow_shrink": true.'
        )


def check_answers(model: Exported, vectors: npt.NDArray[Any], index: Index, seed: int = 0) -> None:
    """Raise ArtifactError unless made-up people get answers of finite scores, in time, and `index` finds nearly all of
    the best items. vectors: [n + 1, Q], what it was built over, as of `compared`."""
    random, rankable = np.random.default_rng(seed), _rankable(model)
    trial = Recommender(model, MemoryStates(), index=index)
    picked = rankable.gather(random.integers(0, rankable.len(), PEOPLE * PICKS)).to_list()
    # Half of the picks are of a session that is over, so that states are folded, too.
    pause = model.session_gap + 2 * LATENESS
    times = [_START + 30 * at + (pause if 2 * at >= PICKS else 0) for at in range(PICKS)]
    people = [f"person {number}" for number in range(PEOPLE)]
    asks = [Ask(user, BEST) for user in people]
    trial.observe_many(
        [
            Event(user, picked[number * PICKS + at], times[at])
            for number, user in enumerate(people)
            for at in range(PICKS)
        ]
    )
    trial.recommend_many(asks[:1])
    # Of this thread alone: what else the machine does is no fault of the model.
    begun = time.thread_time()
    answers = trial.recommend_many(asks)
    spent = (time.thread_time() - begun) / PEOPLE
    least = min(BEST, rankable.len())
    for found in answers:
        if len(found) < least or not np.isfinite([one.score for one in found]).all():
            raise ArtifactError(
                f"{model.path} gives a person {len(found)} items, or scores that are no numbers; expected {least} "
                "items of finite scores. Train and export it again."
            )
    if spent > SLOWEST:
        raise ArtifactError(
            f"{model.path} takes {1000 * spent:.0f} ms for an answer; expected {1000 * SLOWEST:.0f} ms at most. Serve "
            "a smaller one, or by another --index."
        )
    if not index.exact:
        _check_recall(model, vectors, index, np.stack([trial.query(user) for user in people]))


def _check_recall(model: Exported, vectors: npt.NDArray[Any], index: Index, queries: npt.NDArray[Any]) -> None:
    queries = queries if model.bias is None else np.insert(queries, queries.shape[1], 1.0, axis=1)
    best = min(BEST, model.catalog.size)
    with ExactIndex(vectors) as exact:
        right = exact.search(queries, best)[1]
    found = index.search(queries, best)[1]
    # By scores, since of items that tie any will do.
    recall = float((found >= right[:, -1:] - 1e-5 * np.abs(right[:, -1:])).mean())
    if recall < RECALL:
        raise ArtifactError(
            f"The index finds {recall:.0%} of the {best} best items of {model.path}; expected {RECALL:.0%}. Serve it "
            "by --index exact, or train it again."
        )


def _rankable(model: Served) -> pl.Series:
    """The ids of the items that it may recommend, as text."""
    rankable = np.ones(model.catalog.size, dtype=bool)
    rankable[model.withdrawn - 1] = False
    return model.catalog.ids.filter(pl.Series(rankable)).cast(pl.String)
