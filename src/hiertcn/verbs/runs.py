"""Verbs on models: train, evaluate, recommend. Torch is loaded when they are called."""

from __future__ import annotations

__all__ = ["embed_users", "evaluate", "recommend", "train"]

import json
from pathlib import Path
from typing import Annotated

import typer

from hiertcn.cache import Cache
from hiertcn.columns import Columns
from hiertcn.config import PRESETS
from hiertcn.errors import InputError
from hiertcn.files import write_text
from hiertcn.tables import Layout
from hiertcn.verbs.flags import (
    Column,
    Header,
    Json,
    OtherCache,
    RunFolder,
    Separator,
    SessionColumn,
    TimeUnit,
    Zone,
    console,
    say,
)


def train(
    cache: Annotated[Path, typer.Argument(metavar="CACHE", help="A prepared log.")],
    out: Annotated[Path, typer.Option(help="The model directory to write.")],
    preset: Annotated[str, typer.Option(help=f"{', '.join(PRESETS)}.")] = "strong",
    config: Annotated[Path | None, typer.Option(help="A TOML file instead of a preset.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the train part at most.")] = None,
    loss: Annotated[str | None, typer.Option(help="cross_entropy, sampled_softmax, l2 or a ranking loss.")] = None,
    learning_rate: Annotated[float | None, typer.Option()] = None,
    rows: Annotated[int | None, typer.Option(help="Rows of a batch.")] = None,
    dim: Annotated[int | None, typer.Option(help="Size of item vectors, or of what is read of given ones.")] = None,
    vectors: Annotated[
        str | None, typer.Option(help="fixed, tuned, both or learned.", show_default="fixed where items have some")
    ] = None,
    tune_vectors: Annotated[bool, typer.Option("--tune-vectors", help="The same as --vectors tuned.")] = False,
    seed: Annotated[int | None, typer.Option()] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Train even if memory may not suffice.")] = False,
) -> None:
    """Train a model; the one that ranks the validation part best is kept."""
    from hiertcn.progress import Progress
    from hiertcn.settings import read_settings
    from hiertcn.training import train as train_model

    given = {"epochs": epochs, "loss": loss, "learning_rate": learning_rate, "rows": rows, "seed": seed}
    model_config, train_config = read_settings(
        preset, config, {"dim": dim, "vectors": "tuned" if tune_vectors else vectors}, {**given, "device": device}
    )
    run = train_model(
        cache, model_config, train_config, out, resume=resume, allow_memory=yes, progress=Progress(console)
    )
    best = run.manifest["validation"]
    say(
        f"{out}: {run.name}, best after epoch {best['epoch']}: "
        f"validation mrr {best['mrr']:.4f}, recall@10 {best['recall@10']:.4f}"
    )


def evaluate(
    run: RunFolder,
    split: Annotated[str, typer.Option(help="valid or test.")] = "test",
    cache: OtherCache = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Rank by popularity, last_items, most_frequent, or by given vectors: moving_average, max_item."
        ),
    ] = None,
    candidates: Annotated[str, typer.Option(help="all, impressions, or random:N.")] = "all",
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all metrics and segments.")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a row for each target (Parquet).")
    ] = None,
) -> None:
    """Rank every target among the whole catalog; metrics per event and per user, with intervals, and by segment."""
    from hiertcn.evaluation import TOP, read_candidates
    from hiertcn.evaluation import evaluate as evaluate_run

    found = evaluate_run(
        run, cache, split, model=model, candidates=read_candidates(candidates), top=TOP if predictions else 0
    )
    typer.echo(found)
    typer.echo(found.segment_lines())
    if json_file:
        write_text(json_file, json.dumps(found.as_json(), indent=1))
    if predictions:
        found.write_predictions(predictions)


def recommend(
    run: RunFolder,
    user: Annotated[str | None, typer.Option(help="A user of the prepared log.")] = None,
    history: Annotated[
        Path | None, typer.Option(help="The events of one person, who need not be in the prepared log.")
    ] = None,
    user_column: Column = None,
    item_column: Column = None,
    time_column: Column = None,
    session_column: SessionColumn = None,
    header: Header = None,
    separator: Separator = None,
    time_unit: TimeUnit = None,
    tz: Zone = None,
    k: Annotated[int, typer.Option("-k", help="How many items, 1 to 500.")] = 10,
    exclude_seen: Annotated[bool, typer.Option("--exclude-seen", help="Leave out what the person had.")] = False,
    cache: OtherCache = None,
    as_json: Json = False,
) -> None:
    """Recommend the next items for a user of the log, or for anyone from a history of events."""
    from hiertcn.artifact import Run
    from hiertcn.histories import history_in_cache, history_in_file
    from hiertcn.recommender import Recommender
    from hiertcn.streams import crowd_of, known_rows

    if (user is None) == (history is None):
        raise InputError("Give either --user ID (of the prepared log) or --history FILE (the events of one person).")
    opened = Run(run)
    crowd = None
    if history is not None:
        columns = Columns(user=user_column, item=item_column, time=time_column, session=session_column)
        found = history_in_file(history, columns, Layout(header is not False, separator), time_unit, tz)
    else:
        log = Cache(cache or opened.manifest["cache"]["path"])
        found = history_in_cache(log, str(user))
        if cache is not None:
            crowd = crowd_of(log, "test", known_rows(log.catalog, opened.catalog), opened.model.horizons)
        if not found.items:
            say(f"{str(user)[:80]!r} has no event in the prepared log.")
    best = Recommender.load(opened, crowd=crowd).recommend_history(
        found.items, found.times, k, exclude_seen=exclude_seen, sessions=found.sessions, shown=found.shown
    )
    if as_json:
        typer.echo(json.dumps([entry._asdict() for entry in best], ensure_ascii=False))
        return
    if not best:
        say("The person had every item of the catalog, so none is left.")
    elif best[0].source == "popular":
        say("No event of this person is known to the model: these are the most popular items and their train events.")
    for entry in best:
        typer.echo(f"{entry.item}\t{entry.score:.4f}\t{entry.title or ''}")


def embed_users(
    run: RunFolder,
    cache: Annotated[Path, typer.Argument(metavar="CACHE", help="A prepared log.")],
    out: Annotated[Path, typer.Option(help="The Parquet file to write.")],
    items: Annotated[Path | None, typer.Option(help="Another, for the item vectors they are compared with.")] = None,
) -> None:
    """Write every user's current query, to search among the item vectors in an engine of your own."""
    from hiertcn.userqueries import write_item_vectors, write_user_queries

    users = write_user_queries(run, cache, out)
    say(f"{out}: queries of {users:,} users")
    if items is not None:
        say(f"{items}: vectors of {write_item_vectors(run, items):,} items")
