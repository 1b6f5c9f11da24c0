"""What of a log could not be used: counted by reason, with a few examples, and bounded."""

from __future__ import annotations

__all__ = ["Quarantine", "shown"]

from dataclasses import dataclass, field
from typing import Any

from hiertcn.errors import InputError

EXAMPLES = 5
_WIDTH = 80


def shown(value: object) -> str:
    """A value as errors show it: printable, at most 80 characters."""
    text = repr(value) if isinstance(value, str | bytes) else str(value)
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"


@dataclass
class Quarantine:
    """Rows set aside, by reason. `read` is how many rows the log has, good and bad."""

    read: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def add(self, reason: str, count: int, examples: list[tuple[str, object]]) -> None:
        """Count `count` rows under `reason`; `examples` are (place, value), of which the first five are kept."""
        self.counts[reason] = self.counts.get(reason, 0) + count
        kept = self.examples.setdefault(reason, [])
        kept.extend(f"{place}: {shown(value)}" for place, value in examples[: EXAMPLES - len(kept)])

    def summary(self) -> str:
        return "; ".join(f"{count:,} × {reason} ({self.examples[reason][0]})" for reason, count in self.counts.items())

    def check(self, max_bad_rows: float) -> None:
        """Raise InputError when more than the fraction `max_bad_rows` of the rows read is bad."""
        if self.total > max_bad_rows * self.read:
            raise InputError(
                f"{self.total:,} of {self.read:,} rows of the log can't be used: {self.summary()}. At most "
                f"{max_bad_rows:.2%} may be bad. Mend the log, or allow more with --max-bad-rows."
            )

    def record(self) -> dict[str, Any]:
        return {reason: {"rows": count, "examples": self.examples[reason]} for reason, count in self.counts.items()}
