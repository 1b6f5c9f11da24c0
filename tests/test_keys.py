"""Keys: what they open, and until when."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hiertcn.cli import app
from hiertcn.errors import InputError
from hiertcn.keys import Keys, KeysConfig, new_key

NEW_YEAR = datetime(2027, 1, 1, tzinfo=UTC).timestamp()


def test_a_key_counts_to_the_end_of_its_last_day() -> None:
    (made, digest), (lasting, always) = new_key(), new_key()
    line = f"{digest} until 2027-01-02"
    keys = Keys(KeysConfig(write=(line,), read=(line, always)))
    for moment, roles in (
        (NEW_YEAR, {"read", "write"}),
        (NEW_YEAR + 172_799, {"read", "write"}),
        (NEW_YEAR + 172_800, set()),
    ):
        assert keys.roles(made, moment) == keys.sent(f"Bearer {made}", moment) == roles
        assert keys.roles(lasting, moment) == {"read"}


def test_where_all_have_expired_nothing_is_open() -> None:
    made, line = new_key(1)
    keys = Keys(KeysConfig(admin=(line,)))
    assert len(keys) == 1
    assert not keys.allow(keys.roles(made, time.time() + 1e6), "read")
    assert Keys().allow(set(), "admin")


@pytest.mark.parametrize(
    "line", ["x", "a" * 63, "a" * 65, "A" * 64, f"{'a' * 64} until", f"{'a' * 64} until 2027-02-30"]
)
def test_a_line_that_says_no_key_is_refused(line: str, tmp_path: Path) -> None:
    (path := tmp_path / "keys.toml").write_text(f'write = ["{line}"]')
    with pytest.raises(InputError, match="write"):
        Keys.read(path)


def test_the_printed_line_lets_a_server_know_the_key(tmp_path: Path) -> None:
    said = CliRunner().invoke(app, ["key", "--role", "admin", "--days", "30"])
    made, told = said.stdout.strip(), said.stderr.partition("--keys: ")[2].strip()
    (path := tmp_path / "keys.toml").write_text(told)
    assert " until 20" in told
    assert Keys.read(path).roles(made, time.time() + 29 * 86_400) == {"admin"}
    assert Keys.read(path).roles(made, time.time() + 32 * 86_400) == set()
