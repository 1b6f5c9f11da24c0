"""Verbs on stores of users' states: replay, doctor. Models are loaded when they are called."""

from __future__ import annotations

__all__ = ["doctor", "replay"]

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from hiertcn.bar import Bar
from hiertcn.errors import ArtifactError, InputError
from hiertcn.events import Events, read_events
from hiertcn.filters import without_types
from hiertcn.options import prepare_config
from hiertcn.times import parse_time
from hiertcn.verbs.flags import Column, Header, Json, RunFolder, Separator, TimeUnit, Zone, console, say, within

State = Annotated[str, typer.Option(help="sqlite:///FILE or redis://HOST.")]
Durability = Annotated[str, typer.Option(help="fsync: acknowledged survives a power cut; os: a kill.")]


def replay(
    log: Annotated[str, typer.Argument(metavar="LOG", help="Parquet, CSV, TSV or JSONL; a file, a folder or a glob.")],
    run: RunFolder,
    state: State = "sqlite:///states.db",
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Read stored facts and the log anew; else states are led on.")
    ] = False,
    user: Annotated[list[str] | None, typer.Option(help="This one alone; can be given again.")] = None,
    users: Annotated[int | None, typer.Option(help="So many users at most.", min=1, show_default="all")] = None,
    since: Annotated[str | None, typer.Option(help="Leave out earlier events: ISO 8601, or as in the log.")] = None,
    forgotten: Annotated[
        Path | None, typer.Option(help="Who stays forgotten: what GET /v1/forgotten answered.")
    ] = None,
    durability: Durability = "fsync",
    preset: Annotated[str | None, typer.Option(help="Options of a known public set.")] = None,
    event_id: Annotated[str | None, within("Columns", "An id of each event.", "user, item and time")] = None,
    user_column: Column = None,
    item_column: Column = None,
    time_column: Column = None,
    type_column: Column = None,
    offset_column: Annotated[str | None, within("Columns", "Milliseconds to add to the time.")] = None,
    drop_types: Annotated[str | None, within("Reading", "Event types to leave out, a,b,c.")] = None,
    header: Header = None,
    separator: Separator = None,
    time_unit: TimeUnit = None,
    tz: Zone = None,
    max_bad_rows: Annotated[float | None, within("Reading", "Share of rows.", "0.001")] = None,
) -> None:
    """Bring the states of all users up to the end of a log: rebuild a store, or let it catch up.

    What is stored already changes nothing, so a replay that was ended goes on when it is run again. Read the log as
    it was read by `hiertcn prepare`.
    """
    from hiertcn.forgotten import read_forgotten, remember
    from hiertcn.replay import replay as replay_log
    from hiertcn.served import exported_of, served
    from hiertcn.states import open_states

    names = ("preset", "user_column", "item_column", "time_column", "type_column", "offset_column", "drop_types")
    given = {**locals()}
    options = {name: given[name] for name in (*names[1:], "header", "separator", "time_unit", "tz", "max_bad_rows")}
    if state in ("memory:", "memory"):
        raise InputError("A store in memory ends with this command; expected sqlite:///FILE or redis://HOST.")
    config, _ = prepare_config(preset, options)
    columns = replace(config.columns, event=event_id)
    events = read_events(
        log, columns, config.layout, time_unit=config.time_unit, tz=config.tz, max_bad_rows=config.max_bad_rows
    )
    if config.drop_types:
        events = replace(events, frame=without_types(events, config.drop_types))
    if events.quarantine.total:
        say(f"{events.quarantine.total:,} rows can't be used: {events.quarantine.summary()}")
    begin = None if since is None else parse_time(since, events.time_form, config.tz)
    events = _chosen(events, begin, user, users)
    model = exported_of(run) or served(run)
    marks = {} if forgotten is None else read_forgotten(forgotten)
    with open_states(_patient(state), durability, say) as states:  # type: ignore[arg-type]
        remember(states, marks, model.digest)
        with Bar(console, "events", events.frame.height) as bar:
            done = replay_log(model, states, events, rebuild=rebuild, advance=bar.advance)
        say(f"{done}; {bar.rate:,.0f} events/s")
    if done.damaged:
        raise ArtifactError(
            f"The states of {done.damaged:,} users are damaged and were left as they are; all others are stored. Put "
            "back a copy of the store, or begin these anew by --rebuild, which also begins anew what was forgotten."
        )


def _chosen(events: Events, since: int | None, user: list[str] | None, users: int | None) -> Events:
    """Those from `since` (microseconds) on, of the users named, of the first `users` of them."""
    frame = events.frame
    if since is not None:
        frame = frame.filter(frame["time"] >= since)
    if user:
        codes = [code for code, one in enumerate(events.user_ids.to_list()) if str(one) in set(user)]
        frame = frame.filter(frame["user"].is_in(codes))
    if users is not None:
        frame = frame.filter(frame["user"].is_in(frame["user"].unique().sort().head(users).implode()))
    if not frame.height:
        raise InputError("No event of the log is left by --since, --user and --users. Loosen these.")
    return replace(events, frame=frame)


def _patient(url: str) -> str:
    """A Redis has time, since nobody waits for an answer and much is written at once."""
    if not url.startswith(("redis://", "rediss://")) or "deadline=" in url:
        return url
    return f"{url}{'&' if '?' in url else '?'}deadline=30"


def doctor(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="A model directory.")] = None,
    state: Annotated[str | None, typer.Option(help="sqlite:///FILE or redis://HOST.")] = None,
    index: Annotated[str | None, typer.Option(help="As of `hiertcn serve`.")] = None,
    durability: Durability = "fsync",
    as_json: Json = False,
) -> None:
    """Say what is installed, how safe a store is and what is in it, and what a server's limits are.

    Ends with 1 where something that is promised can't be held. What a server has open in SQLite can't be looked at.
    """
    from hiertcn.diagnosis import diagnose

    found = diagnose(run, state if state is None else _patient(state), index, durability)  # type: ignore[arg-type]
    typer.echo(json.dumps(found.as_json(), indent=1) if as_json else found)
    if not found.sound:
        raise typer.Exit(1)
