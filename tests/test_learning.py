"""What is learned on a log whose best possible ranking is known, and on one where there is nothing to learn.

The optimum of a level is the best that any model of that level alone can do, so HierTCN above it uses both.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from hiertcn.artifact import Run
from hiertcn.cache import Cache
from hiertcn.evaluation import Evaluation, evaluate
from hiertcn.metrics import Table, difference, measure
from hiertcn.models import GRUConfig, HierTCNConfig, ModelConfig, MovingAverageConfig, hiertcn
from hiertcn.models.hiertcn import HierTCN
from hiertcn.preparation import prepare
from hiertcn.settings import TrainConfig
from hiertcn.synth import SimulationConfig, optimum, shuffled, simulate
from hiertcn.training import train

SIMULATION = SimulationConfig(users=1000, tastes=8, ring=12, sessions=12)
BOTH = HierTCNConfig(dim=48, units=48, channels=(48, 48), norm=True, dropout=0.1)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("learning")


@pytest.fixture(scope="session")
def log() -> pl.DataFrame:
    return simulate(SIMULATION)


@pytest.fixture(scope="session")
def cache(folder: Path, log: pl.DataFrame) -> Cache:
    return prepare(log, folder / "cache")


def trained(cache: Cache, config: ModelConfig, out: Path, epochs: int = 8) -> Run:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    settings = TrainConfig(epochs=epochs, learning_rate=5e-3, validation_users=0.3)
    run = train(cache, config, settings, out)
    torch.set_num_threads(threads)
    return run


@pytest.fixture(scope="session")
def both(cache: Cache, folder: Path) -> Evaluation:
    """HierTCN on the test part: each user's last tenth."""
    return evaluate(trained(cache, BOTH, folder / "both"), cache)


@pytest.fixture(scope="session")
def best(log: pl.DataFrame, both: Evaluation) -> dict[str, np.ndarray]:
    """Ranks of the same targets in the best ranking by both levels, and by each alone."""
    # The log is in the order of the cache: by user and time.
    targets = np.zeros(log.height, dtype=bool)
    targets[both.ranks.events] = True
    alone = {"both": {}, "session": {"long_term": False}, "long term": {"session": False}}
    return {name: optimum(log, SIMULATION, targets, ties_seed=0, **level) for name, level in alone.items()}


def ahead(ours: Evaluation | np.ndarray, theirs: Evaluation | np.ndarray, of: Evaluation) -> Table:
    """Paired differences of the metrics of two rankings of the targets of `of`."""
    ranks = [given.ranks.ranks if isinstance(given, Evaluation) else given for given in (ours, theirs)]
    assert of.ranked.all()
    return difference(*ranks, of.targets.user, of.catalog.size)


def test_hiertcn_comes_within_a_tenth_of_the_optimum(both: Evaluation, best: dict[str, np.ndarray]) -> None:
    bound = measure(best["both"], both.targets.user, both.catalog.size).event
    assert both.table.event["recall@10"] >= 0.92 * bound["recall@10"]
    assert both.table.event["mrr"] >= 0.88 * bound["mrr"]
    for metric in ("recall@10", "mrr"):
        assert ahead(both, best["both"], of=both).event_interval[metric][0] <= 0


@pytest.mark.parametrize("level", ["session", "long term"])
def test_hiertcn_is_above_what_one_level_can_reach(both: Evaluation, best: dict[str, np.ndarray], level: str) -> None:
    found = ahead(both, best[level], of=both)
    for interval in (found.event_interval, found.user_interval):
        assert interval["recall@10"][0] > 0
        assert interval["mrr"][0] > 0


def without_folding(monkeypatch: pytest.MonkeyPatch) -> None:
    """HierTCN that knows the running session only."""
    monkeypatch.setattr(HierTCN, "_fold", lambda _, batch, s, vectors: (s.new_zeros(batch.sessions, s.shape[1]), s))


def without_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """HierTCN that knows finished sessions only."""
    whole = HierTCN._encode
    monkeypatch.setattr(HierTCN, "_encode", lambda self, batch, s, vectors: whole(self, batch, s, vectors * 0))


# No model of one level is above its optimum, and that HierTCN is, the test before this one holds.
@pytest.mark.slow
@pytest.mark.parametrize("change", [without_folding, without_session])
def test_each_level_adds(
    change: Callable[[pytest.MonkeyPatch], None],
    cache: Cache,
    folder: Path,
    both: Evaluation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    change(monkeypatch)
    one = evaluate(trained(cache, BOTH, folder / change.__name__), cache)
    found = ahead(both, one, of=both).event_interval
    assert found["recall@10"][0] > 0.05
    assert found["mrr"][0] > 0.05


@pytest.mark.parametrize("config", [MovingAverageConfig(dim=48), GRUConfig(dim=48, units=48)], ids=lambda c: c.name)
def test_hiertcn_is_above_models_without_levels(
    config: ModelConfig, cache: Cache, folder: Path, both: Evaluation
) -> None:
    other = evaluate(trained(cache, config, folder / config.name), cache)
    found = ahead(both, other, of=both).event_interval
    assert found["recall@10"][0] > 0.05
    assert found["mrr"][0] > 0.02


@pytest.mark.parametrize("name", ["popularity", "last_items"])
def test_hiertcn_is_above_counting(name: str, cache: Cache, folder: Path, both: Evaluation) -> None:
    found = ahead(both, evaluate(folder / "both", cache, model=name), of=both).event_interval
    assert found["recall@10"][0] > 0.3
    assert found["mrr"][0] > 0.2


def test_on_the_control_nothing_is_learned(folder: Path, log: pl.DataFrame) -> None:
    control = prepare(shuffled(log, seed=1), folder / "control")
    run = trained(control, BOTH, folder / "shuffled", epochs=3)
    ours, popular = evaluate(run, control), evaluate(run, control, model="popularity")
    found = difference(ours.ranks.ranks, popular.ranks.ranks, ours.targets.user, ours.catalog.size)
    for metric in ("recall@10", "recall@20", "mrr"):
        low, high = found.event_interval[metric]
        # The interval, widened to four standard errors, so that chance does not decide.
        assert low - (high - low) / 2 <= 0
    assert ours.table.event["recall@10"] < 1.3 * 10 / control.catalog.size


def test_a_leak_would_show(
    cache: Cache, folder: Path, best: dict[str, np.ndarray], both: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a position sees the item it asks for, the ranking is better than the best possible one."""
    monkeypatch.setattr(hiertcn, "shift", lambda values, batch: values)
    leaked = evaluate(trained(cache, BOTH, folder / "leak", epochs=2), cache)
    assert ahead(leaked, best["both"], of=both).event_interval["recall@10"][0] > 0.1
