"""Verbs on logs: prepare, inspect, simulate."""

from __future__ import annotations

__all__ = ["inspect", "prepare", "simulate"]

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from hiertcn.cache import Cache
from hiertcn.errors import InputError
from hiertcn.files import written_aside
from hiertcn.inspection import describe, inspection
from hiertcn.preparation import prepare as prepare_log
from hiertcn.synth import SimulationConfig
from hiertcn.synth import shuffled as shuffled_log
from hiertcn.synth import simulate as simulate_log
from hiertcn.verbs.flags import (
    Column,
    Header,
    Json,
    Separator,
    SessionColumn,
    TimeUnit,
    Zone,
    say,
    within,
)


def prepare(
    log: Annotated[
        list[str], typer.Argument(metavar="LOG…", help="Parquet, CSV, TSV or JSONL; files, a folder or a glob.")
    ],
    out: Annotated[Path, typer.Option(help="The cache to write.")],
    preset: Annotated[str | None, typer.Option(help="Options of a known public set.")] = None,
    catalog: Annotated[Path | None, within("Items", "Their ids, titles, links, vectors (Parquet or CSV).")] = None,
    vectors: Annotated[
        Path | None, within("Items", "Vectors, a row for each line of --catalog (.npy, .safetensors).")
    ] = None,
    vector_column: Annotated[str | None, within("Items", "Of --catalog; found by usual names.")] = None,
    keep_columns: Annotated[str | None, within("Items", "Of --catalog, to filter by: a,b,c.")] = None,
    impressions: Annotated[
        Path | None, within("Impressions", "What was shown when an item was picked, a file.")
    ] = None,
    impression_columns: Annotated[str | None, within("Impressions", "user=A,item=B,time=C,shown=D", "found")] = None,
    impression_window: Annotated[float | None, within("Impressions", "Most seconds from view to event.", "600")] = None,
    impression_column: Annotated[str | None, within("Impressions", "Of the log itself, a list.")] = None,
    user_column: Column = None,
    item_column: Column = None,
    time_column: Column = None,
    session_column: SessionColumn = None,
    type_column: Column = None,
    offset_column: Annotated[str | None, within("Columns", "Milliseconds to add to the time.")] = None,
    session_gap: Annotated[
        float | None, typer.Option(help="Seconds; a gap of at least this begins a session.", show_default="1800")
    ] = None,
    max_session_events: Annotated[
        int | None, typer.Option(help="A session of more is cut after every so many.", show_default="1000")
    ] = None,
    drop_types: Annotated[str | None, within("Filters", "Event types to leave out, a,b,c.")] = None,
    forgotten: Annotated[Path | None, within("Filters", "Who was forgotten: what GET /v1/forgotten answers.")] = None,
    min_item_events: Annotated[int | None, within("Filters", default="1")] = None,
    min_user_events: Annotated[int | None, within("Filters", default="2")] = None,
    max_user_events: Annotated[int | None, within("Filters", "Users with more are left out.")] = None,
    cap_user_events: Annotated[
        int | None, within("Filters", "Of users with more, the last are kept.", "100000")
    ] = None,
    keep_duplicates: Annotated[bool | None, typer.Option("--keep-duplicates", rich_help_panel="Filters")] = None,
    unknown_items: Annotated[
        str | None,
        within("Filters", "Items not in --catalog: train, outside, drop or error.", "train; outside with vectors"),
    ] = None,
    split: Annotated[str | None, within("Split", "time, users, last or column:NAME.", "last")] = None,
    fractions: Annotated[str | None, within("Split", "Train, valid, test.", "0.8,0.1,0.1")] = None,
    cuts: Annotated[str | None, within("Split", "Two times, A,B, where valid and test begin.")] = None,
    seed: Annotated[int | None, within("Split", "Of the split by users.", "0")] = None,
    header: Header = None,
    separator: Separator = None,
    time_unit: TimeUnit = None,
    tz: Zone = None,
    max_bad_rows: Annotated[float | None, within("Reading", "Share of rows.", "0.001")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a cache at --out.")] = False,
) -> None:
    """Prepare a log of who, what, when: filter, split, cut into sessions, write a cache."""
    options = {k: v for k, v in locals().items() if k not in ("log", "out", "overwrite")}
    prepare_log(log, out, overwrite=overwrite, report=say, **options)


def inspect(
    cache: Annotated[Path, typer.Argument(metavar="CACHE", help="A prepared log.")],
    as_json: Json = False,
    verify: Annotated[bool, typer.Option("--verify", help="Check every file against its digest.")] = False,
) -> None:
    """Say what is in a cache: counts, sessions per user, gap, split, vectors, size."""
    opened = Cache(cache)
    if verify:
        opened.verify()
    found = inspection(opened)
    typer.echo(json.dumps(found, indent=1) if as_json else describe(found))


def simulate(
    out: Annotated[Path, typer.Option(help="The log to write (Parquet).")],
    users: Annotated[int, typer.Option()] = 2000,
    sessions: Annotated[float, typer.Option(help="Mean of a user.")] = 15,
    session_length: Annotated[float, typer.Option(help="Mean events of a session.")] = 4,
    loyalty: Annotated[float, typer.Option(help="Share of events that follow the user's taste.")] = 0.5,
    noise: Annotated[float, typer.Option(help="Share of events that are any item.")] = 0.1,
    seed: Annotated[int, typer.Option()] = 0,
    shuffled: Annotated[bool, typer.Option("--shuffled", help="The control: items permuted over all events.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file at --out.")] = False,
) -> None:
    """Simulate a log whose best possible ranking is known: long-term taste × session intent × noise."""
    if out.exists() and not overwrite:
        raise InputError(f"{out} is there already. Choose another --out, or pass --overwrite to replace it.")
    config = SimulationConfig(
        users=users, sessions=sessions, session_length=session_length, loyalty=loyalty, noise=noise, seed=seed
    )
    log = simulate_log(config)
    if shuffled:
        log = shuffled_log(log, seed)
    with written_aside(out) as aside:
        log.write_parquet(aside)
    say(f"{out}: {log.height:,} events of {users:,} users; {json.dumps(asdict(config))}")
