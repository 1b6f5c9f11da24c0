"""Every user's current query is what the same user gets one at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from hiertcn import userqueries
from hiertcn.errors import InputError
from hiertcn.models import HierTCNConfig
from hiertcn.recommender import Recommender
from hiertcn.userqueries import write_user_queries
from people import FULL, run_of
from test_recommender import random_cache


def test_queries_are_those_of_each_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = random_cache(tmp_path / "cache", users=30)
    run = run_of(tmp_path / "run", FULL, cache.catalog)
    monkeypatch.setattr(userqueries, "EVENTS_TOGETHER", 40)
    assert write_user_queries(run.path, cache, tmp_path / "users.parquet") == 30
    table = pq.read_table(tmp_path / "users.parquet")
    assert str(table.schema.field("query").type) == "fixed_size_list<element: halffloat>[8]"
    found = np.stack(table["query"].to_numpy())
    names = cache.catalog.items["item_id"]
    expected, ids = [], []
    with Recommender.load(run) as rec:
        for index in range(len(cache)):
            shard = cache.shard(index)
            for user, (begin, end) in enumerate(
                zip(shard.sessions.event_offsets[:-1], shard.sessions.event_offsets[1:], strict=True)
            ):
                for at in range(begin, end):
                    item = names[int(shard.sessions.items[at]) - 1]
                    rec.observe(shard.user_ids[user], item, float(shard.sessions.times[at] / 1e6))
                expected.append(rec.query(shard.user_ids[user]))
                ids.append(shard.user_ids[user])
    assert table["user_id"].to_pylist() == ids
    np.testing.assert_allclose(found.astype(np.float32), np.stack(expected), atol=2e-3)


def test_a_model_whose_scores_are_no_inner_products_is_refused(tmp_path: Path) -> None:
    cache = random_cache(tmp_path / "cache")
    run = run_of(tmp_path / "run", HierTCNConfig(dim=4, head="softmax"), cache.catalog)
    with pytest.raises(InputError, match="not inner products"):
        write_user_queries(run, cache, tmp_path / "users.parquet")
    assert not (tmp_path / "users.parquet").exists()
