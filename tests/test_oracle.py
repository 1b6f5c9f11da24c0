"""The oracle itself, against numbers worked by hand and against what the architecture promises."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from oracle import OracleConfig, cross_entropy, final_state, scores, split_sessions

ONE_UNIT = OracleConfig(channels=(1,), kernel=2, state_layers=1, state_units=1)


def one_unit_weights() -> dict[str, np.ndarray]:
    """One unit everywhere, vectors 1, 2 and -1, and a value for each weight that no other weight could stand in for."""
    column = {
        "items.weight": [[9], [1], [2], [-1]],  # row 0 must read as zero
        "high.weight_ih_l0": [[0], [0], [1]],
        "high.weight_hh_l0": [[0], [0], [1]],
        "high.bias_ih_l0": [-math.log(3), math.log(3), 0],  # r = 1/4, z = 3/4
        "high.bias_hh_l0": [0, 0, 0.5],
        "input_item.weight": [[1]],
        "input_state.weight": [[2]],
        "blocks.0.weight": [[[1]], [[0.5]]],
        "blocks.0.bias": [-0.25],
        "head.weight": [[2]],
        "head.bias": [0.1],
        "log_bandwidth": math.log(2),
    }
    return {name: np.array(value, dtype=np.float64) for name, value in column.items()}


def random_weights(config: OracleConfig, n_items: int, width: int, seed: int) -> dict[str, np.ndarray]:
    """Weights of every shape the configuration asks for, large enough that every path matters."""
    rng = np.random.default_rng(seed)
    units, first, last = config.state_units, config.channels[0], config.channels[-1]
    rows = n_items + 1 if config.head == "softmax" else width
    shapes = {
        "items.weight": (n_items + 1, width),
        "input_item.weight": (first, width),
        "input_state.weight": (first, config.state_layers * units),
        "head.weight": (rows, last),
        "head.bias": (rows,),
    }
    for k in range(config.state_layers):
        shapes |= {f"high.weight_ih_l{k}": (3 * units, units if k else width), f"high.bias_ih_l{k}": (3 * units,)}
        shapes |= {f"high.weight_hh_l{k}": (3 * units, units), f"high.bias_hh_l{k}": (3 * units,)}
    for k, (before, after) in enumerate(zip((first, *config.channels), config.channels, strict=False)):
        shapes |= {f"blocks.{k}.weight": (config.kernel, before, after), f"blocks.{k}.bias": (after,)}
        if before != after:
            shapes |= {f"blocks.{k}.residual.weight": (after, before), f"blocks.{k}.residual.bias": (after,)}
    return {name: rng.normal(0, 0.5, shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(("gap", "sessions"), [(1799, 1), (1800, 2), (1801, 2), (0, 1)])
def test_a_gap_of_the_limit_begins_a_session(gap: int, sessions: int) -> None:
    assert len(split_sessions([100, 100 + gap], 1800)) == sessions


def test_sessions_cover_the_history_in_order() -> None:
    assert split_sessions([], 10) == []
    assert split_sessions([0, 0, 9, 19, 40], 10) == [slice(0, 3), slice(3, 4), slice(4, 5)]


def test_one_unit_by_hand() -> None:
    """Items 1, 2, then 1 in a second session.

    session 1, s = 0:  start  z = 0, conv = -0.25          h = 0              query 2h + 0.1 = 0.1
                       item 1 z = 1, conv = 1 - 0.25       h = 0.75 + 1       query = 3.6
    fold the mean 1.5: n = tanh(1.5 + (0 + 0.5) / 4) = tanh(1.625) = 0.925346   s = n / 4 = 0.231337
    session 2:         start  z = 2s = 0.462673, conv = 0.212673               h = 0.675346   query = 1.450692
                       item 1 z = 1.462673, conv = z + 0.231337 - 0.25         h = 2.906683   query = 5.913366
    """
    weights, items, times = one_unit_weights(), [1, 2, 1], [0, 10, 5000]
    queries = np.array([0.1, 3.6, 1.450692, 5.913366])
    expected = np.outer(queries, [1, 2, -1])
    np.testing.assert_allclose(scores(weights, ONE_UNIT, items, times), expected, atol=2e-6)
    np.testing.assert_allclose(final_state(weights, ONE_UNIT, items, times), [0.231337], atol=1e-6)
    # With two sessions finished, from AGG = 1: n = tanh(1 + (0.231337 + 0.5) / 4) = tanh(1.182834) = 0.828343,
    # s = n / 4 + 3/4 * 0.231337 = 0.380588
    np.testing.assert_allclose(final_state(weights, ONE_UNIT, [*items, 3], [*times, 9000]), [0.380588], atol=1e-6)


def test_max_takes_the_largest_of_each_coordinate() -> None:
    """n = tanh(2 + 0.125) = 0.971873, s = n / 4."""
    config = replace(ONE_UNIT, aggregate="max")
    np.testing.assert_allclose(final_state(one_unit_weights(), config, [1, 2, 1], [0, 10, 5000]), [0.242968], atol=1e-6)


@pytest.mark.parametrize(("gap_decay", "hours"), [("fixed", 168.0), ("learned", 2.0)])
def test_decay_shrinks_the_state_before_each_session(gap_decay: str, hours: float) -> None:
    """After one bandwidth s = 0.231337 / e = 0.085104; the gap runs from the last event."""
    config, weights = replace(ONE_UNIT, gap_decay=gap_decay), one_unit_weights()
    items, times = [1, 2, 1, 1], [1e9 - 1500, 1e9, 1e9 + hours * 3600, 1e9 + 2 * hours * 3600]
    got = scores(weights, config, items, times)[:, 0]
    # z = 2s = 0.170208 < 0.25, so conv is cut and h = z: query = 0.440416
    np.testing.assert_allclose(got[:3], [0.1, 3.6, 0.440416], atol=2e-6)
    # The next fold starts from the decayed state: n = tanh(1 + (0.085104 + 0.5) / 4) = tanh(1.146276) = 0.816517,
    # s = n / 4 + 3/4 * 0.085104 = 0.267957, untouched by the gap that follows it
    np.testing.assert_allclose(final_state(weights, config, items, times), [0.267957], atol=2e-6)


def test_softmax_head_leaves_row_zero_out() -> None:
    weights = one_unit_weights() | {
        "head.weight": np.array([[7.0], [1], [2], [3]]),
        "head.bias": np.array([7.0, 0, 1, 2]),
    }
    got = scores(weights, replace(ONE_UNIT, head="softmax"), [1], [0])
    np.testing.assert_allclose(got, [[0, 1, 2], [1.75, 4.5, 7.25]])


def test_residual_map_where_channels_change() -> None:
    """Item 1, last row: block 0 gives 0 then 1.75; the dilation 2 of block 1 reaches before the start token.

    conv = 1.75 * [1, -1] + [0.5, 0] = [2.25, -1.75], residual = 1.75 * [2, 1] + [0, 0.25] = [3.5, 2],
    h = [5.75, 2], query = 5.75 - 2 + 0.1.
    """
    weights = one_unit_weights() | {
        "blocks.1.weight": np.array([[[1.0, -1]], [[50, 50]]]),
        "blocks.1.bias": np.array([0.5, 0]),
        "blocks.1.residual.weight": np.array([[2.0], [1]]),
        "blocks.1.residual.bias": np.array([0, 0.25]),
        "head.weight": np.array([[1.0, -1]]),
    }
    got = scores(weights, replace(ONE_UNIT, channels=(1, 2)), [1], [0])
    np.testing.assert_allclose(got[-1], 3.85 * np.array([1, 2, -1]))


def test_cross_entropy_by_hand() -> None:
    assert cross_entropy(np.log([1.0, 2, 5]), 3) == pytest.approx(math.log(8 / 5))
    assert cross_entropy(np.array([1e4, 0.0]), 2) == pytest.approx(1e4)


SMALL = OracleConfig(channels=(6, 6), state_units=3)


def test_receptive_field_is_thirteen() -> None:
    """Of 20 items in one session the last row sees the last 13 steps: items 7 to 19, 12 steps back and no further."""
    weights, items, times = random_weights(SMALL, 5, 4, seed=0), [1, 2, 3, 4] * 5, list(range(20))
    last = scores(weights, SMALL, items, times)[-1]
    for index, seen in [(6, False), (7, True), (19, True)]:
        changed = [*items[:index], 5, *items[index + 1 :]]
        assert np.array_equal(scores(weights, SMALL, changed, times)[-1], last) is not seen


def test_first_row_of_a_session_knows_only_the_state() -> None:
    """The same mean in another order, so the same state, gives the same first scores; another mean does not."""
    weights, times = random_weights(SMALL, 5, 4, seed=1), [0, 1, 9000]
    first = scores(weights, SMALL, [1, 2, 3], times)[2]
    np.testing.assert_allclose(scores(weights, SMALL, [2, 1, 3], times)[2], first, atol=1e-12)
    assert np.abs(scores(weights, SMALL, [1, 4, 3], times)[2] - first).max() > 1e-6


def test_no_row_knows_its_own_event_or_a_later_one() -> None:
    weights, times = random_weights(SMALL, 5, 4, seed=2), [0, 1, 2, 9000, 9001, 20000]
    items = [1, 2, 3, 1, 2, 3]
    before = scores(weights, SMALL, items, times)
    for t in range(len(items)):
        after = scores(weights, SMALL, [*items[:t], 5, *items[t + 1 :]], times)
        np.testing.assert_array_equal(after[: t + 1], before[: t + 1])
        assert not np.allclose(after[t + 1], before[t + 1])


def test_unknown_items_count_only_as_time() -> None:
    weights = random_weights(SMALL, 5, 4, seed=3)
    config = replace(SMALL, gap_decay="fixed")
    known = scores(weights, config, [1, 2, 3], [0, 1000, 9000])
    with_unknown = scores(weights, config, [1, 0, 2, 3], [0, 500, 1000, 9000])
    np.testing.assert_array_equal(with_unknown, known[[0, 1, 1, 2, 3]])
    # An unknown item between two events holds the session open.
    bridged = scores(weights, config, [1, 0, 2], [0, 1000, 2000])
    np.testing.assert_array_equal(bridged, scores(weights, config, [1, 2], [0, 1])[[0, 1, 1, 2]])


def test_a_session_of_unknown_items_folds_nothing_and_the_gap_runs_on_through_it() -> None:
    weights, config = random_weights(SMALL, 5, 4, seed=3), replace(SMALL, gap_decay="fixed")
    items, times = [0, 1, 0, 0, 0, 2, 0], [0, 5000, 10000, 10100, 15000, 90000, 100000]
    got = scores(weights, config, items, times)
    np.testing.assert_array_equal(got[:3], scores(weights, config, [1, 2], [5000, 10000])[[0, 0, 1]])
    np.testing.assert_array_equal(got[4], scores(weights, config, [1, 2], [5000, 15000])[1])
    np.testing.assert_array_equal(got[5:7], scores(weights, config, [1, 2, 2], [5000, 90000, 100000])[1:3])
    state = final_state(weights, config, [1, 2], [5000, 90000])
    np.testing.assert_array_equal(final_state(weights, config, items[:3], times[:3]), state)
    np.testing.assert_array_equal(final_state(weights, config, items[:6], times[:6]), state)
    np.testing.assert_array_equal(final_state(weights, config, [0, 1], [0, 5000]), np.zeros(6))


def test_an_empty_history_is_scored_from_the_start_token() -> None:
    weights = random_weights(SMALL, 5, 4, seed=4)
    np.testing.assert_array_equal(scores(weights, SMALL, [], []), scores(weights, SMALL, [1], [0])[:1])
    np.testing.assert_array_equal(final_state(weights, SMALL, [], []), np.zeros(6))


def test_the_fold_is_the_gru_of_torch() -> None:
    torch = pytest.importorskip("torch")
    weights = random_weights(SMALL, 5, 4, seed=5)
    gru = torch.nn.GRU(4, SMALL.state_units, SMALL.state_layers, dtype=torch.float64)
    gru.load_state_dict({k.removeprefix("high."): torch.tensor(v) for k, v in weights.items() if k.startswith("high.")})
    vectors = weights["items.weight"]
    inputs = np.stack([(vectors[1] + vectors[2]) / 2, vectors[3]])
    with torch.no_grad():
        expected = gru(torch.tensor(inputs))[1].numpy().reshape(-1)
    got = final_state(weights, SMALL, [1, 2, 3, 4], [0, 1, 9000, 18000])
    np.testing.assert_allclose(got, expected, atol=1e-12)
