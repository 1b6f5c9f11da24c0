"""The main job end to end: simulate (or take a log), prepare, train, evaluate against baselines, recommend, report."""

from __future__ import annotations

__all__ = ["run_demo"]

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table as Grid

from hiertcn.artifact import Run
from hiertcn.cache import Cache
from hiertcn.evaluation import Evaluation, evaluate
from hiertcn.files import written_aside
from hiertcn.histories import history_in_cache
from hiertcn.metrics import METRICS, per_event
from hiertcn.progress import Progress
from hiertcn.recommender import Recommender
from hiertcn.report import write_report
from hiertcn.settings import read_settings
from hiertcn.synth import SimulationConfig, optimum, simulate
from hiertcn.training import train

TRAINED = {"hiertcn": "strong", "hrnn": "hrnn", "gru": "gru", "moving_average": "moving_average"}
COUNTED = ("last_items", "popularity")
EPOCHS, PATIENCE, SHOWN_TOP = 20, 2, 5
# Small enough that every model is trained within a few minutes on two cores.
SIMULATION = SimulationConfig(users=1000, tastes=8, ring=12, sessions=12)


def run_demo(
    out: Path, log: str | None, prepare_into: Callable[[str, Path], Cache], console: Console, epochs: int | None
) -> None:
    """Write OUT/cache, OUT/runs and OUT/report.html, from `log` or a simulated one; `prepare_into` makes the cache."""

    def say(text: str) -> None:
        console.print(f"[bold]{text}[/bold]")

    wanted = {"epochs": EPOCHS if epochs is None else epochs, "patience": PATIENCE}
    settings = {name: read_settings(preset, train=wanted) for name, preset in TRAINED.items()}
    simulated = None
    if log is None:
        say("1. Simulate a log whose best possible ranking is known")
        simulated = simulate(SIMULATION)
        with written_aside(out / "events.parquet") as aside:
            simulated.write_parquet(aside)
        log = str(out / "events.parquet")
    say("2. Prepare it: sessions on disk")
    cache = prepare_into(log, out / "cache")
    runs: dict[str, Run] = {}
    for number, (name, configs) in enumerate(settings.items(), 1):
        say(f"3. Train {name} ({number} of {len(settings)})")
        shutil.rmtree(out / "runs" / name, ignore_errors=True)
        runs[name] = train(cache, *configs, out / "runs" / name, progress=Progress(console))
    say("4. Evaluate: every test event ranked among the whole catalog")
    first = runs["hiertcn"]
    found = [evaluate(run, cache, top=SHOWN_TOP) for run in runs.values()]
    found += [evaluate(first, cache, model=name, top=SHOWN_TOP) for name in COUNTED]
    best = None if simulated is None else _optimum(simulated, found[0])
    console.print(_grid(found, best))
    user = _busiest(cache)
    say(f"5. Recommend for user {user}")
    known = history_in_cache(cache, user)
    for entry in Recommender.load(first).recommend_history(known.items, known.times, 5, sessions=known.sessions):
        console.print(f"   {entry.item}  {entry.score:.3f}  {entry.title or ''}", highlight=False, markup=False)
    report = out / "report.html"
    write_report(
        report,
        title=f"hiertcn on {Path(log).name}",
        evaluations=found,
        histories={name: run.manifest["history"] for name, run in runs.items()},
        optimum=best,
        notes=_notes(cache, simulated is not None),
    )
    say(f"6. The report: {report.resolve()}")


def _optimum(log: pl.DataFrame, evaluation: Evaluation) -> dict[str, float]:
    """Metrics per event of the best possible ranking of the evaluated targets of a simulated log."""
    asked = evaluation.predictions().select("user_id", "time", "item_id").with_columns(asked=True)
    mask = log.join(asked, on=["user_id", "time", "item_id"], how="left", maintain_order="left")["asked"].fill_null(
        False
    )
    ranks = optimum(log, SIMULATION, mask.to_numpy(), ties_seed=0)
    return dict(zip(METRICS, per_event(ranks, evaluation.catalog.size).mean(0).tolist(), strict=True))


def _grid(found: list[Evaluation], best: dict[str, float] | None) -> Grid:
    columns = ("recall@1", "recall@10", "mrr")
    grid = Grid("model", *columns, title=f"{found[0].table.targets:,} test events, per event, with 95% intervals")
    for evaluation in found:
        table = evaluation.table
        grid.add_row(
            evaluation.name,
            *(
                f"{table.event[c]:.4f}\n{table.event_interval[c][0]:.4f}–{table.event_interval[c][1]:.4f}"
                for c in columns
            ),
        )
    if best is not None:
        grid.add_row("best possible", *(f"{best[c]:.4f}" for c in columns))
    return grid


def _busiest(cache: Cache) -> str:
    """The id of the user of the first shard with the most sessions."""
    shard = cache.shard(0)
    return str(shard.user_ids[int(np.diff(shard.sessions.user_offsets).argmax())])


def _notes(cache: Cache, simulated: bool) -> list[str]:
    split = cache.manifest.split
    notes = [
        f"The log is split by {split['by']}; {cache.manifest.parts['train']['events']:,} events were trained on. "
        "Before an event is ranked the models have read all earlier events of its user, whatever part they are in, and "
        "know of time only when the session began and when its previous event was."
    ]
    if split.get("overlap"):
        notes.append(
            f"{split['overlap']:,} training events are later than the first test event: this split measures how well "
            "the next item of a user is found, not how well a model trained today does tomorrow."
        )
    if simulated:
        notes.append(
            "The log is simulated: each user has a lasting taste, each session an intent, and the rest is noise. An "
            "exact filter that knows the rules, but not the tastes and intents, gives the best possible ranking."
        )
    return notes
