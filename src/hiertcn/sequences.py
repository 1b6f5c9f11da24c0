"""The known items of a batch as flat sequences, one of a user or of a session, and what came before each of them.

Legend: N positions, M sessions, G sequences, E known items, P elements, W items of a state, C columns, K places.
"""

from __future__ import annotations

__all__ = ["Continued", "Latest", "Sequences"]

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hiertcn.packing import Packing
from hiertcn.ranges import ranges

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Latest:
    """Of flat elements that belong to owners and are marked or not: the packed place of the latest marked one."""

    def __init__(self, marks: Bools, owner: Ints, place: Ints, owners: int) -> None:
        self._count = np.concatenate([[0], np.cumsum(marks)])
        self._first = self._count[np.searchsorted(owner, np.arange(owners))]
        self._place = np.append(place, 0) + owners

    def before(self, at: Ints, owner: Ints) -> Ints:
        """Places in [owners; packed marked elements]: the owner's latest marked element before `at`, else the owner."""
        count = self._count[at]
        return np.where(count > self._first[owner], self._place[count - 1], owner)


class Sequences:
    """Known items of a batch as G flat sequences, for models that read items one after another.

    packing: of the E items     source: int64 [E], the position of each packed item
    before:  int64 [N], places in [G initial states; E packed items] of what precedes each position
    begun:   int64 [M], the same before each session     after: int64 [G], the same after each sequence
    """

    def __init__(
        self, known: Bools, owner: Ints, place: Ints, starts: Ints, ends: Ints, device: torch.device | None = None
    ) -> None:
        """From what lies flat: whether each position [N] holds an item, the sequence it is of, its place in the batch;
        where sessions start [M], and where sequences end [G]."""
        owners = len(ends)
        self.lengths = np.bincount(owner[known], minlength=owners).astype(np.int64)
        self.packing = Packing(self.lengths)
        latest = Latest(known, owner, self.packing.place.numpy(), owners)
        before = np.empty(len(place), dtype=np.int64)
        before[place] = latest.before(np.arange(len(place)), owner)
        source = place[np.flatnonzero(known)][self.packing.flat.numpy()]
        self.source = torch.from_numpy(source).to(device)
        self.before = torch.from_numpy(before).to(device)
        self.begun = torch.from_numpy(latest.before(starts, owner[starts])).to(device)
        self.after = torch.from_numpy(latest.before(ends, np.arange(owners))).to(device)

    def windows(self, values: Tensor, initial: Tensor, at: Tensor) -> Tensor:
        """[K, W · C]: what `values` [N, C] say of the last W items, oldest first, at places [K] of [G initial states;
        E packed items]. `initial` [G, W · C] says the same of those before each sequence."""
        columns = values.shape[1]
        width = initial.shape[1] // columns
        slots, last = self._after_rows(np.full(len(initial), width), width)
        known = torch.cat([initial.reshape(-1, columns), values[self.source]])[slots.to(initial.device)]
        back = torch.arange(1 - width, 1, device=initial.device)
        return known[last.to(initial.device)[at].unsqueeze(1) + back].flatten(1)

    def continued(self, items: Tensor, initial: Tensor) -> Continued:
        """The sequences of item rows `items` [N] with those of `initial` [G, W] before them that follow its last 0."""
        width = initial.shape[1]
        held = (initial.cpu().numpy()[:, ::-1] > 0).cumprod(1).sum(1)
        slots, last = self._after_rows(held, width)
        packing = Packing(held + self.lengths)
        rows = torch.cat([initial.flatten(), items[self.source]])[slots[packing.flat].to(initial.device)]
        latest = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + packing.place])[last + 1]
        latest[: len(held)] *= torch.from_numpy(held > 0)
        return Continued(rows, packing, latest.to(initial.device))

    def _after_rows(self, held: Ints, width: int) -> tuple[Tensor, Tensor]:
        """Flat, each sequence after the last `held` [G] of its W initial rows: int64 [P] places in [initial rows;
        packed items], and int64 [G + E], where the last initial row of each and each packed item lie in them."""
        owners, lengths = len(held), held + self.lengths
        begins, ends = np.cumsum(lengths) - lengths, width * np.arange(1, owners + 1)
        at = np.arange(len(self.source)) + np.repeat(np.cumsum(held), self.lengths)
        slots = np.empty(int(lengths.sum()), dtype=np.int64)
        slots[ranges(begins, begins + held)] = ranges(ends - held, ends)
        slots[at] = owners * width + self.packing.place.numpy()
        last = np.concatenate([begins + held - 1, at[self.packing.flat.numpy()]])
        return torch.from_numpy(slots), torch.from_numpy(last)


class Continued:
    """Sequences that begin before the batch, each with the items of its initial state, then its own.

    rows: int64 [P], item rows     latest: int64 [G + E], places in [nothing; P packed elements] of the last element of
                                   each initial state (nothing where it holds none) and of each packed item
    """

    def __init__(self, rows: Tensor, packing: Packing, latest: Tensor) -> None:
        self.rows, self.packing, self.latest = rows, packing, latest

    def lag(self, lag: int) -> tuple[int, Tensor]:
        """As of `Lagged`."""
        begin, source = self.packing.lag(lag)
        return begin, source.to(self.rows.device)

    def pieces(self, block: int, context: int) -> tuple[Tensor, Tensor]:
        """The sequences cut into K pieces of at most `block` elements of their own, after up to `context` earlier ones.

        ([L, K], [P]): the elements of each piece, its last one again where it is shorter than L; and the flat place
        in the former of each element as one of a piece's own.
        """
        lengths = np.bincount(self.packing.sequence.numpy(), minlength=len(self.packing.ranked))
        counts = -(-lengths // block)
        begins = np.cumsum(lengths) - lengths
        number = ranges(np.zeros_like(counts), counts)
        own = np.repeat(begins, counts) + block * number
        first = own - np.minimum(block * number, context)
        last = np.minimum(own + block, np.repeat(begins + lengths, counts)) - 1
        longest = int((last - first).max(initial=-1)) + 1
        elements = np.minimum(first + np.arange(longest)[:, None], last)
        flat = np.arange(len(self.rows))
        piece = np.repeat(np.arange(len(own)), last - own + 1)
        place = self.packing.place
        inside = torch.from_numpy((flat - first[piece]) * len(own) + piece)[self.packing.flat]
        device = self.rows.device
        return place[torch.from_numpy(elements)].to(device), inside.to(device)
