"""What HierTCN alone promises: its shape, its receptive field and what it knows of time."""

from __future__ import annotations

from datetime import UTC, datetime
from math import floor, log2
from pathlib import Path

import numpy as np
import pytest
import torch

from caches import User, batches_of, cache_of
from hiertcn.errors import InputError
from hiertcn.models import HierTCNConfig, build
from hiertcn.models.hiertcn import GAP_BUCKETS, Clock
from hiertcn.models.tcn import receptive_field
from scoring import in_batches

CATALOG = 6
TRAIN_EVENTS = np.ones(CATALOG + 1, dtype=np.int64)


def test_the_clock_tells_hour_weekday_and_pause(tmp_path: Path) -> None:
    """At each position those of the latest time a model may know there: the previous event's, or the session's."""
    begin = 1_700_000_000
    times = [begin + wait for wait in [0, 7, 1300, 90_000, 90_000, 91_000, 800_000]]
    known = [(times[0], 0.0), (times[0], 0), (times[1], 7), (times[3], 88_700), (times[3], 0), (times[4], 0)]
    known.append((times[6], 709_000))
    cache = cache_of(tmp_path / "cache", [("a", [1, 2, 3, 4, 5, 6, 1], times, "test")], 1800)
    (batch,) = batches_of(cache, "test", sessions=1000, chunk=1000)
    clock = Clock(3)
    with torch.no_grad():
        for column, table in enumerate([clock.hour, clock.weekday, clock.pause]):
            table.weight.zero_()
            table.weight[:, column] = torch.arange(float(len(table.weight)))
    first = [True, False, False, True, False, False, True]
    expected = []
    for (seen, pause), begins in zip(known, first, strict=True):
        moment = datetime.fromtimestamp(seen, UTC)
        bucket = floor(log2(pause + 1)) + (0 if begins else GAP_BUCKETS)
        expected.append([float(moment.hour), float(moment.weekday()), float(bucket)])
    assert clock(batch)[batch.layout.place].tolist() == expected


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_the_receptive_field_is_what_a_query_sees(layers: int, tmp_path: Path) -> None:
    """Of one long session, so the state is zero: the start token and `field - 1` items."""
    field = receptive_field(3, layers)
    assert field == {1: 3, 2: 7, 4: 31}[layers]
    model = build(HierTCNConfig(dim=6, units=5, channels=(7,) * layers, kernel=3), TRAIN_EVENTS, 0).double()
    items = [t % CATALOG + 1 for t in range(field + 3)]
    changed = [[*items[:t], items[t] % CATALOG + 1, *items[t + 1 :]] for t in range(len(items))]
    users: list[User] = [(k, row, [*range(len(row))], "test") for k, row in enumerate([items, *changed])]
    batches = batches_of(cache_of(tmp_path / "cache", users, 1800), "test")
    original, *others = (scores[-1] for scores in in_batches(model, batches).split(len(items)))
    moved = [not torch.allclose(scores, original, atol=1e-12) for scores in others]
    assert moved == [False] * (len(items) - 1 - field) + [True] * field + [False]


def test_the_paper_preset_has_the_papers_shape() -> None:
    config = HierTCNConfig()
    model = build(config, np.ones(101, dtype=np.int64), 0)
    assert model.state_size == 256
    assert receptive_field(config.kernel, 2) == 13
    assert receptive_field(config.kernel, 4) == 61
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes["items.weight"] == (101, 128)
    assert shapes["input_item.weight"][1] + shapes["input_state.weight"][1] == 384
    assert shapes["tcn.blocks.1.weight"] == (5, 128, 128)
    assert not any("norm" in name or "clock" in name or "residual" in name for name in shapes)


BAD = [{"kernel": 0}, {"channels": ()}, {"aggregate": "sum"}, {"dropout": 1.0}, {"chanels": (8,)}]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_a_config_that_makes_no_model_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(InputError, match="|".join(bad)):
        HierTCNConfig(**bad)
