"""How a benchmark's figures are kept: benchmarks/results/NAME.json and, for people, NAME.md beside it."""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from hiertcn.cache import Cache
from hiertcn.preparation import prepare

RESULTS = Path(__file__).parent / "results"
DATA = Path(__file__).parents[2] / "shared" / "data"
KEPT = Path(__file__).parents[1] / "claims"
"""What took hours, so that a benchmark that was stopped goes on."""
# Of the real log, in all benchmarks of quality.
PREPARED: dict[str, Any] = {"session_gap": 1800, "min_item_events": 5}


class Skipped(Exception):
    """A benchmark can't run here; the text says why."""


def real_log() -> Path:
    """The real log of a month of news reading. Raises Skipped where it is absent."""
    log = DATA / "ebnerd_demo" / "events.parquet"
    if not log.exists():
        raise Skipped("the real log ebnerd_demo/events.parquet is not beside the project (../shared/data)")
    return log


def kept_cache(path: Path, **options: Any) -> Cache:
    """The real log, prepared in `path`, now or by a run before."""
    ready = (path / "manifest.json").is_file()
    return Cache(path) if ready else prepare(real_log(), path, **PREPARED, **options)


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hiertcn-bench-") as folder:
        yield Path(folder)


def machine() -> dict[str, Any]:
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
    }


def record(
    name: str,
    figures: dict[str, Any],
    columns: list[str],
    rows: list[list[str]],
    notes: list[str],
    command: str | None = None,
) -> None:
    """Write results/NAME.json (name, machine, date, command, figures) and results/NAME.md, a table with notes."""
    RESULTS.mkdir(exist_ok=True)
    found = {
        "name": name,
        "machine": machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command or f"make bench ARGS={name}",
        "figures": figures,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    described = ", ".join(f"{key} {value}" for key, value in found["machine"].items())
    lines = [
        f"# {name}",
        f"`{found['command']}` · {found['date']} · {described}",
        table(columns, rows),
        *notes,
    ]
    text = "\n\n".join(lines) + "\n"
    (RESULTS / f"{name}.md").write_text(text)
    sys.stdout.write(text)


def table(columns: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [columns, ["---"] * len(columns), *rows])


def within(value: float, interval: Sequence[float]) -> str:
    return f"{value:.4f} ({'–'.join(f'{end:.4f}' for end in interval)})"


def signed(value: float, interval: Sequence[float]) -> str:
    return f"{value:+.4f} ({'…'.join(f'{end:+.4f}' for end in interval)})"


def main(benchmarks: dict[str, Callable[[], None]], wanted: list[str]) -> int:
    unknown = [name for name in wanted if name not in benchmarks]
    if unknown:
        sys.stderr.write(f"No benchmark {unknown}; there are {', '.join(benchmarks)}.\n")
        return 2
    for name in wanted or benchmarks:
        try:
            benchmarks[name]()
        except Skipped as reason:
            sys.stdout.write(f"{name}: skipped, {reason}\n")
    return 0
