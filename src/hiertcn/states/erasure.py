"""Getting what was forgotten out of the files of a Redis server."""

from __future__ import annotations

__all__ = ["Erasure"]

import time
from threading import Event, Lock, Thread
from typing import Any

from redis.exceptions import RedisError, ResponseError

from hiertcn.states.promises import Say

TICK, RETRY, PATIENT = 0.05, 1.0, 3
_BUSY = ("loading", "aof_rewrite_in_progress", "aof_rewrite_scheduled", "rdb_bgsave_in_progress")
_SETTLE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""


class Erasure:
    """A deleted value stands in the server's append-only file and snapshot until these are written anew.

    A thread has the server do that (BGREWRITEAOF, BGSAVE), once for all that was forgotten meanwhile. What is still to
    be erased is counted at `key` in the server itself, so that a store opened later ends what a killed one began.
    """

    def __init__(self, client: Any, key: bytes, say: Say) -> None:
        self._client, self._key, self._say = client, key, say
        self._closed, self._asked = Event(), Event()
        self._thread: Thread | None = None
        self._starting = Lock()
        self._settle = client.register_script(_SETTLE)
        self._trouble = ""

    def forget(self, name: bytes, instead: bytes | None = None) -> None:
        """Delete a key, or put `instead` in its place, and have the files written anew soon."""
        with self._client.pipeline(transaction=True) as pipeline:
            if instead is None:
                pipeline.delete(name)
            else:
                pipeline.set(name, instead)
            pipeline.incr(self._key)
            pipeline.execute()
        self._start()

    def resume(self) -> None:
        """Go on with what another store has not ended."""
        if self._client.exists(self._key):
            self._start()

    def state(self) -> str:
        """What is still to be erased, for people."""
        waiting = int(self._client.get(self._key) or 0)
        return f"{waiting:,} forgotten keys are still in files{self._trouble}" if waiting else "nothing is waiting"

    def close(self) -> None:
        """Stop; what is not erased yet is ended by the next store."""
        self._closed.set()
        self._asked.set()
        if self._thread is not None:
            self._thread.join()

    def _start(self) -> None:
        with self._starting:
            self._asked.set()
            if self._thread is None:
                self._thread = Thread(target=self._run, name="hiertcn-erasure", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        failures = 0
        while not self._closed.is_set():
            self._asked.wait()
            self._asked.clear()
            try:
                self._erase()
                failures, self._trouble = 0, ""
            except (RedisError, OSError) as error:
                failures += 1
                # Once it may be that another store was faster.
                if failures == PATIENT:
                    self._say(f"warning: forgotten states are still in the files of Redis, which refuses: {error}")
                self._trouble = f", since the server refuses: {error}"
                self._closed.wait(RETRY)
                self._asked.set()

    def _erase(self) -> None:
        # A rewrite that is under way began before the deletion, so it has to end first.
        while (waiting := self._client.get(self._key)) is not None and self._idle():
            if self._client.info("persistence")["aof_enabled"]:
                self._client.bgrewriteaof()
                self._succeeded("aof_last_bgrewrite_status")
            if self._snapshots():
                self._client.execute_command("BGSAVE SCHEDULE")
                self._succeeded("rdb_last_bgsave_status")
            if not self._closed.is_set():
                self._settle([self._key], [waiting])

    def _snapshots(self) -> bool:
        """Whether the server writes snapshots; one that doesn't tell may."""
        try:
            return bool(self._client.config_get("save").get("save", "unknown"))
        except ResponseError:
            return True

    def _succeeded(self, status: str) -> None:
        # The server forks for it a moment after it has answered.
        time.sleep(TICK)
        if self._idle() and self._client.info("persistence")[status] != "ok":
            raise RedisError(f"{status} is not ok")

    def _idle(self) -> bool:
        """Wait until the server writes no file anew; False if the store was closed before."""
        while any(self._client.info("persistence").get(name, 0) for name in _BUSY):
            if self._closed.wait(TICK):
                return False
        return not self._closed.is_set()
