"""The command line: parse, call, print. Torch is loaded by the verbs that need it only."""

from __future__ import annotations

__all__ = ["app", "main"]

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from hiertcn import __version__
from hiertcn.cache import Cache
from hiertcn.columns import Columns
from hiertcn.errors import HiertcnError, InputError
from hiertcn.files import write_text, written_aside
from hiertcn.flags import (
    Column,
    Header,
    Json,
    OtherCache,
    RunFolder,
    Separator,
    SessionColumn,
    TimeUnit,
    Zone,
    within,
)
from hiertcn.inspection import describe, inspection
from hiertcn.preparation import prepare as prepare_log
from hiertcn.synth import SimulationConfig
from hiertcn.synth import shuffled as shuffled_log
from hiertcn.synth import simulate as simulate_log
from hiertcn.tables import Layout

app = typer.Typer(
    help="From an event log to next-item recommendations.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_console = Console(stderr=True)
_EXTRAS = ("torch", "tensorboard", "matplotlib", "jinja2")


def _say(text: str) -> None:
    _console.print(text, highlight=False, markup=False, soft_wrap=True)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"hiertcn {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print it.")
    ] = False,
) -> None: ...


@app.command(epilog="Example: hiertcn prepare events.parquet --out cache --session-gap 1800 --min-item-events 5")
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
    min_item_events: Annotated[int | None, within("Filters", default="1")] = None,
    min_user_events: Annotated[int | None, within("Filters", default="2")] = None,
    max_user_events: Annotated[int | None, within("Filters", "Users with more are left out.")] = None,
    cap_user_events: Annotated[
        int | None, within("Filters", "Of users with more, the last are kept.", "100000")
    ] = None,
    keep_duplicates: Annotated[bool | None, typer.Option("--keep-duplicates", rich_help_panel="Filters")] = None,
    unknown_items: Annotated[
        str | None, within("Filters", "Items not in --catalog: train, drop or error.", "train; drop with vectors")
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
    prepare_log(log, out, overwrite=overwrite, report=_say, **options)


@app.command(epilog="Example: hiertcn inspect cache --json")
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


@app.command(epilog="Example: hiertcn train cache --out runs/a --epochs 5")
def train(
    cache: Annotated[Path, typer.Argument(metavar="CACHE", help="A prepared log.")],
    out: Annotated[Path, typer.Option(help="The model directory to write.")],
    preset: Annotated[str, typer.Option(help="small, paper, pinterest, hrnn, gru or moving_average.")] = "small",
    config: Annotated[Path | None, typer.Option(help="A TOML file instead of a preset.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the train part at most.")] = None,
    loss: Annotated[str | None, typer.Option(help="cross_entropy or sampled_softmax.")] = None,
    learning_rate: Annotated[float | None, typer.Option()] = None,
    rows: Annotated[int | None, typer.Option(help="Rows of a batch.")] = None,
    dim: Annotated[int | None, typer.Option(help="Size of item vectors.")] = None,
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
    model_config, train_config = read_settings(preset, config, {"dim": dim}, {**given, "device": device})
    run = train_model(
        cache, model_config, train_config, out, resume=resume, allow_memory=yes, progress=Progress(_console)
    )
    best = run.manifest["validation"]
    _say(
        f"{out}: {run.name}, best after epoch {best['epoch']}: "
        f"validation mrr {best['mrr']:.4f}, recall@10 {best['recall@10']:.4f}"
    )


@app.command(
    epilog="Example: hiertcn evaluate runs/a --split test --json metrics.json --predictions predictions.parquet"
)
def evaluate(
    run: RunFolder,
    split: Annotated[str, typer.Option(help="valid or test.")] = "test",
    cache: OtherCache = None,
    model: Annotated[str | None, typer.Option(help="Rank by popularity or last_items instead.")] = None,
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


@app.command(epilog="Example: hiertcn recommend runs/a --user u1 -k 10 --exclude-seen")
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

    if (user is None) == (history is None):
        raise InputError("Give either --user ID (of the prepared log) or --history FILE (the events of one person).")
    opened = Run(run)
    if history is not None:
        columns = Columns(user=user_column, item=item_column, time=time_column, session=session_column)
        found = history_in_file(history, columns, Layout(header is not False, separator), time_unit, tz)
    else:
        found = history_in_cache(Cache(cache or opened.manifest["cache"]["path"]), str(user))
        if not found.items:
            _say(f"{str(user)[:80]!r} has no event in the prepared log.")
    best = Recommender.load(opened).recommend_history(
        found.items, found.times, k, exclude_seen=exclude_seen, sessions=found.sessions
    )
    if as_json:
        typer.echo(json.dumps([entry._asdict() for entry in best], ensure_ascii=False))
        return
    if not best:
        _say("The person had every item of the catalog, so none is left.")
    elif best[0].source == "popular":
        _say("No event of this person is known to the model: these are the most popular items.")
    for entry in best:
        typer.echo(f"{entry.item}\t{entry.score:.4f}\t{entry.title or ''}")


@app.command(epilog="Example: hiertcn simulate --out events.parquet --users 2000")
def simulate(
    out: Annotated[Path, typer.Option(help="The log to write (Parquet).")],
    users: Annotated[int, typer.Option()] = 2000,
    sessions: Annotated[float, typer.Option(help="Mean of a user.")] = 15,
    session_length: Annotated[float, typer.Option(help="Mean events of a session.")] = 4,
    loyalty: Annotated[float, typer.Option(help="Share of events that follow the user's taste.")] = 0.5,
    noise: Annotated[float, typer.Option(help="Share of events that are any item.")] = 0.1,
    seed: Annotated[int, typer.Option()] = 0,
    shuffled: Annotated[bool, typer.Option("--shuffled", help="The control: items permuted over all events.")] = False,
) -> None:
    """Simulate a log whose best possible ranking is known: long-term taste × session intent × noise."""
    config = SimulationConfig(
        users=users, sessions=sessions, session_length=session_length, loyalty=loyalty, noise=noise, seed=seed
    )
    log = simulate_log(config)
    if shuffled:
        log = shuffled_log(log, seed)
    with written_aside(out) as aside:
        log.write_parquet(aside)
    _say(f"{out}: {log.height:,} events of {users:,} users; {json.dumps(asdict(config))}")


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Example: hiertcn demo --out demo --log events.parquet --item-column article",
)
def demo(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option(help="The folder to write to.")] = Path("demo"),
    log: Annotated[str | None, typer.Option(help="A log of your own.", show_default="a simulated one")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes at most, for every model.")] = None,
) -> None:
    """The main job on a simulated log, or on your own: prepare, train, evaluate, recommend, report.

    Options of `hiertcn prepare` are passed on to it.
    """
    from hiertcn.demo import run_demo

    def prepare_into(source: str, cache: Path) -> Cache:
        app(["prepare", source, "--out", str(cache), "--overwrite", *ctx.args], standalone_mode=False)
        return Cache(cache)

    run_demo(out, log, prepare_into, _console, epochs)


def main() -> NoReturn:
    """Run the command line; errors raised on purpose become one paragraph and an exit code."""
    try:
        result: Any = app(prog_name="hiertcn", standalone_mode=False)
        sys.exit(result if isinstance(result, int) else 0)
    except HiertcnError as error:
        _say(f"Error: {error}")
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        _say(f"Error: {error.name} is not installed; training needs it. Install it by `pip install 'hiertcn[train]'`.")
        sys.exit(2)
    except typer.Abort:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:
        usage = getattr(error, "show", None)
        if usage is None:
            raise
        usage()
        sys.exit(2)
