"""The unit for systemd that is documented, and that what documents promise is proven by tests which are there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SERVING = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


def unit() -> str:
    (found,) = re.findall(r"^```ini\n(\[Unit\].*?)^```", SERVING, re.MULTILINE | re.DOTALL)
    return str(found)


def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze")

    def complaints(text: str) -> str:
        path = tmp_path / "hiertcn.service"
        path.write_text(re.sub("ExecStart=[^ ]+", f"ExecStart={sys.executable}", text))
        done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, check=False)
        return "\n".join(line for line in (done.stdout + done.stderr).splitlines() if path.name in line)

    assert complaints(unit().replace("RestartSec", "RestartSeconds"))
    assert not complaints(unit())


def test_it_restarts_what_hung_and_not_what_can_never_start() -> None:
    from hiertcn.errors import ArtifactError, InputError, StorageError
    from hiertcn.watchdog import HUNG, HUNG_CODE

    lines = dict(re.findall(r"^(\w+)=(.*)$", unit(), re.MULTILINE))
    never = set(map(int, lines["RestartPreventExitStatus"].split()))
    assert lines["Restart"] == "always"
    assert {InputError.exit_code, ArtifactError.exit_code} == never
    assert not never & {HUNG_CODE, StorageError.exit_code}
    assert int(lines["TimeoutStopSec"]) > HUNG + 10
    assert f"exit code {HUNG_CODE}" in SERVING


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_tests_that_are_named_are_there(page: Path) -> None:
    for name, test in re.findall(r"(test_\w+\.py)(?:::(\w+))?", page.read_text(encoding="utf-8")):
        assert (ROOT / "tests" / name).is_file(), name
        assert f"def {test}" in (ROOT / "tests" / name).read_text(encoding="utf-8"), (name, test)
