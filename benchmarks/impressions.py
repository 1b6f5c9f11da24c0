"""Every loss, judged among what was shown beside the item picked; item vectors are of the train part's sessions."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.record import real_log, record, scratch
from hiertcn.embedding import cooccurrence, svd_vectors, write_items
from hiertcn.evaluation import Evaluation, evaluate
from hiertcn.losses import RANKING
from hiertcn.metrics import difference, per_event
from hiertcn.preparation import prepare
from hiertcn.progress import Progress
from hiertcn.settings import read_settings
from hiertcn.training import train

LOSSES = ("cross_entropy", "sampled_softmax", "l2", *RANKING)
WITHOUT_TRAINING = ("max_item", "moving_average", "popularity")
SHOWN = ("recall@1", "mrr", "mean_rank_percentile")
DIM = 64
# The same for all losses.
MODEL = {"vectors": "both", "clock": True, "dropout": 0.2, "norm": True, "unit": False}
BUDGET = {"epochs": 4, "patience": 4, "learning_rate": 0.002}


def run_last() -> None:
    _run("last")


def run_users() -> None:
    _run("users")


def _run(split: str) -> None:
    found: dict[str, Evaluation] = {}
    seconds: dict[str, float] = {}
    with scratch() as folder:
        options: dict[str, Any] = {"split": split, "session_gap": 1800, "min_item_events": 5}
        plain = prepare(real_log(), folder / "plain", **options)
        items = folder / "items.parquet"
        write_items(items, plain.catalog, svd_vectors(cooccurrence(plain), DIM, seed=0))
        cache = prepare(
            real_log(),
            folder / "cache",
            catalog=items,
            impressions=Path(real_log()).parent / "event_negatives.parquet",
            impression_columns="time=ts",
            impression_window=0,
            **options,
        )
        for loss in LOSSES:
            sys.stderr.write(f"{split}: {loss}\n")
            begun = time.perf_counter()
            configs = read_settings("pinterest", model=MODEL, train={**BUDGET, "loss": loss})
            run = train(cache, *configs, folder / loss, progress=Progress())
            found[f"HierTCN, {loss}"] = evaluate(run, cache, candidates="impressions")
            seconds[f"HierTCN, {loss}"] = time.perf_counter() - begun
        for name in WITHOUT_TRAINING:
            found[name] = evaluate(folder / LOSSES[0], cache, model=name, candidates="impressions")
        rows = [
            [
                name,
                *(
                    f"{one.table.event[m]:.4f} ({'–'.join(f'{v:.4f}' for v in one.table.event_interval[m])})"
                    for m in SHOWN
                ),
                f"{seconds[name]:.0f}" if name in seconds else "",
            ]
            for name, one in found.items()
        ]
        first = next(iter(found.values()))
        chance = _by_chance(first.ranks.among[first.ranked])
        rows.append(["random order", *(f"{chance[m]:.4f}" for m in SHOWN), ""])
        best = max(found, key=lambda name: found[name].table.event["mrr"])
        figures = {
            "split": cache.manifest.split,
            "parts": cache.manifest.parts,
            "models": {name: one.as_json()["metrics"] for name, one in found.items()},
            "random_order": chance,
            "best": best,
            "best_minus_other": {name: _difference(found[best], one) for name, one in found.items() if name != best},
            "seconds": seconds,
            "threads": torch.get_num_threads(),
        }
        parts = cache.manifest.parts
        notes = [
            f"Split `{split}`: {first.table.targets:,} test events of {first.table.users:,} users that were shown with "
            f"others, {first.ranks.among[first.ranked].mean():.1f} items each, the picked one among them. "
            f"{parts['train']['events_with_impressions']:,} of {parts['train']['events']:,} train events have "
            "impressions; the others' negatives are drawn by train events^0.75.",
            f"Item vectors: {DIM}-d, SVD of mutual information in the sessions of the train part; HierTCN reads them "
            f"with learned ones beside, {BUDGET['epochs']} passes at most, the best by MRR on the validation part, "
            "among the whole catalog. 95% intervals by bootstrap over users.",
            f"Paired differences of the best, {best}, in mrr: "
            + "; ".join(
                f"{name} {d['mean']:+.4f} ({d['interval'][0]:+.4f}…{d['interval'][1]:+.4f})"
                for name, d in figures["best_minus_other"].items()
            )
            + ".",
        ]
    record(f"impressions_{split}", figures, ["what", *SHOWN, "seconds"], rows, notes)


def _difference(ours: Evaluation, theirs: Evaluation) -> dict[str, Any]:
    kept = ours.ranked
    ranks = (one.ranks.ranks[kept] for one in (ours, theirs))
    table = difference(*ranks, ours.targets.user[kept], ours.ranks.among[kept])
    return {"mean": table.event["mrr"], "interval": table.event_interval["mrr"]}


def _by_chance(among: np.ndarray) -> dict[str, float]:
    """What any order drawn at random comes to: the mean over all ranks."""
    means = [per_event(np.arange(1.0, n + 1), int(n)).mean(0) for n in among]
    names = ("recall@1", "recall@5", "recall@10", "recall@20", "mrr", "mrr@20", "mean_rank_percentile")
    return dict(zip(names, np.mean(means, axis=0).tolist(), strict=True))
