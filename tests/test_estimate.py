"""What training says it needs of memory, and that it asks before it takes any."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from rich.console import Console

from hiertcn import estimate, training
from hiertcn.cache import Cache
from hiertcn.errors import InputError
from hiertcn.models import HierTCNConfig, build
from hiertcn.models.outline import outline
from hiertcn.progress import Progress
from hiertcn.settings import TrainConfig
from hiertcn.training import train
from runs import MODEL, SAMPLED, run_of, small_cache


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return small_cache(tmp_path_factory.mktemp("log") / "cache")


def test_a_need_of_more_memory_than_is_free_is_refused(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10_000))
    with pytest.raises(InputError, match=r"Training needs about 0\.0 GB.*--yes") as caught:
        run_of(cache, tmp_path / "run")
    assert caught.value.exit_code == 2
    assert run_of(cache, tmp_path / "run", allow_memory=True, epochs=1).manifest["history"]


@pytest.mark.parametrize(
    "sizes",
    [
        {"dim": 10**9},
        {"dim": 10**9, "units": 10**9, "channels": (10**9, 10**9)},
        {"channels": (10**6,), "kernel": 10**6},
    ],
)
def test_a_model_beyond_any_memory_is_refused_without_taking_it(
    sizes: dict[str, Any], cache: Cache, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"GB are free|too large for any machine"):
        train(cache, HierTCNConfig(**sizes), TrainConfig(), tmp_path / "run")


def test_the_estimate_is_said_first_and_counts_what_it_should(cache: Cache, tmp_path: Path) -> None:
    shown = io.StringIO()
    run_of(cache, tmp_path / "run", epochs=1, progress=Progress(Console(file=shown, width=200)))
    said = shown.getvalue()
    parameters = sum(p.numel() for p in build(MODEL, cache.catalog.train_events, 0).parameters())
    assert said.startswith(f"{parameters:,} parameters; weights, optimizer, a batch and what is read need about")


def test_the_estimate_grows_with_the_scores_of_a_batch(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(training, "check_memory", lambda *_, **counts: asked.append(counts["scores"]))
    monkeypatch.setattr(training._Training, "run", lambda *_: None)
    items, events = cache.manifest.items, cache.manifest.parts["train"]["events"]
    for number, settings in enumerate(
        ({}, SAMPLED, {**SAMPLED, "in_batch_negatives": False}, {"rows": 1000}, {"loss": "bpr"})
    ):
        run_of(cache, cache.path.parent / str(number), **settings)
    assert asked == [48 * (items + 1), 48 * (10 + 48), 48 * 10, events * (items + 1), 48 * 21 * 6]


def test_the_estimate_counts_weights_activations_scores_and_what_is_read() -> None:
    events = np.ones(101, dtype=np.int64)
    model = outline(HierTCNConfig(dim=10, units=20, state_layers=1, channels=(30,), kernel=2), events)
    said: list[str] = []

    def gigabytes(**counts: int) -> float:
        estimate.check_memory(
            model,
            **{"positions": 0, "scores": 0, "read": 0, "crowd": 0, "averaged": False, **counts},
            allow=True,
            say=said.append,
        )
        return float(said[-1].split("about ")[1].split(" GB")[0])

    million = 10**6
    assert gigabytes() == 0
    assert gigabytes(scores=10 * million) == pytest.approx(3 * 4 * 0.01, abs=0.006)
    assert gigabytes(read=10 * million) == pytest.approx(0.48, abs=0.006)
    assert gigabytes(crowd=480 * million) == pytest.approx(0.48, abs=0.006)
    # GRU 60 + 60, both blocks of W_z 30 + 30, two taps of 30 channels, the head 10.
    assert gigabytes(positions=million) == pytest.approx(3 * 4 * (120 + 60 + 60 + 10) / 1000, abs=0.006)
