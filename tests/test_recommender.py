"""One person gets what evaluation computes, event by event and by a whole history at once."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caches import cache_of
from hiertcn.artifact import Run, write_run
from hiertcn.cache import Cache
from hiertcn.catalog import Catalog
from hiertcn.errors import ArtifactError, InputError
from hiertcn.models import CONFIGS, ModelConfig, build
from hiertcn.ranking import rank, ranking_batches
from hiertcn.recommender import Recommendation, Recommender
from hiertcn.streams import known_rows

GAP, ITEMS, START = 1800, 12, 1_700_000_000
SMALL = {
    "hiertcn": {"dim": 8, "units": 6, "channels": (8, 8), "kernel": 3},
    "hrnn": {"dim": 8, "units": 6},
    "gru": {"dim": 8, "units": 6},
    "moving_average": {"dim": 8, "window": 3},
    "last_items": {"window": 4},
}
KINDS: dict[str, ModelConfig] = {name: config(**SMALL.get(name, {})) for name, config in CONFIGS.items()}
for change in (
    {"gap_decay": "fixed", "clock": True},
    {"gap_decay": "learned", "aggregate": "max", "norm": True},
    {"head": "softmax", "clock": True, "channels": (8, 8, 8, 8)},
):
    KINDS[f"hiertcn {change}"] = CONFIGS["hiertcn"](**{**SMALL["hiertcn"], **change})
FULL = KINDS["hiertcn {'gap_decay': 'fixed', 'clock': True}"]
WAITS = [0, 1, 60, GAP - 1, GAP, GAP + 1, 90_000, 700_000]


def run_of(path: Path, config: ModelConfig, catalog: Catalog, gap: float = GAP, seed: int = 0) -> Run:
    """A model directory with weights as they are initialised."""
    path.mkdir(exist_ok=True)
    write_run(path, build(config, catalog.train_events, seed), config, catalog, {"session_gap": gap})
    return Run(path)


def catalog_of(ids: Sequence[str | int], titles: Sequence[str | None] | None = None) -> Catalog:
    counts = [3 * (len(ids) - k) for k in range(len(ids))]
    named = {"item_id": list(ids), "title": titles or [None] * len(ids), "link": None, "train_events": counts}
    kinds = {"title": pl.String, "link": pl.String, "train_events": pl.Int64}
    return Catalog(pl.DataFrame(named, schema_overrides=kinds), len(ids))


def random_cache(path: Path, users: int = 10, seed: int = 0) -> Cache:
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
        lines.append((f"u{user}", items.tolist(), times.tolist(), np.where(late, "test", "train").tolist()))
    return cache_of(path, lines, GAP, catalog_size=ITEMS, shards=2)


def middle_rank(found: list[Recommendation], item: str) -> float:
    scores = {r.item: r.score for r in found}
    above = sum(score > scores[item] for score in scores.values())
    return above + (sum(score == scores[item] for score in scores.values()) + 1) / 2


def assert_alike(found: list[Recommendation], expected: list[Recommendation]) -> None:
    """The same items with the same scores, whatever the order of ties."""
    assert {r.source for r in found} == {r.source for r in expected}
    scores, others = ({r.item: r.score for r in some} for some in (found, expected))
    assert scores.keys() == others.keys()
    assert [scores[item] for item in others] == pytest.approx(list(others.values()), abs=1e-5, rel=1e-5)
    assert [r.score for r in found] == sorted(scores.values(), reverse=True)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return random_cache(tmp_path_factory.mktemp("log") / "cache")


@pytest.fixture
def rec(tmp_path: Path) -> Recommender:
    """Five items, two with a title."""
    catalog = catalog_of(["a", "b", "c", "d", "e"], ["Apple", None, None, None, "Elder"])
    return Recommender.load(run_of(tmp_path / "run", FULL, catalog))


@pytest.mark.parametrize("kind", KINDS)
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
    return [run_of(folder / str(k), config, catalog_of("abcde")) for k, config in enumerate(KINDS.values())]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


def test_ids_are_those_of_the_log(tmp_path: Path) -> None:
    numbers = Recommender.load(run_of(tmp_path / "numbers", FULL, catalog_of([17, 5, 3])))
    for user, item in ((1, 17), ("2", "17"), (np.int64(3), np.int64(17))):
        numbers.observe(user, item, START)
    assert numbers.recommend("1") == numbers.recommend(2) == numbers.recommend(3)
    assert numbers.recommend(1)[0].source == "model"
    assert {r.item for r in numbers.recommend(1)} == {17, 5, 3}
    numbers.observe(1, "no number", START)
    texts = Recommender.load(run_of(tmp_path / "texts", FULL, catalog_of(["017", "17", "🙂"])))
    texts.observe("u", 17, START)
    assert {r.item for r in texts.recommend("u", exclude_seen=True)} == {"017", "🙂"}


BAD_IDS = ["", "a" * 257, "é" * 129, "a\n", "\0", "\x85", "\ud800", 2**63, 10**5000, True, 1.5, None, b"a", ["a"]]


@pytest.mark.parametrize("bad", BAD_IDS, ids=lambda bad: type(bad).__name__)
def test_an_id_that_can_be_none_is_refused(rec: Recommender, bad: object) -> None:
    for call in (
        lambda: rec.observe(bad, "a", START),  # type: ignore[arg-type]
        lambda: rec.observe("u", bad, START),  # type: ignore[arg-type]
        lambda: rec.recommend(bad),  # type: ignore[arg-type]
        lambda: rec.query(bad),  # type: ignore[arg-type]
        lambda: rec.delete(bad),  # type: ignore[arg-type]
        lambda: rec.recommend_history([bad], [START]),  # type: ignore[list-item]
    ):
        with pytest.raises(InputError, match=r"id is .*; expected a whole number of 64 bits, or a text") as caught:
            call()
        assert len(str(caught.value)) < 350
        assert "\n" not in str(caught.value)
    assert rec.states.get("u") is None


NUMBERS = [float("nan"), float("inf"), -1, 0, 31_535_999, 7_258_118_400, 1_700_000_000_000, 10**5000]
DATES = [
    datetime(2024, 5, 1),
    *(datetime(year, 1, 1, tzinfo=UTC) for year in (1969, 9999)),
    np.datetime64("2024-05-01"),
]
BAD_TIMES = [*NUMBERS, *DATES, True, "1700000000", None]


@pytest.mark.parametrize("bad", BAD_TIMES, ids=lambda bad: type(bad).__name__)
def test_a_time_that_can_be_none_is_refused(rec: Recommender, bad: object) -> None:
    calls = [
        lambda: rec.observe("u", "a", bad),  # type: ignore[arg-type]
        lambda: rec.recommend_history(["a"], [bad]),  # type: ignore[list-item]
    ]
    if bad is not None:
        calls.append(lambda: rec.recommend("u", time=bad))  # type: ignore[arg-type]
    for call in calls:
        with pytest.raises(InputError, match=r"The time .*; expected") as caught:
            call()
        assert len(str(caught.value)) < 350
    assert rec.states.get("u") is None


def test_times_of_every_kind_are_the_same_moment(rec: Recommender) -> None:
    moment = datetime.fromtimestamp(START, UTC)
    kinds = [START, float(START), np.int64(START), np.float64(START), np.int32(START), moment]
    for time in [*kinds, moment.astimezone(timezone(timedelta(hours=9)))]:
        rec.delete("u")
        rec.observe("u", "a", time)
        rec.observe("u", "b", START + GAP)
        expected = rec.recommend_history(["a", "b"], [START, START + GAP])
        assert_alike(rec.recommend("u"), expected)


def test_events_come_in_the_order_of_time(rec: Recommender) -> None:
    rec.observe("u", "a", START)
    rec.observe("u", "b", START)
    before = rec.states.get("u")
    for call in (lambda: rec.observe("u", "c", START - 0.001), lambda: rec.recommend("u", time=START - 1)):
        with pytest.raises(InputError, match="earlier than the user's last event"):
            call()
    assert rec.states.get("u") == before


@pytest.mark.parametrize("k", [0, -1, 501, 10**200, 2.0, True, "3", None])
def test_k_is_a_number_from_1_to_500(rec: Recommender, k: object) -> None:
    for user in ("u", "cold"):
        rec.delete("u")
        rec.observe("u", "a", START)
        with pytest.raises(InputError, match="expected a whole number from 1 to 500"):
            rec.recommend(user, k)  # type: ignore[arg-type]
    assert len(rec.recommend("u", 500)) == 5


def test_states_outlive_the_recommender(tmp_path: Path) -> None:
    run, url = run_of(tmp_path / "run", FULL, catalog_of("abcde")), f"sqlite:///{tmp_path / 'states.db'}"
    times = [START, START + 60, START + 9000]
    for item, time in zip("abc", times, strict=True):
        with Recommender.load(run, url) as rec:
            rec.observe("u", item, time)
    with Recommender.load(run.path, url) as rec:
        assert_alike(rec.recommend("u"), rec.recommend_history("abc", times))


@pytest.mark.parametrize("other", ["weights", "items", "session_gap", "model", "damage"])
def test_a_state_is_read_by_the_model_that_wrote_it_only(tmp_path: Path, other: str) -> None:
    plain = CONFIGS["popularity"]()
    config = plain if other == "items" else FULL
    rec = Recommender.load(run_of(tmp_path / "a", config, catalog_of("abcde")))
    rec.observe("u", "a", START)
    if other == "damage":
        rec.states.update("u", lambda value: (value or b"")[:-1])
    else:
        if other == "model":
            config = CONFIGS["hiertcn"](**{**config.model_dump(), "gap_decay": "none"})
        changed = run_of(
            tmp_path / "b",
            config,
            catalog_of("edcba" if other == "items" else "abcde"),
            gap=60 if other == "session_gap" else GAP,
            seed=int(other == "weights"),
        )
        rec = Recommender.load(changed, rec.states)
    for call in (lambda: rec.recommend("u"), lambda: rec.observe("u", "b", START), lambda: rec.query("u")):
        with pytest.raises(ArtifactError, match="stored state"):
            call()
    rec.delete("u")
    rec.observe("u", "a", START)


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
