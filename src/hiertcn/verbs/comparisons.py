"""Verbs on several trainings: tune, compare. Torch and Optuna are loaded when they are called."""

from __future__ import annotations

__all__ = ["compare", "tune"]

from pathlib import Path
from typing import Annotated

import typer

from hiertcn.errors import InputError
from hiertcn.verbs.flags import console, say

LogFolder = Annotated[Path, typer.Argument(metavar="CACHE", help="A prepared log.")]
Trials = Annotated[int, typer.Option(help="Settings to try of a model, its defaults among them.", min=1)]


def tune(
    cache: LogFolder,
    out: Annotated[Path, typer.Option(help="The folder of the study; the same command goes on with it.")],
    trials: Trials,
    preset: Annotated[str, typer.Option(help="A preset, as of `hiertcn train`.")] = "strong",
    config: Annotated[Path | None, typer.Option(help="A TOML file instead of a preset.")] = None,
    space: Annotated[
        Path | None,
        typer.Option(help="What may be chosen (TOML).", show_default="shipped; own.space.toml beside own.toml"),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes of a trial at most.", min=1)] = None,
    patience: Annotated[int | None, typer.Option(help="Epochs without a better one that end a trial.", min=1)] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
) -> None:
    """Tune a model: try settings, keep those that rank the validation part best. The test part is not read."""
    from hiertcn.tuning import tune as tune_model
    from hiertcn.watching import Watch

    found = tune_model(
        cache,
        preset if config is None else config,
        trials,
        out,
        space=space,
        epochs=epochs,
        patience=patience,
        seed=seed,
        progress=Watch(console),
    )
    typer.echo(found)
    say(f"{out / 'best.toml'}: the best settings" + (f"; {found.run}: their model" if found.run.exists() else ""))


def compare(
    cache: LogFolder,
    out: Annotated[Path, typer.Option(help="The folder to write to; the same command goes on with it.")],
    models: Annotated[
        str | None,
        typer.Option(help="Presets, models that learn nothing, TOML files: a,b,c; yours first. A wrong one lists all."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A TOML file that states the models, and any of the options below.")
    ] = None,
    trials: Annotated[
        int | None, typer.Option(help="Settings to try of a model, its defaults among them.", min=1)
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes of a trial at most.", min=1, show_default="20")] = None,
    patience: Annotated[
        int | None, typer.Option(help="Epochs without a better one that end a trial.", min=1, show_default="3")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, show_default="0")] = None,
    candidates: Annotated[
        str | None,
        typer.Option(help="What the test part is ranked among: all, impressions, or random:N.", show_default="all"),
    ] = None,
) -> None:
    """Compare models: tune each with the same budget, rank the test part once, write tables and plots."""
    from hiertcn.comparing import compare as compare_models
    from hiertcn.watching import Watch

    if (models is None) == (config is None):
        raise InputError("Give either --models a,b,c or --config FILE, which states them.")
    found = compare_models(
        cache,
        config or [name.strip() for name in str(models).split(",") if name.strip()],
        trials,
        out,
        epochs=epochs,
        patience=patience,
        seed=seed,
        candidates=candidates,
        progress=Watch(console),
    )
    typer.echo(found)
    say(f"{out / 'compare.html'}, compare.md and compare.json have all of it")
    if found.failures:
        raise typer.Exit(1)
