"""The report of a comparison: one HTML file that needs nothing else, no network and no script.

Item ids, titles and names of models come from logs and people: every one of them is escaped by the template.
"""

from __future__ import annotations

__all__ = ["write_page", "write_report"]

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from hiertcn import pictures
from hiertcn.errors import InputError
from hiertcn.evaluation import Evaluation
from hiertcn.files import write_text
from hiertcn.sections import Section, differences, facts, learning, overall, segments
from hiertcn.timeline import TOP, Timeline, busiest, timeline


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
    write_page(
        path,
        title,
        facts(first),
        notes,
        [
            overall(evaluations, optimum or {}),
            *([differences(evaluations)] if len(evaluations) > 1 else []),
            *([learning(histories, [e.name for e in evaluations])] if any(histories.values()) else []),
            *(segments(evaluations, way) for way in first.segments),
        ],
        [evaluation.name for evaluation in evaluations],
        timeline(evaluations, busiest(first) if user is None else user, sessions),
    )


def write_page(
    path: Path,
    title: str,
    facts: Sequence[tuple[str, str]],
    notes: Sequence[str],
    sections: Sequence[Section],
    models: Sequence[str],
    timeline: Timeline | None = None,
) -> None:
    """Write a page of `sections`, whole or not at all: (name, value) `facts` and paragraphs `notes` at its head, the
    names of `models` each with its colour, a user's `timeline` at its end. Raises StorageError if the disk refuses."""
    template = (resources.files("hiertcn") / "report.html.jinja").read_text(encoding="utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = page.from_string(template).render(
        title=title,
        facts=facts,
        notes=notes,
        sections=sections,
        timeline=timeline,
        colours={model: pictures.colour(i) for i, model in enumerate(models)},
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
            and other.candidates == first.candidates
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
