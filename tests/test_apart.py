"""What takes long beside a server is done by one thread, in turn, and is held by nothing when it is done."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import time
import weakref
from typing import Any

import pytest

from hiertcn.apart import NICE, Apart


class Large:
    """Something that is to leave the memory."""


def test_all_is_done_in_turn_by_one_thread_that_gives_way() -> None:
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    apart, found = Apart("large"), list[Any]()

    def work(number: int) -> int:
        found.append((number, threading.get_ident()))
        if sys.platform == "linux":
            assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == min(mine + NICE, 19)
        return number * 2

    async def ask() -> list[int]:
        return await asyncio.gather(*(apart.do(lambda number=number: work(number)) for number in range(20)))

    assert asyncio.run(ask()) == list(range(0, 40, 2))
    assert [number for number, _ in found] == list(range(20))
    assert len({thread for _, thread in found} - {threading.get_ident()}) == 1
    apart.close()


def test_what_fails_is_told_and_the_next_is_done() -> None:
    apart = Apart("large")

    def fail() -> None:
        raise KeyError("missing")

    async def ask() -> int:
        with pytest.raises(KeyError, match="missing"):
            await apart.do(fail)
        return await apart.do(lambda: 5)

    assert asyncio.run(ask()) == 5
    apart.close()


def test_what_failed_holds_nothing_of_it() -> None:
    apart, made = Apart("large"), list[weakref.ref[Large]]()

    def refuse(large: Large) -> None:
        raise ValueError("too large") from KeyError(id(large))

    def fail() -> None:
        large = Large()
        made.append(weakref.ref(large))
        try:
            refuse(large)
        except ValueError as error:
            other = Large()
            made.append(weakref.ref(other))
            raise RuntimeError("refused") from error

    async def ask() -> RuntimeError:
        with pytest.raises(RuntimeError, match="refused") as raised:
            await apart.do(fail)
        return raised.value

    gc.disable()
    try:
        told = asyncio.run(ask())
        assert isinstance(told.__cause__, ValueError)
        assert [one() for one in made] == [None, None]
    finally:
        gc.enable()
        apart.close()


def test_it_holds_nothing_of_what_is_done() -> None:
    apart = Apart("large")
    gc.disable()
    try:

        async def ask() -> weakref.ref[Large]:
            made = await apart.do(Large)
            return weakref.ref(made)

        made = asyncio.run(ask())
        # The thread lets go of it a moment after it has told.
        deadline = time.monotonic() + 10
        while made() is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert made() is None
    finally:
        gc.enable()
        apart.close()
