"""The house keeps its rules: imports only go down, rooms of data know no torch, every public thing says what it is."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

import hiertcn

SOURCE = Path(hiertcn.__file__).parent
LONGEST = 320

# Who may import whom: a module those of lower floors, and of its own floor as long as no circle comes of it.
FLOORS = {
    6: """cli verbs verbs.catalogs verbs.comparisons verbs.exports verbs.flags verbs.logs verbs.runs verbs.servers
          verbs.states
          server serving diagnosis""",
    5: """training demo report sections pictures timeline progress settings checkpoint optimizer estimate assortment
          spaces contenders plans jobs children watching tuning comparison comparison_report comparing
          embedding pinsage features averaging memorising exporting verifying
          service messages keys measures loading bar journal replay userdata registry smoke apart decoding deployment
          page openapi reference allowance incoming hosts direct itemdoors modeldoors pagedoors userdoors watchdog
          marker connection problems""",
    4: """batching streams objective ranking targets evaluation recommender histories inspection userqueries wholes
          neighbourhoods soundness door answers choice feeds exported graphs online scoring eager
          served hearing ledger stock beside aside""",
    3: """forgotten cache notices artifact manifest tensors catalogfile preparation states states.erasure states.memory
          states.promises states.protocol states.redis states.schema states.sqlite states.state
          models models.aggregation models.boosts models.flat_tcn models.gru models.hiertcn models.hrnn models.items
          models.low models.max_item models.memory models.moving_average models.outline models.popularity
          models.protocol models.recurrence models.rules models.sasrec models.sknn models.tcn models.trending models.var
          models.windowed
          retrieval retrieval.approximate retrieval.exact retrieval.indexfile retrieval.protocol retrieval.qdrant
          retrieval.ranks retrieval.blocks retrieval.cells retrieval.int8 retrieval.structures retrieval.table""",
    2: """sessions catalog ragged packing ranges sequences trends follows crowd losses negatives synth metrics filters
          splits itemlist vectors impressions itemrows skew""",
    1: "events columns options quarantine sources tables lines times config errors files",
}
FLOOR = {module: floor for floor, modules in FLOORS.items() for module in modules.split()}
# What preparing, inspecting and simulating a log consist of.
WITHOUT_TORCH = [
    *("preparation", "inspection", "histories", "synth", "cache", "catalog", "sessions", "splits", "filters"),
    *("itemlist", "events", "options", "metrics", "streams", "states", "exported", "online", "scoring", "hearing"),
    *("itemrows", "ledger"),
    *("retrieval", "retrieval.approximate", "retrieval.qdrant"),
]
ONLINE, OFFLINE = (
    ("recommender", "states", "retrieval"),
    {"training", "batching", "evaluation", "ranking", "losses", "negatives"},
)
# Modules that import within functions: torch is loaded by the verbs that need it, optional libraries where they are
# asked for, and names when they are used.
LAZY = {"cli", "verbs.catalogs", "verbs.comparisons", "verbs.exports", "verbs.runs", "verbs.servers", "verbs.states"}
LAZY |= {"retrieval", "retrieval.approximate", "states", "served", "serving", ""}


def name_of(path: Path) -> str:
    """The module's name below the package; of the package itself the empty string."""
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


MODULES = {name_of(path): path for path in sorted(SOURCE.rglob("*.py"))}


@cache
def parsed(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def imported(module: str) -> set[str]:
    """Full names of all that a module imports, anywhere but for type checkers only."""
    found = set()
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports by a relative name"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in inner if name.removeprefix("hiertcn.") in MODULES} or {str(node.module)}
    return found


@cache
def own(module: str) -> set[str]:
    """Modules of the package, but for the package itself, that a module imports."""
    return {name.removeprefix("hiertcn.") for name in imported(module) if name.startswith("hiertcn.")}


@cache
def reached(module: str) -> set[str]:
    """The module and all that it imports, directly or not."""
    found, waiting = set(), [module]
    while waiting:
        if (at := waiting.pop()) not in found:
            found.add(at)
            waiting += own(at)
    return found


def test_every_module_has_its_floor() -> None:
    assert set(FLOOR) == set(MODULES) - {""}


@pytest.mark.parametrize("module", FLOOR)
def test_imports_only_go_down(module: str) -> None:
    up = {other for other in own(module) if FLOOR[other] > FLOOR[module]}
    assert not up, f"{module} (floor {FLOOR[module]}) imports {up}"


@pytest.mark.parametrize("module", FLOOR)
def test_no_circles(module: str) -> None:
    # A package imports what is in it, and that may name the package's siblings.
    circle = {other for other in own(module) if module in reached(other)}
    assert not circle, f"{module} imports {circle} and is imported by it"


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_rooms_of_data_know_no_torch(module: str) -> None:
    for other in reached(module):
        packages = {name.partition(".")[0] for name in imported(other)}
        assert not packages & {"torch", "tensorboard", "matplotlib"}, f"{module} → {other}"


@pytest.mark.parametrize("module", ONLINE)
def test_what_serves_one_person_knows_no_training(module: str) -> None:
    assert not reached(module) & OFFLINE


@pytest.mark.parametrize("module", sorted(set(MODULES) - LAZY))
def test_imports_stand_at_the_head(module: str) -> None:
    functions = [n for n in ast.walk(parsed(module)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    within = [n for f in functions for n in ast.walk(f) if isinstance(n, ast.Import | ast.ImportFrom)]
    assert not within
    head = parsed(module).body[1]
    assert isinstance(head, ast.ImportFrom)
    assert (head.module, [alias.name for alias in head.names]) == ("__future__", ["annotations"])


@pytest.mark.parametrize("module", MODULES)
def test_files_stay_short_and_call_nothing_that_is_barred(module: str) -> None:
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= LONGEST
    packages = {name.partition(".")[0] for name in imported(module)}
    assert not packages & {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"print", "eval", "exec", "torch.load", "torch.save", "np.load", "numpy.load"}, called


def public(module: str) -> set[str]:
    """What a module's `__all__` lists."""
    assigned = [node for node in parsed(module).body if isinstance(node, ast.Assign)]
    (listed,) = [node.value for node in assigned if ast.unparse(node.targets[0]) == "__all__"]
    names: list[str] = ast.literal_eval(listed)
    assert len(set(names)) == len(names)
    return set(names)


@pytest.mark.parametrize("module", FLOOR)
def test_public_things_are_there_and_say_what_they_are(module: str) -> None:
    tree = parsed(module)
    assert ast.get_docstring(tree)
    defined = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    bare = {name for name in public(module) & set(defined) if not ast.get_docstring(defined[name])}
    assert not bare
    found = import_module(f"hiertcn.{module}")
    assert all(hasattr(found, name) for name in public(module))


def test_the_library_face_is_imported_when_it_is_used() -> None:
    code = (
        "import sys, hiertcn as ht; ht.prepare; ht.simulate; ht.Cache; assert 'torch' not in sys.modules; "
        "[getattr(ht, name) for name in ht.__all__]; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hiertcn.nothing  # type: ignore[attr-defined]


def test_training_needs_nothing_of_the_extra_for_embedding() -> None:
    blocked = "import sys\nfor name in ('sklearn', 'torch_geometric'): sys.modules[name] = None\n"
    rooms = ", ".join(f"hiertcn.{name}" for name in ("cli", "training", "evaluation", "recommender", "demo"))
    subprocess.run([sys.executable, "-c", f"{blocked}import {rooms}"], check=True)
    extras = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(one.startswith("scipy") for one in extras["train"])
