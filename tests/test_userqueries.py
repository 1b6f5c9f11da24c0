"""Every user's current query is what the same user gets one at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from hiertcn import userqueries
from hiertcn.cli import app
from hiertcn.errors import InputError
from hiertcn.models import HierTCNConfig
from hiertcn.preparation import prepare
from hiertcn.recommender import Recommender
from hiertcn.userqueries import write_user_queries
from people import FULL, START, run_of
from test_recommender import random_cache


def test_queries_are_those_of_each_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = random_cache(tmp_path / "cache", users=30)
    run = run_of(tmp_path / "run", FULL, cache.catalog)
    assert run.max_session_events == cache.manifest.max_session_events
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


def test_a_session_that_is_full_is_over(tmp_path: Path) -> None:
    log = pl.DataFrame(
        {
            "user": ["u"] * 6 + ["v"] * 5,
            "item": list("abcabcbcabc"),
            "ts": [START + 60 * k for k in range(11)],
        }
    )
    cache = prepare(log, tmp_path / "cache", max_session_events=3)
    run = run_of(tmp_path / "run", FULL, cache.catalog, longest=3)
    write_user_queries(run, cache, tmp_path / "users.parquet")
    found = dict(zip("uv", pq.read_table(tmp_path / "users.parquet")["query"].to_pylist(), strict=True))
    with Recommender.load(run) as rec:
        for user, item, time in log.rows():
            rec.observe(user, item, time)
        for user in "uv":
            np.testing.assert_allclose(np.array(found[user], np.float32), rec.query(user), atol=2e-3)


def test_a_model_whose_scores_are_no_inner_products_is_refused(tmp_path: Path) -> None:
    cache = random_cache(tmp_path / "cache")
    run = run_of(tmp_path / "run", HierTCNConfig(dim=4, head="softmax"), cache.catalog)
    with pytest.raises(InputError, match="not inner products"):
        write_user_queries(run, cache, tmp_path / "users.parquet")
    assert not (tmp_path / "users.parquet").exists()


def test_an_items_score_is_the_product_of_what_was_written(tmp_path: Path) -> None:
    cache = random_cache(tmp_path / "cache")
    run = run_of(tmp_path / "run", FULL, cache.catalog)
    done = CliRunner().invoke(
        app,
        [
            "embed-users",
            str(run.path),
            str(cache.path),
            "--out",
            str(tmp_path / "u.parquet"),
            "--items",
            str(tmp_path / "i.parquet"),
        ],
    )
    assert done.exit_code == 0
    users, items = pl.read_parquet(tmp_path / "u.parquet"), pl.read_parquet(tmp_path / "i.parquet")
    assert items["item_id"].to_list() == cache.catalog.ids.to_list()
    vectors = np.array(items["vector"].to_list(), dtype=np.float32)
    np.testing.assert_allclose(vectors, run.model.vectors.detach()[1:].numpy(), atol=1e-3)
    scores = np.array(users["query"].to_list(), dtype=np.float32) @ vectors.T
    with torch.inference_mode():
        expected = run.model.score(torch.tensor(users["query"].to_list(), dtype=torch.float32))
    np.testing.assert_allclose(scores, expected, atol=0.02)
