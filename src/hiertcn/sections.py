"""Sections of a report: what its tables and pictures say of models that ranked the same targets."""

from __future__ import annotations

__all__ = [
    "PICTURED",
    "Cell",
    "Grid",
    "Section",
    "cell",
    "differences",
    "facts",
    "learning",
    "minus",
    "number",
    "overall",
    "per_event",
    "segments",
]

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from hiertcn import pictures
from hiertcn.evaluation import Evaluation
from hiertcn.metrics import METRICS, Table, difference
from hiertcn.pictures import Estimate

PICTURED = ("recall@10", "mrr")
LOWER_IS_BETTER = ("mean_rank_percentile",)
_NONE = "–"


@dataclass(frozen=True)
class Cell:
    """What stands in a table: a text, the interval below it, whether it is bold."""

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
    """A part of a page: its title and text, then `pictures`, (alternative text, data URI), then tables."""

    title: str
    text: str
    pictures: Sequence[tuple[str, str]]
    grids: Sequence[Grid]


def facts(first: Evaluation) -> list[tuple[str, str]]:
    """(name, value) pairs on the log and the targets of an evaluation."""
    manifest = first.cache.manifest
    split = [f"{key.replace('_', ' ')} {_plain(value)}" for key, value in manifest.split.items() if value is not None]
    return [
        ("log", f"{manifest.events:,} events, {manifest.sessions:,} sessions, {manifest.users:,} users"),
        ("a new session", f"after {manifest.session_gap:,g} s without an event"),
        ("split", "; ".join(split)),
        ("candidates", _among(first)),
        ("ranked", f"{first.table.targets:,} events of {first.table.users:,} users, {first.part} part"),
        ("outside the catalog", f"{first.outside:,} of {len(first.ranked):,} {first.part} events; counted, not ranked"),
        *([("without candidates", f"{first.alone:,} more; counted, not ranked")] if first.candidates != "all" else []),
    ]


def _among(first: Evaluation) -> str:
    if first.candidates == "all":
        return f"{first.catalog.size:,} items, the whole catalog"
    mean = f"{first.ranks.among[first.ranked].mean():.1f} items on average, the target one of them"
    return f"{'what was shown beside a target' if first.candidates == 'impressions' else 'drawn at random'}: {mean}"


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def number(value: float, form: str = ".4f") -> str:
    """The number in `form`; a dash where it is not finite."""
    return format(value, form) if isfinite(value) else _NONE


def cell(estimate: Estimate, form: str = ".4f", strong: bool = False) -> Cell:
    """An estimate with its interval, in `form`."""
    value, low, high = estimate
    interval = f"{number(low, form)} to {number(high, form)}" if isfinite(low) else ""
    return Cell(number(value, form), interval, strong)


def per_event(table: Table, metric: str) -> Estimate:
    """The metric of a table, each event weighing alike."""
    return table.event[metric], *table.event_interval[metric]


def _per_user(table: Table, metric: str) -> Estimate:
    return table.user[metric], *table.user_interval[metric]


_WEIGHTS: dict[str, Callable[[Table, str], Estimate]] = {"per event": per_event, "per user": _per_user}
_COLUMNS = [(metric, "lower is better" if metric in LOWER_IS_BETTER else "") for metric in METRICS]


def overall(evaluations: Sequence[Evaluation], optimum: Mapping[str, float]) -> Section:
    """Every metric of each model, per event and per user; `optimum`: the best that any model can reach, per event."""
    shown = []
    for metric in PICTURED:
        estimates = {e.name: (per_event(e.table, metric), _per_user(e.table, metric)) for e in evaluations}
        picture = pictures.comparison(metric, estimates, optimum.get(metric))
        shown.append((f"{metric} of each model, with 95% intervals; the numbers are in the tables", picture))
    grids = []
    for weight, estimate in _WEIGHTS.items():
        best = {
            metric: (min if metric in LOWER_IS_BETTER else max)(estimate(e.table, metric)[0] for e in evaluations)
            for metric in METRICS
        }
        rows = [
            (e.name, [cell(found := estimate(e.table, m), strong=found[0] == best[m]) for m in METRICS])
            for e in evaluations
        ]
        if optimum and weight == "per event":
            rows.append(("known optimum", [Cell(number(optimum.get(m, float("nan")))) for m in METRICS]))
        grids.append(Grid(f"Metrics {weight}, with 95% intervals; the best of each is bold", "model", _COLUMNS, rows))
    among = {"all": "all items of the catalog", "impressions": "what was shown beside it"}
    text = (
        f"Each event of the part is ranked among {among.get(str(evaluations[0].candidates), 'items drawn for it')}, "
        "before it is known. Per event, each event weighs alike; per user, each user does. Intervals are from "
        "resampling users."
    )
    return Section("How well each model ranks what came next", text, shown, grids)


def differences(evaluations: Sequence[Evaluation]) -> Section:
    """The first model minus each other one, paired."""
    first, *others = evaluations
    ranked = first.ranked
    tables = {
        other.name: difference(
            first.ranks.ranks[ranked], other.ranks.ranks[ranked], first.targets.user[ranked], first.ranks.among[ranked]
        )
        for other in others
    }
    grids = minus(tables, lambda weight: f"{first.name} minus each other model, {weight}")
    text = (
        f"Paired: both models ranked the same events. A positive number says that {first.name} has the higher metric."
    )
    return Section(f"{first.name} against each other model", text, [], grids)


def minus(tables: Mapping[str, Table], caption: Callable[[str], str]) -> list[Grid]:
    """Tables of paired differences by name, per event and per user; `caption` is given which."""
    grids = []
    for weight, estimate in _WEIGHTS.items():
        rows = []
        for name, table in tables.items():
            found = [estimate(table, metric) for metric in METRICS]
            rows.append((name, [cell(e, "+.4f", strong=e[1] > 0 or e[2] < 0) for e in found]))
        grids.append(Grid(f"{caption(weight)}; bold where the 95% interval leaves out 0", "minus", _COLUMNS, rows))
    return grids


def learning(histories: Mapping[str, Sequence[Mapping[str, Any]]], names: Sequence[str]) -> Section:
    """Loss and validation metrics of each model by epoch; see `report.write_report`."""
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
        rows = [(str(line["epoch"]), [Cell(number(line.get(c, float("nan")))) for c in columns]) for line in history]
        grids.append(Grid(f"{name} after each epoch", "epoch", [(column, "") for column in columns], rows))
    text = "The loss is that of training; the metrics are of the validation part, per event."
    return Section("Learning curves", text, shown, [grid for grid in grids if grid.rows])


def segments(evaluations: Sequence[Evaluation], way: str) -> Section:
    """Recall@10 and MRR of each model in the segments of one `way` to divide targets (targets.SEGMENTS)."""
    tables = evaluations[0].segments[way]
    shown, grids = [], []
    for metric in PICTURED:
        estimates = {e.name: [per_event(table, metric) for table in e.segments[way].values()] for e in evaluations}
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
                [(name, [cell(e) for e in found]) for name, found in estimates.items()],
            )
        )
    return Section(f"By {way}", "", shown, grids)
