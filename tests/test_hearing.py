"""What a store tells of picks is heard, once, also where the store fails in between."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from hiertcn.crowd import Crowd, Horizons
from hiertcn.errors import StorageError
from hiertcn.hearing import Hearing
from hiertcn.states import Pick, UserState, open_states
from hiertcn.states.protocol import Update


class Failing:
    """Knows the items "1" to "3"; asked for more, it fails so often first."""

    def __init__(self, failures: int) -> None:
        self.failures = failures

    def row(self, item: str) -> int:
        return int(item) if item in ("1", "2", "3") else 0

    def rows(self, items: Sequence[str]) -> npt.NDArray[np.int32]:
        return np.array([self.row(item) for item in items], dtype=np.int32)

    def listen(self) -> None:
        self.failures -= 1
        if self.failures >= 0:
            raise StorageError("The store does not answer.")


def test_what_could_not_be_heard_is_heard_later() -> None:
    store, seen = open_states("memory:"), list[int]()
    crowd = Crowd(Horizons((1.0,)), 3)
    crowd.observe = lambda row, time, before: seen.append(row)  # type: ignore[method-assign]
    hearing = Hearing(store, Failing(1), (1800.0, 200), crowd)
    told = [
        hearing.told(UserState([item], [at], [0], [], 1), Pick(item, at))
        for at, item in enumerate(["1", "new", "3"], 1_000_000)
    ]
    store.update([b"u" * 16], lambda _: Update([b"state"], told))
    with pytest.raises(StorageError):
        hearing.listen()
    assert (seen, hearing.clock) == ([], None)
    for _ in range(2):
        hearing.listen()
        assert seen == [1, 0, 3]
    assert hearing.clock == pytest.approx(1.000002)
