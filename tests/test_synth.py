"""The simulated log has the shares it promises, and its optimum is the true one."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hiertcn.errors import InputError
from hiertcn.synth import SimulationConfig, optimum, shuffled, simulate

MEDIUM = SimulationConfig(users=600, seed=3)
TINY = SimulationConfig(users=4, tastes=3, ring=4, strides=2, sessions=2.5, session_length=2, noise=0.2, seed=5)


def parts(log: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Taste and place [N] of each event."""
    a, b = (log["item_id"].str.extract(rf"{c}(\d+)").cast(pl.Int64).to_numpy() for c in "ab")
    return a, b


def gaps(log: pl.DataFrame) -> np.ndarray:
    """Seconds [N] since the user's previous event, -1 at the first."""
    return log.select(pl.col("time").diff().over("user_id").fill_null(-1)).to_series().to_numpy()


def everything(log: pl.DataFrame) -> np.ndarray:
    return np.ones(log.height, dtype=bool)


def brute_ranks(log: pl.DataFrame, config: SimulationConfig) -> list[float]:
    """Mid-ranks of all events, from the likelihood of each whole history under each hidden value, summed plainly."""
    A, B, G, q = config.tastes, config.ring, config.strides, config.noise

    def likelihood(history: list[list[tuple[int, int]]]) -> float:
        total = 0.0
        for taste in range(A):
            product_of_sessions = 1.0
            for session in history:
                over_intents = 0.0
                for start, stride in product(range(B), range(1, G + 1)):
                    p = 1.0
                    for t, (a, b) in enumerate(session):
                        follows = config.loyalty * (a == taste) + (1 - config.loyalty) / A
                        p *= q / (A * B) + (1 - q) * follows * (b == (start + stride * t) % B)
                    over_intents += p / (B * G)
                product_of_sessions *= over_intents
            total += product_of_sessions / A
        return total

    ranks = []
    history: list[list[tuple[int, int]]] = []
    for item, gap in zip(zip(*parts(log), strict=True), gaps(log), strict=True):
        if gap < 0:
            history = []
        if gap < 0 or gap >= config.session_gap:
            history.append([])
        scores = {i: likelihood([*history[:-1], [*history[-1], i]]) for i in product(range(A), range(B))}
        mine = scores[item]
        above = sum(s > mine * (1 + 1e-9) for s in scores.values())
        ties = sum(abs(s - mine) <= mine * 1e-9 for s in scores.values())
        ranks.append(above + (ties + 1) / 2)
        history[-1].append(item)
    return ranks


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    noise=st.sampled_from([0.0, 0.15, 0.6, 1.0]),
    loyalty=st.sampled_from([0.0, 0.5, 1.0]),
    strides=st.integers(1, 3),
)
def test_optimum_is_that_of_enumeration(seed: int, noise: float, loyalty: float, strides: int) -> None:
    config = replace(TINY, seed=seed, noise=noise, loyalty=loyalty, strides=strides)
    log = simulate(config)
    np.testing.assert_array_equal(optimum(log, config, everything(log)), brute_ranks(log, config))


def test_drawn_ties_lie_around_the_middle() -> None:
    log = simulate(TINY)
    middle, drawn = (optimum(log, TINY, everything(log), ties_seed=s) for s in (None, 0))
    catalog = TINY.tastes * TINY.ring
    first = np.flatnonzero(gaps(log) < 0)
    assert (middle[first] == (catalog + 1) / 2).all()
    assert (drawn == drawn.round()).all()
    assert ((drawn >= 1) & (drawn <= catalog)).all()
    assert len(set(drawn[first])) > 1
    np.testing.assert_array_equal(drawn, optimum(log, TINY, everything(log), ties_seed=0))


def test_targets_choose_among_the_ranks_whatever_the_order_of_rows() -> None:
    log = simulate(MEDIUM).head(3000)
    ranks = optimum(log, MEDIUM, everything(log))
    order = np.random.default_rng(0).permutation(log.height)
    some = np.random.default_rng(1).random(log.height) < 0.3
    np.testing.assert_array_equal(optimum(log[order], MEDIUM, some), ranks[order][some])


def test_only_both_levels_reach_the_optimum() -> None:
    log = simulate(MEDIUM)
    time = log["time"].to_numpy()
    late = time >= np.quantile(time, 0.8)

    def measure(**levels: bool) -> tuple[float, float]:
        ranks = optimum(log, MEDIUM, late, ties_seed=0, **levels)
        return float((ranks <= 10).mean()), float((1 / ranks).mean())

    both, session, long_term = measure(), measure(long_term=False), measure(session=False)
    neither = measure(long_term=False, session=False)
    print(f"recall@10, MRR: {both=} {session=} {long_term=} {neither=}")
    for metric in (0, 1):
        assert both[metric] > 1.2 * max(session[metric], long_term[metric])
        assert min(session[metric], long_term[metric]) > 1.2 * neither[metric]
        assert 0.3 < both[metric] < 0.7


def test_nothing_beats_chance_on_the_control() -> None:
    log = simulate(MEDIUM)
    control = shuffled(log, seed=1)
    ranks = optimum(control, MEDIUM, everything(control), ties_seed=0)
    catalog = MEDIUM.tastes * MEDIUM.ring
    assert (ranks <= 10).mean() == pytest.approx(10 / catalog, rel=0.15)
    assert ranks.mean() == pytest.approx((catalog + 1) / 2, rel=0.02)


def test_control_keeps_users_times_and_popularity() -> None:
    log = simulate(MEDIUM)
    control = shuffled(log, seed=1)
    assert control.drop("item_id").equals(log.drop("item_id"))
    assert control["item_id"].sort().equals(log["item_id"].sort())
    assert (control["item_id"] != log["item_id"]).mean() > 0.9
    assert control.equals(shuffled(log, seed=1))
    assert not control.equals(shuffled(log, seed=2))


def test_log_is_a_function_of_the_config() -> None:
    log = simulate(MEDIUM)
    assert log.schema == {"user_id": pl.String, "item_id": pl.String, "time": pl.Int64}
    assert log.equals(simulate(replace(MEDIUM)))
    assert not log.equals(simulate(replace(MEDIUM, seed=4)))
    assert log.equals(log.sort("user_id", "time"))
    assert log["user_id"][0] == "u00000"
    assert set(log["item_id"]) == {f"a{a:02}-b{b:02}" for a, b in product(range(20), range(16))}


def test_wide_catalogs_keep_ids_apart() -> None:
    log = simulate(replace(MEDIUM, tastes=3, ring=120))
    assert log["item_id"].str.contains(r"^a0[0-2]-b(0\d\d|1[01]\d)$").all()


def test_sessions_are_told_by_the_gap() -> None:
    wait = gaps(simulate(MEDIUM))
    assert (wait != 0).all()
    begins = (wait < 0) | (wait >= MEDIUM.session_gap)
    assert not (wait == MEDIUM.session_gap).any()
    lengths = np.diff(np.append(np.flatnonzero(begins), len(wait)))
    sessions = np.diff(np.append(np.flatnonzero(wait[begins] < 0), begins.sum()))
    assert lengths.max() <= 40
    assert lengths.mean() == pytest.approx(MEDIUM.session_length, rel=0.05)
    assert len(sessions) == MEDIUM.users
    assert sessions.min() >= 2
    assert sessions.mean() == pytest.approx(MEDIUM.sessions, rel=0.1)


def test_smallest_gap_still_makes_sessions() -> None:
    config = replace(MEDIUM, session_gap=2)
    assert (gaps(simulate(config)) >= config.session_gap).sum() == pytest.approx(
        (gaps(simulate(MEDIUM)) >= MEDIUM.session_gap).sum(), rel=0.2
    )


def test_shares_of_taste_stride_and_noise() -> None:
    config = replace(MEDIUM, tastes=10, loyalty=0.6, noise=0.2)
    log = simulate(config)
    taste, place = parts(log)
    user = np.cumsum(gaps(log) < 0) - 1
    counts = np.zeros((config.users, config.tastes))
    np.add.at(counts, (user, taste), 1)
    often = counts.sum(1) >= 40
    follows = (1 - config.noise) * config.loyalty
    top = counts[often].max(1).sum() / counts[often].sum()
    assert top == pytest.approx(follows + (1 - follows) / config.tastes, abs=0.01)
    favourites = np.bincount(counts[often].argmax(1), minlength=config.tastes) / often.sum()
    assert favourites == pytest.approx(np.full(config.tastes, 0.1), abs=0.05)

    within = (gaps(log) > 0) & (gaps(log) < config.session_gap)
    moves = np.bincount((place - np.roll(place, 1))[within] % config.ring, minlength=config.ring) / within.sum()
    quiet = (1 - config.noise) ** 2
    stray = (1 - quiet) / config.ring
    expected = np.full(config.ring, stray)
    expected[1 : config.strides + 1] += quiet / config.strides
    assert moves == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"users": 0}, ["users = 0"]),
        ({"users": 2.5}, ["users = 2.5", "a whole number"]),
        ({"users": True}, ["users = True"]),
        ({"sessions": 1}, ["sessions = 1"]),
        ({"session_length": 41}, ["session_length = 41"]),
        ({"noise": float("nan"), "loyalty": -0.1, "ring": "x" * 999}, ["noise = nan", "loyalty = -0.1", "ring = 'xxx"]),
        ({"strides": 16}, ["strides = 16", "16 places"]),
        ({"session_gap": 1}, ["session_gap = 1"]),
        ({"seed": -1}, ["seed = -1"]),
    ],
)
def test_bad_config_names_every_problem(bad: dict[str, object], named: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        SimulationConfig(**bad)  # type: ignore[arg-type]
    text = str(caught.value)
    assert all(name in text for name in named)
    assert "\n" not in text
    assert len(text) < 600


def test_optimum_refuses_what_it_cannot_rank() -> None:
    log = simulate(TINY)
    with pytest.raises(InputError, match="one bool for each"):
        optimum(log, TINY, np.ones(3, dtype=bool))
    with pytest.raises(InputError, match="one bool for each"):
        optimum(log, TINY, np.ones(log.height))
    with pytest.raises(InputError, match="'elsewhere', expected ids from 'a00-b00' to 'a02-b03'"):
        optimum(log.with_columns(item_id=pl.lit("elsewhere")), TINY, everything(log))
    clean = replace(TINY, noise=0, loyalty=1)
    with pytest.raises(InputError, match="probability 0"):
        optimum(log, clean, everything(log))


def test_an_empty_log_has_no_ranks() -> None:
    assert len(optimum(simulate(TINY).clear(), TINY, np.zeros(0, dtype=bool))) == 0
