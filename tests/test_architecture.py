"""The rules of docs/architecture.md that a program can check: imports, lengths, names."""

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
    ("qwenvl_jax.data.tasks", 0),
    ("qwenvl_jax.data.dialogues", 0),
    ("qwenvl_jax.data.evaluation_content", 0),
    ("qwenvl_jax.data.pieces", 0),
    ("qwenvl_jax.data.word_pictures", 0),
    ("qwenvl_jax.data.languages", 0),
    ("qwenvl_jax.data.annotations", 0),
    ("qwenvl_jax.data.content_checks", 0),
    ("qwenvl_jax.data", 1),
    ("qwenvl_jax.sharding", 1),
    ("qwenvl_jax.models", 1),
    ("qwenvl_jax.html", 1),
    ("qwenvl_jax.evaluation.metrics", 1),
    ("qwenvl_jax.training", 2),
    ("qwenvl_jax.checkpoint", 2),
    ("qwenvl_jax.auditing", 2),
    ("qwenvl_jax.ablation", 3),
    ("qwenvl_jax.evaluation", 3),
    ("qwenvl_jax.conversion", 3),
    ("qwenvl_jax.planning", 3),
    ("qwenvl_jax.scoring", 3),
    ("qwenvl_jax.serving", 3),
    ("qwenvl_jax.", 4),  # the mains
    ("launch", 2),
    ("data_pipelines.quickstart", 2),
    ("data_pipelines.build", 2),
    ("data_pipelines.dialogues", 3),
    ("data_pipelines.__main__", 3),
    ("data_pipelines.debian", 3),
    ("data_pipelines", 1),
    ("configs", 1),
)
# Imports between packages that close a cycle, with the reason.
CYCLES_ALLOWED = {
    ("qwenvl_jax.config", "qwenvl_jax.data"): "a config names record tasks; the list of them is data.schema's",
}
# Imports that a module makes in the middle of a function although its package may not import them at all.
LAZY_IMPORTS = {
    ("data_pipelines.score.clip_model", "qwenvl_jax.scoring.clip"): "the model is loaded by workers that score pairs",
}
HEAVY = {"torch", "tensorflow", "apache_beam", "transformers"}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
# Functions that are longer, and why they are not cut up.
LONG_FUNCTIONS = {
    "qwenvl_jax.conversion.released_config:released_config": "one literal: the published config.json",
    "qwenvl_jax.conversion.torch_model.modeling_qwen:forward": "the signature of transformers takes a third of it",
    "qwenvl_jax.training.loop:train": "the training loop is to be read from top to bottom",
}
# A variable is named after its content, not by a word that fits ten things.
VAGUE_NAMES = {"place", "places", "own"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def all_modules() -> dict[str, Path]:
    """Every module of the packages with its file."""
    return {module_name(path): path for package in PACKAGES for path in sources(package)}


def imports(path: Path) -> set[str]:
    """Everything that a file imports, at its top or within a function; `from a import b` counts as a.b too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:  # only the files of a release import one another relatively
                assert path.parent.name == "torch_model", f"{path}: relative import"
                continue
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def imports_at_import(path: Path) -> set[str]:
    """`imports` without those of LAZY_IMPORTS."""
    return imports(path) - {name for module, name in LAZY_IMPORTS if path == ROOT / f"{module.replace('.', '/')}.py"}


def level(name: str) -> int | None:
    for prefix, number in LEVELS:
        if (name == prefix.rstrip(".") and not prefix.endswith(".")) or name.startswith(prefix.rstrip(".") + "."):
            return number
    return None


def test_imports_point_one_way() -> None:
    upward = []
    modules = all_modules()
    for module, path in modules.items():
        here = level(module)
        for name in imports_at_import(path) & set(modules):
            there = level(name)
            if here is not None and there is not None and there > here:
                upward.append(f"{module} (level {here}) imports {name} (level {there})")
    assert not upward, "\n".join(upward)


def test_every_package_has_a_level() -> None:
    without = {package_of(module) for module in all_modules() if level(module) is None and "." in module}
    assert not without


def test_configs_know_the_schema_alone() -> None:
    for path in sources("configs"):
        names = {name for name in imports(path) if name.split(".")[0] == "qwenvl_jax"}
        assert all(name.startswith("qwenvl_jax.config") for name in names), f"{path} imports {names}"


def package_of(name: str) -> str:
    """`qwenvl_jax.data.readers.shards` -> `qwenvl_jax.data`; a file in `qwenvl_jax` itself counts as a package."""
    return ".".join(name.split(".")[:2])


# In `qwenvl_jax.evaluation` a package imports only those before it. Single files are not listed.
ROOMS_OF_EVALUATION = ("metrics", "benchmarks", "generation", "results", "asking", "inference", "judging", "report")


def test_packages_of_evaluation_import_one_way() -> None:
    top = "qwenvl_jax.evaluation"
    rooms = {path.parent.name for path in (ROOT / "qwenvl_jax/evaluation").glob("*/__init__.py")}
    assert rooms == set(ROOMS_OF_EVALUATION)
    upward = []
    for number, room in enumerate(ROOMS_OF_EVALUATION):
        for path in sources(f"qwenvl_jax/evaluation/{room}"):
            for later in ROOMS_OF_EVALUATION[number + 1 :]:
                names = [name for name in imports(path) if f"{name}.".startswith(f"{top}.{later}.")]
                upward += [f"{path} imports {name}" for name in names]
    assert not upward, "\n".join(upward)


def package_imports() -> dict[str, set[str]]:
    """The packages that each package imports. The mains are left out: nothing imports them."""
    modules = all_modules()
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        here = package_of(module)
        for name in imports(path) & set(modules):
            there = package_of(name)
            if there != here and (here, there) not in CYCLES_ALLOWED:
                graph.setdefault(here, set()).add(there)
    return graph


def test_no_cycle_between_packages() -> None:
    graph = package_imports()
    assert {"qwenvl_jax.data", "qwenvl_jax.training", "data_pipelines.quickstart"} <= set(graph)

    def reachable_from(start: str) -> set[str]:
        reached: set[str] = set()
        waiting = [start]
        while waiting:
            for name in graph.get(waiting.pop(), set()) - reached:
                reached.add(name)
                waiting.append(name)
        return reached

    cycles = sorted(name for name in graph if name in reachable_from(name))
    assert not cycles, cycles


def test_only_models_import_flax() -> None:
    users = set()
    for path in sources("qwenvl_jax"):
        if any(name.split(".")[0] == "flax" for name in imports(path)):
            users.add(module_name(path))
    assert users
    assert all(name.startswith("qwenvl_jax.models") for name in users), users


def test_nothing_imports_tests_mains_or_launch() -> None:
    mains = {module_name(path) for path in sources("qwenvl_jax") if level(module_name(path)) == 4}
    for package in PACKAGES:
        for path in sources(package):
            names = imports(path)
            assert not names & mains, f"{path} imports a main"
            outside = {name.split(".")[0] for name in names} & {"tests", "launch", "benchmarks"}
            assert not outside - {package}, f"{path} imports {outside}"


def reachable(start: Path) -> set[str]:
    """Everything that importing a file imports, directly or through modules of the project."""
    modules = all_modules()
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        for name in imports_at_import(waiting.pop()) - reached:
            reached.add(name)
            if name in modules:
                waiting.append(modules[name])
    return reached


def test_pipelines_know_no_jax() -> None:
    for package in ("data_pipelines", "launch"):
        for path in sources(package):
            names = {name.split(".")[0] for name in reachable(path)} & {"jax", "jaxlib", "flax", "optax", "orbax"}
            assert not names, f"{path} imports {names}"


def test_lazy_imports_are_within_functions() -> None:
    for module, name in LAZY_IMPORTS:
        path = ROOT / f"{module.replace('.', '/')}.py"
        assert name in imports(path)
        lines = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        parent = name.rpartition(".")[0]
        at_top = {line.module for line in lines if isinstance(line, ast.ImportFrom)}
        assert not {name, parent} & at_top, f"{path} imports {name} at its top"


def test_importing_every_pipeline_imports_no_jax() -> None:
    modules = [name for name in all_modules() if name.split(".")[0] == "data_pipelines" and "__main__" not in name]
    code = (
        "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules} & {'jax', 'jaxlib', 'flax', 'optax'}))"
    )
    run = subprocess.run([sys.executable, "-c", code, *modules], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not run.stdout.split()


def test_training_imports_no_other_framework(tmp_path: Path) -> None:
    code = (
        "import sys, qwenvl_jax.train; from qwenvl_jax.runtime.events import EventWriter; "
        "import pathlib; EventWriter(pathlib.Path(sys.argv[1])).close(); "
        "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert not HEAVY & set(run.stdout.split())
    assert list(tmp_path.glob("events.out.tfevents.*"))


def lines_of(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_files_can_be_read_at_once() -> None:
    files = [path for package in (*PACKAGES, "tests", "benchmarks") for path in sources(package)]
    too_long = {str(path.relative_to(ROOT)) for path in files if lines_of(path) > MAX_FILE_LINES}
    assert not too_long
    assert lines_of(ROOT / "qwenvl_jax/training/loop.py") < 250


def test_functions_fit_on_a_screen() -> None:
    too_long = {}
    for path in (path for package in (*PACKAGES, "tests", "benchmarks") for path in sources(package)):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef):
                continue
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                too_long[f"{module_name(path)}:{node.name}"] = lines
    assert set(too_long) == set(LONG_FUNCTIONS), too_long


def test_every_package_says_what_it_is() -> None:
    for package in PACKAGES:
        for path in sources(package):
            if path.name == "__init__.py":
                assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"


def test_no_drawer_for_odds_and_ends() -> None:
    names = {path.stem for package in PACKAGES for path in sources(package)}
    assert not names & {"utils", "util", "helpers", "misc", "common_utils"}


def names_given(path: Path) -> Iterator[str]:
    """The names that a file gives to variables, attributes, parameters, functions and classes."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name


def test_names_say_what_they_hold() -> None:
    for path in all_modules().values():
        vague = {name for name in names_given(path) if name.strip("_").lower() in VAGUE_NAMES}
        assert not vague, f"{path} names something {vague}"


def touches_storage(path: Path) -> Iterator[str]:
    """The lines of a file that would fail on an object store, or that belong into `runtime.storage`."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in ("gs://", "://"):
            yield f"{path}:{node.lineno}: mentions {node.value}; use runtime.storage"
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in ("resolve", "expanduser") and isinstance(node.func, ast.Attribute):
            base = node.func.value
            if not (isinstance(base, ast.Attribute) and base.attr == "path"):  # os.path.expanduser is for disks
                yield f"{path}:{node.lineno}: .{name}() is wrong on gs://; use storage.absolute or storage.path"
        modes = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
        if name == "open" and any(isinstance(mode, ast.Constant) and str(mode.value) in ("a", "ab") for mode in modes):
            yield f"{path}:{node.lineno}: appends, which gs:// cannot do; write the file anew"


def test_only_storage_knows_object_stores() -> None:
    allowed = {ROOT / f"qwenvl_jax/runtime/{name}.py" for name in ("storage", "gcs", "gcs_store")}
    released = ROOT / "qwenvl_jax/conversion/torch_model"  # runs in other programs
    mentions: list[str] = []
    for path in (path for package in ("qwenvl_jax", "data_pipelines", "configs") for path in sources(package)):
        if path not in allowed and released not in path.parents:
            mentions += touches_storage(path)
    assert not mentions, "\n".join(mentions)
    assert [*touches_storage(ROOT / "qwenvl_jax/runtime/storage.py")]
