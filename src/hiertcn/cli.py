"""The command line: parse, call, print. Torch is loaded by the verbs that need it only."""

from __future__ import annotations

__all__ = ["app", "main"]

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, NoReturn

import typer

from hiertcn import __version__
from hiertcn.cache import Cache
from hiertcn.errors import HiertcnError, InputError
from hiertcn.quarantine import shown
from hiertcn.verbs import catalogs, comparisons, exports, logs, runs, servers, states
from hiertcn.verbs.flags import console, say

app = typer.Typer(
    help="From an event log to next-item recommendations.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# Which extra brings a package that a verb may miss.
_EXTRAS = {
    **dict.fromkeys(("torch", "scipy", "tensorboard", "matplotlib", "jinja2"), "train"),
    **dict.fromkeys(("sklearn", "torch_geometric"), "embed"),
    "optuna": "tune",
    **dict.fromkeys(("msgspec", "starlette", "uvicorn", "httptools", "uvloop", "prometheus_client"), "serve"),
    **dict.fromkeys(("onnxruntime", "onnx"), "serve"),
    **{"redis": "redis", "faiss": "faiss", "qdrant_client": "qdrant"},
}


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


for verb, example in (
    (logs.prepare, "prepare events.parquet --out cache --session-gap 1800 --min-item-events 5"),
    (logs.inspect, "inspect cache --json"),
    (logs.simulate, "simulate --out events.parquet --users 2000"),
    (runs.train, "train cache --out runs/a --epochs 5"),
    (runs.evaluate, "evaluate runs/a --split test --json metrics.json --predictions predictions.parquet"),
    (comparisons.tune, "tune cache --preset small --trials 20 --out study"),
    (comparisons.compare, "compare cache --models small,hrnn,vsknn,own.toml --trials 20 --out comparison"),
    (runs.recommend, "recommend runs/a --user u1 -k 10 --exclude-seen"),
    (servers.serve, "serve runs/a --state sqlite:///states.db --port 8000"),
    (servers.key, "key --role write"),
    (states.replay, "replay events.parquet runs/a --state sqlite:///states.db"),
    (states.doctor, "doctor runs/a --state sqlite:///states.db --index faiss"),
    (servers.bench, "bench http://127.0.0.1:8000 runs/a --rate 1000 --seconds 60"),
    (exports.export, "export runs/a --out online"),
    (exports.verify, "verify runs/a events.parquet --users 100"),
    (runs.embed_users, "embed-users runs/a cache --out users.parquet"),
):
    app.command(epilog=f"Example: hiertcn {example}")(verb)

_catalog = typer.Typer(help="Change the catalog of a trained model.", no_args_is_help=True)
_catalog.command(epilog="Example: hiertcn catalog add runs/a new.parquet")(catalogs.add)
_catalog.command(epilog="Example: hiertcn catalog withdraw runs/a a03-b07")(catalogs.withdraw)
app.add_typer(_catalog, name="catalog")


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Example: hiertcn embed events.parquet --out items.parquet --dim 64 --session-gap 1800",
)
def embed(
    ctx: typer.Context,
    log: Annotated[str, typer.Argument(metavar="LOG", help="A log, or a prepared one.")],
    out: Annotated[Path, typer.Option(help="The item list to write (Parquet), for `prepare --catalog`.")],
    method: Annotated[str, typer.Option(help="svd, or pinsage, which can give vectors to new items later.")] = "svd",
    dim: Annotated[int | None, typer.Option(help="Size of a vector.", min=1, max=4096, show_default="128")] = None,
    window: Annotated[
        int | None, typer.Option(help="Picks that are near one another.", min=1, max=100, show_default="5")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Of training (pinsage).", min=1, show_default="400")] = None,
    save: Annotated[Path | None, typer.Option(help="The folder to keep a trained pinsage in.")] = None,
    load: Annotated[Path | None, typer.Option(help="One kept earlier: nothing is trained.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Learn item vectors from what is picked near one another in the train part of a log, its titles and vectors.

    With --load, vectors of all items of the log, old and new, by all its events. Options of `hiertcn prepare` are
    passed on to it where the log is not prepared yet.
    """
    from hiertcn.embedding import cooccurrence, item_to_item, svd_vectors, write_items

    given = {"dim": dim, "window": window, "steps": steps}
    own = {key: value for key, value in given.items() if value is not None}
    if method not in ("svd", "pinsage"):
        raise InputError(f"--method is {method[:80]!r}; expected svd or pinsage.")
    if method == "svd" and (save or load or steps):
        raise InputError("--steps, --save and --load are of --method pinsage. Add it, or leave them out.")
    if load and (save or own):
        raise InputError("With --load nothing is trained. Leave --dim, --window, --steps and --save out.")
    if out.suffix != ".parquet":
        raise InputError(f"--out is {shown(str(out))}; the item list is Parquet. Give it a name that ends so.")
    ready = (Path(log) / "manifest.json").is_file()
    if ready and ctx.args:
        raise InputError(f"{log} is prepared already, so {' '.join(ctx.args)} can't be followed. Leave that out.")
    if method == "pinsage":
        from hiertcn.pinsage import PinSageConfig, check_place, load_pinsage, train_pinsage

        kept = load_pinsage(load) if load else None
        if save:
            check_place(save)
    with TemporaryDirectory(prefix="hiertcn-") as folder:
        cache = Cache(log) if ready else _prepared(log, Path(folder) / "cache", ctx.args)
        if method == "svd":
            vectors = svd_vectors(cooccurrence(cache, own.get("window", 5)), own.get("dim", 128), seed)
        elif kept is not None:
            vectors = kept.embed_all(cache, seed)
        else:
            model, vectors = train_pinsage(cache, PinSageConfig.model_validate(own), seed, say)
            if save:
                model.save(save)
        if not vectors.any():
            raise InputError(f"No two items of {log} are picked in one session, so none has a vector.")
        written = write_items(out, cache.catalog, vectors, {"by": "all events"} if load else cache.manifest.split)
        say(f"{out}: vectors of {written:,} items; {len(vectors) - 1 - written:,} were never near another")
        if not load and cache.manifest.parts["test"]["events"]:
            found = item_to_item(cache, vectors)
            say(
                f"the next item of a session is among the 20 nearest of the last one in {found.recall_at_20:.1%} of "
                f"{found.pairs:,} pairs of the test part; among the 20 most popular in {found.of_popular:.1%}"
            )


def _prepared(log: str, out: Path, options: list[str]) -> Cache:
    app(["prepare", log, "--out", str(out), "--overwrite", *options], standalone_mode=False)
    return Cache(out)


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

    run_demo(out, log, lambda source, cache: _prepared(source, cache, ctx.args), console, epochs)


def main() -> NoReturn:
    """Run the command line; errors raised on purpose become one paragraph and an exit code."""
    try:
        result: Any = app(prog_name="hiertcn", standalone_mode=False)
        sys.exit(result if isinstance(result, int) else 0)
    except HiertcnError as error:
        say(f"Error: {error}")
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        extra = _EXTRAS[error.name]
        say(f"Error: {error.name} is not installed; this needs it. Install it by `pip install 'hiertcn[{extra}]'`.")
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
