"""Vectors out of a log: against their formula, on planted communities, and what they tell of held-out sessions."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from hiertcn.cache import Cache
from hiertcn.cli import app
from hiertcn.embedding import cooccurrence, item_to_item, svd_vectors, write_items
from hiertcn.preparation import prepare
from logs import BEGIN

GAP = 1800


def communities(path: Path, seed: int = 0) -> Cache:
    """Sessions of 2 to 7 picks out of one of four communities of six items; item x is picked alone in its sessions."""
    rng = np.random.default_rng(seed)
    rows, now = [], BEGIN
    for session in range(800):
        user, community = session % 40, int(rng.integers(4))
        now += 10_000
        picks = rng.choice(6, int(rng.integers(2, 8))) + 6 * community
        rows += [(user, f"i{pick:02}", now + 60 * k) for k, pick in enumerate(picks)]
    rows += [(user, "x", BEGIN - 10_000) for user in range(40)]
    log = pl.DataFrame(rows, schema=["user", "item", "ts"], orient="row")
    return prepare(log, path, session_gap=GAP, split="last", events_per_shard=500)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return communities(tmp_path_factory.mktemp("log") / "cache")


def part_sessions(cache: Cache, part: int) -> list[list[int]]:
    out = []
    for index in range(len(cache)):
        sessions = cache.shard(index).sessions
        for begin, end in pairwise(sessions.session_offsets):
            kept = sessions.parts[begin:end] == part
            out.append([int(row) for row in sessions.items[begin:end][kept] if row <= cache.manifest.items])
    return out


@pytest.mark.parametrize("window", [1, 3])
def test_counts_are_those_of_a_slow_loop(cache: Cache, window: int) -> None:
    size = cache.manifest.items + 1
    expected = np.zeros((size, size))
    for items in part_sessions(cache, 0):
        for at, item in enumerate(items):
            for other in items[at + 1 : at + 1 + window]:
                if other != item:
                    expected[item, other] += 1
                    expected[other, item] += 1
    np.testing.assert_array_equal(cooccurrence(cache, window).toarray(), expected)


def test_vectors_factorise_the_mutual_information(cache: Cache) -> None:
    """Of as many dimensions as there are items, their products are the matrix itself, up to the lengths of rows."""
    counts = cooccurrence(cache, 3)
    dense = counts.toarray()
    context = dense.sum(0) ** 0.75
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.log(dense / (dense.sum(1)[:, None] * context[None, :] / context.sum()))
    information = np.where(dense > 0, np.maximum(information, 0), 0)
    left, strength, _ = np.linalg.svd(information)
    expected = left * np.sqrt(strength)
    found = svd_vectors(counts, len(dense), seed=0)
    kept = dense.sum(1) > 0
    expected = expected[kept] / np.linalg.norm(expected[kept], axis=1, keepdims=True)
    np.testing.assert_allclose(found[kept] @ found[kept].T, expected @ expected.T, atol=1e-3)
    assert not found[~kept].any()
    np.testing.assert_array_equal(found, svd_vectors(counts, len(dense), seed=0))


def test_planted_communities_are_found(cache: Cache) -> None:
    vectors = svd_vectors(cooccurrence(cache), 4, seed=0)
    names = cache.catalog.ids.to_list()
    assert not vectors[1 + names.index("x")].any()
    community = np.array([-1 if name == "x" else int(name[1:]) // 6 for name in names])
    found = vectors[1:][community >= 0]
    same = community[community >= 0][:, None] == community[community >= 0][None, :]
    near = found @ found.T
    assert near[same].min() > 0.8
    assert near[~same].max() < 0.3


def test_item_to_item_is_counted_as_by_a_slow_loop(cache: Cache) -> None:
    vectors = svd_vectors(cooccurrence(cache), 4, seed=0)
    vectors[5] = 0
    has = vectors.any(1)
    hits = pairs = popular = missing = 0
    top = np.argsort(-cache.catalog.train_events, kind="stable")[:20]
    for items in part_sessions(cache, 2):
        for item, other in pairwise(items):
            if item == other:
                continue
            pairs += 1
            popular += other in top
            missing += not (has[item] and has[other])
            scores = vectors @ vectors[item]
            scores[[item, *np.flatnonzero(~has)]] = -np.inf
            hits += has[item] and has[other] and other in np.argsort(-scores)[:20]
    found = item_to_item(cache, vectors)
    assert (found.pairs, found.without_vector) == (pairs, missing)
    assert found.of_popular == pytest.approx(popular / pairs)
    assert found.recall_at_20 == pytest.approx(hits / pairs, abs=0.02)
    assert found.recall_at_20 > 0.8


def test_the_list_is_one_that_prepare_takes(cache: Cache, tmp_path: Path) -> None:
    vectors = svd_vectors(cooccurrence(cache), 5, seed=0)
    assert write_items(tmp_path / "items.parquet", cache.catalog, vectors) == 24
    again = prepare(
        pl.DataFrame(
            {"user": [1, 1, 1, 2, 2], "item": ["i01", "x", "i02", "i02", "i01"], "ts": [BEGIN + k for k in range(5)]}
        ),
        tmp_path / "again",
        catalog=tmp_path / "items.parquet",
    )
    assert again.vectors is not None
    assert again.manifest.items == 24
    np.testing.assert_array_equal(again.vectors[again.catalog.row("i01")], vectors[cache.catalog.row("i01")])


def test_the_command_line_embeds_a_log_and_a_cache(cache: Cache, tmp_path: Path) -> None:
    ask = CliRunner().invoke
    pl.DataFrame({"user": [1, 1, 2, 2] * 9, "item": list("abab") * 9, "ts": [BEGIN + k for k in range(36)]}).write_csv(
        tmp_path / "log.csv"
    )
    options = ["--out", str(tmp_path / "a.parquet"), "--dim", "3", "--session-gap", "600"]
    assert ask(app, ["embed", str(tmp_path / "log.csv"), *options]).exit_code == 0
    assert pl.read_parquet(tmp_path / "a.parquet")["item_id"].to_list() == ["a", "b"]
    done = ask(app, ["embed", str(cache.path), "--out", str(tmp_path / "b.parquet"), "--dim", "4"])
    assert done.exit_code == 0
    assert pl.read_parquet(tmp_path / "b.parquet").height == 24
