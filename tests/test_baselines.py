"""Each baseline against a small computation of its own, one event after another: no batch, no state, no packing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import exp
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from caches import User, batches_of, cache_of
from hiertcn.batching import SessionBatches
from hiertcn.errors import InputError
from hiertcn.models import CONFIGS, HierTCNConfig, Model, build
from hiertcn.models.tcn import receptive_field
from hiertcn.settings import read_settings
from scoring import in_batches

GAP, CATALOG = 1800, 6
TRAIN_EVENTS = np.array([0, 5, 3, 9, 1, 7, 2])
WAITS = [1, 60, 600, 1700, 5000, 100_000]


def person(seed: int, events: int) -> User:
    rng = np.random.default_rng(seed)
    times = 1_700_000_000 + np.cumsum(rng.choice(WAITS, events))
    return f"u{seed}", rng.integers(1, CATALOG + 1, events).tolist(), times.tolist(), "test"


USERS = [person(seed, events) for seed, events in enumerate([14, 1, 30, 3, 25])]


class Asked(NamedTuple):
    """What a model knows when it is asked: earlier items and when each was asked for, those of earlier sessions, each
    a list, and of the running one."""

    items: list[int]
    times: list[float]
    earlier: list[list[int]]
    running: list[int]


def asked(user: User) -> Iterator[Asked]:
    _, items, times, _ = user
    earlier: list[list[int]] = []
    running: list[int] = []
    seen: list[float] = []
    for t, (item, time) in enumerate(zip(items, times, strict=True)):
        if t and time - times[t - 1] >= GAP:
            earlier, running = [*earlier, running], []
        yield Asked([*items[:t]], [*seen], earlier, running)
        seen.append(times[t - 1] if running else time)
        running = [*running, item]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], SessionBatches]:
    """Small batches: users follow one another in a row, and are cut."""
    cache = cache_of(tmp_path_factory.mktemp("log") / "cache", USERS, GAP, CATALOG)
    return lambda: batches_of(cache, "test", rows=2, sessions=2, chunk=3)


@pytest.fixture
def check(log: Callable[[], SessionBatches]) -> Callable[[Model, Callable[[Asked], Tensor]], None]:
    """Whether batches score as what `query` (or, of counts, scores) of each event says."""

    def checked(model: Model, query: Callable[[Asked], Tensor]) -> None:
        with torch.no_grad():
            found = torch.stack([query(one) for user in USERS for one in asked(user)])
            expected = found if found.shape[1] == CATALOG else model.score(found)
        torch.testing.assert_close(in_batches(model, log()), expected, rtol=0, atol=1e-9)

    return checked


def of(name: str, **config: Any) -> tuple[Any, dict[str, Tensor], Tensor]:
    """A model with weights large enough that all of them matter, its weights by name, and its item vectors."""
    model = build(CONFIGS[name](**({"dim": 8} | config)), TRAIN_EVENTS, 3).double()
    rng = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
    weights = {name: value.detach() for name, value in model.state_dict().items()}
    weights["items.weight"][0] = 0
    return model.eval(), weights, weights["items.weight"]


def linear(weights: dict[str, Tensor], name: str, values: Tensor) -> Tensor:
    bias = weights.get(f"{name}.bias", torch.zeros(1, dtype=torch.float64))
    return values @ weights[f"{name}.weight"].T + bias


def gru_cells(weights: dict[str, Tensor], name: str, layers: int) -> list[nn.GRUCell]:
    cells = []
    for k in range(layers):
        own = {key.split(".")[-1]: w for key, w in weights.items() if key.startswith(f"{name}.layers.{k}.")}
        units, inputs = own["weight_hh"].shape[1], own["weight_ih"].shape[1]
        cells.append(nn.GRUCell(inputs, units, dtype=torch.float64))
        cells[-1].load_state_dict(own)
    return cells


def step(cells: list[nn.GRUCell], value: Tensor, states: list[Tensor]) -> list[Tensor]:
    """One event through GRUs above one another."""
    after = []
    for cell, state in zip(cells, states, strict=True):
        value = cell(value.unsqueeze(0), state.unsqueeze(0))[0]
        after.append(value)
    return after


def zeros(size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.float64)


@pytest.mark.parametrize(
    ("config", "weight"),
    [
        ({}, lambda back, gap: 1.0),
        ({"decay": "exponential", "rate": 0.6}, lambda back, gap: 0.6**back),
        ({"decay": "gap", "bandwidth": 2.0}, lambda back, gap: exp(-gap / 7200)),
    ],
    ids=["plain", "exponential", "gap"],
)
def test_moving_averages(config: dict[str, Any], weight: Callable[[int, float], float], check: Any) -> None:
    model, _, vectors = of("moving_average", window=4, **config)

    def query(one: Asked) -> Tensor:
        total, mean = 0.0, zeros(8)
        for back, (item, time) in enumerate(zip(one.items[:-5:-1], one.times[:-5:-1], strict=True)):
            total += weight(back, one.times[-1] - time)
            mean += weight(back, one.times[-1] - time) * vectors[item]
        return mean / total if total else mean

    check(model, query)


def test_a_gap_decay_counted_from_now_is_the_same(check: Any) -> None:
    """As You et al. have it: counted from when the item is asked for, here from the previous event."""
    model, _, vectors = of("moving_average", window=4, decay="gap", bandwidth=30.0)

    def query(one: Asked) -> Tensor:
        now = one.times[-1] + 90_000 if one.items else 0
        weights = torch.tensor([exp((time - now) / 108_000) for time in one.times[-4:]], dtype=torch.float64)
        return weights @ vectors[one.items[-4:]] / weights.sum() if one.items else zeros(8)

    check(model, query)


def test_most_frequent(check: Any) -> None:
    model = build(CONFIGS["most_frequent"](window=7), TRAIN_EVENTS, 0).double()

    def scores(one: Asked) -> Tensor:
        last = [0] * max(7 - len(one.items), 0) + one.items[-7:]
        out = []
        for item in range(1, CATALOG + 1):
            latest = max((k + 1 for k in range(7) if last[k] == item), default=0)
            out.append(last.count(item) + latest / 8 if latest else TRAIN_EVENTS[item] / 10)
        return torch.tensor(out, dtype=torch.float64)

    check(model, scores)


@pytest.mark.parametrize("weights", ["matrix", "scalar"])
def test_var(weights: str, check: Any) -> None:
    model, known, vectors = of("var", window=3, weights=weights)

    def query(one: Asked) -> Tensor:
        out = known["matrices.bias" if weights == "matrix" else "constant"].clone()
        for back, item in enumerate(one.items[:-4:-1]):
            place = 2 - back
            if weights == "matrix":
                out += known["matrices.weight"][:, 8 * place : 8 * place + 8] @ vectors[item]
            else:
                out += known["scalars"][place] * vectors[item]
        return out

    check(model, query)


def test_the_flat_tcn_is_conv1d_over_all_of_a_users_items(check: Any) -> None:
    model, weights, vectors = of("tcn", channels=(5, 5, 6), kernel=2)
    assert model.state_size == 8 < max(len(items) for _, items, _, _ in USERS)

    def query(one: Asked) -> Tensor:
        if not one.items:
            return weights["head.bias"]
        hidden = vectors[one.items].T
        for k in range(3):
            taps = weights[f"tcn.blocks.{k}.weight"]
            conv = nn.Conv1d(taps.shape[1], taps.shape[2], 2, dilation=2**k, dtype=torch.float64)
            conv.load_state_dict({"weight": taps.permute(2, 1, 0).flip(2), "bias": weights[f"tcn.blocks.{k}.bias"]})
            own = f"tcn.blocks.{k}.residual"
            residual = linear(weights, own, hidden.T).T if f"{own}.weight" in weights else hidden
            hidden = torch.relu(torch.relu(conv(F.pad(hidden, (2**k, 0)))) + residual)
        return linear(weights, "head", hidden[:, -1])

    check(model, query)


def test_the_flat_gru_is_that_of_torch(check: Any) -> None:
    model, weights, vectors = of("gru", units=5, layers=2)
    gru = nn.GRU(8, 5, 2, dtype=torch.float64)
    gru.load_state_dict(
        {f"{key.split('.')[3]}_l{key.split('.')[2]}": w for key, w in weights.items() if key.startswith("cells.")}
    )

    def query(one: Asked) -> Tensor:
        out = gru(vectors[one.items])[0][-1] if one.items else zeros(5)
        return linear(weights, "head", out)

    check(model, query)


def test_hrnn_is_that_of_quadrana(check: Any) -> None:
    """The low GRU starts from tanh(W s + b), where it ends the high one reads it."""
    model, weights, vectors = of("hrnn", units=5)
    low, high = gru_cells(weights, "low", 1), gru_cells(weights, "high", 1)

    def read(session: list[int], state: Tensor) -> Tensor:
        hidden = torch.tanh(linear(weights, "start", state))
        for item in session:
            (hidden,) = step(low, vectors[item], [hidden])
        return hidden

    def query(one: Asked) -> Tensor:
        state = zeros(5)
        for session in one.earlier:
            (state,) = step(high, read(session, state), [state])
        return linear(weights, "head", read(one.running, state))

    check(model, query)


def long_term(one: Asked, weights: dict[str, Tensor], vectors: Tensor) -> Tensor:
    """[S] of HierTCN and its kin: GRUs over the means of finished sessions."""
    cells = gru_cells(weights, "high", 2)
    states = [zeros(5), zeros(5)]
    for session in one.earlier:
        states = step(cells, vectors[session].mean(0), states)
    return torch.cat(states)


@pytest.mark.parametrize("layers", [1, 2])
def test_hier_gru_reads_item_and_state_at_every_step(layers: int, check: Any) -> None:
    model, weights, vectors = of("hiertcn", low="gru", units=5, channels=(7,) * layers)
    cells = gru_cells(weights, "tcn.read.cells", layers)

    def query(one: Asked) -> Tensor:
        state = linear(weights, "input_state", long_term(one, weights, vectors))
        hidden = [zeros(7)] * layers
        for item in [0, *one.running]:
            hidden = step(cells, linear(weights, "input_item", vectors[item]) + state, hidden)
        return linear(weights, "head", hidden[-1])

    check(model, query)


def test_hier_mv_reads_the_mean_of_the_running_session_and_the_state(check: Any) -> None:
    model, weights, vectors = of("hiertcn", low="mean", units=5, channels=(7,))

    def query(one: Asked) -> Tensor:
        mean = vectors[one.running].mean(0) if one.running else zeros(8)
        read = linear(weights, "input_item", mean)
        read += linear(weights, "input_state", long_term(one, weights, vectors))
        return linear(weights, "head", linear(weights, "tcn.read.map", read))

    check(model, query)


@pytest.mark.parametrize(("layers", "heads", "window"), [(1, 1, 5), (2, 2, 4), (3, 1, 2)])
def test_sasrec_is_attention_one_position_after_another(layers: int, heads: int, window: int, check: Any) -> None:
    model, weights, vectors = of("sasrec", layers=layers, heads=heads, window=window)
    size = 8 // heads

    def normed(name: str, values: Tensor) -> Tensor:
        return F.layer_norm(values, (8,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    def attended(own: dict[str, Tensor], values: Tensor, at: int) -> Tensor:
        """[8]: what position `at` takes from the last `window` of values [n, 8]."""
        asks, keys, holds = (values @ own["in_proj_weight"].T + own["in_proj_bias"]).split(8, dim=1)
        places = range(max(0, at - window + 1), at + 1)
        parts = []
        for head in range(heads):
            mine = slice(size * head, size * head + size)
            biases = weights["distance"][head]
            scores = [float(asks[at, mine] @ keys[j, mine]) / size**0.5 + float(biases[at - j]) for j in places]
            shares = np.exp(scores) / np.exp(scores).sum()
            parts.append(sum(share * holds[j, mine] for share, j in zip(shares, places, strict=True)))
        return own["out_proj.weight"] @ torch.cat(parts) + own["out_proj.bias"]

    def query(one: Asked) -> Tensor:
        if not one.items:
            return zeros(8)
        hidden = vectors[one.items] * 8**0.5
        for k in range(layers):
            name = f"layers.{k}."
            own = {key.removeprefix(f"{name}self_attn."): w for key, w in weights.items() if f"{name}self_attn" in key}
            values = normed(f"{name}norm1", hidden)
            hidden = hidden + torch.stack([attended(own, values, at) for at in range(len(values))])
            inner = torch.relu(linear(weights, f"{name}linear1", normed(f"{name}norm2", hidden)))
            hidden = hidden + linear(weights, f"{name}linear2", inner)
        return normed("norm", hidden[-1])

    check(model, query)


@pytest.mark.parametrize(
    ("name", "config", "field"),
    [
        ("tcn", {"channels": (5, 5), "kernel": 3}, 7),
        ("tcn", {"channels": (5, 5, 5), "kernel": 2}, 8),
        ("sasrec", {"window": 4, "layers": 2}, 7),
        ("sasrec", {"window": 6, "layers": 1}, 6),
    ],
)
@pytest.mark.parametrize("wait", [60, 1000, GAP])
def test_a_query_sees_its_field_of_items_and_no_more(
    name: str, config: dict[str, Any], field: int, wait: int, tmp_path: Path
) -> None:
    """Whatever sessions they were in: in one, in pairs, one each."""
    model, _, _ = of(name, **config)
    assert model.state_size == field
    items = [t % CATALOG + 1 for t in range(field + 4)]
    changed = [[*items[:t], items[t] % CATALOG + 1, *items[t + 1 :]] for t in range(len(items))]
    times = (1_700_000_000 + np.cumsum([wait if t % 2 else 2 * wait for t in range(len(items))])).tolist()
    users: list[User] = [(k, row, times, "test") for k, row in enumerate([items, *changed])]
    batches = batches_of(cache_of(tmp_path / "cache", users, GAP), "test")
    original, *others = (scores[-1] for scores in in_batches(model, batches).split(len(items)))
    moved = [not torch.allclose(scores, original, rtol=0, atol=1e-12) for scores in others]
    assert moved == [False] * (len(items) - 1 - field) + [True] * field + [False]


def test_presets_have_the_papers_sizes() -> None:
    tcn, _ = read_settings("tcn")
    model = build(tcn, TRAIN_EVENTS, 0)
    assert model.state_size == receptive_field(5, 6) == 253
    assert [block.weight.shape[2] for block in model.tcn.blocks] == [128] * 4 + [256] * 2  # type: ignore[union-attr]
    assert build(read_settings("sasrec")[0], TRAIN_EVENTS, 0).state_size == 99
    lows = {"small": "tcn", "hier_gru": "gru", "hier_mv": "mean"}
    for preset, low in lows.items():
        config, _ = read_settings(preset)
        assert isinstance(config, HierTCNConfig)
        assert config.low == low
        assert build(config, TRAIN_EVENTS, 0).state_size == 256


def test_configs_that_make_no_model_are_refused() -> None:
    with pytest.raises(InputError, match="heads should divide dim, 8"):
        CONFIGS["sasrec"](dim=8, heads=3)
    with pytest.raises(InputError, match='channels should all be the same for low = "gru"'):
        HierTCNConfig(low="gru", channels=(7, 8))
