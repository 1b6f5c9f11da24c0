"""What two models that learn nothing would recommend beside the served one: of the same events, by its item vectors.

They are computed here without torch; that they are the models of their names is a test.
"""

from __future__ import annotations

__all__ = ["AVERAGED", "KEPT", "beside"]

import numpy as np
import numpy.typing as npt

from hiertcn.answers import Recommendation
from hiertcn.door import Id, checked_id, checked_k
from hiertcn.recommender import Recommender
from hiertcn.scoring import Limits, best_of
from hiertcn.stock import Stock
from hiertcn.streams import Ints

# Of last items; what the models have that nobody configured.
AVERAGED, KEPT = 10, 50
Scores = npt.NDArray[np.float32]
_NONE = np.zeros(0, dtype=np.int64)


def beside(recommender: Recommender, user: Id, k: int) -> dict[str, list[Recommendation]]:
    """What each model would give `user`, the `k` best first: "moving_average", where the served model compares vectors,
    and "last_items". `source` is "popular" for both where no known item of the user is kept.

    Raises InputError for a bad argument, StorageError and ArtifactError as `Recommender.recommend` does.
    """
    kept, stock = recommender.kept_of(checked_id(user, "user")), recommender.stock
    # Items may be added meanwhile: those that are open now have all that is asked for below.
    limits, is_open = Limits(checked_k(k), _NONE), stock.open
    items = [item for session, _ in (kept.sessions if kept else ()) for item in session]
    rows = np.array([row for row in map(stock.row, items) if 0 < row < len(is_open)], dtype=np.int64)
    popular = stock.popular.astype(np.float32)
    scores = {"moving_average": _averaged(stock, rows), "last_items": _latest_first(popular, rows)}
    if not len(rows):
        scores = {name: None if one is None else popular for name, one in scores.items()}
    source = "model" if len(rows) else "popular"
    return {name: stock.named(best_of(one, limits, is_open), source) for name, one in scores.items() if one is not None}


def _averaged(stock: Stock, rows: Ints) -> Scores | None:
    """[n]: by the mean of the vectors of the last of `rows`; None without vectors."""
    last = stock.model.vectors_of(rows[-AVERAGED:])
    if last is None:
        return None
    query = last.sum(axis=0, keepdims=True, dtype=np.float32) / np.float32(max(len(last), 1))
    scores: Scores = stock.model.score(query)[0]
    return scores


def _latest_first(popular: Scores, rows: Ints) -> Scores:
    """[n]: the last of `rows`, the latest first, then by popularity, which is below 1."""
    scores = np.concatenate([[0], popular / (popular.max(initial=0) + 1)]).astype(np.float32)
    last = rows[-KEPT:]
    np.maximum.at(scores, last, np.arange(KEPT - len(last), KEPT, dtype=np.float32) + 1)
    return scores[1:]
