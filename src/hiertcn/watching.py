"""What a person sees of a study or a comparison: bars over models and trials on a terminal, plain lines elsewhere."""

from __future__ import annotations

__all__ = ["Watch"]

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

_SECONDS_BETWEEN_LINES = 10.0


class Watch:
    """Shows models, trials, and what the job at work says, on `console`; `quiet` shows nothing."""

    def __init__(self, console: Console | None = None, quiet: bool = False) -> None:
        self._console = console or Console(stderr=True)
        self._quiet = quiet
        self._live = self._console.is_terminal and not quiet
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Progress(
            TextColumn("{task.description}", markup=False), *columns, console=self._console, disable=not self._live
        )
        self._models = self._bar.add_task("models", total=1, visible=False)
        self._trials = self._bar.add_task("trials", total=1, visible=False)
        self._name, self._spoke = "", time.monotonic()

    def __enter__(self) -> Watch:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def model(self, name: str, number: int, models: int) -> None:
        """Model `number` (from 0) of `models` is taken up."""
        self._name = name
        self._bar.update(self._models, description=f"models: {name}", completed=number, total=models, visible=True)
        self.say(f"{name}: model {number + 1} of {models}")

    def trial(self, done: int, trials: int) -> None:
        """So many of `trials` are done."""
        self._bar.update(self._trials, description="trials", completed=done, total=trials, visible=True)

    def line(self, text: str) -> None:
        """What the job at work says of itself; without a terminal, seldom."""
        self._bar.update(self._trials, description=text[:60])
        now = time.monotonic()
        if not self._live and now - self._spoke >= _SECONDS_BETWEEN_LINES:
            self.say(f"  {text}")

    def say(self, text: str) -> None:
        """A line that stays."""
        self._spoke = time.monotonic()
        if not self._quiet:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)
