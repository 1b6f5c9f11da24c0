"""A simulated log whose best possible ranking is known, and its shuffled control.

An item is a pair (taste, place on a ring). A user has one taste for life, seen through a share of the events only, so
it takes many of them to be known; a session has a start and a stride along the ring, so its last two events give the
next place. A model of one level can know the one or the other; only both together reach the optimum, which an exact
Bayesian filter gives. The generative model is ours.

Legend: A tastes, B places, G strides, N events, n users of a block that still have events, q of them that are asked.
"""

from __future__ import annotations

__all__ = ["SimulationConfig", "optimum", "shuffled", "simulate"]

from dataclasses import dataclass, fields
from math import isfinite

import numpy as np
import numpy.typing as npt
import polars as pl

from hiertcn.errors import InputError

START = 1_704_067_200  # 2024-01-01 UTC, seconds
ARRIVALS = 30 * 86_400  # users begin within a month
AWAY = 86_400.0  # mean seconds between sessions, beyond the gap
READING = 60.0  # mean seconds between the events of a session
LONGEST_SESSION = 40
BELIEF_CELLS = 1 << 18  # cells of one block's belief: 2 MiB, so that it stays in the processor's cache
TIE = 1e-9  # relative; equal probabilities reached by different sums differ by far less

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class SimulationConfig:
    """What the simulated users are like. Raises InputError that names every bad field at once.

    users:          how many
    tastes, ring:   A and B; the catalog has A x B items
    strides:        G; a session goes 1…G places on with each event
    sessions:       mean number of sessions of a user, at least 2 each
    session_length: mean events of a session, before it is cut at 40
    loyalty:        chance that an event follows the user's taste; else the taste is any of A
    noise:          chance that an event is any item at all
    session_gap:    seconds; sessions lie further apart than this, events of a session closer
    """

    users: int = 2000
    tastes: int = 20
    ring: int = 16
    strides: int = 3
    sessions: float = 15
    session_length: float = 4
    loyalty: float = 0.5
    noise: float = 0.1
    session_gap: int = 1800
    seed: int = 0

    def __post_init__(self) -> None:
        bounds: dict[str, tuple[float, float]] = {
            "users": (1, 100_000_000),
            "tastes": (1, 100_000),
            "ring": (2, 100_000),
            "strides": (1, 100_000),
            "sessions": (2, 10_000),
            "session_length": (1, LONGEST_SESSION),
            "loyalty": (0, 1),
            "noise": (0, 1),
            "session_gap": (2, 10**9),
            "seed": (0, 2**63 - 1),
        }
        problems = []
        for field in fields(self):
            value, (low, high) = getattr(self, field.name), bounds[field.name]
            whole = field.type == "int"
            number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
            if not number or not isfinite(value) or not low <= value <= high:
                kind = "a whole number" if whole else "a number"
                problems.append(f"{field.name} = {repr(value)[:80]} ({kind} from {low:,} to {high:,})")
        if not problems and self.strides >= self.ring:
            problems.append(f"strides = {self.strides} (fewer than the ring's {self.ring} places)")
        if problems:
            raise InputError(
                f"The simulation can't be set up with {'; '.join(problems)}; expected what stands in brackets. "
                "Change these values, or leave them out for the defaults."
            )


def simulate(config: SimulationConfig) -> pl.DataFrame:
    """The log: `user_id` str, `item_id` str, `time` int64 seconds; by user and time, times of a user all different.

    The same config gives the same log.
    """
    random = np.random.default_rng(config.seed)
    sessions = 1 + random.geometric(1 / (config.sessions - 1), config.users)
    user_of_session = np.repeat(np.arange(config.users), sessions)
    lengths = np.minimum(random.geometric(1 / config.session_length, len(user_of_session)), LONGEST_SESSION)
    session = np.repeat(np.arange(len(lengths)), lengths)
    first = np.cumsum(lengths) - lengths
    step = np.arange(len(session)) - first[session]
    user = user_of_session[session]

    place = random.integers(config.ring, size=len(lengths))[session]
    stride = random.integers(1, config.strides + 1, size=len(lengths))[session]
    place = (place + stride * step) % config.ring
    any_taste = random.integers(config.tastes, size=len(session))
    taste = random.integers(config.tastes, size=config.users)[user]
    taste = np.where(random.random(len(session)) < config.loyalty, taste, any_taste)
    any_item = random.integers(config.tastes * config.ring, size=len(session))
    item = np.where(random.random(len(session)) < config.noise, any_item, taste * config.ring + place)

    waited = 1 + np.minimum(random.exponential(READING, len(session)).astype(np.int64), config.session_gap - 2)
    waited[first] = config.session_gap + 1 + random.exponential(AWAY, len(lengths)).astype(np.int64)
    clock = np.cumsum(waited)
    born = first[np.cumsum(sessions) - sessions]
    time = START + random.integers(ARRIVALS, size=config.users)[user] + clock - clock[born][user]

    width = max(5, len(str(config.users - 1)))
    users = "u" + pl.Series(np.arange(config.users)).cast(pl.String).str.zfill(width)
    return pl.DataFrame({"user_id": users.gather(user), "item_id": _item_ids(config).gather(item), "time": time})


def shuffled(log: pl.DataFrame, seed: int) -> pl.DataFrame:
    """The control: `log` with its `item_id` column permuted over all events; only popularity is left to learn."""
    order = np.random.default_rng(seed).permutation(log.height)
    return log.with_columns(log["item_id"].gather(order))


def optimum(
    log: pl.DataFrame,
    config: SimulationConfig,
    targets: Bools,
    *,
    long_term: bool = True,
    session: bool = True,
    ties_seed: int | None = None,
) -> Floats:
    """Ranks [targets.sum()] of the target events (a mask [N] over the rows of `log`) in the best possible ranking.

    The ranking of all A x B items comes from an exact filter that knows the config, the user's earlier events, whatever
    part they are in, and that a session begins, but no hidden value. Without `long_term` the taste is forgotten as each
    session begins; without `session` the place and stride before each event.

    Ranks begin at 1. Ties share the middle of their places, or with `ties_seed` are drawn. Many items tie here, and any
    order of theirs is equally good in the mean, so it is the drawn ranks that bound the recall and MRR of a model whose
    scores never tie.

    Raises InputError where the mask doesn't fit, or an item or an event can't come from this config.
    """
    if targets.dtype != np.bool_ or targets.shape != (log.height,):
        raise InputError(
            f"The targets are {targets.dtype} of shape {targets.shape}; expected one bool for each of the "
            f"{log.height} events. Pass a mask over the rows of the log."
        )
    ids = _item_ids(config).to_frame().with_row_index("item")
    events = log.with_row_index("row").sort("user_id", "time", maintain_order=True)
    events = events.join(ids, on="item_id", how="left", maintain_order="left")
    if events["item"].null_count():
        stranger = repr(events.filter(pl.col("item").is_null())["item_id"][0])[:80]
        raise InputError(
            f"The log has item {stranger}, expected ids from {ids['item_id'][0]!r} to {ids['item_id'][-1]!r}. "
            "Pass the config that the log was simulated with."
        )
    item, row = (events[c].to_numpy().astype(np.int64) for c in ("item", "row"))
    changes = np.append(True, (events["user_id"] != events["user_id"].shift())[1:].to_numpy())[: len(row)]
    gaps = np.diff(events["time"].to_numpy(), prepend=0)
    begins = changes | (gaps >= config.session_gap)
    step = np.arange(len(row)) - np.maximum.accumulate(np.where(begins, np.arange(len(row)), 0))
    if not session:
        step[:] = 0
    starts = np.flatnonzero(changes)
    lengths = np.diff(starts, append=len(row))
    longest_first = np.argsort(-lengths, kind="stable")
    bounds = np.full((2, len(row)), np.nan)
    block = max(1, BELIEF_CELLS // (config.tastes * config.ring * config.strides))
    for i in range(0, len(starts), block):
        users = longest_first[i : i + block]
        forgets = begins if not long_term else np.zeros_like(begins)
        _filter(config, item, step, forgets, targets[row], starts[users], lengths[users], bounds)
    in_log_order = np.empty_like(bounds)
    in_log_order[:, row] = bounds
    best, worst = in_log_order[:, targets]
    ranks: Floats = (best + worst) / 2
    if ties_seed is not None:
        ranks = np.random.default_rng(ties_seed).integers(best, worst, endpoint=True).astype(np.float64)
    return ranks


def _filter(
    config: SimulationConfig,
    item: Ints,
    step: Ints,
    forgets: Bools,
    asked: Bools,
    starts: Ints,
    lengths: Ints,
    bounds: Floats,
) -> None:
    """Fill `bounds` [2, N] (best and worst rank) where `asked` [N], for the users whose events begin at `starts`.

    Longest users come first, so that those with events left are always the first n.

    The belief [n, G, B, A] is the joint posterior of stride, start place and taste, which noise makes dependent. Only
    the cells whose place the event is on weigh its taste; for all others it can be nothing but noise.
    """
    A, B, G = config.tastes, config.ring, config.strides
    noise = config.noise / (A * B)
    taste_given = (1 - config.noise) * (config.loyalty * np.eye(A) + (1 - config.loyalty) / A) + noise
    stride, places = np.arange(1, G + 1), np.arange(B)
    belief = np.full((len(starts), G, B, A), 1 / (G * B * A))
    for index in range(lengths[0]):
        n = int(np.searchsorted(-lengths, -index))
        event = starts[:n] + index
        belief = belief[:n]
        fresh = np.flatnonzero(step[event] == 0)
        belief[fresh] = belief[fresh].sum((1, 2), keepdims=True) / (G * B)
        belief[forgets[event]] = 1 / (G * B * A)
        walked = stride * step[event, None]  # [n, G]

        ask = np.flatnonzero(asked[event])
        if len(ask):
            cells = (places - walked[ask, :, None]) % B  # [q, G, B], the starts from which each place is reached now
            here = belief[ask[:, None, None], stride[:, None] - 1, cells].sum(1)  # [q, B, A]
            tastes = config.loyalty * here + (1 - config.loyalty) / A * here.sum(-1, keepdims=True)
            chance = ((1 - config.noise) * tastes + noise).swapaxes(1, 2).reshape(len(ask), A * B)
            bounds[:, event[ask]] = _ranks(chance, item[event[ask]])

        taste, place = np.divmod(item[event], B)
        on = (np.arange(n)[:, None], stride - 1, (place[:, None] - walked) % B)
        before = belief[on]  # [n, G, A]
        after = before * taste_given[taste][:, None]
        total = after.sum((1, 2)) + noise * (1 - before.sum((1, 2)))
        if not (total > 0).all():
            raise InputError(
                f"The log has an event of probability 0 under {config}; expected a log of this config. "
                "Pass the config that the log was simulated with, or one with noise."
            )
        belief *= (noise / total)[:, None, None, None]
        belief[on] = after / total[:, None, None]


def _ranks(chance: Floats, target: Ints) -> Floats:
    """Best and worst rank [2, q] of the items `target` [q] among their ties, by `chance` [q, A*B], highest first."""
    own = chance[np.arange(len(target)), target][:, None]
    above = (chance > own * (1 + TIE)).sum(1)
    below = (chance < own * (1 - TIE)).sum(1)
    return np.stack([above + 1.0, chance.shape[1] - below])


def _item_ids(config: SimulationConfig) -> pl.Series:
    """The ids [A*B], item (a, b) at a * B + b."""
    number = pl.int_range(config.tastes * config.ring)
    taste, place = number // config.ring, number % config.ring
    wide = [max(2, len(str(size - 1))) for size in (config.tastes, config.ring)]
    texts = [n.cast(pl.String).str.zfill(w) for n, w in zip((taste, place), wide, strict=True)]
    return pl.select(pl.format("a{}-b{}", *texts).alias("item_id")).to_series()
