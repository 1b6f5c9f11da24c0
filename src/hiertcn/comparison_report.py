"""The pages of a comparison: the same sections as Markdown, with tables, and as HTML, with pictures, too."""

from __future__ import annotations

__all__ = ["write_comparison"]

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hiertcn import pictures
from hiertcn.comparison import Compared, Comparison
from hiertcn.files import write_text
from hiertcn.metrics import Table
from hiertcn.report import write_page
from hiertcn.sections import (
    PICTURED,
    Cell,
    Grid,
    Section,
    cell,
    differences,
    facts,
    learning,
    minus,
    number,
    overall,
    per_event,
    segments,
)

_MB = 1e6


def write_comparison(found: Comparison, out: Path) -> None:
    """Write OUT/compare.md and OUT/compare.html, each whole. Raises StorageError if the disk refuses."""
    evaluations = [model.evaluation for model in found.models]
    sections = [_summary(found)] if evaluations else []
    if found.failures:
        rows = [(name, [Cell(why)]) for name, why in found.failures.items()]
        grid = Grid("Models that came to no end", "model", [("reason", "")], rows)
        sections.append(Section("Failures", "The others went on without them.", [], [grid]))
    if evaluations:
        sections.append(overall(evaluations, {}))
        if found.baseline is not None and len(evaluations) > 1:
            sections.append(_to_baseline(found, found.baseline))
        if found.first is not None and len(evaluations) > 1:
            sections.append(differences(evaluations))
        sections += [_curves(found), _costs(found), _soundness(found), _tuning(found)]
        histories = {m.name: m.study.succeeded["history"] for m in found.models}
        learned = {name: lines for name, lines in histories.items() if any("loss" in line for line in lines)}
        if learned:
            sections.append(learning(learned, [model.name for model in found.models]))
        sections += [segments(evaluations, way) for way in evaluations[0].segments]
    title = f"{found.names[0]} compared on {found.cache.path.name}"
    head = [*(facts(evaluations[0]) if evaluations else []), *_budget(found)]
    notes = _notes(found)
    write_text(out / "compare.md", _markdown(title, head, notes, sections))
    write_page(out / "compare.html", title, head, notes, sections, [model.name for model in found.models])


def _budget(found: Comparison) -> list[tuple[str, str]]:
    told = found.budget
    return [
        ("budget of each model", f"{told['trials']} trials of at most {told['epochs']} epochs"),
        ("a trial ends", f"after {told['patience']} epochs without a better validation {told['metric']}"),
        ("seed", str(told["seed"])),
        ("made with", ", ".join(f"{name} {version}" for name, version in found.versions.items())),
    ]


def _notes(found: Comparison) -> list[str]:
    leaking = [model.name for model in found.models if model.leaks]
    notes = [
        "Each model was tuned on the validation part with the same budget; the best of its trials then ranked the test "
        "part, once. Same split, same candidates, ties share the middle rank."
    ]
    if found.candidates != "all":
        among = "what was shown beside it" if found.candidates == "impressions" else "items that are drawn for it"
        notes.append(
            f"Each test event is ranked among {among}; one that has no such candidates is counted, not ranked. The "
            "validation part, by which trials are judged, and the check of soundness are over the whole catalog."
        )
    if leaking:
        notes.insert(
            0,
            f"LEAK: {', '.join(leaking)} ranked targets that cannot be known. What is said of it below is no "
            "measurement of how well it predicts; see the section on soundness.",
        )
    if found.failures:
        notes.append(f"{len(found.failures)} of {len(found.names)} models failed: {', '.join(found.failures)}.")
    return notes


def _summary(found: Comparison) -> Section:
    best = found.baseline
    columns = [(metric, "per event") for metric in PICTURED]
    if best is not None:
        columns += [(f"{metric} minus {best.name}", "in % of it") for metric in PICTURED]
    rows = []
    for model in found.models:
        cells = [cell(per_event(model.evaluation.table, metric)) for metric in PICTURED]
        if best is not None:
            cells += [_lead(found, model, metric) for metric in PICTURED]
        rows.append((model.name, [*cells, Cell("LEAK" if model.leaks else "yes", strong=model.leaks)]))
    text = (
        ""
        if best is None
        else f"The best baseline is {best.name}: of the models other than {found.names[0]} and HierTCN, or than "
        f"{found.names[0]} where there is no such one, that of the highest mrr on the test part. Bold where the 95% "
        "interval of the paired difference leaves out 0."
    )
    return Section("In short", text, [], [Grid("Models, with 95% intervals", "model", [*columns, ("sound", "")], rows)])


def _lead(found: Comparison, model: Compared, metric: str) -> Cell:
    if model is found.baseline:
        return Cell("–")
    estimate = per_event(found.to_baseline[model.name], metric)
    lead = cell(estimate, "+.4f", estimate[1] > 0 or estimate[2] < 0)
    return Cell(
        f"{lead.text} ({number(100 * found.relative(model.name, metric), '+.1f')}%)", lead.interval, lead.strong
    )


def _to_baseline(found: Comparison, best: Compared) -> Section:
    tables: Mapping[str, Table] = found.to_baseline
    text = f"Paired: both models ranked the same events. A positive number says that {best.name} has the lower metric."
    grids = minus(tables, lambda weight: f"Each model minus {best.name}, {weight}")
    return Section(f"Each model against the best baseline, {best.name}", text, [], grids)


def _curves(found: Comparison) -> Section:
    shown = [
        (
            "recall@K of each model; the numbers are in compare.json",
            pictures.recalls({model.name: model.curve for model in found.models}),
        )
    ]
    at = (1, 2, 5, 10, 20, 50, 100)
    rows = [(model.name, [Cell(number(model.curve[k - 1])) for k in at]) for model in found.models]
    grids = [Grid("recall@K per event", "model", [(f"recall@{k}", "") for k in at], rows)]
    first, best = found.first, found.baseline
    if first is not None and best is not None:
        gains = np.sort(first.user_mrr - best.user_mrr)
        title = f"mrr of each user, {first.name} minus {best.name}"
        shown.append((f"{title}, users in order", pictures.gains(title, gains)))
        shares = [
            ("better", f"{(gains > 0).mean():.1%}"),
            ("the same", f"{(gains == 0).mean():.1%}"),
            ("worse", f"{(gains < 0).mean():.1%}"),
            *((f"{share}% have at most", f"{np.quantile(gains, share / 100):+.4f}") for share in (5, 25, 50, 75, 95)),
        ]
        columns = [(name, "") for name, _ in shares]
        grids.append(Grid(f"Users by their {title}", "users", columns, [("all", [Cell(text) for _, text in shares])]))
    return Section("How far down, and for whom", "", shown, grids)


_COSTS: dict[str, tuple[str, str, float, str]] = {
    "parameters": ("parameters", "learned", 1, ",.0f"),
    "model_bytes": ("model", "MB", _MB, ",.2f"),
    "state_bytes_per_user": ("data memory", "bytes a user", 1, ",.0f"),
    "trained_targets_per_second": ("training", "events/s", 1, ",.0f"),
    "milliseconds_per_scored_event": ("ranking", "ms an event", 1, ",.3f"),
    "peak_memory_training": ("peak memory, training", "MB", _MB, ",.0f"),
    "peak_memory_ranking": ("peak memory, ranking", "MB", _MB, ",.0f"),
    "seconds_tuning": ("tuning", "s, all trials", 1, ",.0f"),
}


def _costs(found: Comparison) -> Section:
    libraries = max(model.figures["memory_of_libraries"] for model in found.models)
    rows = []
    for model in found.models:
        told = model.figures
        values = [float("nan") if told[key] is None else told[key] / unit for key, (_, _, unit, _) in _COSTS.items()]
        forms = [form for *_, form in _COSTS.values()]
        rows.append((model.name, [Cell(number(value, form)) for value, form in zip(values, forms, strict=True)]))
    text = (
        "Of the best trial. Data memory is the long-term state that is stored of a user to go on predicting; the items "
        "of the running session come on top, the same for all. Training is targets by the seconds of the loop, without "
        "validation. Ranking is all of it, reading the log included. Peak memory is that of the process, of which the "
        f"libraries alone take {libraries / _MB:,.0f} MB."
    )
    columns = [(name, remark) for name, remark, _, _ in _COSTS.values()]
    return Section("What each model takes", text, [], [Grid("What each model takes", "model", columns, rows)])


def _soundness(found: Comparison) -> Section:
    rows = []
    for model in found.models:
        told: Mapping[str, Any] = model.test["soundness"]
        cells = [
            cell(tuple(told["mrr"])),
            Cell(number(told["constant"])),
            cell(tuple(told["difference"]), "+.4f", told["difference"][1] > 0),
            Cell("the same" if told["same_queries"] else "other ones", strong=not told["same_queries"]),
            Cell("LEAK" if told["leaks"] else "sound", strong=told["leaks"]),
        ]
        rows.append((model.name, cells))
    text = (
        "The items of the test events were permuted among these events, as input and as target, and ranked by each "
        "model. Nothing is left to be known of an event there, so no sound model is above the best constant ranking, "
        "the items by their frequency among the very targets. Then some batches were asked again with other targets, "
        "and with other items at the last position of each user, which nothing follows: a sound model's queries stay."
    )
    columns = [
        ("mrr, permuted", ""),
        ("mrr of the best constant", ""),
        ("difference", ""),
        ("queries when asked again", ""),
        ("verdict", ""),
    ]
    return Section("Does a model know its target", text, [], [Grid("Soundness", "model", columns, rows)])


def _tuning(found: Comparison) -> Section:
    grids = []
    for model in found.models:
        keys = list(model.study.contender.space.keys)
        rows = []
        for trial in model.study.trials:
            best = trial is model.study.best
            value = "failed" if "failed" in trial else number(trial["value"])
            epochs = "–" if "failed" in trial else str(len(trial["history"]))
            chosen = trial["chosen"]
            settings = [Cell(_setting(chosen[key])) if key in chosen else Cell("default") for key in keys]
            rows.append((str(trial["number"]), [Cell(value, strong=best), Cell(epochs), *settings]))
        columns = [(f"validation {found.budget['metric']}", ""), ("epochs", ""), *((key, "") for key in keys)]
        grids.append(Grid(f"Trials of {model.name}; the best is bold", "trial", columns, rows))
    text = "Trial 0 is the defaults; the others are proposed by Optuna's TPE. A model without a space has one."
    return Section("Tuning", text, [], grids)


def _setting(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _markdown(title: str, head: Sequence[tuple[str, str]], notes: Sequence[str], sections: Sequence[Section]) -> str:
    lines = [f"# {_escaped(title)}", "", *(f"* {_escaped(name)}: {_escaped(value)}" for name, value in head)]
    for note in notes:
        lines += ["", _escaped(note)]
    for section in sections:
        lines += ["", f"## {_escaped(section.title)}"]
        lines += ["", _escaped(section.text)] if section.text else []
        for grid in section.grids:
            lines += ["", f"{_escaped(grid.caption)}:", "", *_table(grid)]
    return "\n".join(lines) + "\n"


def _table(grid: Grid) -> list[str]:
    names = [_escaped(f"{name} ({remark})" if remark else name) for name, remark in grid.columns]
    lines = [f"| {' | '.join([_escaped(grid.corner), *names])} |", f"|---{'|---:' * len(names)}|"]
    for name, cells in grid.rows:
        texts = [f"**{_escaped(one.text)}**" if one.strong else _escaped(one.text) for one in cells]
        spans = [f" ({_escaped(one.interval)})" if one.interval else "" for one in cells]
        shown = [text + span for text, span in zip(texts, spans, strict=True)]
        lines.append(f"| {' | '.join([_escaped(name), *shown])} |")
    return lines


def _escaped(text: str) -> str:
    out = " ".join(text.split())
    for mark in "\\`*_<>|[]":
        out = out.replace(mark, f"\\{mark}")
    return out
