"""Who imports whom, read from the sources: packages import from lower ones only, files never in a circle, and nothing the studies."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "vitfrost"
LAYERS = """
studies
cli, commands
example, runs
reporting, training
budget
timing
runs.recipe, runs.stages
artifact, class_names, deploy, evaluation, keyed, map_sources, model, passes, plans, statistics
methods
configs, methods.constant_heads.constants, methods.constant_heads.kinds, methods.constant_heads.offsets, plans.criteria
images, runtime, vit
files, identity, outputs, records, strict, terminal
distributed, errors, progress, regular, spelling, torch_state
"""  # docs/architecture.md has the same lines; names of one line may import each other


@cache
def imports() -> dict[str, set[str]]:
    """Modules that every module imports, lazily or not, but not for types alone: {"vitfrost.cli": {"vitfrost.errors", ...}, ...}."""
    files = {".".join(("vitfrost", *path.relative_to(SOURCE).with_suffix("").parts)): path for path in SOURCE.rglob("*.py")}
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}
    found: dict[str, set[str]] = {}
    for name, path in files.items():
        parents = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        found[name] = set()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")]
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names if alias.name in files}
            elif isinstance(node, ast.ImportFrom):
                base = ".".join([*(parents[: len(parents) - node.level + 1] if node.level else []), *filter(None, [node.module])])
                members = [f"{base}.{alias.name}" for alias in node.names]
                found[name] |= {member if member in files else base for member in members if member in files or base in files}
        found[name] -= {"vitfrost", name}  # the verbs and the version
    return found


def layer_of(module: str) -> int:
    """The line of the table that names the module or its package, from the top."""
    lines = [line.split(", ") for line in LAYERS.strip().splitlines()]
    named = {name: number for number, line in enumerate(lines) for name in line}
    parts = module.split(".")[1:]
    places = [named[name] for end in range(len(parts), 0, -1) if (name := ".".join(parts[:end])) in named]
    assert places, f"{module} stands in no line of the table"
    return places[0]


def test_imports_go_down_only() -> None:
    modules = [name for name in imports() if name not in ("vitfrost", "vitfrost.__main__")]
    upward = [(name, one) for name in modules for one in imports()[name] if layer_of(one) < layer_of(name)]
    assert upward == []


def test_no_file_imports_itself_by_way_of_others() -> None:
    assert list(TopologicalSorter(imports()).static_order())  # raises CycleError with the files


def test_nothing_imports_the_studies() -> None:
    importers = {name for name, imported in imports().items() if any(one.startswith("vitfrost.studies") for one in imported)}
    assert "vitfrost.studies.paper" in importers
    assert [name for name in importers if not name.startswith("vitfrost.studies")] == []


def test_the_table_is_that_of_the_documents() -> None:
    assert LAYERS in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_timm_is_imported_through_its_guard() -> None:
    """It fails beside a torch without torchvision's operators; a module that is imported first must not depend on others' order."""
    for path in SOURCE.rglob("*.py"):
        guarded = path == SOURCE / "vit" / "compat.py"
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert guarded or not any(name.split(".")[0] == "timm" for name in names), f"{path}: call vit.compat.import_timm() first"
            guarded |= "import_timm()" in ast.unparse(node) and not isinstance(node, ast.FunctionDef | ast.ClassDef)
