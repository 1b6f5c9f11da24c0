"""The documents: what they show runs, and the flags they name exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from hiertcn import cli
from hiertcn.synth import SimulationConfig, simulate

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FLAG = re.compile(r"(?<![\w-])(--[a-z][a-z-]*|-[a-z])\b")
# Lines of set-up, which the tests run in already.
SET_UP = ("make ", "pip ", "python -m venv", "source ", "git ")


def flags() -> dict[str, set[str]]:
    """The flags of every verb; those of `prepare` are the demo's too."""
    verbs = dict(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]
    catalog = verbs.pop("catalog").commands.values()
    found = {
        verb: {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)} | {"--help", "-h"}
        for verb, command in verbs.items()
    }
    found["catalog"] = {flag for verb in catalog for option in verb.params for flag in option.opts}
    return found | {verb: found[verb] | found["prepare"] for verb in ("demo", "embed")}


def commands(text: str) -> list[tuple[str, list[str]]]:
    """(verb, flags) of the command lines in code blocks and in inline code, comments left out."""
    code = [line for _, block in FENCED.findall(text) for line in block.splitlines()]
    code += re.findall(r"`([^`\n]+)`", FENCED.sub("", text))
    lines = [line.split(" #")[0] for line in code]
    return [(found[1], FLAG.findall(found[2])) for line in lines if (found := re.match(r"hiertcn (\S+)(.*)", line))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_that_are_named_exist(page: Path) -> None:
    text, known = page.read_text(encoding="utf-8"), flags()
    for verb, named in commands(text):
        assert verb in known, f"{page.name}: hiertcn {verb}"
        assert set(named) <= known[verb], f"{page.name}: hiertcn {verb} {named}"
    alone = set(re.findall(r"`(--[a-z][a-z-]*)[^`\n]*`", FENCED.sub("", text)))
    assert alone <= set().union(*known.values()), page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_shows_something() -> None:
    kinds = [kind for kind, _ in FENCED.findall(PAGES[0].read_text(encoding="utf-8"))]
    assert {"python", "sh"} <= set(kinds)
    assert {verb for verb, _ in commands(PAGES[0].read_text(encoding="utf-8"))} >= {"prepare", "train", "evaluate"}


@pytest.mark.slow
def test_the_readme_runs(tmp_path: Path) -> None:
    """Its blocks, one after another, in a folder with a log."""
    simulate(SimulationConfig(users=300)).write_parquet(tmp_path / "events.parquet")
    tools = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    for kind, block in FENCED.findall(PAGES[0].read_text(encoding="utf-8")):
        lines = [line for line in block.splitlines() if not line.startswith(SET_UP)]
        run = {"python": [sys.executable, "-c"], "sh": ["bash", "-euo", "pipefail", "-c"]}.get(kind)
        if run is None or not any(lines):
            continue
        done = subprocess.run(
            [*run, "\n".join(lines)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"{block}\n{done.stderr[-2000:]}"
