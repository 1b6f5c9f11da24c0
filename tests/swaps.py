"""A folder of models that swaps go between, as tests of them share it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from exports import CONFIGS
from hiertcn.exporting import export
from hiertcn.models import HierTCNConfig
from people import FULL, catalog_of, run_of

NOW = int(time.time())
# Of other sizes, on other items, by another rule of sessions; and one that hears what everybody picks.
_OTHER = HierTCNConfig(dim=6, units=5, channels=(5, 5, 5), kernel=2, aggregate="max", head="softmax")
_MODELS: dict[str, tuple[HierTCNConfig, str, dict[str, Any]]] = {
    "a": (FULL, "abcde", {}),
    "b": (_OTHER, "fedcba", {"gap": 900, "seed": 1}),
    "crowd": (CONFIGS["crowd"], "abcdefgh", {"seed": 2}),
    "few": (FULL, "ab", {}),
    "others": (FULL, "vwxyz", {}),
}


def models(folder: Path, *names: str) -> Path:
    """`folder`, with some of the models above: a run that is exported, and else what was exported alone."""
    folder.mkdir()
    for name in names:
        config, items, rule = _MODELS[name]
        inside = name == "a"
        run = run_of(folder / name if inside else folder.parent / f"run-of-{name}", config, catalog_of(items), **rule)
        export(run, None if inside else folder / name)
    return folder


def served(root: Path, name: str) -> Path:
    """What `Recommender.load` takes, of a model in `models`."""
    return root / name / "online" if name == "a" else root / name


def picks(random: Any, user: str, count: int) -> list[dict[str, Any]]:
    """Events of a person in order, in sessions that are over or full or go on; the last ones are of now."""
    waits = [int(random.choice([1, 40, 500, 1000, 2000, 50_000])) for _ in range(count)]
    begun = NOW - sum(waits)
    times = [begun + sum(waits[: at + 1]) for at in range(count)]
    return [
        {"event_id": f"{user}-{at}", "user_id": user, "item_id": "abcdefx"[int(random.integers(7))], "time": times[at]}
        for at in range(count)
    ]
