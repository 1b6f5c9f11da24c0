"""Exact ranks against sorting every score, in blocks of any size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from caches import User, cache_of
from hiertcn.cache import Cache
from hiertcn.errors import TrainingError
from hiertcn.models import CONFIGS, Model, build
from hiertcn.ragged import SessionBatch
from hiertcn.ranking import Ranks, rank, ranking_batches
from hiertcn.streams import known_rows

GAP, ITEMS = 100, 12


class Given(Model):
    """Scores that are given: `table` [events, items] has a line for each event of the cache.

    Where several events are asked at one position they share the line of one of them: `line` [events] says which.
    """

    def __init__(self, table: npt.NDArray[np.floating]) -> None:
        super().__init__(table.shape[1], 0)
        self.table = torch.from_numpy(table).float()
        self.line = torch.arange(len(table))
        self.inner = torch.nn.Dropout()
        self.shapes: list[tuple[int, ...]] = []
        self.modes: set[bool] = set()

    def fold(self, batch: SessionBatch, initial: Tensor) -> tuple[Tensor, Tensor]:
        return initial.new_zeros(batch.sessions, 0), initial

    def encode(self, batch: SessionBatch, long_term: Tensor) -> Tensor:
        queries = torch.zeros(len(batch.items), 1, dtype=torch.int64)
        queries[batch.positions, 0] = batch.events
        self.line[batch.events] = queries[batch.positions, 0]
        self.modes |= {self.training, self.inner.training}
        return queries

    def score(self, queries: Tensor) -> Tensor:
        scores = self.table[queries[:, 0]]
        self.shapes.append(tuple(scores.shape))
        return scores


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """40 users with up to 30 events, some on two items outside the catalog, in three shards."""
    rng = np.random.default_rng(0)
    users: list[User] = []
    for user in range(40):
        count = int(rng.integers(1, 30))
        times = np.cumsum(rng.choice([1, GAP - 1, GAP, 5 * GAP], count))
        parts = rng.choice(["train", "valid", "test"], count)
        users.append((f"u{user:02}", rng.integers(1, ITEMS + 3, count).tolist(), times.tolist(), parts.tolist()))
    return cache_of(tmp_path_factory.mktemp("log") / "cache", users, GAP, catalog_size=ITEMS, shards=3)


def every_event(cache: Cache) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Item rows and parts of all events."""
    shards = [cache.shard(index).sessions for index in range(len(cache))]
    return np.concatenate([s.items for s in shards]), np.concatenate([s.parts for s in shards])


def ranked(model: Model, cache: Cache, part: str = "test", top: int = 0, **block: int) -> Ranks:
    batches = ranking_batches(cache, part, known_rows(cache.catalog))
    return rank(model, batches, batches.rows, top=top, **block)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10**6),
    levels=st.sampled_from([1, 2, 4, 10**9]),
    block=st.integers(1, 40 * ITEMS),
    top=st.integers(0, ITEMS + 2),
    part=st.sampled_from(["valid", "test"]),
)
def test_ranks_are_those_of_sorting(cache: Cache, seed: int, levels: int, block: int, top: int, part: str) -> None:
    items, parts = every_event(cache)
    # Fewer levels than items make ties.
    table = np.random.default_rng(seed).integers(levels, size=(len(items), ITEMS)).astype(np.float32)
    model = Given(table)
    found = ranked(model, cache, part, top, block=block)
    asked = np.flatnonzero(parts == ("valid", "test").index(part) + 1)
    np.testing.assert_array_equal(found.events, asked)
    assert found.top.shape == (len(asked), min(top, ITEMS))
    for event, position, best in zip(asked, found.ranks, found.top, strict=True):
        scores = table[model.line[event]]
        descending = scores[np.argsort(-scores)]
        assert scores[best - 1].tolist() == descending[: len(best)].tolist()
        assert len(set(best.tolist())) == len(best)
        if items[event] > ITEMS:
            assert np.isnan(position)
        else:
            places = 1 + np.flatnonzero(descending == scores[items[event] - 1])
            assert position == places.mean()
    assert max(rows * width for rows, width in model.shapes) <= max(block, ITEMS)
    assert sum(rows for rows, _ in model.shapes) == len(asked)


def test_blocks_are_as_large_as_they_may_be(cache: Cache) -> None:
    model = Given(np.zeros((len(every_event(cache)[0]), ITEMS)))
    batches = ranking_batches(cache, "test", known_rows(cache.catalog))
    rank(model, batches, batches.rows, block=5 * ITEMS)
    assert max(rows for rows, _ in model.shapes) == 5
    assert len(model.shapes) <= batches.targets / 5 + len(batches)


def test_constant_scores_get_the_middle_rank(cache: Cache) -> None:
    items, parts = every_event(cache)
    found = ranked(Given(np.zeros((len(items), ITEMS))), cache)
    known = items[parts == 2] <= ITEMS
    assert set(found.ranks[known].tolist()) == {(ITEMS + 1) / 2}
    assert np.isnan(found.ranks[~known]).all()
    assert 0 < known.sum() < len(known)


@pytest.mark.parametrize("mode", [True, False])
def test_a_model_is_asked_in_eval_mode_and_given_back_as_it_was(cache: Cache, mode: bool) -> None:
    model = Given(np.zeros((len(every_event(cache)[0]), ITEMS))).train(mode)
    ranked(model, cache)
    assert model.modes == {False}
    assert model.training is model.inner.training is mode


def test_dropout_and_gradients_are_off(cache: Cache) -> None:
    config = CONFIGS["hiertcn"](dim=4, units=3, channels=(4,), dropout=0.5)
    model = build(config, cache.catalog.train_events, seed=1).train()
    np.testing.assert_array_equal(ranked(model, cache).ranks, ranked(model, cache).ranks)
    kept: list[bool] = []
    model.register_forward_hook(lambda *given: kept.append(given[2][0].requires_grad))
    ranked(model, cache)
    assert set(kept) == {False}


def test_nan_is_no_score(cache: Cache) -> None:
    items, _ = every_event(cache)
    table = np.tile(-np.arange(ITEMS, dtype=np.float32), (len(items), 1))
    table[:, ITEMS - 1] = np.nan
    model = Given(table).train()
    with pytest.raises(TrainingError, match=r"NaN.*[Tt]rain"):
        ranked(model, cache)
    assert model.training


def test_nan_of_another_item_is_not_to_the_advantage_of_the_target(tmp_path: Path) -> None:
    cache = cache_of(tmp_path / "cache", [("a", [1, 2, 1], [0, 1, 2], ["train", "train", "test"])], GAP)
    found = ranked(Given(np.array([[0, np.nan]] * 3)), cache, top=1)
    assert (found.ranks, found.top) == (2, 2)


def test_a_share_of_the_users_is_ranked_as_in_the_whole(cache: Cache) -> None:
    items, _ = every_event(cache)
    model = Given(np.random.default_rng(0).random((len(items), ITEMS)))
    whole = ranked(model, cache)
    batches = ranking_batches(cache, "test", known_rows(cache.catalog), users=0.5, seed=1)
    found = rank(model, batches, batches.rows)
    assert len(found.events) == batches.targets
    assert 0.2 < len(found.events) / len(whole.events) < 0.8
    of = dict(zip(whole.events.tolist(), whole.ranks.tolist(), strict=True))
    np.testing.assert_array_equal(found.ranks, [of[event] for event in found.events.tolist()])


def test_a_part_without_events_gives_no_ranks(tmp_path: Path) -> None:
    cache = cache_of(tmp_path / "cache", [("a", [1, 2], [0, 1], "train"), ("b", [2, 1], [0, 1], "train")], GAP)
    found = ranked(Given(np.zeros((4, 2))), cache, top=3)
    assert found.events.shape == found.ranks.shape == (0,)
    assert found.top.shape[0] == 0
