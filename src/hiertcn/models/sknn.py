"""Session-based nearest neighbours: sessions like the running one vote for what comes next.

V-SKNN (Ludewig & Jannach, 2018), STAN (Garg et al., 2019) and VSKNN_EBR (Latifi et al., 2021) are one computation with
other weights; see `SKNNConfig`.

Legend: N positions, T targets, W items of a window, n items, P pairs of a target and a session near it.
"""

from __future__ import annotations

__all__ = ["SKNN", "SKNNConfig"]

from typing import Annotated, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from hiertcn.config import Config, Count, Positive
from hiertcn.models.memory import MemoryModel
from hiertcn.models.windowed import Windowed
from hiertcn.ragged import SessionBatch
from hiertcn.ranges import ranges

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_BLOCK = 256


class SKNNConfig(Config):
    """Which sessions are near, and what they vote for.

    window:     last items of the running session that are compared
    neighbours: sessions that vote, the nearest
    sample:     sessions that are looked at, the latest that hold any of these items
    variant:    "vsknn": items weigh by their place in the window, votes by how late the last common item is in it;
                "stan": items, votes and sessions decay exponentially, by `item_decay` places, `vote_decay` places and
                `age_decay` seconds
    extend:     items that the window is filled up to with those before the session (VSKNN_EBR: extend)
    remind:     weight of the person's own last items among the scores (VSKNN_EBR: remind)
    idf:        weight of log(sessions / events on the item), by which votes grow

    Where a session begins, the items before it are compared instead (ours; elsewhere nothing is asked there).
    People are not known by name, so the sessions of one are not boosted (VSKNN_EBR: boost).
    """

    name: ClassVar[str] = "sknn"

    window: Count = 10
    neighbours: Count = 200
    sample: Count = 1000
    variant: Literal["vsknn", "stan"] = "vsknn"
    item_decay: Positive = 3.0
    vote_decay: Positive = 3.0
    age_decay: Positive = 86400.0
    extend: Annotated[int, Field(ge=0, le=1000)] = 0
    remind: Annotated[float, Field(ge=0)] = 0.0
    idf: Annotated[float, Field(ge=0, le=10)] = 0.0


class SKNN(Windowed, MemoryModel):
    """A query is what is known of time, and item rows: W of the running session, then W of before it."""

    def __init__(self, items: int, config: SKNNConfig) -> None:
        super().__init__(items, config.window)
        self.config = config

    def encode(self, batch: SessionBatch, long_term: Tensor) -> Tensor:
        sequences = batch.by_session
        running = sequences.windows(self.kept(batch), torch.zeros_like(long_term), sequences.before)
        rows = torch.cat([running, long_term[batch.session]], dim=1)
        return torch.cat([batch.seen.unsqueeze(1), rows.double()], dim=1)

    def score(self, queries: Tensor) -> Tensor:
        asked = queries.cpu().numpy()
        blocks = [self._score(asked[at : at + _BLOCK]) for at in range(0, len(asked), _BLOCK)]
        scores = np.concatenate([np.zeros((0, self.items_in_catalog)), *blocks])
        return torch.from_numpy(scores).to(queries.device)

    def _score(self, asked: Floats) -> Floats:
        """[T, n]."""
        config, memory = self.config, self.memory
        now, rows = asked[:, 0], asked[:, 1:].astype(np.int64)
        running, before = rows[:, : config.window], rows[:, config.window :]
        window = _extended(running, before, config.extend)
        weights = self._item_weights(window)
        target, session, near = self._near(window, weights)
        if config.variant == "stan":
            lengths = (weights > 0).sum(1)[target] * memory.distinct[session]
            age = np.abs(now[target] - memory.ends[session])
            # From that of the nearest in time on, since what is a factor for all could be too small for a number.
            nearest = np.full(len(now), np.inf)
            np.minimum.at(nearest, target, age)
            near = near / np.sqrt(lengths) * np.exp((nearest[target] - age) / config.age_decay)
        kept = _largest(target, near, config.neighbours)
        scores = self._votes(window, target[kept], session[kept], near[kept])
        if config.remind:
            scores += config.remind * _own(np.concatenate([before, running], axis=1), self.items_in_catalog)
        return scores[:, 1:]

    def _item_weights(self, window: Ints) -> Floats:
        """[T, W]: of the window's items, the latest at its end; 0 of none, and of one that comes again later."""
        back = np.arange(window.shape[1] - 1, -1, -1)
        counted = window > 0
        again = ((window[:, :, None] == window[:, None, :]) & (back[:, None] > back[None, :])).any(2)
        length = counted.sum(1, keepdims=True)
        if self.config.variant == "stan":
            weights = np.exp(-back / self.config.item_decay) + np.zeros_like(window)
        else:
            weights = (length - back) / np.maximum(length, 1)
        found: Floats = np.where(counted & ~again, weights, 0.0)
        return found

    def _near(self, window: Ints, weights: Floats) -> tuple[Ints, Ints, Floats]:
        """[P] targets, [P] sessions, both ascending, and [P] the sum of the weights of their common items."""
        memory = self.memory
        target, place = np.nonzero(weights)
        item = window[target, place]
        begins = memory.of_item[item]
        ends = np.minimum(memory.of_item[item + 1], begins + self.config.sample)
        codes = np.repeat(target, ends - begins) * len(memory.ends) + memory.sessions[ranges(begins, ends)]
        found, index = np.unique(codes, return_inverse=True)
        sums = np.bincount(index, np.repeat(weights[target, place], ends - begins), minlength=len(found))
        target, session = np.divmod(found, max(len(memory.ends), 1))
        # The latest that hold any are among the latest that hold each.
        kept = np.sort(_largest(target, memory.ends[session], self.config.sample))
        return target[kept].astype(np.int64), session[kept].astype(np.int64), sums[kept].astype(np.float64)

    def _votes(self, window: Ints, target: Ints, session: Ints, near: Floats) -> Floats:
        """[T, n + 1]: what the sessions of pairs vote for; each item of one by the weight of its pair."""
        config, memory, size = self.config, self.memory, self.items_in_catalog + 1
        begins, ends = memory.offsets[session], memory.offsets[session + 1]
        places, pair = ranges(begins, ends), np.repeat(np.arange(len(session)), ends - begins)
        item, place = memory.items[places], places - begins[pair]
        # 1 … W where an item stands in the window, the latest place of it; 0 elsewhere.
        stands = np.zeros((len(window), size), dtype=np.int64)
        at, column = np.nonzero(window)
        np.maximum.at(stands, (at, window[at, column]), column + 1)
        longest = int((ends - begins).max(initial=1))
        key = stands[target[pair], item] * longest + place
        lengths = ends - begins
        latest = np.maximum.reduceat(key, lengths.cumsum() - lengths) if len(pair) else key
        common, common_place = np.divmod(latest, longest)
        if config.variant == "stan":
            vote = np.exp(-np.abs(place - common_place[pair]) / config.vote_decay)
        else:
            vote = np.maximum(1 - 0.1 * (window.shape[1] - common + 1), 0)[pair]
        weights = near[pair] * vote
        if config.idf:
            events = np.bincount(memory.items, minlength=size)
            rarity = np.log(len(memory.ends) / np.maximum(events, 1))
            weights = weights * (1 + config.idf * rarity[item])
        # An item that a session holds twice has one vote.
        codes = pair * size + item
        _, first = np.unique(codes, return_index=True)
        flat = target[pair[first]] * size + item[first]
        votes = np.bincount(flat, weights[first], minlength=len(window) * size)
        return votes.astype(np.float64).reshape(len(window), size)


def _extended(running: Ints, before: Ints, upto: int) -> Ints:
    """[T, 2 W]: the items before the session, as many as the window lacks to `upto`, all where it is empty; then its
    own."""
    length = (running > 0).sum(1, keepdims=True)
    lacking = np.where(length > 0, np.maximum(upto - length, 0), before.shape[1])
    kept = np.arange(before.shape[1], 0, -1) <= lacking
    whole = np.concatenate([np.where(kept, before, 0), running], axis=1)
    # The items at the end, without holes.
    order = np.argsort(whole > 0, axis=1, kind="stable")
    return np.take_along_axis(whole, order, axis=1)


def _largest(group: Ints, values: Floats, most: int) -> Ints:
    """Places of the `most` largest values of each group; groups ascend."""
    order = np.lexsort((-values, group))
    rank = np.arange(len(order)) - np.searchsorted(group, group)
    return order[rank < most]


def _own(rows: Ints, items: int) -> Floats:
    """[T, n + 1]: 1 for the last item of `rows` [T, R], less in proportion for those before, 0 for all others."""
    scores = np.zeros((len(rows), items + 1))
    at, column = np.nonzero(rows)
    np.maximum.at(scores, (at, rows[at, column]), (column + 1) / rows.shape[1])
    return scores
