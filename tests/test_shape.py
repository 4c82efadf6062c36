"""Every file is read in one sitting, every function on one screen."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "vitfrost"
ENGINE = SOURCE.parents[1] / "native"
MOST_LINES_OF_A_FILE, MOST_LINES, MOST_PARAMETERS = 400, 80, 10
# Take away from these two lists; add nothing.
LONG: set[str] = set()
WIDE: set[str] = set()
KERNELS = {"methods/constant_heads/triton_kernels.py"}  # which take pointers and strides one by one


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many it takes, without self and cls."""
    given = function.args
    names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg)))]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def functions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All of a file, nested ones too."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def long(tree: ast.Module) -> set[str]:
    """Names of functions that are too long."""
    return {one.name for one in functions(tree) if (one.end_lineno or 0) - one.lineno >= MOST_LINES}


def wide(tree: ast.Module) -> set[str]:
    """Names of functions that take too much."""
    return {one.name for one in functions(tree) if parameters(one) > MOST_PARAMETERS}


@pytest.mark.parametrize(("measure", "known"), [(long, LONG), (wide, WIDE)])
def test_no_function_is_longer_or_wider_than_those_named_here(measure: Callable[[ast.Module], set[str]], known: set[str]) -> None:
    trees = {path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text()) for path in SOURCE.rglob("*.py")}
    found = {f"{name} {function}" for name, tree in trees.items() if name not in KERNELS for function in measure(tree)}
    assert found - known == set()
    assert known - found == set(), "these are small by now: take them off the list"


def test_no_file_is_longer_than_400_lines() -> None:
    engine = (path for path in ENGINE.rglob("*.*") if path.suffix in {".cpp", ".hpp", ".h", ".inl", ".py"})
    lines = {path.name: len(path.read_text().splitlines()) for path in (*SOURCE.rglob("*.py"), *engine)}
    assert {name: count for name, count in lines.items() if count > MOST_LINES_OF_A_FILE} == {}


def test_the_measures_see_what_they_should() -> None:
    body, ten = "\n".join(["    pass"] * 80), ", ".join(f"a{number}" for number in range(10))
    assert long(ast.parse(f"def f():\n{body}")) == {"f"}
    assert wide(ast.parse(f"class C:\n  def fits(self, {ten}): ...\n  def wide(self, {ten}, *, b): ...")) == {"wide"}


def test_a_name_is_that_of_one_class() -> None:
    named: dict[str, list[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                named.setdefault(node.name, []).append(path.relative_to(SOURCE).as_posix())
    assert {name: files for name, files in named.items() if len(files) > 1} == {}
