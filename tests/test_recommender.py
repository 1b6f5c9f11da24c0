"""One person gets what evaluation computes, event by event and by a whole history at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from caches import cache_of
from hiertcn.answers import Recommendation
from hiertcn.artifact import Run
from hiertcn.cache import Cache
from hiertcn.errors import ArtifactError, InputError
from hiertcn.histories import history_in_cache
from hiertcn.preparation import prepare
from hiertcn.ranking import rank, ranking_batches
from hiertcn.recommender import Recommender
from hiertcn.streams import known_rows
from people import FULL, GAP, KINDS, START, assert_alike, catalog_of, five_items, run_of

ITEMS = 12
WAITS = [0, 1, 60, GAP - 1, GAP, GAP + 1, 90_000, 700_000]


def random_cache(path: Path, users: int = 7, seed: int = 0) -> Cache:
    """Users on known and unknown items (rows above ITEMS) and at every gap that matters; the last third is tested."""
    rng = np.random.default_rng(seed)
    lines = []
    for user in range(users):
        count = int(rng.integers(3, 25))
        items = np.where(
            rng.random(count) < 0.25, rng.integers(ITEMS + 1, ITEMS + 4, count), rng.integers(1, ITEMS + 1, count)
        )
        times = START + np.cumsum(rng.choice(WAITS, count))
        late = np.arange(count) >= 2 * count // 3
        # As `prepare` orders them: by time, then by id.
        ordered = sorted(zip(times.tolist(), items.tolist(), strict=True), key=lambda one: (one[0], f"i{one[1]}"))
        lines.append((f"u{user}", [i for _, i in ordered], times.tolist(), np.where(late, "test", "train").tolist()))
    return cache_of(path, lines, GAP, catalog_size=ITEMS, shards=2)


def middle_rank(found: list[Recommendation], item: str) -> float:
    scores = {r.item: r.score for r in found}
    above = sum(score > scores[item] for score in scores.values())
    return above + (sum(score == scores[item] for score in scores.values()) + 1) / 2


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return random_cache(tmp_path_factory.mktemp("log") / "cache")


@pytest.fixture
def rec(tmp_path: Path) -> Recommender:
    return five_items(tmp_path / "run")


# A model that hears everybody depends on the order of all their events: see test_boosts.py.
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "trending"])
def test_each_target_is_ranked_as_in_evaluation(tmp_path: Path, cache: Cache, kind: str) -> None:
    run = run_of(tmp_path / "run", KINDS[kind], cache.catalog)
    batches = ranking_batches(cache, "test", known_rows(cache.catalog))
    expected = rank(run.model, batches, batches.rows, top=3)
    ranks = dict(zip(expected.events.tolist(), expected.ranks, strict=True))
    top = dict(zip(expected.events.tolist(), expected.top, strict=True))
    names = cache.catalog.items["item_id"]
    compared = event = 0
    with Recommender.load(run) as rec:
        for index in range(len(cache)):
            sessions, ids = cache.shard(index).sessions, cache.shard(index).user_ids
            for user in range(len(ids)):
                known: list[str] = []
                times: list[float] = []
                for at in range(*sessions.event_offsets[user : user + 2]):
                    item, time = names[int(sessions.items[at]) - 1], float(sessions.times[at] / 1e6)
                    found = rec.recommend(ids[user], ITEMS, time=time)
                    if not any(name in cache.catalog.ids for name in known):
                        assert {r.source for r in found} == {"popular"}
                    elif event in ranks:
                        if not np.isnan(ranks[event]):
                            assert middle_rank(found, item) == ranks[event]
                            compared += 1
                        if len({r.score for r in found}) == ITEMS:
                            assert [r.item for r in found[:3]] == names.gather(top[event] - 1).to_list()
                    rec.observe(ids[user], item, time)
                    known, times, event = [*known, item], [*times, time], event + 1
                assert_alike(rec.recommend_history(known, times, ITEMS), rec.recommend(ids[user], ITEMS))
    assert compared > 20


moments = st.lists(st.tuples(st.integers(1, 8), st.sampled_from(WAITS)), max_size=25)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    folder = tmp_path_factory.mktemp("runs")
    return [
        run_of(folder / str(k), config, catalog_of("abcde"), longest=2 + k % 3 * 10)
        for k, config in enumerate(KINDS.values())
    ]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example([(1, 0), (1, 0), (1, GAP), (1, 0)], list(KINDS).index("full"), False, 1)
@given(moments, st.integers(0, len(KINDS) - 1), st.booleans(), st.integers(1, 7))
def test_event_by_event_is_the_whole_history(
    runs: list[Run], events: list[tuple[int, int]], kind: int, exclude: bool, k: int
) -> None:
    rec = Recommender.load(runs[kind])
    items = ["abcdexyz"[row - 1] for row, _ in events]
    times = (START + np.cumsum([wait for _, wait in events])).tolist()
    for item, time in zip(items, times, strict=True):
        rec.observe("u", item, time)
    # The order of ties may differ, so that all items are asked for.
    found = rec.recommend("u", 5, exclude_seen=exclude)
    assert_alike(rec.recommend_history(items, times, 5, exclude_seen=exclude), found)
    assert len(rec.recommend("u", k)) == min(k, 5)
    if exclude:
        assert {r.item for r in found} == set("abcde") - set(items)


def test_a_history_may_come_in_any_order(rec: Recommender) -> None:
    items, times = ["a", "b", "c", "d"], [START, START + 9000, START + 9060, START + 99_000]
    expected = rec.recommend_history(items, times)
    assert_alike(rec.recommend_history(["c", "a", "d", "b"], [times[k] for k in (2, 0, 3, 1)]), expected)
    with pytest.raises(InputError, match="2 items and 1 times"):
        rec.recommend_history(["a", "b"], [START])
    with pytest.raises(InputError, match="2 items and 3 sessions"):
        rec.recommend_history(["a", "b"], [START, START], sessions=[1, 2, 3])


@pytest.mark.parametrize("items", ["abcdefabcd", "abxxxcdefa"])
def test_sessions_that_are_full_are_those_of_evaluation(tmp_path: Path, items: str) -> None:
    """And a session that begins for no other reason than that knows nothing of its first event's time."""
    times = START + 100 * np.arange(10)
    scores = []
    for moved in (0, 70):
        at = times.copy()
        at[6:] += moved
        log = pl.DataFrame({"user": ["u"] * 10 + ["w"] * 6, "item": [*items, *"abcdef"], "ts": [*at, *at[:6]]})
        cache = prepare(
            log, tmp_path / f"cache{moved}", max_session_events=3, split="time", cuts=(int(at[6]), int(at[6]))
        )
        run = run_of(tmp_path / f"run{moved}", FULL, cache.catalog, longest=3)
        batches = ranking_batches(cache, "test", known_rows(cache.catalog))
        (batch,) = batches
        with torch.inference_mode():
            queries, _ = run.model(batch, run.model.zero_state(len(batch.user_sessions)))
        scores.append(run.model.score(queries[batch.positions])[0])
        expected = rank(run.model, batches, batches.rows).ranks
        with Recommender.load(run) as rec:
            for number, (item, time) in enumerate(zip(items, at.tolist(), strict=True)):
                if number >= 6 and not np.isnan(expected[number - 6]):
                    # The model asked at the event's own time, and without: it makes no difference within a session.
                    assert middle_rank(rec.recommend("u", 6), item) == expected[number - 6]
                    assert middle_rank(rec.recommend("u", 6, time=time), item) == expected[number - 6]
                rec.observe("u", item, time)
    torch.testing.assert_close(*scores)


def test_sessions_that_are_named_are_those_of_the_log(tmp_path: Path) -> None:
    """Ranked as in evaluation, where the log's own session column decides."""
    rng = np.random.default_rng(0)
    log = pl.DataFrame(
        {
            "user": np.repeat(["u", "v", "w"], 40),
            "item": rng.choice(list("abcdef"), 120),
            "ts": START + np.tile(np.arange(40) * 600, 3),
            "visit": np.tile(np.repeat(["x", "y", "x", "z"], [7, 1, 20, 12]), 3),
        }
    )
    cache = prepare(log, tmp_path / "cache", session_column="visit", fractions=(0.95, 0.0, 0.05))
    run = run_of(tmp_path / "run", FULL, cache.catalog)
    batches = ranking_batches(cache, "test", known_rows(cache.catalog))
    expected = rank(run.model, batches, batches.rows).ranks
    with Recommender.load(run) as rec:
        by_gap = []
        for number, user in enumerate("uvw"):
            mine = log.filter(pl.col("user") == user)
            # Targets are the last two of each user; what is asked here is the second of them, in a running session.
            items, times, visits = (mine[name].to_list() for name in ("item", "ts", "visit"))
            found = rec.recommend_history(items[:-1], times[:-1], 6, sessions=visits[:-1])
            assert middle_rank(found, items[-1]) == expected[2 * number + 1]
            whole = history_in_cache(cache, user)
            assert (whole.items, whole.times) == (items, times)
            again = rec.recommend_history(whole.items[:-1], whole.times[:-1], 6, sessions=whole.sessions[:-1])
            assert_alike(again, found)
            by_gap.append(rec.recommend_history(items[:-1], times[:-1], 6))
        assert any(abs(a.score - b.score) > 1e-4 for a, b in zip(by_gap[-1], found, strict=True))


def test_time_within_the_session_changes_nothing_and_a_pause_does(rec: Recommender) -> None:
    for wait, item in ((0, "a"), (5000, "b"), (5060, "c")):
        rec.observe("u", item, START + wait)
    running = rec.recommend("u")
    assert rec.recommend("u", time=START + 5060) == running
    assert rec.recommend("u", time=START + 5060 + GAP - 1) == running
    later = rec.recommend("u", time=START + 5060 + GAP)
    assert later != running
    assert rec.recommend("u", time=START + 5060 + 40 * GAP) != later
    # Asking has stored nothing.
    assert rec.recommend("u") == running
    rec.observe("u", "x", START + 5060 + GAP)
    assert_alike(rec.recommend("u"), later)


def test_a_session_of_unknown_items_is_never_folded(rec: Recommender) -> None:
    def after(waits: Sequence[int], items: str) -> np.ndarray:
        rec.delete("u")
        for wait, item in zip(waits, items, strict=True):
            rec.observe("u", item, START + wait)
        return rec.query("u")

    np.testing.assert_allclose(after([0, 9000, 90_000], "axb"), after([0, 90_000], "ab"), atol=1e-6)
    # But an unknown item at its begin or end moves the begin or end of a session.
    assert np.abs(after([0, 1700, 90_000], "axb") - after([0, 90_000], "ab")).max() > 1e-6
    assert np.abs(after([0, 88_300, 90_000], "axb") - after([0, 90_000], "ab")).max() > 1e-6


def test_nobody_knows_a_person_without_known_items(rec: Recommender) -> None:
    popular = [Recommendation(item, 3.0 * (5 - k), None, "popular") for k, item in enumerate("abcde")]
    popular[0], popular[4] = popular[0]._replace(title="Apple"), popular[4]._replace(title="Elder")
    assert rec.recommend("u") == popular
    assert rec.recommend("u", 2, exclude_seen=True, time=START) == popular[:2]
    assert rec.recommend_history([], []) == popular
    assert rec.recommend_history(["x", "y"], [START, START + 5]) == popular
    rec.observe("u", "x", START)
    assert rec.recommend("u") == popular
    rec.observe("u", "b", START)
    assert {r.source for r in rec.recommend("u")} == {"model"}
    assert rec.query("nobody").shape == rec.query("u").shape


def test_titles_come_along(rec: Recommender) -> None:
    rec.observe("u", "a", START)
    assert {r.item: r.title for r in rec.recommend("u")} == dict.fromkeys("bcd") | {"a": "Apple", "e": "Elder"}


def test_seen_items_are_left_out_until_nothing_is_left(rec: Recommender) -> None:
    for k, item in enumerate("abcdxe"):
        assert {r.item for r in rec.recommend("u", exclude_seen=True)} == set("abcde") - set("abcdx"[:k])
        rec.observe("u", item, START + 1000 * k)
    assert rec.recommend("u", exclude_seen=True) == []
    assert len(rec.recommend("u")) == 5


def test_a_deleted_user_is_unknown(rec: Recommender) -> None:
    rec.observe("u", "a", START)
    rec.observe("v", "a", START)
    rec.delete("u")
    assert rec.recommend("u")[0].source == "popular"
    assert rec.recommend("v")[0].source == "model"
    rec.observe("u", "a", START - 1000)


def test_states_outlive_the_recommender(tmp_path: Path) -> None:
    run, url = run_of(tmp_path / "run", FULL, catalog_of("abcde")), f"sqlite:///{tmp_path / 'states.db'}"
    times = [START, START + 60, START + 9000]
    for item, time in zip("abc", times, strict=True):
        with Recommender.load(run, url) as rec:
            rec.observe("u", item, time)
    with Recommender.load(run.path, url) as rec:
        assert_alike(rec.recommend("u"), rec.recommend_history("abc", times))


def test_a_damaged_model_makes_no_store(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", FULL, catalog_of("abcde"))
    next(run.path.glob("model-*")).write_bytes(b"damage")
    with pytest.raises(ArtifactError):
        Recommender.load(run.path, f"sqlite:///{tmp_path / 'states.db'}")
    with pytest.raises(ArtifactError, match="not a model directory"):
        Recommender.load(tmp_path)
    assert not (tmp_path / "states.db").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_and_the_random_state_stay_as_they_were(tmp_path: Path, kind: str) -> None:
    run = run_of(tmp_path / "run", KINDS[kind], catalog_of("abcde"))
    rec = Recommender.load(run)
    weights = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    seed = torch.random.get_rng_state()
    for wait, item in ((0, "a"), (9000, "b"), (9060, "x")):
        rec.observe("u", item, START + wait)
        first = rec.recommend("u", exclude_seen=True)
        assert rec.recommend("u", exclude_seen=True) == first
    assert torch.equal(torch.random.get_rng_state(), seed)
    assert not torch.is_inference_mode_enabled()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in run.model.state_dict().items())
    assert not any(parameter.is_inference() for parameter in run.model.parameters())
