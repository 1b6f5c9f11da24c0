"""Each idea of the preset `strong`, and some that it leaves out: their effects on the validation part of a real log.
Writes docs/ablation.md.

All are trained alike, for fewer passes than the preset has, and those that few passes are no test of for as many;
differences are paired, with intervals by bootstrap over users. The test part is not looked at. Models that are trained
stay in claims/ablation, so that what was stopped is gone on with.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.record import KEPT, RESULTS, kept_cache, record, signed, table
from hiertcn import checkpoint
from hiertcn.cache import Cache
from hiertcn.embedding import cooccurrence, svd_vectors, write_items
from hiertcn.evaluation import Evaluation, evaluate
from hiertcn.files import write_text
from hiertcn.metrics import difference
from hiertcn.progress import Progress
from hiertcn.settings import read_settings
from hiertcn.training import train

RUNS = KEPT / "ablation"
PAGE = Path(__file__).parents[1] / "docs" / "ablation.md"
PASSES, LONG = 3, 10
METRICS = ("recall@10", "mrr")
COLUMNS = ["idea", *(f"its effect on {metric}" for metric in METRICS), "it", "in `strong`"]


@dataclass(frozen=True, eq=False)
class Idea:
    """An idea that `strong` has and `model`, `train` take from it, or that it has not and they add."""

    name: str
    has: bool
    model: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)


NO_BOOSTS = {"trends": (), "follows": (), "repeats": 0}
WIDE = {"dim": 192, "units": 192, "channels": (192, 192, 192), "kernel": 3}
IDEAS = (
    Idea("boosts of single items, all of them", True, NO_BOOSTS),
    Idea("boosts of what everybody picked lately (`trends`)", True, {"trends": ()}),
    Idea("its longer horizons, beside six minutes", True, {"trends": (0.1,)}),
    Idea("boosts of what followed the last item (`follows`)", True, {"follows": ()}),
    Idea("its year, beside half an hour and two days", True, {"follows": (0.5, 48.0)}),
    Idea("boosts of the person's last items (`repeats`)", True, {"repeats": 0}),
    Idea("hour, weekday and pauses (`clock`)", True, {"clock": False}),
    Idea("normalisation of each step (`norm`)", True, {"norm": False}),
    Idea("dropout of 0.3", True, {"dropout": 0.0}),
    Idea("averaged weights", True, {}, {"averaging": 0.0}),
    Idea("a falling learning rate", True, {}, {"decay_epochs": 0}),
    Idea("tied item vectors (`head`)", True, {"head": "softmax"}),
    Idea("the full softmax, not a sampled one with logQ", True, {}, {"loss": "sampled_softmax"}),
    Idea("a TCN within the session, not a GRU", True, {"low": "gru"}),
    Idea("AGG by mean, not by maximum", True, {"aggregate": "max"}),
    Idea("a learned decay of the state over pauses", False, {"gap_decay": "learned"}),
    Idea("192 wide, three blocks", False, WIDE),
    Idea("gradient through 20 sessions, not 10", False, {}, {"sessions": 20, "rows": 16}),
    Idea("vectors of co-visitation beside the learned ones", False, {"vectors": "both"}),
)
# What is to pay off only over many passes.
SLOW = ("dropout of 0.3", "averaged weights", "a falling learning rate", "AGG by mean, not by maximum")


def run() -> None:
    _measure("ablation", IDEAS, PASSES)


def run_long() -> None:
    _measure("ablation_long", tuple(idea for idea in IDEAS if idea.name in SLOW), LONG)


def _measure(name: str, ideas: tuple[Idea, ...], passes: int) -> None:
    plain = kept_cache(RUNS / "cache", split="last")
    base = _evaluated(Idea("strong", True), plain, passes)
    found = {idea: _evaluated(idea, plain, passes) for idea in ideas}
    effects = {idea.name: _effect(one, base, idea.has) for idea, one in found.items()}
    rows = [
        [
            idea.name,
            *(signed(**effects[idea.name][metric]) for metric in METRICS),
            _told(effects[idea.name]["mrr"]["interval"]),
            "kept" if idea.has else "dropped",
        ]
        for idea in ideas
    ]
    figures = {
        "rows": rows,
        "passes": passes,
        "threads": torch.get_num_threads(),
        "strong": {metric: base.table.event[metric] for metric in METRICS},
        "effects": effects,
    }
    notes = [
        f"EB-NeRD demo, split `last`, gap 1800 s, items with at least 5 events: {base.table.targets:,} validation "
        f"targets of {base.table.users:,} users ranked among {plain.manifest.items:,} items. {passes} passes, one "
        "seed, the rate falling over them; all else as in the preset. An effect is with the idea less without it, per "
        "event, with a 95% interval by bootstrap over users, which says nothing of how much another seed would change.",
        "`strong` itself: " + ", ".join(f"{metric} {base.table.event[metric]:.4f}" for metric in METRICS) + ".",
    ]
    record(name, {**figures, "notes": notes}, COLUMNS, rows, notes)
    _write_page()


def _write_page() -> None:
    """Of what was measured by now."""
    page = ["# What each idea of `strong` brings"]
    for name, passes in (("ablation", PASSES), ("ablation_long", LONG)):
        if not (path := RESULTS / f"{name}.json").is_file():
            continue
        stated = json.loads(path.read_text())
        described = ", ".join(f"{key} {value}" for key, value in stated["machine"].items())
        page += [
            f"## Over {passes} passes",
            f"`{stated['command']}` · {stated['date']} · {described}",
            table(COLUMNS, stated["figures"]["rows"]),
            *stated["figures"]["notes"],
        ]
    page += [
        "What is kept though it hurts, or may do either, over ten passes stays until the claims are measured anew, "
        "whose figures are with it. Few passes favour what learns fast, so what a normalisation or more width bring "
        "over the ten of the preset is not measured. Vectors of co-visitation help and are "
        'not in the preset, which trains from the log alone: `hiertcn embed`, then `--catalog` and `vectors = "both"`.',
        "Not tried: learned start tokens; AGG by attention, by the last item, or weighted by recency; a gate between "
        "repeating and exploring, whose place boosts of the last items take; how long a page was read, which few logs "
        "have and which is not known in time.",
    ]
    write_text(PAGE, "\n\n".join(page) + "\n")


def _told(interval: tuple[float, float]) -> str:
    low, high = interval
    return "helps" if low > 0 else "hurts" if high < 0 else "may do either"


def _evaluated(idea: Idea, plain: Cache, passes: int) -> Evaluation:
    sys.stderr.write(f"{idea.name}, {passes} passes\n")
    cache = _with_vectors(plain) if "vectors" in idea.model else plain
    configs = read_settings("strong", model=idea.model, train={"epochs": passes, **idea.train})
    folder = RUNS / str(passes) / "".join(letter if letter.isalnum() else "-" for letter in idea.name)
    run = train(cache, *configs, folder, resume=checkpoint.exists(folder), progress=Progress())
    return evaluate(run, cache, "valid")


def _with_vectors(cache: Cache) -> Cache:
    vectors = svd_vectors(cooccurrence(cache, 5), 64, 0)
    # An item that was never near another would leave the catalog, and the targets would not be the same.
    alone = 1 + np.flatnonzero(~vectors[1:].any(axis=1))
    vectors[alone] = np.random.default_rng(0).normal(0, 0.1, (len(alone), 64))
    write_items(RUNS / "items.parquet", cache.catalog, vectors, cache.manifest.split)
    return kept_cache(RUNS / "cache-vectors", split="last", catalog=RUNS / "items.parquet")


def _effect(one: Evaluation, base: Evaluation, has: bool) -> dict[str, dict[str, Any]]:
    kept = base.ranked
    pair = (base, one) if has else (one, base)
    ranks = [evaluation.ranks.ranks[kept] for evaluation in pair]
    found = difference(ranks[0], ranks[1], base.targets.user[kept], base.catalog.size)
    return {name: {"value": found.event[name], "interval": found.event_interval[name]} for name in METRICS}
