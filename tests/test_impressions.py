"""What was shown: read in three real shapes, joined as by a slow join, kept, used as negatives and as candidates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hiertcn.batching import SessionBatches
from hiertcn.cache import Cache
from hiertcn.columns import ViewColumns
from hiertcn.errors import InputError
from hiertcn.evaluation import evaluate_model, read_candidates, simple_model
from hiertcn.impressions import MOST, read_views
from hiertcn.models import HierTCNConfig
from hiertcn.preparation import prepare
from hiertcn.ranking import rank, ranking_batches
from hiertcn.settings import TrainConfig
from hiertcn.streams import known_rows
from hiertcn.tables import Layout
from hiertcn.training import train
from logs import BEGIN
from scoring import in_batches

REAL = Path(__file__).parents[2] / "shared" / "data"


def shown_of(cache: Cache) -> dict[tuple[Any, Any, int], set[Any]]:
    """(user, item, seconds) → items shown, of events that have some."""
    out: dict[tuple[Any, Any, int], set[Any]] = {}
    names = cache.catalog.items["item_id"].to_list()
    for index in range(len(cache)):
        shard = cache.shard(index)
        sessions, offsets = shard.sessions, shard.sessions.shown_offsets
        assert offsets is not None
        users = np.repeat(np.arange(len(shard.user_ids)), np.diff(sessions.event_offsets))
        for event in range(len(sessions.items)):
            rows = sessions.shown[offsets[event] : offsets[event + 1]]
            if len(rows):
                key = (
                    shard.user_ids[int(users[event])],
                    names[sessions.items[event] - 1],
                    int(sessions.times[event] // 10**6),
                )
                out[key] = {names[row - 1] for row in rows}
    return out


views = st.lists(
    st.tuples(
        st.sampled_from("uvw"), st.sampled_from("abcde"), st.integers(0, 40), st.lists(st.sampled_from("abcdexyz"))
    ),
    max_size=25,
)
log_events = st.lists(
    st.tuples(st.sampled_from("uv"), st.sampled_from("abcde"), st.integers(0, 40)), min_size=8, max_size=25, unique=True
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(log_events, views, st.integers(0, 20))
def test_views_are_joined_as_by_a_slow_join(
    tmp_path: Path, events: list[tuple[str, str, int]], seen: list[tuple[str, str, int, list[str]]], window: int
) -> None:
    events = [*events, ("u", "a", 50), ("v", "b", 50), ("u", "b", 51), ("v", "a", 51)]
    log = pl.DataFrame(
        {"user": [e[0] for e in events], "item": [e[1] for e in events], "ts": [BEGIN + e[2] for e in events]}
    )
    shown = pl.DataFrame(
        {
            "user": pl.Series([v[0] for v in seen], dtype=pl.String),
            "clicked": pl.Series([v[1] for v in seen], dtype=pl.String),
            "impression_time": pl.Series([BEGIN + v[2] for v in seen], dtype=pl.Int64),
            "shown": pl.Series([v[3] for v in seen], dtype=pl.List(pl.String)),
        }
    )
    shown.write_parquet(tmp_path / "views.parquet")
    options = {"impressions": tmp_path / "views.parquet", "impression_window": window, "fractions": (1.0, 0.0, 0.0)}
    if seen and not any(v[:2] == e[:2] and 0 <= e[2] - v[2] <= window for v in seen for e in events):
        with pytest.raises(InputError, match=r"None of .* picks of views is an event of the log"):
            prepare(log, tmp_path / "cache", overwrite=True, **options)
        return
    cache = prepare(log, tmp_path / "cache", overwrite=True, **options)
    catalog = set(cache.catalog.ids)
    expected = {}
    for user, item, time in events:
        before = [(v[2], place) for place, v in enumerate(seen) if v[:2] == (user, item) and 0 <= time - v[2] <= window]
        if before:
            found = (set(seen[max(before)[1]][3]) & catalog) - {item}
            if found:
                expected[user, item, BEGIN + time] = found
    assert shown_of(cache) == expected


def many_shown(tmp_path: Path, seed: int = 0, **options: Any) -> Cache:
    """Every event was shown with all of 40 items."""
    rng = np.random.default_rng(1)
    items = [f"i{k:02}" for k in range(40)]
    log = pl.DataFrame(
        {
            "user": rng.integers(0, 6, 240),
            "item": rng.choice(items, 240),
            "ts": BEGIN + rng.permutation(240) * 900,
            "shown": pl.Series([items] * 240),
        }
    )
    return prepare(
        log.sample(fraction=1, shuffle=True, seed=seed),
        tmp_path / "cache",
        overwrite=True,
        impression_column="shown",
        **options,
    )


def test_of_many_items_some_are_drawn_by_seed_whatever_the_order_of_rows(tmp_path: Path) -> None:
    first = shown_of(many_shown(tmp_path))
    assert len(first) == 240
    assert {len(items) for items in first.values()} == {MOST}
    assert all(item not in items for (_, item, _), items in first.items())
    assert len({frozenset(items) for items in first.values()}) == 240
    assert shown_of(many_shown(tmp_path, seed=5)) == first
    assert (tmp_path / "cache" / "manifest.json").is_file()


def test_shards_and_streams_hold_what_was_shown(tmp_path: Path) -> None:
    whole = shown_of(many_shown(tmp_path))
    cache = many_shown(tmp_path, events_per_shard=50)
    assert len(cache) > 1
    assert shown_of(cache) == whole
    assert cache.manifest.parts["train"]["events_with_impressions"] == cache.manifest.parts["train"]["events"]
    names = cache.catalog.items["item_id"]
    by_item = {frozenset(items): item for (_, item, _), items in whole.items()}
    for part in ("train", "test"):
        batches = SessionBatches(
            cache, part, item_rows=known_rows(cache.catalog), rows=3, sessions=4, chunk=3, shuffle=True
        )
        targets = 0
        for batch in batches:
            for target, rows in zip(batch.targets.tolist(), batch.shown.tolist(), strict=True):
                shown = {names[row - 1] for row in rows if row}
                if target:
                    matching = [item for items, item in by_item.items() if shown <= items]
                    assert names[target - 1] in matching
                targets += 1
        assert targets == cache.manifest.parts[part]["events"]


def test_a_batch_of_a_log_without_impressions_has_none(tmp_path: Path) -> None:
    log = pl.DataFrame({"user": [1, 1, 2, 2], "item": [1, 2, 1, 2], "ts": BEGIN + np.arange(4)})
    cache = prepare(log, tmp_path / "cache", fractions=(1.0, 0.0, 0.0))
    batches = SessionBatches(
        cache, "train", item_rows=known_rows(cache.catalog), rows=1, sessions=4, chunk=3, shuffle=False
    )
    assert [tuple(batch.shown.shape) for batch in batches] == [(4, 0)]


def test_targets_are_ranked_among_what_was_shown(tmp_path: Path) -> None:
    cache = many_shown(tmp_path)
    model = simple_model("popularity", cache.catalog)
    found = evaluate_model(model, cache.catalog, cache, "test", candidates="impressions")
    counts = dict(zip(cache.catalog.ids, cache.catalog.train_events[1:], strict=True))
    expected = []
    for (_, item, _), items in shown_of(cache).items():
        if item in counts:
            others = [counts[other] for other in items]
            above, equal = sum(n > counts[item] for n in others), sum(n == counts[item] for n in others)
            expected.append(1 + above + equal / 2)
    ranks = found.ranks.ranks[found.ranked]
    assert set(ranks) <= set(expected)
    assert set(found.ranks.among[found.ranked]) == {MOST + 1}
    assert found.table.event["mean_rank_percentile"] == pytest.approx((ranks / (MOST + 1)).mean())
    assert "21.0 (mean) items" in str(found)


@pytest.mark.parametrize("chosen", [3, 1000])
def test_targets_are_ranked_among_items_drawn(tmp_path: Path, chosen: int) -> None:
    cache = many_shown(tmp_path)
    run = train(
        cache, HierTCNConfig(dim=4, units=4, channels=(4,)), TrainConfig(epochs=1, device="cpu"), tmp_path / "run"
    )
    batches = ranking_batches(cache, "test", known_rows(cache.catalog))
    whole = rank(run.model, batches, batches.rows)
    found = rank(run.model, batches, batches.rows, candidates=chosen, seed=3, block=50)
    again = rank(run.model, batches, batches.rows, candidates=chosen, seed=3)
    np.testing.assert_array_equal(found.ranks, again.ranks)
    kept = ~np.isnan(whole.ranks)
    # Drawn with replacement from all others, so that on average a rank is the share of the whole's.
    share = (found.ranks[kept] - 1) / (found.among[kept] - 1)
    expected = (whole.ranks[kept] - 1) / (cache.manifest.items - 1)
    assert np.abs((share - expected).mean()) < (0.15 if chosen == 3 else 0.01)
    assert (found.among <= chosen + 1).all()


def test_candidates_are_read_from_text() -> None:
    assert [read_candidates(text) for text in ("all", "impressions", "random:7")] == ["all", "impressions", 7]
    for text in ("random", "random:0", "random:x", "7", "", "random:-1"):
        with pytest.raises(InputError, match="expected all, impressions, or random:N"):
            read_candidates(text)


def test_negatives_of_training_are_what_was_shown(tmp_path: Path) -> None:
    """Every event is shown beside the same two items, so these end below all others."""
    rng = np.random.default_rng(1)
    items = [f"i{k}" for k in range(8)]
    log = pl.DataFrame(
        {
            "user": rng.integers(0, 20, 600),
            "item": rng.choice(items, 600),
            "ts": BEGIN + rng.permutation(600) * 900,
            "shown": pl.Series([["i6", "i7"]] * 600),
        }
    )
    cache = prepare(log, tmp_path / "cache", impression_column="shown")
    config = TrainConfig(epochs=8, patience=8, rows=2, loss="bpr", learning_rate=0.02, device="cpu")
    run = train(cache, HierTCNConfig(dim=4, units=4, channels=(4,)), config, tmp_path / "run")
    batches = ranking_batches(cache, "test", known_rows(cache.catalog))
    mean = in_batches(run.model, batches).mean(0)
    assert {cache.catalog.ids[row] for row in mean.argsort()[:2].tolist()} == {"i6", "i7"}


# Real shapes.


def read(name: str, columns: ViewColumns, layout: Layout | None = None) -> pl.DataFrame:
    path = REAL / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return read_views(path, columns, layout or Layout(), tz="UTC")


def test_ebnerd_behaviors() -> None:
    raw = pl.read_parquet(REAL / "ebnerd_tiny44/behaviors.parquet") if (REAL / "ebnerd_tiny44").exists() else None
    found = read("ebnerd_tiny44/behaviors.parquet", ViewColumns(item="article_ids_clicked"))
    assert raw is not None
    assert found.height == raw["article_ids_clicked"].list.len().sum()
    others = raw.filter(pl.col("article_ids_clicked").list.len() > 0).select(
        pl.col("article_ids_inview").list.set_difference("article_ids_clicked").list.len()
        * pl.col("article_ids_clicked").list.len()
    )
    assert found["shown"].list.len().sum() == others.sum().item() > 0
    assert set(found["user"]) == set(raw["user_id"])


def test_mind_behaviors() -> None:
    found = read("mind_small_5000imp/behaviors.tsv", ViewColumns(user="1", time="2", shown="4"), Layout(header=False))
    assert found.height == 7542
    assert found["shown"].explode().n_unique() == 7346
    assert not found["item"].str.contains("-").any()
    assert found["time"].min() >= 1_573_257_600_000_000


def test_ebnerd_negatives_are_joined_to_events(tmp_path: Path) -> None:
    place = REAL / "ebnerd_demo"
    if not place.exists():
        pytest.skip(f"{place} is not there")
    cache = prepare(
        place / "events.parquet",
        tmp_path / "cache",
        impressions=place / "event_negatives.parquet",
        impression_columns="time=ts",
        impression_window=0,
    )
    assert sum(part["events_with_impressions"] for part in cache.manifest.parts.values()) > 21_000


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ({"user": ["u"], "ts": [BEGIN], "shown": [["a-1"]]}, None),
        ({"user": ["u"], "ts": [BEGIN], "shown": [["a"]]}, "not marked with -1 or -0"),
        ({"user": ["u"], "ts": [BEGIN], "item": ["a"]}, "no column of impressions for shown"),
        ({"user": ["u"], "ts": [BEGIN], "item": ["a"], "shown": [3]}, "expected a list, or a text"),
        ({"ts": [BEGIN], "item": ["a"], "shown": [["b"]]}, "no column of impressions for user"),
        ({"user": ["u", "v"], "ts": [BEGIN] * 2, "item": ["a"] * 2, "shown": ["[1]", "[1, 2"]}, r"hold '\[1, 2'"),
    ],
)
def test_files_of_impressions_are_checked(tmp_path: Path, frame: dict[str, Any], message: str | None) -> None:
    pl.DataFrame(frame).write_parquet(tmp_path / "views.parquet")
    if message is None:
        assert read_views(tmp_path / "views.parquet", ViewColumns(), Layout())["item"].to_list() == ["a"]
        return
    with pytest.raises(InputError, match=message):
        read_views(tmp_path / "views.parquet", ViewColumns(), Layout())


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_lists_are_read_in_any_format(tmp_path: Path, suffix: str) -> None:
    frame = pl.DataFrame({"user": [1, 2], "ts": [BEGIN, BEGIN], "clicked": [[1, 2], [3]], "shown": [[1, 2, 3], [3, 4]]})
    path = tmp_path / f"views.{suffix}"
    frame.write_ndjson(path) if suffix == "jsonl" else frame.write_parquet(path)
    found = read_views(path, ViewColumns(), Layout())
    assert [str(item) for item in found["item"]] == ["1", "2", "3"]
    assert [[str(item) for item in items] for items in found["shown"]] == [["3"], ["3"], ["4"]]


def test_options_of_impressions_are_checked(tmp_path: Path) -> None:
    log = pl.DataFrame({"user": [1, 1, 2, 2], "item": [1, 2, 1, 2], "ts": BEGIN + np.arange(4)})
    with pytest.raises(InputError, match="impression_columns is 'a,b'"):
        prepare(log, tmp_path / "cache", impressions=tmp_path / "x.parquet", impression_columns="a,b")
    with pytest.raises(InputError, match="given twice"):
        prepare(log, tmp_path / "cache", impressions=tmp_path / "x.parquet", impression_column="shown")
    cache = prepare(log, tmp_path / "cache", fractions=(0.5, 0.0, 0.5))
    with pytest.raises(InputError, match="has impressions"):
        evaluate_model(
            simple_model("popularity", cache.catalog), cache.catalog, cache, "test", candidates="impressions"
        )
