"""The loop: what each setting does, when it stops, what it keeps and says; the optimizer; the memory it asks for."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

import caches
from hiertcn import checkpoint, objective, training
from hiertcn.artifact import Run
from hiertcn.cache import Cache
from hiertcn.errors import InputError, TrainingError
from hiertcn.losses import RANKING
from hiertcn.models import HierTCNConfig, LastItemsConfig, PopularityConfig
from hiertcn.preparation import prepare
from hiertcn.settings import TrainConfig
from hiertcn.synth import simulate
from hiertcn.training import train
from runs import MODEL, SAMPLED, SIMULATION, TRAIN, files_of, run_of, small_cache, state_of


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return small_cache(tmp_path_factory.mktemp("log") / "cache")


def model_file(run: Run) -> str:
    return str(run.manifest["weights"]["sha256"])


# No setting is dead. Those with tests of their own say which.

ELSEWHERE = {
    "epochs": "test_epochs_are_counted",
    "least_events": "test_a_small_log_is_read_more_often",
    "patience": "test_training_stops_after_epochs_without_a_better_one",
    "metric": "test_the_metric_decides_which_epoch_is_best",
    "validation_users": "test_a_share_of_the_users_is_validated",
    "checkpoint_steps": "test_checkpoints_come_every_so_many_steps",
    "device": "test_a_device_that_is_not_there",
    "shown_negatives": "test_what_was_shown_can_be_no_negative",
}
RANKED = {"loss": "hinge_logsigmoid", "own_negatives": 4}
WEIGHTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"loss": "sampled_softmax"}),
    (SAMPLED, {"uniform_negatives": 6}),
    (SAMPLED, {"popular_negatives": 6}),
    (SAMPLED, {"popularity_alpha": 0.1}),
    (SAMPLED, {"in_batch_negatives": False}),
    ({}, {"loss": "l2"}),
    *(({"loss": "bpr"}, {"loss": name}) for name in RANKING if name != "bpr"),
    (RANKED, {"own_negatives": 3}),
    (RANKED, {"drawn": "uniform"}),
    (RANKED, {"drawn": "in_batch"}),
    (RANKED, {"delta": 0.5}),
    ({"loss": "nce"}, {"nce_weight": 2.0}),
    ({}, {"rows": 5}),
    ({}, {"sessions": 5}),
    ({}, {"chunk": 4}),
    ({}, {"learning_rate": 0.02}),
    ({}, {"weight_decay": 0.1}),
    ({}, {"clip": 0.1}),
    ({}, {"decay_epochs": 2}),
    ({}, {"averaging": 0.9}),
    ({}, {"seed": 1}),
]


def test_every_setting_is_tested() -> None:
    assert {name for _, change in WEIGHTS for name in change} | set(ELSEWHERE) == set(TrainConfig.model_fields)
    tests = globals()
    assert all(inspect.isfunction(tests[name]) for name in ELSEWHERE.values())


@pytest.fixture(scope="module")
def weights(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], str]:
    """The weights that settings give, each time they are trained; twice is enough."""
    found: dict[str, str] = {}

    def trained(base: dict[str, Any]) -> str:
        if str(base) not in found:
            folder = tmp_path_factory.mktemp("base")
            once, again = (model_file(run_of(cache, folder / name, epochs=1, **base)) for name in ("once", "again"))
            assert once == again
            found[str(base)] = once
        return found[str(base)]

    return trained


@pytest.mark.parametrize(("base", "change"), WEIGHTS, ids=lambda value: ",".join(value) or "-")
def test_a_setting_changes_the_weights(
    base: dict[str, Any],
    change: dict[str, Any],
    cache: Cache,
    tmp_path: Path,
    weights: Callable[[dict[str, Any]], str],
) -> None:
    other = run_of(cache, tmp_path / "other", epochs=1, **{**base, **change})
    assert weights(base) != model_file(other)


def test_what_was_shown_can_be_no_negative(tmp_path: Path) -> None:
    """Then training is that of the same log without impressions, to the last bit."""
    log = simulate(SIMULATION)
    plain = prepare(log, tmp_path / "plain")
    shown = pl.Series("shown", [log["item_id"].unique().sort().to_list()[:3]] * len(log))
    cache = prepare(log.with_columns(shown), tmp_path / "shown", impression_column="shown")
    files = [
        model_file(run_of(one, tmp_path / f"{one.path.name}-{own}", epochs=1, **RANKED, shown_negatives=own))
        for one in (plain, cache)
        for own in (True, False)
    ]
    assert files[0] == files[1] == files[3] != files[2]


def test_a_small_log_is_read_more_often(cache: Cache, tmp_path: Path) -> None:
    """The learning rate then falls over as many passes."""
    events = int(cache.catalog.train_events.sum())

    def trained(name: str, **settings: int) -> Run:
        return run_of(cache, tmp_path / name, patience=9, **settings)

    told = trained("told", epochs=4, decay_epochs=4)
    more = trained("more", epochs=2, decay_epochs=2, least_events=4 * events)
    assert model_file(more) == model_file(told) != model_file(trained("fast", epochs=4, decay_epochs=2))
    assert len(trained("part", epochs=2, least_events=2 * events + 1).manifest["history"]) == 3
    assert len(trained("few", epochs=2, least_events=events).manifest["history"]) == 2


def test_epochs_are_counted(cache: Cache, tmp_path: Path) -> None:
    for epochs in (1, 3):
        history = run_of(cache, tmp_path / str(epochs), epochs=epochs).manifest["history"]
        assert [line["epoch"] for line in history] == list(range(1, epochs + 1))


def test_checkpoints_come_every_so_many_steps(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at: list[int] = []
    save = checkpoint.save

    def spy(out: Path, tensors: Any, identity: Any, facts: Any) -> None:
        at.append(facts["step"])
        save(out, tensors, identity, facts)

    monkeypatch.setattr(checkpoint, "save", spy)
    run_of(cache, tmp_path / "run", epochs=1, checkpoint_steps=4)
    last = state_of(tmp_path / "run")["step"]
    assert at == [*range(0, last + 1, 4), last]


def test_a_share_of_the_users_is_validated(cache: Cache, tmp_path: Path) -> None:
    all_users = run_of(cache, tmp_path / "all", epochs=1)
    half = run_of(cache, tmp_path / "half", epochs=1, validation_users=0.5)
    assert model_file(all_users) == model_file(half)
    assert all_users.manifest["validation"]["mrr"] != half.manifest["validation"]["mrr"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cuda.*auto"):
        run_of(cache, tmp_path / "run", device="cuda")
    assert model_file(run_of(cache, tmp_path / "auto", epochs=1, device="auto")) == model_file(
        run_of(cache, tmp_path / "cpu", epochs=1, device="cpu")
    )


@pytest.mark.parametrize("config", [PopularityConfig(), LastItemsConfig()])
def test_a_model_that_only_counts_is_not_trained(config: Any, cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing to train.*hiertcn evaluate"):
        train(cache, config, TrainConfig(), tmp_path / "run")


def test_a_log_with_an_empty_part_is_refused_at_once(tmp_path: Path) -> None:
    users = [("u", [1, 2, 1, 2], [0, 10, 20, 30], "train"), ("v", [1, 2], [0, 10], "test")]
    without = caches.cache_of(tmp_path / "cache", users, 1800)
    with pytest.raises(InputError, match=r"valid part of .* holds no event"):
        run_of(without, tmp_path / "run")
    users = [("u", [1, 2, 1, 2], [0, 10, 20, 30], "train"), ("v", [3, 3], [0, 10], "valid")]
    outside = caches.cache_of(tmp_path / "outside", users, 1800, catalog_size=2)
    with pytest.raises(InputError, match=r"All 2 valid events of .* outside the catalog"):
        run_of(outside, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_share_of_users_that_holds_none_is_refused_at_once(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"validation_users = 1e-05 draws none of the 24 users"):
        run_of(cache, tmp_path / "run", validation_users=1e-5)
    assert not (tmp_path / "run").exists()


# When training stops, and which model is kept.


def scripted(monkeypatch: pytest.MonkeyPatch, *scores: float, metric: str = "mrr", other: str = "recall@10") -> None:
    """Validation finds these scores, one epoch after another."""
    left = iter(scores)

    def evaluate(*_: Any, **__: Any) -> Any:
        score = next(left)
        return SimpleNamespace(table=SimpleNamespace(event={metric: score, other: 1 - score}))

    monkeypatch.setattr(training, "evaluate_model", evaluate)


@pytest.mark.parametrize(
    ("scores", "patience", "epochs", "best"),
    [
        ([0.1, 0.3, 0.2, 0.25, 0.9], 2, 4, 2),
        ([0.3, 0.2, 0.9], 1, 2, 1),
        ([0.1, 0.2, 0.3], 1, 3, 3),
        ([0.2, 0.2, 0.2, 0.2], 2, 3, 1),
        ([0.1, 0.3, 0.2, 0.4, 0.3, 0.3, 0.9], 2, 6, 4),
    ],
)
def test_training_stops_after_epochs_without_a_better_one(
    scores: list[float],
    patience: int,
    epochs: int,
    best: int,
    cache: Cache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    most = len(scores)
    scripted(monkeypatch, *scores)
    run = run_of(cache, tmp_path / "run", epochs=most, patience=patience)
    assert [line["mrr"] for line in run.manifest["history"]] == scores[:epochs]
    assert run.manifest["validation"] == run.manifest["history"][best - 1]
    assert run.manifest["validation"]["epoch"] == best
    scripted(monkeypatch, *range(most))
    assert model_file(run) == model_file(run_of(cache, tmp_path / "best", epochs=best))


def test_patience_lasts_over_a_resume(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, 0.3, 0.2, 0.1, 0.9)
    for epochs in (1, 2, 3, 4):
        run = run_of(cache, tmp_path / "run", epochs=epochs, patience=2, resume=epochs > 1)
    assert len(run.manifest["history"]) == 3
    scripted(monkeypatch, 0.9)
    run = run_of(cache, tmp_path / "run", epochs=4, patience=3, resume=True)
    assert run.manifest["validation"]["epoch"] == 4


def test_the_metric_decides_which_epoch_is_best(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for metric, best in (("mrr", 2), ("recall@10", 1)):
        scripted(monkeypatch, 0.1, 0.3, 0.2)
        run = run_of(cache, tmp_path / metric, epochs=3, metric=metric)
        assert run.manifest["validation"]["epoch"] == best


def test_the_model_kept_is_the_model_that_was_validated(cache: Cache, tmp_path: Path) -> None:
    from hiertcn.evaluation import evaluate

    run = run_of(cache, tmp_path / "run", epochs=3)
    found = evaluate(run, cache, "valid").table.event
    assert {name: run.manifest["validation"][name] for name in found} == pytest.approx(found, abs=1e-12)


def test_the_loss_in_the_history_falls(cache: Cache, tmp_path: Path) -> None:
    losses = [line["loss"] for line in run_of(cache, tmp_path / "run", epochs=4).manifest["history"]]
    assert 0 < losses[-1] < losses[0] < np.log(cache.manifest.items) + 0.1


# Numbers that are not finite.


def poisoned(monkeypatch: pytest.MonkeyPatch, at: int, value: float) -> None:
    """The loss of the `at`-th step is multiplied by `value`."""
    calls = [0]
    right = objective.cross_entropy

    def wrong(*args: Any) -> Tensor:
        calls[0] += 1
        return right(*args) * (value if calls[0] == at else 1.0)

    monkeypatch.setattr(objective, "cross_entropy", wrong)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_training(
    value: float, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_of(cache, tmp_path / "whole")
    steps = state_of(whole.path)["step"]
    out = tmp_path / "run"
    run_of(cache, out, epochs=1)
    first = state_of(out)["step"]
    poisoned(monkeypatch, 6, value)
    with pytest.raises(TrainingError) as caught:
        run_of(cache, out, resume=True, checkpoint_steps=first + 4)
    message = str(caught.value)
    for told in (f"step {first + 6} ", "batch 6 of epoch 2", "learning rate 0.01", "checkpoint", str(out)):
        assert told in message
    assert caught.value.exit_code == 4
    tensors, facts = checkpoint.load(out)
    assert facts["step"] == first + 4 < steps
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    monkeypatch.undo()
    run_of(cache, out, resume=True)
    assert files_of(out) == files_of(tmp_path / "whole")


def test_a_first_loss_that_is_not_finite(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned(monkeypatch, 1, float("nan"))
    with pytest.raises(TrainingError, match=r"step 1 \(batch 1 of epoch 1\)"):
        run_of(cache, tmp_path / "run", checkpoint_steps=1)
    assert state_of(tmp_path / "run")["step"] == 0
    monkeypatch.undo()
    run_of(cache, tmp_path / "run", epochs=1, resume=True)


@pytest.mark.parametrize("learning_rate", [1e20, 1e39, 1e300])
def test_a_learning_rate_beyond_reason_saves_nothing_that_is_not_finite(
    learning_rate: float, cache: Cache, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(TrainingError, match=re.escape(f"learning rate {learning_rate}")):
        run_of(cache, out, checkpoint_steps=1, learning_rate=learning_rate)
    assert all(bool(tensor.isfinite().all()) for tensor in checkpoint.load(out)[0].values())


def test_the_tests_train_what_they_say() -> None:
    assert TrainConfig(**TRAIN).rows * TRAIN["sessions"] * TRAIN["chunk"] == 48


def test_the_state_is_carried_from_batch_to_batch(cache: Cache, tmp_path: Path) -> None:
    """Where nothing is learned and nothing dropped, the loss is the same however the sessions are cut into batches."""
    still = HierTCNConfig(**{**MODEL.model_dump(), "dropout": 0.0})
    losses = []
    for number, cut in enumerate(({"rows": 1, "sessions": 1}, {"rows": 7, "sessions": 2}, {"rows": 1000})):
        run = run_of(cache, tmp_path / str(number), still, epochs=1, learning_rate=1e-30, chunk=50, **cut)
        losses.append(run.manifest["history"][0]["loss"])
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)
