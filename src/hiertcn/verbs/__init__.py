"""What the command line can do, a function a verb: its options, what it calls, what it prints."""

from __future__ import annotations

__all__ = ["catalogs", "comparisons", "flags", "logs", "runs"]
