"""The loop: what each setting does, when it stops, what it keeps, what it says; the optimizer and the memory it asks for."""

from __future__ import annotations

import inspect
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import caches
from hiertcn import checkpoint, progress, training
from hiertcn.artifact import Run
from hiertcn.cache import Cache
from hiertcn.errors import InputError, TrainingError
from hiertcn.models import HierTCNConfig, LastItemsConfig, MovingAverageConfig, PopularityConfig, build
from hiertcn.optimizer import Optimizer
from hiertcn.progress import Progress
from hiertcn.training import TrainConfig, train
from runs import MODEL, SAMPLED, TRAIN, files_of, run_of, small_cache, weights_of


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return small_cache(tmp_path_factory.mktemp("log") / "cache")


def model_file(run: Run) -> str:
    return str(run.manifest["weights"]["sha256"])


def state_of(out: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((out / "checkpoint.json").read_text())["facts"]
    return facts


# No setting is dead. Those with tests of their own say which.

ELSEWHERE = {
    "epochs": "test_epochs_are_counted",
    "patience": "test_training_stops_after_epochs_without_a_better_one",
    "metric": "test_the_metric_decides_which_epoch_is_best",
    "validation_users": "test_a_share_of_the_users_is_validated",
    "checkpoint_steps": "test_checkpoints_come_every_so_many_steps",
    "device": "test_a_device_that_is_not_there",
}
WEIGHTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"loss": "sampled_softmax"}),
    (SAMPLED, {"uniform_negatives": 6}),
    (SAMPLED, {"popular_negatives": 6}),
    (SAMPLED, {"popularity_alpha": 0.1}),
    (SAMPLED, {"in_batch_negatives": False}),
    ({}, {"rows": 5}),
    ({}, {"sessions": 5}),
    ({}, {"chunk": 4}),
    ({}, {"learning_rate": 0.02}),
    ({}, {"weight_decay": 0.1}),
    ({}, {"clip": 0.1}),
    ({}, {"seed": 1}),
]


def test_every_setting_is_tested() -> None:
    assert {name for _, change in WEIGHTS for name in change} | set(ELSEWHERE) == set(TrainConfig.model_fields)
    tests = globals()
    assert all(inspect.isfunction(tests[name]) for name in ELSEWHERE.values())


@pytest.mark.parametrize(("base", "change"), WEIGHTS, ids=lambda value: ",".join(value) or "-")
def test_a_setting_changes_the_weights(
    base: dict[str, Any], change: dict[str, Any], cache: Cache, tmp_path: Path
) -> None:
    first = run_of(cache, tmp_path / "first", epochs=1, **base)
    again = run_of(cache, tmp_path / "again", epochs=1, **base)
    other = run_of(cache, tmp_path / "other", epochs=1, **{**base, **change})
    assert model_file(first) == model_file(again) != model_file(other)


def test_epochs_are_counted(cache: Cache, tmp_path: Path) -> None:
    for epochs in (1, 3):
        history = run_of(cache, tmp_path / str(epochs), epochs=epochs).manifest["history"]
        assert [line["epoch"] for line in history] == list(range(1, epochs + 1))


def test_checkpoints_come_every_so_many_steps(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at: list[int] = []
    save = checkpoint.save

    def spy(out: Path, tensors: Any, identity: Any, facts: Any) -> None:
        at.append(facts["step"])
        save(out, tensors, identity, facts)

    monkeypatch.setattr(checkpoint, "save", spy)
    run_of(cache, tmp_path / "run", epochs=1, checkpoint_steps=4)
    last = state_of(tmp_path / "run")["step"]
    assert at == [*range(4, last + 1, 4), last]


def test_a_share_of_the_users_is_validated(cache: Cache, tmp_path: Path) -> None:
    all_users = run_of(cache, tmp_path / "all", epochs=1)
    half = run_of(cache, tmp_path / "half", epochs=1, validation_users=0.5)
    assert model_file(all_users) == model_file(half)
    assert all_users.manifest["validation"]["mrr"] != half.manifest["validation"]["mrr"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cuda.*auto"):
        run_of(cache, tmp_path / "run", device="cuda")
    assert model_file(run_of(cache, tmp_path / "auto", epochs=1)) == model_file(
        run_of(cache, tmp_path / "cpu", epochs=1, device="cpu")
    )


@pytest.mark.parametrize("config", [PopularityConfig(), LastItemsConfig()])
def test_a_model_that_only_counts_is_not_trained(config: Any, cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to train.*hiertcn evaluate"):
        train(cache, config, TrainConfig(), tmp_path / "run")


def test_a_log_with_an_empty_part_is_refused_at_once(tmp_path: Path) -> None:
    users = [("u", [1, 2, 1, 2], [0, 10, 20, 30], "train"), ("v", [1, 2], [0, 10], "test")]
    without = caches.cache_of(tmp_path / "cache", users, 1800)
    with pytest.raises(InputError, match="valid part of .* holds no event"):
        run_of(without, tmp_path / "run")
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


def test_the_metric_decides_which_epoch_is_best(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    right = training.cross_entropy

    def wrong(*args: Any) -> Tensor:
        calls[0] += 1
        return right(*args) * (value if calls[0] == at else 1.0)

    monkeypatch.setattr(training, "cross_entropy", wrong)


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


def test_a_loss_that_is_not_finite_before_the_first_checkpoint(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, 1, float("nan"))
    with pytest.raises(TrainingError, match=r"step 1 \(batch 1 of epoch 1\).*nothing was saved yet"):
        run_of(cache, tmp_path / "run", checkpoint_steps=1)
    assert not (tmp_path / "run" / "checkpoint.json").exists()
    monkeypatch.undo()
    run_of(cache, tmp_path / "run", epochs=1)


@pytest.mark.parametrize("learning_rate", [1e20, 1e39, 1e300])
def test_a_learning_rate_beyond_reason_saves_nothing_that_is_not_finite(
    learning_rate: float, cache: Cache, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(TrainingError, match=re.escape(f"learning rate {learning_rate}")):
        run_of(cache, out, checkpoint_steps=1, learning_rate=learning_rate)
    if checkpoint.exists(out):
        assert all(bool(tensor.isfinite().all()) for tensor in checkpoint.load(out)[0].values())


# Memory.


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
    [{"dim": 10**9}, {"dim": 10**9, "units": 10**9, "channels": (10**9, 10**9)}, {"channels": (10**6,), "kernel": 10**6}],
)
def test_a_model_beyond_any_memory_is_refused_without_taking_it(
    sizes: dict[str, Any], cache: Cache, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="GB are free|too large for any machine"):
        train(cache, HierTCNConfig(**sizes), TrainConfig(), tmp_path / "run")


def said_by_training(cache: Cache, out: Path, **settings: Any) -> str:
    shown = io.StringIO()
    run_of(cache, out, progress=Progress(Console(file=shown, width=200)), **settings)
    return shown.getvalue()


def test_the_estimate_is_said_first_and_counts_what_it_should(cache: Cache, tmp_path: Path) -> None:
    said = said_by_training(cache, tmp_path / "run", epochs=1)
    parameters = sum(p.numel() for p in build(MODEL, cache.catalog.train_events, 0).parameters())
    assert said.startswith(f"{parameters:,} parameters; training needs at most about")


def test_the_estimate_grows_with_the_scores_of_a_batch(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(training, "check_memory", lambda model, events, scores, allow, say: asked.append(scores))
    monkeypatch.setattr(training._Training, "run", lambda *_: None)
    items, events = cache.manifest.items, cache.manifest.parts["train"]["events"]
    for number, settings in enumerate(({}, SAMPLED, {**SAMPLED, "in_batch_negatives": False}, {"rows": 1000})):
        run_of(cache, cache.path.parent / str(number), **settings)
    assert asked == [48 * (items + 1), 48 * (10 + 48), 48 * 10, events * (items + 1)]


# What a person sees.


def test_plain_lines_without_a_terminal(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LOOKS", 0.0)
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    lines = said_by_training(cache, tmp_path / "run").splitlines()
    assert "\x1b" not in "".join(lines)
    batches = [match for line in lines if (match := re.match(r"epoch (\d)/2 batch (\d+)/(\d+) loss [\d.]+ [\d,]+ ev", line))]
    assert len(batches) == state_of(tmp_path / "run")["step"]
    assert all(int(match[2]) <= int(match[3]) for match in batches)
    epochs = [line for line in lines if re.match(r"epoch \d/2 loss", line)]
    history = Run(tmp_path / "run").manifest["history"]
    assert len(epochs) == 2
    for line, facts in zip(epochs, history, strict=True):
        assert f"loss {facts['loss']:.4f} validation mrr {facts['mrr']:.4f} recall@10 {facts['recall@10']:.4f}" in line
    assert f"(best mrr {max(facts['mrr'] for facts in history):.4f})" in epochs[-1]


def test_few_lines_of_a_short_run(cache: Cache, tmp_path: Path) -> None:
    assert len(said_by_training(cache, tmp_path / "run").splitlines()) == 3


def test_a_bar_on_a_terminal(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LOOKS", 0.0)
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=160)
    run_of(cache, tmp_path / "run", progress=Progress(console))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue())
    assert "events/s" in text
    assert "validation mrr" in text
    assert "batch" not in text
    run_of(cache, tmp_path / "run", epochs=3, resume=True, progress=Progress(console))


def test_quiet_by_default(cache: Cache, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_of(cache, tmp_path / "run", epochs=1)
    assert capfd.readouterr() == ("", "")


def test_scalars_for_tensorboard(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LOOKS", 0.0)
    run = run_of(cache, tmp_path / "run")
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    found.Reload()
    assert {"train/loss", "train/events_per_second", "valid/mrr", "valid/recall@10"} <= set(found.Tags()["scalars"])
    assert [event.step for event in found.Scalars("train/loss")] == [*range(1, state_of(run.path)["step"] + 1)]
    assert [event.value for event in found.Scalars("valid/mrr")] == pytest.approx(
        [line["mrr"] for line in run.manifest["history"]]
    )


# The optimizer.


class TwoTables(nn.Module):
    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 4, sparse=sparse)
        self.map = nn.Linear(4, 1)

    def forward(self, rows: Tensor) -> Tensor:
        out: Tensor = self.map(self.table(rows)).square().sum()
        return out


def two_tables(sparse: bool) -> TwoTables:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return TwoTables(sparse)


def some_rows() -> list[Tensor]:
    random = np.random.default_rng(0)
    return [torch.from_numpy(random.integers(0, 20, 6)) for _ in range(12)]


@pytest.mark.parametrize("clip", [0.05, 1e9])
def test_dense_steps_are_adamw_with_clipped_gradients(clip: float) -> None:
    ours, theirs = two_tables(False), two_tables(False)
    optimizer = Optimizer(ours, 0.03, 0.1, clip)
    reference = torch.optim.AdamW(theirs.parameters(), lr=0.03, weight_decay=0.1)
    for rows in some_rows():
        ours(rows).backward()
        theirs(rows).backward()
        expected = nn.utils.clip_grad_norm_(theirs.parameters(), clip)
        assert float(optimizer.step()) == pytest.approx(float(expected), rel=1e-6)
        reference.step()
        reference.zero_grad()
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert a.grad is None
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("clip", [0.05, 1e9])
def test_sparse_steps_are_lazy_adam_clipped_with_the_rest(clip: float) -> None:
    ours = two_tables(True)
    optimizer = Optimizer(ours, 0.03, 0.0, clip)
    table = ours.table.weight.detach().double().numpy().copy()
    mean, square = np.zeros_like(table), np.zeros_like(table)
    for step, rows in enumerate(some_rows(), 1):
        dense = two_tables(False)
        dense.load_state_dict(ours.state_dict())
        dense(rows).backward()
        norm = nn.utils.clip_grad_norm_(dense.parameters(), clip)
        assert dense.table.weight.grad is not None
        gradient = dense.table.weight.grad.double().numpy()
        ours(rows).backward()
        assert float(optimizer.step()) == pytest.approx(float(norm), rel=1e-6)
        touched = np.unique(rows.numpy())
        mean[touched] += 0.1 * (gradient[touched] - mean[touched])
        square[touched] += 0.001 * (gradient[touched] ** 2 - square[touched])
        rate = 0.03 * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        table[touched] -= rate * mean[touched] / (np.sqrt(square[touched]) + 1e-8)
        np.testing.assert_allclose(ours.table.weight.detach().numpy(), table, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sparse", [False, True])
def test_the_optimizer_goes_on_from_its_tensors(sparse: bool) -> None:
    rows = some_rows()
    model = two_tables(sparse)
    optimizer = Optimizer(model, 0.03, 0.1, 1.0)
    for batch in rows[:5]:
        model(batch).backward()
        optimizer.step()
    copy = two_tables(sparse)
    copy.load_state_dict(model.state_dict())
    other = Optimizer(copy, 0.03, 0.1, 1.0)
    other.load_state_tensors({**{n: t.clone() for n, t in optimizer.state_tensors().items()}, "else": torch.zeros(1)})
    for batch in rows[5:]:
        for trained, by in ((model, optimizer), (copy, other)):
            trained(batch).backward()
            by.step()
    for a, b in zip(model.parameters(), copy.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("sparse", [False, True])
def test_the_state_of_another_model_is_refused(sparse: bool) -> None:
    model = two_tables(sparse)
    optimizer = Optimizer(model, 0.03, 0.1, 1.0)
    model(some_rows()[0]).backward()
    optimizer.step()
    state = optimizer.state_tensors()
    moments = next(name for name in state if name.endswith("exp_avg"))
    with pytest.raises(ValueError, match=moments):
        optimizer.load_state_tensors({**state, moments: torch.zeros(1, 1)})


def test_of_a_large_table_only_the_rows_of_a_step_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users = [(f"u{number}", [1, 2, 3, 2, 1, 3], range(6), ["train"] * 5 + ["valid"]) for number in range(8)]
    wide = caches.cache_of(tmp_path / "cache", users, 1800, catalog_size=9)
    model, settings = MovingAverageConfig(dim=4), {**SAMPLED, "uniform_negatives": 0}
    before = build(model, wide.catalog.train_events, 0).state_dict()["items.weight"].numpy()
    for sparse in (True, False):
        monkeypatch.setattr(training, "SPARSE_FROM", 0 if sparse else 10**9)
        after = weights_of(run_of(wide, tmp_path / str(sparse), model, epochs=1, weight_decay=0.1, **settings).path)
        moved = (after["items.weight"] != before).all(1)
        assert moved.tolist() == [False, *[True] * 3, *[not sparse] * 6]


def test_the_tests_train_what_they_say() -> None:
    assert TrainConfig(**TRAIN).rows * TRAIN["sessions"] * TRAIN["chunk"] == 48
