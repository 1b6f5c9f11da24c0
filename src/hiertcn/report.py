"""The report of a comparison: one HTML file that needs nothing else, no network and no script.

Item ids, titles and names of models come from logs and people: every one of them is escaped by the template.
"""

from __future__ import annotations

__all__ = ["write_report"]

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from hiertcn import pictures
from hiertcn.errors import InputError
from hiertcn.evaluation import Evaluation
from hiertcn.files import write_text
from hiertcn.metrics import METRICS, Table, difference
from hiertcn.pictures import Estimate
from hiertcn.timeline import TOP, busiest, timeline

PICTURED = ("recall@10", "mrr")
LOWER_IS_BETTER = ("mean_rank_percentile",)
_NONE = "–"


@dataclass(frozen=True)
class Cell:
    text: str
    interval: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Grid:
    """A table: `rows` are (name, cells), a cell for each of `columns`, which are (name, remark)."""

    caption: str
    corner: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[tuple[str, Sequence[Cell]]]


@dataclass(frozen=True)
class Section:
    title: str
    text: str
    pictures: Sequence[tuple[str, str]]
    grids: Sequence[Grid]


def write_report(
    path: Path,
    *,
    title: str,
    evaluations: Sequence[Evaluation],
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    optimum: Mapping[str, float] | None = None,
    notes: Sequence[str] = (),
    user: int | None = None,
    sessions: int = 4,
) -> None:
    """Write the report of models that ranked the same targets as one self-contained HTML file, whole or not at all.

    evaluations: the model the others are compared with first; each keeps the 5 items ranked first, or more
    histories:   for each trained model, a line an epoch: "epoch", "loss", and metrics of the validation part
    optimum:     the best metrics, per event, that any model can reach; known of a simulated log only
    notes:       paragraphs on the log: how it was split, what was left out
    user:        place in the cache of the user whose last `sessions` sessions are shown; by default the one of most
                 targets among those with at least 3 sessions

    Raises InputError if the evaluations are not of the same targets or that user has none, StorageError if the disk
    refuses.
    """
    _check(evaluations)
    first = evaluations[0]
    template = (resources.files("hiertcn") / "report.html.jinja").read_text(encoding="utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = page.from_string(template).render(
        title=title,
        facts=_facts(first),
        notes=notes,
        sections=[
            _overall(evaluations, optimum or {}),
            *([_differences(evaluations)] if len(evaluations) > 1 else []),
            *([_learning(histories, [e.name for e in evaluations])] if any(histories.values()) else []),
            *(_segments(evaluations, way) for way in first.segments),
        ],
        timeline=timeline(evaluations, busiest(first) if user is None else user, sessions),
        colours={evaluation.name: pictures.colour(i) for i, evaluation in enumerate(evaluations)},
    )
    write_text(path, text)


def _check(evaluations: Sequence[Evaluation]) -> None:
    if not evaluations:
        raise InputError("There is no evaluation to report. Evaluate at least one model first.")
    first = evaluations[0]
    for other in evaluations:
        same = (
            other.cache.manifest.fingerprint == first.cache.manifest.fingerprint
            and other.catalog.fingerprint == first.catalog.fingerprint
            and np.array_equal(other.ranks.events, first.ranks.events)
        )
        if not same:
            raise InputError(
                f"{first.name[:80]!r} and {other.name[:80]!r} were evaluated on different targets or catalogs, so they "
                "can't be compared. Evaluate both on the same part of the same cache, over the same catalog."
            )
        if other.ranks.top.shape[1] < min(TOP, other.catalog.size):
            raise InputError(
                f"The evaluation of {other.name[:80]!r} keeps {other.ranks.top.shape[1]} ranked items a target; the "
                f"report shows {TOP}. Evaluate it with top={TOP} or more."
            )
    if len({evaluation.name for evaluation in evaluations}) < len(evaluations):
        raise InputError("Two evaluations of the report have the same name. Give each model a name of its own.")


def _facts(first: Evaluation) -> list[tuple[str, str]]:
    manifest = first.cache.manifest
    outside = int((~first.ranked).sum())
    split = [f"{key.replace('_', ' ')} {_plain(value)}" for key, value in manifest.split.items() if value is not None]
    return [
        ("log", f"{manifest.events:,} events, {manifest.sessions:,} sessions, {manifest.users:,} users"),
        ("a new session", f"after {manifest.session_gap:,g} s without an event"),
        ("split", "; ".join(split)),
        ("candidates", f"{first.catalog.size:,} items, the whole catalog"),
        ("ranked", f"{first.table.targets:,} events of {first.table.users:,} users, {first.part} part"),
        ("outside the catalog", f"{outside:,} of {len(first.ranked):,} {first.part} events; counted, not ranked"),
    ]


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _number(value: float, form: str = ".4f") -> str:
    return format(value, form) if isfinite(value) else _NONE


def _cell(estimate: Estimate, form: str = ".4f", strong: bool = False) -> Cell:
    value, low, high = estimate
    interval = f"{_number(low, form)} to {_number(high, form)}" if isfinite(low) else ""
    return Cell(_number(value, form), interval, strong)


def _per_event(table: Table, metric: str) -> Estimate:
    return table.event[metric], *table.event_interval[metric]


def _per_user(table: Table, metric: str) -> Estimate:
    return table.user[metric], *table.user_interval[metric]


_WEIGHTS: dict[str, Callable[[Table, str], Estimate]] = {"per event": _per_event, "per user": _per_user}
_COLUMNS = [(metric, "lower is better" if metric in LOWER_IS_BETTER else "") for metric in METRICS]


def _overall(evaluations: Sequence[Evaluation], optimum: Mapping[str, float]) -> Section:
    shown = []
    for metric in PICTURED:
        estimates = {e.name: (_per_event(e.table, metric), _per_user(e.table, metric)) for e in evaluations}
        picture = pictures.comparison(metric, estimates, optimum.get(metric))
        shown.append((f"{metric} of each model, with 95% intervals; the numbers are in the tables", picture))
    grids = []
    for weight, estimate in _WEIGHTS.items():
        best = {
            metric: (min if metric in LOWER_IS_BETTER else max)(estimate(e.table, metric)[0] for e in evaluations)
            for metric in METRICS
        }
        rows = [
            (e.name, [_cell(found := estimate(e.table, m), strong=found[0] == best[m]) for m in METRICS])
            for e in evaluations
        ]
        if optimum and weight == "per event":
            rows.append(("known optimum", [Cell(_number(optimum.get(m, float("nan")))) for m in METRICS]))
        grids.append(Grid(f"Metrics {weight}, with 95% intervals; the best of each is bold", "model", _COLUMNS, rows))
    text = (
        "Each event of the part is ranked among all items of the catalog, before it is known. Per event, each event "
        "weighs alike; per user, each user does. Intervals are from resampling users."
    )
    return Section("How well each model ranks what came next", text, shown, grids)


def _differences(evaluations: Sequence[Evaluation]) -> Section:
    first, *others = evaluations
    ranked = first.ranked
    tables = {
        other.name: difference(
            first.ranks.ranks[ranked], other.ranks.ranks[ranked], first.targets.user[ranked], first.catalog.size
        )
        for other in others
    }
    grids = []
    for weight, estimate in _WEIGHTS.items():
        rows = []
        for name, table in tables.items():
            found = [estimate(table, metric) for metric in METRICS]
            rows.append((name, [_cell(e, "+.4f", strong=e[1] > 0 or e[2] < 0) for e in found]))
        caption = f"{first.name} minus each other model, {weight}; bold where the 95% interval leaves out 0"
        grids.append(Grid(caption, "minus", _COLUMNS, rows))
    text = (
        f"Paired: both models ranked the same events. A positive number says that {first.name} has the higher metric."
    )
    return Section(f"{first.name} against each other model", text, [], grids)


def _learning(histories: Mapping[str, Sequence[Mapping[str, Any]]], names: Sequence[str]) -> Section:
    order = {name: i for i, name in enumerate(dict.fromkeys([*names, *histories]))}
    shown = []
    for quantity in ("loss", *PICTURED):
        curves = {}
        for name, history in histories.items():
            lines = [line for line in history if quantity in line]
            if lines:
                curves[name] = (order[name], [line["epoch"] for line in lines], [line[quantity] for line in lines])
        if curves:
            shown.append((f"{quantity} by epoch; the numbers are in the tables", pictures.curves(quantity, curves)))
    grids = []
    for name, history in histories.items():
        columns = [key for key in history[0] if key != "epoch"] if history else []
        rows = [(str(line["epoch"]), [Cell(_number(line.get(c, float("nan")))) for c in columns]) for line in history]
        grids.append(Grid(f"{name} after each epoch", "epoch", [(column, "") for column in columns], rows))
    text = "The loss is that of training; the metrics are of the validation part, per event."
    return Section("Learning curves", text, shown, [grid for grid in grids if grid.rows])


def _segments(evaluations: Sequence[Evaluation], way: str) -> Section:
    tables = evaluations[0].segments[way]
    shown, grids = [], []
    for metric in PICTURED:
        estimates = {e.name: [_per_event(table, metric) for table in e.segments[way].values()] for e in evaluations}
        shown.append(
            (
                f"{metric} by {way}, with 95% intervals; the numbers are in the table",
                pictures.segments(metric, way, list(tables), estimates),
            )
        )
        grids.append(
            Grid(
                f"{metric} by {way}, per event, with 95% intervals",
                "model",
                [(name, f"{table.targets:,} events") for name, table in tables.items()],
                [(name, [_cell(e) for e in found]) for name, found in estimates.items()],
            )
        )
    return Section(f"By {way}", "", shown, grids)
