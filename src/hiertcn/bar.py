"""How far something has come that takes a while: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

__all__ = ["Bar"]

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

BETWEEN = 10.0
"""Seconds between two lines."""


class Bar:
    """Of `total` things called `what`, on `console`. A context manager."""

    def __init__(self, console: Console, what: str, total: int) -> None:
        self._console, self._what, self._total = console, what, total
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:,.0f}/s"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task(what, total=total, rate=0.0)
        self._done, self._begun = 0, time.monotonic()
        self._spoke = self._begun

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    @property
    def rate(self) -> float:
        """Things a second, until now."""
        return self._done / max(time.monotonic() - self._begun, 1e-9)

    def advance(self, count: int) -> None:
        """So many more are done."""
        self._done += count
        self._bar.update(self._task, advance=count, rate=self.rate)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._spoke >= BETWEEN:
            self._spoke = now
            left = (self._total - self._done) / self.rate
            self._console.print(
                f"{self._done:,} of {self._total:,} {self._what}, {self.rate:,.0f}/s, {left / 60:.1f} min left",
                highlight=False,
            )
