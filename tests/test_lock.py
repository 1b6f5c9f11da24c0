"""One trainer to a directory, and a lock that no dead process holds."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from hiertcn.cache import Cache
from hiertcn.checkpoint import locked
from hiertcn.errors import InputError
from hiertcn.files import ASIDE
from runs import run_of, small_cache


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return small_cache(tmp_path_factory.mktemp("log") / "cache")


def test_a_directory_has_one_trainer(cache: Cache, tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        with pytest.raises(InputError, match=f"process {os.getpid()} on ") as caught:
            run_of(cache, tmp_path / "run")
        assert caught.value.exit_code == 2
    run_of(cache, tmp_path / "run", epochs=1)


def test_of_many_trainers_one_wins(tmp_path: Path) -> None:
    for _ in range(20):
        begin, end, won, lost = threading.Barrier(8), threading.Barrier(8), [], []

        def contend(begin: Any = begin, end: Any = end, won: Any = won, lost: Any = lost) -> None:
            begin.wait()
            try:
                with locked(tmp_path / "run"):
                    won.append(1)
                    end.wait()
            except InputError:
                lost.append(1)
                end.wait()

        threads = [threading.Thread(target=contend) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(won), len(lost)) == (1, 7)


HOLDS = """
import sys, time
from pathlib import Path
from hiertcn.checkpoint import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_lock_of_a_killed_process_is_free(cache: Cache, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(out)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match=f"process {holder.pid} on "):
            run_of(cache, out)
        left = [out / f"checkpoint{ASIDE}", out / f"manifest.json.{holder.pid}{ASIDE}" / ".tmp123"]
        left[1].parent.mkdir()
        for path in left:
            path.write_bytes(b"half")
        holder.kill()
    run_of(cache, out, epochs=1)
    assert not list(out.glob(f"*{ASIDE}*"))
