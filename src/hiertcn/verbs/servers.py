"""Verbs around a server: serve, key, bench."""

from __future__ import annotations

__all__ = ["bench", "key", "serve"]

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer

from hiertcn.errors import InputError
from hiertcn.files import write_text
from hiertcn.verbs.flags import RunFolder, say


def serve(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A model, or a folder that holds models.")],
    state: Annotated[str, typer.Option(help="memory:, sqlite:///FILE or redis://HOST.")] = "sqlite:///states.db",
    index: Annotated[
        str, typer.Option(help="auto, exact, int8, faiss, faiss:ivf, faiss:hnsw, faiss:ivfpq or qdrant://HOST.")
    ] = "auto",
    host: Annotated[str, typer.Option(help="The address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    keys: Annotated[Path | None, typer.Option(help="A TOML file of API keys, see `hiertcn key`.")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of a folder of models.", show_default="the one served last")
    ] = None,
    openly: Annotated[bool, typer.Option("--open", help="Bind any address without keys.")] = False,
    user_limit: Annotated[int, typer.Option(help="Events a minute of one user; 0: as many as come.", min=0)] = 600,
    durability: Annotated[str, typer.Option(help="fsync: acknowledged survives a power cut; os: a kill.")] = "fsync",
    anew: Annotated[bool, typer.Option("--anew", help="Begin a store where the one before is gone.")] = False,
) -> None:
    """Recommend over HTTP: take in events, keep every user's state, answer with the next items.

    A model that `hiertcn export` wrote needs no torch; a run that was not exported yet is, first. Others of
    a folder of models can take over while it serves (POST /v1/model).
    """
    from hiertcn.allowance import Allowance
    from hiertcn.deployment import Deployment
    from hiertcn.hosts import LOCAL
    from hiertcn.keys import Keys
    from hiertcn.marker import check_kept, mark_kept
    from hiertcn.registry import Registry
    from hiertcn.server import Server
    from hiertcn.service import Service
    from hiertcn.serving import check_bind, online_form
    from hiertcn.serving import serve as serve_on
    from hiertcn.states import open_states

    known = Keys.read(keys) if keys else Keys()
    check_bind(host, len(known) > 0, openly)
    registry = Registry(run)
    name = registry.first(model)
    first = online_form(registry.folder(name), say)
    check_kept(state, first.path, anew, say)
    with (
        open_states(state, durability, say) as states,  # type: ignore[arg-type]
        Deployment(registry, name, first, index, states) as deployment,
        Service(deployment.current.recommender) as service,
    ):
        mark_kept(state)
        path = first.path
        # When others took over, it is to leave the memory.
        del first
        allowance = Allowance(user_limit) if user_limit else None
        hosts = None if len(known) or openly else {*LOCAL, host}
        server = Server(service, known, allowance=allowance, deployment=deployment, hosts=hosts)
        serve_on(server, host, port, lambda at: say(f"http://{host}:{at} serves {path}"))


def key(
    role: Annotated[str, typer.Option(help="read, write or admin.")] = "write",
    days: Annotated[int, typer.Option(min=0, max=36_500, help="So long it counts; 0: always.")] = 0,
) -> None:
    """Make an API key, and the line that lets a server know it."""
    from hiertcn.keys import ROLES, new_key

    if role not in ROLES:
        raise InputError(f"--role is {role[:80]!r}; expected {', '.join(ROLES)}.")
    made, digest = new_key(days)
    typer.echo(made)
    say(f'Keep it; it is stored nowhere. In the file for --keys: {role} = ["{digest}"]')


def bench(
    url: Annotated[str, typer.Argument(metavar="URL", help="A server, http://HOST:PORT.")],
    run: RunFolder,
    rate: Annotated[float, typer.Option(help="Requests a second, whatever comes back.", min=0.1)] = 100.0,
    seconds: Annotated[float, typer.Option(help="How long.", min=0.1)] = 10.0,
    kind: Annotated[str, typer.Option(help="observe, recommend, or events (100 a request).")] = "observe",
    users: Annotated[int, typer.Option(help="People that are drawn, a few of them often.", min=1)] = 100_000,
    k: Annotated[int, typer.Option("-k", min=1, max=500)] = 50,
    api_key: Annotated[str | None, typer.Option(envvar="HIERTCN_API_KEY", help="An API key.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the latencies (PNG, SVG, PDF).")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures.")] = None,
) -> None:
    """Put a server under load with made-up events on a model's items, and say how long answers take.

    Requests go out when they are due; a latency counts from then. Its people stay in the server's store.
    """
    from hiertcn.loading import Load, load
    from hiertcn.served import served

    ids = served(run).catalog.ids.to_list()
    found = asyncio.run(load(url, Load(rate, seconds, kind, users, k), ids, api_key))
    typer.echo(found)
    if json_file:
        write_text(json_file, json.dumps(found.as_json(), indent=1))
    if plot:
        from hiertcn.pictures import latency_plot

        latency_plot(found, plot)
    if found.errors:
        raise typer.Exit(1)
