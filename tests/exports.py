"""What tests of exported models share: every option of HierTCN, and people with ragged sessions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from hiertcn.crowd import Crowd
from hiertcn.exported import Exported
from hiertcn.models import HierTCNConfig
from hiertcn.models.hiertcn import HierTCN
from hiertcn.sessions import PARTS, SECOND, Sessions, sessionize
from hiertcn.streams import Stream
from hiertcn.wholes import whole_batch
from people import FULL, GAP, KINDS, SIZES, START

ITEMS, LONGEST = 20, 9
HEARD: dict[str, Any] = {"trends": (0.1, 2.0), "follows": (1.0,), "repeats": 4}
CONFIGS = {
    "plain": HierTCNConfig(**SIZES),
    "full": FULL,
    "learned decay, max": KINDS["learned decay, max"],
    "repeats": KINDS["repeats"],
    "gru": HierTCNConfig(**SIZES, low="gru", clock=True, gap_decay="fixed", norm=True),
    "mean": HierTCNConfig(**SIZES, low="mean", clock=True, norm=True, repeats=3),
    "softmax": KINDS["softmax head, four layers"],
    "crowd": HierTCNConfig(**SIZES, **HEARD, norm=True, clock=True),
    "softmax, crowd": HierTCNConfig(**SIZES, head="softmax", trends=(0.5,)),
    "impressions, l2": HierTCNConfig(**SIZES, impressions=True, ranking="l2", kernel=2, gap_decay="learned"),
    "unit, short field": HierTCNConfig(dim=8, units=6, state_layers=1, channels=(5,), kernel=1, unit=True),
    "growing channels": HierTCNConfig(dim=4, units=3, state_layers=3, channels=(5, 6, 7), kernel=3, follows=(0.5,)),
}

# Events of a person: seconds since the one before, item row (0: outside the catalog), rows shown beside it.
_EVENT = st.tuples(
    st.sampled_from([0, 1, 7, 600, GAP - 1, GAP, GAP + 1, 100_000, 3_000_000]),
    st.integers(0, ITEMS),
    st.lists(st.integers(1, ITEMS), max_size=3),
)
PEOPLE = st.lists(st.lists(_EVENT, min_size=1, max_size=40), min_size=1, max_size=5)


def stream_of(people: list[list[tuple[int, int, list[int]]]], part: str = "test", items: int = ITEMS) -> Stream:
    """Every event of the people asked for, or none but the last."""
    events = [event for person in people for event in person]
    offsets = np.cumsum([0, *(len(person) for person in people)])
    times = np.concatenate([START + np.cumsum([event[0] for event in person]) for person in people]) * SECOND
    bounds = sessionize(offsets, times, GAP, LONGEST)
    parts = np.full(len(events), PARTS.index("test"), dtype=np.uint8)
    if part != "test":
        parts[:] = 0
        parts[offsets[1:] - 1] = PARTS.index("test")
    whole = Sessions(
        np.array([event[1] for event in events], dtype=np.int32),
        times.astype(np.int64),
        parts,
        bounds,
        np.searchsorted(bounds, offsets),
        np.array([row for event in events for row in event[2]], dtype=np.int32),
        np.cumsum([0, *(len(event[2]) for event in events)]),
    )
    return Stream.of(whole, np.arange(items + 1), "test", GAP, LONGEST)


def crowd_for(model: Any, seed: int = 0) -> Crowd | None:
    """Of a few hundred picks around the time the people are there."""
    if not any(model.horizons):
        return None
    random = np.random.default_rng(seed)
    rows = random.integers(1, ITEMS + 1, (2, 300))
    return Crowd.of(model.horizons, ITEMS, rows[0], rows[1], START + random.uniform(-5_000, 5_000, 300))


def stirred(model: HierTCN, seed: int = 0) -> None:
    """Weights that are zero before training, such as those of clocks and boosts, get a say, too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if not name.startswith("items") and name != "log_bandwidth":
                weights.add_(0.2 * torch.randn(weights.shape, generator=generator))


def assert_same(model: HierTCN, exported: Exported, stream: Stream, seed: int = 0) -> None:
    """Queries, states and scores of both, from states that are not zero, to 1e-5."""
    crowd, users = crowd_for(model, seed), len(stream.user_offsets) - 1
    random = np.random.default_rng(seed)
    initial = random.normal(size=(users, exported.state_size)).astype(np.float32) / 2
    if repeats := model.config.repeats:
        initial[:, -repeats:] = random.integers(0, ITEMS + 1, (users, repeats))
    batch = whole_batch(stream, crowd)
    with torch.inference_mode():
        expected, expected_after = model(batch, torch.from_numpy(initial))
        expected = expected[batch.positions]
        scores = model.score(expected).numpy()
        rows = torch.from_numpy(random.integers(1, model.items_in_catalog + 1, (len(expected), 6)))
        some = model.score_rows(expected, rows).numpy()
    found, after = exported.encode(stream, initial, crowd), exported.fold(stream, initial)
    assert found.dtype == after.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(after, expected_after, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(exported.score(found), scores, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(exported.score_rows(found, rows.numpy()), some, atol=1e-5, rtol=1e-5)
