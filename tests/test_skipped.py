"""What was shown beside earlier events, as an input: read offline as online, never too early, and worth something."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

from caches import batches_of
from hiertcn.artifact import Run
from hiertcn.cache import Cache
from hiertcn.cli import app
from hiertcn.errors import InputError
from hiertcn.evaluation import evaluate
from hiertcn.models import HierTCNConfig, build
from hiertcn.preparation import prepare
from hiertcn.recommender import Recommender
from hiertcn.settings import TrainConfig
from hiertcn.streams import known_rows
from hiertcn.training import train
from hiertcn.userqueries import current_queries, write_user_queries
from logs import BEGIN
from runs import small_cache

GAP = 1800
ITEMS = [f"i{k:02}" for k in range(12)]
MODEL = HierTCNConfig(dim=16, units=16, channels=(16,), kernel=2, impressions=True)
TRAIN = TrainConfig(epochs=12, patience=12, rows=4, learning_rate=0.01, device="cpu")


def log_of(users: int, seed: int = 0) -> pl.DataFrame:
    """Each event is the first of the two other items that were shown beside the event before it, which stand there in
    any order; every seventh says nothing of what was shown."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        now, item = BEGIN + int(rng.integers(10_000)), int(rng.integers(12))
        for event in range(int(rng.integers(6, 16))):
            now += 60 if rng.random() < 0.8 else GAP
            others = [k for k in rng.permutation(12).tolist() if k != item][:2]
            rows.append(
                (user, ITEMS[item], now, None if event % 7 == 6 else [ITEMS[k] for k in sorted([*others, item])])
            )
            item = min(others)
    return pl.DataFrame(rows, schema=["user", "item", "ts", "shown"], orient="row")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    path = tmp_path_factory.mktemp("log") / "cache"
    return prepare(log_of(150), path, impression_column="shown", session_gap=GAP, split="users", events_per_shard=400)


@pytest.fixture(scope="module")
def run(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(cache, MODEL, TRAIN, tmp_path_factory.mktemp("run") / "run")


def test_a_model_that_reads_impressions_knows_what_the_other_can_not(cache: Cache, run: Run, tmp_path: Path) -> None:
    """Within a session the next item is one of two that were shown: the first of them, by number."""
    blind = train(cache, MODEL.model_copy(update={"impressions": False}), TRAIN, tmp_path / "blind")
    seeing, other = (evaluate(one, cache).segments["event of the session"] for one in (run, blind))
    for name in ("2nd", "3–5"):
        assert seeing[name].event["mrr"] > 0.6 > 0.45 > other[name].event["mrr"]


@pytest.mark.parametrize("rows", [1, 3])
def test_a_batch_holds_what_was_shown_beside_each_item(cache: Cache, rows: int) -> None:
    expected = {
        (row["user"], row["item"], row["ts"]): {*(row["shown"] or []), row["item"]} - {row["item"]}
        for row in log_of(150).iter_rows(named=True)
    }
    at = {}
    for index in range(len(cache)):
        shard = cache.shard(index)
        users = np.repeat(shard.user_ids.to_numpy(), np.diff(shard.sessions.event_offsets))
        at.update(enumerate(zip(users, shard.sessions.items, shard.sessions.times, strict=True), len(at)))
    names, events = cache.catalog.ids.to_list(), 0
    for batch in batches_of(cache, "train", rows=rows):
        for position, event in zip(batch.positions.tolist(), batch.events.tolist(), strict=True):
            user, item, time = at[event]
            beside = batch.skipped[batch.skipped_at == position].tolist()
            assert {names[row - 1] for row in beside} == expected[int(user), names[item - 1], int(time) // 10**6]
            events += 1
    assert events == cache.manifest.parts["train"]["events"]


def test_it_is_read_as_a_mean_and_only_later_in_the_session(cache: Cache) -> None:
    model = build(MODEL, cache.catalog.train_events, seed=0).eval()
    batch = next(iter(batches_of(cache, rows=4, chunk=9)))
    table = model.vectors.detach().numpy()
    expected = np.zeros((len(batch.items), 16))
    for position in range(len(batch.items)):
        beside = batch.skipped[batch.skipped_at == position].numpy()
        if len(beside):
            expected[position] = table[beside].astype(np.float64).mean(0)
    np.testing.assert_allclose(model._skipped(batch).detach().numpy(), expected, atol=1e-6)

    queries, after = model(batch, model.zero_state(len(batch.carried)))
    changed = int(batch.skipped_at[len(batch.skipped_at) // 2])
    rows = torch.where(batch.skipped_at == changed, batch.skipped % 12 + 1, batch.skipped)
    other, after_other = model(replace(batch, skipped=rows), model.zero_state(len(batch.carried)))
    differs = (queries != other).any(dim=1).nonzero().flatten().tolist()
    place = batch.layout.place.tolist()
    assert set(differs) <= set(place[place.index(changed) + 1 :])
    assert all(batch.session[position] == batch.session[changed] for position in differs)
    assert torch.equal(after, after_other)
    assert differs or changed == place[-1] or batch.session[place[place.index(changed) + 1]] != batch.session[changed]


def test_offline_and_online_agree(cache: Cache, run: Run, tmp_path: Path) -> None:
    write_user_queries(run, cache, tmp_path / "users.parquet")
    written = dict(pl.read_parquet(tmp_path / "users.parquet").iter_rows())
    log = log_of(150).filter(pl.col("user") < 12)
    rec = Recommender.load(run)
    for (user,), events in log.group_by("user", maintain_order=True):
        rows = list(events.iter_rows(named=True))
        for row in rows:
            rec.observe(row["user"], row["item"], row["ts"], shown=row["shown"] or ())
        query = rec.query(user)
        np.testing.assert_allclose(query, np.array(written[user]), atol=5e-3)
        whole = rec.recommend_history(
            [row["item"] for row in rows], [row["ts"] for row in rows], 12, shown=[row["shown"] or [] for row in rows]
        )
        found = rec.recommend(user, 12)
        assert [one.item for one in whole] == [one.item for one in found]
        np.testing.assert_allclose([one.score for one in whole], [one.score for one in found], atol=1e-4)
    blind = Recommender.load(run)
    for row in rows:
        blind.observe(row["user"], row["item"], row["ts"])
    assert np.abs(blind.query(user) - query).max() > 1e-3 or rows[-1]["shown"] is None
    ids = run.catalog
    for index in range(len(cache)):
        shard = cache.shard(index)
        queries = np.concatenate(list(current_queries(run.model, shard.sessions, known_rows(ids), GAP, 1000)))
        np.testing.assert_allclose([written[user] for user in shard.user_ids], queries, atol=5e-3)


def test_the_command_line_recommends_from_what_was_shown(cache: Cache, run: Run) -> None:
    done = CliRunner().invoke(app, ["recommend", str(run.path), "--user", "3", "-k", "12"])
    assert done.exit_code == 0
    rows = list(log_of(150).filter(pl.col("user") == 3).iter_rows(named=True))
    found = Recommender.load(run).recommend_history(
        [row["item"] for row in rows], [row["ts"] for row in rows], 12, shown=[row["shown"] or [] for row in rows]
    )
    assert [line.split("\t")[:2] for line in done.stdout.splitlines()] == [
        [str(one.item), f"{one.score:.4f}"] for one in found
    ]


def test_at_most_twenty_known_ones_are_kept(run: Run) -> None:
    rec = Recommender.load(run)
    rec.observe("u", ITEMS[0], BEGIN, shown=["nothing", *ITEMS, *ITEMS])
    first = rec.query("u")
    rec.delete("u")
    rec.observe("u", ITEMS[0], BEGIN, shown=ITEMS[1:])
    np.testing.assert_array_equal(rec.query("u"), first)
    with pytest.raises(InputError, match="item id"):
        rec.observe("u", ITEMS[0], BEGIN + 1, shown=[""])
    for wrong in ("i01", None, 5, {"i01"}):
        with pytest.raises(InputError, match="expected a list of item ids"):
            rec.observe("u", ITEMS[0], BEGIN + 1, shown=wrong)  # type: ignore[arg-type]


def test_what_was_picked_of_a_view_is_not_among_what_was_shown_beside(tmp_path: Path) -> None:
    """Else the first pick of a view would tell the second."""
    log = pl.DataFrame({"user": [1, 1, 2, 2], "item": list("abba"), "ts": [BEGIN, BEGIN + 5] * 2})
    views = pl.DataFrame({"user": [1, 2], "ts": [BEGIN] * 2, "clicked": [["a", "b"]] * 2, "shown": [list("abc")] * 2})
    views.write_parquet(tmp_path / "views.parquet")
    log = pl.concat([log, pl.DataFrame({"user": [1, 2], "item": ["c", "c"], "ts": [BEGIN + 9] * 2})])
    cache = prepare(log, tmp_path / "cache", impressions=tmp_path / "views.parquet", split="users", fractions=(1, 0, 0))
    for batch in batches_of(cache):
        skipped = {cache.catalog.ids[row - 1] for row in batch.skipped.tolist()}
        assert skipped == {"c"}
        assert {cache.catalog.ids[row - 1] for row in batch.shown.flatten().tolist() if row} == {"c"}


def test_a_cache_without_impressions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"read impressions, and .* holds none"):
        train(small_cache(tmp_path / "cache"), MODEL, TRAIN, tmp_path / "run")
