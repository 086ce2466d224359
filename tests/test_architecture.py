"""The rules of docs/architecture.md that a program can check: who imports whom, and how long files are."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("qwenvl_jax", "configs", "data_pipelines", "launch")

# The first prefix that fits decides. A module imports only modules of its own level or below.
LEVELS = (
    ("qwenvl_jax.config", 0),
    ("qwenvl_jax.runtime", 0),
    ("qwenvl_jax.chips", 0),
    ("qwenvl_jax.params", 0),
    ("qwenvl_jax.data.schema", 0),
    ("qwenvl_jax.data.tags", 0),
    ("qwenvl_jax.data", 1),
    ("qwenvl_jax.sharding", 1),
    ("qwenvl_jax.models", 1),
    ("qwenvl_jax.html", 1),
    ("qwenvl_jax.evaluation.metrics", 1),
    ("qwenvl_jax.training", 2),
    ("qwenvl_jax.checkpoint", 2),
    ("qwenvl_jax.auditing", 2),
    ("qwenvl_jax.evaluation", 3),
    ("qwenvl_jax.conversion", 3),
    ("qwenvl_jax.planning", 3),
    ("qwenvl_jax.", 4),  # the mains
)
# Imports between packages that close a cycle, with the reason.
CYCLES_ALLOWED = {
    ("qwenvl_jax.config", "qwenvl_jax.data"): "a config names record tasks; the list of them is data.schema's",
}
HEAVY = {"torch", "tensorflow", "apache_beam", "transformers"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Everything a file imports, wherever in the file; `from a import b` counts as a.b too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:  # only the files of a release refer to their own folder
                assert path.parent.name == "torch_model", f"{path}: relative import"
                continue
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def level(name: str) -> int | None:
    for prefix, number in LEVELS:
        if (name == prefix.rstrip(".") and not prefix.endswith(".")) or name.startswith(prefix.rstrip(".") + "."):
            return number
    return None


def test_imports_point_one_way() -> None:
    wrong = []
    modules = {module_name(path) for path in sources("qwenvl_jax")}
    for path in sources("qwenvl_jax"):
        here = level(module_name(path))
        for name in imports(path) & modules:
            there = level(name)
            if here is not None and there is not None and there > here:
                wrong.append(f"{module_name(path)} (level {here}) imports {name} (level {there})")
    assert not wrong, "\n".join(wrong)


def package_of(name: str) -> str:
    """`qwenvl_jax.data.readers.shards` -> `qwenvl_jax.data`; a file in `qwenvl_jax` itself counts as a package."""
    return ".".join(name.split(".")[:2])


def package_imports() -> dict[str, set[str]]:
    """The packages that each package imports. The mains are left out: nothing imports them."""
    files = {module_name(path): path for package in PACKAGES for path in sources(package)}
    found: dict[str, set[str]] = {}
    for module, path in files.items():
        here = package_of(module)
        for name in imports(path) & set(files):
            there = package_of(name)
            if there != here and (here, there) not in CYCLES_ALLOWED:
                found.setdefault(here, set()).add(there)
    return found


def test_no_cycle_between_packages() -> None:
    graph = package_imports()
    assert {"qwenvl_jax.data", "qwenvl_jax.training", "data_pipelines.quickstart"} <= set(graph)

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        waiting = [start]
        while waiting:
            for name in graph.get(waiting.pop(), set()) - found:
                found.add(name)
                waiting.append(name)
        return found

    cycles = sorted(name for name in graph if name in reached(name))
    assert not cycles, cycles


def test_only_models_import_flax() -> None:
    users = {
        module_name(path) for path in sources("qwenvl_jax") if any(n.split(".")[0] == "flax" for n in imports(path))
    }
    assert users and all(name.startswith("qwenvl_jax.models") for name in users), users


def test_nothing_imports_tests_mains_or_launch() -> None:
    mains = {module_name(path) for path in sources("qwenvl_jax") if level(module_name(path)) == 4}
    for package in PACKAGES:
        for path in sources(package):
            others = imports(path)
            assert (
                not {n for n in others if n.split(".")[0] in ("tests", "launch", "benchmarks")} or package == "launch"
            )
            assert not (others & mains), f"{path} imports a main"


def reachable(start: Path) -> set[str]:
    """Everything that importing a file imports, through our own modules."""
    files = {module_name(path): path for package in PACKAGES for path in sources(package)}
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for name in imports(waiting.pop()) - found:
            found.add(name)
            if name in files:
                waiting.append(files[name])
    return found


def test_pipelines_know_no_jax() -> None:
    for package in ("data_pipelines", "launch"):
        for path in sources(package):
            found = {name.split(".")[0] for name in reachable(path)} & {"jax", "jaxlib", "flax", "optax", "orbax"}
            assert not found, f"{path} imports {found}"


def test_training_imports_no_other_framework(tmp_path: Path) -> None:
    code = (
        "import sys, qwenvl_jax.train; from qwenvl_jax.runtime.events import EventWriter; "
        "import pathlib; EventWriter(pathlib.Path(sys.argv[1])).close(); "
        "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = HEAVY & set(run.stdout.split())
    assert not found
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_files_can_be_read_at_once() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for package in PACKAGES
        for path in sources(package)
        if (lines := len(path.read_text().splitlines())) > 400
    }
    assert not long
    assert len((ROOT / "qwenvl_jax/training/loop.py").read_text().splitlines()) < 250


def test_no_drawer_for_odds_and_ends() -> None:
    names = {path.stem for package in PACKAGES for path in sources(package)}
    assert not names & {"utils", "util", "helpers", "misc", "common_utils"}


def touches_storage(path: Path) -> Iterator[str]:
    """What a file does that is wrong on an object store, or that only `runtime.storage` may know."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in ("gs://", "://"):
            yield f"{path}:{node.lineno}: speaks of {node.value}; use runtime.storage"
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in ("resolve", "expanduser") and isinstance(node.func, ast.Attribute):
            base = node.func.value
            if not (isinstance(base, ast.Attribute) and base.attr == "path"):  # os.path.expanduser, of a disk
                yield f"{path}:{node.lineno}: .{name}() is wrong on gs://; use storage.absolute or storage.path"
        modes = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
        if name == "open" and any(isinstance(mode, ast.Constant) and str(mode.value) in ("a", "ab") for mode in modes):
            yield f"{path}:{node.lineno}: appends, which gs:// cannot do; write the file anew"


def test_only_storage_knows_object_stores() -> None:
    own = {ROOT / f"qwenvl_jax/runtime/{name}.py" for name in ("storage", "gcs", "gcs_store")}
    released = ROOT / "qwenvl_jax/conversion/torch_model"  # runs in other programs
    wrong = [
        line
        for package in ("qwenvl_jax", "data_pipelines", "configs")
        for path in sources(package)
        if path not in own and released not in path.parents
        for line in touches_storage(path)
    ]
    assert not wrong, "\n".join(wrong)
    assert [*touches_storage(ROOT / "qwenvl_jax/runtime/storage.py")]
