"""Every model on a real log: `last` and `users` splits, whole catalog, intervals by bootstrap over users."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch

from benchmarks.record import real_log, record, scratch
from hiertcn.evaluation import Evaluation, evaluate
from hiertcn.metrics import difference
from hiertcn.preparation import prepare
from hiertcn.progress import Progress
from hiertcn.settings import read_settings
from hiertcn.training import train

# What each trains: a preset and the model settings over it. Only HierTCN has a clock, so it is shown without, too.
TRAINED: dict[str, tuple[str, dict[str, Any]]] = {
    "strong": ("strong", {}),
    "strong, no crowd": ("strong", {"trends": (), "follows": ()}),
    "small": ("small", {}),
    "small, no clock": ("small", {"clock": False}),
    "paper": ("paper", {}),
    "hrnn": ("hrnn", {}),
    "gru": ("gru", {}),
    "moving_average": ("moving_average", {}),
}
COUNTED = ("trending", "most_frequent", "last_items", "popularity")
# The same for all: an epoch is one pass, and training stops after two without a better validation MRR.
BUDGET = {"epochs": 12, "patience": 2}
SHOWN = ("recall@1", "recall@10", "recall@20", "mrr", "mean_rank_percentile")


def run_last() -> None:
    _run("last")


def run_users() -> None:
    _run("users")


def _run(split: str) -> None:
    seconds: dict[str, float] = {}
    found: dict[str, Evaluation] = {}
    with scratch() as folder:
        begun = time.perf_counter()
        cache = prepare(real_log(), folder / "cache", split=split, session_gap=1800, min_item_events=5)
        seconds["prepare"] = time.perf_counter() - begun
        for name, (preset, settings) in TRAINED.items():
            sys.stderr.write(f"{split}: {name}\n")
            begun = time.perf_counter()
            configs = read_settings(preset, model=settings, train=BUDGET)
            run = train(cache, *configs, folder / name, progress=Progress())
            found[name] = evaluate(run, cache)
            seconds[name] = time.perf_counter() - begun
        for name in COUNTED:
            found[name] = evaluate(folder / "strong", cache, model=name)
        figures: dict[str, Any] = {
            "split": cache.manifest.split,
            "catalog": cache.manifest.items,
            "seconds": seconds,
            "threads": torch.get_num_threads(),
            "models": {name: _figures(one) for name, one in found.items()},
            "strong_minus_other": {
                name: _difference(found["strong"], one) for name, one in found.items() if name != "strong"
            },
        }
        first = found["strong"]
        rows = [
            [
                name,
                *(f"{one.table.event[m]:.4f} ({_between(one.table.event_interval[m])})" for m in SHOWN),
                f"{one.table.user['recall@10']:.4f}",
                f"{one.table.user['mrr']:.4f}",
                f"{seconds[name]:.0f}" if name in seconds else "",
            ]
            for name, one in found.items()
        ]
        notes = [
            f"Split `{split}`, gap 1800 s, items with at least 5 events: {first.table.targets:,} targets of "
            f"{first.table.users:,} users ranked among {cache.manifest.items:,} items; {int((~first.ranked).sum()):,} "
            "more are on items outside the catalog and have no rank. 95% intervals by bootstrap over users. Seconds "
            f"are of training and evaluation together; preparing the log took {seconds['prepare']:.1f} s.",
            "This split trains on events later than some test events: it measures how well a user's next item is "
            "found, not how well a model trained today does tomorrow.",
            "Paired differences of `strong` per event: "
            + "; ".join(
                f"{name} recall@10 {_signed(d, 'recall@10')}, mrr {_signed(d, 'mrr')}"
                for name, d in figures["strong_minus_other"].items()
            )
            + ".",
        ]
    record(
        f"accuracy_{split}",
        figures,
        ["preset or model", *SHOWN, "recall@10 per user", "mrr per user", "seconds"],
        rows,
        notes,
    )


def _figures(one: Evaluation) -> dict[str, Any]:
    """Its metrics, and of each segment the two that the tables show."""
    whole = one.as_json()
    for tables in whole["segments"].values():
        for name, table in tables.items():
            tables[name] = {"targets": table["targets"]} | {m: table["event"][m] for m in ("recall@10", "mrr")}
    return whole


def _difference(ours: Evaluation, theirs: Evaluation) -> dict[str, Any]:
    kept = ours.ranked
    table = difference(ours.ranks.ranks[kept], theirs.ranks.ranks[kept], ours.targets.user[kept], ours.catalog.size)
    return {name: {"mean": table.event[name], "interval": table.event_interval[name]} for name in table.event}


def _between(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.4f}–{interval[1]:.4f}"


def _signed(found: dict[str, Any], metric: str) -> str:
    low, high = found[metric]["interval"]
    return f"{found[metric]['mean']:+.4f} ({low:+.4f}…{high:+.4f})"
