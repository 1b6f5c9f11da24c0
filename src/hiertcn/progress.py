"""What a person sees of training: a live bar on a terminal, plain lines elsewhere; scalars for TensorBoard."""

from __future__ import annotations

__all__ = ["Clock", "Progress"]

import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from hiertcn.files import refusals

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_LOOKS = 0.5


class Progress:
    """Shows steps and epochs on `console`; `quiet` shows nothing.

    Reading a loss waits for the device, so it is done seldom.
    """

    def __init__(self, console: Console | None = None, quiet: bool = False) -> None:
        self._console = console or Console(stderr=True)
        self._quiet = quiet
        self._live = self._console.is_terminal and not quiet
        self._bar = Bar(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:,.0f} events/s · loss {task.fields[loss]:.4f} · best {task.fields[best]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._live,
        )
        self._writer: SummaryWriter | None = None

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._writer is not None:
            with refusals(self._folder):
                self._writer.close()

    def start(self, folder: Path, epochs: int, epoch: int, steps: int, best: float | None) -> None:
        """Training goes on in `epoch` (from 0) of `epochs`, after `steps` steps in all."""
        self._folder = folder / "tensorboard"
        with refusals(self._folder):
            self._writer = SummaryWriter(str(self._folder), purge_step=steps)
        self._epochs, self._epoch, self._steps = epochs, epoch, steps
        self._begun = self._looked = self._spoke = time.monotonic()
        self._events = self._done = 0
        self._best = "-" if best is None else f"{best:.4f}"
        self._task = self._bar.add_task("", total=None, epoch=epoch + 1, rate=0.0, loss=float("nan"), best=self._best)

    def step(self, batch: int, batches: int, events: int, loss: Tensor) -> None:
        """Batch `batch` (from 1) of the epoch's `batches` is trained, on `events` targets."""
        self._events += events
        self._done += 1
        self._steps += 1
        now = time.monotonic()
        if now - self._looked < _SECONDS_BETWEEN_LOOKS:
            return
        self._looked = now
        rate, value = self._events / (now - self._begun), float(loss)
        at, total = self._epoch * batches + batch, self._epochs * batches
        self._write("train/loss", value, self._steps)
        self._write("train/events_per_second", rate, self._steps)
        self._bar.update(self._task, completed=at, total=total, rate=rate, loss=value)
        if not self._live and now - self._spoke >= _SECONDS_BETWEEN_LINES:
            self._spoke = now
            left = (total - at) * (now - self._begun) / self._done
            self.say(
                f"epoch {self._epoch + 1}/{self._epochs} batch {batch}/{batches} loss {value:.4f} "
                f"{rate:,.0f} events/s, at most {left / 60:.1f} min left"
            )

    def epoch(self, line: dict[str, Any], metric: str, best: float) -> None:
        """An epoch is trained and validated: `line` holds its loss and validation metrics."""
        self._epoch = int(line["epoch"])
        self._best = f"{best:.4f}"
        self._bar.update(self._task, epoch=min(self._epoch + 1, self._epochs), best=self._best)
        for name, value in line.items():
            if name not in ("epoch", "loss"):
                self._write(f"valid/{name}", value, self._epoch)
        self.say(
            f"epoch {self._epoch}/{self._epochs} loss {line['loss']:.4f} validation {metric} {line[metric]:.4f} "
            f"recall@10 {line['recall@10']:.4f} (best {metric} {best:.4f})"
        )

    def _write(self, name: str, value: float, step: int) -> None:
        assert self._writer is not None
        with refusals(self._folder):
            self._writer.add_scalar(name, value, step)

    def say(self, text: str) -> None:
        if not self._quiet:
            self._console.print(text, highlight=False)


class Clock(Progress):
    """Counts, besides, the `targets` that are trained on and the `seconds` of it: without validation, and without the
    first step, which waits for what is made only once."""

    targets = 0
    seconds = 0.0
    _mark: float | None = None

    @property
    def rate(self) -> float | None:
        """Targets a second; None where there was no second step."""
        return self.targets / self.seconds if self.seconds else None

    def step(self, batch: int, batches: int, events: int, loss: Tensor) -> None:
        """As `Progress.step`."""
        now = time.monotonic()
        if self._mark is not None:
            self.targets += events
            self.seconds += now - self._mark
        self._mark = now
        super().step(batch, batches, events, loss)

    def epoch(self, line: dict[str, Any], metric: str, best: float) -> None:
        """As `Progress.epoch`."""
        super().epoch(line, metric, best)
        self._mark = time.monotonic()
