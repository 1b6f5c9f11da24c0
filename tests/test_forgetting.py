"""Who is forgotten stays forgotten, whoever writes meanwhile; and is in no file."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from hiertcn.recommender import Recommender
from hiertcn.states import open_states
from people import FULL, START, catalog_of, run_of

USERS, TIMES, WRITERS, LATEST = 40, 1_000, 4, START + 1_000


def test_a_thousand_deletions_among_a_thousand_writes_bring_nobody_back(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", FULL, catalog_of("abcde"))
    path = tmp_path / "states.db"
    done, written = threading.Event(), [0] * WRITERS

    with Recommender.load(run, open_states(f"sqlite:///{path}")) as rec, ThreadPoolExecutor(WRITERS + 1) as threads:

        def write(seed: int) -> None:
            random = np.random.default_rng(seed)
            # And some more, which no deletion comes after.
            after = 0
            while after < USERS:
                after += done.is_set()
                written[seed] += 1
                user, at = f"forgotten-person-{random.integers(USERS)}", START + int(random.integers(1_000))
                rec.observe(user, "abcde"[at % 5], at, event_id=f"{seed}-{written[seed]}")

        def delete() -> None:
            number, deadline = 0, time.monotonic() + 120
            while (number < TIMES or sum(written) <= TIMES) and time.monotonic() < deadline:
                rec.delete(f"forgotten-person-{number % USERS}", until=LATEST)
                number += 1
            done.set()

        for task in [threads.submit(write, seed) for seed in range(WRITERS)] + [threads.submit(delete)]:
            task.result()
        assert sum(written) > TIMES
        for number in range(USERS):
            kept = rec.kept_of(f"forgotten-person-{number}")
            assert kept is not None
            assert not kept.sessions
        # What comes later than that is of somebody new.
        assert rec.observe("forgotten-person-0", "a", LATEST) == "expired"
        assert rec.observe("forgotten-person-0", "a", LATEST + 1) == "applied"
    files = b"".join(file.read_bytes() for file in tmp_path.glob("states.db*"))
    assert b"forgotten-person" not in files
