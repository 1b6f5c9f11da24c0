"""How much one user may write: no single one can say alone what everybody picks, or fill a store."""

from __future__ import annotations

__all__ = ["Allowance"]

import time
from collections import OrderedDict
from collections.abc import Callable

_MINUTE = 60 * 10**9


class Allowance:
    """`per_minute` events of a user in any minute: at once, or spread (the generic cell rate algorithm).

    users: how many are remembered; of more, who wrote last longest ago is taken for new
    now:   a clock that never goes back, in nanoseconds
    """

    def __init__(self, per_minute: int, users: int = 100_000, now: Callable[[], int] = time.monotonic_ns) -> None:
        self.per_minute, self._users, self._now = per_minute, users, now
        self._each = _MINUTE // per_minute
        # Of each user the moment when all is allowed again: one number, and nothing to do as time passes.
        self._whole: OrderedDict[str, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._whole)

    def take(self, user: str) -> int:
        """0 if the user may write one more event now, which counts; else the seconds until one may be."""
        now = self._now()
        whole = max(self._whole.get(user, 0), now) + self._each
        if (over := whole - now - _MINUTE) > 0:
            return -(-over // 10**9)
        self._whole[user] = whole
        self._whole.move_to_end(user)
        if len(self._whole) > self._users:
            self._whole.popitem(last=False)
        return 0

    def give_back(self, user: str) -> None:
        """One event that was taken was none."""
        if user in self._whole:
            self._whole[user] -= self._each
