"""Metrics of ranks against hand-made cases, scikit-learn, and a bootstrap written plainly."""

from __future__ import annotations

from random import Random
from statistics import fmean

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import coverage_error, label_ranking_average_precision_score, top_k_accuracy_score

from hiertcn.metrics import METRICS, Table, difference, measure, per_event, tabulate

Floats = npt.NDArray[np.float64]


def measured(ranks: list[float], users: list[int], candidates: int) -> Table:
    return measure(np.array(ranks), np.array(users), candidates)


def test_hand_made_ranks() -> None:
    table = measured([1, 3, 10.5, 40, 20], [7, 7, 7, 2, 2], candidates=50)
    assert (table.targets, table.users) == (5, 2)
    assert table.event == pytest.approx(
        {
            "recall@1": 1 / 5,
            "recall@5": 2 / 5,
            "recall@10": 2 / 5,
            "recall@20": 4 / 5,
            "mrr": (1 + 1 / 3 + 1 / 10.5 + 1 / 40 + 1 / 20) / 5,
            "mrr@20": (1 + 1 / 3 + 1 / 10.5 + 1 / 20) / 5,
            "mean_rank_percentile": (1 + 3 + 10.5 + 40 + 20) / 5 / 50,
        }
    )
    assert table.user == pytest.approx(
        {
            "recall@1": 1 / 6,
            "recall@5": 1 / 3,
            "recall@10": 1 / 3,
            "recall@20": 3 / 4,
            "mrr": ((1 + 1 / 3 + 1 / 10.5) / 3 + (1 / 40 + 1 / 20) / 2) / 2,
            "mrr@20": ((1 + 1 / 3 + 1 / 10.5) / 3 + 1 / 40) / 2,
            "mean_rank_percentile": (14.5 / 3 + 30) / 2 / 50,
        }
    )


def test_a_constant_score_is_worth_nothing() -> None:
    """All of 1,001 items tie, so the rank is the middle one."""
    table = measured([501.0] * 10, [*range(10)], candidates=1001)
    assert table.event["recall@20"] == table.event["mrr@20"] == 0
    assert table.event["mean_rank_percentile"] == pytest.approx(0.5, abs=0.001)


def test_no_targets_give_no_numbers() -> None:
    table = measured([], [], candidates=50)
    assert (table.targets, table.users) == (0, 0)
    for numbers in (table.event, table.user, table.event_interval, table.user_interval):
        assert list(numbers) == list(METRICS)
        assert np.isnan(list(numbers.values())).all()


def test_one_user_has_an_interval_of_no_width() -> None:
    table = measured([1, 2], [3, 3], candidates=9)
    assert table.event_interval["mrr"] == table.user_interval["mrr"] == (0.75, 0.75)


@pytest.mark.parametrize("seed", range(3))
def test_as_scikit_learn_has_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(500, 60))
    target = rng.integers(60, size=500)
    own = scores[np.arange(500), target][:, None]
    relevant = np.arange(60) == target[:, None]
    found = measure((scores > own).sum(1) + 1.0, rng.integers(40, size=500), 60).event
    assert found["mrr"] == pytest.approx(label_ranking_average_precision_score(relevant, scores))
    assert found["mean_rank_percentile"] == pytest.approx(coverage_error(relevant, scores) / 60)
    for k in (1, 5, 10, 20):
        hits = top_k_accuracy_score(target, scores, k=k, labels=np.arange(60))
        assert found[f"recall@{k}"] == pytest.approx(hits)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(2, 200), st.integers(0, 6)), min_size=1, max_size=60), st.randoms())
def test_users_weigh_alike_or_events_do_in_any_order(targets: list[tuple[int, int]], random: Random) -> None:
    ranks, users = np.array([r / 2 for r, _ in targets]), np.array([u for _, u in targets])
    values = per_event(ranks, 100)
    table = tabulate(values, users)
    for column, name in enumerate(METRICS):
        groups = [values[users == user, column] for user in set(users.tolist())]
        assert table.user[name] == pytest.approx(fmean(fmean(group) for group in groups))
        assert table.event[name] == pytest.approx(fmean(values[:, column]))
        for interval in (table.event_interval, table.user_interval):
            low, high = interval[name]
            assert min(values[:, column]) - 1e-12 <= low <= high <= max(values[:, column]) + 1e-12
    order = list(range(len(ranks)))
    random.shuffle(order)
    assert tabulate(values[order], users[order]).event_interval["mrr"] == pytest.approx(table.event_interval["mrr"])


def sample(seed: int, people: int) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Ranks and users of people who differ in taste and in how many targets they have; recall@10 is 0.5 on average."""
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(people), rng.geometric(0.2, people))
    easy = rng.beta(1, 1, people)[users]
    return np.where(rng.random(len(users)) < easy, 5.0, 50.0), users


def test_intervals_are_those_of_a_plain_bootstrap() -> None:
    ranks, users = sample(seed=1, people=80)
    table = measure(ranks, users, 100, resamples=2000)
    rng = np.random.default_rng(99)
    hits = ranks <= 10
    groups = [hits[users == user] for user in range(80)]
    per_event_, per_user = [], []
    for _ in range(2000):
        drawn = [groups[k] for k in rng.choice(80, size=80)]
        per_event_.append(np.concatenate(drawn).mean())
        per_user.append(fmean(group.mean() for group in drawn))
    for samples, interval in ((per_event_, table.event_interval), (per_user, table.user_interval)):
        expected = np.quantile(samples, [0.025, 0.975])
        assert interval["recall@10"] == pytest.approx(expected, abs=0.1 * float(expected[1] - expected[0]))


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    covered = np.zeros(2)
    worlds = 300
    for seed in range(worlds):
        table = measure(*sample(seed, people=60), 100, resamples=200)
        for kind, interval in enumerate((table.event_interval, table.user_interval)):
            low, high = interval["recall@10"]
            covered[kind] += low <= 0.5 <= high
    assert (covered / worlds > 0.88).all()
    assert (covered / worlds < 0.99).all()


def test_intervals_are_a_function_of_the_seed() -> None:
    ranks, users = sample(seed=2, people=30)
    assert measure(ranks, users, 100, seed=4) == measure(ranks, users, 100, seed=4)
    assert measure(ranks, users, 100, seed=4).event_interval != measure(ranks, users, 100, seed=5).event_interval


def test_differences_are_paired() -> None:
    """Of two models that are right on nearly the same targets, the difference is known better than either."""
    theirs, users = sample(seed=3, people=60)
    ours = theirs.copy()
    ours[np.random.default_rng(0).random(len(ours)) < 0.1] = 1.0
    table = difference(ours, theirs, users, 100)
    apart = [measure(ranks, users, 100) for ranks in (ours, theirs)]
    for name in METRICS:
        assert table.event[name] == pytest.approx(apart[0].event[name] - apart[1].event[name])
        assert table.user[name] == pytest.approx(apart[0].user[name] - apart[1].user[name])
    low, high = table.event_interval["recall@10"]
    assert 0 < low < high
    assert apart[0].event_interval["recall@10"][0] < apart[1].event_interval["recall@10"][1]
    assert high - low < 0.5 * np.diff(apart[0].event_interval["recall@10"])[0]
    same = difference(theirs, theirs, users, 100)
    assert set(same.event.values()) == set(same.user.values()) == {0.0}
    assert set(same.event_interval.values()) == {(0.0, 0.0)}
