"""HierTCN's `paper` model once more: plain NumPy in float64, one user, one step, one tap at a time (You et al., 2019).

It shares no code with the package and is written to be read, not to be fast: every row of scores is computed anew from
nothing but what precedes it, so it cannot leak. It is what the fast forms are compared with.

Shapes: n items, D item width, U units of a GRU layer, S = layers * U the long-term state, C channels, k taps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = Mapping[str, NDArray[np.floating]]

SECONDS_PER_HOUR = 3600.0
FIXED_BANDWIDTH = 168.0  # hours: one week


@dataclass(frozen=True)
class OracleConfig:
    """The settings that change a score, named as in the model's configuration."""

    channels: tuple[int, ...] = (128, 128)
    kernel: int = 5
    state_layers: int = 2
    state_units: int = 128
    aggregate: str = "mean"
    head: str = "embedding"
    gap_decay: str = "none"
    session_gap: float = 1800.0


def split_sessions(times: Sequence[float], session_gap: float) -> list[slice]:
    """Cut one user's ordered times, seconds: an event `session_gap` or more after the one before begins a session."""
    starts = [i for i in range(len(times)) if i == 0 or times[i] - times[i - 1] >= session_gap]
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], len(times)], strict=False)]


def scores(weights: Weights, config: OracleConfig, items: Sequence[int], times: Sequence[float]) -> Array:
    """Score the catalogue before each event of one user and after the last: [n_events + 1, n].

    `items` are item rows, 0 for an unknown item, in the order of `times`, seconds. Row i knows the items before event i
    in its own session and the whole sessions before that one; the last row is still inside the last session.
    """
    sessions = split_sessions(times, config.session_gap) or [slice(0, 0)]
    rows = []
    for number, session in enumerate(sessions):
        state = _state_of_session(weights, config, items, times, sessions[: number + 1])
        before = (items[session.start : event] for event in range(session.start, session.stop))
        rows += [_score(weights, config, known, state) for known in before]
    rows.append(_score(weights, config, items[sessions[-1]], state))
    return np.stack(rows)


def final_state(weights: Weights, config: OracleConfig, items: Sequence[int], times: Sequence[float]) -> Array:
    """The long-term state after folding every finished session, all but the last: [S], layer 0 first.

    It is the state as the last finished session leaves it: the gap before the running session has not decayed it yet.
    """
    finished = _with_known_items(items, split_sessions(times, config.session_gap)[:-1])
    if not finished:
        return np.zeros(config.state_layers * config.state_units)
    state = _state_of_session(weights, config, items, times, finished)
    return _fold(weights, config, items[finished[-1]], state)


def cross_entropy(scores_row: Array, target_row: int) -> float:
    """-log softmax of the target over the whole catalogue: `scores_row` [n], `target_row` in 1..n, in nats."""
    highest = scores_row.max()
    return float(highest + np.log(np.sum(np.exp(scores_row - highest))) - scores_row[target_row - 1])


def _state_of_session(
    weights: Weights, config: OracleConfig, items: Sequence[int], times: Sequence[float], sessions: Sequence[slice]
) -> Array:
    """The long-term state [S] that the last of `sessions` runs with: those before it folded, every gap decayed.

    A session without a known item is as if it were not there: it folds nothing and the gap runs on through it.
    """
    state = np.zeros(config.state_layers * config.state_units)
    for finished, following in pairwise([*_with_known_items(items, sessions[:-1]), sessions[-1]]):
        state = _fold(weights, config, items[finished], state)
        gap = times[following.start] - times[finished.stop - 1]
        state = _decay(weights, config, state, gap / SECONDS_PER_HOUR)
    return state


def _with_known_items(items: Sequence[int], sessions: Sequence[slice]) -> list[slice]:
    return [session for session in sessions if any(row != 0 for row in items[session])]


def _decay(weights: Weights, config: OracleConfig, state: Array, hours: float) -> Array:
    if config.gap_decay == "none":
        return state
    bandwidth = FIXED_BANDWIDTH if config.gap_decay == "fixed" else np.exp(_get(weights, "log_bandwidth"))
    return state * np.exp(-hours / bandwidth)


def _fold(weights: Weights, config: OracleConfig, items: Sequence[int], state: Array) -> Array:
    """One update of the stacked GRU (gates r, z, n) with AGG of a finished session's known items: [S] -> [S]."""
    vectors = [_item(weights, row) for row in items if row != 0]
    x = np.max(vectors, axis=0) if config.aggregate == "max" else np.sum(vectors, axis=0) / len(vectors)
    layers = []
    for layer, h in enumerate(np.split(state, config.state_layers)):
        from_x = _get(weights, f"high.weight_ih_l{layer}") @ x + _get(weights, f"high.bias_ih_l{layer}")
        from_h = _get(weights, f"high.weight_hh_l{layer}") @ h + _get(weights, f"high.bias_hh_l{layer}")
        (r_x, z_x, n_x), (r_h, z_h, n_h) = np.split(from_x, 3), np.split(from_h, 3)
        r, z = _sigmoid(r_x + r_h), _sigmoid(z_x + z_h)
        x = (1 - z) * np.tanh(n_x + r * n_h) + z * h
        layers.append(x)
    return np.concatenate(layers)


def _score(weights: Weights, config: OracleConfig, items: Sequence[int], state: Array) -> Array:
    """Scores [n] of the next item, after `items` of the running session, with long-term state [S]."""
    steps = [0, *(row for row in items if row != 0)]  # row 0 is the zero vector, and so the start token
    from_state = _get(weights, "input_state.weight") @ state
    h = [_get(weights, "input_item.weight") @ _item(weights, row) + from_state for row in steps]
    for layer in range(len(config.channels)):
        h = _block(weights, config, layer, h)
    output = _get(weights, "head.weight") @ h[-1] + _get(weights, "head.bias")
    return output[1:] if config.head == "softmax" else _get(weights, "items.weight")[1:] @ output


def _block(weights: Weights, config: OracleConfig, layer: int, h: Sequence[Array]) -> list[Array]:
    """relu(relu(conv(h)) + res(h)) at each step of one session; dilation 2^layer, zeros before the start token."""
    taps = _get(weights, f"blocks.{layer}.weight")
    out = []
    for step in range(len(h)):
        conv = _get(weights, f"blocks.{layer}.bias")
        for tap in range(config.kernel):
            back = step - tap * 2**layer
            if back >= 0:
                conv = conv + h[back] @ taps[tap]
        residual = h[step]
        if f"blocks.{layer}.residual.weight" in weights:
            residual = _get(weights, f"blocks.{layer}.residual.weight") @ residual
            residual = residual + _get(weights, f"blocks.{layer}.residual.bias")
        out.append(np.maximum(np.maximum(conv, 0) + residual, 0))
    return out


def _item(weights: Weights, row: int) -> Array:
    table = _get(weights, "items.weight")
    return table[row] if row != 0 else np.zeros(table.shape[1])


def _sigmoid(x: Array) -> Array:
    return (1 + np.tanh(x / 2)) / 2


def _get(weights: Weights, name: str) -> Array:
    return np.asarray(weights[name], dtype=np.float64)
