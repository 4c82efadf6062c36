"""Print the lowest versions of what pyproject.toml declares, as pip takes them: python scripts/lowest.py."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

EXTRAS = ("export", "dev")


def lowest(project: dict[str, object]) -> list[str]:
    """ "torch==2.11" for "torch>=2.11,<2.16". Raises ValueError for a dependency without a lower bound."""
    found: dict[str, str] = {}
    optional: dict[str, list[str]] = project["optional-dependencies"]  # type: ignore[assignment]
    declared: list[str] = [*project["dependencies"], *(each for name in EXTRAS for each in optional[name])]  # type: ignore[misc]
    for each in declared:
        name, bound = re.fullmatch(r"([\w.-]+)>=([\d.]+)(?:,<[\d.]+)?(?:;.*)?", each.replace(" ", "")).groups()  # type: ignore[union-attr]
        found[name] = bound
    return [f"{name}=={bound}" for name, bound in found.items()]


if __name__ == "__main__":
    print(*lowest(tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())["project"]))
