"""What a person sees of training, and TensorBoard."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hiertcn import progress, watching
from hiertcn.artifact import Run
from hiertcn.cache import Cache
from hiertcn.errors import StorageError
from hiertcn.progress import Clock, Progress
from hiertcn.watching import Watch
from runs import run_of, small_cache, state_of


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return small_cache(tmp_path_factory.mktemp("log") / "cache")


def said_by_training(cache: Cache, out: Path, **settings: Any) -> str:
    shown = io.StringIO()
    run_of(cache, out, progress=Progress(Console(file=shown, width=200)), **settings)
    return shown.getvalue()


def test_plain_lines_without_a_terminal(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LOOKS", 0.0)
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    lines = said_by_training(cache, tmp_path / "run").splitlines()
    assert "\x1b" not in "".join(lines)
    batches = [
        match for line in lines if (match := re.match(r"epoch (\d)/2 batch (\d+)/(\d+) loss [\d.]+ [\d,]+ ev", line))
    ]
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
    assert not re.search(r"batch \d", text)
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


def test_a_full_disk_is_told(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(progress.SummaryWriter, "add_scalar", full)
    with pytest.raises(StorageError, match="tensorboard"):
        run_of(cache, tmp_path / "run")


def test_the_clock_counts_targets_and_changes_nothing(cache: Cache, tmp_path: Path) -> None:
    clock = Clock(quiet=True)
    clocked, plain = run_of(cache, tmp_path / "a", progress=clock), run_of(cache, tmp_path / "b")
    assert clocked.manifest == plain.manifest
    trained = 2 * cache.manifest.parts["train"]["events"]
    # Of the first step, whose batch is at most 4 rows of 4 chunks of 3 events.
    assert trained - 48 <= clock.targets < trained
    assert clock.rate is not None
    assert clock.rate == pytest.approx(clock.targets / clock.seconds)
    # What was trained in another process is not counted.
    again = Clock(quiet=True)
    run_of(cache, tmp_path / "a", resume=True, progress=again)
    assert (again.targets, again.rate) == (0, None)


def watched(console: Console) -> None:
    with Watch(console) as watch:
        watch.model("small", 0, 2)
        watch.trial(1, 3)
        watch.line("epoch 1/2 [x] loss")
        watch.say("small: trial 2 of 3: [red]dim[/red] 8")


def test_a_comparison_is_told_in_plain_lines_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    watched(Console(file=shown, width=40))
    lines = ["small: model 1 of 2", "small: trial 2 of 3: [red]dim[/red] 8"]
    assert shown.getvalue().splitlines() == lines
    # What a job says of itself comes seldom.
    monkeypatch.setattr(watching, "_SECONDS_BETWEEN_LINES", 0.0)
    watched(Console(file=shown, width=40))
    assert shown.getvalue().splitlines() == [*lines, lines[0], "  epoch 1/2 [x] loss", lines[1]]


def test_bars_over_models_and_trials_on_a_terminal() -> None:
    shown = io.StringIO()
    watched(Console(file=shown, force_terminal=True, width=120))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue())
    assert "models: small" in text
    assert "epoch 1/2 [x] loss" in text
    assert "[red]dim[/red] 8" in text
    assert re.search(r"1/3\s", text)
