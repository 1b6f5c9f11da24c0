"""Pictures of metrics as SVG data URIs: text stays text, and lines follow the page's light or dark colours."""

from __future__ import annotations

__all__ = ["Estimate", "colour", "comparison", "curves", "gains", "latency_plot", "recalls", "segments"]

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hiertcn.loading import Latencies

Floats = npt.NDArray[np.float64]
Estimate = tuple[float, float, float]
"""A value and the ends of its interval."""

# Okabe and Ito's palette, which people with any kind of colour blindness can tell apart, on white and on black; shapes
# go round in another period, so that no two of the first 28 models look alike.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#808080")
_SHAPES = ("o", "s", "^", "D")
_INK = "#010203"
_STYLE: dict[Any, Any] = {
    "axes.edgecolor": _INK,
    "axes.grid": True,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "font.family": ["sans-serif"],
    "grid.alpha": 0.3,
    "grid.color": "#808080",
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 5.5,
    "svg.fonttype": "none",
    "text.color": _INK,
    "text.parse_math": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
}
_DRESS = "<style>svg{color:#1c2024}@media(prefers-color-scheme:dark){svg{color:#e4e7ea}}</style>"
_LONGEST_NAME = 28


def colour(index: int) -> str:
    """The colour (#rrggbb) of the model at a place in the order of models."""
    return _COLOURS[index % len(_COLOURS)]


def comparison(title: str, models: Mapping[str, tuple[Estimate, Estimate]], optimum: float | None) -> str:
    """Each model's metric per event and per user with intervals, one line a model; `optimum` is a dashed line."""

    def draw(axes: Axes) -> None:
        for index, estimates in enumerate(models.values()):
            for weight, estimate in enumerate(estimates):
                value, low, high = np.array(estimate)[:, None]
                axes.errorbar(
                    value,
                    [index + 0.3 * weight - 0.15],
                    xerr=_spread(value, low, high),
                    **_look(index),
                    linestyle="none",
                    markerfacecolor="none" if weight else None,
                )
        for face, label in ((_INK, "per event"), ("none", "per user")):
            axes.plot([], [], "o", color=_INK, markerfacecolor=face, label=label)
        if optimum is not None and np.isfinite(optimum):
            axes.axvline(optimum, color=_INK, linestyle="--", label="known optimum, per event")
        axes.set_yticks(range(len(models)), [_short(name) for name in models])
        axes.set_ylim(len(models) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.set_xlabel(title)

    return _picture(f"{title} of each model, with 95% intervals", 1.7 + 0.35 * len(models), draw)


def segments(title: str, way: str, names: Sequence[str], models: Mapping[str, Sequence[Estimate]]) -> str:
    """Each model's metric, estimates [n], in the segments `names` [n] of targets divided by `way`, with intervals."""

    def draw(axes: Axes) -> None:
        for index, (model, estimates) in enumerate(models.items()):
            value, low, high = np.array(estimates).T
            places = np.arange(len(names)) + 0.5 * ((index + 0.5) / len(models) - 0.5)
            line = "solid" if len(names) > 2 else "none"
            axes.errorbar(
                places, value, yerr=_spread(value, low, high), **_look(index), linestyle=line, label=_short(model)
            )
        axes.set_xticks(range(len(names)), names)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(way)
        axes.set_ylabel(title)

    return _picture(f"{title} by {way}, with 95% intervals", _height(models), draw)


def curves(title: str, models: Mapping[str, tuple[int, Sequence[int], Sequence[float]]]) -> str:
    """A quantity after each epoch: for each model its place in the order of models, epochs [n] and values [n]."""

    def draw(axes: Axes) -> None:
        for model, (index, epochs, values) in models.items():
            axes.plot(epochs, values, **_look(index), label=_short(model))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlabel("epoch")
        axes.set_ylabel(title)

    return _picture(f"{title} by epoch", _height(models), draw)


def recalls(models: Mapping[str, Floats]) -> str:
    """Recall@K of each model for K = 1, 2, …, [n]."""

    def draw(axes: Axes) -> None:
        for index, (model, values) in enumerate(models.items()):
            every = max(1, len(values) // 10)
            axes.plot(range(1, len(values) + 1), values, **_look(index), markevery=every, label=_short(model))
        axes.set_ylim(bottom=0)
        axes.set_xlabel("K")
        axes.set_ylabel("recall@K")

    return _picture("recall@K of each model", _height(models), draw)


def gains(title: str, values: Floats) -> str:
    """Differences of U users, ascending, above the share of users up to each."""

    def draw(axes: Axes) -> None:
        share = np.arange(1, len(values) + 1) / len(values)
        axes.fill_between(share, values, step="pre", color=colour(0), alpha=0.3)
        axes.step(share, values, where="pre", color=colour(0), label=title)
        axes.axhline(0, color=_INK, linewidth=0.8)
        axes.set_xlabel("share of users")
        axes.set_ylabel("difference")

    return _picture(f"{title}, users in order", 3.1, draw)


def _spread(value: Floats, low: Floats, high: Floats) -> Floats:
    """[2, n]: from the value to the ends of its interval; where a few users are drawn again, rounding may put it
    outside."""
    out: Floats = np.maximum([value - low, high - value], 0)
    return out


def _short(name: str) -> str:
    # A label that begins with an underscore is left out of legends; a space before it is not seen.
    return " " * name.startswith("_") + (name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…")


def _look(index: int) -> dict[str, Any]:
    return {"color": colour(index), "marker": _SHAPES[index % len(_SHAPES)]}


def _height(models: Mapping[str, Any]) -> float:
    return 2.9 + 0.22 * ((len(models) + 2) // 3)


def _picture(title: str, height: float, draw: Any) -> str:
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=(5.6, height), layout="constrained")
        axes = figure.add_subplot(title=title)
        draw(axes)
        figure.legend(loc="outside lower center", ncols=3)
        buffer = io.StringIO()
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    opened = svg.index(">") + 1
    dressed = f"{svg[:opened]}{_DRESS}{svg[opened:]}"
    return f"data:image/svg+xml;base64,{base64.b64encode(dressed.encode()).decode()}"


def latency_plot(found: Latencies, file: Path) -> None:
    """Write the share of requests that took longer, by milliseconds, as PNG, SVG or PDF."""
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    taken = 1000 * np.sort(found.seconds)
    axes.loglog(taken, 1 - np.arange(len(taken)) / max(len(taken), 1), color=colour(0))
    axes.set_xlabel("milliseconds")
    axes.set_ylabel("share of requests that took longer")
    axes.set_title(f"{found.load.kind}, {found.load.rate:,.0f} requests/s for {found.load.seconds:g} s")
    axes.grid(alpha=0.3)
    figure.savefig(file)
