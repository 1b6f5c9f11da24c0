"""A model that is given its target is found out; one that is not passes, on a log that has much to learn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from caches import cache_of
from hiertcn.artifact import Run
from hiertcn.cache import Cache
from hiertcn.crowd import Crowd
from hiertcn.evaluation import evaluate_model, simple_model
from hiertcn.models import CONFIGS, HierTCNConfig, Model, SKNNConfig, TrendingConfig, build
from hiertcn.models.hiertcn import HierTCN
from hiertcn.models.popularity import LastItems, Popularity
from hiertcn.preparation import prepare
from hiertcn.ragged import SessionBatch
from hiertcn.sessions import PARTS
from hiertcn.settings import TrainConfig
from hiertcn.soundness import Permuted, best_constant, check_soundness
from hiertcn.synth import SimulationConfig, simulate
from hiertcn.training import train
from people import KINDS, filled
from test_evaluation import GAP, ITEMS, people

SIMULATION = SimulationConfig(users=150, tastes=4, ring=6, sessions=8, seed=2)
SMALL = HierTCNConfig(dim=16, units=16, channels=(16, 16))
FAST = TrainConfig(epochs=5, learning_rate=0.01, device="cpu")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return prepare(simulate(SIMULATION), tmp_path_factory.mktemp("log") / "cache", events_per_shard=1500)


@pytest.fixture(scope="module")
def trained(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(cache, SMALL, FAST, tmp_path_factory.mktemp("run") / "run")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_is_sound(kind: str, cache: Cache) -> None:
    model = filled(build(KINDS[kind], cache.catalog.train_events, 0))
    found = check_soundness(model, cache.catalog, cache)
    assert not found.leaks, found


class Told(LastItems):
    """Reads the targets of the batch."""

    def encode(self, batch: SessionBatch, long_term: Tensor) -> Tensor:
        queries = super().encode(batch, long_term).clone()
        queries[batch.positions, -1] = batch.targets
        return queries


class Unshifted(Popularity):
    """Reads the item of its own position."""

    def encode(self, batch: SessionBatch, long_term: Tensor) -> Tensor:
        return batch.items.unsqueeze(1)

    def score(self, queries: Tensor) -> Tensor:
        scores = self.train_events.expand(len(queries), -1)
        return scores.scatter(1, queries, 1e9)[:, 1:]


def leaky(kind: type[Model], name: str, cache: Cache) -> Model:
    model = kind(cache.catalog.size, CONFIGS[name]())  # type: ignore[call-arg, arg-type]
    model.count(torch.from_numpy(cache.catalog.train_events).float())  # type: ignore[operator]
    return model


@pytest.mark.parametrize("part", ["valid", "test"])
def test_honest_models_are_sound(part: str, cache: Cache, trained: Run, tmp_path: Path) -> None:
    # They know much of the log itself …
    chance = evaluate_model(simple_model("popularity", cache.catalog), cache.catalog, cache, part).table
    assert evaluate_model(trained.model, cache.catalog, cache, part).table.event["mrr"] > 1.25 * chance.event["mrr"]
    knn = train(cache, SKNNConfig(), FAST, tmp_path / "knn")
    counted = [simple_model(name, cache.catalog) for name in ("popularity", "last_items")]
    for model in (trained.model, knn.model, *counted):
        for seed in range(3):
            found = check_soundness(model, cache.catalog, cache, seed, part)
            # … and nothing of the permuted one.
            assert not found.leaks, found
            assert found.mrr[0] < found.constant
            assert found.same_queries


def test_a_model_that_reads_the_targets_is_flagged(cache: Cache) -> None:
    found = check_soundness(leaky(Told, "last_items", cache), cache.catalog, cache)
    assert found.leaks
    assert found.mrr[0] > 0.99
    assert not found.same_queries


def test_a_model_that_reads_its_own_position_is_flagged(cache: Cache) -> None:
    found = check_soundness(leaky(Unshifted, "popularity", cache), cache.catalog, cache)
    assert found.leaks
    assert found.mrr[0] > 0.99
    assert found.difference[1] > 0.5
    assert not found.same_queries


class Hinted(Popularity):
    """Knows whether the item of its own position has an odd row, and makes little of it."""

    def encode(self, batch: SessionBatch, long_term: Tensor) -> Tensor:
        return (batch.items % 2).unsqueeze(1)

    def score(self, queries: Tensor) -> Tensor:
        odd = torch.arange(1, self.items_in_catalog + 1) % 2
        return self.train_events[1:] + 1e-3 * (queries == odd)


def test_a_leak_that_is_too_weak_for_chance_is_flagged(cache: Cache) -> None:
    found = check_soundness(leaky(Hinted, "popularity", cache), cache.catalog, cache)
    assert found.difference[1] < 0
    assert not found.same_queries
    assert found.leaks


class Punctual(Popularity):
    """Makes something of what it knows of time."""

    def encode(self, batch: SessionBatch, long_term: Tensor) -> Tensor:
        return (batch.seen % 60).unsqueeze(1)

    def score(self, queries: Tensor) -> Tensor:
        return self.train_events[1:] + queries


def test_a_model_that_knows_when_its_target_was_picked_is_flagged(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time of the event itself in place of the one before it, which items cannot show."""
    model = leaky(Punctual, "popularity", cache)
    assert not check_soundness(model, cache.catalog, cache).leaks

    def told(times: Any, place: Any, lengths: Any, first: Any) -> Any:
        seen = np.zeros(int(lengths.sum()))
        seen[place] = times
        return seen

    monkeypatch.setattr("hiertcn.streams._seen", told)
    found = check_soundness(model, cache.catalog, cache)
    assert found.leaks
    assert not found.same_queries


def test_a_leak_that_was_trained_is_flagged(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shift by one forgotten, in training as in ranking; and with it right again, the same check passes."""
    monkeypatch.setattr("hiertcn.models.hiertcn.shift", lambda values, batch: values)
    run = train(cache, SMALL, FAST, tmp_path / "run")
    found = check_soundness(run.model, cache.catalog, cache)
    assert found.leaks
    assert found.mrr[0] > 2 * found.constant


def test_a_crowd_that_hears_what_is_still_to_come_is_flagged(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(TrendingConfig(), cache.catalog.train_events, 0)
    assert not check_soundness(model, cache.catalog, cache).leaks
    at = Crowd.at
    monkeypatch.setattr(Crowd, "at", lambda self, moments, after: at(self, moments + 600, after))
    found = check_soundness(model, cache.catalog, cache)
    assert found.leaks
    assert found.difference[1] > 0


def test_a_leak_through_the_state_is_flagged(cache: Cache, trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the state after a session depends on what was asked in it."""
    fold = HierTCN._fold

    def told(self: HierTCN, batch: SessionBatch, initial: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        before, after = fold(self, batch, initial, vectors)
        return before, after + batch.targets[0]

    monkeypatch.setattr(HierTCN, "_fold", told)
    assert not check_soundness(trained.model, cache.catalog, cache).same_queries


def test_the_permuted_log_keeps_everything_else(tmp_path: Path) -> None:
    cache = cache_of(tmp_path / "cache", people(), GAP, catalog_size=ITEMS, shards=3)
    permuted = Permuted(cache, "test", seed=1)
    ours, theirs = ([one.shard(i).sessions for i in range(3)] for one in (permuted, cache))
    for after, before in zip(ours, theirs, strict=True):
        same = replace(after, items=before.items)
        assert all(np.array_equal(getattr(same, name), getattr(before, name)) for name in vars(before))
        kept = before.parts != PARTS.index("test")
        assert np.array_equal(after.items[kept], before.items[kept])
    tested = [np.concatenate([s.items[s.parts == PARTS.index("test")] for s in one]) for one in (ours, theirs)]
    assert not np.array_equal(*tested)
    assert np.array_equal(*map(np.sort, tested))
    again = Permuted(cache, "test", seed=1).shard(2).sessions.items
    assert np.array_equal(again, ours[2].items)
    assert np.array_equal(permuted.shard(2).user_ids, cache.shard(2).user_ids)
    assert cache.verify() is None


def test_no_constant_ranking_is_better_than_the_best() -> None:
    random = np.random.default_rng(0)
    targets = random.choice([3, 5, 6, 9], 40, p=[0.5, 0.3, 0.15, 0.05])
    best = (1 / best_constant(targets)).mean()
    for _ in range(200):
        order = random.permutation(10)
        assert (1 / (order[targets] + 1.0)).mean() <= best + 1e-12
    assert best_constant(np.array([7, 7, 7, 2, 2, 1])).tolist() == [1, 1, 1, 2, 2, 3]
