"""Keys: what they open, and until when."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hiertcn.cli import app
from hiertcn.errors import InputError
from hiertcn.keys import Keys, KeysConfig, new_key

NEW_YEAR = datetime(2027, 1, 1, tzinfo=UTC).timestamp()


def test_a_key_counts_to_the_end_of_its_last_day() -> None:
    clock = [NEW_YEAR - 5]
    made, line = new_key(2, lambda: clock[0])
    lasting, always = new_key(0, lambda: clock[0])
    assert line.endswith(" until 2027-01-02")
    assert "until" not in always
    keys = Keys(KeysConfig(write=(line,), read=(line, always)), lambda: clock[0])
    for moment, roles in (
        (NEW_YEAR, {"read", "write"}),
        (NEW_YEAR + 172_799, {"read", "write"}),
        (NEW_YEAR + 172_800, set()),
    ):
        clock[0] = moment
        assert keys.roles(made) == keys.sent(f"Bearer {made}") == roles
        assert keys.roles(lasting) == {"read"}


def test_where_all_have_expired_nothing_is_open() -> None:
    made, line = new_key(1, lambda: NEW_YEAR)
    keys = Keys(KeysConfig(admin=(line,)), lambda: NEW_YEAR + 1e6)
    assert len(keys) == 1
    assert not keys.allow(keys.roles(made), "read")
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
    assert Keys.read(path).roles(made) == {"admin"}
